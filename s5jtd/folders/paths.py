"""From a key to a file below a folder and back, step by step over descriptors: no name leads outside."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
from collections.abc import Iterator, Sequence

from s5jtd.volumes.probe import mount_of

#: Names that begin so are ours: temporary files, the marker, files about to leave.
OURS = b".s5jtd-"
#: What a file is called in the moment before it is deleted.
LEAVING = OURS + b"leaving."
NAME_BYTES_MAX = 255
#: As many files may want one name.
NAMESAKES_MAX = 1000
#: Where a lease tells nothing: the server knows who writes, and we do not.
_NETWORK = re.compile(r"nfs|cifs|smb|fuse|9p|ceph|afs|lustre|gluster")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
#: O_NONBLOCK: a FIFO must not hold a thread for ever.
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Unfit(Exception):
    """A key can have no file in this folder; it says what stands in the way."""


def ignore_lease_breaks() -> None:
    """The kernel's word that somebody wants to write to what we hold a lease on would end the process."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)


def unfit(key: bytes) -> str | None:
    """Why a key can be no path below any folder, or None if it can.

    Nothing is mended: two keys that differ would meet in one file, and the way back would be lost.
    """
    parts = key.split(b"/")
    if not key:
        return "an empty name cannot be a file"
    if b"\0" in key:
        return "it holds a NUL, which no file's name can"
    if not parts[-1]:
        return "it ends in '/', as only folders' names do"
    if not all(parts):
        return "it begins with '/' or holds '//', which a path does not keep"
    if any(part in (b".", b"..") for part in parts):
        return "'.' and '..' lead elsewhere in a path"
    if any(len(part) > NAME_BYTES_MAX for part in parts):
        return f"a part of it is longer than {NAME_BYTES_MAX} bytes, the most for a file's name"
    if any(part.startswith(OURS) for part in parts):
        return f"names that begin with {OURS.decode()} are s5jtd's own"
    return None


def etag_of(found: os.stat_result) -> str:
    """What tells one version of a file from the next: its time of last change and its inode.

    Not the device: its number may change with a boot.  Never as long as an MD5, for which it would be taken.
    """
    return f"{found.st_mtime_ns & (1 << 64) - 1:016x}.{found.st_ino & (1 << 64) - 1:016x}"


@contextlib.contextmanager
def opened_root(directory: os.PathLike[str]) -> Iterator[int]:
    """The folder itself, which may be reached through links: its path was chosen by the operator."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def folder_flags(*, follow: bool) -> int:
    """How a folder is opened for reading, links followed or not."""
    return _DIRECTORY if follow else _DIRECTORY | os.O_NOFOLLOW


@contextlib.contextmanager
def opened_parent(
    root_fd: int, parts: Sequence[bytes], *, create: bool = False, follow: bool = False
) -> Iterator[int]:
    """The folder in which the last of `parts` lies; unless told so, no link is followed on the way.

    Raises:
        OSError: as the file system says; ENOTDIR or ELOOP where something else stands in the way.
    """
    here = os.dup(root_fd)
    try:
        for part in parts[:-1]:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=here)
            below = os.open(part, folder_flags(follow=follow), dir_fd=here)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


@contextlib.contextmanager
def opened_file(parent_fd: int, name: bytes, *, follow: bool = False) -> Iterator[int]:
    """A file for reading; unless told so, never by way of a link."""
    descriptor = os.open(name, _FILE if follow else _FILE | os.O_NOFOLLOW, dir_fd=parent_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_written_to(descriptor: int) -> bool:
    """Whether somebody has the file open for writing, as far as we are allowed to ask.

    The kernel gives a read lease only where nobody has.  It is given back at once; the signal that may come
    in between is ignored by `ignore_lease_breaks`.
    """
    if _is_remote(os.fstat(descriptor).st_dev, descriptor):
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:  # another's file, or a file system without leases
        return False
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


_remote: dict[int, bool] = {}


def _is_remote(device: int, descriptor: int) -> bool:
    """Whether a file system is another machine's; asked once for each."""
    if device not in _remote:
        mount = mount_of(descriptor)
        _remote[device] = mount is not None and _NETWORK.match(mount.kind) is not None
    return _remote[device]


def give_back(parent_fd: int, leaving: bytes, name: bytes) -> None:
    """A file that was about to leave has its name again; where another has it meanwhile, one beside it."""
    os.stat(leaving, dir_fd=parent_fd, follow_symlinks=False)
    for number in range(NAMESAKES_MAX):
        try:
            os.link(
                leaving, name + (b".s5jtd-kept-%d" % number if number else b""),
                src_dir_fd=parent_fd, dst_dir_fd=parent_fd, follow_symlinks=False,
            )  # fmt: skip
        except FileExistsError:
            continue
        os.unlink(leaving, dir_fd=parent_fd)
        return


def exact(parent_fd: int, name: bytes) -> bool:
    """Whether a folder holds a file or folder by exactly this name, where asking by name is not enough."""
    with os.scandir(parent_fd) as entries:
        return any(os.fsencode(entry.name) == name for entry in entries)
