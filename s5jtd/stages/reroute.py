"""Sends what lies on a volume that stays away around it: staged -> seen; the source holds it still."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from s5jtd.errors import LostRace
from s5jtd.ledger.rows import Volume
from s5jtd.ledger.states import ChunkState
from s5jtd.ledger.store import Ledger
from s5jtd.pool import Pool
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

#: Long enough for a disk to be swapped, or a cable mended, before anything is pulled twice.
AWAY_SECONDS = 3600.0


class Reroute:
    """The one rerouter.

    Nothing is lost if it is wrong: when the volume returns, what lies on it is taken in again or found to be
    delivered, see `recover`; and where the source has nothing any more, that copy is the one that travels.
    """

    name = "reroute"
    idle_seconds = 5.0
    quiet_seconds_max = 300.0

    def __init__(self, ledger: Ledger, pool: Pool, bell: Bell) -> None:
        """Every volume that the ledger knows is looked after, also one that is no longer configured."""
        self._ledger = ledger
        self._pool = pool
        self._bell = bell
        self._away_since: dict[int, float] = {}

    def step(self, beat: Callable[[], None]) -> bool:
        """Look which volumes are away, and give up those that are for too long."""
        here = {volume.ledger_id for volume in self._pool.usable()}
        for known in self._ledger.views.volumes():
            if known.id in here:
                self._away_since.pop(known.id, None)
            elif time.monotonic() - self._away_since.setdefault(known.id, time.monotonic()) > AWAY_SECONDS:
                beat()
                self._give_up(known)
        return False

    def _give_up(self, volume: Volume) -> None:
        objects = 0
        for chunk in self._ledger.views.chunks(volume.id, ChunkState.SEALED):
            try:
                objects += self._ledger.lose(chunk)
            except LostRace:  # it came back this very moment
                return
        if objects:
            log.warning("volume_given_up", volume=volume.name, uuid=volume.uuid, objects=objects)
            self._bell.ring()
