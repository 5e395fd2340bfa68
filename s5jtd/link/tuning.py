"""How much to ask of a link at a time: begun by its latency, then by what more of it brought.

One lane is one direction of one job.  A distant server needs more requests in flight for the same rate, so
a lane begins with a number that grows with latency.  From there it doubles while that pays, goes back
where it does not, and halves where requests fail: on a thin line more at a time only means more that
breaks at once.  Where a run has fewer objects than that, each travels in more pieces.  All of it stays
between bounds.  Decisions are pure functions over frozen values; `Tuner` holds the values and a lock.
What this machine has memory for is not the link's matter: `headroom` takes that off at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeGuard

import structlog

from s5jtd.link.budget import Rate
from s5jtd.link.headroom import Headroom
from s5jtd.model import Direction

log = structlog.get_logger(__name__)

#: Objects at a time in one run, where the configuration leaves it to us: least, usual, most.
WORKERS_MIN: Final = 4
WORKERS_USUAL: Final = 16
WORKERS_MAX: Final = 128
#: Ranges or parts of one object at a time: usual, and most, where there are fewer objects than workers.
PARTS_USUAL: Final = 4
PARTS_MAX: Final = 16
#: Parts of one upload that can go on later: few, as each that is under way when the line breaks goes again.
#: To afar as many as of any other, for two connections would carry next to nothing.
_UPLOAD_PARTS_NEAR: Final = 2
#: What one GET brings: least, where the way is long and the objects are few, and most.  Less than a MiB
#: would wait for its answer as long as it travels.
RANGE_BYTES: Final = (1 << 20, 16 << 20)
#: What goes up from near in one PUT goes to afar in parts of this size, where it is alone or in small
#: company and larger than that.  As most uploaders cut it, so that others can tell what its ETag was made of.
FAR_PART_BYTES: Final = 8 << 20
FAR_WHOLE_BYTES: Final = 16 << 20
#: Up to this latency the usual number fills a line; above it grows in proportion.
_NEAR_MS: Final = 50.0
#: What an object costs besides its bytes, as so many bytes: small ones are bound by round trips.
_OBJECT_BYTES: Final = 256 * 1024
#: Bytes per second that a limit should leave for each connection.
_WORKER_RATE_MIN: Final = 64 * 1024
#: More at a time must bring so much more, or it was noise.
_PAYS: Final = 1.1
#: After a try that did not pay, so many good runs until the next.
_RUNS_BETWEEN_TRIES: Final = 20
#: What travels together should take so long at most, at the pace of the last runs: until then nothing of
#: it is settled, and a power cut may cost that much; of a push less, which finds what is there already.
PORTION_SECONDS: Final = {Direction.PULL: 120.0, Direction.PUSH: 600.0}
#: Why a chunk is as large as it is where nothing else says so.
CONFIGURED: Final = "configured: chunk"
#: A run that was over sooner tells more of starting than of the link.
_TELLING_SECONDS: Final = 1.0
_PACE_WEIGHT: Final = 0.5  # of the newest run


class Bounds(NamedTuple):
    """What a number is chosen between; where both are the same, nothing is chosen."""

    least: int
    most: int

    def hold(self, number: int) -> int:
        """The number, or the bound that it would pass."""
        return min(max(number, self.least), self.most)


class Allowed(NamedTuple):
    """What the configuration leaves to be chosen."""

    workers: Bounds = Bounds(WORKERS_MIN, WORKERS_MAX)
    parts: Bounds = Bounds(1, PARTS_MAX)


#: All of it.
ANY: Final = Allowed()


class Lane(NamedTuple):
    """What shares one number."""

    job_id: int
    direction: Direction


@dataclass(frozen=True, slots=True)
class Choice:
    """How much one run takes on at a time, and why."""

    workers: int  #: objects
    parts: int  #: ranges or parts of one object
    why: str
    divisor: int = 1  #: what memory left of it, see `headroom`
    range_bytes: int = RANGE_BYTES[1]  #: what one GET brings at most
    upload_parts: int = _UPLOAD_PARTS_NEAR  #: of an object whose upload can go on later
    #: In parts of so many bytes, and why, go larger ones than `FAR_WHOLE_BYTES` that would go up in one PUT.
    cut_bytes: int | None = None
    cut_why: str = ""


@dataclass(frozen=True, slots=True)
class Portion:
    """How much travels together at most, and why."""

    bytes: int
    objects: int
    why: str


class Least(NamedTuple):
    """Less at a time would cost more in starting than it saves."""

    bytes: int
    objects: int


LEAST: Final = Least(16 << 20, 64)


@dataclass(frozen=True, slots=True)
class Trial:
    """How a run went that was given a choice."""

    objects: int  #: that came through
    moved_bytes: int
    seconds: float
    trouble: bool  #: the endpoint failed, refused or stalled
    killed: bool = False  #: as the kernel does when memory is short

    @property
    def pace(self) -> float:
        """Work per second; runs of large and of small objects compare by it."""
        return (self.moved_bytes + self.objects * _OBJECT_BYTES) / max(self.seconds, 0.001)


@dataclass(frozen=True, slots=True)
class Level:
    """What is known of a lane."""

    workers: int
    why: str
    pace: float = 0.0  #: the best seen with half as many; 0: not tried yet
    rests: int = 0  #: good runs until more is tried


def first_level(latency_ms: float | None, bounds: Bounds = ANY.workers) -> Level:
    """Where a lane begins: the further away, the more at a time."""
    if not _is_far(latency_ms):
        return Level(WORKERS_USUAL, "usual")
    workers = min(round(WORKERS_USUAL * latency_ms / _NEAR_MS), max(WORKERS_MAX, bounds.most))
    return Level(workers, f"latency of {latency_ms:.0f} ms")


def bounded(level: Level, bounds: Bounds) -> Level:
    """The level as far as the configuration allows it."""
    if bounds.least == bounds.most:
        return Level(bounds.least, "configured: limits.workers")
    if level.workers > bounds.most:
        return Level(bounds.most, f"limits.workers allows {bounds.most}")
    if level.workers < bounds.least:
        return Level(bounds.least, f"limits.workers asks for {bounds.least}")
    return level


def next_level(level: Level, trial: Trial, bounds: Bounds = ANY.workers) -> Level:
    """What a run taught: half after trouble, double while that pays, back where it did not."""
    workers = level.workers
    if trial.trouble:
        return Level(max(workers // 2, bounds.least), "halved after failures of the endpoint", rests=3)
    if trial.objects < 2 * workers:
        return level  # too few to tell anything
    if level.rests:
        return replace(level, rests=level.rests - 1)
    if level.pace and trial.pace < level.pace * _PAYS:
        why = f"{workers} at a time brought no more"
        return Level(max(workers // 2, bounds.least), why, rests=_RUNS_BETWEEN_TRIES)
    if workers >= bounds.most:
        return replace(level, pace=0.0, rests=_RUNS_BETWEEN_TRIES)
    why = f"more pays: {workers} at a time brought more than half as many" if level.pace else "trying more"
    return Level(min(workers * 2, bounds.most), why, pace=trial.pace)


def within_rate(level: Level, rate: Rate, bounds: Bounds = ANY.workers) -> Level:
    """As many as a limit has bytes for; a connection that gets next to nothing is one that servers drop."""
    if rate is None:
        return level
    most = max(int(rate / _WORKER_RATE_MIN), bounds.least)
    if level.workers <= most:
        return level
    return Level(most, f"the limit feeds {most}")


def range_bytes(workers: int, busy: int, size_bytes: int, latency_ms: float | None) -> int:
    """What one GET should bring at most: from afar less where `busy` objects are fewer than `workers`.

    A connection to a distant server carries only so much in each round trip, whatever the line has.
    """
    least, most = RANGE_BYTES
    if busy >= workers or not _is_far(latency_ms):
        return most
    return min(max(size_bytes // workers, least), most)


def portion(paces: Mapping[Direction, float], most: Portion, least: Least = LEAST) -> Portion:
    """What a run at these paces (see `Trial.pace`) is through with in time: the slower direction decides."""
    found = most
    for direction, pace in paces.items():
        work = pace * PORTION_SECONDS[direction]
        size = max(int(work), least.bytes)
        count = max(int(work / _OBJECT_BYTES), least.objects)
        if size < found.bytes or count < found.objects:
            why = f"a {direction} is through with it in {PORTION_SECONDS[direction] / 60:.0f} minutes"
            found = Portion(min(size, found.bytes), min(count, found.objects), why)
    return found


class Tuner:
    """The levels of all lanes.  Threads may share it."""

    def __init__(
        self,
        allowed: Callable[[], Allowed] = lambda: ANY,
        rate: Callable[[Direction], Rate] = lambda _direction: None,
    ) -> None:
        """`allowed` tells what the configuration says now.

        `rate` tells which limit holds: a line that is held back must not be spread too thin.
        """
        self._allowed = allowed
        self._rate = rate
        self.headroom = Headroom()
        self._lock = threading.Lock()
        self._levels: dict[Lane, Level] = {}
        self._paces: dict[Lane, float] = {}
        self._newest: dict[Lane, Choice] = {}

    @property
    def allowed(self) -> Allowed:
        """Between what is chosen now."""
        return self._allowed()

    def choose(
        self,
        lane: Lane,
        latency_ms: float | None,
        objects: int,
        size_bytes: int | None = None,
        *,
        to_cut: int = 0,
    ) -> Choice:
        """For a run of so many objects, together of so many bytes where that is known.

        `to_cut`: so many of them are uploads that may go in parts although they need not.
        """
        choice = self._choose(lane, latency_ms, objects, size_bytes)
        is_long = choice.divisor == 1 and choice.parts > 1 and _is_far(latency_ms)
        # It costs ETags like the source's, and so is not done for less than twice the connections.
        if is_long and 0 < to_cut <= choice.workers // 2:
            why = f"{to_cut} in one PUT each do not fill a way of {latency_ms:.0f} ms"
            choice = replace(choice, cut_bytes=FAR_PART_BYTES, cut_why=why)
        with self._lock:
            self._newest[lane] = choice
        return choice

    def _choose(
        self, lane: Lane, latency_ms: float | None, objects: int, size_bytes: int | None = None
    ) -> Choice:
        allowed, rate = self._allowed(), self._rate(lane.direction)
        level = self._levels.get(lane)
        if level is None:
            with self._lock:
                level = self._levels.setdefault(lane, first_level(latency_ms, allowed.workers))
        level = within_rate(bounded(level, allowed.workers), rate, allowed.workers)
        busy = max(1, min(objects, level.workers))
        parts = allowed.parts.hold(max(PARTS_USUAL * level.workers // busy, PARTS_USUAL))
        if rate is not None:
            parts = max(allowed.parts.least, min(parts, int(rate / _WORKER_RATE_MIN) // busy))
        upload_parts = parts if _is_far(latency_ms) else min(parts, _UPLOAD_PARTS_NEAR)
        in_one = RANGE_BYTES[1]
        if size_bytes is not None:
            in_one = range_bytes(level.workers, busy, size_bytes, latency_ms)
        divisor = self.headroom.divisor
        if divisor == 1:
            return Choice(level.workers, parts, level.why, range_bytes=in_one, upload_parts=upload_parts)
        workers = max(1, busy // divisor)
        why = f"memory is short: one in {divisor} of {busy}"
        return Choice(workers, max(1, parts // divisor), why, divisor)

    def learn(self, lane: Lane, choice: Choice, trial: Trial) -> None:
        """Say how a run went; one that was given another number than holds now teaches nothing of that."""
        self.headroom.ran(choice.divisor, killed=trial.killed, moved=trial.objects > 0)
        if trial.killed:
            return
        bounds = self._allowed().workers
        with self._lock:
            if trial.objects and not trial.trouble and trial.seconds >= _TELLING_SECONDS:
                known = self._paces.get(lane, trial.pace)
                self._paces[lane] = known + _PACE_WEIGHT * (trial.pace - known)
            if lane not in self._levels:
                return
            old = bounded(self._levels[lane], bounds)
            if old.workers != choice.workers or bounds.least == bounds.most:
                return
            new = self._levels[lane] = next_level(old, trial, bounds)
        if new.workers != old.workers:
            log.info(
                "concurrency_changed", direction=lane.direction.value, workers=new.workers,
                before=old.workers, reason=new.why,
            )  # fmt: skip

    def wide(self, lane: Lane, latency_ms: float | None) -> int:
        """How many objects should travel together so that a far line is full; 0 where it is near."""
        if not _is_far(latency_ms):
            return 0
        allowed, rate = self._allowed().workers, self._rate(lane.direction)
        with self._lock:
            level = self._levels.get(lane) or first_level(latency_ms, allowed)
        return within_rate(bounded(level, allowed), rate, allowed).workers

    def portion(self, job_id: int, most: Portion, least: Least = LEAST) -> Portion:
        """How much a job's chunk should hold now, `most` at most."""
        with self._lock:
            paces = {
                lane.direction: pace for lane, pace in self._paces.items() if lane.job_id == job_id
            }  # fmt: skip
        return portion(paces, most, least)

    def shown(self, lane: Lane) -> Choice | None:
        """What the next run of many objects gets; None before the first."""
        if lane not in self._levels:
            return None
        newest = self._newest[lane]
        shown = self._choose(lane, None, self._allowed().workers.most)
        return replace(shown, cut_bytes=newest.cut_bytes, cut_why=newest.cut_why)


def _is_far(latency_ms: float | None) -> TypeGuard[float]:
    """Whether the usual number would leave a line half empty."""
    return latency_ms is not None and latency_ms > _NEAR_MS
