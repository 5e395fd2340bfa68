"""Connections of the log API: how many, for how long, and who goes when there are too many.

uvicorn speaks HTTP; whom it may speak to, and until when, is decided here, because it lets a client take
any time for a TLS handshake or for the head of a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from s5jtd.api.guard import App
from s5jtd.api.limits import Limits, client_of
from s5jtd.api.refusal import bad_request

log = structlog.get_logger()

_SHUTDOWN_SECONDS = 2.0  # for a client to take our goodbye of TLS
_LINGER_SECONDS = 2.0  # for a client to send what it was about to, and then to read why that was in vain
_PAUSE_SECONDS = 0.2  # after the system had no descriptor for a client
#: What accept() says when the client, not we, is the reason.
_CLIENTS_OWN = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.EINTR}


class Visit:
    """One connection, from its first packet to its end."""

    def __init__(self, client: str, limits: Limits) -> None:
        """Begins with the handshake."""
        self.client = client
        self.since = time.monotonic()  #: of what it does now
        self.busy = False  #: a request of it is being answered
        self.ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.deadline = asyncio.timeout(limits.handshake_seconds)
        self._limits = limits

    def waiting(self) -> None:
        """From now on the time for a request counts: for all of its head, not for each byte."""
        self._begin(self._limits.wait_seconds, busy=False)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While this lasts, the time for an answer counts."""
        self._begin(self._limits.answer_seconds, busy=True)
        try:
            yield
        finally:
            self.waiting()

    def _begin(self, seconds: float, *, busy: bool) -> None:
        self.busy = busy
        self.since = time.monotonic()
        with contextlib.suppress(RuntimeError):  # its time was up already
            self.deadline.reschedule(asyncio.get_running_loop().time() + seconds)


class _Http(H11Protocol):
    """uvicorn's protocol, which says when it ends and refuses what is no HTTP in our own way."""

    _is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(high=64 * 1024)  # SSL's own would be half a megabyte
        super().connection_made(transport)
        self.app_state["visit"].waiting()

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.app_state["visit"].ended.set()

    def abort(self) -> None:
        """End at once, whatever was begun."""
        transport: asyncio.Transport | None = self.transport  # there is none before the handshake is done
        # Once it is lost, that of Python 3.11.2, which is Debian 12's, cannot be aborted.
        if transport is not None and not self.app_state["visit"].ended.is_set():
            transport.abort()

    def send_400_response(self, msg: str) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:  # not into the middle of an answer
            body = bad_request().body()
            head = (
                "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n"
                f"x-content-type-options: nosniff\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        # Who is still sending would not come to read it if we hung up now: RFC 9112, section 9.6.
        self._is_refused = True
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        if not self.app_state["visit"].ended.is_set():
            self.transport.close()


class Server:
    """Serves `app` over TLS on `listener`, until it is told to stop."""

    def __init__(self, app: App, listener: socket.socket, tls: ssl.SSLContext, limits: Limits) -> None:
        self._listener = listener
        self._tls = tls
        self._limits = limits
        # Half of what the system allows, because the daemon has to be asked as well.
        self._most = min(limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._visits: set[Visit] = set()
        self._state = ServerState()
        # Its complaints are about what clients send, and we say those ourselves.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._config = uvicorn.Config(
            app,
            http=_Http, ws="none", lifespan="off", interface="asgi3", workers=1,
            # It would believe X-Forwarded-For of whoever comes from this machine.
            proxy_headers=False,
            log_config=None, access_log=False, server_header=False, date_header=False,
            timeout_keep_alive=int(limits.wait_seconds) + 1, h11_max_incomplete_event_size=limits.head_bytes,
        )  # fmt: skip
        self._config.load()

    async def serve(self, stop: asyncio.Event) -> None:
        """Accept until `stop`; then end what is being answered, but not for long."""
        self._listener.setblocking(False)
        accepting = asyncio.create_task(self._accept_all())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({accepting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (accepting, stopping):
            task.cancel()
        self._listener.close()
        await self._end_visits()
        with contextlib.suppress(asyncio.CancelledError):
            await accepting  # a bug that ended it is not to be missed

    async def _accept_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)  # accepting does not wait while there is a queue, and others want to run
            try:
                sock, address = await loop.sock_accept(self._listener)
            except OSError as error:
                if error.errno not in _CLIENTS_OWN:
                    log.warning("api_out_of_resources", error=error.strerror)
                    self._evict_one()
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            if len(self._visits) >= self._most and not self._evict_one():
                sock.close()
                continue
            visit = Visit(client_of(address[0]), self._limits)
            self._visits.add(visit)
            visit.task = loop.create_task(self._welcome(visit, sock))

    def _evict_one(self) -> bool:
        """Hang up on whoever has been waited for longest, of the client who holds most connections.

        So one client's flood ends its own connections and not those of others.
        """
        held = Counter(visit.client for visit in self._visits)
        waiting = [visit for visit in self._visits if not visit.busy]
        if not waiting:
            return False
        victim = max(waiting, key=lambda visit: (held[visit.client], -visit.since))
        self._visits.discard(victim)
        if victim.task is not None:
            victim.task.cancel()
        return True

    async def _welcome(self, visit: Visit, sock: socket.socket) -> None:
        """One connection to its end; whatever goes wrong with it is its client's matter."""
        protocol = _Http(self._config, self._state, {"visit": visit})
        try:
            async with visit.deadline:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol, sock, ssl=self._tls, ssl_shutdown_timeout=_SHUTDOWN_SECONDS
                )
                await visit.ended.wait()
        except OSError as error:  # of TLS and of deadlines too
            log.debug("api_client_dropped", client=visit.client, error=str(error))
        finally:
            self._visits.discard(visit)
            protocol.abort()

    async def _end_visits(self) -> None:
        tasks = {visit.task for visit in self._visits if visit.busy and visit.task}
        for visit in self._visits:
            if not visit.busy and visit.task:
                visit.task.cancel()
        for protocol in set(self._state.connections):
            protocol.shutdown()
        if tasks:
            await asyncio.wait(tasks, timeout=self._limits.stop_seconds)
