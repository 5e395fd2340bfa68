"""Less at a time while memory is short: the kernel's kill of a transfer is all the warning there is.

Where memory runs out the kernel takes an s5cmd (see `engine.process`), and more of the same would be taken
again.  So half as many run at a time, each with half as much, down to one that moves one object; after
enough runs that ended well it is twice as much again, and after a relapse not so soon.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Final

from s5jtd.model import Direction

#: Down to this part of what is usual.
_DIVISOR_MAX: Final = 32
#: So many runs must end well before more is tried; twice as many after each relapse, up to the most.
_RUNS_BETWEEN_TRIES: Final = 20
_RUNS_BETWEEN_TRIES_MAX: Final = 320


class Headroom:
    """What part of the usual may be asked of this machine.  Threads may share it."""

    def __init__(self) -> None:
        """Memory is not known to be short."""
        self._lock = threading.Lock()
        self._divisor = 1
        self._most = Counter[Direction]()  # runs at a time, as many as were seen
        self._running = Counter[Direction]()
        self._good = 0  # runs since the last change
        self._tried_more = False  # the last change was to more
        self._good_enough = _RUNS_BETWEEN_TRIES
        self.killed = 0  #: runs, since the daemon began

    @property
    def divisor(self) -> int:
        """By what the usual is divided now; 1: memory is not short."""
        return self._divisor

    @contextlib.contextmanager
    def turn(self, direction: Direction) -> Iterator[bool]:
        """Whether one more run may begin now; it counts until the block ends.

        Each direction always has one: a dead side must not hold up the other.
        """
        with self._lock:
            # Before memory is short there is no limit, and how many there are is learned.
            limit = max(1, self._most[direction] // self._divisor)
            mine = self._divisor == 1 or self._running[direction] < limit
            self._running[direction] += mine
            self._most[direction] = max(self._most[direction], self._running[direction])
        try:
            yield mine
        finally:
            with self._lock:
                self._running[direction] -= mine

    def ran(self, divisor: int, *, killed: bool, moved: bool) -> None:
        """Say how a run ended that had begun under `divisor`: killed, or not and with something moved.

        Of several that are killed together, the first halves; who began under more teaches nothing.
        """
        with self._lock:
            self.killed += killed
            if divisor != self._divisor:
                return
            if killed:
                if self._tried_more:
                    self._good_enough = min(2 * self._good_enough, _RUNS_BETWEEN_TRIES_MAX)
                self._turn(min(2 * divisor, _DIVISOR_MAX), more=False)
            elif moved and (divisor > 1 or self._tried_more):
                self._good += 1
                if self._good >= self._good_enough:
                    if divisor == 1:  # all of the usual for long enough: what was is over
                        self._good_enough = _RUNS_BETWEEN_TRIES
                    self._turn(max(divisor // 2, 1), more=divisor > 1)

    def _turn(self, divisor: int, *, more: bool) -> None:
        self._divisor, self._tried_more, self._good = divisor, more, 0
