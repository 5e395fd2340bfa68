"""A folder that answers like a bucket: what is asked of an endpoint can be asked of it in the same words."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Final

import structlog

from s5jtd.errors import EndpointDown, EndpointRefused, ObjectChanged, ObjectGone, ObjectRefused, S5jtError
from s5jtd.folders import room
from s5jtd.folders.paths import (
    LEAVING,
    etag_of,
    give_back,
    opened_file,
    opened_parent,
    opened_root,
    unfit,
)
from s5jtd.folders.walk import Aside, Window, walk
from s5jtd.folders.watch import FolderWatch
from s5jtd.integrity.hashing import Wanted, hash_stream
from s5jtd.model import Listed, printable
from s5jtd.s3.client import Headers, Query, S3Client, Stream
from s5jtd.s3.credentials import CredentialProvider, CredentialSource
from s5jtd.s3.listing import Page

log = structlog.get_logger(__name__)

#: In a destination: without it the disk is taken for not mounted, and nothing is written.
MARKER: Final = ".s5jtd-folder"
_BLOCK_BYTES: Final = 1 << 20
#: Files with a time in the future that are remembered.
_WATCHED_MAX: Final = 100_000
_NO_HEADERS: Final[Mapping[str, str]] = {}
_NO_MOUNT: Final = "is its disk mounted, and may the daemon's user read it?"
#: There is no file; or a link, a socket or a device, which to us is none.
_GONE_ERRNOS: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO})
_REFUSED_ERRNOS: Final = frozenset({errno.EACCES, errno.EPERM})


class _Answer(Stream):
    """What a folder says of one file."""

    def __init__(self, headers: dict[str, str], body: Iterator[bytes]) -> None:
        self.status = 200
        self.headers = headers
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self._body


class FolderClient(S3Client):
    """One folder.  A file's key is its path below it; its ETag says which version of the file it is.

    Unless told so, links are not followed; neither they nor devices, sockets and FIFOs are listed.
    """

    def __init__(
        self,
        directory: Path,
        *,
        settle_seconds: float = 0.0,
        follow_links: bool = False,
        is_destination: bool = False,
        begun_mark: Path | None = None,
        watch: FolderWatch | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Files that changed within the last `settle_seconds` are not listed yet; `watch` hears of them.

        `begun_mark` is there once a destination was written to: from then on it must have its marker.
        """
        super().__init__(
            str(directory), credentials=CredentialProvider(CredentialSource(anonymous=True))
        )  # fmt: skip
        self.directory = directory
        self._settle_seconds = settle_seconds
        self._follow_links = follow_links
        self._links_told = False
        self._is_destination = is_destination
        self._begun_mark = begun_mark
        self._watch = watch
        self._clock = clock
        self._of_the_future: dict[bytes, tuple[tuple[str, int], float]] = {}

    def probe(self, prefix: bytes = b"") -> None:
        """Find out whether the folder is there, is the one it was, and takes what it had no room for.

        Raises:
            EndpointDown, EndpointRefused: it is not.
        """
        self._is_the_one()
        lacking = room.lacking(self.directory) if self._is_destination else None
        if lacking is not None:
            raise EndpointDown(
                f"{self.directory} is full: {lacking}", hint="make room there; it goes on by itself"
            )

    def _is_the_one(self) -> None:
        with self._root() as root_fd:
            if self._is_destination and not os.access(self.directory, os.W_OK | os.X_OK):
                raise EndpointRefused(
                    f"{self.directory} cannot be written to", hint="let the daemon's user write into it"
                )
            if self._begun_mark is None or not self._begun_mark.exists():
                return
            try:
                os.stat(MARKER, dir_fd=root_fd, follow_symlinks=False)
            except FileNotFoundError:
                raise EndpointRefused(
                    f"{self.directory} is not the folder that was delivered to: it has no {MARKER}",
                    hint=f"mount its disk; or, if a new folder is meant: touch {self.directory}/{MARKER}",
                ) from None

    @contextlib.contextmanager
    def stream(
        self,
        method: str,
        key: bytes | None = None,
        query: Query = _NO_HEADERS,
        headers: Headers = _NO_HEADERS,
    ) -> Iterator[Stream]:
        """See `S3Client.stream`: GET and HEAD of a file; of the folder itself, whether it is there."""
        with contextlib.ExitStack() as stack:
            try:
                if key is None:
                    self._is_the_one()
                    answer = _Answer({}, iter(()))
                else:
                    answer = self._of_file(stack, method, key, headers)
            except S5jtError as error:
                self.observe(error)
                raise
            yield answer
            self.observe(None)

    def own_listing(self, prefix: bytes, start_after: bytes, end_at: bytes | None) -> Iterator[Page]:
        """See `S3Client.own_listing`.

        Raises:
            EndpointDown, EndpointRefused: the folder is not there.
            ObjectRefused: at the end, where a folder below could not be read: the rest was listed.
        """
        self._is_the_one()
        window = Window(prefix, start_after, end_at)
        waits = self._settle_seconds > 0 and not window.is_one_key
        aside = Aside() if self._watch is None or window.is_one_key else Aside(self._watch.add)
        with self._root() as root_fd:
            for found in walk(root_fd, window, aside, follow=self._follow_links):
                yield Page(
                    [
                        Listed(key, stat_.st_size, etag_of(stat_), stat_.st_mtime_ns // 1_000_000)
                        for key, stat_ in found
                        if not waits or self._is_settled(key, stat_, aside)
                    ],
                    sorted=True,
                )
            self._restore(root_fd, aside.leaving)
        self.observe(None)
        if self._watch is not None and window == Window(b""):
            self._watch.young = aside.young
        if aside.links and not self._links_told:
            self._links_told = True
            log.warning(
                "folder_links_skipped",
                directory=str(self.directory), links=aside.links, first=printable(aside.first_link),
                hint="they lead nowhere" if self._follow_links else "symlinks: follow delivers them",
            )  # fmt: skip
        if aside.unreadable:
            raise ObjectRefused(
                f"{self.directory}: {len(aside.unreadable)} folders below cannot be read, the first is"
                f" {printable(aside.unreadable[0])}; all else was listed",
                hint="let the daemon's user read them",
            )

    def _is_settled(self, key: bytes, found: os.stat_result, aside: Aside) -> bool:
        is_settled = self._has_settled(key, found)
        aside.young += not is_settled
        return is_settled

    def _has_settled(self, key: bytes, found: os.stat_result) -> bool:
        """Whether neither bytes nor name changed of late.

        The time of the last change is whatever a writer says, that of the inode's is the kernel's.  Where it
        lies in the future, because a clock was wrong, the file must stay as it is while we watch.
        """
        changed_at = found.st_ctime_ns / 1e9
        age = self._clock() - changed_at
        if age >= 0:
            if age < self._settle_seconds and self._watch is not None:
                self._watch.changed(changed_at)
            return age >= self._settle_seconds
        version, now = (etag_of(found), found.st_size), time.monotonic()
        watched, since = self._of_the_future.get(key, (version, now))
        if len(self._of_the_future) > _WATCHED_MAX:
            self._of_the_future.clear()
        self._of_the_future[key] = (version, since if watched == version else now)
        return watched == version and now - since >= self._settle_seconds

    def _restore(self, root_fd: int, leaving: list[bytes]) -> None:
        """Give files their names back that a crash met in the moment of leaving: the next look decides."""
        for key in leaving:
            parts = key.split(b"/")
            with contextlib.suppress(OSError), opened_parent(root_fd, parts) as parent_fd:
                give_back(parent_fd, parts[-1], parts[-1].removeprefix(LEAVING))

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        try:
            with opened_root(self.directory) as root_fd:
                yield root_fd
        except OSError as error:
            ours = EndpointDown(f"{self.directory}: {error.strerror}", hint=_NO_MOUNT)
            self.observe(ours)
            raise ours from error

    def _of_file(self, stack: contextlib.ExitStack, method: str, key: bytes, headers: Headers) -> _Answer:
        if unfit(key) is not None:
            raise ObjectGone(f"{printable(key)} is in no folder: {unfit(key)}")
        if self._is_destination:
            self._is_the_one()  # that a file is missing says nothing where its disk is
        parts = key.split(b"/")
        root_fd = stack.enter_context(self._root())
        with self._errors_about(key):
            parent_fd = stack.enter_context(opened_parent(root_fd, parts, follow=self._follow_links))
            descriptor = stack.enter_context(opened_file(parent_fd, parts[-1], follow=self._follow_links))
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise ObjectGone(f"{printable(key)} is no regular file")
        etag = etag_of(found)
        wanted = re.fullmatch(r'"(.*)"', headers.get("If-Match", ""))
        if wanted is not None and wanted[1] != etag:
            raise ObjectChanged(f"{printable(key)} is no longer the file it was")
        told = {
            "content-length": str(found.st_size),
            "etag": f'"{etag}"',
            "last-modified": formatdate(found.st_mtime, usegmt=True),
            # As rclone writes it: the way a file's own time travels through a bucket.
            "x-amz-meta-mtime": f"{found.st_mtime_ns // 10**9}.{found.st_mtime_ns % 10**9:09d}",
        }
        if headers.get("x-amz-checksum-mode"):
            told |= self._checksums(descriptor, key, found)
        body = self._body(descriptor, key, found) if method == "GET" else iter(())
        return _Answer(told, body)

    def _checksums(self, descriptor: int, key: bytes, found: os.stat_result) -> dict[str, str]:
        """Read the file through: a destination's from the disk itself, once it was synced."""
        if self._is_destination:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        digests = hash_stream(self._body(descriptor, key, found), Wanted(md5=self._is_destination))
        os.lseek(descriptor, 0, os.SEEK_SET)
        told = {"x-amz-checksum-crc64nvme": digests.crc64nvme, "x-amz-checksum-type": "FULL_OBJECT"}
        if digests.md5:
            told["x-amz-checksum-md5"] = base64.b64encode(bytes.fromhex(digests.md5)).decode()
        return told

    def _body(self, descriptor: int, key: bytes, found: os.stat_result) -> Iterator[bytes]:
        with self._errors_about(key):
            while block := os.read(descriptor, _BLOCK_BYTES):
                yield block
            now = os.fstat(descriptor)
        if (now.st_mtime_ns, now.st_size) != (found.st_mtime_ns, found.st_size):
            raise ObjectChanged(f"{printable(key)} changed while it was read")

    @contextlib.contextmanager
    def _errors_about(self, key: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _GONE_ERRNOS:
                raise ObjectGone(f"there is no {printable(key)} in {self.directory}") from error
            if error.errno in _REFUSED_ERRNOS:
                raise ObjectRefused(
                    f"{printable(key)}: {error.strerror}", hint="let the daemon's user read it"
                ) from error
            raise EndpointDown(f"{self.directory}: {error.strerror}", hint=_NO_MOUNT) from error
