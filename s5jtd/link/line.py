"""The two directions of a link: which limits hold, who set them, and the way for those who move bytes.

A limit is one budget per direction, shared by all jobs, processes and engines.  An engine inside this
process takes from `budget` before it moves bytes.  A process outside cannot be asked to, and is led by
`open` through a relay of ours that takes for it; with no limit and no `bind` it goes straight out.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import structlog

from s5jtd.link.budget import Budget, Rate
from s5jtd.link.relay import Relay, Way
from s5jtd.link.timetable import next_change, rate_at
from s5jtd.model import Direction
from s5jtd.units import TimetableEntry

log = structlog.get_logger(__name__)

Timetable = Sequence[TimetableEntry]
#: What an operator says: a rate in bytes per second, no limit, or whatever the configuration says.
Order = int | Literal["unlimited", "configured"]

_FILE: Final = "bandwidth.json"


@dataclass(frozen=True, slots=True)
class Limit:
    """What holds in one direction now."""

    direction: Direction
    rate: Rate
    by_operator: bool
    next_change: float | None  #: Unix time; by the timetable


class Line:
    """The limits of this machine's link.  Threads may share it."""

    def __init__(
        self, folder: Path, timetables: Mapping[Direction, Timetable], wall: Callable[[], float] = time.time
    ) -> None:
        """`folder` keeps what an operator orders, so that it outlives a restart."""
        self._path = folder / _FILE
        self._wall = wall
        self._lock = threading.Lock()
        self._timetables = dict(timetables)
        self._orders: dict[Direction, Rate] = self._read()
        self._known: dict[Direction, tuple[int, Rate]] = {}
        self._budgets = {
            Direction.PULL: Budget(lambda: self.rate(Direction.PULL)),
            Direction.PUSH: Budget(lambda: self.rate(Direction.PUSH)),
        }
        self._relay = Relay()

    def configure(self, timetables: Mapping[Direction, Timetable]) -> None:
        """Other timetables hold from now on."""
        with self._lock:
            self._timetables = dict(timetables)
            self._known.clear()

    def order(self, direction: Direction | None, order: Order) -> None:
        """An operator's word, for one direction or both; it holds until it is taken back.

        Raises:
            OSError: it could not be kept, and nothing changed.
        """
        with self._lock:
            orders = dict(self._orders)
            for one in Direction if direction is None else (direction,):
                if order == "configured":
                    orders.pop(one, None)
                else:
                    orders[one] = None if order == "unlimited" else float(order)
            self._write(orders)
            self._orders = orders
            self._known.clear()

    def rate(self, direction: Direction) -> Rate:
        """What holds now, in bytes per second; None: no limit; 0: nothing may move."""
        second = int(self._wall())
        with self._lock:
            known = self._known.get(direction)
            if known is None or known[0] != second:
                known = second, self._rate(direction, second)
                self._known[direction] = known
            return known[1]

    def stopped(self, direction: Direction) -> bool:
        """Whether nothing may move that way now."""
        return self.rate(direction) == 0

    def budget(self, direction: Direction) -> Budget:
        """What an engine inside this process takes from, before it moves bytes."""
        return self._budgets[direction]

    def spend(self, direction: Direction, moved: int) -> float:
        """Count what the daemon's own requests moved; after how many seconds the next should come."""
        return self._budgets[direction].charge(moved)

    def limits(self) -> list[Limit]:
        """What holds in each direction."""
        now = self._wall()
        with self._lock:
            return [
                Limit(
                    one,
                    self._rate(one, now),
                    one in self._orders,
                    None if one in self._orders else next_change(self._timetables.get(one, ()), now),
                )
                for one in Direction
            ]

    @contextmanager
    def open(
        self, direction: Direction, endpoint_url: str | None, *, proxy: str | None, bind: str | None
    ) -> Iterator[Way]:
        """The way of one process to its endpoint while the block runs.

        Raises:
            OSError: there is no port or thread left for it.
        """
        if bind is None and not self._may_be_limited(direction):
            yield Way(endpoint_url, proxy, None, lambda: self.rate(direction) is None)
            return
        budget = self._budgets[direction]
        with self._relay.open(
            endpoint_url, proxy=proxy, bind=bind, direction=direction, budget=budget
        ) as way:
            yield way._replace(holds=lambda: not self.stopped(direction))

    def close(self) -> None:
        """End the relay and all that goes through it."""
        self._relay.close()

    def _may_be_limited(self, direction: Direction) -> bool:
        """Whether a limit holds or will by the clock: a run on the way around it would have to be ended."""
        with self._lock:
            if direction in self._orders:
                return self._orders[direction] is not None
            return any(e.bytes_per_second is not None for e in self._timetables.get(direction, ()))

    def _rate(self, direction: Direction, now: float) -> Rate:
        if direction in self._orders:
            return self._orders[direction]
        return rate_at(self._timetables.get(direction, ()), now)

    def _read(self) -> dict[Direction, Rate]:
        """What was ordered before; a file that cannot be read orders nothing, and says so."""
        try:
            found = json.loads(self._path.read_bytes())
            return {
                Direction(name): None if rate is None else max(1.0, float(rate))
                for name, rate in found.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning("bandwidth_order_lost", path=str(self._path), error=str(error))
            return {}

    def _write(self, orders: Mapping[Direction, Rate]) -> None:
        if not orders:
            self._path.unlink(missing_ok=True)
            return
        temporary = self._path.with_suffix(".new")
        with temporary.open("w") as file:
            file.write(json.dumps({str(one): rate for one, rate in orders.items()}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
