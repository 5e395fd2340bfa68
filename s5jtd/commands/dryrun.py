"""`s5jtd run --dry-run`: what would travel and why; asks servers, and changes nothing anywhere."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import click

from s5jtd import log
from s5jtd.config import Config, JobConfig
from s5jtd.engine.choice import Engines
from s5jtd.errors import Exit
from s5jtd.jobs import build_job
from s5jtd.ledger.spool import Spool
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.model import Listed, printable
from s5jtd.problems import Problems
from s5jtd.s3.listing import list_objects
from s5jtd.stages.choose import Choice
from s5jtd.stages.job import Job
from s5jtd.stages.scan import Scan
from s5jtd.units import format_bytes
from s5jtd.worker import Bell

PAGE = 1000
#: Taken in, and not delivered: it travels without being new.
_WAITING = frozenset({State.SEEN, State.PULLING, State.STAGED, State.PUSHING})
_TRAVELS = ("new", "changed", "missing")


def dry_run(config: Config, *, as_json: bool = False) -> int:
    """Show what would travel and why, in the order in which it would.

    Raises:
        S5jtError: a source could not be listed.
    """
    log.configure("warning")
    for job in config.jobs:
        _show_job(config, job, as_json=as_json)
    return Exit.DONE


def _show_job(config: Config, job_config: JobConfig, *, as_json: bool) -> None:
    """Compare the source with a copy of the ledger, or of nothing where there is none."""
    count: Counter[str] = Counter()
    size = 0
    with (
        tempfile.TemporaryDirectory(prefix="s5jtd-dry-run-") as folder,
        ThreadPoolExecutor(16, "ask") as asking,
    ):
        ledger = _ledger_to_look_at(config, Path(folder))
        try:
            job = build_job(job_config, ledger, Path(folder))
            look = _Look(job, ledger, Scan(job, ledger, Engines(), asking, Problems(), Bell()), count)
            for one, why in look.lines():
                count[why] += 1
                size += one.size if why in _TRAVELS else 0
                click.echo(_line(job.name, one, why, as_json=as_json))
        finally:
            ledger.close()
    told = ", ".join(f"{count[why]} {why}" for why in _TRAVELS)
    rest = "".join(
        f"; {count[why]} {why}" for why in ("unmovable", "there already", "left out") if count[why]
    )
    changes = job.source.folder.changes if job.source.folder else None
    if changes is not None and changes.young:
        rest += f"; {changes.young} files still settling"
    total = sum(count[why] for why in _TRAVELS)
    click.echo(
        f"job {job_config.name}: {total} objects, {format_bytes(size)} would travel ({told}){rest}", err=True
    )


def _line(job: str, one: Listed, why: str, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({"job": job, "key": printable(one.key), "size_bytes": one.size, "why": why})
    return f"{why:10} {format_bytes(one.size):>10}  {printable(one.key)}"


class _Look:
    """One look at the source of a job."""

    def __init__(self, job: Job, ledger: Ledger, scan: Scan, count: Counter[str]) -> None:
        """`scan` is never run; it knows how to ask the destination."""
        self._job = job
        self._ledger = ledger
        self._scan = scan
        self._count = count

    def lines(self) -> Iterator[tuple[Listed, str]]:
        """What would travel, in the job's order; any other than that of the keys goes by way of the disk."""
        if self._job.config.order == "key":
            for page, ascending in self._pages():
                yield from self._judged(page, ascending)
            return
        with Spool() as spool:
            for page, ascending in self._pages():
                known = self._ledger.views.states(self._job.id, [one.key for one in page])
                fresh = self._ledger.views.fresh(self._job.id, page, ascending=ascending)
                waiting = [one for one in page if known.get(one.key) in _WAITING]
                spool.add(list(dict.fromkeys([*fresh, *waiting])))
            ordered = spool.ordered(self._job.config.order)
            while some := list(islice(ordered, PAGE)):
                yield from self._judged(some, ascending=False)

    def _pages(self) -> Iterator[tuple[Sequence[Listed], bool]]:
        source = self._job.source
        choice = Choice(self._job.config, source.prefix)
        with source.endpoints.lease() as endpoint:
            for page in list_objects(endpoint.client, source.prefix, version=source.list_version):
                chosen = choice.of(page.objects)
                self._count["left out"] += len(page.objects) - len(chosen)
                yield chosen, page.sorted

    def _judged(self, page: Sequence[Listed], ascending: bool) -> Iterator[tuple[Listed, str]]:
        views, job_id = self._ledger.views, self._job.id
        known = views.states(job_id, [one.key for one in page])
        fresh = {one.key for one in views.fresh(job_id, page, ascending=ascending)}
        unmovable = {one.key for one in page if one.key in fresh and self._scan.unmovable(one.key)}
        asked = [one for one in page if one.key in fresh and one.key not in unmovable]
        there = self._scan.already_there(asked, lambda: None)
        self._count["there already"] += len(there)
        for one in page:
            if one.key in unmovable:
                yield one, "unmovable"
            elif one.key in fresh and one.key not in there:
                yield one, "changed" if one.key in known else "new"
            elif one.key not in fresh and known.get(one.key) in _WAITING:
                yield one, "missing"


def _ledger_to_look_at(config: Config, folder: Path) -> Ledger:
    """A throw-away copy of the ledger, so that a running daemon and its file stay untouched."""
    path = config.state_dir / "ledger.db"
    copy = folder / "ledger.db"
    if path.exists():
        Ledger.copy(path, copy)
    return Ledger(copy)
