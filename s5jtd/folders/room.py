"""Destination folders whose file system took no more, and how much it would have to take."""

from __future__ import annotations

import os
import threading
from pathlib import Path

_lock = threading.Lock()
_wanted: dict[Path, int] = {}


def refused(directory: Path, size: int) -> None:
    """A file of so many bytes found no room."""
    with _lock:
        _wanted[directory] = size


def lacking(directory: Path) -> str | None:
    """What there is too little of for the last file that found no room; None where that can be tried again.

    Raises:
        OSError: the folder cannot be asked.
    """
    with _lock:
        size = _wanted.get(directory)
        if size is None:
            return None
        found = os.statvfs(directory)
        free = found.f_bavail * found.f_frsize
        if free < size:
            return f"{free} bytes are free, and a file of {size} waits"
        if found.f_files and not found.f_favail:
            return "there is no inode left for another file"
        del _wanted[directory]
        return None
