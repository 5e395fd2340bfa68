"""The relay's sockets to servers: they leave from where they should, and take in no more than they may."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Final

from s5jtd import bind
from s5jtd.link.asked import Refused
from s5jtd.link.budget import Budget
from s5jtd.model import Direction

CONNECT_SECONDS: Final = 15.0
#: Of a limited pull: what the kernel takes from the line before anybody drew for it, in seconds of the
#: rate for all connections together, besides what is on a long way anyhow.  It keeps twice what it is told.
_AHEAD_SECONDS: Final = 0.15
_ROUND_TRIPS: Final = 1.5
#: A connection that begins reckons with so many others that begin with it; after a second they are counted.
_CONNECTIONS_MIN: Final = 64
_RECEIVE_BYTES: Final = (2 * 1024, 4 << 20)
#: Where `struct tcp_info` of <linux/tcp.h> has the smoothed round trip, in microseconds.
_RTT_AT: Final = 68
_HOSTS_MAX: Final = 1_000
_UNSENT_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Route:
    """Where what comes in at one port goes."""

    target: tuple[str, int] | None  #: None: whoever connects says it, as to a proxy
    word: bytes  #: what must come with that
    bind: str | None
    direction: Direction
    budget: Budget
    passed: Counter[Direction]  #: bytes handed on in the direction that counts
    open: Counter[Direction]  #: connections under way, of all routes
    round_trips: dict[str, float]  #: seconds, as last seen, by host; of all routes
    refused: list[str]  #: why connections were not to be had


async def reach(target: tuple[str, int], route: Route) -> socket.socket:
    """A connection to `target`, from where the route leaves.

    Raises:
        Refused: there is none to be had.
    """
    loop = asyncio.get_running_loop()
    error: OSError = OSError()
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            found = await loop.getaddrinfo(*target, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, address in found:
                if not bind.fits(family, route.bind):
                    continue
                server = socket.socket(family, kind, protocol)
                try:
                    server.setblocking(False)
                    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    # What lies in the kernel unsent has neither passed nor been kept from passing.
                    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
                    leave_from(server, route, str(address[0]))
                    await loop.sock_connect(server, address)
                except OSError as failed:
                    server.close()
                    error = failed
                except BaseException:
                    server.close()
                    raise
                else:
                    return server
    except TimeoutError:
        raise Refused("504 Gateway Timeout") from None
    except OSError as failed:
        error = failed
    # What asyncio says in place of the plain reason names the address, which whoever asked knows.
    number = error.errno or 0
    plain = os.strerror(number) if number > 0 else error.strerror
    raise Refused(f"502 {plain or 'Bad Gateway'}") from error


def _ahead(route: Route, connections: int, round_trip: float) -> int:
    """Bytes that the kernel may take in of one of so many connections: little more than the limit has for it.

    What it takes in has travelled, whoever draws for it later; but it must be enough for the round trip.
    """
    least, most = _RECEIVE_BYTES
    rate = route.budget.rate
    seconds = _AHEAD_SECONDS + _ROUND_TRIPS * round_trip
    ahead = most if rate is None else int(rate * seconds / max(1, connections))
    return min(max(ahead, least), most)


def _let_in(server: socket.socket, size: int) -> None:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    # A buffer that grows again lets in no more by itself: the window stays below what it once began with.
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, size)


def let_in_more(server: socket.socket, route: Route, connections: int, round_trip: float) -> None:
    """Where there is more for a connection now, let it have it; it is never taken back.

    A server sends pieces of up to half the largest window it was ever shown.  Into a smaller one they fit no
    more, and what is left goes when a timer comes to it: such a connection got half of its share.
    """
    ahead = _ahead(route, connections, round_trip)
    if ahead > server.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP):
        _let_in(server, ahead)


def round_trip_of(server: socket.socket, route: Route) -> float:
    info = server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
    seconds = int.from_bytes(info[_RTT_AT:], sys.byteorder) / 1e6
    if len(route.round_trips) >= _HOSTS_MAX:  # a large service has many addresses, and shows others each year
        route.round_trips.clear()
    route.round_trips[server.getpeername()[0]] = seconds
    return seconds


def leave_from(server: socket.socket, route: Route, host: str) -> None:
    if route.direction is Direction.PULL and route.budget.rate is not None:
        # How far its window can ever grow is settled now, so the length of the way counts already.
        connections = max(_CONNECTIONS_MIN, route.open[route.direction])
        _let_in(server, _ahead(route, connections, route.round_trips.get(host, 0.0)))
    bind.leave_from(server, route.bind)
