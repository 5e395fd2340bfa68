"""How much may still be taken up: the limits on bytes for each pass and each day, counted in the ledger."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from s5jtd.config import Limits
from s5jtd.ledger.rows import Item
from s5jtd.ledger.views import Views
from s5jtd.stages.job import Job
from s5jtd.units import format_bytes

#: A chunk that was planned earlier than so long before is not under way.
_PLANNED_BEFORE_MS = 86_400_000


class Budget:
    """Asks the ledger, so that a restart gives nobody a second allowance.

    What counts is what was pulled or streamed or is about to be; what had to be pulled again counts again,
    and what a dead side gave back does not.
    """

    def __init__(
        self, limits: Callable[[], Limits], views: Views, clock: Callable[[], float] = time.time
    ) -> None:
        """`limits` tells those that hold now."""
        self._limits = limits
        self._views = views
        self._clock = clock

    def allowance(self, job: Job) -> tuple[int | None, str]:
        """How many bytes the job may still take up, and the limit that says so; None: as many as it likes."""
        limits = self._limits()
        left: list[tuple[int, str]] = []
        if limits.bytes_per_pass is not None:
            look = self._views.last_pass(job.id)
            since_ms = look.started_at_ms if look is not None else 0
            used = self._views.taken_bytes(since_ms, since_ms, job.id)
            left.append((limits.bytes_per_pass - used, "bytes_per_pass"))
        if limits.bytes_per_day is not None:
            since_ms = self._midnight_ms()
            used = self._views.taken_bytes(since_ms, since_ms - _PLANNED_BEFORE_MS)
            left.append((limits.bytes_per_day - used, "bytes_per_day"))
        allowed, name = min(left, default=(None, ""))
        return None if allowed is None else max(0, allowed), name

    def largest(self) -> tuple[int | None, str]:
        """The size above which no object can ever travel, and the limit that says so."""
        limits = self._limits()
        named = {
            name: getattr(limits, name) for name in ("largest_object", "bytes_per_pass", "bytes_per_day")
        }
        return min(((size, name) for name, size in named.items() if size is not None), default=(None, ""))

    def banned(self, candidates: Sequence[Item]) -> tuple[list[Item], str]:
        """Objects that no limit ever lets through, and what to tell of them."""
        most, name = self.largest()
        found = [item for item in candidates if most is not None and item.size > most]
        return found, f"{self._told(name)}: raise it, then retry" if found else ""

    def held(self, candidates: Sequence[Item], allowed: int | None, name: str) -> str | None:
        """Which limit keeps all of these from travelling, if one does; `allowed` as of `allowance`."""
        if allowed is None or not candidates or min(item.size for item in candidates) <= allowed:
            return None
        return f"{self._told(name)}: what is more waits"

    def _told(self, name: str) -> str:
        """A limit as it may stand in a reason."""
        return f"limits.{name} is {format_bytes(getattr(self._limits(), name))}"

    def _midnight_ms(self) -> int:
        """When the present day began, in local time."""
        now = datetime.fromtimestamp(self._clock()).astimezone()
        return int(now.replace(hour=0, minute=0, second=0, microsecond=0).timestamp() * 1000)
