"""Rates: bytes of each job and direction as they move, and what may be foretold from them."""

from __future__ import annotations

import contextlib
import math
import statistics
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from s5jtd.model import Direction

WINDOW_SECONDS = 30.0
#: Of work, before anything is foretold from it: the first seconds of a transfer say nothing of the rest.
KNOWN_AFTER_SECONDS = 5.0
#: What was measured before a rest longer than this says nothing of today.
STALE_AFTER_SECONDS = 900.0
#: Slower than this, in bytes a second, is no pace to foretell anything from.
PACE_MIN = 1.0
#: What an object costs beside its bytes, in bytes: ten thousand small ones take longer than their sum tells.
#: So much where nothing is seen of it, and at most.
OBJECT_BYTES = 64 << 10
OBJECT_BYTES_MAX = 1 << 20
#: For so long it is seen what objects cost, by seconds with many of them and seconds with few.
SEEN_SECONDS = 120.0
#: Fewer such seconds tell nothing, nor do those in which there was more of both or less of both.
SEEN_SECONDS_MIN = 5
CORRELATION_MAX = 0.5
#: They tell as much as `OBJECT_BYTES`, where objects vary by this share of what would fill a second then.
DOUBT = 0.1


class Pace(NamedTuple):
    """How fast work goes: so many bytes a second, were each object `object_bytes` larger than it is."""

    bytes_per_second: float
    object_bytes: float

    def seconds(self, size_bytes: int, objects: int) -> float:
        """How long so much takes."""
        return (size_bytes + objects * self.object_bytes) / self.bytes_per_second


class Meter:
    """Adds up bytes per second and forgets what is older than the window."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never jump."""
        self._clock = clock
        self._lock = threading.Lock()
        self._flows: dict[tuple[int, Direction], _Flow] = defaultdict(_Flow)
        # Bytes and objects, by thread, job and direction:
        self._batches: dict[tuple[int, int, Direction], tuple[int, int]] = {}

    def add(
        self, job_id: int, direction: Direction, moved_bytes: int, objects: int = 0, thread: int | None = None
    ) -> None:
        """Bytes moved just now, or objects ended; `thread` is whose batch it is where not this one."""
        if moved_bytes <= 0 and not objects:
            return
        batch = (thread or threading.get_ident(), job_id, direction)
        with self._lock:
            if batch in self._batches:
                before_bytes, before_objects = self._batches[batch]
                self._batches[batch] = (before_bytes + moved_bytes, before_objects + objects)
            self._flows[job_id, direction].add(self._clock(), moved_bytes, objects)

    def found(self, job_id: int, direction: Direction, size_bytes: int, thread: int) -> None:
        """Of the batch that a thread has under way so much had been moved before: it is no speed of now."""
        batch = (thread, job_id, direction)
        with self._lock:
            if batch in self._batches:
                before_bytes, objects = self._batches[batch]
                self._batches[batch] = (before_bytes + size_bytes, objects)

    @contextlib.contextmanager
    def batch(self, job_id: int, direction: Direction) -> Iterator[None]:
        """What this thread adds inside is under way until its end, when the ledger knows of it."""
        mine = (threading.get_ident(), job_id, direction)
        with self._lock:
            self._batches[mine] = (0, 0)
            self._flows[job_id, direction].work(self._clock(), 1)
        try:
            yield
        finally:
            with self._lock:
                del self._batches[mine]
                self._flows[job_id, direction].work(self._clock(), -1)

    def total_bytes(self, job_id: int, direction: Direction) -> int:
        """What was moved since the start, repeated attempts included."""
        with self._lock:
            return self._flows[job_id, direction].total

    def under_way_bytes(self, job_id: int, direction: Direction) -> int:
        """What was moved of the batches that are not settled yet."""
        return self.under_way(job_id, direction)[0]

    def under_way(self, job_id: int, direction: Direction) -> tuple[int, int]:
        """The same, and how many of their objects ended."""
        with self._lock:
            mine = [moved for (_, *whose), moved in self._batches.items() if whose == [job_id, direction]]
        return sum(size for size, _ in mine), sum(objects for _, objects in mine)

    def bytes_per_second(self, job_id: int, direction: Direction) -> float:
        """The mean over the window, or over the time since it moves again while that is shorter."""
        with self._lock:
            return self._flows[job_id, direction].rate(self._clock())

    def pace(self, job_id: int, direction: Direction) -> Pace | None:
        """How fast it goes while it has work: the mean of late over such time; None while nobody can tell."""
        with self._lock:
            return self._flows[job_id, direction].pace(self._clock())


class _Flow:
    """One direction of one job."""

    def __init__(self) -> None:
        self.total = 0
        self._window: deque[list[float]] = deque()  # seconds of the clock, each with its bytes
        self._began = 0.0  # when it moved first after nothing had for a whole window
        self._batches = 0  # under way now
        # Of the time with a batch under way, the longer ago, the less of it:
        self._busy_seconds = 0.0
        self._busy_bytes = 0.0
        self._busy_objects = 0.0
        self._still_seconds = math.inf  # such time since the last byte
        self._looked = self._worked = 0.0  # when last, and when last with a batch under way
        self._costs = _Costs()

    def add(self, now: float, moved: int, objects: int) -> None:
        self._look(now)
        self.total += moved
        if self._still_seconds > WINDOW_SECONDS:
            # How long these took, nobody can tell: it is measured from here on.
            self._busy_seconds = self._busy_bytes = self._busy_objects = 0.0
        else:
            self._busy_bytes += moved
            self._busy_objects += objects
            self._costs.add(now, moved, objects)
        self._still_seconds = 0.0
        if not moved:
            return
        if not self._window:
            self._began = now
        second = float(int(now))
        if self._window and self._window[-1][0] == second:
            self._window[-1][1] += moved
        else:
            self._window.append([second, float(moved)])

    def work(self, now: float, batches: int) -> None:
        """So many batches more, or fewer, are under way."""
        self._look(now)
        self._batches += batches

    def rate(self, now: float) -> float:
        self._look(now)
        span = min(WINDOW_SECONDS, max(1.0, now - self._began))
        return sum(moved for _, moved in self._window) / span

    def pace(self, now: float) -> Pace | None:
        self._look(now)
        if self._busy_seconds < KNOWN_AFTER_SECONDS or self._still_seconds > WINDOW_SECONDS:
            return None
        object_bytes = self._costs.object_bytes(now)
        per_second = (self._busy_bytes + self._busy_objects * object_bytes) / self._busy_seconds
        return Pace(per_second, object_bytes) if per_second >= PACE_MIN else None

    def _look(self, now: float) -> None:
        """The time since the last look has passed."""
        passed, self._looked = now - self._looked, now
        while self._window and self._window[0][0] < now - WINDOW_SECONDS:
            self._window.popleft()
        if self._batches:
            self._worked = now
            kept = math.exp(-passed / WINDOW_SECONDS)
            self._busy_bytes *= kept
            self._busy_objects *= kept
            self._busy_seconds = kept * self._busy_seconds + (1 - kept) * WINDOW_SECONDS
            self._still_seconds += passed
        elif now - self._worked > STALE_AFTER_SECONDS:
            self._still_seconds = math.inf


class _Costs:
    """What an object costs beside its bytes: as many as move less in seconds in which an object more ends.

    One number for all lines would not do: on a fast one it decides how long small objects take, on a slow one
    they cost hardly more than their bytes.
    """

    def __init__(self) -> None:
        self._seconds: deque[list[float]] = deque()  # of the clock; each with its bytes and its objects

    def add(self, now: float, moved: int, objects: int) -> None:
        second = float(int(now))
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0.0, 0.0])
            while self._seconds[0][0] < second - SEEN_SECONDS:
                self._seconds.popleft()
        self._seconds[-1][1] += moved
        self._seconds[-1][2] += objects

    def object_bytes(self, now: float) -> float:
        first, present = now - SEEN_SECONDS, int(now)  # the present second is not over
        whole = [(moved, objects) for second, moved, objects in self._seconds if first <= second < present]
        if len(whole) < SEEN_SECONDS_MIN:
            return OBJECT_BYTES
        moved, objects = zip(*whole, strict=True)
        if min(objects) == max(objects) or not any(moved):
            return OBJECT_BYTES
        if min(moved) < max(moved) and statistics.correlation(moved, objects) > CORRELATION_MAX:
            return OBJECT_BYTES
        # Little that differs says little: then it is what is taken where nothing is seen.
        doubt = (DOUBT * statistics.fmean(moved) / OBJECT_BYTES) ** 2
        spread: float = statistics.pvariance(objects)
        seen: float = max(0.0, -statistics.linear_regression(objects, moved).slope)
        weighed: float = (doubt * OBJECT_BYTES + spread * seen) / (doubt + spread)
        return min(weighed, OBJECT_BYTES_MAX)
