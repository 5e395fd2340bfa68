"""Volumes that come and go: what the configuration and its patterns show now, and what they showed before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from s5jtd.config import Config, VolumeConfig, expand_volumes
from s5jtd.errors import VolumeError
from s5jtd.ledger.views import Views
from s5jtd.pool import Pool
from s5jtd.volumes import probe, stamp
from s5jtd.volumes.volume import Volume
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

#: Who makes a folder to mount a disk on it has done so by then: until a mere folder is taken for a volume.
GRACE_SECONDS = 15.0


def volumes_now(config: Config, views: Views) -> list[VolumeConfig]:
    """The volumes there are or should be: those written out, those found, and those that hold something.

    A mount point that a pattern finds and that nothing was ever mounted on is none.
    """
    written = {spec.path for spec in config.volumes if not spec.is_pattern}
    found = [
        one for one in expand_volumes(config)
        if one.path in written or is_volume(one.path) or _is_free(one.path) or views.volume_at(str(one.path))
    ]  # fmt: skip
    return [*found, *_awaited(config, views, found)]


def _awaited(config: Config, views: Views, found: list[VolumeConfig]) -> list[VolumeConfig]:
    """Volumes whose folder went with them, and took along what is not delivered."""
    patterns = [spec for spec in config.volumes if spec.is_pattern]
    here = {one.path for one in found}
    awaited = []
    for row in views.volumes():
        path = Path(row.path)
        spec = next((spec for spec in patterns if path.match(str(spec.path))), None)
        if spec is not None and path not in here and not path.exists() and views.holdings(row.id).chunks:
            here.add(path)
            awaited.append(VolumeConfig(path=path, name=row.name, reserve=spec.reserve))
    return awaited


def is_volume(path: Path) -> bool:
    """Whether a disk is mounted there, or the folder carries a stamp, whosever it is."""
    if os.path.lexists(path / stamp.NAME):
        return True
    try:
        fd = probe.open_root(path)
    except (VolumeError, OSError):
        return False
    try:
        return probe.is_mount_root(fd)
    except (VolumeError, OSError):
        return False
    finally:
        os.close(fd)


def _is_free(path: Path) -> bool:
    """Whether nothing says that a disk belongs there, so that the folder itself may be meant."""
    return probe.listed_in_fstab(path) is None


class HotPlug:
    """The one who looks for volumes that were not there, or are no more."""

    name = "hotplug"
    idle_seconds = 2.0
    quiet_seconds_max = 300.0

    def __init__(
        self,
        config: Callable[[], Config],
        pool: Pool,
        views: Views,
        bell: Bell,
        *,
        add: Callable[[VolumeConfig], None],
        remove: Callable[[Volume], None],
    ) -> None:
        """`add` and `remove` see to a volume's workers."""
        self._config = config
        self._pool = pool
        self._views = views
        self._bell = bell
        self._add = add
        self._remove = remove
        self._mounts = b""
        self._first_seen: dict[Path, float] = {}

    def step(self, beat: Callable[[], None]) -> bool:
        """Compare what is there with what was."""
        self._hear_mounts()
        config = self._config()
        written = {spec.path for spec in config.volumes if not spec.is_pattern}
        now = {one.path: one for one in volumes_now(config, self._views)}
        known = {volume.path for volume in self._pool.volumes}
        for path, one in now.items():
            beat()
            if path not in known and (path in written or self._is_ripe(path)):
                log.info("volume_found", volume=one.name, path=str(path))
                self._add(self._renamed(one))
        for volume in self._pool.volumes:
            if volume.path not in now and not volume.attached and not self._holds(volume):
                log.info("volume_gone", volume=volume.name, path=str(volume.path))
                self._remove(volume)
        return False

    def _hear_mounts(self) -> None:
        """Something was mounted or unmounted: whoever waits for a volume need not wait for his turn."""
        table = Path("/proc/self/mountinfo").read_bytes()
        if table != self._mounts:
            self._mounts = table
            for volume in self._pool.volumes:
                volume.nudged = volume.nudged or not volume.attached
            self._bell.ring()

    def _is_ripe(self, path: Path) -> bool:
        if is_volume(path):
            self._first_seen.pop(path, None)
            return True
        return time.monotonic() - self._first_seen.setdefault(path, time.monotonic()) > GRACE_SECONDS

    def _renamed(self, one: VolumeConfig) -> VolumeConfig:
        """Names that are in use stay; a new volume that would have one of them is called otherwise."""
        names = {volume.name for volume in self._pool.volumes}
        number, name = 1, one.name
        while name in names:
            number += 1
            name = f"{one.name[:57]}-{number}"
        return one.model_copy(update={"name": name})

    def _holds(self, volume: Volume) -> bool:
        """Whether anything of ours lies on a volume, as far as is known."""
        row = self._views.volume_at(str(volume.path))
        return row is not None and self._views.holdings(row.id).chunks > 0
