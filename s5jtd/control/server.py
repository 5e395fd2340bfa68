"""The control socket: many clients, none of whom can hold up another, whatever they do or fail to do."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import structlog

from s5jtd import protocol
from s5jtd.control.answer import Answer, answer, line_of, overloaded, unreadable
from s5jtd.control.connection import Connection, Limits
from s5jtd.control.peer import caller
from s5jtd.control.presence import serving
from s5jtd.control.socketfile import SocketFile
from s5jtd.control.verbs import Verb
from s5jtd.errors import S5jtError
from s5jtd.shapes import Event, EventEnd

log = structlog.get_logger()

EndReason = Literal["complete", "stopping", "failed"]

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class ControlServer:
    """Listens on `path` and answers from `table`, one thread for each client."""

    def __init__(
        self,
        path: Path,
        table: Mapping[str, Verb],
        *,
        group: str = "s5jt",
        operators: str = "s5jt-operators",
        limits: Limits | None = None,
    ) -> None:
        """`group` may open the socket; `operators` may also change things."""
        self._table = table
        self._operators = operators
        self._limits = limits or Limits()
        self._file = SocketFile(path, group)
        self._accepting: threading.Thread | None = None
        self._stopping = threading.Event()
        self._changed = threading.Condition()  # guards what follows
        self._open: set[Connection] = set()
        self._subscribers = 0

    def start(self) -> None:
        """Return once clients can connect.

        Raises:
            Busy, ConfigError: the path cannot be ours; nothing was started.
        """
        listener = self._file.claim()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._accepting = threading.Thread(
            target=self._accept_all, args=(listener,), name="control", daemon=True
        )
        self._accepting.start()

    def stop(self) -> None:
        """Accept nobody else, let the answers under way be given, end.  Safe to call twice."""
        if self._accepting is None:
            return
        self._stopping.set()
        os.write(self._wake_write, b".")
        self._accepting.join()
        self._accepting = None
        self._file.release()
        self._end_connections()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def healthy(self) -> bool:
        """Whether new clients are still heard; False only after a bug ended the accepting thread."""
        return self._accepting is not None and self._accepting.is_alive()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # The accepting thread.

    def _accept_all(self, listener: socket.socket) -> None:
        try:
            while not self._stopping.is_set():
                poll = select.poll()  # not select(): the daemon may hold more than 1,024 descriptors
                poll.register(listener, select.POLLIN)
                poll.register(self._wake_read, select.POLLIN)
                if poll.poll(self._limits.tick_seconds * 1000):
                    self._accept(listener)
                elif self._file.missing():
                    listener = self._listen_again(listener)
        finally:
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:
            if error.errno not in _OUT_OF_RESOURCES:
                raise
            self._back_off(error)
            return
        try:
            self._welcome(sock)
        except (OSError, RuntimeError) as error:  # no thread to be had, or the client left at once
            sock.close()
            self._back_off(error)

    def _back_off(self, error: Exception) -> None:
        """Give back what an idle client holds and wait, instead of spinning on a full table."""
        log.warning("control_out_of_resources", error=str(error))
        with self._changed:
            self._evict_one()
        self._stopping.wait(self._limits.pause_seconds)

    def _welcome(self, sock: socket.socket) -> None:
        connection = Connection(sock, caller(sock, self._operators))
        with self._changed:
            room = len(self._open) < self._limits.connections or self._evict_one()
            if room:
                self._open.add(connection)
        if not room:
            self._turn_away(sock)
            return
        try:
            threading.Thread(
                target=self._serve, args=(connection,), name="control-client", daemon=True
            ).start()
        except RuntimeError:
            self._forget(connection)
            raise

    def _evict_one(self) -> bool:
        """Hang up on whoever has been silent longest; called with the lock held.

        Of the user who holds most, so that one user's flood does not evict the others.
        """
        held = Counter(connection.who.uid for connection in self._open)
        idle = [connection for connection in self._open if not connection.busy]
        if not idle:
            return False
        victim = max(idle, key=lambda connection: (held[connection.who.uid], -connection.quiet_since))
        self._open.remove(victim)
        victim.hang_up()
        return True

    def _turn_away(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.setblocking(False)
            sock.send(
                line_of(overloaded(f"Cannot serve more than {self._limits.connections} clients at once"))
            )

    def _listen_again(self, listener: socket.socket) -> socket.socket:
        """Somebody removed our socket file, and without it nobody could ever reach us again."""
        try:
            fresh = self._file.listen()
        except (OSError, S5jtError) as error:
            log.warning("control_socket_lost", error=str(error))
            return listener
        log.warning("control_socket_recreated")
        listener.close()
        return fresh

    # The thread of one client.

    def _serve(self, connection: Connection) -> None:
        try:
            for line in connection.lines(self._limits):
                if not self._begin(connection):
                    break
                with serving(connection.gone):
                    answered = answer(line, self._table, connection.who)
                self._respond(connection, answered)
                self._finish(connection)
        except protocol.Malformed as error:
            with contextlib.suppress(OSError):
                connection.send(line_of(unreadable(error)), self._limits)
        except OSError as error:  # gone, silent or too slow: theirs, and no news
            log.debug("client_dropped", uid=connection.who.uid, pid=connection.who.pid, error=str(error))
        except Exception:  # a bug met by one client must not be met by the others
            log.exception("client_failed")
        finally:
            self._forget(connection)

    def _begin(self, connection: Connection) -> bool:
        with self._changed:
            connection.busy = connection in self._open and not self._stopping.is_set()
            return connection.busy

    def _finish(self, connection: Connection) -> None:
        with self._changed:
            connection.busy = False
            connection.quiet_since = time.monotonic()

    def _forget(self, connection: Connection) -> None:
        with self._changed:
            self._open.discard(connection)
            self._changed.notify_all()
        connection.sock.close()

    def _respond(self, connection: Connection, answered: Answer) -> None:
        who = connection.who
        log.debug("request", method=answered.method, uid=who.uid, pid=who.pid)
        if answered.refused:
            log.warning("peer_refused", method=answered.method, uid=who.uid, gid=who.gid, pid=who.pid)
        if answered.events is not None:
            self._stream(connection, answered, answered.events)
        elif answered.reply is not None:
            connection.send(line_of(answered.reply), self._limits)

    def _stream(self, connection: Connection, answered: Answer, events: Iterator[Event | None]) -> None:
        """Send events on until they end, the client goes or we stop."""
        reply = answered.reply or {}
        with contextlib.ExitStack() as stack:
            if close := getattr(events, "close", None):
                stack.callback(close)
            if not stack.enter_context(self._subscription()):
                full = overloaded(f"Cannot serve more than {self._limits.subscribers} subscribers at once")
                connection.send(line_of(full | {"id": reply["id"]}), self._limits)
                return
            connection.send(line_of(reply), self._limits)
            if reason := self._relay(connection, events):
                connection.send(_notice(protocol.EVENT_END, EventEnd(reason=reason)), self._limits)

    def _relay(self, connection: Connection, events: Iterator[Event | None]) -> EndReason | None:
        """Why the events ended, or None where nobody is left to be told."""
        while not self._stopping.is_set():
            try:
                event = next(events)
            except StopIteration:
                return "complete"
            except Exception:  # as for every other verb: a bug in one ends nothing else
                log.exception("events_failed")
                return "failed"
            if event is not None:
                connection.send(_notice(protocol.EVENT, event), self._limits)
            elif connection.gone():
                return None
        return "stopping"

    @contextlib.contextmanager
    def _subscription(self) -> Iterator[bool]:
        """One of the places for subscribers, or False."""
        with self._changed:
            admitted = self._subscribers < self._limits.subscribers
            self._subscribers += admitted
        try:
            yield admitted
        finally:
            with self._changed:
                self._subscribers -= admitted

    def _end_connections(self) -> None:
        """Let what is being answered be answered, but not for long; the silent ones end at once."""
        with self._changed:
            for connection in self._open:
                connection.hang_up(socket.SHUT_RD if connection.busy else socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._open, self._limits.stop_seconds)
            for connection in self._open:
                connection.hang_up()


def _notice(method: str, params: Event | EventEnd) -> bytes:
    return line_of({"jsonrpc": "2.0", "method": method, "params": params})
