"""A worker is a thread around a stage's `step`: it owns the loop, the rests and the heartbeat."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

import structlog

log = structlog.get_logger(__name__)

#: Of a thread that is stuck: enough to see in what, and from which step of which stage.
CALLS_SHOWN: Final = 12


class Stage(Protocol):
    """One arrow of the road, or one recurring duty."""

    name: str
    idle_seconds: float  #: how long to rest when there was nothing to do and nobody rang
    quiet_seconds_max: float  #: silent for longer than this, and it is stuck

    def step(self, beat: Callable[[], None]) -> bool:
        """Do one bounded piece of work; call `beat` whenever it visibly moves on.

        Returns False when there was nothing to do.
        """


class Bell:
    """Wakes every resting worker when something changed that may be work for one of them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rung = 0

    def ring(self) -> None:
        """Something changed."""
        with self._condition:
            self._rung += 1
            self._condition.notify_all()

    def heard(self) -> int:
        """How often it rang; give it to `wait`, and a ring in between is not missed."""
        return self._rung

    def wait(self, heard: int, seconds: float) -> None:
        """Rest until it rings again, at most `seconds`."""
        with self._condition:
            self._condition.wait_for(lambda: self._rung != heard, seconds)


class Worker(threading.Thread):
    """Runs a stage until told to stop."""

    def __init__(
        self,
        stage: Stage,
        *,
        stop: threading.Event,
        bell: Bell,
        on_crash: Callable[[str, Exception], None],
        critical: bool,
    ) -> None:
        """`critical`: a stuck one stops the watchdog; false for those bound to one volume."""
        super().__init__(name=stage.name, daemon=True)
        self.stage = stage
        self.critical = critical
        self._stop_requested = stop
        self._retired = threading.Event()
        self._bell = bell
        self._on_crash = on_crash
        self._beat_at = time.monotonic()

    def stuck(self) -> bool:
        """Alive is not enough: a thread in a dead mount is alive."""
        return self.is_alive() and time.monotonic() - self._beat_at > self.stage.quiet_seconds_max

    def where(self) -> str:
        """Where it stands, the innermost call first; no longer than a line of a log may be."""
        frame = sys._current_frames().get(self.ident or 0)  # noqa: SLF001  documented, and its only name
        calls = [] if frame is None else list(traceback.walk_stack(frame))[:CALLS_SHOWN]
        return " < ".join(f"{Path(f.f_code.co_filename).name}:{line} {f.f_code.co_name}" for f, line in calls)

    def beat(self) -> None:
        """It moves."""
        self._beat_at = time.monotonic()

    def retire(self) -> None:
        """End this worker alone, after its present step."""
        self._retired.set()
        self._bell.ring()

    def run(self) -> None:
        """The thread's body."""
        with structlog.contextvars.bound_contextvars(stage=self.stage.name):
            try:
                self._loop()
            except Exception as error:  # noqa: BLE001  a worker must not die quietly
                self._on_crash(self.stage.name, error)

    def _loop(self) -> None:
        while not (self._stop_requested.is_set() or self._retired.is_set()):
            heard = self._bell.heard()
            self.beat()
            if not self.stage.step(self.beat):
                self._bell.wait(heard, self.stage.idle_seconds)
