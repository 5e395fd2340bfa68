"""resync: compare source, ledger and destination; let travel again what did not stay; delivered -> seen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

import structlog

from s5jtd.engine.contract import Engine
from s5jtd.errors import LedgerBlocked
from s5jtd.ledger.rearm import Doubt, Found
from s5jtd.ledger.store import Ledger
from s5jtd.model import Listed, Side, printable
from s5jtd.problems import Problems
from s5jtd.stages.choose import Choice
from s5jtd.stages.comparing import Comparison, Finding
from s5jtd.stages.findings import Mark, Run
from s5jtd.stages.job import Job, Link, unmovable
from s5jtd.stages.threeway import BrokeOff, Pulse, Stopped, Triple, Unsorted, in_order, merged
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

#: Keys that are asked about side by side, and then written down in one transaction.
FRAME = 500
PROBLEM = "resync_differences"


@dataclass(slots=True)
class _Frame:
    """What waits to be asked, and what waits to be written down."""

    doubtful: list[Triple] = field(default_factory=list)
    acts: list[Doubt | Listed | Found] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.doubtful) + len(self.acts) >= FRAME


class Resync:
    """The one comparer of one job; it rests until somebody asks."""

    idle_seconds = 60.0
    quiet_seconds_max = 300.0

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        engine: Engine,
        comparing: Executor,
        problems: Problems,
        bell: Bell,
        stop: threading.Event,
    ) -> None:
        """`comparing` asks servers side by side, apart from the road's own; `stop` is the daemon's end."""
        self.name = f"resync {job.name}"
        self._job = job
        self._ledger = ledger
        self._engine = engine
        self._comparing = comparing
        self._problems = problems
        self._bell = bell
        self._stop = stop
        self._alarm: Run | None = None  # the run whose differences stand in the list of problems

    def step(self, beat: Callable[[], None]) -> bool:
        """Do the resync that was asked for."""
        run = self._job.resync.take()
        if run is None:
            return False
        started = time.monotonic()
        try:
            self._run(run, Pulse(beat, self._stop))
            self._tell(run, time.monotonic() - started)
        except Exception as error:
            run.break_off(f"it ends here: {error}")
            raise
        finally:
            run.end()
        return True

    def _run(self, run: Run, pulse: Pulse) -> None:
        """Compare; once more by way of the disk for each side that turns out to list in no order."""
        spooled: set[Side] = set()
        while True:
            try:
                self._compare(run, spooled, pulse)
                return
            except Unsorted as found:
                spooled.add(found.side)
                run.begin_again()
            except (Stopped, LedgerBlocked) as error:
                why = str(error) or "the daemon is stopping"
                run.break_off(f"it ends here: {why}")
                return

    def _compare(self, run: Run, spooled: set[Side], pulse: Pulse) -> None:
        job = self._job
        source, destination = job.source, job.destination
        comparison = Comparison(
            job.config, source, destination, deep=run.wish.deep, unmovable=self._unmovable, pulse=pulse
        )
        choice = Choice(job.config, source.prefix)
        frame = _Frame()
        try:
            for whole in merged(
                in_order(source, run.wish.prefix, pulse, spooled=Side.SOURCE in spooled),
                _as_at_source(
                    source, destination, run.wish.prefix, pulse, spooled=Side.DESTINATION in spooled
                ),
                self._ledger.views.known(job.id, run.wish.prefix),
            ):
                triple = _chosen(whole, choice)
                if triple is None:
                    continue
                finding = comparison.by_listings(triple)
                if finding is None:
                    frame.doubtful.append(triple)
                else:
                    _note(run, frame, finding)
                run.reached = triple.key
                if frame.is_full:
                    self._settle(run, frame, comparison)
        except BrokeOff as broken:
            self._settle(run, frame, comparison)
            run.break_off(_broke_off(broken))
        else:
            self._settle(run, frame, comparison)
            run.complete = True

    def _settle(self, run: Run, frame: _Frame, comparison: Comparison) -> None:
        """Ask about what is doubtful; make the ledger say what is true of this part of the keys."""
        for finding in self._comparing.map(comparison.by_asking, frame.doubtful):
            _note(run, frame, finding)
        if frame.acts and not run.wish.dry_run:
            run.rearmed += self._ledger.settle_resync(
                self._job.id,
                [act for act in frame.acts if isinstance(act, Doubt)],
                [act for act in frame.acts if isinstance(act, Listed)],
                [act for act in frame.acts if isinstance(act, Found)],
            )
            self._bell.ring()
        frame.doubtful.clear()
        frame.acts.clear()

    def _unmovable(self, key: bytes) -> str | None:
        """Why an object cannot travel; it is left to the scan, which parks it."""
        return unmovable(self._job, self._engine, key)

    def _tell(self, run: Run, seconds: float) -> None:
        job, wish, totals = self._job.name, run.wish, run.totals
        log.info(
            "resync_finished", job=job, prefix=printable(wish.prefix), deep=wish.deep, dry_run=wish.dry_run,
            complete=run.complete, same=totals[Mark.SAME], missing=totals[Mark.MISSING],
            different=totals[Mark.DIFFERENT], extra=totals[Mark.EXTRA], errors=totals[Mark.ERROR],
            under_way=totals[Mark.UNDER_WAY], rearmed=run.rearmed, seconds=round(seconds, 3),
        )  # fmt: skip
        if run.broken:
            self._raise(run)
        elif run.complete and self._alarm is not None and wish.covers(self._alarm.wish):
            self._alarm = None
            self._problems.clear(PROBLEM, job)

    def _raise(self, run: Run) -> None:
        job = self._job.name
        self._alarm = run
        then = "this was a dry run" if run.wish.dry_run else f"{run.rearmed} objects travel again"
        message = f"job {job}: {run.broken} delivered objects are not at the destination as delivered; {then}"
        again = f"s5jtctl resync {job}{' --deep' if run.wish.deep else ''} --wait"
        hint = f"find out who changed them there; it goes when this finds all well: {again}"
        self._problems.raise_(PROBLEM, job, message, hint)
        log.warning("resync_differences", job=job, objects=run.broken, rearmed=run.rearmed)


def _chosen(triple: Triple, choice: Choice) -> Triple | None:
    """A key as the job's filters let it be seen; None where it is none of the job's.

    What was taken in before a filter left it out is still answered for, but in no newer version.
    """
    source, row = triple.source, triple.row
    if source is None or choice.takes(source) or (row is not None and row.is_version(source)):
        return triple
    return None if row is None else triple._replace(source=None)


def _note(run: Run, frame: _Frame, finding: Finding) -> None:
    run.count(finding.entry)
    run.broken += finding.broken
    if finding.act is not None:
        frame.acts.append(finding.act)


def _as_at_source(
    source: Link, destination: Link, prefix: bytes, pulse: Pulse, *, spooled: bool
) -> Iterator[Listed]:
    """What the destination holds under the names that keys with this prefix get there, by those keys."""
    below = destination.prefix + prefix.removeprefix(source.prefix)
    cut = len(destination.prefix)
    for one in in_order(destination, below, pulse, spooled=spooled):
        yield one._replace(key=source.prefix + one.key[cut:])


def _broke_off(broken: BrokeOff) -> str:
    hint = f" ({broken.error.hint})" if broken.error.hint else ""
    return (
        f"the {broken.side} could not be listed beyond this, so what follows is unknown: {broken.error}{hint}"
    )
