"""Copies one open file into another, by the kernel where it can."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

#: Small enough that a slow disk still gives a sign of life within seconds.
_BLOCK_BYTES: Final = 8 << 20
_CANNOT: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}
)


class Stopped(Exception):
    """We were told to end."""


def copy(source_fd: int, target_fd: int, most_bytes: int, beat: Callable[[int], None]) -> int:
    """Copy up to so many bytes from where both files stand; how many there were.

    Raises:
        OSError: as the file system says; ENOSPC is the target's.
        Stopped: as `beat` says.
    """
    copied = 0
    by_kernel = True
    while copied < most_bytes:
        wanted = min(_BLOCK_BYTES, most_bytes - copied)
        count = 0
        if by_kernel:
            try:
                count = os.copy_file_range(source_fd, target_fd, wanted)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
            # Some file systems answer that nothing is there although something is: reading tells.
            by_kernel = count > 0
        if not by_kernel:
            count = _by_hand(source_fd, target_fd, wanted)
            if not count:
                break
        copied += count
        beat(count)
    return copied


def _by_hand(source_fd: int, target_fd: int, wanted: int) -> int:
    block = os.read(source_fd, wanted)
    left = memoryview(block)
    while left:
        left = left[os.write(target_fd, left) :]
    return len(block)
