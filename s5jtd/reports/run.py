"""Writes the reports: when a pass is over, daily while it lasts, and when the daemon ends in mid-pass."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from s5jtd.errors import LedgerError
from s5jtd.ledger.files import free_bytes
from s5jtd.ledger.passes import OpenPass, Passes
from s5jtd.ledger.upkeep import INTAKE_BYTES
from s5jtd.problems import Problems
from s5jtd.reports.account import Cause, Tally, compose, worth
from s5jtd.reports.folder import ReportFolder
from s5jtd.shapes import ReportObject

log = structlog.get_logger(__name__)

#: A pass that lasts longer is told of so often, for what has arrived by then.
DAILY_SECONDS: Final = 86_400
#: More objects than these are not listed in the report itself.
INLINE_OBJECTS: Final = 1000
#: A list takes about half of that for each object.
OBJECT_BYTES: Final = 200
#: When the daemon ends it tells what takes a few seconds; the next life tells the rest.
LAST_WORDS_OBJECTS: Final = 100_000
#: After a report that could not be written.
RETRY_SECONDS: Final = 30.0

_SUBJECT = "reports"


class Reporter:
    """The one writer of reports."""

    name = "report"
    idle_seconds = 1.0
    quiet_seconds_max = 120.0

    def __init__(
        self,
        passes: Passes,
        folder: ReportFolder,
        problems: Problems,
        *,
        engine: str,
        keep_seconds: Callable[[], float],
        once: bool,
    ) -> None:
        """`once`: each job gets a report, also where nothing was found to do."""
        self._passes = passes
        self._folder = folder
        self._problems = problems
        self._engine = engine
        self._keep_seconds = keep_seconds
        self._once = once
        self._writing = threading.Lock()
        self._told_jobs: set[int] = set()
        self._swept = self._recovered = False
        self._due = 0.0

    # When

    def recover(self) -> None:
        """At start, before anything moves: settle what the reports of the passes that were cut will say."""
        self._recovered = True
        for one in self._passes.cut():
            if worth(one, self._passes.looks(one), Cause.INTERRUPTED, always=False):
                self._claim(one, Cause.INTERRUPTED)

    def step(self, beat: Callable[[], None]) -> bool:
        """Write the reports that are due."""
        if time.monotonic() < self._due or not self._passes.has_room:
            return False
        with self._writing:
            self._write_all(self._cause, beat)
        return False

    def last_words(self, *, interrupted: bool) -> None:
        """The daemon ends, and nothing moves any more: tell what there is to tell."""
        if not self._recovered:
            return  # nothing began, and the ledger may be in doubt
        if not self._writing.acquire(blocking=False):
            return  # a disk that does not answer, most likely
        try:
            rest = Cause.INTERRUPTED if interrupted else Cause.GIVEN_UP
            self._write_all(lambda one: Cause.OVER if one.over else rest, lambda: None, LAST_WORDS_OBJECTS)
        except LedgerError as error:
            log.debug("report_put_off", error=str(error))
        finally:
            self._writing.release()

    def _cause(self, one: OpenPass) -> Cause | None:
        if one.over:
            return Cause.OVER
        long = one.arrived > one.told and time.time() - one.since_ms / 1000 > DAILY_SECONDS
        return Cause.UNDER_WAY if long else None

    def _write_all(
        self, cause_of: Callable[[OpenPass], Cause | None], beat: Callable[[], None], most: int | None = None
    ) -> None:
        open_passes = self._passes.open_passes()
        try:
            if not self._swept:
                self._folder.sweep({one.epoch for one in open_passes if one.epoch is not None})
                self._swept = True
            of_job = Counter(one.job_id for one in open_passes)
            for one in open_passes:
                if most is None or one.arrived - one.told <= most:
                    self._look_at(one, cause_of(one), alone=of_job[one.job_id] == 1, beat=beat)
        except OSError as error:
            self._put_off(error)
        else:
            self._problems.clear("report_failed", _SUBJECT)

    def _look_at(self, one: OpenPass, cause: Cause | None, *, alone: bool, beat: Callable[[], None]) -> None:
        if one.epoch is not None:
            self._write(one, beat)
        elif cause is not None:
            always = self._once and alone and one.job_id not in self._told_jobs
            if worth(one, self._passes.looks(one), cause, always=always):
                self._write(self._claim(one, cause), beat)
            elif one.over:
                self._passes.close(one)

    def _put_off(self, error: OSError) -> None:
        """Nothing is lost: the ledger keeps what was not told."""
        self._due = time.monotonic() + RETRY_SECONDS
        message = f"a report cannot be written: {error.filename or self._folder.path}: {error.strerror}"
        hint = "make room on the disk under state_dir, and check who owns its folder reports"
        if self._problems.raise_("report_failed", _SUBJECT, message, hint):
            log.error("report_failed", error=message, hint=hint)

    # What

    def _claim(self, one: OpenPass, cause: Cause) -> OpenPass:
        claimed = {other.epoch for other in self._passes.open_passes() if other.epoch is not None}
        return self._passes.claim(one, self._folder.free_epoch(int(time.time()), claimed), cause)

    def _write(self, one: OpenPass, beat: Callable[[], None]) -> None:
        """Write the report that was claimed, unless an earlier life got as far as that."""
        epoch, upto, cause = one.epoch or 0, one.upto or 0, Cause(one.cause or Cause.OVER)
        if self._folder.has(epoch):
            self._passes.tell(one, epoch * 1000)
            return
        count = upto - one.told
        self._check_room(count)
        tally = Tally()
        objects: list[ReportObject] | None = None
        listed = self._objects(one, upto, tally, beat)
        if count > INLINE_OBJECTS:
            objects_file = self._folder.put_objects(epoch, listed)
        else:
            objects, objects_file = list(listed), ""
        looks = self._passes.looks(one)
        failing = self._passes.failing(one) if one.open else 0
        report, until_ms = compose(
            one, looks, cause, tally, epoch=epoch, failing=failing, engine=self._engine
        )
        if objects_file:
            report["objects_file"] = objects_file
        self._folder.put(epoch, report, objects)
        self._passes.tell(one, until_ms)
        self._told_jobs.add(one.job_id)
        self._prune(delivered=tally.files > 0)
        log.info(
            "report_written", job=looks.job, epoch=epoch, status=report["status"], objects=tally.files,
            bytes=tally.bytes, parked=tally.parked, left=one.open,
        )  # fmt: skip

    def _objects(
        self, one: OpenPass, upto: int, tally: Tally, beat: Callable[[], None]
    ) -> Iterator[ReportObject]:
        for arrival in self._passes.arrivals(one, upto):
            yield tally.tell(arrival)
            beat()

    def _check_room(self, count: int) -> None:
        """A report is not worth the room that the ledger needs."""
        folder = self._folder.path.parent
        if free_bytes(folder) < INTAKE_BYTES + count * OBJECT_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(folder))

    def _prune(self, *, delivered: bool) -> None:
        """Reports go by age only when something was delivered just now.

        A server that took our signature vouches for the clock; a wrong one must not expire everything.
        """
        self._folder.prune(int(time.time() - self._keep_seconds()) if delivered else None)
