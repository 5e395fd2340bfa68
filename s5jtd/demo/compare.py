"""Compares two demo buckets byte for byte, by means that share nothing with the daemon.

It believes neither ledger nor ETag nor checksum header: boto3 lists both buckets, every object is fetched
from both, and their SHA-256 are compared.  So it can prove the daemon wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from s5jtd.demo.servers import DemoSide

_READ_BYTES: Final = 1024 * 1024
#: What `preserve: [content, metadata]` promises; boto3's names in GET's answer.
_KEPT: Final = (
    "ContentType",
    "ContentEncoding",
    "ContentDisposition",
    "ContentLanguage",
    "CacheControl",
)


class Difference(NamedTuple):
    """One object that is not at the destination as it is at the source."""

    key: str  #: as at the source, below its prefix
    kind: str  #: missing, extra, content or metadata
    detail: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the comparison saw."""

    objects: int  #: at the source
    size_bytes: int  #: fetched from the source, and hashed
    same: int  #: equal in all that was compared
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """Whether each object is there, is the same, and nothing else is there."""
        return not self.differences


class _Fetched(NamedTuple):
    sha256: str
    size: int
    kept: Mapping[str, str]
    metadata: Mapping[str, str]


def compare(
    source: DemoSide,
    destination: DemoSide,
    *,
    source_prefix: str = "",
    destination_prefix: str = "",
    metadata: bool = False,
    workers: int = 4,
    on_progress: Callable[[int], None] = lambda _size_bytes: None,
) -> Comparison:
    """Compare all below `source_prefix` with all below `destination_prefix`.

    With `metadata`, what the source says of an object's type and its user metadata must be there too.
    `on_progress` hears, on the calling thread, the bytes of each object once both copies were read.
    """
    clients = source.client(workers), destination.client(workers)
    here = _keys(clients[0], source.bucket, source_prefix)
    there = _keys(clients[1], destination.bucket, destination_prefix)

    def differs(key: str) -> tuple[int, Difference | None]:
        first = _fetch(clients[0], source.bucket, source_prefix + key)
        second = _fetch(clients[1], destination.bucket, destination_prefix + key)
        return first.size, _difference(key, first, second, metadata=metadata)

    differences = [Difference(key, "missing", "not at the destination") for key in sorted(here - there)]
    differences += [Difference(key, "extra", "not at the source") for key in sorted(there - here)]
    size_bytes = same = 0
    with ThreadPoolExecutor(workers, thread_name_prefix="compare") as pool:
        for size, difference in pool.map(differs, sorted(here & there)):
            size_bytes += size
            same += difference is None
            differences += [difference] if difference else []
            on_progress(size)
    for client in clients:
        client.close()
    return Comparison(len(here), size_bytes, same, tuple(differences))


def _keys(client: Any, bucket: str, prefix: str) -> set[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {item["Key"][len(prefix) :] for page in pages for item in page.get("Contents", ())}


def _fetch(client: Any, bucket: str, key: str) -> _Fetched:
    answer = client.get_object(Bucket=bucket, Key=key)
    sha256 = hashlib.sha256()
    size = 0
    for piece in answer["Body"].iter_chunks(_READ_BYTES):
        sha256.update(piece)
        size += len(piece)
    kept = {name: answer[name] for name in _KEPT if name in answer}
    return _Fetched(sha256.hexdigest(), size, kept, answer["Metadata"])


def _difference(key: str, source: _Fetched, destination: _Fetched, *, metadata: bool) -> Difference | None:
    if source.sha256 != destination.sha256:
        detail = f"{source.size} bytes at the source, {destination.size} with another SHA-256"
        return Difference(key, "content", detail)
    expected = {**source.kept, **source.metadata} if metadata else {}
    found = {**destination.kept, **destination.metadata}  # a stamp of ours on top is no difference
    lost = {name: found.get(name) for name, value in expected.items() if found.get(name) != value}
    return Difference(key, "metadata", f"wanted {expected}, differs in {lost}") if lost else None
