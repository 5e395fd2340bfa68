"""Strikes the daemon at each durable system call in turn: killed, without power, or told of an error.

The Nth call is that of the whole family, threads and s5cmd together, so that N = 1, 2, ... until a run has
no further one meets every moment at which anything becomes durable.  After each strike the ledger and the
volumes are read as after a power cut (see `powercut`), a daemon is started again, and in the end both
buckets are compared.  A case may have several strikes: the second one hits the recovery from the first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from s5jtctl.client import Failure
from tests.autopsy import claims, refuted, unsealed
from tests.filesystems import need_mounts
from tests.nursery import KILL, Life, Nursery, why_not_watched
from tests.powercut import GONE_SECONDS_MAX, ONCE, Site, site, when_free
from tests.servers import Server

CUT = "CUT"  #: Killed before the call, and everything not synced is lost.
FATES = (CUT, KILL, "EIO", "ENOSPC")
#: A run may take so long to come to its end after an error, which it tries again by itself.
PATIENCE_SECONDS = 180.0

OBJECTS = {f"{ONCE}a": b"", f"{ONCE}b": b"b" * 5000, f"{ONCE}c": b"c" * 300_000}


class Strike(NamedTuple):
    """What happens at which durable call."""

    at: int
    fate: str
    on: str = ""  #: counting only the calls with this pattern in their description


@dataclass
class Case:
    """What one case came to."""

    strikes: tuple[Strike, ...]
    struck: list[str] = field(default_factory=list)  #: the calls that met their fate
    faults: list[str] = field(default_factory=list)

    @property
    def told(self) -> str:
        """One line for a report."""
        met = "; ".join(
            f"{strike.fate} at {call}" for strike, call in zip(self.strikes, self.struck, strict=False)
        )
        return f"{met or self.strikes}: {'; '.join(self.faults) or 'held'}"


def why_not() -> str | None:
    """Why no case can run here; None where they can."""
    return why_not_watched()


def run_case(
    folder: Path, source: Server, destination: Server, nursery: Nursery, strikes: Sequence[Strike], **job: Any
) -> Case:
    """A fresh appliance with a tiny job, struck in its first lives and then left in peace."""
    need_mounts("ext4")
    case = Case(tuple(strikes))
    kinds = {"ledger": "ext4", "volume-1": "ext4"}
    with site(folder, source, destination, nursery, kinds, scan_every="1h", **job) as struck:
        source.fill(struck.here, {key.encode(): body for key, body in OBJECTS.items()})
        committed: set[str] = set()
        for strike in strikes:
            life = struck.start(at=strike.at, fate=KILL if strike.fate == CUT else strike.fate, on=strike.on)
            case.faults += _live(struck, life)
            case.faults += _judge_end(struck, life, strike)
            if life.ended is None or life.ended.struck is None:
                break
            case.struck.append(life.ended.struck)
            if strike.fate == CUT:
                _cut(struck)
            case.faults += _inspect(struck, committed)
        case.faults += _settle(struck, committed)
    return case


def sweep(
    folder: Path,
    source: Server,
    destination: Server,
    nursery: Nursery,
    fate: str,
    *,
    first: int = 1,
    stride: int = 1,
    until_monotonic: float = float("inf"),
) -> Iterator[Case]:
    """Cases with one strike each, at every `stride`th call, until a run has no such call."""
    at = first
    while time.monotonic() < until_monotonic:
        case = run_case(folder / f"{fate}-{at}", source, destination, nursery, [Strike(at, fate)])
        if not case.struck and not case.faults:
            return
        yield case
        at += stride


def _live(struck: Site, life: Life) -> list[str]:
    """Until it is struck dead, ends by itself, or has done all there is to do and was asked to end."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while life.poll() is None:
        if time.monotonic() > deadline:
            told = f"it came to no end: {struck.appliance.log()[-2000:]}"
            life.kill()
            life.wait(GONE_SECONDS_MAX)
            return [told]
        with contextlib.suppress(Failure):
            if _is_done(struck):
                struck.appliance.stop()
        time.sleep(0.03)
    return []


def _is_done(struck: Site) -> bool:
    (job,) = struck.appliance.status()["jobs"]
    return job["objects"]["delivered"] == len(OBJECTS) and not struck.left_behind()


def _judge_end(struck: Site, life: Life, strike: Strike) -> list[str]:
    """An error of a volume ends nothing but the work on this volume; no error ends without a word."""
    ended = life.ended
    if ended is None or ended.struck is None or strike.fate in (CUT, KILL):
        return []
    crashed = [record["worker"] for record in struck.appliance.events("worker_crashed")]
    if "volume-1" in ended.struck and (ended.exit_code or crashed):
        return [f"an error of a volume ended the daemon: {ended.exit_code}, {crashed}"]
    if ended.exit_code < 0:
        return [f"it died of signal {-ended.exit_code}"]
    return []


def _cut(struck: Site) -> None:
    for system in struck.systems.values():
        system.cut_power()
    for system in struck.systems.values():
        when_free(partial(system.unmount, lazily=False))
        system.mount()


def _inspect(struck: Site, committed: set[str]) -> list[str]:
    """What ledger and volumes say while nobody lives; `committed` grows by the deliveries known."""
    ledger = struck.ledger()
    counted_on = claims(ledger.rows, struck.mounted, float("inf"))
    faults = [*ledger.faults, *filter(None, map(refuted, counted_on))]
    faults += filter(None, map(unsealed, counted_on))
    faults += [f"{key} travelled twice" for key in struck.new_puts() if key in committed]
    delivered = {key for key, _ in ledger.delivered}
    faults += [f"the delivery of {key} was forgotten" for key in committed - delivered]
    committed |= delivered
    return faults


def _settle(struck: Site, committed: set[str]) -> list[str]:
    life = struck.start()
    faults = _live(struck, life)
    if life.returncode != 0:
        faults.append(f"in peace it ended with {life.returncode}: {struck.appliance.log()[-2000:]}")
    faults += _inspect(struck, committed)
    if faults:
        return faults
    return [*struck.left_behind(), *struck.differences()]
