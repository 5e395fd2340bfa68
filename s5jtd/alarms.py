"""Keeps the list of problems true where no part of the road does: looked at with each beat of the daemon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import structlog

from s5jtd.ledger.chronicle import Chronicle
from s5jtd.ledger.passes import Passes
from s5jtd.ledger.rows import NO_PAUSES, Pauses
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.link.headroom import Headroom
from s5jtd.pool import Pool
from s5jtd.problems import Problems
from s5jtd.reports.folder import ReportFolder
from s5jtd.s3.endpoints import EndpointStatus
from s5jtd.stages.job import Job
from s5jtd.units import format_duration
from s5jtd.weakness import Weakness

log = structlog.get_logger(__name__)

#: Servers refuse what is signed more than fifteen minutes off; this is early enough to mend it.
SKEW_SECONDS_MAX = 120.0
#: What costs a query or a file is looked at so often.
SELDOM_SECONDS = 10.0
_OF_ENDPOINTS = ("endpoint_down", "clock_skew")
_OF_JOBS = ("objects_parked", "evidence_below_policy", "scan_incomplete")


class _Shot(NamedTuple):
    subject: str
    job: str
    side: str
    endpoint: EndpointStatus


class Alarms:
    """Looks at counters and flags; what costs more, seldom.  So it may be asked twice a second."""

    def __init__(
        self,
        jobs: Callable[[], Sequence[Job]],
        ledger: Ledger,
        pool: Pool,
        reports: ReportFolder,
        chronicle: Chronicle,
        headroom: Headroom,
        problems: Problems,
    ) -> None:
        """`jobs` tells which jobs there are now."""
        self._jobs = jobs
        self._ledger = ledger
        self._pool = pool
        self._weakness = Weakness(Passes(ledger.database), reports)
        self._chronicle = chronicle
        self._headroom = headroom
        self._problems = problems
        self._seldom_at = 0.0
        self._resting: dict[int, bool] = {}  # whether a half of a job was paused when last looked at

    def look(self) -> None:
        """Raise and clear what is to be."""
        jobs = self._jobs()
        for job in jobs:
            known = self._ledger.views.overview(job.id)
            self._parked(job, known.objects[State.PARKED.word])
            self._pause(job, known.pauses)
        shots = list(_shots(jobs))
        for shot in shots:
            self._clock(shot)
        self._those_that_went({shot.subject for shot in shots}, {job.name for job in jobs})
        self._events()
        self._memory()
        if time.monotonic() >= self._seldom_at:
            self._seldom_at = time.monotonic() + SELDOM_SECONDS
            self._volumes_that_went()
            for job in jobs:
                self._evidence(job)

    def _tell(self, wrong: bool, code: str, subject: str, message: str, hint: str) -> None:
        if wrong:
            self._problems.raise_(code, subject, message, hint)
        else:
            self._problems.clear(code, subject)

    def _pause(self, job: Job, pauses: Pauses) -> None:
        """That one began is told with who asked for it; mostly it ends by itself."""
        rests = pauses != NO_PAUSES
        if self._resting.get(job.id) and not rests:
            log.info("pause_ended", job=job.name)
        self._resting[job.id] = rests

    def _parked(self, job: Job, parked: int) -> None:
        self._tell(
            parked > 0, "objects_parked", job.name,
            f"{parked} object{'s' if parked > 1 else ''} of job {job.name} cannot travel without a person",
            f"see why: s5jtctl objects {job.name} --state parked; then: s5jtctl retry {job.name} --parked",
        )  # fmt: skip

    def _clock(self, shot: _Shot) -> None:
        skew = shot.endpoint.skew_seconds or 0.0
        ahead = "behind" if skew > 0 else "ahead of"
        # Rounded, so that the message stays the same while the clocks do.
        self._tell(
            abs(skew) > SKEW_SECONDS_MAX, "clock_skew", shot.subject,
            f"this machine's clock is {format_duration(round(abs(skew) / 60) * 60)} {ahead} that of the"
            f" {shot.side} endpoint {shot.endpoint.url} of job {shot.job}",
            "set the clock: timedatectl; beyond 15 minutes every signed request is refused",
        )  # fmt: skip

    def _those_that_went(self, endpoints: set[str], jobs: set[str]) -> None:
        """What was taken out of the configuration is nobody's problem any more."""
        known = dict.fromkeys(_OF_ENDPOINTS, endpoints) | dict.fromkeys(_OF_JOBS, jobs)
        for problem in self._problems.now():
            if problem.code in known and problem.subject not in known[problem.code]:
                self._problems.clear(problem.code, problem.subject)

    def _events(self) -> None:
        self._tell(
            self._chronicle.trouble is not None, "events_not_kept", "events",
            f"what happens now is not kept for `s5jtctl events`: {self._chronicle.trouble}",
            "make room on the disk under state_dir",
        )  # fmt: skip

    def _memory(self) -> None:
        headroom = self._headroom
        self._tell(
            headroom.divisor > 1, "memory_short", "s5cmd",
            f"s5cmd was killed, as the kernel does when memory runs out ({headroom.killed} times); so only"
            f" one in {headroom.divisor} of the usual transfers runs at a time",
            "see who took the memory: journalctl -k | grep -i oom; it is more again when runs end well",
        )  # fmt: skip

    def _volumes_that_went(self) -> None:
        """A volume that was taken out of the configuration is not forgotten while something lies on it."""
        here = {volume.ledger_id for volume in self._pool.volumes}
        paths = {str(volume.path) for volume in self._pool.volumes}  # one that is missing has no id yet
        for row in self._ledger.views.volumes():
            is_away = row.id not in here and row.path not in paths
            staged = self._ledger.views.staged_bytes().get(row.id, 0) if is_away else 0
            self._tell(
                staged > 0, "volume_not_configured", row.path,
                f"volume {row.name} at {row.path} holds {staged} bytes of this ledger's objects and is not in"
                " the configuration",
                f"add {row.path} to `volumes` and restart; then empty it: s5jtctl volumes drain {row.name}",
            )  # fmt: skip

    def _evidence(self, job: Job) -> None:
        weak = self._weakness.look(job)
        count, minimum, report = (weak.objects, weak.minimum, weak.report) if weak else (0, "", 0)
        self._tell(
            weak is not None, "evidence_below_policy", job.name,
            f"{count} of the objects that job {job.name} delivered last are proven by less than {minimum}",
            f"s5jtctl reports show {report} --objects; evidence.otherwise: readback or park",
        )  # fmt: skip


def _shots(jobs: Sequence[Job]) -> Iterator[_Shot]:
    for job in jobs:
        for link in (job.source, job.destination):
            for shot in link.endpoints.snapshot():
                yield _Shot(f"{job.name} {link.side} {shot.url}", job.name, link.side.value, shot)
