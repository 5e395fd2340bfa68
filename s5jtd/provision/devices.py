"""Finds block devices and says what stands against each; reads, and never writes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from s5jtd.errors import DeviceError, UsageError
from s5jtd.provision.tools import run
from s5jtd.volumes import probe

_COLUMNS: Final = "NAME,KNAME,PATH,TYPE,SIZE,RO,RM,SERIAL,MODEL,TRAN,MAJ:MIN"
#: Disks only in name: in memory, in a drive without a medium, on the network.
_NO_DISKS: Final = ("fd", "mtdblock", "nbd", "ram", "sr", "zram")
_SYS: Final = Path("/sys/class/block")

#: A file system of a useful size; xfs takes no less than 300 MiB.
SMALLEST_BYTES: Final = {"ext4": 32 << 20, "xfs": 320 << 20}

#: Of a device that is no larger, every byte is looked at; of others both ends and a sample between them.
_READ_WHOLE_BYTES: Final = 512 << 20
_END_BYTES: Final = 16 << 20
_SAMPLES: Final = 1024
_SAMPLE_BYTES: Final = 4096
_PIECE_BYTES: Final = 1 << 20

_BLKGETSIZE64: Final = 0x80081272


@dataclass(frozen=True, slots=True)
class Device:
    """A whole disk as it was found."""

    path: str
    name: str  #: the kernel's, e.g. "sdb"
    kind: str  #: as lsblk calls it: disk, loop, ...
    size_bytes: int
    serial: str
    model: str
    number: str  #: "8:16"
    sequence: str  #: of the kernel: another disk under the same name has another; "" on an old kernel
    read_only: bool
    removable: bool
    parts: tuple[str, ...] = ()  #: paths of its partitions
    above: tuple[str, ...] = field(default=())  #: what else stands on it: mapped devices, arrays

    @property
    def identity(self) -> tuple[str, str, int, str]:
        """What must be the same when the plan is carried out."""
        return self.number, self.sequence, self.size_bytes, self.serial


def find(named: Sequence[str] = ()) -> list[Device]:
    """The disks of this machine, or just the named ones, be they loop devices.

    Raises:
        DeviceError: they cannot be listed.
        UsageError: a named one is no whole block device.
    """
    wanted = [os.path.realpath(name) for name in named]
    for name, path in zip(named, wanted, strict=True):
        if not _is_block(path):
            raise UsageError(f"{name} is no block device", hint="see the disks there are: lsblk")
    told = run("lsblk", "--json", "--bytes", "--output", _COLUMNS, *wanted, fine=(0, 32, 64))
    found = [_device(entry) for entry in json.loads(told or "{}").get("blockdevices", ())]
    if wanted:
        strange = [device.path for device in found if device.kind not in ("disk", "loop")]
        if strange:
            raise UsageError(f"{strange[0]} is no whole disk", hint="name the disk itself: /dev/sdb")
        return found
    return [device for device in found if device.kind == "disk" and not _is_no_disk(device.name)]


def _device(entry: Mapping[str, Any]) -> Device:
    name = str(entry["kname"])
    below = list(entry.get("children") or ())
    parts = [str(child["path"]) for child in below if child["type"] == "part"]
    sequence = _SYS / name / "diskseq"
    return Device(
        path=str(entry["path"]),
        name=name,
        kind=str(entry["type"]),
        size_bytes=int(entry["size"] or 0),
        serial=str(entry.get("serial") or "").strip(),
        model=str(entry.get("model") or "").strip(),
        number=str(entry["maj:min"]).strip(),
        sequence=sequence.read_text().strip() if sequence.exists() else "",
        read_only=_truth(entry["ro"]),
        removable=_truth(entry["rm"]) or entry.get("tran") == "usb",
        parts=tuple(parts),
        above=tuple(str(child["path"]) for child in below if child["type"] != "part"),
    )


def _truth(told: object) -> bool:
    """Older ones of lsblk say "1" where newer ones say true."""
    return told in (True, "1", 1)


def _is_block(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False


def _is_no_disk(name: str) -> bool:
    return name.rstrip("0123456789") in _NO_DISKS


def objections(device: Device, *, kind: str, removable: bool) -> list[str]:
    """Why a disk may not be made a volume, by all that can be known without reading it; none: read it."""
    return [
        *_by_nature(device, kind, removable=removable),
        *(["has partitions"] if device.parts else []),
        *(f"is part of {path}" for path in device.above),
        *_in_use(device),
    ]


def _by_nature(device: Device, kind: str, *, removable: bool) -> Iterator[str]:
    if _is_no_disk(device.name):
        yield "is no lasting disk"
    if device.read_only:
        yield "is read-only"
    if device.removable and not removable:
        yield "is removable: to use it, say --removable or name it with --device"
    if device.size_bytes < SMALLEST_BYTES[kind]:
        yield f"is too small for {kind}"


def _in_use(device: Device) -> Iterator[str]:
    """Mounts, swap and holders of a disk and of its partitions."""
    folder = _SYS / device.name
    names = [device.name, *(os.path.basename(path) for path in device.parts)]
    paths = {f"/dev/{name}" for name in names} | {device.path, *device.parts}
    for mount in probe.mounts():
        if os.path.realpath(mount.device) in paths:
            yield f"is mounted at {mount.point}"
    for line in Path("/proc/swaps").read_text().splitlines()[1:]:
        if os.path.realpath(line.split()[0]) in paths:
            yield "is swap space"
    for name in names:
        holders = (folder if name == device.name else folder / name) / "holders"
        with contextlib.suppress(OSError):
            yield from (f"is held by {holder}" for holder in sorted(os.listdir(holders)))


@contextlib.contextmanager
def exclusive(path: str, *, write: bool = False) -> Iterator[int]:
    """Hold a block device alone: nothing mounts, formats or assembles it meanwhile.

    Raises:
        DeviceError: something has it.
    """
    try:
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise DeviceError(
            f"{path}: {error.strerror}", hint=f"something uses it: lsblk {path}; fuser -v {path}"
        ) from error
    try:
        with contextlib.suppress(BlockingIOError):  # udev looks at it: it keeps away once we are done
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    finally:
        os.close(fd)


def size_of(fd: int) -> int:
    """How large the device behind a descriptor is, in bytes."""
    return int.from_bytes(fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)), "little")


def number_of(fd: int) -> str:
    """The device's number as lsblk writes it."""
    told = os.fstat(fd)
    return f"{os.major(told.st_rdev)}:{os.minor(told.st_rdev)}"


def contents(path: str, fd: int) -> str | None:
    """What a device holds, or None if it is blank: no signature that any tool knows, and zeros.

    Raises:
        DeviceError: it cannot be read.
    """
    told = dict(_pairs(run("blkid", "-p", "-o", "export", path, fine=(0, 2, 8))))
    kind = told.get("TYPE") or told.get("PTTYPE")
    if kind:
        return f"holds {kind}" + (f" ({told['LABEL']})" if told.get("LABEL") else "")
    lines = [line for line in run("wipefs", "-n", "-p", path).splitlines() if not line.startswith("#")]
    if lines:
        return f"holds a signature: {lines[0].rpartition(',')[2] or lines[0]}"
    try:
        offset = first_data(fd, size_of(fd))
    except OSError as error:
        raise DeviceError(f"{path}: {error.strerror}", hint="look at `journalctl -k`") from error
    return None if offset is None else f"holds data, at byte {offset}"


def first_data(fd: int, size: int) -> int | None:
    """Where a device holds something else than zeros, as far as is looked; None: nowhere."""
    zeros = bytes(_PIECE_BYTES)
    for offset, length in _pieces(size):
        piece = os.pread(fd, length, offset)
        if piece != zeros[: len(piece)]:
            return offset + len(piece) - len(piece.lstrip(b"\0"))
    return None


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    """Offsets and lengths: all of a small device, else its ends, where formats begin, and a sample."""
    whole = size <= _READ_WHOLE_BYTES
    ends = [(0, size)] if whole else [(0, _END_BYTES), (size - _END_BYTES, size)]
    for begin, end in ends:
        for offset in range(begin, end, _PIECE_BYTES):
            yield offset, min(_PIECE_BYTES, end - offset)
    if not whole:
        step = size // _SAMPLES // _SAMPLE_BYTES * _SAMPLE_BYTES
        yield from ((offset, _SAMPLE_BYTES) for offset in range(step, size - _SAMPLE_BYTES, step))


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition as its own table and its beginning tell."""

    path: str
    label: str  #: in the table
    uuid: str  #: in the table
    kind: str  #: of its file system; "": none
    filesystem_uuid: str


def partition(path: str) -> Partition:
    """What a partition is.

    Raises:
        DeviceError: it cannot be read.
    """
    told = dict(_pairs(run("blkid", "-p", "-o", "export", path, fine=(0, 2, 8))))
    return Partition(
        path,
        told.get("PART_ENTRY_NAME", "").replace("\\ ", " "),
        told.get("PART_ENTRY_UUID", ""),
        told.get("TYPE", ""),
        told.get("UUID", ""),
    )


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, _, value = line.partition("=")
        yield name, value
