"""What a chunk's folder says of itself, in the words of the ledger: its promise and its seal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from s5jtd.config import JobConfig, S3Side
from s5jtd.errors import VolumeFailed
from s5jtd.ledger.rows import Chunk, Item, Staged
from s5jtd.model import NO_BELONGINGS, Belongings, Evidence
from s5jtd.stages.job import Job
from s5jtd.volumes import chunks
from s5jtd.volumes.chunks import ChunkFolder
from s5jtd.volumes.volume import Volume

FORMAT = 1
_BELONGINGS = ("content", "metadata", "tags")


def write_promise(folder: ChunkFolder, job: Job, chunk: Chunk, volume: Volume, items: Sequence[Item]) -> None:
    """Write the chunk's manifest, before the first byte of it is pulled.

    Raises:
        OSError: as the file system says.
    """
    chunks.write_manifest(folder, _header(job, chunk, volume), [_version(item) for item in items], volume.key)


def write_seal(folder: ChunkFolder, job: Job, chunk: Chunk, volume: Volume, staged: Sequence[Staged]) -> None:
    """Write what is durable and proven, so that the volume can say it without any ledger.

    Raises:
        OSError: as the file system says.
    """
    reseal(folder, _header(job, chunk, volume), staged, volume.key)


def reseal(folder: ChunkFolder, header: dict[str, Any], staged: Sequence[Staged], key: bytes) -> None:
    """Write a seal under a header that stands already, as when a volume is adopted.

    Raises:
        OSError: as the file system says.
    """
    lines = [
        {
            **_version(one.item),
            **chunks.pack_digests(one.digests),
            "evidence": one.evidence.value,
            "part_size": one.part_size,
            **_packed(one.belongings),
            **({"insecure": True} if one.insecure else {}),
        }
        for one in staged
    ]
    chunks.write_seal(folder, header, lines, key)


def read_seal(folder: ChunkFolder, key: bytes | None) -> tuple[dict[str, Any], list[Staged]]:
    """The seal's header (`job`, `chunk`, `volume`) and what it vouches for.

    Without a `key` anybody's seal is read, if it is whole: believe it only with an operator's word.

    Raises:
        FileNotFoundError: the chunk was never sealed.
        VolumeFailed: it is torn, or not what this program writes.
        VolumeForeign: another appliance sealed it.
    """
    header, *lines = chunks.read_seal(folder, key)
    try:
        if header["format"] != FORMAT:
            raise ValueError("a newer s5jtd wrote it")
        return header, [_staged(line) for line in lines]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VolumeFailed(f"the seal of chunk {folder.name} cannot be read: {error}") from error


def origin(config: JobConfig) -> str:
    """Where a job's objects come from, so that a job of the same name elsewhere is not taken for the same."""
    source = config.source
    return f"s3://{source.bucket}/{source.prefix}" if isinstance(source, S3Side) else str(source.directory)


def _header(job: Job, chunk: Chunk, volume: Volume) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "chunk": chunk.name,
        "job": job.name,
        "source": origin(job.config),
        "volume": volume.uuid,
        "written_at_ms": int(time.time() * 1000),
    }


def _version(item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "key": chunks.pack_key(item.key),
        "size": item.size,
        "etag": item.etag,
        "modified_ms": item.modified_ms,
    }


def _staged(line: dict[str, Any]) -> Staged:
    part_size = line["part_size"]
    item = Item(
        int(line["id"]), chunks.unpack_key(line["key"]), int(line["size"]), str(line["etag"]),
        int(line["modified_ms"]), 0,
    )  # fmt: skip
    return Staged(
        item,
        chunks.unpack_digests(line),
        Evidence(line["evidence"]),
        None if part_size is None else int(part_size),
        _belongings(line),
        insecure=bool(line.get("insecure")),
    )


def _packed(belongings: Belongings) -> dict[str, Any]:
    """Belongings as they stand in a seal: what there is none of is not written."""
    found = {name: dict(getattr(belongings, name)) for name in _BELONGINGS}
    return {name: values for name, values in found.items() if values}


def _belongings(line: dict[str, Any]) -> Belongings:
    """The reverse of `_packed`.

    Raises:
        ValueError, AttributeError: it is not what we write.
    """
    found = {name: dict(line[name].items()) for name in _BELONGINGS if name in line}
    if not all(isinstance(word, str) for one in found.values() for pair in one.items() for word in pair):
        raise ValueError("a header is no text")
    return Belongings(**found) if found else NO_BELONGINGS
