"""How fast a volume takes chunks in: bytes proven and durable by the time it took, over the last few."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

_CHUNKS: Final = 8
#: An older chunk tells nothing of now; a disk that was slow gets another chance.
_AGE_SECONDS_MAX: Final = 900.0
#: From less the start of a process would be measured, and not the disk.
_BYTES_MIN: Final = 1 << 20
#: Less than this under way may take its time for being many objects, or for its one process.
_TELLING_BYTES: Final = 8 << 20


class Pace:
    """Measured from the first byte of a chunk to its seal: what lies in memory only does not count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never jump."""
        self._clock = clock
        self._lock = threading.Lock()
        self._chunks: deque[tuple[float, int, float]] = deque(maxlen=_CHUNKS)
        self._moving: dict[object, tuple[float, int]] = {}

    @contextlib.contextmanager
    def under_way(self, size_bytes: int) -> Iterator[None]:
        """A chunk of so many bytes is being taken in while the block runs."""
        mark = object()
        with self._lock:
            self._moving[mark] = self._clock(), size_bytes
        try:
            yield
        finally:
            with self._lock:
                del self._moving[mark]

    @property
    def ceiling(self) -> float:
        """What it cannot be faster than now, in bytes per second: what is under way would be through."""
        now = self._clock()
        with self._lock:
            telling = [(at, size) for at, size in self._moving.values() if size >= _TELLING_BYTES]
        return min((size / max(now - at, 0.001) for at, size in telling), default=math.inf)

    def note(self, taken_bytes: int, seconds: float) -> None:
        """A chunk was sealed."""
        if taken_bytes > 0 and seconds > 0:
            with self._lock:
                self._chunks.append((self._clock(), taken_bytes, seconds))

    @property
    def bytes_per_second(self) -> float | None:
        """The mean of one puller's last chunks; None where too little is known."""
        oldest = self._clock() - _AGE_SECONDS_MAX
        with self._lock:
            known = [(size, seconds) for at, size, seconds in self._chunks if at >= oldest]
        taken = sum(size for size, _ in known)
        return taken / sum(seconds for _, seconds in known) if taken >= _BYTES_MIN else None
