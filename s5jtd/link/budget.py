"""One budget of bytes for a direction, drawn from by everything that moves data that way.

Tokens come with time and are kept for a fraction of a second only, so that no window is far from its
share: not above it after a rest, nor below it because a thread woke late.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

#: Bytes per second; None: no limit; 0: nothing may move.
Rate = float | None

#: Tokens are kept for so long.  A window of ten seconds can exceed its share by this, thus by 3 %.
KEPT_SECONDS: Final = 0.3
#: At a time.  Small enough that everybody has a turn before a server grows tired of waiting.
_DRAW_BYTES_MAX: Final = 64 * 1024
_DRAW_SECONDS: Final = 0.02
_DRAW_BYTES_MIN: Final = 512
_STOPPED_SECONDS: Final = 0.2  # until one looks again
#: What moved unasked is owed up to so many seconds of the rate; more would keep others waiting for ever.
_OWED_SECONDS: Final = 10.0


class Budget:
    """A token bucket.  Threads may share it."""

    def __init__(self, rate: Callable[[], Rate], clock: Callable[[], float] = time.monotonic) -> None:
        """`rate` tells what holds now; it is asked at every draw, and so may change at any time."""
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens = 0.0  # it starts empty: what nobody used before is not owed to us
        self._at = clock()

    @property
    def rate(self) -> Rate:
        """What holds now."""
        return self._rate()

    def draw(self, wanted: int) -> tuple[int, float]:
        """How many of `wanted` bytes may move now; if none, after how many seconds to ask again."""
        rate = self._rate()
        if rate is None:
            return wanted, 0.0
        with self._lock:
            now = self._clock()
            if rate <= 0:
                self._tokens, self._at = 0.0, now
                return 0, _STOPPED_SECONDS
            self._gain(rate, now)
            share = min(wanted, _DRAW_BYTES_MAX, max(int(rate * _DRAW_SECONDS), _DRAW_BYTES_MIN))
            if self._tokens < share:
                return 0, min((share - self._tokens) / rate, 1.0)
            self._tokens -= share
            return share, 0.0

    def charge(self, moved: int) -> float:
        """Count bytes that moved without being drawn for; how many seconds their mover should rest now.

        Questions and their answers are small and nobody can wait in the middle of one: they come first, and
        what is drawn for later makes up for it.
        """
        rate = self._rate()
        if rate is None or rate <= 0:
            return 0.0
        with self._lock:
            self._gain(rate, self._clock())
            self._tokens = max(self._tokens - moved, -rate * _OWED_SECONDS)
            return max(0.0, -self._tokens / rate)

    def _gain(self, rate: float, now: float) -> None:
        most = max(rate * KEPT_SECONDS, float(_DRAW_BYTES_MIN))
        tokens = max(self._tokens, -rate * _OWED_SECONDS)  # of what was owed under a higher limit, no more
        self._tokens = min(tokens + rate * (now - self._at), most)
        self._at = now

    def give_back(self, unused: int) -> None:
        """What was drawn and did not move."""
        with self._lock:
            self._tokens += unused

    def take(self, wanted: int) -> int:
        """Wait on this thread until some of `wanted` bytes (at least one) may move; how many."""
        while True:
            granted, seconds = self.draw(wanted)
            if granted:
                return granted
            time.sleep(seconds)
