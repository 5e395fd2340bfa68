"""Starts daemons in milliseconds, and strikes them at the Nth system call that durability rests on.

A daemon's start is mostly imports, and thousands of power cuts would be mostly starts.  The nursery is a
process that has imported everything and forks one life after another; each is the daemon itself, with
its own process id, threads, descriptors and children, and only its `exec` is missing.

It can also watch a life by ptrace(2), so that the Nth durable call of the whole family (all threads and
s5cmd too, in the order in which they happen) is where it is killed or fails.  strace(1) cannot do
that: its `when=N` counts for each thread and each call by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

KILL: Final = "KILL"  #: The whole daemon is gone before the call; any other fate is the errno it fails with.
LOST: Final = "LOST"  #: The end of the file that the call is about is lost, and it fails with EIO.

#: Of x86-64.  What changes names or makes anything durable.
CALLS: Final = {
    74: "fsync", 75: "fdatasync", 306: "syncfs", 82: "rename", 264: "renameat", 316: "renameat2",
    87: "unlink", 263: "unlinkat", 83: "mkdir", 258: "mkdirat", 84: "rmdir", 76: "truncate", 77: "ftruncate",
}  # fmt: skip
#: Made very often and of no moment to most: stopped at only where the pattern of a fate names it.
ON_REQUEST: Final = {3: "close"}
#: Which argument is a descriptor to describe, and which a path; -1: none.
_ARGUMENTS: Final = {
    "fsync": (0, -1), "fdatasync": (0, -1), "syncfs": (0, -1), "ftruncate": (0, -1), "rename": (-1, 1),
    "renameat": (2, 3), "renameat2": (2, 3), "unlink": (-1, 0), "unlinkat": (0, 1), "mkdir": (-1, 0),
    "mkdirat": (0, 1), "rmdir": (-1, 0), "truncate": (-1, 0), "close": (0, -1),
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a life ended."""

    exit_code: int  #: negative: the signal that ended it
    calls: list[str] = field(default_factory=list)  #: the durable calls it made, where it was watched
    struck: str | None = None  #: the call that its fate met, if it came so far


class Life:
    """One daemon; it answers like a `subprocess.Popen`."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.ended: Ended | None = None

    @property
    def returncode(self) -> int | None:
        return None if self.ended is None else self.ended.exit_code

    def poll(self) -> int | None:
        if self.ended is None and self._nursery.has_news(0.0):
            self.ended = self._nursery.hear_end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.ended is None:
            if not self._nursery.has_news(timeout):
                raise subprocess.TimeoutExpired("a daemon of the nursery", timeout or 0.0)
            self.ended = self._nursery.hear_end()
        return self.ended.exit_code

    def send_signal(self, number: int) -> None:
        # Until its end was heard the nursery may have reaped it already: then there is nobody to hit.
        with contextlib.suppress(ProcessLookupError):
            if self.ended is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The harness's end of the nursery's process; one life at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, os.fspath(Path(__file__))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[1])},
        )  # fmt: skip

    def start(
        self, arguments: Sequence[str], log: Path, *, at: int | None = None, fate: str = KILL, on: str = ""
    ) -> Life:
        """Begin `s5jtd ARGUMENTS`; with `at`, its durable call of that number meets `fate`.

        Counting begins at 1; with 0 the calls are only noted.  Only calls count whose description,
        such as `fsync s5jtd/CHUNK/sealed.json.new`, has the pattern `on` in it.
        """
        order = {"argv": list(arguments), "log": os.fspath(log), "at": at, "fate": fate, "on": on}
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(order).encode() + b"\n")
        stdin.flush()
        return Life(self, int(self._hear()["pid"]))

    def has_news(self, timeout: float | None) -> bool:
        assert self._process.stdout is not None
        return bool(select.select([self._process.stdout], [], [], timeout)[0])

    def hear_end(self) -> Ended:
        return Ended(**self._hear())

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the nursery died; its standard error says why")
        message: dict[str, Any] = json.loads(line)
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def why_not_watched() -> str | None:
    """Why lives cannot be watched on this machine; None where they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"system calls are counted on x86-64 Linux only, and this is {platform.machine()}"
    return None


# From here on: inside the nursery's process.

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long

_CONT, _POKEUSER, _SEIZE, _LISTEN, _GET_SYSCALL_INFO = 7, 6, 0x4206, 0x4208, 0x420E
#: TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, TRACESECCOMP, EXITKILL.
_OPTIONS = 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
_EVENT_SECCOMP, _EVENT_STOP = 7, 128
_WALL = 0x40000000
_RAX, _ORIG_RAX = 10 * 8, 15 * 8  # their places in struct user
_AUDIT_ARCH_X86_64 = 0xC000003E
#: struct ptrace_syscall_info: op, arch, then, in a seccomp stop, the call's number and arguments.
_INFO: Final = struct.Struct("=B3xIQQQ6QI4x")
_SURVIVORS_SECONDS = 90.0


def _watched_only(on: str) -> None:
    """Let the kernel stop this process, and all it will ever start, at the durable calls alone."""
    load, jump_equal, give = 0x20, 0x15, 0x06
    trace, allow = 0x7FF00000, 0x7FFF0000
    numbers = sorted([*CALLS, *(number for number, name in ON_REQUEST.items() if name in on)])
    program = [(load, 0, 0, 4), (jump_equal, 0, len(numbers) + 1, _AUDIT_ARCH_X86_64), (load, 0, 0, 0)]
    program += [(jump_equal, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program += [(give, 0, 0, allow), (give, 0, 0, trace)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if _libc.prctl(no_new_privileges, 1, 0, 0, 0) or _libc.prctl(set_seccomp, filter_mode, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


class _Watch:
    """Follows a life and everything it starts, and strikes once."""

    def __init__(self, root: int, order: dict[str, Any]) -> None:
        self._root = root
        self._left: int = order["at"]
        self._fate: str = order["fate"]
        self._on: str = order["on"]
        self.calls: list[str] = []
        self.struck: str | None = None
        if _libc.ptrace(_SEIZE, root, None, _OPTIONS) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def follow(self) -> int:
        """Until the last of the family is gone; the exit code of the first."""
        exit_code: int | None = None
        deadline = float("inf")
        while True:
            try:
                pid, status = os.waitpid(-1, _WALL | (os.WNOHANG if exit_code is not None else 0))
            except ChildProcessError:
                return exit_code or 0
            if pid == 0:
                if time.monotonic() > deadline:
                    raise RuntimeError("s5cmd outlived its daemon")
                time.sleep(0.005)
            elif not os.WIFSTOPPED(status):
                if pid == self._root:
                    exit_code = os.waitstatus_to_exitcode(status)
                    deadline = time.monotonic() + _SURVIVORS_SECONDS
            else:
                self._stopped(pid, status)

    def _stopped(self, pid: int, status: int) -> None:
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_SECCOMP:
            self._meet(pid)
        stays = event == _EVENT_STOP and number in {signal.SIGSTOP, signal.SIGTSTP}
        passed_on = 0 if event else number
        _libc.ptrace(_LISTEN if stays else _CONT, pid, None, passed_on)

    def _meet(self, pid: int) -> None:
        call = _describe(pid)
        self.calls.append(call)
        if not re.search(self._on, call):
            return
        self._left -= 1
        if self._left != 0:
            return
        self.struck = call
        if self._fate == KILL:
            os.kill(self._root, signal.SIGKILL)
            return
        if self._fate == LOST:
            _lose_the_end(pid)
        code = errno.EIO if self._fate == LOST else getattr(errno, self._fate)
        _libc.ptrace(_POKEUSER, pid, _ORIG_RAX, ctypes.c_void_p(-1))
        _libc.ptrace(_POKEUSER, pid, _RAX, ctypes.c_void_p(-code))


def _call_of(pid: int) -> tuple[int, list[int]] | None:
    """Number and arguments of the call that a thread is stopped at; None if it was killed meanwhile."""
    buffer = ctypes.create_string_buffer(_INFO.size)
    if _libc.ptrace(_GET_SYSCALL_INFO, pid, ctypes.c_void_p(_INFO.size), buffer) <= 0:
        return None
    _, _, _, _, number, *arguments, _ = _INFO.unpack(buffer.raw)
    return number, arguments


def _lose_the_end(pid: int) -> None:
    """Of the file that the call's first argument is a descriptor of, half is gone."""
    call = _call_of(pid)
    if call is None:
        return
    file = f"/proc/{pid}/fd/{call[1][0]}"
    os.truncate(file, os.stat(file).st_size // 2)


def _describe(pid: int) -> str:
    """The call and the kind of file it is about, the same for each run: `fsync vol/s5jtd/#/sealed.json`."""
    call = _call_of(pid)
    if call is None:
        return "gone"
    number, arguments = call
    name = CALLS.get(number) or ON_REQUEST.get(number, str(number))
    descriptor, path = _ARGUMENTS[name]
    place = ""
    with contextlib.suppress(OSError):
        if descriptor >= 0 and arguments[descriptor] < 1 << 31:
            place = os.readlink(f"/proc/{pid}/fd/{arguments[descriptor]}")
        if path >= 0:
            place = os.path.join(place, _text_at(pid, arguments[path]))
        with open(f"/proc/{pid}/comm") as comm:
            by = "s5cmd: " if comm.read().startswith("s5cmd") else ""
        return f"{by}{name} {_kind(place)}"
    return name


def _text_at(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(address)
        return memory.read(256).split(b"\0")[0].decode("utf-8", "replace")


def _kind(place: str) -> str:
    """A path without what differs from run to run."""
    short = re.sub(r"\b[0-9a-f]{16}\b", "CHUNK", place)
    short = re.sub(r"\b[0-9a-f]+\.obj\d*", "OBJECT", short)
    return "/".join(short.split("/")[-4:])


def _live(order: dict[str, Any], ready_fd: int) -> None:
    """The forked child: becomes the daemon."""
    os.read(ready_fd, 1)
    os.close(ready_fd)
    null, log = (
        os.open(os.devnull, os.O_RDONLY),
        os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    )
    for target, fd in ((0, null), (1, log), (2, log)):
        os.dup2(fd, target)
    os.closerange(3, 256)
    if order["at"] is not None:
        _watched_only(order["on"])
    sys.argv = ["s5jtd", *order["argv"]]
    from s5jtd.cli import main

    main()


def _raise_one(order: dict[str, Any]) -> None:
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write_fd)
        _live(order, read_fd)
        sys.exit(0)
    os.close(read_fd)
    watch = None if order["at"] is None else _Watch(pid, order)
    os.write(write_fd, b"!")
    os.close(write_fd)
    _say({"pid": pid})
    if watch is None:
        _say({"exit_code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})
    else:
        exit_code = watch.follow()
        _say({"exit_code": exit_code, "calls": watch.calls, "struck": watch.struck})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _serve() -> None:
    import s5jtd.app
    import s5jtd.commands.run  # noqa: F401  the imports are what a life is spared

    # Orders are read by descriptor: a child must not inherit what a buffer read ahead.
    for line in iter(lambda: _read_line(0), b""):
        _raise_one(json.loads(line))


def _read_line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(fd, 1)
        if not piece:
            return b""
        line += piece
    return line


if __name__ == "__main__":
    _serve()
