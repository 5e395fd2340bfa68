"""What a broken-off pull leaves of a large object beside its name, and what its record says of it.

The record is a hint and no more: the whole file is hashed in the end.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Final

from s5jtd.engine.contract import PULL_RANGE_BYTES

_RECORD_BYTES_MAX: Final = 16 * 1024 * 1024


def part_names(name: str) -> tuple[str, str]:
    """What an unfinished file and its record are called."""
    stem = name.removesuffix(".obj")
    return f"{stem}.part", f"{stem}.parts"


@dataclass(frozen=True, slots=True)
class Known:
    """What a record says: the version, and how many bytes from the start of each range are durable."""

    etag: str
    done: dict[int, int]


def read_record(data_fd: int, record: str, size: int) -> Known | None:
    """What an earlier life wrote down; None where that is nothing, or cannot be made sense of."""
    try:
        fd = os.open(record, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=data_fd)
        try:
            raw = os.pread(fd, _RECORD_BYTES_MAX, 0)
        finally:
            os.close(fd)
        head, *lines = raw.split(b"\n")[:-1]  # the last is empty, or torn
        said = json.loads(head)
        if (said["size"], said["range"]) != (size, PULL_RANGE_BYTES):
            return None
        known = Known(str(said["etag"]), {})
        for line in lines:
            known.done.update({int(start): int(done) for start, done in json.loads(line)["done"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return known if known.etag and all(done >= 0 for done in known.done.values()) else None


def unfinished(data_fd: int, name: str, size: int) -> int:
    """How many bytes of a file of `size` an earlier run left behind that a later one can build on."""
    part, record = part_names(name)
    known = read_record(data_fd, record, size)
    try:
        os.stat(part, dir_fd=data_fd, follow_symlinks=False)
    except OSError:
        return 0
    return sum(known.done.values()) if known else 0
