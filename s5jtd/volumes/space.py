"""Decides how much may still be promised on a volume, and when it counts as full; pure."""

from __future__ import annotations

from typing import Final

from s5jtd.volumes.probe import Space

_BLOCK_BYTES: Final = 4096
#: Beside its blocks a file costs an inode (512 bytes on xfs), its folder entries, and its lines in the
#: manifest, the seal and the batch file, which hold its key and its metadata.
_SLACK_BYTES: Final = 3072

#: Below so many free inodes a volume takes nothing more: a file system without inodes answers ENOSPC
#: however much of it is free, and a chunk of default size wants a thousand.
_INODES_KEPT: Final = 2048

_GIB: Final = 1 << 30


def footprint(size: int) -> int:
    """Bytes that an object of `size` bytes is reckoned to take of a volume until it is sealed."""
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES + _SLACK_BYTES


def reserve_bytes(space: Space, reserve: float) -> int:
    """What is never filled; an int is bytes, a float a share of the volume (0.05 is 5%)."""
    return reserve if isinstance(reserve, int) else int(space.total_bytes * reserve)


def usable_bytes(space: Space, reserve: float, outstanding_reserved_bytes: int) -> int:
    """What may still be promised: free, less the reserve, less what is promised but not yet written."""
    if space.inodes_free is not None and space.inodes_free < _INODES_KEPT:
        return 0
    return max(0, space.free_bytes - reserve_bytes(space, reserve) - outstanding_reserved_bytes)


def is_full(was_full: bool, usable: int, total: int) -> bool:
    """Whether a volume counts as full; once it does, it must get well clear of that to take work again.

    The bounds in bytes are one chunk of default size and four: on a large disk, shares alone would
    leave terabytes idle.
    """
    if was_full:
        return usable < min(total // 50, 4 * _GIB)
    return usable <= min(total // 100, _GIB)
