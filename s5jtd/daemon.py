"""The daemon's life on one screen: signals become messages, the watchdog is fed, the end is orderly."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import structlog

from s5jtd.shapes import Reloaded
from s5jtd.worker import Worker

log = structlog.get_logger(__name__)

#: After so long a thread that computes lets others go on.  A request for `status` needs its turn ten times,
#: and with Python's own 5 ms waited a tenth of a second beside two that compute; the others pay 1 % for it.
TURN_SECONDS = 0.001
#: Short, because a single pass is over no sooner than somebody looks.
TICK_SECONDS_MAX = 0.5
#: While it starts: how often to look whether it moves, what counts as moving, how much more time then.
START_LOOK_SECONDS = 20.0
WORK_MIN = 1.0
START_MORE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody wants the daemon to end."""

    reason: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class Reload:
    """Somebody wants the configuration read again, and perhaps to hear how it went."""

    answer: Future[Reloaded] | None = None


Inbox = queue.SimpleQueue[Stop | Reload]


class Notify(Protocol):
    """How the service manager hears of us."""

    def __call__(self, message: str) -> None: ...


class Life(Protocol):
    """What the daemon is made of, as its life needs it."""

    def recover(self) -> None:
        """Settle what an earlier life left, before any worker can see it."""

    def listen(self) -> contextlib.AbstractContextManager[object]:
        """The control socket, open while the context lasts."""

    def workers(self) -> Sequence[Worker]:
        """The workers there are now."""

    def halt(self) -> None:
        """Tell every worker to come to a safe point, and wait for it."""

    def reload(self, answer: Future[Reloaded] | None) -> None:
        """Read the configuration again, and say how it went; a bad one leaves the old in force."""

    def finished(self) -> Stop | None:
        """For a single pass: the end, once there is nothing left to do."""

    def enter(self, state: str) -> None:
        """Tell `status` how far the life has come."""

    def headline(self) -> str:
        """One line for the service manager."""

    def tend(self) -> None:
        """Look after workers that are stuck on a volume."""


def serve(life: Life, inbox: Inbox, notify: Notify) -> Stop:
    """Run until somebody posts a Stop.  Read top to bottom: the daemon's whole life."""
    sys.setswitchinterval(TURN_SECONDS)
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals_into(inbox))
        stack.enter_context(life.listen())  # `status` answers while recovery works through a large volume
        with starting(notify):
            life.recover()  # before any worker can see a row in flight
        stack.callback(life.halt)  # unwinds first: `status` answers while we drain
        for worker in life.workers():
            worker.start()
        life.enter("running")
        notify("READY=1")
        stop = _live(life, inbox, notify)
        log.info("daemon_stopping", reason=stop.reason)
        life.enter("stopping")
        notify(f"STOPPING=1\nSTATUS=stopping: {stop.reason}")
    return stop


def _live(life: Life, inbox: Inbox, notify: Notify) -> Stop:
    tick = min(TICK_SECONDS_MAX, watchdog_seconds() / 3)
    known: set[str] = set()  # those that were said to be stuck: once, not at each tick
    while True:
        with contextlib.suppress(queue.Empty):
            message = inbox.get(timeout=tick)
            if isinstance(message, Stop):
                return message
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            life.reload(message.answer)
            notify("READY=1")
        stuck = {worker.name: worker for worker in life.workers() if worker.critical and worker.stuck()}
        if not stuck:
            notify("WATCHDOG=1")
        for name in sorted(stuck.keys() - known):
            log.error("worker_stuck", worker=name, where=stuck[name].where())
        known = set(stuck)
        life.tend()
        notify(f"STATUS={life.headline()}")
        if (end := life.finished()) is not None:
            return end


@contextlib.contextmanager
def starting(notify: Notify) -> Iterator[None]:
    """Ask the service manager for more time, again and again while the process visibly works.

    To read a large ledger through, or to hash what a power cut left on a volume, may take longer than any
    limit; a thread in a dead disk reads nothing, and for that one the limit is there.
    """
    over = threading.Event()

    def ask() -> None:
        before = _work_done()
        while not over.wait(START_LOOK_SECONDS):
            now = _work_done()
            if now - before >= WORK_MIN:
                notify(f"EXTEND_TIMEOUT_USEC={int(START_MORE_SECONDS * 1e6)}\nSTATUS=starting: recovery")
            before = now

    asking = threading.Thread(target=ask, name="starting", daemon=True)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()


def _work_done() -> float:
    """A number that grows while this process works: processor seconds, and MiB read."""
    try:
        with open("/proc/self/io", "rb") as file:
            read = int(file.readline().split()[1])
    except (OSError, ValueError, IndexError):
        read = 0
    return time.process_time() + read / 2**20


def watchdog_seconds() -> float:
    """How often the service manager wants to hear from us; a long time where it does not care."""
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1e6
    except (KeyError, ValueError):
        return 3600.0


@contextlib.contextmanager
def signals_into(inbox: Inbox) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP become messages; a second SIGINT ends the process at once.

    A handler may interrupt the very thread that holds a lock, so it must not take one:
    `SimpleQueue.put` is made for that, `Event.set` and logging are not.
    """
    handlers: dict[int, Callable[[int, object], None]] = {
        signal.SIGTERM: lambda *_: inbox.put(Stop("SIGTERM", 128 + signal.SIGTERM)),
        signal.SIGINT: lambda *_: _interrupted(inbox),
        signal.SIGHUP: lambda *_: inbox.put(Reload()),
    }
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            # After a Ctrl-C the next one stays the kernel's: what is left of the life is closing the ledger.
            if signal.getsignal(number) is handlers[number]:
                signal.signal(number, handler)


def _interrupted(inbox: Inbox) -> None:
    # The kernel's own action: s5cmd's processes die with us, and recovery does the rest.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    inbox.put(Stop("SIGINT", 128 + signal.SIGINT))
