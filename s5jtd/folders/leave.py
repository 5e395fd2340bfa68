"""What becomes of a source's file once it is delivered: deleted or moved, if it is still the same file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

from s5jtd.errors import VolumeError
from s5jtd.folders.copying import copy
from s5jtd.folders.paths import (
    LEAVING,
    NAME_BYTES_MAX,
    NAMESAKES_MAX,
    OURS,
    etag_of,
    give_back,
    is_written_to,
    opened_file,
    opened_parent,
    opened_root,
    unfit,
)
from s5jtd.integrity.hashing import Wanted, hash_stream
from s5jtd.model import Listed, printable
from s5jtd.volumes.probe import syncfs_and_ask

log = structlog.get_logger(__name__)

_NO_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK})


class Changed(Exception):
    """The file is not the one that was delivered, or somebody writes to it."""


def is_ready(directory: Path, one: Listed, *, follow: bool = False) -> bool:
    """Whether nobody has the file open for writing, as far as we may ask."""
    with contextlib.suppress(OSError, Changed), _same(directory, one, follow=follow) as (_parent, descriptor):
        return not is_written_to(descriptor)
    return True  # whatever is wrong with it is found where it is taken


class Leave:
    """Lets delivered files leave a folder.  A file that changed since its delivery stays."""

    def __init__(self, directory: Path, to: Path | None) -> None:
        """`to`: where they are moved, by their paths; None: they are deleted."""
        self._directory = directory
        self._to = to

    def __call__(self, ones: Sequence[Listed], beat: Callable[[], None]) -> list[Listed]:
        """Let files leave; those that did.

        A deletion need not be durable: a file that a power cut brings back is the one that was delivered.
        What is moved is durable where it goes, by one sync for all of them, before it is gone here.
        """
        if self._to is not None:
            ones = [one for one in ones if self._done(one, self._keep, beat)]
            if not ones or not self._synced():
                return []
        return [one for one in ones if self._done(one, _remove, beat)]

    def _done(self, one: Listed, do: Callable[[Listed, int, int], None], beat: Callable[[], None]) -> bool:
        """Whether something could be done with a file, which is still what it was and not written to."""
        beat()
        try:
            with _same(self._directory, one) as (parent_fd, descriptor):
                if is_written_to(descriptor):
                    return False
                do(one, parent_fd, descriptor)
        except Changed:
            return False
        except OSError as error:
            _tell(self._directory / os.fsdecode(one.key), error.strerror)
            return False
        return True

    def _keep(self, one: Listed, _parent_fd: int, descriptor: int) -> None:
        """Give it its name in the other folder, never in the place of a file that is there."""
        to = self._to or self._directory
        to.mkdir(parents=True, exist_ok=True)
        parts = one.key.split(b"/")
        with opened_root(to) as root_fd, opened_parent(root_fd, parts, create=True) as parent_fd:
            for number in range(NAMESAKES_MAX):
                name = parts[-1] + (b".%d" % number if number else b"")
                try:
                    _link_or_copy(descriptor, parent_fd, name)
                except FileExistsError:
                    if not _is_same_file(parent_fd, name, descriptor):
                        continue
                return  # or an earlier life came as far as this
        raise OSError(errno.EEXIST, "there are too many files of that name where it is to go")

    def _synced(self) -> bool:
        try:
            with opened_root(self._to or self._directory) as root_fd:
                syncfs_and_ask(root_fd)
        except (OSError, VolumeError) as error:
            _tell(self._to or self._directory, str(error))
            return False
        return True


def _tell(path: Path, error: str | None) -> None:
    log.warning("file_cannot_leave", path=printable(os.fsencode(path)), error=error)


@contextlib.contextmanager
def _same(directory: Path, one: Listed, *, follow: bool = False) -> Iterator[tuple[int, int]]:
    """The file's own folder and the file, if it is the version that was listed.

    Raises:
        Changed: it is another, or gone.
    """
    if unfit(one.key) is not None:
        raise Changed
    parts = one.key.split(b"/")
    try:
        with (
            opened_root(directory) as root_fd,
            opened_parent(root_fd, parts, follow=follow) as parent_fd,
            opened_file(parent_fd, parts[-1], follow=follow) as descriptor,
        ):
            found = os.fstat(descriptor)
            if (etag_of(found), found.st_size) != (one.etag, one.size):
                raise Changed
            yield parent_fd, descriptor
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # gone, or another thing is there
            raise Changed from error
        raise


def _remove(one: Listed, parent_fd: int, _descriptor: int) -> None:
    """Take its name away first, then look what had it: a file that came in that very moment gets it back.

    Raises:
        Changed: it was another.
    """
    name = one.key.rpartition(b"/")[2]
    leaving = LEAVING + name
    if len(leaving) > NAME_BYTES_MAX:
        os.unlink(name, dir_fd=parent_fd)
        return
    with contextlib.suppress(FileNotFoundError):
        give_back(parent_fd, leaving, name)
    os.rename(name, leaving, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    found = os.stat(leaving, dir_fd=parent_fd, follow_symlinks=False)
    if (etag_of(found), found.st_size) != (one.etag, one.size):
        give_back(parent_fd, leaving, name)
        raise Changed
    os.unlink(leaving, dir_fd=parent_fd)


def _link_or_copy(descriptor: int, parent_fd: int, name: bytes) -> None:
    try:
        os.link(f"/proc/self/fd/{descriptor}", name, dst_dir_fd=parent_fd, follow_symlinks=True)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
    else:
        return
    temporary = OURS + b"moving." + os.urandom(8).hex().encode()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    found = os.fstat(descriptor)
    target_fd = os.open(temporary, flags, found.st_mode & 0o777, dir_fd=parent_fd)
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        copy(descriptor, target_fd, found.st_size, lambda _moved: None)
        os.utime(target_fd, ns=(found.st_atime_ns, found.st_mtime_ns))
        os.fsync(target_fd)
        if _crc(descriptor) != _crc(target_fd):
            raise OSError(errno.EIO, "its copy is not equal to it")
        if _is_there(parent_fd, name):
            raise FileExistsError(errno.EEXIST, "it is there")
        os.rename(temporary, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=parent_fd)
        raise
    finally:
        os.close(target_fd)


def _is_there(parent_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_same_file(parent_fd: int, name: bytes, descriptor: int) -> bool:
    """Whether a file that is there already is this one, or has its bytes."""
    try:
        with opened_file(parent_fd, name) as other:
            return os.path.sameopenfile(other, descriptor) or (
                os.fstat(other).st_size == os.fstat(descriptor).st_size and _crc(other) == _crc(descriptor)
            )
    except OSError:
        return False


def _crc(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return hash_stream(iter(lambda: os.read(descriptor, 1 << 20), b""), Wanted()).crc64nvme
