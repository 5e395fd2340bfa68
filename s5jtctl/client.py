"""Asks the daemon: one connection, one line out, one line in."""

from __future__ import annotations

import os
import socket
import struct
import time

from s5jtd import protocol
from s5jtd.protocol import Exit

TYPE_CHECKING = False
if TYPE_CHECKING:  # somebody waits for what is loaded
    from collections.abc import Iterator, Mapping
    from typing import Any

_RECV_BYTES = 256 * 1024
_LOOK = "look at: systemctl status s5jtd"


class Failure(Exception):
    """What went wrong, what to do next, and what to exit with."""

    def __init__(self, what: str, hint: str, exit_code: int, code: str) -> None:
        super().__init__(what)
        self.hint = hint
        self.exit_code = exit_code
        self.code = code  #: the daemon's word for it, or ours


class Daemon:
    """The daemon behind one socket path; connects when first asked something."""

    def __init__(self, path: str, timeout_seconds: float | None) -> None:
        """A timeout of None waits as long as the daemon lives."""
        self._path = path
        self._timeout_seconds = timeout_seconds
        self._socket: socket.socket | None = None
        self._received = b""
        self._last_id = 0

    def ask(self, method: str, params: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the result.

        Raises:
            Failure: there is none, for whatever reason.
        """
        deadline = None if self._timeout_seconds is None else time.monotonic() + self._timeout_seconds
        try:
            connection = self._connected()
            self._last_id += 1
            request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": dict(params or {})}
            self._send(connection, protocol.encode(request))
            return _result(self._message(connection, deadline))
        except Failure:
            self.close()  # whatever may still come belongs to no question
            raise

    def events(self, params: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """Yield events until the daemon has no more to say.

        Raises:
            Failure: the events ended because something went wrong.
        """
        self.ask(protocol.Method.EVENT_SUBSCRIBE, params)
        connection = self._connected()
        while True:
            message = self._message(connection, None)
            if message.get("method") == protocol.EVENT:
                yield message["params"]
            elif message.get("method") == protocol.EVENT_END:
                reason = message["params"]["reason"]
                if reason == "complete":
                    return
                raise Failure(f"the events ended: the daemon is {reason}", _LOOK, Exit.TEMPORARY, reason)

    def close(self) -> None:
        """Forget the connection; the next question makes a new one."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._received = b""

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket = _connect(self._path, self._timeout_seconds)
        return self._socket

    def _send(self, connection: socket.socket, line: bytes) -> None:
        try:
            connection.settimeout(self._timeout_seconds)
            connection.sendall(line)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may have said why before it hung up; reading will tell
        except TimeoutError:
            raise _too_slow(self._timeout_seconds) from None

    def _message(self, connection: socket.socket, deadline: float | None) -> dict[str, Any]:
        while b"\n" not in self._received:
            if len(self._received) > protocol.LINE_BYTES_MAX:
                raise _unclear("a line longer than 1 MiB")
            piece = self._receive(connection, deadline)
            if not piece:
                raise Failure(
                    "the daemon closed the connection", f"try again; {_LOOK}", Exit.TEMPORARY, "closed"
                )
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = protocol.decode(line)
        except protocol.Malformed as error:
            raise _unclear(str(error)) from None
        if not isinstance(message, dict):
            raise _unclear("not an object")
        return message

    def _receive(self, connection: socket.socket, deadline: float | None) -> bytes:
        try:
            connection.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
            return connection.recv(_RECV_BYTES)
        except TimeoutError:
            raise _too_slow(self._timeout_seconds) from None
        except ConnectionResetError:
            return b""


def _connect(path: str, timeout_seconds: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The kernel's own timeout, because with Python's a full backlog is an error at once.
        seconds = 0.0 if timeout_seconds is None else timeout_seconds
        interval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise _no_connection(path, error) from None
    return connection


def _no_connection(path: str, error: OSError) -> Failure:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            return Failure(
                f"the daemon is not running: nothing listens on {path}",
                "systemctl status s5jtd", Exit.NOT_RUNNING, "not_running",
            )  # fmt: skip
        case PermissionError():
            return Failure(
                f"not permitted to open {path} as uid {os.getuid()}",
                f"use sudo, or as root: usermod -aG s5jt {_my_name()}, then log in again",
                Exit.NOT_PERMITTED, "not_permitted",
            )  # fmt: skip
        case BlockingIOError():
            return Failure(
                "the daemon accepts no connections", f"try again; {_LOOK}", Exit.TEMPORARY, "overloaded"
            )
    # "AF_UNIX path too long" has no errno, and a path through a file is not ours to explain.
    return Failure(
        f"cannot connect to {path}: {error.strerror or error}",
        "give another path with --socket or $S5JTD_SOCKET", Exit.USAGE, "socket_unusable",
    )  # fmt: skip


def _my_name() -> str:
    """What `usermod` calls us."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return "NAME"


def _too_slow(seconds: float | None) -> Failure:
    return Failure(
        f"the daemon did not answer within {seconds:g} seconds",
        "try again with a longer --timeout; look at: journalctl -u s5jtd -n 50",
        Exit.TEMPORARY, "timeout",
    )  # fmt: skip


def _unclear(why: str) -> Failure:
    return Failure(
        f"the daemon's answer cannot be understood: {why}",
        "see that both are of one version: s5jtctl version", Exit.FAILED, "protocol",
    )  # fmt: skip


def _result(message: Mapping[str, Any]) -> dict[str, Any]:
    error = message.get("error")
    if error is None:
        result = message.get("result")
        if isinstance(result, dict):
            return result
        raise _unclear("neither a result nor an error")
    try:
        data = error["data"]
        failure = Failure(
            str(error["message"]), str(data["hint"]), int(data.get("exit", Exit.FAILED)), str(data["code"])
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _unclear("an error without its code") from None
    raise failure
