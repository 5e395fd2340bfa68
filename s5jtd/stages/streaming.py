"""One object from bucket to bucket through memory: hashed on the way, in parts where it is large."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from s5jtd.engine.contract import Draw, Failure, Transfer, TransferFailed
from s5jtd.errors import EndpointDown, EndpointError, ObjectChanged
from s5jtd.integrity.evidence import sane_upload_part_size, wanted_for
from s5jtd.integrity.hashing import combined_crc64nvme, crc64nvme_of, hash_stream
from s5jtd.ledger.rows import Item, Returned, Staged
from s5jtd.ledger.unfinished import Begun, Part, Unfinished
from s5jtd.model import Belongings, Digests, Direction
from s5jtd.s3.client import S3Client
from s5jtd.s3.heads import head, read_back
from s5jtd.stages.belongings import belongings_of, stamped
from s5jtd.stages.check import StagedCheck
from s5jtd.stages.job import Job
from s5jtd.stages.resuming import part_bytes, part_bytes_now

if TYPE_CHECKING:
    from s5jtd.engine.native.sink import Sink

MIB: Final = 1 << 20
#: Up to this size an object is held in memory as a whole.
WHOLE_BYTES_MAX: Final = 8 * MIB
#: What all transfers of the program may hold in memory together; a larger part has it for itself.
MEMORY_BYTES: Final = 192 * MIB
#: Parts are no larger, whatever the source's or the configuration's are, unless S3 takes no more of them.
_PART_BYTES_MAX: Final = 64 * MIB


class Memory:
    """So many bytes, lent out; who wants more than there are waits."""

    def __init__(self, size: int = MEMORY_BYTES) -> None:
        self._size = size
        self._lent = 0
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait for so many bytes; more than there are at all are lent to one at a time."""
        size = min(size, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._lent + size <= self._size)
            self._lent += size

    def give(self, size: int) -> None:
        """Give them back."""
        with self._changed:
            self._lent -= min(size, self._size)
            self._changed.notify_all()

    @contextmanager
    def lent(self, size: int) -> Iterator[None]:
        """Have so many bytes for a while."""
        self.take(size)
        try:
            yield
        finally:
            self.give(size)


class Stopped(Exception):
    """The job is to come to its end at once."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of one batch, and what goes with them."""

    job: Job
    source: S3Client
    sink: Sink
    unfinished: Unfinished
    memory: Memory
    check: StagedCheck
    draw: Draw
    found: Callable[[int], None]  #: told the bytes that need not move again
    moved: Callable[[int], None]  #: told the bytes that came, and of other signs of life (0)
    stopped: Callable[[], bool]
    parts: int  #: of one object that go up at a time, while the next one comes

    def look(self, count: int) -> None:
        """Say that something went on.

        Raises:
            Stopped: nothing may.
        """
        self.moved(count)
        if self.stopped():
            raise Stopped

    def allowed(self, count: int) -> None:
        """Wait until so many bytes may have gone out; those that come in are held back by the client.

        Raises:
            Stopped: nothing may.
        """
        while count > 0:
            granted, seconds = self.draw(Direction.PUSH, count)
            count -= granted
            if count > 0 and not granted:
                self.look(0)
                time.sleep(min(seconds, 0.5))

    def complete(
        self, transfer: Transfer, begun: Begun, etags: Mapping[int, str], *, again: bool = False
    ) -> None:
        """Let the destination make an object of an upload's parts; `again`: it may have been asked before.

        Raises:
            TransferFailed: as the destination answers; if it knows no upload, the next attempt begins anew.
        """
        was_known = self.sink.complete(transfer, begun.upload_id, etags, lambda: self.look(0), again=again)
        self.unfinished.end(begun.id)
        if not was_known:
            raise TransferFailed(Failure.OTHER, "the destination does not know the upload any more")


def stream(ends: Ends, item: Item) -> Staged | Returned:
    """Move one object; `Staged` here means: its bytes came, are the source's, and were sent.

    Raises:
        EndpointError, ObjectError: as the source answers.
        TransferFailed: as the destination answers.
        Stopped: the job is to end.
    """
    if item.size <= WHOLE_BYTES_MAX:
        with ends.memory.lent(item.size):
            return _whole(ends, item)
    return _InParts(ends, item).run()


def _whole(ends: Ends, item: Item) -> Staged | Returned:
    """In one GET and one PUT; nothing that is not the source's is ever sent."""
    job = ends.job
    body = b"".join(_watched(ends, read_back(ends.source, item.key, if_match=None)))
    answer = ends.check.part_answer(item)
    source_part = ends.check.source_part(answer)
    wanted = wanted_for(item.etag, item.size, source_part, max(WHOLE_BYTES_MAX, item.size), job.config.sha256)
    digests = hash_stream([body], replace(wanted, md5=True))
    staged = ends.check.settle(item, digests, answer, None, lambda _count: ends.look(0))
    if isinstance(staged, Staged):
        ends.allowed(item.size)
        ends.sink.put(transfer_of(job, item, staged.belongings), body)
    return staged


class _InParts:
    """In ranged GETs of one version, each of which becomes a part of an upload that can go on later."""

    def __init__(self, ends: Ends, item: Item) -> None:
        self._ends = ends
        self._item = item
        self._answer = ends.check.part_answer(item)
        self._source_part = ends.check.source_part(self._answer)
        self._part_size = self._choose()
        self._lock = threading.Lock()
        self._parts: dict[int, Part] = {}
        self._etag = ""  #: of the version that all ranges are of
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha256 = hashlib.sha256(usedforsecurity=False)
        self._is_fresh = True
        self._has_vanished = False  #: the upload, with all its parts
        self._is_opaque = False  #: the destination's ETags of parts are no MD5s

    def run(self) -> Staged | Returned:
        """Move it."""
        ends, item = self._ends, self._item
        version = head(ends.source, item.key)
        if version.size != item.size:
            return ends.check.changed(item)
        self._etag = version.etag
        belongings = (
            belongings_of(ends.job, ends.source, item.key, version) if ends.job.config.preserve else None
        )
        transfer = transfer_of(ends.job, item, belongings or Belongings())
        begun = self._take_up(transfer)
        self._move(transfer, begun)
        digests = self._digests()
        staged = ends.check.settle(item, digests, self._answer, self._part_size, lambda _count: ends.look(0))
        if isinstance(staged, Returned):
            # Completed, it would be an object that is not the source's.  The sweep ends the upload.
            ends.unfinished.drop(begun.id)
            return staged
        ends.look(0)
        etags = {number: part.etag for number, part in self._parts.items()}
        ends.complete(transfer, begun, etags, again=self._has_vanished)
        return staged

    def _choose(self) -> int:
        job, item = self._ends.job, self._item
        chosen = part_bytes(job, item, self._source_part)
        if chosen > _PART_BYTES_MAX:
            chosen = sane_upload_part_size(item.size, "", None, _PART_BYTES_MAX, single_put_max=0)
        return part_bytes_now(item, chosen, self._ends.unfinished.upload(item))

    def _take_up(self, transfer: Transfer) -> Begun:
        """The upload that an earlier attempt began, with what the destination still has of it."""
        ends, item = self._ends, self._item
        begun = ends.unfinished.upload(item)
        if begun is not None and begun.key == transfer.key and begun.part_size == self._part_size:
            held = ends.sink.held(transfer, begun.upload_id)
            if held is not None:
                self._parts = {
                    number: part
                    for number, part in begun.parts.items()
                    if part.crc64nvme and number in held and held[number] == (self._length(number), part.etag)
                }
                self._is_fresh = not self._parts
                ends.found(sum(map(self._length, self._parts)))
                return begun
            is_whole = len(begun.parts) == -(-item.size // self._part_size)
            if is_whole and all(part.crc64nvme for part in begun.parts.values()):  # it may be in the making
                self._parts, self._is_fresh, self._has_vanished = dict(begun.parts), False, True
                return begun
            ends.unfinished.end(begun.id)
        upload_id = ends.sink.begin(transfer)
        made = ends.unfinished.begin(ends.job.id, item, transfer.key, upload_id, self._part_size)
        return Begun(made, upload_id, transfer.key, self._part_size)

    def _move(self, transfer: Transfer, begun: Begun) -> None:
        """Fetch part after part, and send some of them at a time."""
        count = -(-self._item.size // self._part_size)
        under_way: set[Future[None]] = set()
        with ThreadPoolExecutor(self._ends.parts, "direct part") as pool:
            try:
                for number in range(1, count + 1):
                    if number in self._parts:
                        continue
                    self._ends.memory.take(self._length(number))
                    try:
                        body = self._fetch(number)
                    except BaseException:
                        self._ends.memory.give(self._length(number))
                        raise
                    under_way.add(pool.submit(self._send, transfer, begun, number, body))
                    under_way = self._await(under_way, self._ends.parts)
                self._await(under_way, 1)
            finally:
                pool.shutdown(cancel_futures=False)

    def _await(self, under_way: set[Future[None]], fewer_than: int) -> set[Future[None]]:
        while len(under_way) >= fewer_than:
            done, under_way = wait(under_way, timeout=0.5, return_when=FIRST_COMPLETED)
            self._ends.look(0)
            for one in done:
                one.result()
        return under_way

    def _fetch(self, number: int) -> bytes:
        """The bytes of a part; where they break off they go on, as long as each answer brings some."""
        start, length = (number - 1) * self._part_size, self._length(number)
        body = bytearray()
        while len(body) < length:
            before = len(body)
            try:
                self._range(start, length, body)
            except EndpointError:
                if len(body) == before:
                    raise
        if self._is_fresh:
            self._md5.update(body)
            self._sha256.update(body)
        return bytes(body)

    def _range(self, start: int, length: int, body: bytearray) -> None:
        wanted = {"Range": f"bytes={start + len(body)}-{start + length - 1}"}
        if self._etag and not self._etag.startswith("W/"):
            wanted["If-Match"] = f'"{self._etag}"'
        with self._ends.source.stream("GET", self._item.key, headers=wanted) as answer:
            if answer.status != 206:
                raise EndpointDown(
                    "the source sends no ranges", hint="move this job's objects with mode: staged"
                )
            etag = answer.headers.get("etag", "").strip('"')
            if self._etag and etag and etag != self._etag:
                raise ObjectChanged("it was replaced while it was fetched")
            for data in _watched(self._ends, answer):
                body += data[: length - len(body)]

    def _send(self, transfer: Transfer, begun: Begun, number: int, body: bytes) -> None:
        try:
            crc = crc64nvme_of(body)
            md5 = hashlib.md5(body, usedforsecurity=False)
            self._ends.allowed(len(body))
            etag = self._ends.sink.part(transfer, begun.upload_id, number, body, md5.digest())
        finally:
            self._ends.memory.give(len(body))
        part = Part(etag, crc)
        self._ends.unfinished.took(begun.id, number, part)
        with self._lock:
            self._parts[number] = part
            self._is_opaque |= etag != md5.hexdigest()

    def _length(self, number: int) -> int:
        return min(self._part_size, self._item.size - (number - 1) * self._part_size)

    def _digests(self) -> Digests:
        """What all parts together are; what only one pass over all bytes gives is missing after a break."""
        parts = sorted(self._parts.items())
        of_parts = hashlib.md5(usedforsecurity=False)
        for _number, part in () if self._is_opaque else parts:
            of_parts.update(bytes.fromhex(part.etag))
        etag = f"{of_parts.hexdigest()}-{len(parts)}"
        crc = combined_crc64nvme((part.crc64nvme or "", self._length(number)) for number, part in parts)
        return Digests(
            self._item.size,
            crc,
            self._md5.hexdigest() if self._is_fresh else None,
            self._sha256.hexdigest() if self._is_fresh and self._ends.job.config.sha256 else None,
            {} if self._is_opaque else {self._part_size: etag},
        )


def _watched(ends: Ends, body: Iterable[bytes]) -> Iterator[bytes]:
    for data in body:
        ends.look(len(data))  # the client has counted them against the budget of its link
        yield data


def transfer_of(job: Job, item: Item, belongings: Belongings) -> Transfer:
    """An object as it is to be put, with what it takes along."""
    own = stamped(job, belongings)
    key = job.destination_key(item.key)
    return Transfer("", key, item.size, takes=own)
