"""What a scrape of the log API says: the daemon's metrics, and the API's own."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from s5jtd import metrics

CONTENT_TYPE = metrics.CONTENT_TYPE


def render(status: Mapping[str, Any] | None, certificate_ends: datetime) -> bytes:
    """The text of a scrape; without a status the daemon did not answer."""
    certificate = metrics.one(
        "s5jtd_api_certificate_expiry_timestamp_seconds",
        "When the log API's certificate ends.",
        certificate_ends.timestamp(),
    )
    return metrics.text([*(metrics.of_none() if status is None else metrics.of_status(status)), certificate])
