"""Copies of the ledger on a volume: if the state folder's disk dies, its volumes still tell its story.

    <volume>/s5jtd/ledger/<name>        the copy
    <volume>/s5jtd/ledger/<name>.seal   its hash under our seal: a volume that was elsewhere cannot make
                                        us believe a ledger that somebody else wrote

One is enough: the next comes before the last one goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from s5jtd.errors import VolumeError, VolumeFailed
from s5jtd.volumes.chunks import TREE
from s5jtd.volumes.seals import read_sealed, write_sealed

FOLDER = "ledger"
SEAL = ".seal"
_NAME = re.compile(r"ledger-[0-9TZ]+\.db")
_BLOCK_BYTES = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def path_of(root: Path, name: str) -> Path:
    """Where a copy lies on the volume at `root`."""
    return root / TREE / FOLDER / name


def put(root_fd: int, source: Path, key: bytes, alive: Callable[[], None]) -> None:
    """Copy a finished file onto the volume, read it back, seal it, and remove the copies before it.

    `alive` is called now and then; what it raises ends the copy.

    Raises:
        VolumeFailed: the volume gives back other bytes than it was given.
        OSError: as the file system says.
    """
    name = source.name
    with _opened(root_fd, create=True) as folder_fd:
        for stray in _names(folder_fd) - _sealed(folder_fd):
            os.unlink(stray, dir_fd=folder_fd)
        temporary = f"{name}.new"
        written = _write(folder_fd, temporary, source, alive)
        with _reading(folder_fd, temporary) as file:
            if _hash(file, alive) != written:
                os.unlink(temporary, dir_fd=folder_fd)
                raise VolumeFailed(f"it does not hold what was written to {name}", hint="replace the disk")
        os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        write_sealed(folder_fd, name + SEAL, [{"file": name, "sha256": written}], key)
        for older in _names(folder_fd) - {name, name + SEAL}:
            os.unlink(older, dir_fd=folder_fd)


def copies(root_fd: int, key: bytes) -> list[str]:
    """The names of the copies under our seal, the newest first; their bytes are not looked at yet."""
    with contextlib.suppress(FileNotFoundError), _opened(root_fd, create=False) as folder_fd:
        names = {name.removesuffix(SEAL) for name in _names(folder_fd) if name.endswith(SEAL)}
        return sorted((name for name in names if _hash_sealed(folder_fd, name, key)), reverse=True)
    return []


def is_whole(root_fd: int, name: str, key: bytes, alive: Callable[[], None]) -> bool:
    """Whether a copy's bytes are those that were sealed.

    Raises:
        OSError: as the file system says.
    """
    with _opened(root_fd, create=False) as folder_fd, _reading(folder_fd, name) as file:
        return _hash(file, alive) == _hash_sealed(folder_fd, name, key)


@contextlib.contextmanager
def _opened(root_fd: int, *, create: bool) -> Iterator[int]:
    tree_fd = os.open(TREE, _DIRECTORY, dir_fd=root_fd)
    try:
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(FOLDER, 0o700, dir_fd=tree_fd)
                os.fsync(tree_fd)
        folder_fd = os.open(FOLDER, _DIRECTORY, dir_fd=tree_fd)
    finally:
        os.close(tree_fd)
    try:
        yield folder_fd
    finally:
        os.close(folder_fd)


def _names(folder_fd: int) -> set[str]:
    """Our files and their beginnings; anything else there is left alone."""
    return {name for name in os.listdir(folder_fd) if _NAME.match(name)}


def _sealed(folder_fd: int) -> set[str]:
    names = _names(folder_fd)
    return {name for name in names if name + SEAL in names} | {
        name for name in names if name.endswith(SEAL) and name.removesuffix(SEAL) in names
    }


def _write(folder_fd: int, name: str, source: Path, alive: Callable[[], None]) -> str:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    digest = hashlib.sha256()
    with source.open("rb") as given, os.fdopen(os.open(name, flags, 0o600, dir_fd=folder_fd), "wb") as file:
        while block := given.read(_BLOCK_BYTES):
            alive()
            file.write(block)
            digest.update(block)
        file.flush()
        os.fsync(file.fileno())
        # Read back from the disk as far as the kernel allows, and not from memory.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


@contextlib.contextmanager
def _reading(folder_fd: int, name: str) -> Iterator[BinaryIO]:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _hash(file: BinaryIO, alive: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        alive()
        digest.update(block)
    return digest.hexdigest()


def _hash_sealed(folder_fd: int, name: str, key: bytes) -> str | None:
    """What a copy's bytes must hash to; None where our seal does not say so."""
    try:
        lines: list[dict[str, Any]] = read_sealed(folder_fd, name + SEAL, key)
    except (FileNotFoundError, VolumeError):
        return None
    told = lines[0] if len(lines) == 1 else {}
    return str(told.get("sha256")) if told.get("file") == name and _NAME.fullmatch(name) else None
