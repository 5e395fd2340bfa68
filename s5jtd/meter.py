"""Rates over a sliding window: bytes of each job and direction, as they move."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

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

    def add(self, job_id: int, direction: Direction, moved_bytes: int) -> None:
        """Bytes moved just now."""
        if moved_bytes <= 0:
            return
        second = float(int(self._clock()))
        with self._lock:
            window = self._moved[job_id, direction]
            if window and window[-1][0] == second:
                window[-1][1] += moved_bytes
            else:
                window.append([second, float(moved_bytes)])
                self._forget(window)

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
