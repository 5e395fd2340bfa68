"""Which log records say what was just said: the first few are written, the others counted.

A leaf: imports nothing of ours.  Whoever can make the daemon say something (a client that is refused, a
server that fails) must not be able to fill the journal with it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

WINDOW_SECONDS: Final = 60.0
#: Records of one event about the same things (the same words; numbers may differ) in a window.
SAME_MAX: Final = 5
#: Records of one event about whatever, for what has a different word each time.
EVENT_MAX: Final = 600
#: Things that are told apart at once; beyond it only events are.
KNOWN_MAX: Final = 2000
_NOT_SAID: Final = frozenset({"at", "level", "exception", "stage"})


class _Window:
    __slots__ = ("began", "left_out", "seen")

    def __init__(self, began: float) -> None:
        self.began, self.seen, self.left_out = began, 0, 0


class LeftOut(NamedTuple):
    """What was not written in a window that is over."""

    event: str
    records: int


class Repeats:
    """Counts what is said, in windows of a minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: dict[tuple[str, ...], _Window] = {}
        self._looked_at = 0.0

    def admits(self, record: Mapping[str, Any], now: float) -> bool:
        """Whether a record may be written; one that may not is counted.  `now`: monotonic seconds."""
        event = str(record["event"])
        said = tuple(
            f"{name}={value}"
            for name, value in sorted(record.items())
            if name not in _NOT_SAID and isinstance(value, str)
        )
        with self._lock:
            keys: list[tuple[tuple[str, ...], int]] = [((event,), EVENT_MAX)]
            if said in self._windows or len(self._windows) < KNOWN_MAX:
                keys.append((said, SAME_MAX))
            windows = [(self._windows.setdefault(key, _Window(now)), most) for key, most in keys]
            for window, most in windows:
                window.seen += 1
                if window.seen > most:
                    window.left_out += 1
                    return False
            return True

    def over(self, now: float) -> list[LeftOut]:
        """What was left out in windows that ended since the last call; asks at most once a second."""
        with self._lock:
            if now - self._looked_at < 1.0:
                return []
            self._looked_at = now
            ended = [key for key, window in self._windows.items() if now - window.began >= WINDOW_SECONDS]
            return self._forget(ended)

    def all(self) -> list[LeftOut]:
        """What was left out in any window, which all end now."""
        with self._lock:
            return self._forget(list(self._windows))

    def _forget(self, keys: list[tuple[str, ...]]) -> list[LeftOut]:
        counts: dict[str, int] = {}
        for key in keys:
            window = self._windows.pop(key)
            if window.left_out:
                event = next((word for word in key if word.startswith("event=")), key[0])
                name = event.removeprefix("event=")
                counts[name] = counts.get(name, 0) + window.left_out
        return [LeftOut(event, count) for event, count in counts.items()]
