"""Times as S3 writes them in XML."""

from __future__ import annotations

from datetime import UTC, datetime


def milliseconds(text: str) -> int:
    """Unix time; 0 where the server writes none that can be read, as nothing rests on it alone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return 0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)
