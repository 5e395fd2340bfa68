"""What `s5jtd check` found out: brought into the ledger, and from there to the endpoints of jobs at work."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import structlog

from s5jtd.ledger.endpoint_checks import FILE, EndpointChecks, Place, read_file
from s5jtd.model import Learned
from s5jtd.stages.job import Job

log = structlog.get_logger(__name__)

#: Servers are replaced and upgraded: what was found out longer ago is found out again on the way.
_USED_DAYS: Final = 30


class Lessons:
    """What is known of all endpoints.  It only saves questions: without it the road asks them itself."""

    def __init__(self, checks: EndpointChecks, state_dir: Path) -> None:
        """Read what there is; nobody is told yet."""
        self._checks = checks
        self._path = state_dir / FILE
        self._seen: tuple[int, int] | None = None
        self._known: dict[Place, Learned] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Take in a check that was made since; whether anything may be known now that was not."""
        try:
            status = self._path.stat()
        except OSError:
            mark = (0, 0)
        else:
            mark = (status.st_ino, status.st_mtime_ns)
        if mark == self._seen:
            return False
        self._seen = mark
        try:
            found = read_file(self._path)
            if found is not None and found[0] > self._checks.newest_ms():
                count = self._checks.keep(*found)
                log.info("endpoint_checks_kept", endpoints=count)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("endpoint_checks_unreadable", path=str(self._path), error=str(error))
        self._known = self._checks.learned(int((time.time() - _USED_DAYS * 86_400) * 1000))
        return True

    def teach(self, job: Job) -> None:
        """Tell a job's endpoints."""
        for link in (job.source, job.destination):
            for endpoint in link.endpoints.all():
                known = self._known.get((job.name, link.side.value, endpoint.url))
                if known is not None and known != endpoint.client.learned:
                    link.endpoints.teach(endpoint, known)
