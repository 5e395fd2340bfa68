"""The volumes in use: attached when they appear, watched while they work, let go when they fail."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from s5jtd.errors import LostRace, UsageError, VolumeError, VolumeFailed, VolumeForeign, VolumeFull
from s5jtd.ledger.rows import Volume as Row
from s5jtd.ledger.states import ChunkState
from s5jtd.ledger.store import Ledger
from s5jtd.problems import Problems
from s5jtd.volumes import chunks, probe, space
from s5jtd.volumes.probe import volume_error
from s5jtd.volumes.visit import visit
from s5jtd.volumes.volume import Volume, VolumeState
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

#: A volume that is not there, or that failed, is tried again so often, and ever less often up to this.
RETRY_SECONDS = 2.0
RETRY_SECONDS_MAX = 30.0
#: At the start a volume is waited for until it shows no sign of life for so long.
QUIET_SECONDS_MAX = 60.0

#: So often a volume in use is searched for folders that the ledger does not account for.
LOOK_AGAIN_SECONDS = 60.0


class Recovery(Protocol):
    """What brings ledger and volume to one opinion."""

    def __call__(self, volume: Volume, beat: Callable[[], None]) -> None:
        """Settle what an earlier life left on a volume, before it is used."""

    def look_again(self, volume: Volume) -> None:
        """Settle what could not be decided then."""


class Shyness:
    """How long a volume that gave an error, although it looks well, is left alone: ever longer."""

    def __init__(self) -> None:
        """It gave none yet."""
        self._pause_seconds = RETRY_SECONDS
        self._tried_at = self._until = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether it may be tried again."""
        return time.monotonic() >= self._until

    def begin(self) -> None:
        """A try begins, or ended badly; one soon after the last waits twice as long."""
        now = time.monotonic()
        is_relapse = now - self._tried_at < 2 * self._pause_seconds + RETRY_SECONDS_MAX
        self._pause_seconds = min(RETRY_SECONDS_MAX, 2 * self._pause_seconds if is_relapse else RETRY_SECONDS)
        self._tried_at, self._until = now, now + self._pause_seconds


_ALIVE = tuple(state for state in ChunkState if state is not ChunkState.RELEASED)


class Pool:
    """All configured volumes, and the one place where their states change."""

    def __init__(self, volumes: Sequence[Volume], ledger: Ledger, problems: Problems) -> None:
        """Nothing is attached until `attach` is called."""
        self.volumes = tuple(volumes)
        self._ledger = ledger
        self._problems = problems
        self._lock = threading.Lock()
        self._shy = {volume.name: Shyness() for volume in self.volumes}

    def add(self, volume: Volume) -> None:
        """One more, which is not attached yet."""
        with self._lock:
            self._shy[volume.name] = Shyness()
            self.volumes = (*self.volumes, volume)

    def remove(self, volume: Volume) -> None:
        """One less, of which nothing is attached."""
        with self._lock:
            self.volumes = tuple(one for one in self.volumes if one is not volume)
            self._problems.clear_about("volume_", volume.name)

    def taking_pulls(self) -> list[Volume]:
        """The volumes that new chunks may be put on."""
        return [volume for volume in self.volumes if volume.state.takes_pulls]

    def usable(self) -> list[Volume]:
        """The volumes that are there and can be read."""
        return [volume for volume in self.volumes if volume.attached and volume.state.gives_pushes]

    def attach_all(self, recover: Recovery) -> None:
        """Try to take up every volume, side by side; a disk that gives no answer is not waited for for ever.

        Raises:
            S5jtError: the ledger cannot be used.
        """
        attempts = [_Attempt(self, volume, recover) for volume in self.volumes]
        for attempt in attempts:
            attempt.start()
        for attempt in attempts:
            attempt.wait()
            if attempt.error is not None:
                raise attempt.error
            if attempt.is_alive():
                self.fail(attempt.volume, silent(attempt.volume))

    def attach(self, volume: Volume, recover: Recovery, beat: Callable[[], None]) -> bool:
        """Try to take a volume up; on failure its state and the problems say why.

        `recover` settles what an earlier life left on it, before any stage may see it.
        """
        views = self._ledger.views
        known = views.volume_at(str(volume.path))

        def epoch_of(uuid: str) -> int:
            row = views.volume_by_uuid(uuid)
            return row.attach_epoch if row else 0

        if known is not None:
            volume.ledger_id = known.id  # so that one that is missing still tells what went with it
            if self._stays_away(volume, known):
                return False
        try:
            stamp = volume.attach(known.uuid if known else None, epoch_of)
            twin = self._twin(volume)
            if twin is not None:
                raise VolumeForeign(
                    f"{volume.path} is the same volume as {twin.path}", hint="remove one of them"
                )
            row = self._ledger.enrol_volume(stamp.uuid, volume.name, str(volume.path), stamp.attach_epoch)
            volume.ledger_id, volume.draining = row.id, row.draining_since_ms is not None
            recover(volume, beat)
        except VolumeError as error:
            self.fail(volume, error)
            volume.detach()
            return False
        if volume.only_read:
            self.fail(volume, volume.only_read)
        else:
            self._be_well(volume)
        log.info("volume_attached", volume=volume.name, path=str(volume.path), uuid=stamp.uuid)
        return True

    def _stays_away(self, volume: Volume, known: Row) -> bool:
        """Whether the volume that was here last was emptied, and nothing else of ours came in its place."""
        if known.draining_since_ms is None or self._ledger.views.holdings(known.id).chunks:
            return False
        with contextlib.suppress(VolumeError), visit(volume.path, volume.key) as (_, stamp):
            if stamp.uuid != known.uuid:
                return False
        volume.draining = True
        self._be_well(volume)
        return True

    def _be_well(self, volume: Volume) -> None:
        """Nothing is wrong with it (any more): it works, or is emptied."""
        self._problems.clear_about("volume_", volume.name)
        volume.turn(VolumeState.DRAINING if volume.draining else VolumeState.ONLINE, None)

    def drain(self, volume: Volume) -> bool:
        """Take no more onto a volume and empty it, until `activate`; whether that is news.

        Raises:
            UsageError: it never was attached, so there is nothing to be emptied.
        """
        with self._lock:
            is_new = self._ledger.drain_volume(self._id(volume), wanted=True)
            volume.draining = True
            if volume.state.owes_space:
                self._be_well(volume)
        if is_new:
            log.info("volume_draining", volume=volume.name)
        return is_new

    def activate(self, volume: Volume) -> bool:
        """Use a volume again that was to be empty; whether that is news.

        Raises:
            UsageError: it never was attached.
        """
        with self._lock:
            is_new = self._ledger.drain_volume(self._id(volume), wanted=False)
            volume.draining = False
            volume.nudged = not volume.attached
            if volume.state is VolumeState.DRAINING and volume.attached:
                self._be_well(volume)
        if is_new:
            log.info("volume_activated", volume=volume.name)
        return is_new

    def _id(self, volume: Volume) -> int:
        if not volume.ledger_id:
            known = self._ledger.views.volume_at(str(volume.path))
            if known is None:
                raise UsageError(
                    f"volume {volume.name} was never in use: {volume.error or 'nothing was found there'}",
                    hint="see what stands in the way: s5jtctl volumes",
                )
            volume.ledger_id = known.id
        return volume.ledger_id

    def strangers(self, volume: Volume) -> list[str]:
        """Folders of chunks on an attached volume that the ledger does not account for.

        Raises:
            VolumeError: it cannot be read.
        """
        known = {chunk.name for chunk in self._ledger.views.chunks(volume.ledger_id, *_ALIVE)}
        try:
            return [name for name in chunks.chunk_names(volume.fd) if name not in known]
        except OSError as error:
            raise volume_error(error, str(volume.path)) from error

    def let_go(self, volume: Volume) -> None:
        """Let go of a volume that was to be emptied and is, so that it can be unmounted and pulled.

        Raises:
            VolumeError: it cannot be read, or not all of it is durable.
        """
        if self._ledger.views.holdings(volume.ledger_id).chunks or self.strangers(volume):
            return
        volume.sync()
        with self._lock:
            went = volume.draining and volume.detach_if_idle()
        if went:
            log.info("volume_drained", volume=volume.name, path=str(volume.path))

    def _twin(self, volume: Volume) -> Volume | None:
        """Who else leads to the same volume: of two that are taken up together, the first has it."""
        same = [one for one in self.volumes if one.attached and one.uuid == volume.uuid]
        return next((o for o in same if o is not volume and (o.state.gives_pushes or o is same[0])), None)

    def fail(self, volume: Volume, error: VolumeError) -> None:
        """Take a volume's state from an error that it gave; said once, not per object."""
        if volume.draining and isinstance(error, VolumeFull):
            return  # it gets nothing more anyway
        with self._lock:
            if volume not in self.volumes:
                return  # it went while somebody tried
            is_news = self._tell(volume, error)
        if is_news:
            log.warning(
                "volume_changed",
                volume=volume.name,
                state=volume.state.value,
                error=str(error),
                hint=error.hint,
            )

    def _tell(self, volume: Volume, error: VolumeError) -> bool:
        changed = volume.fail(error)
        message = f"volume {volume.name}: {error}"
        for other in self._problems.now():  # it is in one state at a time
            if other.subject == volume.name and other.code.startswith("volume_") and other.code != error.code:
                self._problems.clear(other.code, volume.name)
        return self._problems.raise_(error.code, volume.name, message, error.hint) or changed

    def refused_bytes(self, volume: Volume) -> None:
        """A volume took no more bytes, whatever it says of its free space."""
        self._shy[volume.name].begin()
        self.fail(volume, VolumeFull(str(volume.path), hint="it drains by itself"))

    def watch(self, volume: Volume) -> None:
        """Look at an attached volume once: is it itself, how full is it.

        Raises:
            VolumeError: it is not what it was.
        """
        volume.verify()
        if volume.state is VolumeState.READONLY:
            self._try_to_write(volume)
        was_full = volume.state is VolumeState.FULL
        # What is merely promised does not make a volume full: those who were promised it must get it.
        room = volume.space()
        full = space.is_full(was_full, space.usable_bytes(room, volume.reserve, 0), room.total_bytes)
        # One that refuses bytes and shows room all the same has a quota, or less behind it than it says.
        full = full or (was_full and not self._shy[volume.name].is_over)
        if full and not was_full and volume.state is VolumeState.ONLINE:
            self.fail(
                volume, VolumeFull(str(volume.path), hint="it drains as the destination takes its objects")
            )
        elif not full and was_full:
            self._be_well(volume)
            log.info("volume_has_room", volume=volume.name)

    def _try_to_write(self, volume: Volume) -> None:
        """A volume that was mounted read-only may be writable again."""
        if volume.only_read:
            stamp = volume.mark()
            self._ledger.enrol_volume(stamp.uuid, volume.name, str(volume.path), stamp.attach_epoch)
        else:
            probe.write_probe(volume.fd)
        self._be_well(volume)
        log.info("volume_writable", volume=volume.name)

    def take_back(self, volume: Volume) -> None:
        """What was planned on a volume that takes nothing now, and did not begin, may go elsewhere."""
        for chunk in self._ledger.views.chunks(volume.ledger_id, ChunkState.PLANNED):
            with contextlib.suppress(LostRace):  # it began after all
                self._ledger.unplan(chunk)

    def usable_bytes(self, volume: Volume) -> int:
        """What may still be promised on a volume: free, less its reserve, less what is promised.

        Volumes on one file system share its free bytes, so they share what is promised too.

        Raises:
            VolumeError: it cannot be asked.
        """
        sharing = [o.ledger_id for o in self.volumes if o.attached and o.device == volume.device]
        outstanding = self._ledger.views.reserved_bytes(sharing)
        return space.usable_bytes(volume.space(), volume.reserve, outstanding)

    def largest_bytes(self) -> int:
        """What the largest attached volume could hold if it were empty; 0 if that cannot be said now."""
        try:
            return max(
                (
                    v.space().total_bytes - space.reserve_bytes(v.space(), v.reserve)
                    for v in self.volumes
                    if v.attached
                ),
                default=0,
            )
        except VolumeError:
            return 0


class _Attempt(threading.Thread):
    """One volume being taken up at the start: the disk may keep this thread for ever, and nobody else."""

    def __init__(self, pool: Pool, volume: Volume, recover: Recovery) -> None:
        super().__init__(name=f"attach {volume.name}", daemon=True)
        self.volume = volume
        self.error: Exception | None = None
        self._pool = pool
        self._recover = recover
        self._beat_at = time.monotonic()

    def run(self) -> None:
        try:
            with self.volume.use():  # so that nobody else tries meanwhile
                self._pool.attach(self.volume, self._recover, self._beat)
        except Exception as error:  # noqa: BLE001  it is raised where somebody waits for it
            self.error = error
            self.volume.detach()  # if nobody waits any more, the volume is taken up by its watch

    def _beat(self) -> None:
        self._beat_at = time.monotonic()

    def wait(self) -> None:
        """Until it is over, or shows no sign of life."""
        while self.is_alive() and time.monotonic() - self._beat_at < QUIET_SECONDS_MAX:
            self.join(0.1)


def silent(volume: Volume) -> VolumeFailed:
    """What is wrong with a volume on which a thread is stuck."""
    return VolumeFailed(f"{volume.path} does not answer", hint="look for disk errors in `journalctl -k`")


class Watch:
    """Looks after one volume: attaches it when it is there, looks at it while it works."""

    idle_seconds = 2.0
    quiet_seconds_max = 60.0

    def __init__(self, volume: Volume, pool: Pool, recover: Recovery, bell: Bell) -> None:
        """`recover` settles what an earlier life left on a volume, before it is used."""
        self.name = f"watch {volume.name}"
        self.volume = volume
        self._pool = pool
        self._recover = recover
        self._bell = bell
        self._shy = Shyness()
        self._look_at = time.monotonic() + LOOK_AGAIN_SECONDS

    def step(self, beat: Callable[[], None]) -> bool:
        """Look once; let go of a volume that failed, and try to take it up again."""
        volume = self.volume
        if volume.attached and volume.state.gives_pushes:
            unsettled = volume.only_read is not None
            try:
                self._pool.watch(volume)
                if unsettled:  # what could not be removed or moved before can be now
                    self._look_at = time.monotonic()
                self._look_again()
                if volume.state is VolumeState.DRAINING:
                    self._pool.let_go(volume)
            except VolumeError as error:
                self._pool.fail(volume, error)
        if not volume.state.owes_space:
            self._pool.take_back(volume)
        # One that was full when it was to be attached is in such a state, and not attached.
        useless = not volume.attached or not volume.state.gives_pushes
        if useless and not volume.in_use and (volume.nudged or self._shy.is_over):
            self._take_up(volume, beat)
            volume.nudged = False
        return False

    def _look_again(self) -> None:
        if time.monotonic() >= self._look_at and self.volume.state is not VolumeState.READONLY:
            self._look_at = time.monotonic() + LOOK_AGAIN_SECONDS
            with self.volume.use():
                self._recover.look_again(self.volume)

    def _take_up(self, volume: Volume, beat: Callable[[], None]) -> None:
        """Try to attach it; each time it fails again soon after, the next try waits twice as long."""
        volume.detach()
        self._shy.begin()
        if self._pool.attach(volume, self._recover, beat):
            self._bell.ring()
