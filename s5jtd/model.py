"""The words the rooms share: plain values without any I/O.  A leaf: imports nothing of ours.

Keys are `bytes` everywhere inside the daemon: S3 orders and compares keys as UTF-8 bytes, and a
server may list bytes that are no UTF-8 at all.  `printable` is the only way out to a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple


class Side(StrEnum):
    """Which end of a job."""

    SOURCE = "source"
    DESTINATION = "destination"


class Direction(StrEnum):
    """Which way a batch moves bytes."""

    PULL = "pull"
    PUSH = "push"


class Evidence(StrEnum):
    """Why a copy is believed right, weakest last."""

    CHECKSUM = "checksum"  #: A checksum of the whole content that the server itself reports.
    ETAG = "etag"  #: The ETag, recomputed from the bytes as MD5 or as MD5 of part MD5s.
    READBACK = "readback"  #: The bytes were fetched again and hashed to the same value.
    SIZE = "size"  #: Only the length agrees.

    @property
    def strength(self) -> int:
        """Higher is stronger."""
        return 4 - list(Evidence).index(self)

    def satisfies(self, minimum: Evidence) -> bool:
        """Whether this is at least as strong as `minimum`."""
        return self.strength >= minimum.strength


class Listed(NamedTuple):
    """One object as a listing shows it; a tuple because a rescan makes a hundred million of them."""

    key: bytes
    size: int  #: bytes
    etag: str  #: without quotes; "" where the server gives none
    modified_ms: int  #: Unix time; 0 where the server gives none


#: Content headers that travel with an object, by their S3 names in lower case.
CONTENT_HEADERS = (
    "content-type",
    "content-encoding",
    "content-disposition",
    "content-language",
    "cache-control",
    "expires",
)


@dataclass(frozen=True, slots=True)
class Belongings:
    """What an object has besides its bytes and takes along; only what is not as S3 has it by itself."""

    content: Mapping[str, str] = field(default_factory=dict)  #: of CONTENT_HEADERS
    metadata: Mapping[str, str] = field(default_factory=dict)  #: user metadata, names without the prefix
    tags: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.content or self.metadata or self.tags)


NO_BELONGINGS: Final = Belongings()


@dataclass(frozen=True, slots=True)
class Head:
    """One object as HEAD shows it."""

    size: int  #: bytes of the whole object, also when one part was asked for
    etag: str  #: without quotes
    modified_ms: int = 0
    version_id: str | None = None
    checksums: Mapping[str, str] = field(
        default_factory=dict
    )  #: algorithm in lower case ("crc64nvme") -> base64
    checksum_type: str | None = None  #: "FULL_OBJECT", "COMPOSITE", or None where not said
    part_size: int | None = None  #: bytes of part 1, where partNumber=1 was asked for and answered
    parts_count: int | None = None
    encrypted: str | None = None  #: x-amz-server-side-encryption ("aws:kms" makes ETags opaque)
    storage_class: str | None = None
    content: Mapping[str, str] = field(default_factory=dict)  #: of CONTENT_HEADERS, what was set
    metadata: Mapping[str, str] = field(default_factory=dict)  #: x-amz-meta-*, names without the prefix
    tags_count: int | None = None  #: None where not said; of AWS that means none


@dataclass(frozen=True, slots=True)
class Learned:
    """What a check found out of one endpoint; None: not asked, or nothing that can be relied on."""

    checked_at_ms: int = 0  #: Unix time; 0: never
    ok: bool | None = None  #: whether all of it was as a transfer needs it
    latency_ms: float | None = None
    list_version: str | None = None  #: "2", or "1" where version 2 is not understood
    is_ordered: bool | None = None  #: its listing; False is certain, True holds for what was seen of it
    part_numbers: bool | None = None  #: whether a HEAD tells the size of one part
    s5cmd: bool | None = None  #: whether s5cmd can read there; False: others can, and it cannot

    def __bool__(self) -> bool:
        return self.checked_at_ms > 0


@dataclass(frozen=True, slots=True)
class Digests:
    """What one pass over the local bytes gave."""

    size: int  #: bytes read
    crc64nvme: str  #: base64 of the eight bytes, big-endian, as S3 writes it
    md5: str | None = None  #: hex
    sha256: str | None = None  #: hex
    multipart_etags: Mapping[int, str] = field(default_factory=dict)  #: part size -> "hex-N"


class Verdict(NamedTuple):
    """What comparing two copies showed.  `evidence` is None unless `equal` is True."""

    equal: bool | None  #: True proven, False disproven, None: what we know decides nothing
    evidence: Evidence | None
    detail: str  #: for the record: what was compared, or why nothing could be


def printable(key: bytes) -> str:
    """A key as text for people and JSON: UTF-8 where it is, `\\xNN` where it is not."""
    return key.decode("utf-8", "backslashreplace")
