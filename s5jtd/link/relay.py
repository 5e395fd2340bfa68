"""The way out of a program that has no option for it: through a relay of ours, within a budget, from a bind.

s5cmd knows neither a rate nor a source address, but it knows proxies and ports, so that it needs no root:

- an endpoint elsewhere is reached through us as an HTTP proxy: CONNECT for https, whose bytes we hand on
  unread, and whole URLs for http, whose request lines become what a server expects;
- an endpoint on this machine is one that Go's library never asks a proxy for: it gets another port there;
- where the side has a proxy itself, what was meant for it is handed on to it, unread.

It listens on the loopback interface, for one process at a time on each port, and as a proxy it serves only
whoever knows the word that this process was given in its environment.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import secrets
import socket
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from s5jtd.link.asked import Refused, check_word, first_line, for_a_server, host_and_port
from s5jtd.link.budget import Budget
from s5jtd.link.reach import CONNECT_SECONDS, Route, let_in_more, reach, round_trip_of
from s5jtd.model import Direction

_PIECE_BYTES: Final = 64 * 1024
_HEAD_BYTES_MAX: Final = 64 * 1024
_CLOSE_SECONDS: Final = 5.0
_RECKON_SECONDS: Final = 1.0  # until it is reckoned anew what a connection may have
_PORTS: Final = {"http": 80, "https": 443}


class Way(NamedTuple):
    """What a process is told, to take this way."""

    endpoint_url: str | None
    proxy: str | None
    passed: Callable[[], int] | None  #: bytes that went by so far in its direction
    holds: Callable[[], bool]  #: False: another limit holds that this way cannot keep; end and begin anew
    refused: Callable[[], str] = lambda: ""  #: why the last connection was not to be had, if one was not


class Relay:
    """A thread with the ports that are open; it begins with the first one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._open: Counter[Direction] = Counter()  # touched by its thread alone
        self._round_trips: dict[str, float] = {}
        self._turns: dict[Budget, asyncio.Lock] = {}

    @contextlib.contextmanager
    def open(
        self,
        endpoint_url: str | None,
        *,
        proxy: str | None,
        bind: str | None,
        direction: Direction,
        budget: Budget,
    ) -> Iterator[Way]:
        """A way to one endpoint while the block runs; then it is closed, and what goes through it ends.

        Raises:
            OSError: there is no port or thread left for it.
        """
        word = secrets.token_hex(16)
        here = _address_here(endpoint_url)
        if here is not None:
            assert endpoint_url is not None  # noqa: S101  for the type checker
            parts = urlsplit(endpoint_url)
            target, host = (here, parts.port or _PORTS[parts.scheme]), here
        elif proxy is not None:
            parts = urlsplit(proxy)
            target, host = (parts.hostname or "", parts.port or 80), "127.0.0.1"
        else:
            parts, target, host = None, None, "127.0.0.1"
        route = Route(
            target, base64.b64encode(f"s5jtd:{word}".encode()), bind, direction, budget,
            Counter(), self._open, self._round_trips, [],
        )  # fmt: skip
        listener = socket.create_server((host, 0), family=_family(host), backlog=512)
        listener.setblocking(False)
        port = listener.getsockname()[1]
        loop = self._running()
        served: list[asyncio.Task[None]] = []

        def begin() -> None:
            task = loop.create_task(self._listen(listener, route))
            task.add_done_callback(lambda _task: listener.close())  # also where it never came to run
            served.append(task)

        loop.call_soon_threadsafe(begin)

        url, proxy = endpoint_url, f"http://s5jtd:{word}@127.0.0.1:{port}"
        if here is not None and parts is not None:
            url, proxy = f"{parts.scheme}://{_in_url(parts.hostname or '')}:{port}", None
        elif parts is not None:
            user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
            proxy = f"http://{user}127.0.0.1:{port}"
        passed, refused = route.passed, route.refused
        try:
            yield Way(url, proxy, lambda: passed[direction], _always, lambda: refused[-1] if refused else "")
        finally:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: [task.cancel() for task in served])

    def close(self) -> None:
        """End the thread and all that goes through it."""
        with self._lock:
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_CLOSE_SECONDS)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="relay", daemon=True)
                self._thread.start()
            return self._loop

    async def _listen(self, listener: socket.socket, route: Route) -> None:
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        try:
            while True:
                # Accepted between two waits: `sock_accept` loses who came in the moment of a cancellation.
                await _readable(listener)
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError:  # no descriptor is free, or whoever came has gone
                    await asyncio.sleep(0.1)
                    continue
                task = loop.create_task(self._serve(client, route))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                # One that is ended before it began never comes to close it.
                task.add_done_callback(lambda _, client=client: client.close())  # type: ignore[misc]
        finally:
            for task in tasks:
                task.cancel()

    async def _serve(self, client: socket.socket, route: Route) -> None:
        """One connection, to its end; whatever breaks on either side ends both."""
        with client:
            client.setblocking(False)
            self._open[route.direction] += 1
            try:
                if route.target is not None:
                    with await reach(route.target, route) as server:
                        await self._both(client, server, route)
                else:
                    await self._as_proxy(client, route)
            except Refused as refused:
                route.refused[:] = [refused.status.partition(" ")[2]]
                with contextlib.suppress(OSError):
                    await _say(client, refused.status)
            except OSError:
                pass
            finally:
                self._open[route.direction] -= 1

    async def _as_proxy(self, client: socket.socket, route: Route) -> None:
        reader = _Reader(client)
        head = await reader.head()
        if head is None:
            return
        method, target, _ = first_line(head)
        check_word(head, route.word)
        if method == b"CONNECT":
            with await reach(host_and_port(target, 443), route) as server:
                await _say(client, "200 Connection established")
                await self._both(client, server, route, reader.rest)
            return
        parts = urlsplit(target.decode("latin-1"))
        if parts.scheme != "http" or not parts.hostname:
            raise Refused("400 Bad Request")
        with await reach((parts.hostname, parts.port or 80), route) as server:
            answers = asyncio.ensure_future(
                self._pump(server, client, self._drawn(route, Direction.PULL), route, closes=True)
            )
            try:
                await self._requests(reader, head, server, self._drawn(route, Direction.PUSH), route)
            finally:
                try:
                    if reader.ended:  # who asks no more may still be listening
                        with contextlib.suppress(OSError):
                            server.shutdown(socket.SHUT_WR)
                        await asyncio.wait([answers], timeout=CONNECT_SECONDS)
                finally:  # also where the way is closed in that time: the sockets go next
                    answers.cancel()
                    await asyncio.gather(answers, return_exceptions=True)

    async def _requests(
        self, reader: _Reader, head: bytes | None, server: socket.socket, budget: Budget | None, route: Route
    ) -> None:
        """Hand on one request after the other, each with the line a server expects, and its body."""
        loop = asyncio.get_running_loop()
        while head is not None:
            length, rewritten = for_a_server(head)
            await loop.sock_sendall(server, rewritten)
            while length:
                granted = await self._granted(budget, min(length, _PIECE_BYTES))
                piece = await reader.some(granted)
                if budget is not None:
                    budget.give_back(granted - len(piece))
                if not piece:
                    return
                length -= len(piece)
                await loop.sock_sendall(server, piece)
                if budget is not None:
                    route.passed[route.direction] += len(piece)
            head = await reader.head()

    async def _both(
        self, client: socket.socket, server: socket.socket, route: Route, first: bytes = b""
    ) -> None:
        if first:
            await asyncio.get_running_loop().sock_sendall(server, first)
        await _together(
            self._pump(client, server, self._drawn(route, Direction.PUSH), route),
            self._pump(server, client, self._drawn(route, Direction.PULL), route),
        )

    def _drawn(self, route: Route, flow: Direction) -> Budget | None:
        """Only what a run is there to move is drawn for: requests and answers are small."""
        return route.budget if flow is route.direction else None

    async def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        budget: Budget | None,
        route: Route,
        *,
        closes: bool = False,
    ) -> None:
        """Hand on until the end of the stream, which is handed on too."""
        loop = asyncio.get_running_loop()
        reckon_at = loop.time() + _RECKON_SECONDS
        while True:
            if budget is None:
                piece = await loop.sock_recv(source, _PIECE_BYTES)
            else:
                await _readable(source)  # who draws and then waits keeps others from moving
                if route.direction is Direction.PULL and loop.time() >= reckon_at:
                    reckon_at = loop.time() + _RECKON_SECONDS
                    let_in_more(source, route, route.open[route.direction], round_trip_of(source, route))
                granted = await self._granted(budget, _PIECE_BYTES)
                piece = await loop.sock_recv(source, granted)
                budget.give_back(granted - len(piece))
            if not piece:
                with contextlib.suppress(OSError):
                    target.shutdown(socket.SHUT_RDWR if closes else socket.SHUT_WR)
                return
            await loop.sock_sendall(target, piece)
            if budget is not None:
                route.passed[route.direction] += len(piece)

    async def _granted(self, budget: Budget | None, wanted: int) -> int:
        """Wait in line, first come, first served."""
        if budget is None:
            return wanted
        async with self._turns.setdefault(budget, asyncio.Lock()):
            while True:
                granted, seconds = budget.draw(wanted)
                if granted:
                    return granted
                await asyncio.sleep(seconds)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """The thread's body: until it is stopped, and then until everything has let go of its sockets."""
    loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


class _Reader:
    """What a client sends, cut into heads and bodies."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self.rest = b""
        self.ended = False

    async def head(self) -> bytes | None:
        """A request's head with the empty line at its end; None where the client is done."""
        while b"\r\n\r\n" not in self.rest:
            if len(self.rest) > _HEAD_BYTES_MAX:
                raise Refused("431 Request Header Fields Too Large")
            piece = await asyncio.get_running_loop().sock_recv(self._client, _PIECE_BYTES)
            if not piece:
                self.ended = True
                return None
            self.rest += piece
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    async def some(self, most: int) -> bytes:
        """Up to `most` bytes; none at the end."""
        if not self.rest:
            piece = await asyncio.get_running_loop().sock_recv(self._client, most)
            self.ended = not piece
            return piece
        piece, self.rest = self.rest[:most], self.rest[most:]
        return piece


async def _readable(source: socket.socket) -> None:
    """Wait until something is there, or the end."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(source.fileno(), _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(source.fileno())


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _together(*pumps: Coroutine[None, None, None]) -> None:
    """Run both to their ends; where one breaks the other ends too, before their sockets are closed."""
    tasks = [asyncio.ensure_future(pump) for pump in pumps]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _say(client: socket.socket, status: str) -> None:
    more = "" if status.startswith("200") else "Content-Length: 0\r\nConnection: close\r\n"
    if status.startswith("407"):
        more += 'Proxy-Authenticate: Basic realm="s5jtd"\r\n'
    await asyncio.get_running_loop().sock_sendall(client, f"HTTP/1.1 {status}\r\n{more}\r\n".encode())


def _address_here(endpoint_url: str | None) -> str | None:
    """The loopback address that an endpoint is at, where Go's library takes it for one; else None."""
    host = urlsplit(endpoint_url).hostname if endpoint_url else None
    if host == "localhost":
        return "127.0.0.1"
    try:
        return host if host and ipaddress.ip_address(host).is_loopback else None
    except ValueError:
        return None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _always() -> bool:
    return True
