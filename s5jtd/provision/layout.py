"""The plan: what would become of each disk, decided before anything is written."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from s5jtd.errors import DeviceError
from s5jtd.provision import gpt, persist
from s5jtd.provision.devices import Device, Partition, contents, exclusive, find, objections, partition
from s5jtd.provision.tools import run
from s5jtd.volumes import probe

#: How a partition of ours is called in its disk's table, before the volume's own name.
LABEL: Final = "s5jtd "
_NAME: Final = re.compile(r"volume-([0-9]{2,4})")


class Fate(StrEnum):
    """What becomes of a disk."""

    NEW = "new"  #: It is blank: partition, format, mount, make permanent, stamp.
    FORMAT = "format"  #: We partitioned it and came no further.
    MOUNT = "mount"  #: We formatted it; it is not mounted.
    DONE = "done"  #: It is a volume already.
    REFUSED = "refused"  #: It is not blank, or not to be had.


@dataclass(frozen=True, slots=True)
class Settings:
    """What all volumes of one run have in common."""

    base: Path
    kind: str  #: ext4 or xfs
    persist: str  #: systemd, fstab or none
    etc: Path
    removable: bool
    owner: tuple[int, int]  #: uid and gid of whoever runs the daemon


@dataclass(frozen=True, slots=True)
class Entry:
    """One disk of a plan."""

    device: Device
    fate: Fate
    name: str | None = None
    point: Path | None = None
    reasons: tuple[str, ...] = ()
    part: Partition | None = None


def plan(settings: Settings, named: Sequence[str] = ()) -> list[Entry]:
    """What would become of each disk, or of each named one.

    Raises:
        S5jtError: the disks cannot be listed, or a named one is none.
    """
    looked = [look(device, settings, named=bool(named)) for device in find(named)]
    taken = {entry.name for entry in looked if entry.name}
    names = _free_names(settings, taken)
    return [_named(entry, next(names), settings) if entry.fate is Fate.NEW else entry for entry in looked]


def _named(entry: Entry, name: str, settings: Settings) -> Entry:
    return Entry(entry.device, entry.fate, name, settings.base / name)


def _free_names(settings: Settings, taken: Iterable[str | None]) -> Iterator[str]:
    """Names that nothing has used: no folder with anything in it, no mount, no fstab line, no unit."""
    known = set(taken)
    for number in range(1, 10_000):
        name = f"volume-{number:02}"
        point = settings.base / name
        if name in known or persist.is_known(point, settings.etc):
            continue
        if point.exists() and (os.path.ismount(point) or not _is_empty(point)):
            continue
        yield name


def _is_empty(folder: Path) -> bool:
    try:
        return not os.listdir(folder)
    except OSError:
        return False


def look(device: Device, settings: Settings, *, named: bool) -> Entry:
    """What a disk is to us."""
    if not device.above:
        ours = _of_ours(device, settings) if device.parts else _of_ours_unseen(device, settings)
        if ours is not None:
            return ours
    against = objections(device, kind=settings.kind, removable=settings.removable or named)
    if not against:
        try:
            with exclusive(device.path) as fd:
                held = contents(device.path, fd)
        except DeviceError as error:
            held = str(error)
        against = [held] if held else []
    return Entry(device, Fate.REFUSED if against else Fate.NEW, reasons=tuple(against))


def _of_ours(device: Device, settings: Settings) -> Entry | None:
    """A disk that we partitioned, and how far we came with it; None if we did not."""
    part = partition(device.parts[0])
    name = _name_in(part.label)
    if name is None or len(device.parts) > 1:
        return None
    point = settings.base / name
    there = [m for m in probe.mounts() if os.path.realpath(m.device) == os.path.realpath(part.path)]
    if there:
        return Entry(device, Fate.DONE, name, Path(there[0].point), part=part)
    if part.kind:
        if part.filesystem_uuid.lower() != part.uuid.lower():
            return Entry(device, Fate.REFUSED, name, reasons=(f"holds {part.kind} that is not ours",))
        return Entry(device, Fate.MOUNT, name, point, part=part)
    try:
        with exclusive(part.path) as fd:
            held = contents(part.path, fd)
    except DeviceError as error:
        held = str(error)
    if held:
        reason = (
            f"formatting it was cut short ({held}); to begin anew, erase it yourself:"
            f" wipefs -a {device.path} and blkdiscard -z {device.path}"
        )
        return Entry(device, Fate.REFUSED, name, reasons=(reason,))
    return Entry(device, Fate.FORMAT, name, point, part=part)


def _of_ours_unseen(device: Device, settings: Settings) -> Entry | None:
    """The same where the kernel does not know the partition: it was cut short, or reads no such tables."""
    try:
        with exclusive(device.path) as fd:
            table = gpt.read_table(fd)
    except (DeviceError, OSError):
        return None
    name = _name_in(table.name) if table else None
    return Entry(device, Fate.FORMAT, name, settings.base / name) if name else None


def _name_in(label: str) -> str | None:
    """The volume's name in the label of a partition; None if it is none of ours."""
    name = label.removeprefix(LABEL)
    return name if label.startswith(LABEL) and _NAME.fullmatch(name) else None


def mount_options() -> list[str]:
    """What a volume is mounted with: nothing on it is a device, a program, or a link to elsewhere."""
    options = ["rw", "nodev", "nosuid", "noexec", "noatime"]
    return [*options, "nosymfollow"] if _knows_nosymfollow() else options


def _knows_nosymfollow() -> bool:
    """Linux 5.10 and util-linux 2.38 do; an older mount hands the word on to the file system."""
    tool = re.search(r"util-linux (\d+)\.(\d+)", run("mount", "--version"))
    kernel = re.match(r"(\d+)\.(\d+)", platform.release())
    if tool is None or kernel is None:
        return False
    return (int(tool[1]), int(tool[2])) >= (2, 38) and (int(kernel[1]), int(kernel[2])) >= (5, 10)
