"""The native engine: the objects of a batch by a few threads, whose effects end with the run."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final

from s5jtd.engine.contract import (
    Batch,
    Caller,
    Draw,
    End,
    Failure,
    Outcome,
    Remote,
    Run,
    Transfer,
    Ways,
    no_limit,
)
from s5jtd.engine.native import down, headers, up
from s5jtd.engine.native.client import Clients, failure_of
from s5jtd.engine.native.sink import Sink
from s5jtd.engine.native.work import Cancelled, Tally
from s5jtd.model import NO_BELONGINGS, Belongings, Direction

_BEAT_SECONDS: Final = 0.5
#: Objects at a time; more would wait for this process's one interpreter.
_HANDS_MAX: Final = 16


class Native:
    """Moves batches with botocore."""

    name = "native"

    def __init__(
        self,
        *,
        stall_seconds: float = 60.0,
        grace_seconds: float = 2.0,
        ways: Ways | None = None,
        draw: Draw = no_limit,
    ) -> None:
        """A run that moves nothing for `stall_seconds` is ended; what then still waits for a server is left.

        A thread that is left behind notices when it wakes, and does nothing more.  Bytes are drawn for
        before they move; only what has to leave from somewhere takes one of the `ways`, which draws itself.
        """
        self._stall_seconds = stall_seconds
        self._grace_seconds = grace_seconds
        self._ways = ways
        self._draw = draw
        self._clients = Clients(stall_seconds, (headers.install, up.install))

    def refuses(self, key: bytes, takes: Belongings = NO_BELONGINGS) -> str | None:
        """See `Engine.refuses`."""
        if not key:
            return "nothing can name an empty key"
        try:
            key.decode()
        except UnicodeDecodeError:
            return "the native engine cannot name a key that is not UTF-8"
        return headers.refusal(takes)

    def sink(self, remote: Remote) -> Sink:
        """Where bytes can be put that lie on no disk."""
        return Sink(self._clients.get, remote)

    def run(self, batch: Batch, caller: Caller) -> Run:
        """See `Engine.run`."""
        given = batch.remote
        if given.bind is None or self._ways is None:
            tally = Tally(partial(self._draw, batch.direction))
            return self._run(_Crew(self, self._clients, batch, tally), caller)
        with self._ways(batch.direction, given.endpoint_url, proxy=given.proxy, bind=given.bind) as way:
            remote = replace(given, endpoint_url=way.endpoint_url, proxy=way.proxy)
            crew = _Crew(self, self._clients, replace(batch, remote=remote), Tally())
            return self._run(crew, replace(caller, stop=lambda: caller.stop() or not way.holds()))

    def _run(self, crew: _Crew, caller: Caller) -> Run:
        crew.start()
        end: End | None = None
        beat_at = leave_at = 0.0
        while not crew.done:
            self._hear(crew, caller, _BEAT_SECONDS / 2)
            now = time.monotonic()
            if now - beat_at >= _BEAT_SECONDS:
                beat_at = now
                caller.on_progress(crew.tally.take())
            if end is None:
                end = self._ended(crew, caller.stop)
                leave_at = now + self._grace_seconds
            elif now > leave_at:
                break
        self._hear(crew, caller, 0)
        caller.on_progress(crew.tally.take())
        return Run(end or End.EXITED, 0 if end is None else None)

    def _hear(self, crew: _Crew, caller: Caller, seconds: float) -> None:
        for outcome in crew.outcomes(seconds):
            caller.on_outcome(outcome)

    def _ended(self, crew: _Crew, stop: Callable[[], bool]) -> End | None:
        """Why the run must end now, if it must; then it was told to."""
        end = End.STOPPED if stop() else None
        if end is None and crew.tally.still_seconds() > self._stall_seconds:
            end = End.STALLED
        if end is not None:
            crew.tally.cancel()
        return end


class _Crew:
    """The threads of one run."""

    def __init__(self, engine: Native, clients: Clients, batch: Batch, tally: Tally) -> None:
        self.tally = tally
        self._engine = engine
        self._clients = clients
        self._batch = batch
        self._todo: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        for transfer in batch.transfers:
            self._todo.put(transfer)
        self._said: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        hands = min(batch.workers, _HANDS_MAX, len(batch.transfers))
        self._threads = [
            threading.Thread(target=self._work, name=f"native {number}", daemon=True)
            for number in range(hands)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def done(self) -> bool:
        """Whether all of them came to their end, and all that they said was heard."""
        return not any(thread.is_alive() for thread in self._threads) and self._said.empty()

    def outcomes(self, seconds: float) -> list[Outcome]:
        """What was said since the last call; waits so long for the first."""
        found = []
        try:
            found.append(self._said.get(timeout=seconds) if seconds else self._said.get_nowait())
            while True:
                found.append(self._said.get_nowait())
        except queue.Empty:
            return found

    def _work(self) -> None:
        while True:
            try:
                transfer = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                outcome = self._one(transfer)
                self.tally.check()
            except Cancelled:
                return
            self._said.put(outcome)

    def _one(self, transfer: Transfer) -> Outcome:
        batch = self._batch
        reason = self._engine.refuses(transfer.key, transfer.takes)
        if reason is not None:
            return Outcome(transfer.name, Failure.OTHER, reason)
        try:
            client = self._clients.get(batch.remote)
            if batch.direction is Direction.PULL:
                down.pull(client, batch, transfer, self.tally)
            else:
                up.push(client, batch, transfer, self.tally)
        except Cancelled:
            raise
        except Exception as error:  # noqa: BLE001  (what a server makes a library raise is no bug of ours)
            self.tally.check()  # what the end of the run made fail did not fail by itself
            failure, message = failure_of(error)
            return Outcome(transfer.name, failure, message)
        return Outcome(transfer.name)
