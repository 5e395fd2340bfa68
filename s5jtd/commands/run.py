"""`s5jtd run`: the daemon in the foreground, one pass, or a look at what would travel."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import sdnotify

from s5jtd import log
from s5jtd.app import App
from s5jtd.config import Config, JobConfig
from s5jtd.daemon import Inbox, serve
from s5jtd.engine.s5cmd import S5cmd
from s5jtd.errors import Exit
from s5jtd.jobs import build_job
from s5jtd.ledger.store import Ledger
from s5jtd.model import Direction, Listed, printable
from s5jtd.s3.listing import list_objects
from s5jtd.stages.job import Job
from s5jtd.units import format_bytes


def run_daemon(config: Config, path: Path, *, once: bool) -> int:
    """Run until told to stop, or with `once` until each source was looked at and all of it moved.

    Raises:
        S5jtError: it could not start.
    """
    log.configure(config.log.level)
    inbox: Inbox = Inbox()
    app = App(config, path, inbox, once=once)
    try:
        stop = serve(app, inbox, sdnotify.SystemdNotifier().notify)
        problems = app.problems.now() if once and stop.exit_code else []
    finally:
        app.close()
    for problem in problems:
        click.echo(f"s5jtd: {problem.message}", err=True)
        if problem.hint:
            click.echo(f"hint: {problem.hint}", err=True)
    # Under systemd an orderly end is a success, whichever signal asked for it.
    return 0 if not once and stop.reason in ("SIGTERM", "SIGINT") else stop.exit_code


def dry_run(config: Config) -> int:
    """Show what would travel and why; ask servers, and change nothing anywhere.

    Raises:
        S5jtError: a source could not be listed.
    """
    log.configure("warning")
    for job in config.jobs:
        _dry_run_job(config, job)
    return Exit.DONE


def _dry_run_job(config: Config, job_config: JobConfig) -> None:
    """Compare the source with a copy of nothing, or with the ledger where there is one."""
    count = size = 0
    with tempfile.TemporaryDirectory(prefix="s5jtd-dry-run-") as folder:
        ledger = _ledger_to_look_at(config, Path(folder))
        try:
            job = build_job(job_config, ledger, Path(folder))
            for listed, why in _would_travel(job, ledger):
                count += 1
                size += listed.size
                click.echo(f"{why:10} {format_bytes(listed.size):>10}  {printable(listed.key)}")
        finally:
            ledger.close()
    click.echo(f"job {job_config.name}: {count} objects, {format_bytes(size)} would travel", err=True)


def _ledger_to_look_at(config: Config, folder: Path) -> Ledger:
    """A throw-away copy of the ledger, so that a running daemon and its file stay untouched."""
    path = config.state_dir / "ledger.db"
    copy = folder / "ledger.db"
    if path.exists():
        Ledger.copy(path, copy)
    return Ledger(copy)


def _would_travel(job: Job, ledger: Ledger) -> Iterator[tuple[Listed, str]]:
    engine = S5cmd()
    with job.source.endpoints.lease() as endpoint:
        for page in list_objects(endpoint.client, job.source.prefix, version=job.source.list_version):
            new = ledger.views.unknown(job.id, [listed.key for listed in page.objects])
            fresh = {listed.key for listed in ledger.views.fresh(job.id, page.objects, ascending=page.sorted)}
            for listed in page.objects:
                if listed.key in fresh:
                    refused = job.misnamed(listed.key) or engine.refuses(listed.key, Direction.PULL)
                    yield listed, "unmovable" if refused else "new" if listed.key in new else "changed"
