"""One client of the control socket: its lines, its deadlines, its end."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from s5jtd import protocol
from s5jtd.control.peer import Caller

_RECV_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, and all together, may take."""

    connections: int = 64
    subscribers: int = 16  #: of them, who hold a connection for as long as they like
    idle_seconds: float = 300.0  #: without a request; long, because the idle are the first to go anyway
    line_seconds: float = 30.0  #: from the first byte of a request to its newline
    send_seconds: float = 10.0  #: to take a whole answer
    tick_seconds: float = 2.0  #: between two looks at whether our socket file is still there
    pause_seconds: float = 0.2  #: after the system had no descriptor or thread for a client
    stop_seconds: float = 3.0  #: to end what is being answered


class Connection:
    """One client."""

    def __init__(self, sock: socket.socket, who: Caller) -> None:
        self.sock = sock
        self.who = who
        self.busy = False  #: a request of theirs is being answered; guarded by the server's lock
        self.quiet_since = time.monotonic()
        self._received = b""
        self._at = 0  # where in it the next line begins

    def lines(self, limits: Limits) -> Iterator[bytes]:
        """Each request line without its newline; what comes before an end of the stream is one too.

        Raises:
            TimeoutError: silent or slow for too long.
            Malformed: a line beyond the limit; what follows it cannot be found any more.
        """
        while True:
            line = self._line(limits)
            if line is None:
                return
            if line.strip():
                yield line

    def _line(self, limits: Limits) -> bytes | None:
        pieces: list[bytes] = []
        size_bytes = 0
        deadline = time.monotonic() + limits.idle_seconds
        while True:
            end = self._received.find(b"\n", self._at)
            piece = self._received[self._at : end if end >= 0 else None]
            size_bytes += len(piece)
            if size_bytes > protocol.LINE_BYTES_MAX:
                raise protocol.Malformed(f"the line is longer than {protocol.LINE_BYTES_MAX} bytes")
            if end >= 0:
                self._at = end + 1
                return b"".join([*pieces, piece])
            if piece and not pieces:
                deadline = time.monotonic() + limits.line_seconds
            if piece:
                pieces.append(piece)
            self._received, self._at = self._receive(deadline), 0
            if not self._received:
                return b"".join(pieces) or None

    def _receive(self, deadline: float) -> bytes:
        left_seconds = deadline - time.monotonic()
        if left_seconds <= 0:
            raise TimeoutError("no whole request line in time")
        self.sock.settimeout(left_seconds)
        return self.sock.recv(_RECV_BYTES)

    def send(self, line: bytes, limits: Limits) -> None:
        """Send all of it in `send_seconds` altogether (what `sendall` makes of a timeout), or raise."""
        self.sock.settimeout(limits.send_seconds)
        self.sock.sendall(line)

    def gone(self) -> bool:
        """Whether the client has closed; one that has only ended its own half still listens."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return any(event & (select.POLLHUP | select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))

    def hang_up(self, how: int = socket.SHUT_RDWR) -> None:
        """Wake the thread that serves this client, with an end of the stream."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(how)
