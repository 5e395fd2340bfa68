"""What is wrong now: one list for status, journal and monitoring; it empties by itself."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong now."""

    code: str
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
        """Something is wrong; whether that is news."""
        with self._lock:
            old = self._known.get((code, subject))
            since = old.since if old else time.time()
            self._known[code, subject] = Problem(code, subject, message, hint, since)
            return old is None

    def clear(self, code: str, subject: str) -> bool:
        """It is right again; whether that is news."""
        with self._lock:
            return self._known.pop((code, subject), None) is not None

    def now(self) -> list[Problem]:
        """All of them, the oldest first."""
        with self._lock:
            return sorted(self._known.values(), key=lambda problem: problem.since)
