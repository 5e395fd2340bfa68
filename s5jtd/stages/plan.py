"""plan: choose what travels together, and on which volume; seen -> pulling."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import structlog

from s5jtd.errors import LostRace, VolumeError
from s5jtd.ledger.rows import Item
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.unfinished import Unfinished
from s5jtd.link.tuning import Lane, Portion, Tuner
from s5jtd.model import Direction
from s5jtd.pool import Pool
from s5jtd.stages import spread
from s5jtd.stages.budget import Budget
from s5jtd.stages.job import Job
from s5jtd.stages.resuming import lasting
from s5jtd.units import format_bytes
from s5jtd.volumes import space
from s5jtd.volumes.volume import Volume
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

#: Chunks that wait for a puller, per volume: one is enough to keep it from waiting.
AHEAD = 2
#: A small backlog is cut finer than `chunk` allows, so that every puller and both halves have work;
#: but not below this, where starting a process would cost more than it brings.
CHUNK_BYTES_MIN = 64 * 1024 * 1024
CHUNK_OBJECTS_MIN = 250


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a chunk may be."""

    objects: int
    bytes: int


#: The same as far as nobody configured another.
FINEST = Limits(CHUNK_OBJECTS_MIN, CHUNK_BYTES_MIN)


def limits(portion: Portion, backlog: Limits, lanes: int, least: Limits = FINEST, wide: int = 0) -> Limits:
    """What the link is through with in time, cut finer where the backlog is small.

    `wide` is how many objects must be sent together for the line to be full: each goes in one PUT, as it was
    put at the source, so nothing but their number fills a long way.
    """
    wide_bytes = wide * backlog.bytes // max(1, backlog.objects)
    return Limits(
        objects=min(portion.objects, max(least.objects, wide, backlog.objects // lanes)),
        bytes=min(portion.bytes, max(least.bytes, wide_bytes, backlog.bytes // lanes)),
    )


def place(
    candidates: Iterable[Item],
    limit: Limits,
    usable_bytes: int,
    allowed_bytes: int | None = None,
    alone: Collection[int] = (),
) -> list[Item]:
    """The objects of the next chunk: in order, as far as limits and space allow.

    One that does not fit is passed over and not waited for: a huge object must not hold back the
    small ones behind it.  An object above the limit travels alone, and so do
    those whose ids are in `alone`, which may have to wait half way.  One that failed before travels
    in ever smaller company, so that what brings a batch down is soon found alone.
    """
    chosen: list[Item] = []
    size = used = 0
    company = limit.objects
    for item in candidates:
        company = min(company, max(1, limit.objects >> (2 * item.attempts)))
        if len(chosen) >= company:
            break
        fits = used + space.footprint(item.size) <= usable_bytes
        fits = fits and (allowed_bytes is None or size + item.size <= allowed_bytes)
        is_loner = item.id in alone
        if not fits or (chosen and (is_loner or size + item.size > limit.bytes)):
            continue
        chosen.append(item)
        size += item.size
        used += space.footprint(item.size)
        if is_loner or size >= limit.bytes:
            break
    return chosen


class Plan:
    """The one planner: gives every volume that takes pulls a chunk or two to go on with."""

    name = "plan"
    idle_seconds = 1.0
    quiet_seconds_max = 120.0

    def __init__(
        self,
        jobs: Callable[[], Sequence[Job]],
        ledger: Ledger,
        pool: Pool,
        bell: Bell,
        budget: Budget,
        tuner: Tuner,
        unfinished: Unfinished,
    ) -> None:
        """`jobs` tells which jobs there are now, `budget` what they may still take up."""
        self._unfinished = unfinished
        self._tuner = tuner
        self._jobs = jobs
        self._budget = budget
        self._ledger = ledger
        self._pool = pool
        self._bell = bell
        self._turn = 0

    def step(self, beat: Callable[[], None]) -> bool:
        """Plan one chunk for each volume that lacks one, and that the others would not have done sooner."""
        planned = False
        volumes = self._lanes()
        for at in spread.order([lane for _, lane in volumes]):
            beat()
            volume, lane = volumes[at]
            others = [other for which, (_, other) in enumerate(volumes) if which != at]
            if self._ledger.views.planned(volume.ledger_id) < AHEAD and self._plan_on(volume, lane, others):
                queued = self._ledger.views.queued_bytes(volume.ledger_id)
                volumes[at] = volume, replace(lane, queued_bytes=queued)
                planned = True
        if not planned:
            planned = self._hand_over(volumes)
        if planned:
            self._bell.ring()
        return planned

    def _lanes(self) -> list[tuple[Volume, spread.Lane]]:
        """The volumes that take pulls, with what is to be weighed of each."""
        known = []
        for volume in self._pool.taking_pulls():
            try:
                usable = self._pool.usable_bytes(volume)
            except VolumeError as error:
                self._pool.fail(volume, error)
                continue
            queued = self._ledger.views.queued_bytes(volume.ledger_id)
            known.append((volume, (usable, queued, volume.pace.bytes_per_second, volume.pace.ceiling)))
        weighed = spread.lanes([numbers for _, numbers in known])
        return [(volume, lane) for (volume, _), lane in zip(known, weighed, strict=True)]

    def _hand_over(self, volumes: Sequence[tuple[Volume, spread.Lane]]) -> bool:
        """What waits on a slow volume goes back where the others would be through with it sooner."""
        jobs = [job for job in self._jobs() if self._may_pull(job)]
        backlog = sum(self._ledger.views.counters(job.id)[1][State.SEEN.word] for job in jobs)
        for at, (volume, lane) in enumerate(volumes):
            others = [other for which, (_, other) in enumerate(volumes) if which != at]
            if self._ledger.views.planned(volume.ledger_id) and not spread.is_worth(
                lane, others, 0, lane.queued_bytes + backlog
            ):
                self._pool.take_back(volume)
                return True
        return False

    def _plan_on(self, volume: Volume, lane: spread.Lane, others: Sequence[spread.Lane]) -> bool:
        jobs = [job for job in self._jobs() if self._may_pull(job)]
        for offset in range(len(jobs)):
            job = jobs[(self._turn + offset) % len(jobs)]
            if self._plan_chunk(job, volume, lane, others):
                self._turn += 1
                return True
        return False

    def _may_pull(self, job: Job) -> bool:
        paused = self._ledger.views.pauses(job.id).pull_until_ms is not None
        staged = job.config.mode == "staged"
        return staged and not paused and job.source.endpoints.available()

    def _plan_chunk(self, job: Job, volume: Volume, lane: spread.Lane, others: Sequence[spread.Lane]) -> bool:
        objects, sizes = self._ledger.views.counters(job.id)
        word = State.SEEN.word
        if not objects[word]:
            job.held = None
            return False
        chunk, backlog = job.config.chunk, Limits(objects[word], sizes[word])
        least = Limits(chunk.min_objects or FINEST.objects, chunk.min_bytes or FINEST.bytes)
        ways = (endpoint.way_ms for endpoint in job.destination.endpoints.all())
        way_ms = min((ms for ms in ways if ms is not None), default=None)
        wide = self._tuner.wide(Lane(job.id, Direction.PUSH), way_ms)
        limit = limits(job.portion(self._tuner), backlog, 4 * (1 + len(others)), least, wide)
        if wide or way_ms is None:  # little at first would leave a long way empty, slower than any disk
            lane = replace(lane, is_known=True)
        size = spread.share_bytes(lane, [lane, *others], limit.bytes, min(limit.bytes, least.bytes))
        limit = replace(limit, bytes=size)
        if not spread.is_worth(lane, others, min(size, sizes[word]), sizes[word]):
            return False
        candidates = self._ledger.views.candidates(job.id, limit.objects, job.config.order)
        try:
            if self._park_giants(job, candidates):
                return True
            allowed, name = self._budget.allowance(job)
            alone = lasting(self._unfinished, job, candidates, Direction.PULL)
            chosen = place(candidates, limit, lane.usable_bytes, allowed, alone)
            job.held = self._budget.held(candidates, allowed, name)
            if not chosen:
                if candidates and job.held is None:
                    job.held = _no_room(volume, lane.usable_bytes, candidates)
                return False
            reserved = sum(space.footprint(item.size) for item in chosen)
            self._ledger.plan(job.id, volume.ledger_id, chosen, reserved)
        except LostRace:
            # The scanner admitted another version of one of them meanwhile: choose again.
            log.debug("plan_overtaken", job=job.name)
        return True

    def held(self, job: Job) -> str | None:
        """Which limit keeps all that a job could take up now from travelling, if one does."""
        candidates = self._ledger.views.candidates(job.id, job.config.chunk.objects, job.config.order)
        return self._budget.held(candidates, *self._budget.allowance(job))

    def _park_giants(self, job: Job, candidates: Sequence[Item]) -> bool:
        """Objects that no limit lets through, or no volume could hold even when empty, can only be parked."""
        banned, hint = self._budget.banned(candidates)
        if banned:
            self._ledger.park(job.id, banned, "above_limit", hint)
            return True
        largest = self._pool.largest_bytes()
        giants = [item for item in candidates if space.footprint(item.size) > largest]
        if giants and largest:
            self._ledger.park(
                job.id, giants, "too_large", "no volume can hold it: attach a larger one, then retry"
            )
        return bool(giants and largest)


def _no_room(volume: Volume, usable_bytes: int, candidates: Sequence[Item]) -> str:
    needed = min(space.footprint(item.size) for item in candidates)
    return (
        f"volume {volume.name} has room for {format_bytes(usable_bytes)} until more is pushed,"
        f" and what comes next needs {format_bytes(needed)}"
    )
