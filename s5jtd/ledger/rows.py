"""What goes into the ledger and comes out of it, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from s5jtd.ledger.states import ChunkState, State
from s5jtd.model import NO_BELONGINGS, Belongings, Digests, Evidence

#: A pause without an end.
FOREVER_MS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Item:
    """An object as the stages carry it."""

    id: int
    key: bytes
    size: int
    etag: str
    modified_ms: int
    attempts: int  #: of the present hop, the one under way included
    digests: Digests | None = None  #: once it was staged
    part_size: int | None = None  #: the upload's, once it was staged
    #: How strongly the local copy was proven, once it was staged.
    pull_evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk as the stages carry it."""

    id: int
    name: str
    job_id: int
    volume_id: int
    state: ChunkState


@dataclass(frozen=True, slots=True)
class Staged:
    """An object whose local bytes are durable and were proven."""

    item: Item
    digests: Digests
    evidence: Evidence
    part_size: int | None  #: bytes; the upload's, where it will be multipart
    #: Kept in the chunk's seal, and in no row: most objects have none, and a hundred million have too many.
    belongings: Belongings = NO_BELONGINGS
    insecure: bool = False  #: the source spoke TLS to us, and nobody looked at its certificate


@dataclass(frozen=True, slots=True)
class Delivered:
    """An object whose content at the destination was proven."""

    item: Item
    etag: str  #: the destination's
    evidence: Evidence
    insecure: bool = False  #: as with `Staged`, of the destination


@dataclass(frozen=True, slots=True)
class Returned:
    """An object that did not make its hop."""

    item: Item
    to: State
    code: str
    message: str
    counted: bool = True  #: False where the object is not to blame: the attempt is given back
    not_before_ms: int = 0
    #: The version the source shows now, where it is another than the planned one.
    etag: str | None = None
    size: int | None = None
    modified_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume the ledger knows."""

    id: int
    uuid: str
    name: str
    path: str
    attach_epoch: int
    draining_since_ms: int | None = None  #: since when an operator wants it empty


@dataclass(frozen=True, slots=True)
class Pass:
    """One look at a source."""

    id: int
    started_at_ms: int
    finished_at_ms: int | None
    complete: bool
    listed: int
    fresh: int
    found: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Pauses:
    """Until when a job's halves rest, in Unix milliseconds; None: they run."""

    pull_until_ms: int | None
    push_until_ms: int | None


NO_PAUSES = Pauses(None, None)
