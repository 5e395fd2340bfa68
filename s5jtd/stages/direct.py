"""direct: from bucket to bucket without a volume; seen -> delivered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

import structlog

from s5jtd.engine.choice import Engines
from s5jtd.engine.contract import End, Failure, TransferFailed
from s5jtd.errors import EndpointDown, EndpointError, LostRace, ObjectError
from s5jtd.integrity.evidence import same_object
from s5jtd.integrity.hashing import Wanted
from s5jtd.ledger.direct import DirectBook
from s5jtd.ledger.rows import Delivered, Item, Returned, Staged
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.unfinished import Unfinished
from s5jtd.link.tuning import Lane, Tuner
from s5jtd.meter import Meter
from s5jtd.model import Digests, Direction, Listed
from s5jtd.s3.endpoints import Endpoint
from s5jtd.stages.budget import Budget
from s5jtd.stages.check import DESTINATION_MISMATCH, SOURCE_MISMATCH, DeliveredCheck, StagedCheck, refused
from s5jtd.stages.copying import copied, may_copy, settled_copy
from s5jtd.stages.failures import BLAMELESS, FAILURE_CODES, said_nothing, tell_mismatches, trouble
from s5jtd.stages.inquiry import holdings
from s5jtd.stages.job import Job
from s5jtd.stages.resuming import is_large
from s5jtd.stages.streaming import Ends, Memory, Stopped, stream
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

Settled = Delivered | Returned
#: What is claimed, asked for and settled together: so much is asked for again after a crash.
BATCH_OBJECTS = 200
BATCH_BYTES = 256 * 1024 * 1024
#: Objects at a time, however far the servers are: more would wait for this process's one interpreter.
HANDS_MAX = 32
_BEAT_SECONDS = 0.5


@dataclass(slots=True)
class Shared:
    """What all movers share."""

    memory: Memory
    lock: threading.Lock = field(default_factory=threading.Lock)
    claimed: set[int] = field(default_factory=set)  #: ids of the objects that are under way


class Direct:
    """One mover; there are several, so that one asks while another transfers."""

    idle_seconds = 1.0
    quiet_seconds_max = 300.0

    def __init__(
        self,
        slot: int,
        shared: Shared,
        *,
        jobs: Callable[[], Sequence[Job]],
        ledger: Ledger,
        book: DirectBook,
        budget: Budget,
        unfinished: Unfinished,
        engine: Engines,
        asking: Executor,
        meter: Meter,
        bell: Bell,
        tuner: Tuner,
        halted: Callable[[Job], bool],
    ) -> None:
        """`asking` runs single requests side by side; `halted` tells whether a job must stop at once."""
        self.name = f"direct {slot}"
        self._shared = shared
        self._jobs = jobs
        self._turn = slot
        self._ledger = ledger
        self._book = book
        self._budget = budget
        self._unfinished = unfinished
        self._engine = engine
        self._asking = asking
        self._meter = meter
        self._bell = bell
        self._tuner = tuner
        self._halted = halted

    def step(self, beat: Callable[[], None]) -> bool:
        """Move one batch, of each job in turn."""
        jobs = [job for job in self._jobs() if job.config.mode == "direct" and self._may_move(job)]
        self._turn += 1
        for offset in range(len(jobs)):
            job = jobs[(self._turn + offset) % len(jobs)]
            if claimed := self._claim(job):
                claim, items = claimed
                try:
                    with (
                        structlog.contextvars.bound_contextvars(job=job.name),
                        self._meter.batch(job.id, Direction.PULL),
                        self._meter.batch(job.id, Direction.PUSH),
                    ):
                        return self._batch(job, claim, items, beat)
                finally:
                    with self._shared.lock:
                        self._shared.claimed -= {item.id for item in items}
                        job.under_way -= len(items)
                    self._bell.ring()
        return False

    def _may_move(self, job: Job) -> bool:
        pauses = self._ledger.views.pauses(job.id)
        rests = pauses.pull_until_ms is not None or pauses.push_until_ms is not None or self._halted(job)
        return not rests and job.source.endpoints.available() and job.destination.endpoints.available()

    def _claim(self, job: Job) -> tuple[int, list[Item]] | None:
        """The next objects that no limit holds back, with this attempt counted; a large one alone."""
        shared = self._shared
        with shared.lock:
            limit = BATCH_OBJECTS + len(shared.claimed)
            candidates = self._ledger.views.candidates(job.id, limit, job.config.order)
            candidates = [item for item in candidates if item.id not in shared.claimed]
            allowed, name = self._budget.allowance(job)
            chosen = _together(job, candidates, allowed)
            job.held = self._budget.held(candidates, allowed, name)
            try:
                banned, hint = self._budget.banned(candidates)
                if banned:
                    self._ledger.park(job.id, banned, "above_limit", hint)
                    chosen = []
                    self._bell.ring()
                if not chosen:
                    return None
                claim = self._book.claim(job.id, chosen)
            except LostRace:
                return None
            shared.claimed |= {item.id for item in chosen}
            job.under_way += len(chosen)
        return claim, [replace(item, attempts=item.attempts + 1) for item in chosen]

    def _batch(self, job: Job, claim: int, items: Sequence[Item], beat: Callable[[], None]) -> bool:
        started = time.monotonic()
        url: str | None = None
        turn = max(item.attempts for item in items) - 1
        settled: dict[int, Settled] = {}
        streamed: list[Item] = []
        went = True
        try:
            with (
                job.source.endpoints.lease(turn) as source,
                job.destination.endpoints.lease(turn) as destination,
            ):
                url = destination.url
                self._move(job, items, source, destination, settled, streamed, beat)
                told = list(settled.values())
                tell_mismatches(SOURCE_MISMATCH, job.source.endpoints, source, told)
                tell_mismatches(DESTINATION_MISMATCH, job.destination.endpoints, destination, told)
        except EndpointError as error:
            later = job.not_before_ms(1)
            for item in items:
                settled.setdefault(item.id, Returned(item, State.SEEN, error.code, str(error), False, later))
            went = False
        found = [_or_park(job, settled.get(item.id) or _untouched(item)) for item in items]
        delivered = [one for one in found if isinstance(one, Delivered)]
        returned = [one for one in found if isinstance(one, Returned)]
        self._book.settle(
            job.id, delivered, returned, url, claim=claim,
            streamed_bytes=sum(item.size for item in streamed), pull_insecure=job.source.insecure,
        )  # fmt: skip
        log.info(
            "batch_streamed", endpoint=url, objects=len(delivered), of=len(items),
            bytes=sum(one.item.size for one in delivered), seconds=round(time.monotonic() - started, 3),
            **trouble(returned),
        )  # fmt: skip
        return went

    def _move(
        self,
        job: Job,
        items: Sequence[Item],
        source: Endpoint,
        destination: Endpoint,
        settled: dict[int, Settled],
        streamed: list[Item],
        beat: Callable[[], None],
    ) -> None:
        """Ask the destination, send what it lacks, ask again; what is known of each is in `settled`."""
        held = self._held(job, destination, items, beat)
        for item in items:
            there = held.get(job.destination_key(item.key))
            verdict = same_object(_listed(item), there) if there else None
            evidence = verdict.evidence if verdict and verdict.equal else None
            if there and evidence and evidence.satisfies(job.config.evidence.minimum):
                known = replace(item, pull_evidence=evidence)
                settled[item.id] = Delivered(known, there.etag, evidence, destination.client.insecure)
        sent = self._send(
            job, [item for item in items if item.id not in settled], source, destination, settled, beat
        )
        if not sent:
            return
        streamed += [item for item in sent if item.digests is not None]
        check = _StreamedCheck(job, destination.client, -1, lambda _item: "", lambda _count: beat())
        held = self._held(job, destination, sent, beat)

        def one(item: Item) -> Settled:
            there = held.get(job.destination_key(item.key))
            try:
                if item.digests is None:
                    return settled_copy(job, source.client, destination.client, item, there)
                judged = check(item, there, after_push=True)
            except (ObjectError, EndpointError) as error:
                judged = refused(item, error, State.SEEN, job.not_before_ms(item.attempts))
            return _seen_again(judged or _untouched(item))

        for answer in self._asking.map(one, sent):
            beat()
            settled[answer.item.id] = answer

    def _held(
        self, job: Job, destination: Endpoint, items: Sequence[Item], beat: Callable[[], None]
    ) -> Mapping[bytes, Listed]:
        return holdings(
            destination.client,
            [job.destination_key(item.key) for item in items],
            version=job.destination.list_version,
            pool=self._asking,
            beat=beat,
        )

    def _send(
        self,
        job: Job,
        items: Sequence[Item],
        source: Endpoint,
        destination: Endpoint,
        settled: dict[int, Settled],
        beat: Callable[[], None],
    ) -> list[Item]:
        """Stream the objects, or have them copied; those that went, with what is known of their bytes."""
        if not items:
            return []

        mine = threading.get_ident()

        def moved(count: int, objects: int = 0) -> None:
            self._meter.add(job.id, Direction.PULL, count, objects, mine)
            self._meter.add(job.id, Direction.PUSH, count, objects, mine)

        def found(count: int) -> None:
            self._meter.found(job.id, Direction.PULL, count, mine)
            self._meter.found(job.id, Direction.PUSH, count, mine)

        lane = Lane(job.id, Direction.PUSH)
        choice = self._tuner.choose(lane, destination.way_ms, len(items))
        ends = Ends(
            job, source.client, self._engine.native.sink(job.destination.remote(destination)),
            self._unfinished, self._shared.memory, StagedCheck(job, source.client), self._engine.draw, found,
            moved, lambda: self._halted(job), choice.upload_parts,
        )  # fmt: skip
        with ThreadPoolExecutor(min(choice.workers, len(items), HANDS_MAX), self.name) as pool:
            copies = may_copy(job, destination)
            left = {pool.submit(_moved, ends, destination, item, copies): item for item in items}
            pending = set(left)
            while pending:
                done, pending = wait(pending, timeout=_BEAT_SECONDS)
                moved(0, len(done))
                beat()
        results = [one.result() for one in left]
        settled |= {one.item.id: one for one in results if isinstance(one, Returned)}
        return [_with_proof(one) for one in results if not isinstance(one, Returned)]


class _StreamedCheck(DeliveredCheck):
    """There is no file to compute more from: what was computed on the way is all there is."""

    def _rehash(self, item: Item, wanted: Wanted) -> Digests:
        if item.digests is None:
            raise ValueError(f"object {item.id} was never streamed")
        return item.digests


def _together(job: Job, candidates: Sequence[Item], allowed_bytes: int | None) -> list[Item]:
    """What makes a batch: in order, a large object alone, what failed before in ever smaller company.

    What would be above `allowed_bytes` is passed over.
    """
    chosen: list[Item] = []
    size, company = 0, BATCH_OBJECTS
    for item in candidates:
        if allowed_bytes is not None and size + item.size > allowed_bytes:
            continue
        company = min(company, max(1, BATCH_OBJECTS >> (2 * item.attempts)))
        if chosen and (len(chosen) >= company or size + item.size > BATCH_BYTES or is_large(job, item)):
            break
        chosen.append(item)
        size += item.size
        if is_large(job, item):
            break
    return chosen


def _moved(ends: Ends, destination: Endpoint, item: Item, copies: bool) -> Staged | Item | Returned:
    """An object, with what is known of its bytes where they came by; or what went wrong."""
    job = ends.job
    later = job.not_before_ms(item.attempts)
    try:
        ends.look(0)
        if copies and not job.destination.copies_given_up and copied(ends, item):
            return replace(item, digests=None)
        return stream(ends, item)
    except Stopped:
        return _untouched(item)
    except (ObjectError, EndpointError) as error:
        return refused(item, error, State.SEEN, later)
    except TransferFailed as error:
        if error.failure is Failure.ENDPOINT:
            job.destination.endpoints.report(destination, EndpointDown(str(error)))
        counted = error.failure not in BLAMELESS
        return Returned(item, State.SEEN, FAILURE_CODES[error.failure], str(error), counted, later)


def _with_proof(staged: Staged | Item) -> Item:
    if isinstance(staged, Item):
        return staged
    return replace(
        staged.item, digests=staged.digests, part_size=staged.part_size, pull_evidence=staged.evidence
    )


def _listed(item: Item) -> Listed:
    return Listed(item.key, item.size, item.etag, item.modified_ms)


def _untouched(item: Item) -> Returned:
    return Returned(item, State.SEEN, *said_nothing(End.STOPPED), counted=False)


def _seen_again(settled: Settled) -> Settled:
    """What would rest on a volume has no local copy here: it is fetched again."""
    if isinstance(settled, Returned) and settled.to is State.STAGED:
        return replace(settled, to=State.SEEN)
    return settled


def _or_park(job: Job, settled: Settled) -> Settled:
    """After the last attempt a person must look; until then it waits its turn."""
    if not isinstance(settled, Returned) or settled.to is not State.SEEN or not settled.counted:
        return settled
    if settled.etag is not None or settled.item.attempts < job.config.attempts:
        return replace(
            settled, not_before_ms=settled.not_before_ms or job.not_before_ms(settled.item.attempts)
        )
    return Returned(settled.item, State.PARKED, settled.code, settled.message)
