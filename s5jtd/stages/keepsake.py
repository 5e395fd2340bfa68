"""Keeps the newest copy of the ledger on each volume: the state folder's disk may be the one that dies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from s5jtd.errors import VolumeError
from s5jtd.ledger import snapshots
from s5jtd.pool import Pool
from s5jtd.volumes import copies, space
from s5jtd.volumes.probe import volume_error
from s5jtd.volumes.volume import Volume

log = structlog.get_logger(__name__)


class _Stopping(Exception):
    """The daemon ends."""


class KeepCopy:
    """Keeps the newest copy of the ledger on one volume too.  A disk may hang: each has its own thread."""

    idle_seconds = 60.0
    quiet_seconds_max = 300.0

    def __init__(self, volume: Volume, pool: Pool, backups: Path, stop: threading.Event) -> None:
        """`backups`: where the ledger's own copies appear."""
        self.name = f"copy {volume.name}"
        self.volume = volume
        self._pool = pool
        self._backups = backups
        self._stop = stop

    def step(self, beat: Callable[[], None]) -> bool:
        """Bring the newest copy over, if the volume has another and has room."""
        newest = snapshots.snapshots(self._backups)[:1]
        volume = self.volume
        with volume.use():
            writable = volume.state.owes_space
            if newest and writable:
                try:
                    self._bring(newest[0], beat)
                except _Stopping:
                    return False
                except VolumeError as error:
                    self._pool.fail(volume, error)
                except OSError as error:
                    if newest[0].exists():  # else a newer one came and this one went, which is no fault
                        self._pool.fail(volume, volume_error(error, str(volume.path)))
        return False

    def _bring(self, copy: Path, beat: Callable[[], None]) -> None:
        volume = self.volume
        volume.verify()
        if copy.name in copies.copies(volume.fd, volume.key):
            return
        told = volume.space()
        if told.free_bytes - copy.stat().st_size < space.reserve_bytes(told, volume.reserve):
            log.debug("upkeep_put_off", error=f"volume {volume.name} has no room for a copy of the ledger")
            return

        def alive() -> None:
            beat()
            if self._stop.is_set():
                raise _Stopping

        copies.put(volume.fd, copy, volume.key, alive)
        log.info("ledger_copied", volume=volume.name, path=str(copies.path_of(volume.path, copy.name)))
