"""Asks the kernel what a volume's folder is: mounted, writable, how full; and makes it durable.

Everything goes through a descriptor of the folder: after an unmount a path leads to the disk below.
Any of it may hang for as long as the disk does, so it runs only on threads bound to one volume.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from s5jtd.errors import VolumeError, VolumeFailed, VolumeFull, VolumeMissing, VolumeReadOnly

#: What `write_probe` may leave in the folder when the power goes; the next probe takes them away.
PROBE_NAMES: Final = frozenset({".s5jtd-probe", ".s5jtd-probe-new"})
_PROBE, _PROBE_NEW = sorted(PROBE_NAMES)
#: One block: less may be kept inside the inode, which takes no space and so proves none.
_PROBE_BLOCK: Final = b"s5jtd write probe\n".ljust(4096, b"\0")
#: Times that another probe may take our names away before something else must be at work.
_PROBE_TRIES: Final = 10

#: Of statx(2), kernel 5.8 and later.
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000
_AT_EMPTY_PATH: Final = 0x1000
#: stx_attributes, and, 40 bytes further, which of them the file system knows.
_STATX_FIELDS: Final = struct.Struct("=8xQ40xQ")
_STATX_BYTES: Final = 256

_libc = ctypes.CDLL(None, use_errno=True)

_HINTS: Final[Mapping[type[VolumeError], str]] = {
    VolumeMissing: "mount it, or correct `volumes` in the configuration",
    VolumeReadOnly: "look for the cause in `journalctl -k`, then mount it writable; one that is new to the"
    " service: s5jtd volumes dropin --write && systemctl restart s5jtd",
    VolumeFull: "make room on it, or give it a larger `reserve`",
    VolumeFailed: "look for disk errors in `journalctl -k`",
}
_NO_LINK_HINT: Final = "`volumes` must name a folder itself, not a file and not a link to a folder"
_OWNER_HINT: Final = "let the daemon's user own the folder and everything in it"
_ERRNO_HINTS: Final[Mapping[int | None, str]] = {
    errno.ELOOP: _NO_LINK_HINT,
    errno.ENOTDIR: _NO_LINK_HINT,
    errno.EACCES: _OWNER_HINT,
    errno.EPERM: _OWNER_HINT,
}
_KINDS: Final[Mapping[int | None, type[VolumeError]]] = {
    errno.ENOENT: VolumeMissing,
    errno.ENOTDIR: VolumeMissing,
    errno.ELOOP: VolumeMissing,
    errno.ENODEV: VolumeMissing,
    errno.ESTALE: VolumeMissing,
    errno.ENOSPC: VolumeFull,
    errno.EDQUOT: VolumeFull,
    errno.EROFS: VolumeReadOnly,
    errno.EACCES: VolumeReadOnly,
    errno.EPERM: VolumeReadOnly,
}
#: The volume is not to blame for these: the daemon is short of something, or wrong.
_OURS: Final = frozenset({errno.EBADF, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


#: Without a journal, without inode numbers of their own, or a network away: a sync on them promises little,
#: and what was renamed or unlinked may be there again.
_UNFIT: Final = frozenset({
    "vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfs", "hfsplus",
    "nfs", "nfs4", "cifs", "smb3", "9p", "afs", "ceph", "fuse.sshfs",
})  # fmt: skip

_UNIT_DIRS: Final = tuple(
    Path(folder)
    for folder in (
        "/etc/systemd/system",
        "/run/systemd/system",
        "/run/systemd/generator",
        "/usr/local/lib/systemd/system",
        "/usr/lib/systemd/system",
        "/lib/systemd/system",
    )
)


class Space(NamedTuple):
    """How full a file system is, for an unprivileged user."""

    total_bytes: int
    free_bytes: int  #: without the blocks kept for root
    inodes_free: int | None  #: None where the file system does not count them


class Mount(NamedTuple):
    """One line of the mount table."""

    mount_id: int
    point: str
    kind: str  #: e.g. "ext4"
    device: str  #: as it was mounted, e.g. "/dev/sdb1"
    options: frozenset[str]  #: of the mount and of its file system
    parent_id: int = 0  #: the mount it is on
    root: str = "/"  #: the folder of its file system that is seen at `point`
    number: str = ""  #: of the file system's device, e.g. "98:0"


def open_root(path: Path) -> int:
    """Pin a volume's folder.  Keep the descriptor: sync errors reach only those opened before them.

    Raises:
        VolumeError: no folder is there, or it cannot be opened.
    """
    with _errors_about(str(path)):
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def probe(dir_fd: int) -> Space:
    """How full the volume is.

    Raises:
        VolumeError: it cannot be asked.
    """
    with _errors_about(_place(dir_fd)):
        told = os.statvfs(dir_fd)
    return Space(
        total_bytes=told.f_blocks * told.f_frsize,
        free_bytes=told.f_bavail * told.f_frsize,
        inodes_free=told.f_favail if told.f_files else None,
    )


def is_mount_root(dir_fd: int) -> bool:
    """Whether a folder is the root of a mount, and not what an absent mount leaves to be seen.

    Raises:
        VolumeError: it cannot be asked.
    """
    with _errors_about(_place(dir_fd)):
        told = _statx_mount_root(dir_fd)
        if not (_is_on_another_device(dir_fd) if told is None else told):
            return False
        table = mounts()
        mount = _mount_in(table, dir_fd)
        return mount is None or not _is_bound_to_itself(mount, table)


def filesystem_of(path: Path) -> Mount | None:
    """The mount that a path leads to now; None if the table does not show it.

    Raises:
        VolumeError: nothing is there.
    """
    with _errors_about(str(path)):
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return mount_of(fd)
        finally:
            os.close(fd)


def mount_of(fd: int) -> Mount | None:
    """The mount that a descriptor was opened on; None once it was unmounted, be it lazily."""
    return _mount_in(mounts(), fd)


def unfit(fd: int) -> str | None:
    """The kind of the file system a descriptor is on, if nothing on it can be relied on; else None."""
    mount = mount_of(fd)
    return mount.kind if mount is not None and mount.kind in _UNFIT else None


def mounts() -> list[Mount]:
    """This process's mount table, in order of mounting."""
    return parse_mountinfo(_text_of(Path("/proc/self/mountinfo")))


def parse_mountinfo(text: str) -> list[Mount]:
    """What proc(5) describes: optional fields end at a lone hyphen, blanks are written in octal."""
    found = []
    for line in text.split("\n"):
        fields = line.split(" ")
        if "-" not in fields[6:]:
            continue
        kind, device, super_options = fields[fields.index("-", 6) + 1 :][:3]
        options = frozenset(fields[5].split(",")) | frozenset(super_options.split(","))
        point, root = _unescaped(fields[4]), _unescaped(fields[3])
        where = (int(fields[1]), root, fields[2])
        found.append(Mount(int(fields[0]), point, kind, _unescaped(device), options, *where))
    return found


def listed_in_fstab(
    path: Path,
    *,
    fstab: Path = Path("/etc/fstab"),
    unit_dirs: Iterable[Path] = _UNIT_DIRS,
) -> str | None:
    """Who says that a mount belongs at `path` while none is there: fstab or a mount unit, or None."""
    names = {os.path.normpath(path), os.path.realpath(path)}
    table = mounts()
    there = [mount for mount in table if mount.point in names and mount.kind != "autofs"]
    if any(not _is_bound_to_itself(mount, table) for mount in there):
        return None
    if names & set(fstab_points(fstab)):
        return str(fstab)
    units = (folder / unit_name(name) for folder in unit_dirs for name in names)
    return next((str(unit) for unit in units if os.path.isfile(unit)), None)


def unit_name(point: str) -> str:
    """The name that systemd demands of the mount unit of an absolute path; see systemd.unit(5)."""
    inner = re.sub(r"/+", "/", point).strip("/")
    if not inner:
        return "-.mount"
    escaped = re.sub(rb"[^A-Za-z0-9:_./]", lambda other: b"\\x%02x" % ord(other[0]), os.fsencode(inner))
    return re.sub(r"^\.", r"\\x2e", escaped.replace(b"/", b"-").decode("ascii")) + ".mount"


def write_probe(dir_fd: int) -> None:
    """Prove that the folder takes a new file, makes it durable, and lets it be renamed and removed.

    Two processes may probe one folder at a time: each may find the file under its hands gone, which
    is no fault of the volume: it waits a moment of its own and tries again.

    Raises:
        VolumeError: what does not work, and in which way.
    """
    for _ in range(_PROBE_TRIES):
        with _errors_about(_place(dir_fd)), contextlib.suppress(FileNotFoundError, FileExistsError):
            _write_rename_remove(dir_fd)
            return
        time.sleep(secrets.randbelow(50) / 1000)
    raise VolumeMissing(f"{_place(dir_fd)}: new files vanish at once", hint=_HINTS[VolumeMissing])


def syncfs(fd: int) -> None:
    """Make everything written to the file system of `fd` durable.

    An error is final for all that was not synced before: the kernel drops what it could not write
    and answers the next call with success.  That holds for a full or thin-provisioned disk too, so
    every error is a failure here.

    Raises:
        VolumeFailed: not everything could be written.
    """
    with _sync_errors_are_final(fd):
        if _libc.syncfs(fd) != 0:
            raise _last_error()


def syncfs_and_ask(fd: int) -> None:
    """The same where nothing else proves the file system afterwards, as a chunk's seal does on a volume.

    One that is shut down by an error while it syncs may answer well; asked once more it does not.

    Raises:
        VolumeFailed: not everything could be written.
    """
    syncfs(fd)
    syncfs(fd)


def fsync_dir(dir_fd: int) -> None:
    """Make the names in a folder durable; errors are as final as those of `syncfs`.

    Raises:
        VolumeFailed: they could not be written.
    """
    _fsync(dir_fd)


def volume_error(error: OSError, about: str) -> VolumeError:
    """What an error of the file system says about the volume it happened on."""
    kind = _KINDS.get(error.errno, VolumeFailed)
    return kind(f"{about}: {error.strerror}", hint=_ERRNO_HINTS.get(error.errno, _HINTS[kind]))


@contextlib.contextmanager
def _errors_about(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _OURS:
            raise
        raise volume_error(error, what) from error


def _write_rename_remove(dir_fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_PROBE_NEW, dir_fd=dir_fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC  # O_EXCL follows no link either
    fd = os.open(_PROBE_NEW, flags, 0o600, dir_fd=dir_fd)
    try:
        if os.write(fd, _PROBE_BLOCK) != len(_PROBE_BLOCK):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _fsync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(_PROBE_NEW, dir_fd=dir_fd)
        raise
    finally:
        os.close(fd)
    os.rename(_PROBE_NEW, _PROBE, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    _fsync(dir_fd)
    os.unlink(_PROBE, dir_fd=dir_fd)


def _fsync(fd: int) -> None:
    with _sync_errors_are_final(fd):
        os.fsync(fd)


@contextlib.contextmanager
def _sync_errors_are_final(fd: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _OURS:
            raise
        raise VolumeFailed(f"syncing {_place(fd)}: {error.strerror}", hint=_HINTS[VolumeFailed]) from error


def _place(fd: int) -> str:
    """The path of a descriptor, for messages; asks no disk."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        return f"descriptor {fd}"


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def _statx_mount_root(dir_fd: int) -> bool | None:
    """What statx(2) tells; None where libc, kernel or file system cannot tell it."""
    statx = getattr(_libc, "statx", None)
    if statx is None:
        return None
    told = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(dir_fd, b"", _AT_EMPTY_PATH, 0, told) != 0:
        error = _last_error()
        if error.errno == errno.ENOSYS:
            return None
        raise error
    attributes, known = _STATX_FIELDS.unpack_from(told)
    return bool(attributes & _STATX_ATTR_MOUNT_ROOT) if known & _STATX_ATTR_MOUNT_ROOT else None


def _is_on_another_device(dir_fd: int) -> bool:
    """The old way to see a mount; blind to a folder of one file system mounted on another of the same."""
    here, above = os.fstat(dir_fd), os.stat("..", dir_fd=dir_fd)
    return here.st_dev != above.st_dev or here.st_ino == above.st_ino


def _mount_in(table: list[Mount], fd: int) -> Mount | None:
    told = re.search(r"^mnt_id:\s*([0-9]+)$", _text_of(Path(f"/proc/self/fdinfo/{fd}")), re.MULTILINE)
    mount_id = int(told[1]) if told else -1
    return next((mount for mount in table if mount.mount_id == mount_id), None)


def _is_bound_to_itself(mount: Mount, table: list[Mount]) -> bool:
    """Whether a mount shows nothing but the folder that would be seen without it.

    systemd makes one of each path in ReadWritePaths= where nothing is mounted when the unit starts.
    """
    below = next((other for other in table if other.mount_id == mount.parent_id), None)
    if below is None or below is mount or below.number != mount.number:
        return False
    inner = os.path.relpath(mount.point, below.point)
    return mount.root == os.path.normpath(os.path.join(below.root, inner))


def fstab_points(fstab: Path = Path("/etc/fstab")) -> list[str]:
    """Where fstab mounts something."""
    try:
        lines = _text_of(fstab).split("\n")
    except OSError:
        return []
    entries = [line.split() for line in lines if not line.lstrip().startswith("#")]
    return [os.path.normpath(_unescaped(fields[1])) for fields in entries if len(fields) > 1]


def _text_of(path: Path) -> str:
    """A system file; without the translation of line ends, for a carriage return may stand in a name."""
    return os.fsdecode(path.read_bytes())


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
