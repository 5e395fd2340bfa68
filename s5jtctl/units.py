"""Quantities as people type and read them; the daemon only ever hears and says plain numbers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

KIB = 1024
MINUTE = 60
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# Not compiled before one is needed: most commands read neither.
_DURATION = r"([0-9]{1,9})([smhd])"
_RATE = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(k|M|G|Ki|Mi|Gi)?(bit|B)/s"
_FACTOR = {None: 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_BITS = {"bit": 8, "B": 1}


def duration_seconds(text: str) -> int:
    """Read `30s`, `5m`, `2h` or `7d`.

    Raises:
        ValueError: in words for the operator.
    """
    if not (match := re.fullmatch(_DURATION, text)) or int(match[1]) == 0:
        raise ValueError(f"{text!r} is no duration; write it like 30s, 5m, 2h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


def rate_bytes_per_second(text: str) -> int:
    """Read `50Mbit/s` or `6MiB/s`; the unit is required, because nobody agrees on what a bare number means.

    Raises:
        ValueError: in words for the operator.
    """
    if not (match := re.fullmatch(_RATE, text)):
        raise ValueError(f"{text!r} is no rate; write it with its unit, like 50Mbit/s or 6MiB/s")
    rate = int(float(match[1]) * _FACTOR[match[2]] / _BITS[match[3]])
    if rate < 1:
        raise ValueError(f"{text!r} is no rate; to stop moving data altogether: s5jtctl pause --all")
    return rate


def instant(text: str, now: datetime) -> int | str:
    """Read what `--since` takes: an event's id, a time with its zone, or how long ago.

    Raises:
        ValueError: in words for the operator.
    """
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return int(text)
    try:
        if re.fullmatch(_DURATION, text):
            moment = now - timedelta(seconds=duration_seconds(text))
        elif (moment := datetime.fromisoformat(text)).tzinfo is None:
            raise ValueError
        return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time; write it like 2026-01-31T23:59:00Z, 2h or an event's id"
        ) from None


def amount(size_bytes: float | None) -> str:
    """Bytes to three digits: `1.21 TiB`."""
    if size_bytes is None:
        return "-"
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size_bytes /= 1024
        # 999.5 would be written with four digits, and 1023.9 is better said in the next unit.
        if size_bytes < 999.5 or unit == "PiB":
            break
    digits = 2 if size_bytes < 9.995 else 1 if size_bytes < 99.95 else 0
    return f"{size_bytes:.{digits}f} {unit}"


def rate(bytes_per_second: float | None) -> str:
    return "-" if bytes_per_second is None else f"{amount(bytes_per_second)}/s"


def count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def span(seconds: float | None) -> str:
    """A length of time by its two largest units: `3d 4h`."""
    if seconds is None:
        return "-"
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit in ("d", "h", "m", "s"):
        number, left = divmod(left, _SECONDS[unit])
        if number or parts or unit == "s":
            parts.append(f"{number}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0") or len(parts) == 1)


def ago(time: str | None, now: datetime) -> str:
    """How long since `time`, an RFC 3339 time of the daemon; the time itself where it cannot be told."""
    if time is None:
        return "-"
    try:
        seconds = (now - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return time
    # A clock that was set back makes the past look like the future.
    return f"{span(seconds)} ago" if seconds >= 0 else time


def span_since(time: str, now: datetime) -> str:
    """How long it lasts by now: `ago` without the word."""
    return ago(time, now).removesuffix(" ago")


def ahead(time: str | None, now: datetime) -> str:
    """How long until `time`; the time itself where that has passed or cannot be told."""
    if time is None:
        return "-"
    try:
        seconds = (datetime.fromisoformat(time) - now).total_seconds()
    except (ValueError, TypeError):
        return time
    return f"in {span(seconds)}" if seconds >= 0 else time
