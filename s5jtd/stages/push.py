"""push: ask the destination, send what it lacks, ask again; staged -> delivered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

import structlog

from s5jtd.engine.contract import Batch, Caller, End, Engine, Failure, Outcome, Remote, Run, Transfer
from s5jtd.errors import Busy, EndpointError, EngineError, ObjectError, VolumeError
from s5jtd.ledger.rows import Chunk, Delivered, Item, Returned
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.unfinished import Unfinished
from s5jtd.link.tuning import Choice, Lane, Tuner
from s5jtd.meter import Meter
from s5jtd.model import NO_BELONGINGS, Belongings, Direction
from s5jtd.pool import Pool
from s5jtd.problems import Problems
from s5jtd.s3.endpoints import Endpoint
from s5jtd.stages import records
from s5jtd.stages.belongings import stamped
from s5jtd.stages.check import DESTINATION_MISMATCH, DeliveredCheck, LocalRot, refused
from s5jtd.stages.failures import (
    BLAMELESS,
    FAILURE_CODES,
    LINK_ATTEMPTS_MIN,
    engine_failed,
    said_nothing,
    tell_mismatches,
    trial,
    trouble,
    weigh,
)
from s5jtd.stages.inquiry import holdings
from s5jtd.stages.job import Job, batch_path
from s5jtd.stages.resuming import UploadBook, lasting, may_be_cut
from s5jtd.volumes.chunks import ChunkFolder, file_name
from s5jtd.volumes.probe import volume_error
from s5jtd.volumes.volume import Volume, VolumeState
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

Settled = Delivered | Returned
#: More attempts than there will ever be.
NEVER = 1 << 62


class Push:
    """One pusher of one volume."""

    idle_seconds = 2.0
    quiet_seconds_max = 300.0

    def __init__(
        self,
        slot: int,
        volume: Volume,
        *,
        jobs: Callable[[], dict[int, Job]],
        ledger: Ledger,
        pool: Pool,
        engine: Engine,
        asking: Executor,
        unfinished: Unfinished,
        meter: Meter,
        problems: Problems,
        bell: Bell,
        tuner: Tuner,
        halted: Callable[[Job], bool],
    ) -> None:
        """`asking` runs single requests side by side; `halted` tells whether a job must rest now."""
        self.name = f"push {volume.name} {slot}"
        self.volume = volume
        self._jobs = jobs
        self._ledger = ledger
        self._pool = pool
        self._engine = engine
        self._asking = asking
        self._unfinished = unfinished
        self._meter = meter
        self._problems = problems
        self._bell = bell
        self._tuner = tuner
        self._halted = halted

    def step(self, beat: Callable[[], None]) -> bool:
        """Push what is due of one sealed chunk."""
        volume = self.volume
        with volume.use(), self._tuner.headroom.turn(Direction.PUSH) as is_our_turn:
            if not is_our_turn or not volume.state.gives_pushes:
                return False
            jobs = self._jobs()
            able = {id_ for id_, job in jobs.items() if self._may_push(job)}
            taken = self._ledger.take_push(volume.ledger_id, able)
            if taken is None:
                return False
            chunk, items = taken
            job = jobs[chunk.job_id]
            with (
                structlog.contextvars.bound_contextvars(job=job.name, chunk=chunk.name, volume=volume.name),
                self._meter.batch(job.id, Direction.PUSH),
            ):
                went = self._push(job, chunk, items, beat)
        self._bell.ring()
        return went

    def _may_push(self, job: Job) -> bool:
        paused = self._ledger.views.pauses(job.id).push_until_ms is not None
        return not paused and not self._halted(job) and job.destination.endpoints.available()

    def _push(self, job: Job, chunk: Chunk, items: Sequence[Item], beat: Callable[[], None]) -> bool:
        """Push the objects and settle them; False where a rest is due before the next."""
        started = time.monotonic()
        url: str | None = None
        went = True
        settled: list[Settled] = []
        try:
            turn = max((item.attempts for item in items), default=1) - 1
            with job.destination.endpoints.lease(turn) as endpoint:
                url = endpoint.url
                remote = job.destination.remote(endpoint)
                try:
                    settled = self._deliver(job, chunk, items, endpoint, remote, beat)
                except OSError as error:
                    raise volume_error(error, str(self.volume.path)) from error
        except EndpointError as error:
            settled = _all_back(job, items, error.code, str(error))
            went = False
        except Busy as error:
            settled = _all_back(job, items, error.code, str(error))
            went = False
        except EngineError as error:
            engine_failed(self._problems, error)
            settled = _all_back(job, items, error.code, str(error))
            went = False
        except VolumeError as error:
            self._pool.fail(self.volume, error)
            settled = _all_back(job, items, error.code, str(error))
        delivered = [one for one in settled if isinstance(one, Delivered)]
        returned = [one for one in settled if isinstance(one, Returned)]
        self._ledger.settle_push(chunk, delivered, returned, url)
        log.info(
            "chunk_pushed", endpoint=url, objects=len(delivered), of=len(items),
            bytes=sum(one.item.size for one in delivered), seconds=round(time.monotonic() - started, 3),
            **trouble(returned),
        )  # fmt: skip
        return went

    def _deliver(
        self,
        job: Job,
        chunk: Chunk,
        items: Sequence[Item],
        endpoint: Endpoint,
        remote: Remote,
        beat: Callable[[], None],
    ) -> list[Settled]:
        self.volume.verify()
        with ChunkFolder(self.volume.fd, chunk.name) as folder:
            check = DeliveredCheck(
                job,
                endpoint.client,
                folder.data_fd,
                lambda item: file_name(item.id),
                lambda _bytes_read: beat(),
            )
            distrusted = self._ledger.views.distrusted(chunk.id)
            asked = [item for item in items if item.id not in distrusted]
            settled = self._look(job, endpoint, check, asked, beat, after_push=False)
            unsettled = [item for item in items if item.id not in settled]
            settled |= {
                item.id: _lost(item) for item in unsettled if not folder.holds(file_name(item.id), item.size)
            }
            left = {file_name(item.id): item for item in unsettled if item.id not in settled}
            takes = self._belongings(job, folder) if left else {}
            if takes is None:  # without it they would arrive, and not be what they were
                settled |= {item.id: _unsealed(item) for item in left.values()}
                left.clear()
            outcomes: dict[str, Outcome] = {}
            blamed: frozenset[str] = frozenset()
            if left:
                found = partial(self._meter.found, job.id, Direction.PUSH, thread=threading.get_ident())
                book = UploadBook(self._unfinished, job, left, found)
                last = lasting(self._unfinished, job, list(left.values()), Direction.PUSH)
                choice = self._choose(job, endpoint, left.values(), last)
                left |= {
                    name: replace(item, part_size=book.part_size(name))
                    if item.id in last
                    else replace(item, part_size=choice.cut_bytes)
                    for name, item in left.items()
                    if item.id in last or (choice.cut_bytes and may_be_cut(job, item))
                }
                run = self._send(
                    job,
                    folder,
                    left,
                    endpoint,
                    choice=choice,
                    takes=takes or {},
                    book=book,
                    last=last,
                    remote=remote,
                    outcomes=outcomes,
                    beat=beat,
                )
                blamed = weigh(job.destination.endpoints, endpoint, left, outcomes, run.end) - book.gained
                asked = [item for name, item in left.items() if _worth_asking(outcomes.get(name), run)]
                settled |= self._look(job, endpoint, check, asked, beat, after_push=True)
                settled |= self._unreadable(check, left, outcomes)
                for name, item in left.items():
                    if item.id not in settled:
                        settled[item.id] = _not_sent(job, item, outcomes.get(name), run, name in blamed)
        tell_mismatches(DESTINATION_MISMATCH, job.destination.endpoints, endpoint, settled.values())
        limit = dict.fromkeys(blamed, max(job.config.attempts, LINK_ATTEMPTS_MIN))
        if len(left) > 1:  # one of which the engine said nothing may have suffered for another's sake
            limit |= dict.fromkeys(left.keys() - outcomes.keys(), NEVER)
        return [_or_park(job, settled[i.id], limit.get(file_name(i.id), job.config.attempts)) for i in items]

    def _choose(self, job: Job, endpoint: Endpoint, items: Collection[Item], last: Collection[int]) -> Choice:
        to_cut = sum(item.id not in last and may_be_cut(job, item) for item in items)
        return self._tuner.choose(Lane(job.id, Direction.PUSH), endpoint.way_ms, len(items), to_cut=to_cut)

    def _look(
        self,
        job: Job,
        endpoint: Endpoint,
        check: DeliveredCheck,
        items: Sequence[Item],
        beat: Callable[[], None],
        *,
        after_push: bool,
    ) -> dict[int, Settled]:
        """Ask the destination what it holds of these objects, and judge it."""
        if not items:
            return {}
        try:
            held = holdings(
                endpoint.client,
                [job.destination_key(item.key) for item in items],
                version=job.destination.list_version,
                pool=self._asking,
                beat=beat,
            )
        except ObjectError:  # of one of them the destination will not say it: each is asked for by itself
            held = {}

        def one(item: Item) -> Settled | None:
            try:
                return check(item, held.get(job.destination_key(item.key)), after_push=after_push)
            except (ObjectError, EndpointError) as error:
                return refused(item, error, State.STAGED, job.not_before_ms(item.attempts))

        judged: dict[int, Settled] = {}
        for item, answer in zip(items, self._asking.map(one, items), strict=True):
            beat()
            if answer is not None:
                judged[item.id] = answer
        return judged

    def _unreadable(
        self, check: DeliveredCheck, left: Mapping[str, Item], outcomes: Mapping[str, Outcome]
    ) -> dict[int, Settled]:
        """A file that nobody can read any more, on a volume that is well, is no copy: it is pulled again."""
        doubtful = [
            item
            for name, item in left.items()
            if name in outcomes and outcomes[name].failure is Failure.LOCAL
        ]
        if doubtful:
            self.volume.verify()
        found = {item.id: check.unreadable(item) for item in doubtful}
        return {id_: answer for id_, answer in found.items() if answer is not None}

    def _send(
        self,
        job: Job,
        folder: ChunkFolder,
        items: Mapping[str, Item],
        endpoint: Endpoint,
        *,
        choice: Choice,
        takes: Mapping[int, Belongings],
        book: UploadBook,
        last: Collection[int],
        remote: Remote,
        outcomes: dict[str, Outcome],
        beat: Callable[[], None],
    ) -> Run:
        """Send the objects, by the names of their files; what the engine says of each is in `outcomes`.

        What the destination takes in of those whose ids are in `last` is built on later.
        """

        def on_progress(moved: int) -> None:
            beat()
            self._meter.add(job.id, Direction.PUSH, moved)

        def on_outcome(outcome: Outcome) -> None:
            outcomes[outcome.name] = outcome
            if outcome.failure is None:
                self._meter.add(job.id, Direction.PUSH, 0, 1)

        writable = self.volume.state is not VolumeState.READONLY
        started = time.monotonic()

        def transfer(name: str, item: Item) -> Transfer:
            own = stamped(job, takes.get(item.id, NO_BELONGINGS))
            key = job.destination_key(item.key)
            return Transfer(
                name, key, item.size, item.part_size, own, resumable=item.id in last,
            )  # fmt: skip

        run = self._engine.run(
            Batch(
                Direction.PUSH, remote, tuple(transfer(name, item) for name, item in items.items()),
                folder.data_fd, batch_path(folder.fd, "push.batch") if writable else None, choice.workers,
                choice.parts, choice.upload_parts, preference=job.config.engine, uploads=book,
            ),
            Caller(on_outcome, on_progress, lambda: self._halted(job) or not self.volume.state.gives_pushes),
        )  # fmt: skip
        went = trial(items, outcomes, run, started)
        self._tuner.learn(Lane(job.id, Direction.PUSH), choice, went)
        if went.objects and not went.trouble:  # what failed says nothing of speed
            job.destination.endpoints.ran(endpoint, went.pace)
        return run

    def _belongings(self, job: Job, folder: ChunkFolder) -> Mapping[int, Belongings] | None:
        """What the chunk's seal says its objects take along; None where it was damaged since."""
        if not job.config.preserve:
            return {}
        try:
            _, sealed = records.read_seal(folder, self.volume.key)
        except (VolumeError, FileNotFoundError) as error:
            log.warning("seal_not_believed", chunk=folder.name, error=str(error))
            return None
        return {one.item.id: one.belongings for one in sealed if one.belongings}


def _lost(item: Item) -> Returned:
    """Its file is absent or has another length: nothing of it may reach the destination."""
    return refused(
        item, LocalRot(f"{file_name(item.id)} is gone from its chunk, or cut short"), State.STAGED, 0
    )


def _unsealed(item: Item) -> Returned:
    return refused(
        item, LocalRot(f"what {file_name(item.id)} is to take along is lost with its chunk's seal"),
        State.STAGED, 0,
    )  # fmt: skip


def _worth_asking(outcome: Outcome | None, run: Run) -> bool:
    """Whether the destination may hold it now: also where the engine was silent or lost the reply."""
    if outcome is None:
        return run.end in (End.EXITED, End.KILLED)
    return outcome.failure in (None, Failure.OTHER)


def _not_sent(job: Job, item: Item, outcome: Outcome | None, run: Run, is_blamed: bool) -> Returned:
    later = job.not_before_ms(item.attempts)
    if outcome is None or outcome.failure is None:
        return Returned(item, State.STAGED, *said_nothing(run.end), is_blamed, later if is_blamed else 0)
    if outcome.failure is Failure.UNFIT:
        return Returned(item, State.PARKED, FAILURE_CODES[outcome.failure], outcome.message)
    # Of the volume's failures only what `_unreadable` could read itself comes here: so it is the object's.
    counted = is_blamed or outcome.failure is Failure.LOCAL or outcome.failure not in BLAMELESS
    return Returned(item, State.STAGED, FAILURE_CODES[outcome.failure], outcome.message, counted, later)


def _all_back(job: Job, items: Sequence[Item], code: str, message: str) -> list[Settled]:
    """Nobody's fault among the objects; but not at once again, or a sick endpoint would be hammered."""
    later = job.not_before_ms(1)
    return [Returned(item, State.STAGED, code, message, False, later) for item in items]


def _or_park(job: Job, settled: Settled, attempts_max: int) -> Settled:
    """After the last attempt a person must look; until then it waits its turn."""
    if not isinstance(settled, Returned) or settled.to is not State.STAGED or not settled.counted:
        return settled
    item = settled.item
    if item.attempts >= attempts_max:
        return Returned(item, State.PARKED, settled.code, settled.message)
    return Returned(
        item, State.STAGED, settled.code, settled.message, not_before_ms=job.not_before_ms(item.attempts)
    )
