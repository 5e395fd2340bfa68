"""Gives every digest a job needs from one pass over the bytes.

CRC64NVME is always computed because it costs next to nothing.  MD5 is by far the dearest, so it is
computed only where an ETag must be compared, and what starts at one offset is hashed only once:
the whole object and its first part share their work, and so do the parts of different sizes
wherever they begin at the same byte.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from awscrt.checksums import combine_crc64nvme, crc64nvme

from s5jtd.errors import ObjectChanged, ObjectError, VolumeFailed
from s5jtd.model import Digests

if TYPE_CHECKING:
    from hashlib import _Hash

#: Large enough that a call is cheap beside its work, small enough to stay in a core's cache while
#: each algorithm in turn reads it.
BLOCK_BYTES: Final = 1 << 20

#: O_NONBLOCK: a FIFO planted under an expected name must not hold a thread for ever.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

_AGAIN: Final = "it will be transferred again"
_PLANTED: Final = "find out who put it there"
_ALLOW: Final = "let the daemon's user read it"
#: What open() says of one name, and what to do about it; all else it says is about the disk.
_NAME_ERRNOS: Final[Mapping[int | None, str]] = {
    errno.ENOENT: _AGAIN,
    errno.ELOOP: _PLANTED,  # a symbolic link
    errno.ENXIO: _PLANTED,  # a socket or a device
    errno.EACCES: _ALLOW,
    errno.EPERM: _ALLOW,
    errno.ENAMETOOLONG: _AGAIN,
}
#: Neither the object nor the volume is to blame for these: the daemon is short of something, or wrong.
_OUR_ERRNOS: Final = frozenset({errno.EBADF, errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one pass shall compute beside the CRC64NVME."""

    md5: bool = False  #: of the whole
    sha256: bool = False
    part_sizes: frozenset[int] = frozenset()  #: bytes; a multipart ETag for each

    def __post_init__(self) -> None:
        if any(size <= 0 for size in self.part_sizes):
            raise ValueError(f"part sizes must be positive: {sorted(self.part_sizes)}")


def hash_file(
    dir_fd: int, name: str, wanted: Wanted, *, beat: Callable[[int], None] = lambda _bytes_read: None
) -> Digests:
    """Hash the file `name` directly in the folder `dir_fd`; `beat` is told the bytes of every block.

    Only a regular file with a single name is read.  Another kind under an expected name was put
    there by somebody else; it condemns the object and not its neighbours on the volume.

    Raises:
        ObjectError: there is no such file, it is of another kind, or we may not read it.
        ObjectChanged: its length changed while it was read.
        VolumeFailed: the disk could not give the bytes.
    """
    with _opened(dir_fd, name) as fd:
        expected_bytes = _checked_size(fd, name)
        sums = _Pass(wanted)
        buffer = _buffer()
        while (count := os.readv(fd, (buffer,))) and sums.size <= expected_bytes:
            sums.update(buffer[:count])
            beat(count)
        if sums.size != expected_bytes:
            raise ObjectChanged(
                f"file {name!r} was {expected_bytes} bytes long and gave {sums.size}",
                hint="something else writes to it",
            )
        return sums.digests()


def hash_stream(chunks: Iterable[bytes], wanted: Wanted) -> Digests:
    """Hash what a server sends, in whatever pieces it arrives."""
    sums = _Pass(wanted)
    for chunk in chunks:
        sums.update(memoryview(chunk))
    return sums.digests()


def drop_cache(dir_fd: int, name: str) -> None:
    """Forget the cached pages of a file, so that the next hash reads the device itself.

    Only pages that were written back can be forgotten: sync the volume first.  The kernel is free
    to keep some, and it keeps all of a file that lives in memory, such as on a tmpfs.

    Raises:
        ObjectError, VolumeFailed: as `hash_file`.
    """
    with _opened(dir_fd, name) as fd:
        _checked_size(fd, name)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def crc64nvme_text(value: int) -> str:
    """A CRC64NVME as S3 writes it."""
    return base64.b64encode(value.to_bytes(8, "big")).decode("ascii")


def crc64nvme_of(data: bytes) -> str:
    """The CRC64NVME of what is in memory, as S3 writes it."""
    return crc64nvme_text(crc64nvme(data))


def combined_crc64nvme(parts: Iterable[tuple[str, int]]) -> str:
    """The CRC64NVME of parts put together, of whose own ones and lengths in bytes.

    Raises:
        ValueError: one of them is not base64.
    """
    whole = 0
    for text, length in parts:
        own = int.from_bytes(base64.b64decode(text, validate=True), "big")
        whole = combine_crc64nvme(whole, own, length)
    return crc64nvme_text(whole)


class _Pass:
    """The running digests of one pass."""

    __slots__ = ("_crc", "_md5s", "_sha256", "size")

    def __init__(self, wanted: Wanted) -> None:
        self.size = 0
        self._crc = 0
        self._sha256 = hashlib.sha256(usedforsecurity=False) if wanted.sha256 else None
        self._md5s = _Md5s(wanted) if wanted.md5 or wanted.part_sizes else None

    def update(self, block: memoryview) -> None:
        self.size += len(block)
        self._crc = crc64nvme(block, self._crc)
        if self._sha256 is not None:
            self._sha256.update(block)
        if self._md5s is not None:
            self._md5s.update(block)

    def digests(self) -> Digests:
        return Digests(
            size=self.size,
            crc64nvme=crc64nvme_text(self._crc),
            md5=self._md5s.whole() if self._md5s else None,
            sha256=self._sha256.hexdigest() if self._sha256 else None,
            multipart_etags=self._md5s.multipart_etags() if self._md5s else {},
        )


class _Md5s:
    """The MD5s of the whole and of its parts, in as many sizes as wanted.

    `_running` holds one hash for each offset at which something unfinished begins.  All that begins
    there uses it: reading a digest does not end a hash.
    """

    __slots__ = ("_of_parts", "_offset", "_running", "_starts", "_whole")

    def __init__(self, wanted: Wanted) -> None:
        self._whole = wanted.md5
        self._offset = 0
        self._starts = dict.fromkeys(wanted.part_sizes, 0)  # part size -> where its open part begins
        self._of_parts = {size: _md5() for size in wanted.part_sizes}
        self._running: dict[int, _Hash] = {0: _md5()}

    def update(self, block: memoryview) -> None:
        while block:
            piece = block[: self._until_boundary(len(block))]
            for running in self._running.values():
                running.update(piece)
            self._offset += len(piece)
            block = block[len(piece) :]
            self._close_parts()

    def _until_boundary(self, at_most: int) -> int:
        """Bytes up to the next end of a part of any size."""
        for size, start in self._starts.items():
            at_most = min(at_most, start + size - self._offset)
        return at_most

    def _close_parts(self) -> None:
        ended = [size for size, start in self._starts.items() if start + size == self._offset]
        if not ended:
            return
        for size in ended:
            self._of_parts[size].update(self._running[self._starts[size]].digest())
            self._starts[size] = self._offset
        begins = {*self._starts.values(), *((0,) if self._whole else ())}
        self._running = {start: self._running.get(start) or _md5() for start in begins}

    def whole(self) -> str | None:
        return self._running[0].hexdigest() if self._whole else None

    def multipart_etags(self) -> dict[int, str]:
        return {size: self._multipart_etag(size) for size in self._starts}

    def _multipart_etag(self, size: int) -> str:
        of_parts = self._of_parts[size].copy()
        start = self._starts[size]
        if start < self._offset or self._offset == 0:  # an empty object still has one part
            of_parts.update(self._running[start].digest())
        return f"{of_parts.hexdigest()}-{max(1, -(-self._offset // size))}"


def _md5() -> _Hash:
    return hashlib.md5(usedforsecurity=False)


_per_thread = threading.local()


def _buffer() -> memoryview:
    """This thread's block: a fresh megabyte for each small file would cost more than hashing it."""
    try:
        buffer: memoryview = _per_thread.buffer
    except AttributeError:
        buffer = _per_thread.buffer = memoryview(bytearray(BLOCK_BYTES))
    return buffer


@contextmanager
def _opened(dir_fd: int, name: str) -> Iterator[int]:
    """The file, with whatever the system says of it turned into an error of ours."""
    if "/" in name:  # O_NOFOLLOW guards only the last step of a path
        raise ObjectError(f"a file is named by one name, not by a path: {name!r}")
    with _errors_about(dir_fd, name):
        try:
            fd = os.open(name, _OPEN_FLAGS, dir_fd=dir_fd)
        except ValueError as error:
            raise ObjectError(f"no file can have the name {name!r}") from error
        except OSError as error:
            if error.errno not in _NAME_ERRNOS:
                raise
            raise ObjectError(f"file {name!r}: {error.strerror}", hint=_NAME_ERRNOS[error.errno]) from error
        try:
            yield fd
        finally:
            os.close(fd)


@contextmanager
def _errors_about(dir_fd: int, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _OUR_ERRNOS:
            raise
        hint = "look for disk errors in `journalctl -k`"
        folder = os.readlink(f"/proc/self/fd/{dir_fd}")
        raise VolumeFailed(f"reading file {name!r} in {folder}: {error.strerror}", hint=hint) from error


def _checked_size(fd: int, name: str) -> int:
    """The length of the file in bytes, once it is seen to be a plain one."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ObjectError(f"{name!r} is no regular file", hint=_PLANTED)
    if status.st_nlink != 1:
        raise ObjectError(
            f"file {name!r} has {status.st_nlink} names, so that others may change it", hint=_PLANTED
        )
    return status.st_size
