"""Chunk folders: the opaque files of one chunk, its manifest, its seal; no key ever becomes a path.

    <volume>/s5jtd/<chunk>/data/<id>.obj    the bytes, under the ledger's id in hex
    <volume>/s5jtd/<chunk>/data/<id>.part   a large one that is not whole yet, with its record in <id>.parts
    <volume>/s5jtd/<chunk>/manifest.jsonl   written before the pull: what was promised
    <volume>/s5jtd/<chunk>/sealed.json      written after syncfs: what is durable and proven

Every function takes directory descriptors and relative names: after an unmount a path would lead to
the disk below, a descriptor does not.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

from s5jtd.errors import Busy
from s5jtd.model import Digests
from s5jtd.volumes.seals import read_sealed, write_sealed

TREE = "s5jtd"
MANIFEST = "manifest.jsonl"
SEAL = "sealed.json"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = re.compile(r"[0-9a-f]{16}")
_FILE = re.compile(r"([0-9a-f]{1,16})\.(?:obj([0-9]*)|parts?)")


def file_name(object_id: int) -> str:
    """The opaque name of an object's bytes."""
    return f"{object_id:x}.obj"


def object_id(name: str) -> int | None:
    """The object that a file belongs to; None for s5cmd's temporary files and anything else."""
    match = _FILE.fullmatch(name)
    return int(match[1], 16) if match and match[2] == "" else None


class ChunkFolder:
    """One chunk's folder, held open and locked: a surviving child of a dead daemon still holds it."""

    def __init__(self, root_fd: int, name: str, *, create: bool = False) -> None:
        """Open the folder of chunk `name` on the volume at `root_fd`.

        Raises:
            FileNotFoundError: it is not there.
            Busy: another process has it open, most likely an engine that outlived its daemon.
            OSError: as the file system says.
        """
        with _open_folder(TREE, root_fd) as tree_fd, contextlib.ExitStack() as stack:
            if create:
                for path in (name, f"{name}/data"):
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(path, 0o700, dir_fd=tree_fd)
            self.fd = _keep(stack, name, tree_fd)
            self.data_fd = _keep(stack, "data", self.fd)
            _lock(self.data_fd, name)
            if create:
                os.fsync(self.fd)
                os.fsync(tree_fd)
            stack.pop_all()
        self.name = name

    def close(self) -> None:
        """Close both descriptors; the lock goes with the last holder of `data_fd`."""
        os.close(self.data_fd)
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def files(self) -> Iterator[os.DirEntry[str]]:
        """Everything in the data folder, also what is not ours."""
        with os.scandir(self.data_fd) as entries:
            yield from entries

    def holds(self, name: str, size: int) -> bool:
        """Whether a file of this size is in the data folder, and nothing that only looks like one.

        An engine follows a link, and waits for ever for a pipe.
        """
        try:
            found = os.stat(name, dir_fd=self.data_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size == size

    def unlink(self, names: Iterable[str]) -> None:
        """Remove files of the data folder; one that is gone already is success."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.data_fd)

    def sweep(self, keep: frozenset[str]) -> int:
        """Remove our own leftovers (other objects' files, s5cmd's temporaries); how many there were."""
        stray = [e.name for e in self.files() if e.name not in keep and _FILE.fullmatch(e.name)]
        self.unlink(stray)
        return len(stray)


def write_manifest(
    folder: ChunkFolder, header: dict[str, Any], objects: Iterable[dict[str, Any]], key: bytes
) -> None:
    """Write what the chunk promises, before the first byte of it is pulled.

    Raises:
        OSError: as the file system says.
    """
    write_sealed(folder.fd, MANIFEST, [header, *objects], key)


def write_seal(
    folder: ChunkFolder, header: dict[str, Any], objects: Iterable[dict[str, Any]], key: bytes
) -> None:
    """Write what is durable and proven; call it only after syncfs answered well.

    Raises:
        OSError: as the file system says.
    """
    write_sealed(folder.fd, SEAL, [header, *objects], key)


def read_manifest(folder: ChunkFolder, key: bytes | None) -> list[dict[str, Any]]:
    """The manifest's header and objects; raises as `read_sealed`."""
    return read_sealed(folder.fd, MANIFEST, key)


def read_seal(folder: ChunkFolder, key: bytes | None) -> list[dict[str, Any]]:
    """The seal's header and objects; raises as `read_sealed`."""
    return read_sealed(folder.fd, SEAL, key)


def pack_key(key: bytes) -> str:
    """A key's exact bytes as JSON can hold them."""
    return base64.b64encode(key).decode()


def unpack_key(text: str) -> bytes:
    """The reverse of `pack_key`.

    Raises:
        ValueError: it is not base64.
    """
    return base64.b64decode(text, validate=True)


def pack_digests(digests: Digests) -> dict[str, Any]:
    """Digests as they stand in a seal."""
    packed: dict[str, Any] = {"size": digests.size, "crc64nvme": digests.crc64nvme}
    if digests.md5:
        packed["md5"] = digests.md5
    if digests.sha256:
        packed["sha256"] = digests.sha256
    if digests.multipart_etags:
        packed["multipart_etags"] = {str(size): etag for size, etag in digests.multipart_etags.items()}
    return packed


def unpack_digests(packed: dict[str, Any]) -> Digests:
    """The reverse of `pack_digests`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not what we write.
    """
    multipart = {int(size): str(etag) for size, etag in packed.get("multipart_etags", {}).items()}
    return Digests(
        int(packed["size"]), str(packed["crc64nvme"]), packed.get("md5"), packed.get("sha256"), multipart
    )


def chunk_names(root_fd: int) -> Sequence[str]:
    """The names of all chunk folders on a volume; anything else in our tree is left alone."""
    with _open_folder(TREE, root_fd) as tree_fd, os.scandir(tree_fd) as entries:
        return sorted(e.name for e in entries if _CHUNK.fullmatch(e.name) and e.is_dir(follow_symlinks=False))


def make_tree(root_fd: int) -> None:
    """Make our folder on a volume, durably.

    Raises:
        OSError: as the file system says.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(TREE, 0o700, dir_fd=root_fd)
        os.fsync(root_fd)
    with _open_folder(TREE, root_fd):
        pass


def remove(root_fd: int, name: str) -> None:
    """Remove a chunk's folder with all that is in it; one that is gone already is success.

    Raises:
        OSError: as the file system says.
    """
    with _open_folder(TREE, root_fd) as tree_fd, contextlib.suppress(FileNotFoundError):
        shutil.rmtree(name, dir_fd=tree_fd)


@contextlib.contextmanager
def _open_folder(name: str, parent_fd: int) -> Iterator[int]:
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _keep(stack: contextlib.ExitStack, name: str, parent_fd: int) -> int:
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent_fd)
    stack.callback(os.close, descriptor)
    return descriptor


def _lock(descriptor: int, name: str) -> None:
    for pause in (0.02,) * 10:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(pause)  # until its `exec`, a process that another thread starts just now holds it too
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Busy(f"chunk {name}", hint="an s5cmd of an earlier daemon still runs; it will end") from error
