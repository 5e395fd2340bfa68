"""pull: fetch a chunk, check every file while it is in the page cache, seal it; pulling -> staged."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace

import structlog

from s5jtd.engine.contract import Batch, Caller, End, Engine, Failure, Outcome, Remote, Transfer
from s5jtd.engine.parts import unfinished
from s5jtd.errors import (
    Busy,
    EndpointError,
    EngineError,
    ObjectError,
    VolumeError,
    VolumeFailed,
    VolumeFull,
)
from s5jtd.integrity.hashing import drop_cache
from s5jtd.ledger.rows import Chunk, Item, Returned, Staged
from s5jtd.ledger.states import ChunkState, State
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.unfinished import Unfinished
from s5jtd.link.tuning import Lane, Tuner
from s5jtd.meter import Meter
from s5jtd.model import Direction
from s5jtd.pool import Pool
from s5jtd.problems import Problems
from s5jtd.s3.endpoints import Endpoint
from s5jtd.s3.heads import head
from s5jtd.stages import records
from s5jtd.stages.check import SOURCE_MISMATCH, StagedCheck, refused
from s5jtd.stages.failures import (
    BLAMELESS,
    FAILURE_CODES,
    INTERRUPTED,
    LINK_ATTEMPTS_MIN,
    NO_ANSWER,
    engine_failed,
    said_nothing,
    tell_mismatches,
    trial,
    trouble,
    weigh,
)
from s5jtd.stages.job import Job, batch_path
from s5jtd.stages.resuming import lasting, put_off
from s5jtd.volumes import chunks
from s5jtd.volumes.chunks import ChunkFolder, file_name
from s5jtd.volumes.probe import volume_error
from s5jtd.volumes.volume import Volume
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

Settled = Staged | Returned

_CUT = (INTERRUPTED, "the daemon ended in mid-pull")


@dataclass(slots=True)
class _Work:
    """One chunk under way."""

    job: Job
    chunk: Chunk
    folder: ChunkFolder
    check: StagedCheck
    by_name: dict[str, Item]
    beat: Callable[[], None]
    last: frozenset[int] = frozenset()  #: the ids of those that go on where they break off
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    blamed: frozenset[str] = frozenset()  #: see `failures.weigh`
    checks: dict[str, Future[Settled]] = field(default_factory=dict)


class Pull:
    """One puller of one volume; a volume has several, so that one seals while another transfers."""

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
        hashing: Executor,
        unfinished: Unfinished,
        meter: Meter,
        problems: Problems,
        bell: Bell,
        tuner: Tuner,
        halted: Callable[[Job], bool],
    ) -> None:
        """`hashing` runs checks beside the transfer; `halted` tells whether a job must rest now."""
        self.name = f"pull {volume.name} {slot}"
        self.volume = volume
        self._jobs = jobs
        self._ledger = ledger
        self._pool = pool
        self._engine = engine
        self._hashing = hashing
        self._unfinished = unfinished
        self._meter = meter
        self._problems = problems
        self._bell = bell
        self._tuner = tuner
        self._halted = halted

    def step(self, beat: Callable[[], None]) -> bool:
        """Pull one planned chunk."""
        volume = self.volume
        with volume.use(), self._tuner.headroom.turn(Direction.PULL) as is_our_turn:
            if not is_our_turn or not volume.state.owes_space:
                return False
            jobs = self._jobs()
            resting = [id_ for id_, job in jobs.items() if self._rests(job)]
            chunk = self._ledger.take_pull(volume.ledger_id, resting)
            if chunk is None:
                return False
            job = jobs.get(chunk.job_id)
            if job is None:
                self._ledger.unplan(chunk)
                chunks.remove(volume.fd, chunk.name)  # of one that was put off there is a part
                return True
            with (
                structlog.contextvars.bound_contextvars(job=job.name, chunk=chunk.name, volume=volume.name),
                self._meter.batch(job.id, Direction.PULL),
            ):
                went = self._pull(job, chunk, beat)
        self._bell.ring()
        return went

    def _rests(self, job: Job) -> bool:
        return self._halted(job) or self._ledger.views.pauses(job.id).pull_until_ms is not None

    def _pull(self, job: Job, chunk: Chunk, beat: Callable[[], None]) -> bool:
        """Pull a chunk; False where a rest is due before the next."""
        items = self._ledger.views.pulling(chunk.id)
        try:
            with job.source.endpoints.lease(turn=max(item.attempts for item in items) - 1) as endpoint:
                remote = job.source.remote(endpoint)
                try:
                    with self.volume.pace.under_way(sum(item.size for item in items)):
                        volume_was_well = self._transfer(job, chunk, items, endpoint, remote, beat)
                except OSError as error:
                    raise volume_error(error, str(self.volume.path)) from error
        except EndpointError as error:
            self._let_go(job, chunk, items, error)
        except EngineError as error:
            self._let_go(job, chunk, items, error)
            engine_failed(self._problems, error)
            return False
        except VolumeFull as error:
            self._pool.refused_bytes(self.volume)
            self._give_back(chunk, items, error.code, str(error))
        except VolumeError as error:
            self._pool.fail(self.volume, error)
            self._give_back(chunk, items, error.code, str(error))
        else:
            if not volume_was_well:
                self._pool.refused_bytes(self.volume)
            self._problems.clear("engine_failed", "s5cmd")
        return True

    def _transfer(
        self,
        job: Job,
        chunk: Chunk,
        items: Sequence[Item],
        endpoint: Endpoint,
        remote: Remote,
        beat: Callable[[], None],
    ) -> bool:
        """Write the folder, run the engine, check, seal, settle; False where space ran out."""
        volume = self.volume
        volume.verify()
        started = time.monotonic()
        with ChunkFolder(volume.fd, chunk.name, create=True) as folder:
            records.write_promise(folder, job, chunk, volume, items)
            work = _Work(
                job, chunk, folder, StagedCheck(job, endpoint.client, self.volume.readers),
                {file_name(item.id): item for item in items}, beat,
                lasting(self._unfinished, job, items, Direction.PULL),
            )  # fmt: skip
            lane = Lane(job.id, Direction.PULL)
            self._meter.found(job.id, Direction.PULL, _left_of(work), threading.get_ident())
            run_started = time.monotonic()
            choice = self._tuner.choose(lane, endpoint.way_ms, len(items), sum(item.size for item in items))
            run = self._engine.run(
                Batch(
                    Direction.PULL, remote,
                    tuple(_transfer(work, name, item) for name, item in work.by_name.items()),
                    folder.data_fd, batch_path(folder.fd, "pull.batch"), choice.workers, choice.parts,
                    range_bytes=choice.range_bytes, preference=job.config.engine,
                ),
                Caller(
                    lambda outcome: self._on_outcome(work, outcome),
                    lambda moved: self._on_progress(job, moved, beat),
                    lambda: self._halted(job) or not volume.state.owes_space,
                ),
            )  # fmt: skip
            went = trial(work.by_name, work.outcomes, run, run_started)
            self._tuner.learn(lane, choice, went)
            if went.objects and not went.trouble:  # what failed says nothing of speed
                job.source.endpoints.ran(endpoint, went.pace)
            work.blamed = weigh(job.source.endpoints, endpoint, work.by_name, work.outcomes, run.end)
            settled = self.settle(work, items, run.end)
            if self._waits(work, settled):
                return True
            self._seal(work, settled)
        self._commit(work, settled, endpoint.url)
        staged = [one for one in settled if isinstance(one, Staged)]
        volume.pace.note(sum(one.item.size for one in staged), time.monotonic() - started)
        tell_mismatches(SOURCE_MISMATCH, job.source.endpoints, endpoint, settled)
        log.info(
            "chunk_staged", endpoint=endpoint.url, objects=len(staged), of=len(items),
            bytes=sum(one.item.size for one in staged), seconds=round(time.monotonic() - started, 3),
            **trouble(settled),
        )  # fmt: skip
        return not any(outcome.failure is Failure.SPACE for outcome in work.outcomes.values())

    def _waits(self, work: _Work, settled: Sequence[Settled]) -> bool:
        """Whether a lasting object's chunk was put off, to go on from where the transfer broke off."""
        one = settled[0]
        if len(settled) > 1 or not isinstance(one, Returned) or one.item.id not in work.last:
            return False
        name = file_name(one.item.id)
        if name in work.checks:  # all of it came, and it was not what it should be
            return False
        if put_off(self._unfinished, work.job, work.chunk, work.folder, one, work.outcomes.get(name)):
            log.info("chunk_put_off", chunk=work.chunk.name, reason=one.message)
            return True
        return False

    def _on_progress(self, job: Job, moved: int, beat: Callable[[], None]) -> None:
        beat()
        self._meter.add(job.id, Direction.PULL, moved)

    def _on_outcome(self, work: _Work, outcome: Outcome) -> None:
        """A file is there, says the engine: look at it while its bytes are still in memory."""
        work.outcomes[outcome.name] = outcome
        if outcome.failure is None:
            self._meter.add(work.job.id, Direction.PULL, 0, 1)
            self._submit(work, outcome.name)

    def _submit(self, work: _Work, name: str) -> None:
        item = work.by_name[name]
        work.checks[name] = self._hashing.submit(
            work.check, item, work.folder.data_fd, name, lambda _bytes_read: work.beat()
        )

    def settle(self, work: _Work, items: Sequence[Item], end: End) -> list[Settled]:
        """What became of each object, by its file: the engine's word and its silence are hints."""
        there = {entry.name for entry in work.folder.files()}
        for name in work.by_name.keys() - work.checks.keys():
            outcome = work.outcomes.get(name)
            # A failed transfer leaves nothing under the final name; what is there may be whole.
            if outcome is None and name in there:
                self._submit(work, name)
            elif outcome is not None and outcome.failure is Failure.GONE:
                work.checks[name] = self._hashing.submit(self._gone, work, work.by_name[name])
            elif outcome is not None and outcome.failure is Failure.CHANGED:
                work.checks[name] = self._hashing.submit(work.check.changed, work.by_name[name])
        settled: list[Settled] = []
        for item in items:
            name = file_name(item.id)
            if name in work.checks:
                settled.append(self._result(work, item, work.checks[name]))
            else:
                settled.append(self._not_there(work, item, work.outcomes.get(name), end))
        return settled

    def _result(self, work: _Work, item: Item, check: Future[Settled]) -> Settled:
        try:
            result = check.result()  # a disk that gives nothing lets no beat through, and that is seen
        except (ObjectError, EndpointError) as error:
            result = refused(item, error, State.SEEN, work.job.not_before_ms(item.attempts))
        work.beat()
        if isinstance(result, Returned):
            return _or_park(work.job, result, alone=len(work.by_name) == 1)
        return result

    def _not_there(self, work: _Work, item: Item, outcome: Outcome | None, end: End) -> Returned:
        later = work.job.not_before_ms(item.attempts)
        is_blamed = file_name(item.id) in work.blamed
        if outcome is None or outcome.failure is None:
            # A run that was ended says nothing about those it did not come to.
            counted = is_blamed or end in (End.EXITED, End.KILLED)
            returned = Returned(item, State.SEEN, *said_nothing(end), counted, later if counted else 0)
        else:
            counted = is_blamed or outcome.failure not in BLAMELESS
            returned = Returned(
                item, State.SEEN, FAILURE_CODES[outcome.failure], outcome.message, counted, later
            )
        return _or_park(work.job, returned, alone=len(work.by_name) == 1, is_blamed=is_blamed)

    def _gone(self, work: _Work, item: Item) -> Returned:
        """A 404 is believed only when the server, asked for the one object, says so again.

        Raises:
            ObjectGone: it does.
            EndpointError, ObjectError: it says something else.
        """
        head(work.check.client, item.key)
        later = work.job.not_before_ms(item.attempts)
        return Returned(item, State.SEEN, "transfer_failed", "it was not there, and then it was", True, later)

    def _seal(self, work: _Work, settled: Sequence[Settled]) -> None:
        """Bytes first, ledger second: sync, write the seal, prove the volume; only then may be committed."""
        staged = [one for one in settled if isinstance(one, Staged)]
        work.folder.sweep(frozenset(file_name(one.item.id) for one in staged))
        if staged:
            self.volume.sync()
            records.write_seal(work.folder, work.job, work.chunk, self.volume, staged)
            self.volume.verify()
        else:
            # Before the ledger lets go of the chunk: if the disk refuses, all of it is given back, once.
            chunks.remove(self.volume.fd, work.chunk.name)

    def _commit(self, work: _Work, settled: Sequence[Settled], endpoint_url: str | None) -> None:
        """Write down what is sealed; its folder is not held any more, for a pusher may come at once."""
        staged = [one for one in settled if isinstance(one, Staged)]
        returned = [one for one in settled if isinstance(one, Returned)]
        self._ledger.settle_pull(work.chunk, staged, returned, endpoint_url)

    def _let_go(
        self, job: Job, chunk: Chunk, items: Sequence[Item], error: EndpointError | EngineError
    ) -> None:
        """Nothing can be pulled now; a chunk that has half of a large object keeps it."""
        later = job.not_before_ms(1)
        if not self._keeps(
            job, chunk, items, Returned(items[0], State.SEEN, error.code, str(error), False, later)
        ):
            self._give_back(chunk, items, error.code, str(error), later)

    def _keeps(self, job: Job, chunk: Chunk, items: Sequence[Item], returned: Returned) -> bool:
        """Put a chunk off as an earlier run left it, if it left anything to build on."""
        if not self._lasts(job, items):
            return False
        with contextlib.suppress(OSError, Busy), ChunkFolder(self.volume.fd, chunk.name) as folder:
            is_whole = folder.holds(file_name(items[0].id), items[0].size)
            return not is_whole and put_off(self._unfinished, job, chunk, folder, returned, None)
        return False

    def _lasts(self, job: Job, items: Sequence[Item]) -> bool:
        """Whether this is one object alone, of which half is worth keeping."""
        return len(items) == 1 and bool(lasting(self._unfinished, job, items, Direction.PULL))

    def _give_back(
        self, chunk: Chunk, items: Sequence[Item], code: str, message: str, later: int = 0
    ) -> None:
        """Nothing of a chunk counts: its folder goes, its objects are `seen` again and no worse for it."""
        with contextlib.suppress(OSError, VolumeError):  # what a failed disk keeps, goes when it is back
            chunks.remove(self.volume.fd, chunk.name)
        returned = [Returned(item, State.SEEN, code, message, False, later) for item in items]
        self._ledger.settle_pull(chunk, [], returned, None)

    # At start

    def salvage(self, chunk: Chunk, beat: Callable[[], None]) -> int:
        """Take up a chunk that an earlier life left half pulled; how many of its objects were whole.

        A seal is believed as it stands; without one each file is checked like a fresh one, and only
        what is missing is pulled again.  On a volume that can only be read there is nothing but seals.

        Raises:
            VolumeError: the volume cannot be read.
        """
        items = self._ledger.views.pulling(chunk.id)
        job = None if self.volume.only_read else self._jobs().get(chunk.job_id)
        if job is not None and self._goes_on(job, chunk, items):
            return 0
        try:
            with ChunkFolder(self.volume.fd, chunk.name) as folder:
                staged = _sealed_of(folder, items, self.volume.key)
                if staged is not None:
                    return self._adopt(chunk, items, staged)
                if job is not None:
                    return self._check_again(job, chunk, folder, items, beat)
        except FileNotFoundError:
            pass
        except Busy as error:
            raise VolumeFailed(str(error), hint=error.hint) from error
        except OSError as error:
            raise volume_error(error, str(self.volume.path)) from error
        except EndpointError as error:
            log.info("chunk_not_salvaged", chunk=chunk.name, error=str(error))
        self._ledger.unplan(chunk)
        return 0

    def _goes_on(self, job: Job, chunk: Chunk, items: Sequence[Item]) -> bool:
        """Whether a chunk has half of a large object and waits with it for its turn."""
        if not self._lasts(job, items):
            return False
        if chunk.state is ChunkState.PLANNED:  # it was put off, or never begun: no attempt was under way
            return True
        return self._keeps(job, chunk, items, Returned(items[0], State.SEEN, *_CUT))

    def _adopt(self, chunk: Chunk, items: Sequence[Item], staged: list[Staged]) -> int:
        missing = {item.id for item in items} - {one.item.id for one in staged}
        returned = [Returned(item, State.SEEN, *_CUT, counted=False) for item in items if item.id in missing]
        self._ledger.settle_pull(chunk, staged, returned, None)
        return len(staged)

    def _check_again(
        self, job: Job, chunk: Chunk, folder: ChunkFolder, items: Sequence[Item], beat: Callable[[], None]
    ) -> int:
        # After a write error the kernel counts pages as clean that never reached the disk; a reader of
        # the cache is none the wiser.  So what an earlier life wrote is read from the device.
        self.volume.sync()
        for item in items:
            with contextlib.suppress(ObjectError):  # its file is not there, or not ours: the check says so
                drop_cache(folder.data_fd, file_name(item.id))
        with job.source.endpoints.lease() as endpoint:
            work = _Work(
                job, chunk, folder, StagedCheck(job, endpoint.client, self.volume.readers),
                {file_name(item.id): item for item in items}, beat,
            )  # fmt: skip
            # The attempt counts: what brought the daemon down must not do so for ever.
            settled = [_cut_off(one) for one in self.settle(work, items, End.KILLED)]
            self._seal(work, settled)
        self._commit(work, settled, None)
        return sum(isinstance(one, Staged) for one in settled)


def _cut_off(one: Settled) -> Settled:
    """What a salvage does not find was cut with the daemon, and nobody found a fault with it."""
    if isinstance(one, Returned) and one.to is State.SEEN and one.code == NO_ANSWER:
        code, message = _CUT
        return replace(one, code=code, message=message)
    return one


def _left_of(work: _Work) -> int:
    """Bytes of a large object that an earlier run left."""
    return sum(
        unfinished(work.folder.data_fd, name, item.size)
        for name, item in work.by_name.items()
        if item.id in work.last
    )


def _transfer(work: _Work, name: str, item: Item) -> Transfer:
    # What failed before may have failed for its ranges, as from a server that knows none.
    return Transfer(name, item.key, item.size, resumable=item.id in work.last, whole=item.attempts > 1)


def _or_park(job: Job, returned: Returned, *, alone: bool, is_blamed: bool = False) -> Returned:
    """After the last attempt a person must look; not at one that may have suffered for another's sake."""
    attempts = max(job.config.attempts, LINK_ATTEMPTS_MIN if is_blamed else 1)
    if returned.to is not State.SEEN or not returned.counted or returned.item.attempts < attempts:
        return returned
    if returned.code in (NO_ANSWER, INTERRUPTED) and not alone:
        return returned
    return Returned(returned.item, State.PARKED, returned.code, returned.message)


def _sealed_of(folder: ChunkFolder, items: Sequence[Item], key: bytes) -> list[Staged] | None:
    """What a chunk's own seal says of these objects; None where it has none that holds."""
    by_id = {item.id: item for item in items}
    try:
        _, sealed = records.read_seal(folder, key)
    except FileNotFoundError:
        return None
    except VolumeError as error:
        log.warning("seal_not_believed", chunk=folder.name, error=str(error))
        return None
    return [
        replace(one, item=by_id[one.item.id])
        for one in sealed
        if one.item.id in by_id
        and one.item.etag == by_id[one.item.id].etag
        and folder.holds(file_name(one.item.id), one.item.size)
    ]
