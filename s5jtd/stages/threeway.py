"""Source, destination and ledger side by side, in key order and in flat memory: one ordered merge.

A listing that breaks off goes on behind its last key, and is waited for while there is hope.  Without
hope the merge ends there: of what comes after the last key nothing is known, so nothing is said.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from s5jtd.errors import EndpointDown, S5jtError
from s5jtd.ledger.rearm import Known
from s5jtd.ledger.spool import Spool
from s5jtd.model import Listed, Side
from s5jtd.s3.listing import list_objects
from s5jtd.stages.inquiry import just_before
from s5jtd.stages.job import Link

#: A listing that fails for so long without showing anything new has broken off; one that ran for hours
#: before is worth more patience: a tenth of its time.
PATIENCE_SECONDS = 8.0
PAUSE_SECONDS = 1.0


class Triple(NamedTuple):
    """One key, as the source, the destination and the ledger show it."""

    key: bytes  #: the source's
    source: Listed | None
    destination: Listed | None  #: under the source's key
    row: Known | None


class BrokeOff(Exception):
    """A side could not be listed to its end."""

    def __init__(self, side: Side, error: S5jtError) -> None:
        super().__init__(str(error))
        self.side = side
        self.error = error


class Unsorted(Exception):
    """A side lists in no order, so that it cannot be merged as it comes."""

    def __init__(self, side: Side) -> None:
        super().__init__(side)
        self.side = side


class Stopped(Exception):
    """The daemon is about to end."""


class Pulse:
    """A sign of life with each piece of work, and the end of it where that is wanted."""

    def __init__(self, beat: Callable[[], None], stop: threading.Event) -> None:
        """`beat` is the worker's."""
        self._beat = beat
        self._stop = stop

    def __call__(self) -> None:
        """Go on, or raise Stopped."""
        self._beat()
        if self._stop.is_set():
            raise Stopped

    def rest(self, seconds: float) -> None:
        """Wait, unless Stopped."""
        self()
        self._stop.wait(seconds)
        self()


def merged(
    sources: Iterator[Listed], destinations: Iterator[Listed], rows: Iterator[Known]
) -> Iterator[Triple]:
    """Each key that any of the three knows, once, in order.

    What one of them raises comes after all keys up to the last one it gave, and before any other.
    """
    source, destination, row = next(sources, None), next(destinations, None), next(rows, None)
    while heads := [one.key for one in (source, destination, row) if one is not None]:
        key = min(heads)
        at_source = source is not None and source.key == key
        at_destination = destination is not None and destination.key == key
        in_ledger = row is not None and row.key == key
        yield Triple(
            key,
            source if at_source else None,
            destination if at_destination else None,
            row if in_ledger else None,
        )
        if at_source:
            source = next(sources, None)
        if at_destination:
            destination = next(destinations, None)
        if in_ledger:
            row = next(rows, None)


def in_order(link: Link, prefix: bytes, pulse: Pulse, *, spooled: bool) -> Iterator[Listed]:
    """A side's objects in key order; `spooled`: by way of the disk, because it lists in no order.

    Raises:
        BrokeOff: there may be more.
        Unsorted: and not `spooled`.
        Stopped: see `Pulse`.
    """
    try:
        yield from (_by_disk if spooled else _as_it_comes)(link, prefix, pulse)
    except S5jtError as error:
        raise BrokeOff(link.side, error) from error


def _as_it_comes(link: Link, prefix: bytes, pulse: Pulse) -> Iterator[Listed]:
    last = b""
    began = time.monotonic()
    failing_since: float | None = None
    while True:
        try:
            with link.endpoints.lease() as endpoint:
                for page in list_objects(
                    endpoint.client, prefix, start_after=_behind(last), version=link.list_version
                ):
                    pulse()
                    if not page.sorted:
                        raise Unsorted(link.side)
                    for one in page.objects:
                        if one.key > last:
                            yield one
                    if page.objects:
                        last = max(last, page.objects[-1].key)
                    failing_since = None
            return
        except EndpointDown:
            failing_since = failing_since or time.monotonic()
            patience_seconds = max(PATIENCE_SECONDS, (failing_since - began) / 10)
            if time.monotonic() - failing_since > patience_seconds:
                raise
        pulse.rest(PAUSE_SECONDS)


def _by_disk(link: Link, prefix: bytes, pulse: Pulse) -> Iterator[Listed]:
    """All of it first: there is no telling where to go on, so a listing that breaks off is lost."""
    with Spool() as spool:
        with link.endpoints.lease() as endpoint:
            for page in list_objects(endpoint.client, prefix, version=link.list_version):
                pulse()
                spool.add(page.objects)
        for one in spool.ordered():
            pulse()
            yield one


def _behind(key: bytes) -> bytes:
    """Where to go on; servers were seen to break over control characters there."""
    return key if all(byte >= 0x20 and byte != 0x7F for byte in key) else just_before(key)
