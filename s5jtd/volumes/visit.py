"""A look at a volume of ours by a command, while no daemon has it: nothing on it is changed by looking."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from s5jtd.errors import VolumeForeign, VolumeMissing
from s5jtd.volumes import probe
from s5jtd.volumes.stamp import Stamp, read_stamp


@contextlib.contextmanager
def visit(path: Path, key: bytes) -> Iterator[tuple[int, Stamp]]:
    """Hold the folder of a volume, and tell which volume it is.

    Raises:
        VolumeError: nothing is mounted there, or it is not ours.
    """
    try:
        root_fd = probe.open_root(path)
    except OSError as error:
        raise probe.volume_error(error, str(path)) from error
    try:
        stamp = read_stamp(root_fd, key)
        if stamp is None:
            raise VolumeMissing(f"{path} carries no stamp", hint="mount the volume")
        if stamp.mount_root and not probe.is_mount_root(root_fd):
            raise VolumeForeign(
                f"{path} carries the stamp of a mounted volume, but nothing is mounted there",
                hint="mount the volume; the copied stamp file can be deleted",
            )
        yield root_fd, stamp
    finally:
        os.close(root_fd)
