"""The workers of each volume: those that the daemon begins with, and those of volumes that come later."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from s5jtd.config import VolumeConfig
from s5jtd.ledger.database import BACKUPS
from s5jtd.ledger.direct import DirectBook
from s5jtd.model import Direction
from s5jtd.pool import Watch
from s5jtd.stages.direct import Direct, Shared
from s5jtd.stages.keepsake import KeepCopy
from s5jtd.stages.pull import Pull
from s5jtd.stages.push import Push
from s5jtd.stages.recover import Recover
from s5jtd.stages.release import Release
from s5jtd.stages.streaming import Memory
from s5jtd.volumes.volume import Volume
from s5jtd.worker import Stage, Worker

if TYPE_CHECKING:  # it builds this; the types alone go round
    from s5jtd.app import App

#: Pullers and pushers of a volume: one seals or checks while the other transfers.
SLOTS = 2
#: Checks of a volume at a time.  Most of them wait for a server, which may be far; few of them hash.
CHECKERS = 32


def volume_of(config: VolumeConfig, key: bytes) -> Volume:
    """A volume as the configuration names it, not attached yet."""
    return Volume(config.path, config.name, config.reserve, key)


class Crew:
    """Hires and dismisses them."""

    def __init__(self, app: App, asking: ThreadPoolExecutor, key: bytes) -> None:
        """`key` proves that a volume is ours; nobody is hired yet."""
        self._app = app
        self._asking = asking
        self._key = key
        # One for each volume: threads in a dead disk must not be missing elsewhere.
        self._hashing: dict[str, ThreadPoolExecutor] = {}
        self._stages: dict[str, list[Stage]] = {}
        self.recover = Recover(app.ledger, app.problems, app.jobs, self._puller)

    def hire(self, volume: Volume) -> list[Worker]:
        """The workers of one volume, not started yet."""
        self._hashing[volume.name] = ThreadPoolExecutor(CHECKERS, f"check {volume.name}")
        self._stages[volume.name] = list(self._stages_of(volume))
        return [self._app.hire_one(stage, critical=False) for stage in self._stages[volume.name]]

    def hire_movers(self) -> None:
        """Those who need no volume."""
        app, shared = self._app, Shared(Memory())
        book = DirectBook(app.ledger.database, on_blocked=app.ledger.on_blocked)
        for slot in range(1, SLOTS + 1):
            mover = Direct(
                slot, shared, jobs=app.job_list, ledger=app.ledger, book=book, budget=app.budget,
                unfinished=app.unfinished,
                engine=app.engines, asking=self._asking, meter=app.meter, bell=app.bell, tuner=app.tuner,
                halted=lambda job: any(app.halted(job, one) for one in Direction),
            )  # fmt: skip
            app.hire_one(mover, critical=False)

    def add(self, config: VolumeConfig) -> None:
        """A volume came: it is attached by its own watch, as one that returns is."""
        if self._app.ending.is_set():
            return
        volume = volume_of(config, self._key)
        self._app.pool.add(volume)
        for worker in self.hire(volume):
            worker.start()

    def remove(self, volume: Volume) -> None:
        """A volume that holds nothing went, with its folder."""
        self._app.dismiss(self._stages.pop(volume.name))
        self._app.pool.remove(volume)
        self._hashing.pop(volume.name).shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Let go of the threads that check."""
        for hashing in self._hashing.values():
            hashing.shutdown(wait=False, cancel_futures=True)

    def _stages_of(self, volume: Volume) -> Iterator[Stage]:
        app = self._app
        yield Watch(volume, app.pool, self.recover, app.bell)
        for slot in range(1, SLOTS + 1):
            yield self._pull(slot, volume)
            yield Push(
                slot, volume, jobs=app.jobs, ledger=app.ledger, pool=app.pool, engine=app.engine,
                asking=self._asking, unfinished=app.unfinished, meter=app.meter,
                problems=app.problems, bell=app.bell, tuner=app.tuner,
                halted=partial(app.halted, direction=Direction.PUSH),
            )  # fmt: skip
        yield Release(volume, app.ledger, app.pool, app.bell)
        yield KeepCopy(volume, app.pool, app.config.state_dir / BACKUPS, app.ending)

    def _pull(self, slot: int, volume: Volume) -> Pull:
        app = self._app
        return Pull(
            slot, volume, jobs=app.jobs, ledger=app.ledger, pool=app.pool, engine=app.engine,
            hashing=self._hashing[volume.name], unfinished=app.unfinished, meter=app.meter,
            problems=app.problems, bell=app.bell, tuner=app.tuner,
            halted=partial(app.halted, direction=Direction.PULL),
        )  # fmt: skip

    def _puller(self, volume: Volume) -> Pull:
        return self._pull(0, volume)
