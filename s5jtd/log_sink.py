"""Writes log records from a thread of its own, so that no other thread ever waits for a log.

A pipe nobody reads, a journal that does not answer or a full disk block or fail the writing thread only.
Meanwhile records queue up to a bound; beyond it they are dropped and counted, and once the log moves
again it says how many are missing.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TextIO

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
QUEUE_RECORDS_MAX: Final = 10_000
#: Below the usual socket buffer of 208 KiB, so that one datagram always fits.
DATAGRAM_BYTES_MAX: Final = 150_000
SEND_TIMEOUT_SECONDS: Final = 5.0


class Sink(Protocol):
    """Where records end."""

    def write(self, record: bytes) -> None:
        """Write one whole record; may take long, may raise OSError."""

    def close(self) -> None:
        """Let go of what it holds."""


class StreamSink:
    """A terminal, a file or a pipe; past Python's buffers, which would keep what a full disk refused."""

    def __init__(self, stream: TextIO) -> None:
        self._fd = descriptor(stream)
        self._torn = False

    def write(self, record: bytes) -> None:
        rest = memoryview(b"\n" + record if self._torn else record)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
            self._torn = True  # until its end is written
        self._torn = False

    def close(self) -> None:
        """Leave the stream to whoever opened it."""


class JournalSink:
    """The journal's own socket, which keeps fields apart; one datagram per record."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(SEND_TIMEOUT_SECONDS)

    def reachable(self) -> bool:
        """Whether somebody listens there."""
        try:
            self._socket.connect(self._path)
        except OSError:
            self.close()
            return False
        return True

    def write(self, record: bytes) -> None:
        try:
            self._socket.send(record)
        except ConnectionError:  # the journal was restarted: its socket is a new one
            self._socket.connect(self._path)
            self._socket.send(record)

    def close(self) -> None:
        self._socket.close()


class Writer:
    """Takes records from any thread without ever waiting, and writes them one after the other."""

    def __init__(self, sink: Sink, *, on_dropped: Callable[[int], None]) -> None:
        self._sink = sink
        self._on_dropped = on_dropped
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_RECORDS_MAX)
        self._lock = threading.Lock()
        self._dropped_unsaid = 0
        self.dropped_total = 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, record: bytes) -> None:
        """Queue `record`, or count it as dropped."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._count_dropped()

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Write what is queued, but give up after the timeout: a stuck log must not hold up an exit."""
        atexit.unregister(self.close)
        until = time.monotonic() + timeout_seconds
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=timeout_seconds)
        self._thread.join(max(0.0, until - time.monotonic()))

    def _write_all(self) -> None:
        closing = False
        while not (closing and self._queue.empty()):
            record = self._queue.get()
            if record is None:
                closing = True
                continue
            try:
                self._sink.write(record)
            except OSError:
                self._count_dropped()
            else:
                self._say_dropped()
        self._sink.close()

    def _count_dropped(self) -> None:
        with self._lock:
            self.dropped_total += 1
            self._dropped_unsaid += 1

    def _say_dropped(self) -> None:
        if self._queue.qsize() > QUEUE_RECORDS_MAX // 2:
            return  # what says so would itself find no room
        with self._lock:
            count, self._dropped_unsaid = self._dropped_unsaid, 0
        if count:
            self._on_dropped(count)


def journal_datagram(fields: Mapping[str, str]) -> bytes:
    """Return `fields` in the journal's native protocol; a field that does not fit is left out."""
    datagram = bytearray()
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            field = name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            field = name.encode() + b"=" + data + b"\n"
        if len(datagram) + len(field) <= DATAGRAM_BYTES_MAX:
            datagram += field
    return bytes(datagram)


def descriptor(stream: TextIO) -> int:
    """Return where `stream` leads; one that lives in memory only gives way to the real stderr."""
    try:
        return stream.fileno()
    except OSError:
        return 2


def device_and_inode(stream: TextIO) -> str:
    """Return what systemd writes into JOURNAL_STREAM where a stream leads to the journal."""
    status = os.fstat(descriptor(stream))
    return f"{status.st_dev}:{status.st_ino}"
