"""Asks endpoints that nobody has heard of lately, so that a dead one's return is noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from s5jtd.problems import Problems
from s5jtd.stages.job import Job, Link
from s5jtd.stages.lessons import Lessons
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)


class Probe:
    """The one prober."""

    name = "probe"
    idle_seconds = 1.0
    quiet_seconds_max = 300.0

    def __init__(
        self, jobs: Callable[[], Sequence[Job]], lessons: Lessons, problems: Problems, bell: Bell
    ) -> None:
        """`jobs` tells which jobs there are now, `lessons` what a check found out of their endpoints."""
        self._jobs = jobs
        self._lessons = lessons
        self._problems = problems
        self._bell = bell

    def step(self, beat: Callable[[], None]) -> bool:
        """Ask each endpoint that is due, and keep the list of problems true."""
        has_news = self._lessons.refresh()
        for job in self._jobs():
            if has_news:
                self._lessons.teach(job)
            for link in (job.source, job.destination):
                link.endpoints.probe_due(beat)
                self._tell(job, link)
        return False

    def _tell(self, job: Job, link: Link) -> None:
        for shot in link.endpoints.snapshot():
            subject = f"{job.name} {link.side} {shot.url}"
            if shot.state != "down":
                if self._problems.clear("endpoint_down", subject):
                    log.info("endpoint_up", job=job.name, side=link.side.value, url=shot.url)
                    self._bell.ring()
            elif self._problems.raise_(
                "endpoint_down",
                subject,
                f"{link.side} endpoint {shot.url} of job {job.name}: {shot.last_error}",
                hint := shot.hint or "it is tried again by itself; see what is in the way: s5jtd check",
            ):
                log.warning(
                    "endpoint_down", job=job.name, side=link.side.value, url=shot.url,
                    error=shot.last_error, hint=hint,
                )  # fmt: skip
