"""Rates over a sliding window: bytes of each job and direction, as they move."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from s5jtd.model import Direction

WINDOW_SECONDS = 30.0


class Meter:
    """Adds up bytes per second and forgets what is older than the window."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never jump."""
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._moved: dict[tuple[int, Direction], deque[list[float]]] = defaultdict(deque)
        self._total: dict[tuple[int, Direction], int] = defaultdict(int)
        self._batches: dict[int, tuple[int, Direction, int]] = {}  # by thread

    def add(self, job_id: int, direction: Direction, moved_bytes: int) -> None:
        """Bytes moved just now."""
        if moved_bytes <= 0:
            return
        second = float(int(self._clock()))
        with self._lock:
            self._total[job_id, direction] += moved_bytes
            if (batch := self._batches.get(threading.get_ident())) is not None:
                self._batches[threading.get_ident()] = (*batch[:2], batch[2] + moved_bytes)
            window = self._moved[job_id, direction]
            if window and window[-1][0] == second:
                window[-1][1] += moved_bytes
            else:
                window.append([second, float(moved_bytes)])
                self._forget(window)

    @contextlib.contextmanager
    def batch(self, job_id: int, direction: Direction) -> Iterator[None]:
        """What this thread adds inside is under way until its end, when the ledger knows of it."""
        mine = threading.get_ident()
        with self._lock:
            self._batches[mine] = (job_id, direction, 0)
        try:
            yield
        finally:
            with self._lock:
                del self._batches[mine]

    def total_bytes(self, job_id: int, direction: Direction) -> int:
        """What was moved since the start, repeated attempts included."""
        with self._lock:
            return self._total[job_id, direction]

    def under_way_bytes(self, job_id: int, direction: Direction) -> int:
        """What was moved of the batches that are not settled yet."""
        with self._lock:
            return sum(moved for *whose, moved in self._batches.values() if whose == [job_id, direction])

    def bytes_per_second(self, job_id: int, direction: Direction) -> float:
        """The mean over the window, or over the time since the start while that is shorter."""
        with self._lock:
            window = self._moved[job_id, direction]
            self._forget(window)
            total = sum(moved for _, moved in window)
        span = min(WINDOW_SECONDS, max(1.0, self._clock() - self._started))
        return total / span

    def _forget(self, window: deque[list[float]]) -> None:
        oldest = self._clock() - WINDOW_SECONDS
        while window and window[0][0] < oldest:
            window.popleft()
