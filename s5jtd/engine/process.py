"""The one door for subprocesses: exact surroundings, both pipes drained, and a certain end.

One thread owns a process: the one that reads its lines.  It needs no helper threads, because it waits for
both pipes and for the end of the process at once; and a reader that falls behind slows the process
down instead of filling our memory.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from s5jtd.errors import EngineError

#: Longer lines are cut: a key of 1,024 bytes, each escaped in six characters, fits many times over.
LINE_BYTES_MAX: Final = 64 * 1024
_READ_BYTES: Final = 64 * 1024
#: Lines come one by one, and to wake up for each would cost more than to read it.
_GATHER_SECONDS: Final = 0.01
#: How long to wait at a pipe that is still open after its process ended: what the process itself said is
#: there at once, and whoever else holds the pipe has nothing to say to us.
_PIPE_GRACE_SECONDS: Final = 0.5
#: Where memory runs out the kernel should take a transfer, which is repeated, and not the daemon.
_OOM_SCORE_ADJUSTMENT: Final = 500

#: Becomes the program, after it made sure that it dies with its parent.  Between fork and exec of a
#: process with threads this cannot be done safely; a program of its own can also look whether the
#: parent was quicker.  Python's locale coercion leaves a variable that nobody asked for.
_TRAMPOLINE: Final = """
import ctypes, os, signal, sys
parent, oom_score_adjustment, program = sys.argv[1:4]
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(parent):
    sys.exit("the parent is gone")
try:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(oom_score_adjustment)
except OSError:
    pass
env = {name: value for name, value in os.environ.items() if name != "LC_CTYPE"}
try:
    os.execve(program, sys.argv[3:], env)
except OSError as error:
    sys.exit(f"{program}: {error.strerror}")
"""

#: The parent-death signal comes when the *thread* that made the child ends, so that one thread, which
#: lives as long as the interpreter, makes them all.
_MAKER: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="process-maker")


class Counters(NamedTuple):
    """Bytes a process moved by system calls, sockets and pipes included."""

    read_bytes: int
    written_bytes: int


class LineSplitter:
    """Cuts a stream into lines at `\\n` only, and each line at a length."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False  # the rest of a line that was cut

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes, without their ends."""
        *lines, rest = (self._rest + data).split(b"\n")
        if lines and self._skipping:
            del lines[0]
            self._skipping = False
        if self._skipping:
            rest = b""
        elif len(rest) > LINE_BYTES_MAX:
            lines.append(rest)
            rest = b""
            self._skipping = True
        self._rest = rest
        return [line[:LINE_BYTES_MAX] for line in lines]

    def end(self) -> list[bytes]:
        """The last line, where the stream did not end it."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


class Child:
    """A running process.  Until its `spawn` block ends it is not reaped, so that its id stays its own."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self._popen = popen
        self.exited = False  #: it ran to its end, as far as `lines` noticed
        self.ended = False  #: it exited, and all it said was read
        self._gather = True
        self._pidfd = os.pidfd_open(popen.pid)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pidfd, selectors.EVENT_READ)
        for pipe in (popen.stdout, popen.stderr):
            assert pipe is not None  # noqa: S101  for the type checker
            self._selector.register(pipe.fileno(), selectors.EVENT_READ, LineSplitter())

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is None:
            return None
        return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status

    def lines(self, wait_seconds: float) -> list[bytes]:
        """What it said on either pipe since the last call; waits so long for something to happen."""
        found: list[bytes] = []
        ready = self._selector.select(_PIPE_GRACE_SECONDS if self.exited else wait_seconds)
        if self.exited and not ready:
            self.ended = True
        elif ready and self._gather and not self.exited:
            time.sleep(_GATHER_SECONDS)
        for key, _ in ready:
            if key.fd == self._pidfd:
                self.exited = True
                self._selector.unregister(self._pidfd)
            else:
                found += self._read(key)
        self.ended = self.ended or not self._selector.get_map()
        return found

    def counters(self) -> Counters | None:
        """What it moved so far, also once it exited; None where the kernel does not say."""
        try:
            with open(f"/proc/{self.pid}/io", "rb") as file:
                numbers = [int(line.split(b" ")[1]) for line in file.readlines()[:2]]
        except (OSError, ValueError, IndexError):
            return None
        return Counters(*numbers)

    def ask(self) -> None:
        """Ask it to end; a stopped process is woken, or it would not hear."""
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    def insist(self) -> None:
        """End it, and all that it started."""
        self._signal(signal.SIGKILL)

    def end(self, grace_seconds: float) -> None:
        """Ask, wait, insist, reap.  It is gone when this returns; one stuck in the kernel holds us up."""
        try:
            if not self.exited:
                self.ask()
            deadline = time.monotonic() + grace_seconds
            while not self.exited and (left := deadline - time.monotonic()) > 0:
                self.lines(left)
        finally:
            self.insist()
            self._selector.close()
            os.close(self._pidfd)
            self._popen.wait()

    def _read(self, key: selectors.SelectorKey) -> list[bytes]:
        splitter: LineSplitter = key.data
        data = os.read(key.fd, _READ_BYTES)
        self._gather = len(data) < _READ_BYTES // 2  # in a flood there is nothing to wait for
        if data:
            return splitter.feed(data)
        self._selector.unregister(key.fd)
        return splitter.end()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


@contextlib.contextmanager
def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    grace_seconds: float,
    folder_fd: int | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[Child]:
    """Run one program; on the way out it is gone, whatever happened inside.

    Its environment is exactly `env`, its working directory the open folder `folder_fd` (the volume's
    root could be unmounted and its path name another disk by now), and of our descriptors it gets that
    one and `pass_fds`.  It leads its own session and process group, and dies when we do.

    Raises:
        EngineError: it could not be started.
    """
    held = [*pass_fds] if folder_fd is None else [*pass_fds, folder_fd]
    trampoline = [sys.executable, "-I", "-S", "-c", _TRAMPOLINE, str(os.getpid()), str(_OOM_SCORE_ADJUSTMENT)]
    try:
        popen = _MAKER.submit(
            subprocess.Popen,
            [*trampoline, *argv],
            env=dict(env),
            cwd="/" if folder_fd is None else f"/proc/self/fd/{folder_fd}",
            pass_fds=held,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ).result()
    except OSError as error:
        raise EngineError(f"{argv[0]}: {error.strerror}", hint="it is tried again by itself") from error
    with popen:  # closes our ends of the pipes
        try:
            child = Child(popen)
        except OSError as error:
            popen.kill()
            raise EngineError(f"{argv[0]}: {error.strerror}", hint="it is tried again by itself") from error
        try:
            yield child
        finally:
            child.end(grace_seconds)
