"""The stamp that makes a folder a volume of ours: who it is, and how often it was attached."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass
from typing import Any

from s5jtd.errors import VolumeFailed
from s5jtd.volumes.seals import read_sealed, unfinished, write_sealed

NAME = ".s5jtd-volume"
#: What is left where the power went while a volume was stamped.
UNFINISHED = unfinished(NAME)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What stands in the stamp file at a volume's root."""

    uuid: str
    created_at_ms: int
    attach_epoch: int  #: grows at each attach: a copy of the volume falls behind and is told apart
    mount_root: bool  #: whether the folder was the root of a mount when it was stamped
    format: int = 1


def new_stamp(*, created_at_ms: int, mount_root: bool) -> Stamp:
    """A stamp for a folder that has none."""
    return Stamp(str(uuid.uuid4()), created_at_ms, 0, mount_root)


def write_stamp(root_fd: int, stamp: Stamp, key: bytes) -> None:
    """Write the stamp durably.

    Raises:
        OSError: as the file system says.
    """
    write_sealed(root_fd, NAME, [asdict(stamp)], key)


def read_stamp(root_fd: int, key: bytes | None) -> Stamp | None:
    """The stamp of a volume, or None where there is none.

    Raises:
        VolumeFailed: the stamp is damaged; it is never rewritten.
        VolumeForeign: another appliance wrote it.
    """
    try:
        lines = read_sealed(root_fd, NAME, key)
    except FileNotFoundError:
        return None
    return _parse(lines)


def _parse(lines: list[dict[str, Any]]) -> Stamp:
    try:
        (line,) = lines
        stamp = Stamp(
            uuid=str(uuid.UUID(line["uuid"])),
            created_at_ms=int(line["created_at_ms"]),
            attach_epoch=int(line["attach_epoch"]),
            mount_root=bool(line["mount_root"]),
            format=int(line["format"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VolumeFailed(f"{NAME} is not a stamp") from error
    if stamp.format != 1:
        raise VolumeFailed(f"{NAME} has format {stamp.format}", hint="a newer s5jtd wrote it: upgrade")
    return stamp
