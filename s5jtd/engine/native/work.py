"""What the threads of one run share: its progress, its end, and a way to do several things at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")
_WAIT_SECONDS: Final = 0.2


class Cancelled(Exception):
    """The run has ended; whatever this thread was about is nobody's any more."""


class Tally:
    """The bytes that a run moved, and whether it goes on."""

    def __init__(self, draw: Callable[[int], tuple[int, float]] = lambda wanted: (wanted, 0.0)) -> None:
        """`draw`: of so many bytes, how many may move now, or after how many seconds to ask again."""
        self._draw = draw
        self._lock = threading.Lock()
        self._moved = 0
        self._alive_at = time.monotonic()
        self._cancelled = False

    def cancel(self) -> None:
        """From now on every thread of the run raises Cancelled where it next looks, and writes no more."""
        with self._lock:
            self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether the run has ended."""
        return self._cancelled

    def check(self) -> None:
        """Say that something went on.

        Raises:
            Cancelled: the run has ended.
        """
        with self._lock:
            if self._cancelled:
                raise Cancelled
            self._alive_at = time.monotonic()

    def take(self) -> int:
        """The bytes moved since the last call."""
        with self._lock:
            moved, self._moved = self._moved, 0
        return moved

    def still_seconds(self) -> float:
        """For how long nothing went on."""
        with self._lock:
            return time.monotonic() - self._alive_at

    def allowed(self, wanted: int) -> int:
        """Wait until some of so many bytes may move; how many.

        Raises:
            Cancelled: the run has ended.
        """
        while True:
            self.check()
            granted, seconds = self._draw(wanted)
            if granted or not wanted:
                return granted
            time.sleep(seconds)

    def add(self, count: int) -> None:
        """Count bytes that moved.

        Raises:
            Cancelled: the run has ended.
        """
        self.check()
        with self._lock:
            self._moved += count


class Gauge:
    """How far one stretch of bytes has come; what is sent again after a break is not counted again."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._farthest = 0

    def reach(self, position: int) -> None:
        """The stretch has come to `position` bytes from its beginning.

        Raises:
            Cancelled: the run has ended.
        """
        self._tally.add(max(0, position - self._farthest))
        self._farthest = max(position, self._farthest)


def side_by_side(jobs: Iterable[T], hands: int, do: Callable[[T], None], tally: Tally) -> None:
    """Do every job, `hands` at a time; after the first error no other is begun, and it is raised.

    A hand that hangs is left behind when the run is cancelled.

    Raises:
        Cancelled: the run has ended.
    """
    queue = _Queue(iter(jobs))

    def work() -> None:
        for job in queue:
            try:
                do(job)
            except Exception as error:  # noqa: BLE001  (raised again by the one who waits)
                queue.end(error)

    others = [threading.Thread(target=work, daemon=True, name="native part") for _ in range(hands - 1)]
    for other in others:
        other.start()
    work()
    for other in others:
        while other.is_alive():
            other.join(_WAIT_SECONDS)
            if tally.cancelled:
                raise Cancelled
    if queue.error is not None:
        raise queue.error


class _Queue(Iterator[T]):
    """An iterator for several threads, which an error ends."""

    def __init__(self, jobs: Iterator[T]) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()
        self.error: Exception | None = None

    def end(self, error: Exception) -> None:
        with self._lock:
            self.error = self.error or error

    def __next__(self) -> T:
        with self._lock:
            if self.error is not None:
                raise StopIteration
            return next(self._jobs)
