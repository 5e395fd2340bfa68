"""Times as S3 writes them, in XML and in the head of an answer."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def milliseconds(text: str) -> int:
    """Unix time; 0 where the server writes none that can be read, as nothing rests on it alone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def skew_seconds(date: str | None, now: float) -> float | None:
    """How far the server's clock is ahead of ours; None where it does not say."""
    try:
        return round(parsedate_to_datetime(date or "").timestamp() - now, 1)
    except (TypeError, ValueError):
        return None
