"""Lists the files below a folder in the order of their keys, whatever their number and depth."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from s5jtd.folders.paths import LEAVING, OURS

#: Entries looked at between two signs of life, and files told of at a time.
PAGE = 1000
#: A path is no longer than this to the kernel; what lies deeper is out of reach by name anyway.
_PATH_BYTES_MAX = 4096
#: Where a file system's own repairs go; only root may look.
_LOST_AND_FOUND = b"lost+found/"

Found = tuple[bytes, os.stat_result]
#: A folder on the way down: its descriptor, its key with the last slash, what is left of it.
_Level = tuple[int, bytes, Iterator[tuple[bytes, bool]]]


@dataclass(frozen=True, slots=True)
class Window:
    """The keys that are asked for: those with a prefix, after one key and up to another."""

    prefix: bytes = b""
    start_after: bytes = b""
    end_at: bytes | None = None

    @property
    def is_one_key(self) -> bool:
        """Whether somebody asks for one file by its name."""
        return self.end_at is not None and self.end_at == self.prefix

    def holds(self, key: bytes) -> bool:
        """Whether a file is asked for."""
        return key.startswith(self.prefix) and key > self.start_after and not self.is_behind(key)

    def is_behind(self, key: bytes) -> bool:
        """Whether a key comes after all that are asked for."""
        return self.end_at is not None and key > self.end_at

    def may_hold(self, folder: bytes) -> bool:
        """Whether a folder (its key with a slash at the end) may hold anything that is asked for."""
        is_on_the_way = folder.startswith(self.prefix) or self.prefix.startswith(folder)
        is_before = self.start_after > folder and not self.start_after.startswith(folder)
        return is_on_the_way and not is_before and not self.is_behind(folder)


@dataclass(frozen=True, slots=True)
class Aside:
    """What a walk met besides: folders that cannot be read, and files that a crash kept from leaving."""

    #: Told the descriptor of each folder, before it is read.
    on_folder: Callable[[int], None] = lambda _fd: None
    unreadable: list[bytes] = field(default_factory=list)
    leaving: list[bytes] = field(default_factory=list)


def walk(root_fd: int, window: Window, aside: Aside) -> Iterator[list[Found]]:
    """The regular files below a folder, in key order, in pages that may be empty.

    A key orders its folder as if its name ended in a slash: `a-b` comes before `a/b`.  Folders that cannot be
    read are named in `aside`.

    Raises:
        OSError: the folder itself cannot be read.
    """
    levels: list[_Level] = []
    page: list[Found] = []
    looked_at = 0
    try:
        _descend(levels, os.dup(root_fd), b"", aside)
        while levels:
            fd, below, entries = levels[-1]
            entry = next(entries, None)
            if entry is None or window.is_behind(below + entry[0]):
                os.close(levels.pop()[0])
                continue
            looked_at += 1
            name, is_folder = entry
            if is_folder:
                _enter(levels, fd, below + name, window, aside)
            elif window.holds(below + name):
                page += _stat(fd, below, name)
            if looked_at % PAGE == 0:
                yield page
                page = []
        yield page
    finally:
        for level in levels:
            os.close(level[0])


def _enter(levels: list[_Level], fd: int, folder: bytes, window: Window, aside: Aside) -> None:
    if not window.may_hold(folder) or folder == _LOST_AND_FOUND or len(folder) > _PATH_BYTES_MAX:
        return
    name = folder[:-1].rpartition(b"/")[2]
    try:
        below_fd = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
        )  # fmt: skip
        _descend(levels, below_fd, folder, aside)
    except (FileNotFoundError, NotADirectoryError):
        pass  # it went, or became something else, meanwhile
    except OSError:
        aside.unreadable.append(folder)


def _descend(levels: list[_Level], fd: int, folder: bytes, aside: Aside) -> None:
    entries: list[tuple[bytes, bool]] = []
    try:
        aside.on_folder(fd)
        with os.scandir(fd) as found:
            for entry in found:
                name = os.fsencode(entry.name)
                if name.startswith(OURS):
                    if name.startswith(LEAVING):
                        aside.leaving.append(folder + name)
                    continue
                if entry.is_dir(follow_symlinks=False):
                    entries.append((name + b"/", True))
                elif entry.is_file(follow_symlinks=False):
                    entries.append((name, False))
    except BaseException:
        os.close(fd)
        raise
    entries.sort()
    levels.append((fd, folder, iter(entries)))


def _stat(fd: int, below: bytes, name: bytes) -> list[Found]:
    with contextlib.suppress(OSError):  # it went meanwhile
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            return [(below + name, found)]
    return []
