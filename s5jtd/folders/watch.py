"""Hears from the kernel that something changed below a folder, so that nobody waits for the next look.

It says when to look and never what is there: the look itself finds that, and watches every folder before it
lists it.  Where nothing can be heard, on another machine's file systems and beyond the kernel's limit, a
look every `scan_every` finds it later.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

import structlog

from s5jtd.folders.paths import OURS

log = structlog.get_logger(__name__)

#: Folders watched for one job: each keeps about 1 KiB of the kernel's memory.
WATCHES_MAX: Final = 100_000
#: Changes closer to one another than this are one.
_GRAIN_SECONDS: Final = 0.25
#: So many moments of change are kept apart.
_MOMENTS_MAX: Final = 1000

_CLOSE_WRITE: Final = 0x8
_MOVED_TO: Final = 0x80
_MOVE_SELF: Final = 0x800
_CREATE: Final = 0x100
_Q_OVERFLOW: Final = 0x4000
_IGNORED: Final = 0x8000
_IS_DIRECTORY: Final = 0x4000_0000
_ONLY_DIRECTORIES: Final = 0x0100_0000
#: A file that is created is not whole yet; its writer closes it, or gives it its name.
_WANTED: Final = _CLOSE_WRITE | _MOVED_TO | _CREATE | _MOVE_SELF | _ONLY_DIRECTORIES
_EVENT: Final = struct.Struct("iIII")
_READ_BYTES: Final = 1 << 16
_libc: Final = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """One folder with all below it."""

    def __init__(self, settle_seconds: float, clock: Callable[[], float] = time.time) -> None:
        """A file may be taken `settle_seconds` after it changed; nothing is heard before the first `add`."""
        self._settle_seconds = settle_seconds
        self._clock = clock
        self._grain = max(_GRAIN_SECONDS, settle_seconds / _MOMENTS_MAX)
        self._moments: set[int] = set()  # when something may be taken, in grains
        self._lock = threading.RLock()
        self._fd: int | None = None
        self._watched: set[int] = set()
        self._is_limited = False
        #: Files that the newest look at all of it passed over, because they had not settled.
        self.young = 0

    def add(self, folder_fd: int) -> None:
        """Hear of a folder from now on; one that is watched already is not watched twice."""
        with self._lock:
            if self._is_limited or (self._fd is None and not self._open()):
                return
            number = _libc.inotify_add_watch(self._fd, b"/proc/self/fd/%d" % folder_fd, _WANTED)
            if number >= 0:
                self._watched.add(number)
            if len(self._watched) > WATCHES_MAX:
                self._limit(f"the first {WATCHES_MAX} of its folders are watched", "deliver from several")
            elif number < 0 and ctypes.get_errno() == errno.ENOSPC:
                self._limit(
                    f"the kernel lets us watch {len(self._watched)} of its folders",
                    "raise fs.inotify.max_user_watches with sysctl",
                )

    def changed(self, at: float) -> None:
        """Something changed at this Unix time, and may be taken once it has settled."""
        with self._lock:
            self._moments.add(math.ceil((at + self._settle_seconds) / self._grain))

    def is_due(self) -> bool:
        """Whether something may be taken that no look has met."""
        with self._lock:
            self._hear()
            return bool(self._moments) and min(self._moments) * self._grain <= self._clock()

    def begin(self) -> None:
        """A look begins, and meets whatever has settled by now."""
        with self._lock:
            self._hear()
            now = self._clock()
            self._moments = {moment for moment in self._moments if moment * self._grain > now}

    def _open(self) -> bool:
        fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            self._limit("the kernel watches nothing more", "raise fs.inotify.max_user_instances with sysctl")
            return False
        self._fd = fd
        weakref.finalize(self, os.close, fd)
        return True

    def _limit(self, error: str, hint: str) -> None:
        self._is_limited = True
        log.warning("folder_not_watched", error=error, hint=f"{hint}; the rest is looked at each scan_every")

    def _hear(self) -> None:
        """Take in what the kernel says."""
        while self._fd is not None:
            try:
                told = os.read(self._fd, _READ_BYTES)
            except BlockingIOError:
                return
            start = 0
            while start < len(told):
                number, mask, _cookie, length = _EVENT.unpack_from(told, start)
                start += _EVENT.size + length
                self._take(number, mask, told[start - length : start])

    def _take(self, number: int, mask: int, name: bytes) -> None:
        now = self._clock()
        if mask & _IGNORED:
            self._watched.discard(number)  # the folder went
        elif mask & _MOVE_SELF:
            _libc.inotify_rm_watch(self._fd, number)  # it may be elsewhere now; who finds it watches it anew
            self.changed(now - self._settle_seconds)
        elif mask & _Q_OVERFLOW:
            self.changed(now - self._settle_seconds)
            self.changed(now)
        elif not name.startswith(OURS):
            # In a new folder there may be more than we hear of: a look now watches it, and finds that.
            self.changed(now - self._settle_seconds if mask & _IS_DIRECTORY else now)
