"""Lists the files below a folder in the order of their keys, whatever their number and depth."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from s5jtd.folders.paths import LEAVING, OURS, folder_flags

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


@dataclass(slots=True)
class Aside:
    """What a walk met besides: what cannot be read, what a crash kept from leaving, links passed over."""

    #: Told the descriptor of each folder, before it is read.
    on_folder: Callable[[int], None] = lambda _fd: None
    unreadable: list[bytes] = field(default_factory=list)
    leaving: list[bytes] = field(default_factory=list)
    young: int = 0  #: files that have not settled
    links: int = 0  #: symbolic links behind which nothing was listed
    first_link: bytes = b""

    def pass_over(self, link: bytes) -> None:
        """Count a symbolic link."""
        self.first_link = self.first_link or link
        self.links += 1


def walk(root_fd: int, window: Window, aside: Aside, *, follow: bool = False) -> Iterator[list[Found]]:
    """The regular files below a folder, in key order, in pages that may be empty.

    A key orders its folder as if its name ended in a slash: `a-b` comes before `a/b`.  Folders that cannot be
    read are named in `aside`.  Where links are to be followed, files and folders stand under the link's name;
    a link to a folder that it lies in is none to follow.

    Raises:
        OSError: the folder itself cannot be read.
    """
    way = _Way(window, aside, follow)
    page: list[Found] = []
    looked_at = 0
    try:
        way.descend(os.dup(root_fd), b"")
        while way.levels:
            fd, below, entries = way.levels[-1]
            entry = next(entries, None)
            if entry is None or window.is_behind(below + entry[0]):
                os.close(way.levels.pop()[0])
                continue
            looked_at += 1
            name, is_folder = entry
            if is_folder:
                way.enter(fd, below + name)
            elif window.holds(below + name):
                page += way.stat(fd, below, name)
            if looked_at % PAGE == 0:
                yield page
                page = []
        yield page
    finally:
        for level in way.levels:
            os.close(level[0])


@dataclass(frozen=True, slots=True)
class _Way:
    """The folders from the first down to where the walk is."""

    window: Window
    aside: Aside
    follow: bool
    levels: list[_Level] = field(default_factory=list)

    def enter(self, fd: int, folder: bytes) -> None:
        """Go into a folder that lies in the one open as `fd`, if it may hold anything that is asked for."""
        if not self.window.may_hold(folder) or folder == _LOST_AND_FOUND or len(folder) > _PATH_BYTES_MAX:
            return
        name = folder[:-1].rpartition(b"/")[2]
        try:
            below_fd = os.open(name, folder_flags(follow=self.follow), dir_fd=fd)
            if self.follow and self._is_on_the_way(below_fd):
                os.close(below_fd)
                self.aside.pass_over(folder[:-1])
            else:
                self.descend(below_fd, folder)
        except (FileNotFoundError, NotADirectoryError):
            pass  # it went, or became something else, meanwhile
        except OSError:
            self.aside.unreadable.append(folder)

    def _is_on_the_way(self, folder_fd: int) -> bool:
        found = os.fstat(folder_fd)
        return any(os.path.samestat(found, os.fstat(level[0])) for level in self.levels)

    def descend(self, fd: int, folder: bytes) -> None:
        """Read a folder, which is `fd`'s new owner."""
        entries: list[tuple[bytes, bool]] = []
        try:
            self.aside.on_folder(fd)
            with os.scandir(fd) as found:
                for entry in found:
                    name = os.fsencode(entry.name)
                    if name.startswith(OURS):
                        if name.startswith(LEAVING):
                            self.aside.leaving.append(folder + name)
                    elif entry.is_dir(follow_symlinks=self.follow):
                        entries.append((name + b"/", True))
                    elif entry.is_file(follow_symlinks=self.follow):
                        entries.append((name, False))
                    elif entry.is_symlink():
                        self.aside.pass_over(folder + name)
        except BaseException:
            os.close(fd)
            raise
        entries.sort()
        self.levels.append((fd, folder, iter(entries)))

    def stat(self, fd: int, below: bytes, name: bytes) -> list[Found]:
        """The file, if it still is one."""
        with contextlib.suppress(OSError):  # it went meanwhile
            found = os.stat(name, dir_fd=fd, follow_symlinks=self.follow)
            if stat.S_ISREG(found.st_mode):
                return [(below + name, found)]
        return []
