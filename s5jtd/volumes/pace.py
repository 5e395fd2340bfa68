"""How fast a volume takes chunks in: bytes proven and durable by the time it took, over the last few."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_CHUNKS: Final = 8
#: An older chunk tells nothing of now; a disk that was slow gets another chance.
_AGE_SECONDS_MAX: Final = 900.0
#: From less the start of a process would be measured, and not the disk.
_BYTES_MIN: Final = 1 << 20


class Pace:
    """Measured from the first byte of a chunk to its seal: what lies in memory only does not count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never jump."""
        self._clock = clock
        self._lock = threading.Lock()
        self._chunks: deque[tuple[float, int, float]] = deque(maxlen=_CHUNKS)

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
