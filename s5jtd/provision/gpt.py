"""Writes a GUID partition table with one partition, on the very descriptor on which the disk was found blank.

sfdisk opens the disk anew, and between the look and the write it might have become another one's.  The
layout is that of the UEFI specification, chapter 5: protective MBR, header and entries at the front, both
again at the back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import time
import uuid
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from s5jtd.errors import DeviceError
from s5jtd.provision.devices import size_of

_LINUX_DATA: Final = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")
_ENTRIES: Final = 128
_ENTRY: Final = struct.Struct("<16s16sQQQ72s")
_HEADER: Final = struct.Struct("<8sIIIIQQQQ16sQIII")
_ALIGN_BYTES: Final = 1 << 20

_BLKSSZGET: Final = 0x1268
_BLKRRPART: Final = 0x125F
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_SET_STATUS64: Final = 0x4C04
_LOOP_MAJOR: Final = 7
_LOOP_FLAGS_AT: Final = 52
_LOOP_STATUS_BYTES: Final = 232
_LO_FLAGS_PARTSCAN: Final = 8

#: struct blkpg_ioctl_arg and struct blkpg_partition of <linux/blkpg.h>.
_BLKPG: Final = 0x1269
_BLKPG_ADD_PARTITION: Final = 1
_BLKPG_ARGUMENT: Final = struct.Struct("@iiiP")
_PARTITION: Final = struct.Struct("@qqi64x64x4x")

#: What udev may take until a partition has its node.
NODE_SECONDS: Final = 20.0


class Table(NamedTuple):
    """The first partition of a disk, as its table tells."""

    name: str
    begin_bytes: int
    length_bytes: int


def write_table(fd: int, name: str, part_uuid: uuid.UUID) -> None:
    """Write a table whose one partition takes the whole disk, durably.

    Raises:
        OSError: it cannot be written.
    """
    sector = _sector_bytes(fd)
    size = size_of(fd) // sector * sector
    front, back = tables(size, sector, name, part_uuid, uuid.uuid4())
    os.pwrite(fd, back, size - len(back))
    os.pwrite(fd, front, 0)
    os.fsync(fd)


def _sector_bytes(fd: int) -> int:
    return int.from_bytes(fcntl.ioctl(fd, _BLKSSZGET, bytes(4)), "little")


def tables(
    size: int, sector: int, name: str, part_uuid: uuid.UUID, disk_uuid: uuid.UUID
) -> tuple[bytes, bytes]:
    """The bytes at the front and at the back of a disk of `size` bytes."""
    last = size // sector - 1
    entry_sectors = -(-_ENTRIES * _ENTRY.size // sector)
    first_usable, last_usable = 2 + entry_sectors, last - 1 - entry_sectors
    align = max(1, _ALIGN_BYTES // sector)
    begin = -(-first_usable // align) * align
    end = (last_usable + 1) // align * align - 1
    label = name.encode("utf-16-le").ljust(72, b"\0")
    entry = _ENTRY.pack(_LINUX_DATA.bytes_le, part_uuid.bytes_le, begin, end, 0, label)
    entries = entry.ljust(_ENTRIES * _ENTRY.size, b"\0")

    def header(mine: int, other: int, entries_at: int) -> bytes:
        fields = (
            mine, other, first_usable, last_usable, disk_uuid.bytes_le, entries_at, _ENTRIES, _ENTRY.size,
            zlib.crc32(entries),
        )  # fmt: skip
        blank = _HEADER.pack(b"EFI PART", 0x00010000, _HEADER.size, 0, 0, *fields)
        whole = _HEADER.pack(b"EFI PART", 0x00010000, _HEADER.size, zlib.crc32(blank), 0, *fields)
        return whole.ljust(sector, b"\0")

    padded = entries.ljust(entry_sectors * sector, b"\0")
    front = _protective(last, sector) + header(1, last, 2) + padded
    return front, padded + header(last, 1, last - entry_sectors)


def _protective(last: int, sector: int) -> bytes:
    """A master boot record that tells old tools that the disk is taken."""
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    return (bytes(446) + entry + bytes(48) + b"\x55\xaa").ljust(sector, b"\0")


def read_table(fd: int) -> Table | None:
    """The first partition of a whole table with a name; None if there is no such table.

    Raises:
        OSError: it cannot be read.
    """
    sector = _sector_bytes(fd)
    head = os.pread(fd, sector, sector)
    if len(head) < _HEADER.size:
        return None
    signature, _, length, crc, *_, entries_at, count, each, entries_crc = _HEADER.unpack_from(head)
    blank = head[:16] + bytes(4) + head[20 : _HEADER.size]
    if (signature, length, each) != (b"EFI PART", _HEADER.size, _ENTRY.size) or zlib.crc32(blank) != crc:
        return None
    entries = os.pread(fd, min(count, 1024) * each, entries_at * sector)
    if zlib.crc32(entries) != entries_crc:
        return None
    _, _, begin, end, _, label = _ENTRY.unpack_from(entries)
    name = label.decode("utf-16-le", "replace").rstrip("\0")
    return Table(name, begin * sector, (end + 1 - begin) * sector)


def tell_kernel(path: str, fd: int, device_name: str) -> None:
    """Have the kernel know the partition of a disk that is held by `fd`, whether it reads such tables or not.

    Raises:
        DeviceError: it does not.
    """
    try:
        if os.major(os.fstat(fd).st_rdev) == _LOOP_MAJOR:
            _let_have_partitions(fd)
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _BLKRRPART)
        table = read_table(fd)
        if table is not None and not _in_sys(device_name):
            _add_partition(fd, table)
    except OSError as error:
        raise DeviceError(
            f"{path}: the kernel did not take the new partition: {error.strerror}",
            hint="pull the disk and plug it in again, or restart; then run the same command again",
        ) from error


def _add_partition(fd: int, table: Table) -> None:
    """As partx does; a kernel built without this kind of table knows none of its partitions."""
    data = ctypes.create_string_buffer(_PARTITION.pack(table.begin_bytes, table.length_bytes, 1))
    argument = _BLKPG_ARGUMENT.pack(_BLKPG_ADD_PARTITION, 0, _PARTITION.size, ctypes.addressof(data))
    fcntl.ioctl(fd, _BLKPG, argument)


def _let_have_partitions(fd: int) -> None:
    """A loop device has none unless it is told so, as by `losetup --partscan`."""
    status = bytearray(_LOOP_STATUS_BYTES)
    fcntl.ioctl(fd, _LOOP_GET_STATUS64, status)
    (flags,) = struct.unpack_from("<I", status, _LOOP_FLAGS_AT)
    if not flags & _LO_FLAGS_PARTSCAN:
        status[_LOOP_FLAGS_AT : _LOOP_FLAGS_AT + 4] = struct.pack("<I", flags | _LO_FLAGS_PARTSCAN)
        fcntl.ioctl(fd, _LOOP_SET_STATUS64, status)


def _in_sys(device_name: str) -> list[str]:
    """The names of a disk's partitions, as far as the kernel knows them."""
    folder = Path("/sys/class/block") / device_name
    return sorted(entry.name for entry in folder.iterdir() if (entry / "partition").exists())


def first_partition(device_name: str) -> str:
    """The path of a disk's partition, once its node is there.

    Raises:
        DeviceError: it does not appear.
    """
    deadline = time.monotonic() + NODE_SECONDS
    while True:
        for name in _in_sys(device_name):
            if os.path.exists(f"/dev/{name}"):
                return f"/dev/{name}"
        if time.monotonic() > deadline:
            raise DeviceError(
                f"the partition of {device_name} does not appear: {os.strerror(errno.ENOENT)}",
                hint="is udev running? then run the same command again: it goes on from here",
            )
        time.sleep(0.1)
