"""The answers about volumes: what is on each, what would be lost with it, whether it may be removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from s5jtd import shapes
from s5jtd.errors import UsageError, VolumeError
from s5jtd.ledger.views import Views
from s5jtd.pool import Pool
from s5jtd.status import StatusDesk
from s5jtd.units import format_bytes
from s5jtd.volumes.volume import Volume

#: How often a question that waits looks again.
POLL_SECONDS = 0.2
#: How long `activate` waits for a disk to come back before it says how things are.
ACTIVATE_SECONDS = 5.0


class VolumeDesk:
    """Lists, drains and activates the volumes of a pool."""

    def __init__(self, pool: Pool, views: Views, desk: StatusDesk, ring: Callable[[], None]) -> None:
        """`ring` wakes whoever has something to do because of a change."""
        self._pool = pool
        self._views = views
        self._desk = desk
        self._ring = ring

    def rows(self) -> shapes.VolumeList:
        """Every volume of the pool."""
        staged = self._views.staged_bytes()
        return {"volumes": [self._row(volume, staged) for volume in self._pool.volumes]}

    def drain(self, name: str, *, wait: bool, gave_up: Callable[[], bool]) -> shapes.VolumeChange:
        """Take nothing more onto a volume; with `wait`, answer when it can be removed.

        Raises:
            UsageError: there is no such volume, or the daemon stopped while it was waited for.
        """
        volume = self._named(name)
        is_new = self._pool.drain(volume)
        self._ring()
        while wait and volume.draining and not volume.is_safe_to_remove:
            if gave_up():
                raise UsageError("the daemon is stopping; the volume goes on being emptied after its start")
            time.sleep(POLL_SECONDS)
        return self._changed(volume, "draining" if is_new else "already_draining")

    def activate(self, name: str) -> shapes.VolumeChange:
        """Use a volume again.

        Raises:
            UsageError: there is no such volume.
        """
        volume = self._named(name)
        is_new = self._pool.activate(volume)
        self._ring()
        deadline = time.monotonic() + ACTIVATE_SECONDS
        while volume.nudged and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self._changed(volume, "activated" if is_new else "already_active")

    def _named(self, name: str) -> Volume:
        for volume in self._pool.volumes:
            if name in (volume.name, str(volume.path), volume.uuid):
                return volume
        known = ", ".join(volume.name for volume in self._pool.volumes) or "none"
        raise UsageError(f"there is no volume {name!r}", hint=f"the volumes are: {known}")

    def _changed(self, volume: Volume, result: shapes.VolumeResult) -> shapes.VolumeChange:
        row = self._row(volume, self._views.staged_bytes())
        return {
            "name": row["name"],
            "state": row["state"],
            "result": result,
            "staged_bytes": row["staged_bytes"],
            "only_here_bytes": row["only_here_bytes"],
            "safe_to_remove": row["safe_to_remove"],
            "reason": row["reason"],
        }

    def _row(self, volume: Volume, staged: Mapping[int, int]) -> shapes.VolumeRow:
        total: int | None = None
        if volume.attached:
            try:
                total = volume.space().total_bytes
            except (VolumeError, OSError):  # it is being let go of
                total = None
        held = self._views.holdings(volume.ledger_id) if volume.ledger_id else None
        return {
            **self._desk.volume(volume, staged),
            "total_bytes": total,
            "only_here_bytes": held.only_here_bytes if held else None,
            "pull_bytes_per_second": volume.pace.bytes_per_second,
            "only_here_objects": held.only_here if held else None,
            "safe_to_remove": volume.is_safe_to_remove,
            "reason": str(volume.error) if volume.error else self._draining(volume),
        }

    def _draining(self, volume: Volume) -> str | None:
        """How far the emptying of a volume is, and what keeps it from its end."""
        if not volume.draining or not volume.ledger_id:
            return None
        if volume.is_safe_to_remove:
            return "empty: safe to unmount and remove"
        held = self._views.holdings(volume.ledger_id)
        if held.parked and held.parked == held.only_here:
            return (
                f"{held.parked} parked objects stay on it until you look: s5jtctl objects JOB --state parked"
            )
        if held.only_here:
            return f"{held.only_here} objects, {format_bytes(held.only_here_bytes)}, to deliver first"
        try:
            strangers = self._pool.strangers(volume)
        except (VolumeError, OSError) as error:
            return str(error)
        if strangers and not held.chunks:
            return f"holds {len(strangers)} chunks that no configured job accounts for: see `s5jtctl status`"
        return "is being emptied"
