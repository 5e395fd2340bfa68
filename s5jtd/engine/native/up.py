"""One file from the chunk's folder to its key; a large one in parts that a later run need not repeat."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from typing import Any, Final

from s5jtd.engine.contract import Batch, Failure, Transfer, TransferFailed, Upload
from s5jtd.engine.language import PUT_BYTES_MAX, upload_part_size
from s5jtd.engine.native import completion, headers
from s5jtd.engine.native.client import LocalFault, is_answer
from s5jtd.engine.native.work import Gauge, Tally, side_by_side

_BLOCK_BYTES: Final = 256 * 1024


class Window:
    """A stretch of a file as a request's body, told when it is really sent and not only hashed."""

    def __init__(self, fd: int, start: int, size: int, tally: Tally) -> None:
        self._fd = fd
        self._start = start
        self._size = size
        self._tally = tally
        self._gauge = Gauge(tally)
        self._position = 0
        self._is_sent = False

    def __len__(self) -> int:
        return self._size

    def begin(self) -> None:
        """From here on what is read goes out."""
        self._is_sent = True

    def read(self, size: int = -1) -> bytes:
        """The next bytes.

        Raises:
            LocalFault: the file is shorter than it was, or the disk cannot give them.
            Cancelled: the run has ended.
        """
        wanted = self._size - self._position if size < 0 else size
        wanted = min(wanted, self._size - self._position)
        if self._is_sent:  # not while it is hashed: the library's signer prints what it catches
            wanted = self._tally.allowed(wanted)
        try:
            data = os.pread(self._fd, wanted, self._start + self._position)
        except OSError as error:
            raise LocalFault(error.errno, error.strerror) from error
        if len(data) < min(wanted, 1):
            raise LocalFault(0, "the file is shorter than it was")
        self._position += len(data)
        if self._is_sent:
            self._gauge.reach(self._position)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        self._is_sent = False  # it is hashed now, perhaps once more
        return self._position

    def tell(self) -> int:
        return self._position

    def md5(self) -> bytes:
        """The MD5 of all of it."""
        digest = hashlib.md5(usedforsecurity=False)
        self.seek(0)
        while data := self.read(_BLOCK_BYTES):
            self._tally.check()
            digest.update(data)
        self.seek(0)
        return digest.digest()


def install(client: Any) -> None:
    """Let windows know when a client sends them."""

    def begin(request: Any, **_more: object) -> None:
        if isinstance(request.body, Window):
            request.body.begin()

    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"before-send.s3.{operation}", begin)


def push(client: Any, batch: Batch, transfer: Transfer, tally: Tally) -> None:
    """Send one file.

    Raises:
        ClientError, BotoCoreError: as the endpoint answers.
        OSError: the file cannot be read, or is not what it was.
        Cancelled: the run has ended.
    """
    part_size = upload_part_size(transfer.size, transfer.part_size)
    with _file(transfer.name, batch.data_fd, transfer.size) as fd:
        if transfer.size <= min(part_size, PUT_BYTES_MAX):
            body = Window(fd, 0, transfer.size, tally)
            with headers.as_they_are(transfer):
                client.put_object(
                    Bucket=batch.remote.bucket,
                    Key=transfer.key.decode(),
                    Body=body,
                    ContentLength=transfer.size,
                    ContentMD5=base64.b64encode(body.md5()).decode(),
                    **headers.parameters(batch.remote, transfer),
                )
        else:
            _Multipart(client, batch, transfer, tally, fd, part_size).send()


class _Multipart:
    """An upload in parts, begun here or by an earlier run."""

    def __init__(
        self, client: Any, batch: Batch, transfer: Transfer, tally: Tally, fd: int, part_size: int
    ) -> None:
        self._client = client
        self._place = {"Bucket": batch.remote.bucket, "Key": transfer.key.decode()}
        self._batch = batch
        self._transfer = transfer
        self._tally = tally
        self._fd = fd
        self._part_size = part_size
        self._lock = threading.Lock()
        self._upload_id = ""
        self._etags: dict[int, str] = {}

    def send(self) -> None:
        """Send what the server lacks, and make an object of the parts."""
        uploads = self._batch.uploads
        known = uploads.recall(self._transfer.name) if uploads else None
        count = -(-self._transfer.size // self._part_size)
        if known is not None and known.part_size == self._part_size:
            if not self._take_up(known):
                is_there = len(known.parts) == count and self._complete(known.parts, again=True)
                self._end()
                if is_there:
                    return
                self._begin()
        else:
            self._begin()
        left = [number for number in range(1, count + 1) if number not in self._etags]
        side_by_side(left, min(self._batch.upload_parts, self._batch.parts), self._part, self._tally)
        self._tally.check()
        if not self._complete(self._etags):
            raise TransferFailed(Failure.OTHER, "the server does not know the upload any more")
        self._end()

    def _complete(self, etags: Mapping[int, str], *, again: bool = False) -> bool:
        asked = completion.ask(self._client, self._place, self._upload_id, etags, again=again)
        there = functools.partial(completion.etag_there, self._client, self._place)
        return completion.awaited(asked, there, self._tally.check)

    def _end(self) -> None:
        if self._batch.uploads:
            self._batch.uploads.end(self._transfer.name, self._upload_id)

    def _begin(self) -> None:
        self._tally.check()
        with headers.as_they_are(self._transfer):
            answer = self._client.create_multipart_upload(
                **self._place, **headers.parameters(self._batch.remote, self._transfer)
            )
        self._upload_id, self._etags = answer["UploadId"], {}
        if self._batch.uploads:
            self._batch.uploads.begin(self._transfer.name, self._upload_id, self._part_size)

    def _take_up(self, known: Upload) -> bool:
        """Go on with an upload, if the server still has it; its word on what it holds is the last one."""
        self._upload_id = known.upload_id
        try:
            held = dict(self._held())
        except Exception as error:
            if not is_answer(error, "NoSuchUpload", "404"):
                raise
            return False
        for number, (size, etag) in held.items():
            _start, length = self._stretch(number)
            # A part that nobody here wrote down was taken in just before a crash: if it is ours, it counts.
            if size == length and etag in {known.parts.get(number), self._md5_of(number, known)}:
                self._etags[number] = etag
        if self._batch.uploads:
            size_bytes = sum(self._stretch(number)[1] for number in self._etags)
            self._batch.uploads.held(self._transfer.name, size_bytes)
        return True

    def _md5_of(self, number: int, known: Upload) -> str | None:
        if number in known.parts:
            return None
        return Window(self._fd, *self._stretch(number), self._tally).md5().hex()

    def _held(self) -> Iterator[tuple[int, tuple[int, str]]]:
        """The parts that the server has: number -> size and ETag."""
        pages = self._client.get_paginator("list_parts").paginate(**self._place, UploadId=self._upload_id)
        for page in pages:
            self._tally.check()
            for part in page.get("Parts", ()):
                yield part["PartNumber"], (part["Size"], part["ETag"].strip('"'))

    def _stretch(self, number: int) -> tuple[int, int]:
        """Where a part begins, and its length."""
        start = (number - 1) * self._part_size
        return start, max(0, min(self._part_size, self._transfer.size - start))

    def _part(self, number: int) -> None:
        body = Window(self._fd, *self._stretch(number), self._tally)
        answer = self._client.upload_part(
            **self._place,
            UploadId=self._upload_id,
            PartNumber=number,
            Body=body,
            ContentLength=len(body),
            ContentMD5=base64.b64encode(body.md5()).decode(),
        )
        etag = str(answer["ETag"]).strip('"')
        with self._lock:
            self._etags[number] = etag
        if self._batch.uploads:
            self._batch.uploads.part(self._transfer.name, self._upload_id, number, etag)


@contextlib.contextmanager
def _file(name: str, data_fd: int, size: int) -> Iterator[int]:
    """A file of ours, open; nothing else that may lie under its name is read."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=data_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise LocalFault(0, f"{name} is not the file of {size} bytes that it was")
        yield fd
    finally:
        os.close(fd)
