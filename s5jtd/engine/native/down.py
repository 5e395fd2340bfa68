"""One object from its endpoint into the chunk's folder; a large one in ranges that a later run can continue.

A file gets its name when all of it is there.  Until then it is `NAME0`, which is swept as any leftover;
or, where the batch allows for going on later, `NAME.part` beside `NAME.parts`, the record of what of it
is durable.  That record is a hint and no more: the whole file is hashed in the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from s5jtd.engine.contract import PULL_RANGE_BYTES, Batch, Failure, Transfer
from s5jtd.engine.native.client import Changed, failure_of
from s5jtd.engine.native.work import Cancelled, Gauge, Tally, side_by_side
from s5jtd.engine.parts import part_names, read_record

_BLOCK_BYTES: Final = 256 * 1024
#: What is durable of a range is written down so often; a crash of ours costs no more than this per range.
_DURABLE_BYTES: Final = 4 * 1024 * 1024
_TOTAL: Final = re.compile(r"bytes [0-9]{1,18}-[0-9]{1,18}/([0-9]{1,18})")
_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def pull(client: Any, batch: Batch, transfer: Transfer, tally: Tally) -> None:
    """Fetch one object to its name in the data folder.

    Raises:
        Changed: it is another object than when the transfer began.
        ClientError, BotoCoreError: as the endpoint answers.
        OSError: as the file system says.
        Cancelled: the run has ended.
    """
    if transfer.size <= PULL_RANGE_BYTES:
        _whole(client, batch, transfer, tally)
    elif transfer.resumable:
        _in_ranges(client, batch, transfer, tally, *part_names(transfer.name))
    else:
        _in_ranges(client, batch, transfer, tally, f"{transfer.name}0", None)


def _whole(client: Any, batch: Batch, transfer: Transfer, tally: Tally) -> None:
    """One GET, which cannot mix two versions."""
    temporary = f"{transfer.name}0"
    gauge = Gauge(tally)
    tally.check()
    answer = client.get_object(Bucket=batch.remote.bucket, Key=transfer.key.decode())
    with _file(temporary, batch.data_fd, os.O_TRUNC) as fd, contextlib.closing(answer["Body"]) as body:
        position = 0
        while data := body.read(tally.allowed(_BLOCK_BYTES)):
            position += _write(fd, data, position)
            gauge.reach(min(position, transfer.size))
    _name(batch, temporary, transfer.name, tally)


@dataclass(slots=True)
class _Range:
    """A stretch of the object, and how much of it is there."""

    start: int
    end: int  #: exclusive
    done: int = 0  #: bytes that are there
    noted: int = 0  #: of these, bytes that are durable and written down


def _in_ranges(
    client: Any, batch: Batch, transfer: Transfer, tally: Tally, part: str, record: str | None
) -> None:
    with contextlib.ExitStack() as stack:
        known = read_record(batch.data_fd, record, transfer.size) if record else None
        fd = stack.enter_context(_file(part, batch.data_fd, 0 if known else os.O_TRUNC))
        if known and os.fstat(fd).st_size > transfer.size:
            known = None
        ranges = [
            _Range(start, min(start + PULL_RANGE_BYTES, transfer.size))
            for start in range(0, transfer.size, PULL_RANGE_BYTES)
        ]
        for one in ranges if known else ():
            one.done = one.noted = min((known.done if known else {}).get(one.start, 0), one.end - one.start)
        notes = None
        if record:
            record_fd = stack.enter_context(
                _file(record, batch.data_fd, os.O_APPEND if known else os.O_TRUNC)
            )
            notes = _Notes(fd, record_fd, transfer, is_new=known is None)
        fetch = _Fetch(client, batch, transfer, tally, fd, notes, known.etag if known else "")
        try:
            fetch.all(ranges)
        except Exception as error:
            if failure_of(error)[0] is Failure.CHANGED:
                _forget(batch, part, record)
            elif notes is not None:  # what this life got counts for the next, whatever ended it
                with contextlib.suppress(OSError):
                    notes.note(ranges)
            raise
        os.ftruncate(fd, transfer.size)
    _name(batch, part, transfer.name, tally)
    _forget(batch, record)


class _Fetch:
    """The ranges of one object, each pinned to the version that the first answer showed."""

    def __init__(
        self,
        client: Any,
        batch: Batch,
        transfer: Transfer,
        tally: Tally,
        fd: int,
        notes: _Notes | None,
        etag: str,
    ) -> None:
        self._client = client
        self._batch = batch
        self._transfer = transfer
        self._tally = tally
        self._fd = fd
        self._notes = notes
        self._etag = etag  #: with its quotes; "": not known yet

    def all(self, ranges: list[_Range]) -> None:
        left = [one for one in ranges if one.done < one.end - one.start]
        if left and not self._etag:
            first = left.pop(0)
            self._range(first)  # alone: it tells the version that all others are pinned to
            if first.done == self._transfer.size:
                return  # the server knows no ranges, and all of it came
        side_by_side(left, self._batch.parts, self._range, self._tally)

    def _range(self, one: _Range) -> None:
        """Fetch a range; one that broke off is asked for again as long as each answer brings something."""
        while one.done < one.end - one.start:
            before = one.done
            try:
                self._ask(one)
            except (Cancelled, Changed):
                raise
            except Exception:
                if one.done == before:
                    raise

    def _ask(self, one: _Range) -> None:
        start = one.start + one.done
        gauge = Gauge(self._tally)
        self._tally.check()
        answer = self._client.get_object(
            Bucket=self._batch.remote.bucket,
            Key=self._transfer.key.decode(),
            Range=f"bytes={start}-{one.end - 1}",
            **({"IfMatch": self._etag} if self._etag and not self._etag.startswith("W/") else {}),
        )
        with contextlib.closing(answer["Body"]) as body:
            self._pin(answer)
            if "ContentRange" not in answer:
                if start or answer.get("ContentLength") != self._transfer.size:
                    raise Changed("the server sent the whole object where a part of it was asked for")
                one.end = self._transfer.size
            while data := body.read(self._tally.allowed(_BLOCK_BYTES)):
                data = data[: one.end - one.start - one.done]
                one.done += _write(self._fd, data, one.start + one.done)
                gauge.reach(one.start + one.done - start)
                if self._notes is not None and one.done - one.noted >= _DURABLE_BYTES:
                    self._notes.note([one])

    def _pin(self, answer: dict[str, Any]) -> None:
        """Make sure that this is a part of the version all other parts are of."""
        etag = str(answer.get("ETag", ""))
        total = _TOTAL.fullmatch(str(answer.get("ContentRange", "")))
        if total and int(total[1]) != self._transfer.size:
            raise Changed(f"it has {total[1]} bytes now, not {self._transfer.size}")
        if self._etag and etag and etag != self._etag:
            raise Changed("it was replaced while it was fetched")
        if etag and not self._etag:
            self._etag = etag
            if self._notes is not None:
                self._notes.begin(etag)


class _Notes:
    """The record of one unfinished file: lines of JSON, each true before it is written."""

    def __init__(self, data_fd: int, record_fd: int, transfer: Transfer, *, is_new: bool) -> None:
        self._data_fd = data_fd
        self._record_fd = record_fd
        self._transfer = transfer
        self._begun = not is_new
        self._lock = threading.Lock()

    def begin(self, etag: str) -> None:
        """Which version the parts are of."""
        with self._lock:
            if not self._begun:
                self._append({"etag": etag, "size": self._transfer.size, "range": PULL_RANGE_BYTES})
                self._begun = True

    def note(self, ranges: list[_Range]) -> None:
        """Make durable what is there of these ranges, and then say so."""
        with self._lock:
            done = {one.start: one.done for one in ranges if one.done > one.noted}
            if not (self._begun and done):
                return
            os.fdatasync(self._data_fd)
            self._append({"done": done})
            for one in ranges:
                one.noted = done.get(one.start, one.noted)

    def _append(self, line: dict[str, Any]) -> None:
        os.write(self._record_fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")
        os.fdatasync(self._record_fd)


@contextlib.contextmanager
def _file(name: str, data_fd: int, flags: int) -> Iterator[int]:
    fd = os.open(name, _CREATE | flags, 0o600, dir_fd=data_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _write(fd: int, data: bytes, position: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], position + written)
    return written


def _name(batch: Batch, temporary: str, name: str, tally: Tally) -> None:
    tally.check()
    os.rename(temporary, name, src_dir_fd=batch.data_fd, dst_dir_fd=batch.data_fd)


def _forget(batch: Batch, *names: str | None) -> None:
    for name in names:
        if name is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=batch.data_fd)
