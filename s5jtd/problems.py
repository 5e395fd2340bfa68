"""What is wrong now: one list for status, journal, events and monitoring; it empties by itself."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import structlog

from s5jtd.events import PROBLEMS, Trouble

log = structlog.get_logger(__name__)

_UNLISTED = Trouble("")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong now."""

    code: str  #: of `events.PROBLEMS`
    subject: str  #: the job, volume or endpoint it is about
    message: str
    hint: str
    since: float  #: Unix time


class Problems:
    """Raised and cleared by whoever sees; the same problem keeps the time it was first seen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], Problem] = {}

    def raise_(self, code: str, subject: str, message: str, hint: str = "") -> bool:
        """Something is wrong; whether that is news.  See `events.PROBLEMS` for who logs it."""
        with self._lock:
            old = self._known.get((code, subject))
            since = old.since if old else time.time()
            self._known[code, subject] = Problem(code, subject, message, hint, since)
        if old is None and PROBLEMS.get(code, _UNLISTED).raised == "problem_raised":
            log.warning("problem_raised", code=code, subject=subject, error=message, hint=hint)
        return old is None

    def clear(self, code: str, subject: str) -> bool:
        """It is right again; whether that is news."""
        with self._lock:
            old = self._known.pop((code, subject), None)
        if old is not None and PROBLEMS.get(code, _UNLISTED).cleared == "problem_cleared":
            seconds = round(max(0.0, time.time() - old.since), 1)
            log.info("problem_cleared", code=code, subject=subject, seconds=seconds)
        return old is not None

    def clear_about(self, code_prefix: str, subject: str) -> None:
        """Everything that is wrong with a thing, or with a part of it (`subject PART`), is so no more."""
        for problem in self.now():
            mine = problem.subject == subject or problem.subject.startswith(f"{subject} ")
            if mine and problem.code.startswith(code_prefix):
                self.clear(problem.code, problem.subject)

    def now(self) -> list[Problem]:
        """All of them, the oldest first."""
        with self._lock:
            return sorted(self._known.values(), key=lambda problem: problem.since)
