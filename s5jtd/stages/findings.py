"""What a resync was asked for, how far it is and what it found: shared by the worker and those who ask."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

#: Entries kept of each mark, so that a million of one kind cannot hide the few of another.
ENTRIES_KEPT = 500


class Mark(StrEnum):
    """What a comparison says of one key."""

    SAME = "="
    MISSING = "+"  #: at the destination
    DIFFERENT = "*"
    EXTRA = "-"  #: only at the destination; it is left alone
    ERROR = "!"  #: it could not be compared, or no side holds what was delivered
    UNDER_WAY = "~"  #: it is on its way, or waits for its turn: neither right nor wrong yet
    NOTHING = " "  #: no side holds it, and the ledger does not say that one should


#: Those whose keys are shown; of the others only the number.
SHOWN = frozenset({Mark.MISSING, Mark.DIFFERENT, Mark.EXTRA, Mark.ERROR})


#: All of them from the start: others read the totals while they change, and must not see them grow.
_NONE = dict.fromkeys(Mark, 0)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a resync is to do."""

    prefix: bytes  #: of the keys at the source
    deep: bool
    dry_run: bool

    def covers(self, other: Wish) -> bool:
        """Whether whatever the other would find this one would find too."""
        return other.prefix.startswith(self.prefix) and self.deep >= other.deep


@dataclass(frozen=True, slots=True)
class Entry:
    """One key that is not simply the same."""

    mark: Mark
    key: bytes
    detail: str | None


@dataclass
class Run:
    """One resync: written by its worker, read by whoever wants to know."""

    wish: Wish
    started_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    finished_ms: int | None = None
    complete: bool = False  #: both sides were listed to their end
    totals: Counter[Mark] = field(default_factory=lambda: Counter(_NONE))
    broken: int = 0  #: deliveries that the destination was seen not to hold as they were made
    rearmed: int = 0
    reached: bytes = b""  #: the last key compared
    over: threading.Event = field(default_factory=threading.Event)
    _entries: list[Entry] = field(default_factory=list)

    def count(self, entry: Entry) -> None:
        """Count one key, and keep it where there is room."""
        self.totals[entry.mark] += 1
        if entry.mark in SHOWN and self.totals[entry.mark] <= ENTRIES_KEPT:
            self._entries.append(entry)

    def break_off(self, why: str) -> None:
        """Say that nothing is known beyond the last key that was compared."""
        self.count(Entry(Mark.ERROR, self.reached or self.wish.prefix, why))

    def begin_again(self) -> None:
        """Forget what was counted, as all is going to be compared anew."""
        self.totals, self._entries, self.broken, self.reached = Counter(_NONE), [], 0, b""

    def end(self) -> None:
        """It is over, and those who wait may read it."""
        self.finished_ms = int(time.time() * 1000)
        self.over.set()

    @property
    def entries(self) -> list[Entry]:
        """The first of each mark, in key order."""
        return sorted(self._entries, key=lambda entry: entry.key)

    @property
    def compared(self) -> int:
        """How many keys were looked at so far."""
        return self.totals.total()


class Desk:
    """Where a job's resync is asked for, one at a time."""

    def __init__(self) -> None:
        """Nobody has asked yet."""
        self._lock = threading.Lock()
        self._waiting: Run | None = None
        self.latest: Run | None = None  #: under way, or else the last one since the daemon started

    def request(self, wish: Wish) -> tuple[Run, bool]:
        """A new run, or the one that is not over yet; whether it is new."""
        with self._lock:
            if self.latest is not None and not self.latest.over.is_set():
                return self.latest, False
            self._waiting = self.latest = Run(wish)
            return self.latest, True

    def take(self) -> Run | None:
        """The run that nobody works on yet."""
        with self._lock:
            run, self._waiting = self._waiting, None
            return run
