"""Which rate a timetable gives at a time, and when it gives the next one.  Without I/O but the time zone."""

from __future__ import annotations

import time
from collections.abc import Sequence

from s5jtd.link.budget import Rate
from s5jtd.units import TimetableEntry

_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES


def rate_at(entries: Sequence[TimetableEntry], now: float) -> Rate:
    """What holds at the Unix time `now`, read on the local clock; no entry at all is no limit."""
    minute = _minute_of_week(now)
    begins = _begins(entries)
    if not begins:
        return None
    return min(begins, key=lambda one: (minute - one[0]) % _WEEK_MINUTES)[1]


def next_change(entries: Sequence[TimetableEntry], now: float) -> float | None:
    """The Unix time at which another rate begins to hold; None where it is always the same."""
    holds = rate_at(entries, now)
    minute = _minute_of_week(now)
    for begin, rate in sorted(_begins(entries), key=lambda one: (one[0] - minute - 1) % _WEEK_MINUTES):
        if rate != holds:
            local = time.localtime(now)
            ahead = (begin - minute - 1) % _WEEK_MINUTES + 1
            # mktime puts minutes beyond the day where they belong, and knows when clocks change.
            parts = (local.tm_year, local.tm_mon, local.tm_mday, local.tm_hour, local.tm_min + ahead)
            return time.mktime((*parts, 0, 0, 0, -1))
    return None


def _begins(entries: Sequence[TimetableEntry]) -> list[tuple[int, Rate]]:
    """Each minute of the week at which a rate begins."""
    return [
        (day * _DAY_MINUTES + entry.minute, entry.bytes_per_second) for entry in entries for day in entry.days
    ]


def _minute_of_week(now: float) -> int:
    local = time.localtime(now)
    return local.tm_wday * _DAY_MINUTES + local.tm_hour * 60 + local.tm_min
