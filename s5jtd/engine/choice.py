"""Which engine carries what: one that stands for all, and gives each transfer to the one that can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from s5jtd.engine import language
from s5jtd.engine.contract import (
    Batch,
    Caller,
    Draw,
    End,
    Engine,
    Outcome,
    Run,
    Transfer,
    Ways,
    no_limit,
)
from s5jtd.engine.experience import Experience, Place
from s5jtd.engine.s5cmd import S5cmd
from s5jtd.model import NO_BELONGINGS, Belongings

if TYPE_CHECKING:
    from s5jtd.engine.native.engine import Native

_MESSAGES_MAX: Final = 20
#: Where a job leaves the choice: up to this much in one batch is moved sooner than an s5cmd has begun (13 ms
#: instead of 200 for one small object, and as fast as it for 64 of them).
_FEW_OBJECTS: Final = 16
_FEW_BYTES: Final = 16 * 1024 * 1024


class Engines:
    """s5cmd for what it can carry; the native engine for the rest, and where it is preferred or faster."""

    name = "s5cmd"

    def __init__(self, s5cmd: S5cmd | None = None, ways: Ways | None = None, draw: Draw = no_limit) -> None:
        """The native engine is not even loaded before something needs it; `ways` and `draw` are for it.

        Raises:
            EngineError: there is no s5cmd.
        """
        self.s5cmd = s5cmd or S5cmd()
        self._ways = ways
        self.draw = draw
        self._experience = Experience()

    @cached_property
    def native(self) -> Native:
        """The native engine."""
        from s5jtd.engine.native.engine import Native  # noqa: PLC0415  (20 MB that most never need)

        return Native(ways=self._ways, draw=self.draw)

    def refuses(self, key: bytes, takes: Belongings = NO_BELONGINGS) -> str | None:
        """See `Engine.refuses`: what one of them can carry is not refused."""
        return None if self.s5cmd.refuses(key, takes) is None else self.native.refuses(key, takes)

    def run(self, batch: Batch, caller: Caller) -> Run:
        """See `Engine.run`; where both have to work, one comes after the other."""
        runs: list[Run] = []
        for engine, transfers in self._shares(batch):
            if runs and (runs[-1].end is not End.EXITED or caller.stop()):
                runs.append(Run(End.STOPPED, None))
                break
            part = replace(batch, transfers=transfers)
            learn = self._learning(part, by_s5cmd=engine is self.s5cmd, then=caller.on_outcome)
            runs.append(engine.run(part, replace(caller, on_outcome=learn)))
        if not runs:
            return Run(End.EXITED, 0)
        worst = next((run for run in runs if run.end is not End.EXITED), runs[0])
        messages = [message for run in runs for message in run.messages]
        starved = any(run.starved for run in runs)
        return replace(worst, messages=tuple(messages[:_MESSAGES_MAX]), starved=starved)

    def _learning(
        self, batch: Batch, *, by_s5cmd: bool, then: Callable[[Outcome], None]
    ) -> Callable[[Outcome], None]:
        place = Place.of(batch)
        keys = {one.name: one.key for one in batch.transfers}
        learn = self._experience.s5cmd_said if by_s5cmd else self._experience.native_said

        def on_outcome(outcome: Outcome) -> None:
            learn(place, keys[outcome.name], outcome)
            then(outcome)

        return on_outcome

    def _shares(self, batch: Batch) -> list[tuple[Engine, tuple[Transfer, ...]]]:
        whole = (
            batch.preference == "native"
            or (batch.preference == "auto" and _is_little(batch))
            or language.bucket_refusal(batch.remote.bucket) is not None
            or not batch.remote.s5cmd_fits
            or self._experience.is_unfit(Place.of(batch))
        )
        for_native = tuple(one for one in batch.transfers if whole or self._needs_native(batch, one))
        names = {one.name for one in for_native}
        for_s5cmd = tuple(one for one in batch.transfers if one.name not in names)
        shares: list[tuple[Engine, tuple[Transfer, ...]]] = []
        if for_s5cmd:
            shares.append((self.s5cmd, for_s5cmd))
        if for_native:
            shares.append((self.native, for_native))
        return shares

    def _needs_native(self, batch: Batch, one: Transfer) -> bool:
        if one.resumable or batch.remote.addressing == "virtual":
            return True
        if self._experience.was_refused(Place.of(batch), one.key):
            return True
        return self.s5cmd.refuses(one.key, one.takes) is not None


def _is_little(batch: Batch) -> bool:
    return len(batch.transfers) <= _FEW_OBJECTS and sum(one.size for one in batch.transfers) <= _FEW_BYTES
