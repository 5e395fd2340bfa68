"""Carries a plan out, disk by disk; each step looks again before it writes, and can be repeated."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from s5jtd.errors import DeviceError
from s5jtd.provision import gpt, persist
from s5jtd.provision.devices import (
    Device,
    Partition,
    contents,
    exclusive,
    find,
    number_of,
    partition,
    size_of,
)
from s5jtd.provision.layout import LABEL, Entry, Fate, Settings, look, mount_options
from s5jtd.provision.tools import run
from s5jtd.volumes import probe
from s5jtd.volumes.stamp import UNFINISHED, new_stamp, read_stamp, write_stamp

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_IMMUTABLE_FL: Final = 0x10

#: Tells what is being done, for people.
Say = Callable[[str], None]


def carry_out(entry: Entry, settings: Settings, key: bytes, say: Say) -> str:
    """Make one disk of a plan a volume; the volume's UUID.

    Raises:
        S5jtError: it is not what it was, or a step failed; the next run goes on from there or says why not.
    """
    if entry.name is None or entry.point is None:
        raise AssertionError(entry)
    part = entry.part
    if entry.fate is Fate.NEW:
        say(f"{entry.device.path}: partitioning")
        part = _partition(entry.device, entry.name)
    if part is None:
        return carry_out(_seen(entry, settings), settings, key, say)
    if entry.fate in (Fate.NEW, Fate.FORMAT):
        say(f"{entry.device.path}: formatting {part.path} with {settings.kind}")
        _format(part, entry.name, settings.kind)
    part = partition(part.path)
    mount = persist.Mount(entry.name, part.filesystem_uuid, entry.point, part.kind, mount_options())
    make_point(entry.point, say)
    for path in persist.keep(mount, settings.persist, settings.etc):
        say(f"{entry.device.path}: wrote {path}")
    say(f"{entry.device.path}: mounting at {entry.point}")
    _mount(mount, part)
    return _stamp(entry.point, settings, key)


def _partition(device: Device, name: str) -> Partition:
    """Write the table, on the very descriptor on which the disk was found blank."""
    now = next(iter(find([device.path])), None)
    if now is None or now.identity != device.identity:
        raise DeviceError(
            f"{device.path} is another disk than planned", hint="look again: s5jtd volumes plan"
        )
    with exclusive(device.path, write=True) as fd:
        if (number_of(fd), size_of(fd)) != (device.number, device.size_bytes):
            raise DeviceError(f"{device.path} is another disk than planned", hint="run the command again")
        held = contents(device.path, fd)
        if held is not None:
            raise DeviceError(f"{device.path} {held}: not touched", hint="look again: s5jtd volumes plan")
        try:
            gpt.write_table(fd, LABEL + name, uuid.uuid4())
        except OSError as error:
            raise DeviceError(f"{device.path}: {error.strerror}", hint="look at `journalctl -k`") from error
        gpt.tell_kernel(device.path, fd, device.name)
    return partition(gpt.first_partition(device.name))


def _seen(entry: Entry, settings: Settings) -> Entry:
    """A disk that has our table, with a partition that the kernel knows."""
    with exclusive(entry.device.path) as fd:
        gpt.tell_kernel(entry.device.path, fd, entry.device.name)
    gpt.first_partition(entry.device.name)
    for device in find([entry.device.path]):
        again = look(device, settings, named=True)
        if again.part is not None and again.fate in (Fate.FORMAT, Fate.MOUNT):
            return again
        raise DeviceError(f"{device.path}: {'; '.join(again.reasons)}", hint="look again: s5jtd volumes plan")
    raise DeviceError(f"{entry.device.path} is gone", hint="look again: s5jtd volumes plan")


def _format(part: Partition, name: str, kind: str) -> None:
    """The file system gets the UUID of the partition, so that it is known again; mkfs holds it alone too."""
    with exclusive(part.path) as fd:
        held = contents(part.path, fd)
    if held is not None:
        raise DeviceError(f"{part.path} {held}: not touched", hint="look again: s5jtd volumes plan")
    if kind == "ext4":
        run("mkfs.ext4", "-q", "-m", "0", "-U", part.uuid, "-L", name, part.path)
    else:
        run("mkfs.xfs", "-q", "-m", f"uuid={part.uuid}", "-L", name[:12], part.path)
    with exclusive(part.path) as fd:
        os.fsync(fd)


def make_point(point: Path, say: Say) -> None:
    """An empty folder that nothing can be written to while nothing is mounted on it.

    Raises:
        DeviceError: something is there.
    """
    try:
        point.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            point.mkdir(mode=0o000)
        fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise DeviceError(f"{point}: {error.strerror}", hint="name another folder with --base") from error
    try:
        if os.listdir(fd) or probe.is_mount_root(fd):
            raise DeviceError(f"{point} is not empty", hint="name another folder with --base")
        _protect(fd, point, say)
    finally:
        os.close(fd)


def _protect(fd: int, point: Path, say: Say) -> None:
    flags = bytearray(8)
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
        value = int.from_bytes(flags[:4], "little")
        if value & _FS_IMMUTABLE_FL:
            return
        if os.fstat(fd).st_mode & 0o777:
            os.fchmod(fd, 0o000)
        flags[:4] = (value | _FS_IMMUTABLE_FL).to_bytes(4, "little")
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, bytes(flags))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
            raise
        say(f"{point}: its file system knows no immutable folders; it has mode 0000 and nothing else")
    os.fsync(fd)


def _mount(mount: persist.Mount, part: Partition) -> None:
    """Mount it, and look that it is there: systemd may have been quicker."""
    if not os.path.ismount(mount.point):
        options = ",".join([*mount.options, "nofail"])
        try:
            run("mount", "-t", mount.kind, "-o", options, part.path, str(mount.point))
        except DeviceError:
            if not os.path.ismount(mount.point):
                raise
    there = probe.filesystem_of(mount.point)
    if there is None or os.path.realpath(there.device) != os.path.realpath(part.path):
        raise DeviceError(f"{mount.point} shows something else than {part.path}", hint="findmnt; umount it")


def _stamp(point: Path, settings: Settings, key: bytes) -> str:
    """Give the volume to the daemon's user and mark it; the volume's UUID.

    Raises:
        VolumeError: what is on it is not ours.
        DeviceError: it holds files already.
    """
    fd = probe.open_root(point)
    try:
        stamp = read_stamp(fd, key)
        if stamp is None:
            if set(os.listdir(fd)) - {"lost+found", UNFINISHED, *probe.PROBE_NAMES}:
                raise DeviceError(f"{point} holds files: not touched", hint=f"look at them: ls -la {point}")
            os.fchown(fd, *settings.owner)
            os.fchmod(fd, 0o700)
            stamp = new_stamp(created_at_ms=int(time.time() * 1000), mount_root=True)
            write_stamp(fd, stamp, key)
            probe.syncfs(fd)
        return stamp.uuid
    except OSError as error:
        raise probe.volume_error(error, str(point)) from error
    finally:
        os.close(fd)
