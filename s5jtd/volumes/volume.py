"""One volume in use: pinned by a descriptor, proven to be itself before and after each chunk."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

from s5jtd.errors import (
    VolumeError,
    VolumeFailed,
    VolumeForeign,
    VolumeFull,
    VolumeMissing,
    VolumeReadOnly,
)
from s5jtd.volumes import chunks, probe
from s5jtd.volumes.pace import Pace
from s5jtd.volumes.stamp import UNFINISHED, Stamp, new_stamp, read_stamp, write_stamp


class VolumeState(StrEnum):
    """What may be done with a volume."""

    ONLINE = "online"
    DRAINING = "draining"  #: An operator wants it empty: pushed from, not pulled to.
    FULL = "full"  #: Pushed from, not pulled to, until space is free again.
    MISSING = "missing"  #: Nothing of ours is there now.
    FOREIGN = "foreign"  #: What is there is not ours, or a copy of ours.
    READONLY = "readonly"  #: Pushed from; its files cannot be removed.
    FAILED = "failed"  #: It gave an error that makes what it says doubtful.

    @property
    def takes_pulls(self) -> bool:
        """Whether new chunks may be put on it."""
        return self is VolumeState.ONLINE

    @property
    def owes_space(self) -> bool:
        """Whether chunks that were planned on it are still pulled: a full one owes what it promised."""
        return self in (VolumeState.ONLINE, VolumeState.FULL)

    @property
    def gives_pushes(self) -> bool:
        """Whether its chunks may be pushed."""
        return self in (VolumeState.ONLINE, VolumeState.DRAINING, VolumeState.FULL, VolumeState.READONLY)


#: What an error makes of the volume it came from.
_STATE_AFTER: tuple[tuple[type[VolumeError], VolumeState], ...] = (
    (VolumeMissing, VolumeState.MISSING),
    (VolumeForeign, VolumeState.FOREIGN),
    (VolumeReadOnly, VolumeState.READONLY),
    (VolumeFull, VolumeState.FULL),
)


class Volume:
    """A configured folder and what is attached there."""

    def __init__(self, path: Path, name: str, reserve: float, key: bytes) -> None:
        """`reserve`: a float is a share of the volume, an int is bytes; `key` seals the stamp."""
        self.path = path
        self.name = name
        self.reserve = reserve
        self.key = key
        self.state = VolumeState.MISSING
        self.error: VolumeError | None = None
        self.since = time.time()
        self.stamp: Stamp | None = None
        self.ledger_id = 0
        self.device = 0
        self.pace = Pace()
        #: Who reads much of it at once; more at a time would only make a disk seek.
        self.readers = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
        self.draining = False  #: an operator wants it empty
        #: Why it was attached without a change to it; it is pushed from, and settled once it can be written.
        self.only_read: VolumeReadOnly | None = None
        #: Something changed that may bring it back: it is tried at once and not when its turn comes.
        self.nudged = False
        self._fd = -1
        self._users = 0
        self._lock = threading.Lock()
        self._syncing = threading.Lock()
        self._sync_failed = False  #: since it was attached

    @property
    def fd(self) -> int:
        """The pinned descriptor of the volume's root.

        Raises:
            VolumeMissing: nothing is attached.
        """
        if self._fd < 0:
            raise VolumeMissing(str(self.path), hint="mount it; it is taken up by itself")
        return self._fd

    @property
    def is_safe_to_remove(self) -> bool:
        """Whether it was emptied and let go of."""
        return self.draining and not self.attached and self.state is VolumeState.DRAINING

    @property
    def attached(self) -> bool:
        """Whether a descriptor is pinned."""
        return self._fd >= 0

    @property
    def uuid(self) -> str:
        """The volume's UUID, or "" while nothing is attached."""
        return self.stamp.uuid if self.stamp else ""

    def attach(self, uuid_at_path: str | None, epoch_of: Callable[[str], int]) -> Stamp:
        """Pin the folder, prove that it is our volume, and raise its epoch, or note in `only_read` why not.

        `uuid_at_path` is the volume that was here last, `epoch_of` tells the last epoch seen of a
        UUID.  An empty folder that was never used is stamped; one that was, or that the system's
        mount table claims, must bring its stamp: without it nothing is mounted.

        Raises:
            VolumeError: what stands in the way; the volume's state says the same.
        """
        try:
            fd = probe.open_root(self.path)
        except OSError as error:
            raise probe.volume_error(error, str(self.path)) from error
        try:
            stamp = self._prove(fd, uuid_at_path, epoch_of)
            only_read = None
            try:
                stamp = self._mark(fd, stamp)
            except VolumeReadOnly as error:
                if not stamp.attach_epoch:  # it never was in use, so it holds nothing
                    raise
                only_read = error
            device = os.fstat(fd).st_dev
        except OSError as error:
            os.close(fd)
            raise probe.volume_error(error, str(self.path)) from error
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            self._fd, self.stamp, self.device = fd, stamp, device
            self.only_read, self._sync_failed = only_read, False
        return stamp

    def mark(self) -> Stamp:
        """Raise the epoch of an attached volume that can be written again.

        Raises:
            VolumeError: it cannot.
        """
        if self.stamp is None:
            raise VolumeMissing(str(self.path))
        self.stamp = self._mark(self.fd, self.stamp)
        self.only_read = None
        return self.stamp

    def _mark(self, fd: int, stamp: Stamp) -> Stamp:
        try:
            probe.write_probe(fd)
            stamp = dataclasses.replace(stamp, attach_epoch=stamp.attach_epoch + 1)
            write_stamp(fd, stamp, self.key)
            chunks.make_tree(fd)
        except OSError as error:
            raise probe.volume_error(error, str(self.path)) from error
        return stamp

    def _prove(self, fd: int, uuid_at_path: str | None, epoch_of: Callable[[str], int]) -> Stamp:
        mounted = probe.is_mount_root(fd)
        if unfit := probe.unfit(fd):
            raise VolumeForeign(
                f"{self.path} is on {unfit}, which cannot keep a promise through a power cut",
                hint="use a file system on a local disk, such as ext4 or xfs",
            )
        stamp = read_stamp(fd, self.key)
        if stamp is None:
            return self._first_stamp(fd, uuid_at_path, mounted=mounted)
        if stamp.attach_epoch < epoch_of(stamp.uuid):
            raise VolumeForeign(
                f"{self.path} is an old copy of volume {stamp.uuid}",
                hint=f"use the original; or make this one a new volume: s5jtd volumes stamp {self.path}",
            )
        if stamp.mount_root and not mounted:
            raise VolumeForeign(
                f"{self.path} carries the stamp of a mounted volume, but nothing is mounted there",
                hint="mount the volume; the copied stamp file can be deleted",
            )
        return stamp

    def _first_stamp(self, fd: int, uuid_at_path: str | None, *, mounted: bool) -> Stamp:
        if uuid_at_path:
            raise VolumeMissing(
                f"{self.path} has no stamp, and volume {uuid_at_path} was there before",
                hint=f"mount it; or mark this folder as a new volume: s5jtd volumes stamp {self.path}",
            )
        if not mounted and probe.listed_in_fstab(self.path):
            raise VolumeMissing(f"{self.path} is a mount point with nothing mounted", hint="mount it")
        if set(os.listdir(fd)) - {"lost+found", UNFINISHED, *probe.PROBE_NAMES}:
            raise VolumeForeign(
                f"{self.path} has no stamp of ours and is not empty",
                hint=f"if it is meant for staging: s5jtd volumes stamp {self.path}",
            )
        return new_stamp(created_at_ms=int(time.time() * 1000), mount_root=mounted)

    def verify(self) -> None:
        """Prove that the path still leads to the pinned volume, with our stamp on it.

        Raises:
            VolumeError: it does not.
        """
        try:
            pinned = os.fstat(self.fd)
            there = os.stat(self.path, follow_symlinks=False)
            stamp = read_stamp(self.fd, self.key)
        except OSError as error:
            raise probe.volume_error(error, str(self.path)) from error
        if (pinned.st_dev, pinned.st_ino) != (there.st_dev, there.st_ino):
            raise VolumeMissing(f"{self.path} leads elsewhere now", hint="mount the volume again")
        if stamp is None or self.stamp is None or stamp.uuid != self.stamp.uuid:
            raise VolumeForeign(f"{self.path} no longer carries its stamp", hint="look at what is there")

    def sync(self) -> None:
        """Make everything written to the volume durable; an error is final for what was being written.

        The kernel tells an error to one of those who ask, and names no file: whose bytes were lost nobody
        knows.  So it holds for all chunks under way, and until the volume is attached anew.

        Raises:
            VolumeFailed: the kernel could not write all of it.  Trying again would answer "fine".
        """
        with self._syncing:  # who waits here may be the one whose bytes the error is about
            if self._sync_failed:
                raise VolumeFailed(
                    f"syncing {self.path} failed for what was written with this",
                    hint="look for disk errors in `journalctl -k`",
                )
            try:
                probe.syncfs(self.fd)
            except VolumeFailed:
                self._sync_failed = True
                raise

    def space(self) -> probe.Space:
        """How full it is.

        Raises:
            VolumeError: it cannot be asked.
        """
        try:
            return probe.probe(self.fd)
        except OSError as error:
            raise probe.volume_error(error, str(self.path)) from error

    def fail(self, error: VolumeError) -> bool:
        """Take the volume's state from an error; whether it is another than before."""
        state = next((state for kind, state in _STATE_AFTER if isinstance(error, kind)), VolumeState.FAILED)
        return self.turn(state, error)

    def turn(self, state: VolumeState, error: VolumeError | None) -> bool:
        """Set the state; whether it is another than before."""
        with self._lock:
            changed = self.state is not state
            if changed:
                self.since = time.time()
            self.state, self.error = state, error
        return changed

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Work on the volume: it is not detached meanwhile."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1

    @property
    def in_use(self) -> bool:
        """Whether anybody works on it."""
        return self._users > 0

    def detach(self) -> None:
        """Let go of the descriptor, so that the volume can be unmounted."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def detach_if_idle(self) -> bool:
        """Let go of the descriptor unless somebody works on the volume; whether it was."""
        with self._lock:
            if self._users:
                return False
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        return fd >= 0
