"""Durations, sizes, rates and timetables as people write them, and back.  A leaf: imports nothing of ours.

What is written by a person is hostile input: every `parse_` takes anything at all and raises a
ValueError that says what to write instead.  What a `format_` shows can be typed back in, to within
half a percent (a duration: to within half of its second unit).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

#: Of anything counted here; also the largest integer the ledger can hold.
LARGEST = 2**63 - 1

_LONGEST_TEXT = 64  # characters; no honest quantity is longer, and int() of more digits is slow
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z/%]*)")
_SECONDS_PER = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile(" ?".join(rf"(?:([0-9]+(?:\.[0-9]+)?){unit})?" for unit in _SECONDS_PER))
_LONGEST_DURATION = 100 * 366 * 86_400  # seconds; later than any deadline a clock here can hold

_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_DECIMAL = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_BYTES_PER = {"": Fraction(1), "B": Fraction(1)} | {
    unit: Fraction(factor) for unit, factor in (_BINARY | _DECIMAL).items()
}
_BYTES_PER_SECOND_PER = {f"{unit}/s": factor for unit, factor in _BYTES_PER.items() if unit} | {
    f"{prefix}bit/s": Fraction(factor, 8)
    for prefix, factor in {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}.items()
}

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIMETABLE_ENTRY = re.compile(r"(?:([A-Za-z,-]+) +)?([0-9]{1,2}):([0-9]{2}) +(\S.*)")


@dataclass(frozen=True, slots=True)
class TimetableEntry:
    """From this minute of these days on this rate holds, until the next entry begins.  Local time."""

    days: tuple[int, ...]  #: ascending; 0 is Monday
    minute: int  #: of the day
    bytes_per_second: float | None  #: 0.0: nothing may move; None: no limit


def parse_duration(value: object) -> float:
    """Seconds, from `30s`, `5m`, `2h`, `7d` or several of them, largest first: `1h 30m`."""
    text = _text(value, "a duration, like 30s, 5m, 2h or 7d")
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        raise ValueError(f"{shown(text)} is not a duration; write it with its unit, like 30s, 5m, 2h or 7d")
    numbers = zip(match.groups(), _SECONDS_PER.values(), strict=True)
    seconds = sum(Fraction(number) * factor for number, factor in numbers if number)
    if seconds > _LONGEST_DURATION:
        raise ValueError(f"{shown(text)} is longer than a hundred years")
    return float(seconds)


def parse_size(value: object) -> int:
    """Bytes, from `64MiB`, `1GiB`, `10MB` or a bare whole number; a part of a byte is dropped."""
    if isinstance(value, int) and not isinstance(value, bool):
        size_bytes = value
    else:
        text = _text(value, "a size, like 64MiB, 10MB or a whole number of bytes")
        size_bytes = int(_measure(text, _BYTES_PER, "a size; write it like 64MiB, 10MB or 1048576"))
    if not 0 <= size_bytes <= LARGEST:
        raise ValueError("a size must be at least 0 and less than 8192PiB")
    return size_bytes


def parse_rate(value: object) -> float:
    """Bytes per second, from `50Mbit/s` or `6MiB/s`; never a bare number, whose unit one would guess."""
    text = _text(value, "a rate with its unit, like 50Mbit/s or 6MiB/s")
    rate = _measure(text, _BYTES_PER_SECOND_PER, "a rate; write it with its unit, like 50Mbit/s or 6MiB/s")
    if not 1 <= rate <= LARGEST:
        raise ValueError(f"{shown(text)}: a rate must be at least 1B/s and less than 8192PiB/s")
    return float(rate)


def parse_percent(value: object) -> float:
    """A fraction from 0.0 to 1.0, from `5%`."""
    text = _text(value, "a percentage, like 5%")
    percent = _measure(text, {"%": Fraction(1)}, "a percentage; write it like 5%")
    if percent > 100:
        raise ValueError(f"{shown(text)} is more than the whole")
    return float(percent / 100)


def parse_timetable(values: Iterable[object]) -> tuple[TimetableEntry, ...]:
    """Entries in the order written; two that begin at the same minute of the week are refused."""
    entries = tuple(parse_timetable_entry(value) for value in values)
    begins: dict[tuple[int, int], int] = {}
    for number, entry in enumerate(entries, start=1):
        for day in entry.days:
            first = begins.setdefault((day, entry.minute), number)
            if first != number:
                when = f"{_DAYS[day].title()} {entry.minute // 60:02}:{entry.minute % 60:02}"
                raise ValueError(f"entries {first} and {number} both begin at {when}")
    return entries


def parse_timetable_entry(value: object) -> TimetableEntry:
    """One line of a timetable: `Mon-Fri 08:00 10Mbit/s`, `12:00 stop`, `19:00 unlimited`."""
    text = _text(value, 'an entry like "Mon-Fri 08:00 10Mbit/s"')
    match = _TIMETABLE_ENTRY.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{shown(text)} is not an entry of a timetable; write days (or none), a time and a rate,"
            ' like "Mon-Fri 08:00 10Mbit/s", "12:00 stop" or "19:00 unlimited"'
        )
    days, hour, minute, rate = match.groups()
    if int(hour) > 23 or int(minute) > 59:
        raise ValueError(f"{shown(text)}: a day runs from 00:00 to 23:59")
    return TimetableEntry(
        days=_days(days) if days else tuple(range(7)),
        minute=int(hour) * 60 + int(minute),
        bytes_per_second=_timetable_rate(rate),
    )


def format_duration(seconds: float) -> str:
    """For people, in at most two units: `3.2s`, `2m 5s`, `1d 4h`."""
    if round(seconds, 1) < 60:
        return f"{_three_digits(seconds)}s"
    units = list(_SECONDS_PER.items())
    for (big, big_seconds), (small, small_seconds) in pairwise(units):
        rounded = round(seconds / small_seconds) * small_seconds
        if rounded >= big_seconds:
            count, rest = divmod(rounded, big_seconds)
            return f"{count}{big} {rest // small_seconds}{small}" if rest else f"{count}{big}"
    raise AssertionError(seconds)  # a minute or more always rounds to a minute or more


def format_bytes(size_bytes: float) -> str:
    """For people, to three digits: `999B`, `1.46KiB`, `150GiB`."""
    value = float(size_bytes)
    for unit in ("B", *_BINARY):
        text = _three_digits(value)
        if float(text) < 1024 or unit == "PiB":
            return text + unit
        value /= 1024
    raise AssertionError(size_bytes)  # the last unit takes everything


def format_rate(bytes_per_second: float) -> str:
    """For people, to three digits: `5.96MiB/s`."""
    return f"{format_bytes(bytes_per_second)}/s"


def shown(text: str) -> str:
    """What somebody wrote, as it may stand in a message: quoted, short, without control characters."""
    short = text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"
    return repr(short)


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be {what}")  # noqa: TRY004  pydantic collects ValueErrors only
    if len(value) > _LONGEST_TEXT:
        raise ValueError(f"{shown(value)} is too long to be {what}")
    return value.strip(" ")


def _measure(text: str, units: Mapping[str, Fraction], what: str) -> Fraction:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        raise ValueError(f"{shown(text)} is not {what}")
    return Fraction(match[1]) * units[match[2]]


def _days(text: str) -> tuple[int, ...]:
    """Days from `Mon`, `Mon-Fri`, `Sat,Sun`; a range may run over the end of the week."""
    days: set[int] = set()
    for item in text.lower().split(","):
        first, _, last = item.partition("-")
        if first not in _DAYS or (last or first) not in _DAYS or item.endswith("-"):
            raise ValueError(f"{shown(text)} are not days; write them like Mon, Mon-Fri or Sat,Sun")
        start = _DAYS.index(first)
        length = (_DAYS.index(last or first) - start) % 7
        days.update((start + offset) % 7 for offset in range(length + 1))
    return tuple(sorted(days))


def _timetable_rate(text: str) -> float | None:
    if text == "stop":
        return 0.0
    return None if text == "unlimited" else parse_rate(text)


def _three_digits(value: float) -> str:
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text
