"""How much one client, and all together, may take of the log API.  Pure but for the clock it is given."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

#: Clients remembered at once; whoever was quiet longest is forgotten first.
CLIENTS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Limits:
    """What the API gives before it refuses."""

    connections: int = 256  #: then the one that has waited longest goes
    handshake_seconds: float = 10.0  #: from the first packet to a TLS session
    wait_seconds: float = 30.0  #: for the whole head of a request, or the next one
    answer_seconds: float = 120.0  #: to make an answer, and for the client to take it
    head_bytes: int = 32 * 1024  #: of a request, which a long `after` fills; there is never a body
    requests_per_second: float = 50.0  #: of one client
    requests_at_once: int = 200
    wrong_tokens_per_second: float = 0.2  #: of one client
    wrong_tokens_at_once: int = 10
    stop_seconds: float = 5.0  #: to end what is being answered


class Buckets:
    """A bucket of tokens for each client, all of one size and one refill."""

    def __init__(self, per_second: float, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        """A client nobody knows has a full one."""
        self._per_second = per_second
        self._full = float(at_once)
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # level, and when that was

    def wait_seconds(self, client: str) -> int:
        """How long until `client` may take one; 0: now."""
        level = self._level(client)
        return 0 if level >= 1 else math.ceil((1 - level) / self._per_second)

    def take(self, client: str) -> None:
        """Take one, or what is left of it."""
        level = max(0.0, self._level(client) - 1)
        self._levels[client] = (level, self._clock())
        self._levels.move_to_end(client)
        if len(self._levels) > CLIENTS_MAX:
            self._levels.popitem(last=False)

    def _level(self, client: str) -> float:
        level, at = self._levels.get(client, (self._full, 0.0))
        return min(self._full, level + (self._clock() - at) * self._per_second)


def client_of(address: str) -> str:
    """Whom an address belongs to: of IPv6 the network, because its users have all of it."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{IPv6Address(int(found) >> 64 << 64)}/64"
