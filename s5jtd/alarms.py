"""Keeps the list of problems true where no part of the road does: looked at with each beat of the daemon."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from s5jtd.ledger.chronicle import Chronicle
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.problems import Problems
from s5jtd.reports.folder import ReportFolder
from s5jtd.stages.job import Job


class Alarms:
    """Looks at counters and flags only, so that it may be asked twice a second."""

    def __init__(
        self,
        jobs: Callable[[], Sequence[Job]],
        ledger: Ledger,
        reports: ReportFolder,
        chronicle: Chronicle,
        problems: Problems,
    ) -> None:
        """`jobs` tells which jobs there are now."""
        self._jobs = jobs
        self._ledger = ledger
        self._reports = reports
        self._chronicle = chronicle
        self._problems = problems

    def look(self) -> None:
        """Raise and clear what is to be."""
        for job in self._jobs():
            self._parked(job)
        self._endpoints_that_went()
        self._events()

    def _parked(self, job: Job) -> None:
        parked = self._ledger.views.counters(job.id)[0][State.PARKED.word]
        if not parked:
            self._problems.clear("objects_parked", job.name)
            return
        self._problems.raise_(
            "objects_parked",
            job.name,
            f"{parked} object{'s' if parked > 1 else ''} of job {job.name} cannot travel without a person",
            f"see why: s5jtctl objects {job.name} --state parked; then: s5jtctl retry {job.name} --parked",
        )

    def _endpoints_that_went(self) -> None:
        """One that was taken out of the configuration is nobody's problem any more."""
        known = {
            f"{job.name} {link.side} {shot.url}"
            for job in self._jobs()
            for link in (job.source, job.destination)
            for shot in link.endpoints.snapshot()
        }
        for problem in self._problems.now():
            if problem.code == "endpoint_down" and problem.subject not in known:
                self._problems.clear(problem.code, problem.subject)

    def _events(self) -> None:
        if self._chronicle.trouble is None:
            self._problems.clear("events_not_kept", "events")
            return
        self._problems.raise_(
            "events_not_kept",
            "events",
            f"what happens now is not kept for `s5jtctl events`: {self._chronicle.trouble}",
            "make room on the disk under state_dir",
        )
