"""The files beside the ledger: made durable, given to the right owner; and whether their disk still works."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PROBE = ".s5jtd-ledger-probe"
_BLOCK = b"is this disk well?\n".ljust(4096, b"\0")


class Identity(NamedTuple):
    """Which file a path leads to; told without opening it.

    Opening a database's file beside SQLite and closing it again would drop SQLite's locks on it: POSIX
    locks belong to the process and go with the first descriptor.
    """

    device: int
    inode: int
    size: int
    modified_ns: int

    def same_file(self, other: Identity) -> bool:
        """Whether it is the same file, whatever became of its content."""
        return (self.device, self.inode) == (other.device, other.inode)


def identity(path: Path) -> Identity | None:
    """Which file is there, or None."""
    try:
        told = path.stat()
    except FileNotFoundError:
        return None
    return Identity(told.st_dev, told.st_ino, told.st_size, told.st_mtime_ns)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's bytes durable.  Never for an open database: see `Identity`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hand_over(path: Path) -> None:
    """What root makes belongs to the folder's owner, or the daemon could not use it afterwards."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def make_folder(folder: Path) -> None:
    """Make a folder for the daemon alone, durably; one that is there is success."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        hand_over(folder)
        sync_folder(folder.parent)


def install(temporary: Path, final: Path) -> None:
    """Put a finished file in its place: durable first, then visible, then durably visible."""
    sync_file(temporary)
    hand_over(temporary)
    temporary.replace(final)
    sync_folder(final.parent)


@contextlib.contextmanager
def scratch(final: Path) -> Iterator[Path]:
    """A name beside `final` to write to; nothing is left of it but what `install` took away."""
    temporary = final.with_name(f".{final.name}.{os.getpid()}.new")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def free_bytes(folder: Path) -> int:
    """What this user may still write there."""
    told = os.statvfs(folder)
    return told.f_bavail * told.f_frsize


def disk_trouble(folder: Path) -> str | None:
    """What is wrong with the disk under a folder, by writing to it; None where nothing shows.

    A file system that died lets SQLite believe that the database is malformed.  That is no damage,
    and nothing may be rebuilt on the strength of it.
    """
    path = folder / _PROBE
    try:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            if os.write(descriptor, _BLOCK) != len(_BLOCK):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)
    except PermissionError:
        return None  # somebody who may only read is looking; that says nothing of the disk
    except OSError as error:
        return error.strerror
    return None
