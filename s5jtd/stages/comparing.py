"""What source, destination and ledger together say of one key, by listings or by asking; changes nothing.

A listing settles only what is as it should be.  Before a delivery is doubted the destination itself is
asked: a listing may be older than the delivery, and servers were seen to end listings too early.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from s5jtd.config import JobConfig
from s5jtd.errors import EndpointError, ObjectError, ObjectGone
from s5jtd.integrity.evidence import etag_parts, judge, missing_for, same_object
from s5jtd.integrity.hashing import Wanted, hash_stream
from s5jtd.ledger.rearm import CONTENT_DIFFERS, DIFFERS, MISSING, Doubt, Found, Known
from s5jtd.ledger.states import State
from s5jtd.model import Digests, Evidence, Head, Listed, Verdict
from s5jtd.s3.heads import head, read_back
from s5jtd.stages.findings import Entry, Mark
from s5jtd.stages.job import Link
from s5jtd.stages.threeway import Triple

_ON_ITS_WAY: Final = frozenset({State.PULLING, State.STAGED, State.PUSHING})
_NOWHERE = "it was delivered, and now neither side holds it"
_NO_REPAIR = "the source no longer holds it"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is true of one key, and what the ledger should make of it."""

    entry: Entry
    act: Doubt | Listed | Found | None = None  #: a Listed is unknown to the ledger, and must travel
    broken: bool = False  #: the destination does not hold what was delivered


#: Of what is counted only; a resync makes a hundred million of them.
_PLAIN: Final = {mark: Finding(Entry(mark, b"", None)) for mark in Mark}


class Comparison:
    """Compares one key at a time; threads may share it."""

    def __init__(
        self,
        config: JobConfig,
        source: Link,
        destination: Link,
        *,
        deep: bool,
        unmovable: Callable[[bytes], str | None],
        pulse: Callable[[], None],
    ) -> None:
        """`unmovable` tells why a key cannot travel; `pulse` is called with each piece of work."""
        self._config = config
        self._source = source
        self._destination = destination
        self._deep = deep
        self._unmovable = unmovable
        self._pulse = pulse

    # By listings: pure

    def by_listings(self, triple: Triple) -> Finding | None:
        """What the listings and the ledger settle between them; None where somebody must be asked."""
        _, source, destination, row = triple
        if row is not None and row.state in _ON_ITS_WAY:
            return _PLAIN[Mark.UNDER_WAY]
        if source is None:
            return self._not_at_source(triple)
        if destination is None:
            is_doubtful = row is not None and row.state == State.DELIVERED
            return None if is_doubtful else self._missing(row, source)
        if row is not None and row.state == State.SEEN:
            verdict = same_object(source, destination)
            return self._same(triple, destination, verdict) if verdict.equal else _PLAIN[Mark.UNDER_WAY]
        if self._deep:
            return None
        if _is_as_delivered(row, destination) and row is not None and row.is_version(source):
            return _PLAIN[Mark.SAME]
        verdict = same_object(source, destination)
        return self._same(triple, destination, verdict) if verdict.equal else None

    def _not_at_source(self, triple: Triple) -> Finding | None:
        key, _, destination, row = triple
        if row is not None and row.state == State.DELIVERED:
            if destination is None or not _is_as_delivered(row, destination):
                return None
            return None if self._deep and row.digests else _finding(Mark.EXTRA, key, _NO_REPAIR)
        if destination is not None:
            return _finding(Mark.EXTRA, key)
        is_seen = row is not None and row.state == State.SEEN
        return _PLAIN[Mark.UNDER_WAY if is_seen else Mark.NOTHING]

    # By asking

    def by_asking(self, triple: Triple) -> Finding:
        """What the two sides say when asked for this one key; an error is a finding too."""
        try:
            return self._asked(triple)
        except (EndpointError, ObjectError) as error:
            return _finding(Mark.ERROR, triple.key, str(error))

    def _asked(self, triple: Triple) -> Finding:
        row, listed = triple.row, triple.source
        theirs = self._head(self._destination, triple.key)
        if theirs is None:
            return self._asked_where(triple)
        if listed is None:
            return self._left_over(triple, theirs)
        if not self._deep and _is_as_delivered(row, theirs) and row is not None and row.is_version(listed):
            return _PLAIN[Mark.SAME]
        ours = self._head(self._source, triple.key)
        return self._left_over(triple, theirs) if ours is None else self._judged(triple, ours, theirs)

    def _asked_where(self, triple: Triple) -> Finding:
        """The destination does not hold it: does the source?"""
        version = triple.source
        if version is None:
            ours = self._head(self._source, triple.key)
            if ours is None:
                return _finding(Mark.ERROR, triple.key, _NOWHERE, broken=True)
            version = _version(triple, ours)
        return self._missing(triple.row, version)

    def _judged(self, triple: Triple, ours: Head, theirs: Head) -> Finding:
        row, key = triple.row, triple.key
        version = _version(triple, ours)
        digests = row.digests if row is not None and row.is_version(version) else None
        verdict = self._verdict(key, ours, theirs, digests)
        if verdict.equal is None and self._size_suffices():
            verdict = Verdict(True, Evidence.SIZE, verdict.detail)
        if verdict.equal is None:
            detail = f"{verdict.detail}; to compare the bytes: --deep"
            return _finding(Mark.ERROR, key, detail, broken=_is_changed(row, theirs))
        if verdict.equal:
            return self._same(triple, theirs, verdict)
        return self._different(row, version, verdict.detail)

    def _verdict(self, key: bytes, ours: Head, theirs: Head, digests: Digests | None) -> Verdict:
        """Whether the two are the same; `digests` are of the source's bytes, where they were here."""
        verdicts = [same_object(ours, theirs)]
        if digests is not None:
            verdicts.append(judge(digests, theirs.size, theirs.etag, head=theirs))
        told = self._told(verdicts)
        if told is None and self._deep:
            return self._by_reading(key, ours, theirs, digests)
        return told or verdicts[0]

    def _told(self, verdicts: Sequence[Verdict]) -> Verdict | None:
        """What is proven or disproven without reading; an ETag that agrees does not make it deep."""
        proofs = [v for v in verdicts if v.equal and not (self._deep and v.evidence is not Evidence.CHECKSUM)]
        disproofs = [v for v in verdicts if v.equal is False]
        return next(iter([*proofs, *disproofs]), None)

    def _by_reading(self, key: bytes, ours: Head, theirs: Head, digests: Digests | None) -> Verdict:
        """Read the destination, and the source too where nothing else tells what its bytes are."""
        if digests is not None:
            return _alike(digests, self._read(self._destination, key, theirs, Wanted()))
        first_part = None if etag_parts(ours.etag) is None else self._head(self._source, key, part_number=1)
        part_size = None if first_part is None else first_part.part_size
        wanted = missing_for(ours.etag, Digests(ours.size, ""), part_size=part_size) or Wanted()
        wanted = dataclasses.replace(wanted, sha256="sha256" in ours.checksums)
        there = self._read(self._destination, key, theirs, wanted)
        verdict = judge(there, ours.size, ours.etag, part_size=part_size, head=ours)
        if verdict.equal is None:
            return _alike(self._read(self._source, key, ours, Wanted()), there)
        return verdict._replace(
            evidence=Evidence.READBACK if verdict.equal else None, detail=f"read back: {verdict.detail}"
        )

    def _left_over(self, triple: Triple, theirs: Head) -> Finding:
        """Only the destination holds it; is it what was delivered?"""
        row, key = triple.row, triple.key
        if row is None or row.state != State.DELIVERED:
            return _finding(Mark.EXTRA, key)
        digests = row.digests
        if _is_as_delivered(row, theirs) and (digests is None or not self._deep):
            return _finding(Mark.EXTRA, key, _NO_REPAIR)
        if digests is None:
            verdict = Verdict(None if row.size == theirs.size else False, None, "")
        else:
            verdict = judge(digests, theirs.size, theirs.etag, head=theirs)
            told = self._told([verdict])
            if told is None and self._deep:
                verdict = _alike(digests, self._read(self._destination, key, theirs, Wanted()))
        if verdict.equal:
            return _finding(Mark.EXTRA, key, _NO_REPAIR)
        if verdict.equal is None:
            return _finding(
                Mark.ERROR, key, f"its ETag is not that of the delivery, and {_NO_REPAIR}", broken=True
            )
        return _finding(Mark.DIFFERENT, key, f"not what was delivered, and {_NO_REPAIR}", broken=True)

    # What follows

    def _same(self, triple: Triple, theirs: Listed | Head, verdict: Verdict) -> Finding:
        """The sides agree; what the ledger still took for missing is found."""
        row, source = triple.row, triple.source
        act = None
        is_open = row is None or (
            source is not None and row.state in (State.SEEN, State.PARKED) and row.is_version(source)
        )
        if is_open and source is not None and self._counts(verdict):
            evidence = verdict.evidence or Evidence.SIZE
            insecure = self._source.insecure or self._destination.insecure
            act = Found(row, source, theirs.etag, evidence, insecure)
        return Finding(Entry(Mark.SAME, triple.key, None), act)

    def _missing(self, row: Known | None, version: Listed) -> Finding:
        key = version.key
        if row is None:
            return self._unknown(Mark.MISSING, version, "not in the ledger yet")
        if row.state == State.PARKED:
            return _finding(Mark.MISSING, key, f"parked: {row.reason}")
        if row.state == State.SEEN:
            return _PLAIN[Mark.UNDER_WAY]
        if row.state == State.GONE:
            detail = "it was gone from the source, and is there again"
            return Finding(Entry(Mark.MISSING, key, detail), Doubt(row, version, MISSING, detail))
        return _doubted(Mark.MISSING, row, version, MISSING, "delivered, and no longer there")

    def _different(self, row: Known | None, version: Listed, detail: str) -> Finding:
        if row is None:
            return self._unknown(Mark.DIFFERENT, version, detail)
        if row.state == State.PARKED:
            return _finding(Mark.DIFFERENT, version.key, f"{detail}; parked: {row.reason}")
        code = CONTENT_DIFFERS if self._deep else DIFFERS
        if row.state == State.DELIVERED and not row.is_version(version):
            detail = f"the source holds a newer version: {detail}"
        return _doubted(Mark.DIFFERENT, row, version, code, detail)

    def _unknown(self, mark: Mark, version: Listed, detail: str) -> Finding:
        reason = self._unmovable(version.key)
        if reason is not None:
            return _finding(mark, version.key, f"it cannot travel: {reason}")
        return Finding(Entry(mark, version.key, detail), version)

    def _counts(self, verdict: Verdict) -> bool:
        """Whether what the destination holds already counts as delivered, by the job's own settings."""
        config, evidence = self._config, verdict.evidence
        if config.skip_existing == "never" or evidence is None:
            return False
        return evidence.satisfies(config.evidence.minimum) or config.skip_existing == "size"

    def _size_suffices(self) -> bool:
        """Whether the job itself took a copy of the right size for a good one."""
        config = self._config
        is_enough = Evidence.SIZE.satisfies(config.evidence.minimum) or config.evidence.otherwise == "accept"
        return not self._deep and (is_enough or config.skip_existing == "size")

    # Requests

    def _head(self, link: Link, key: bytes, *, part_number: int | None = None) -> Head | None:
        self._pulse()
        try:
            with link.endpoints.lease() as endpoint:
                name = self._name(link, key)
                return head(endpoint.client, name, part_number=part_number, checksums=part_number is None)
        except ObjectGone:
            return None

    def _read(self, link: Link, key: bytes, shown: Head, wanted: Wanted) -> Digests:
        return hash_stream(self._blocks(link, key, shown), wanted)

    def _blocks(self, link: Link, key: bytes, shown: Head) -> Iterator[bytes]:
        with link.endpoints.lease() as endpoint:
            for block in read_back(endpoint.client, self._name(link, key), if_match=shown.etag or None):
                self._pulse()
                yield block

    def _name(self, link: Link, key: bytes) -> bytes:
        return link.prefix + key.removeprefix(self._source.prefix)


def _finding(mark: Mark, key: bytes, detail: str | None = None, *, broken: bool = False) -> Finding:
    return Finding(Entry(mark, key, detail), broken=broken)


def _doubted(mark: Mark, row: Known, version: Listed, code: str, detail: str) -> Finding:
    """A delivery that the destination does not bear out."""
    broken = row.state == State.DELIVERED and row.is_version(version)
    if row.aboard:
        detail += "; its copy on a volume is about to be removed: resync again"
        return _finding(mark, row.key, detail, broken=broken)
    return Finding(Entry(mark, row.key, detail), Doubt(row, version, code, detail), broken)


def _is_as_delivered(row: Known | None, theirs: Listed | Head) -> bool:
    """Whether the destination shows what it showed when the delivery was proven."""
    return (
        row is not None
        and row.state == State.DELIVERED
        and row.size == theirs.size
        and bool(theirs.etag)
        and theirs.etag == row.destination_etag
    )


def _is_changed(row: Known | None, theirs: Head) -> bool:
    """Whether the destination shows another object than was delivered."""
    return row is not None and row.state == State.DELIVERED and theirs.etag != row.destination_etag


def _version(triple: Triple, ours: Head) -> Listed:
    """The source's version: as listed, where that is the one, since only listings tell milliseconds."""
    listed = triple.source
    if listed is not None and (listed.size, listed.etag) == (ours.size, ours.etag):
        return listed
    return Listed(triple.key, ours.size, ours.etag, ours.modified_ms)


def _alike(one: Digests, other: Digests) -> Verdict:
    if (one.size, one.crc64nvme) == (other.size, other.crc64nvme):
        return Verdict(True, Evidence.READBACK, "read back: the bytes are the same")
    return Verdict(False, None, "read back: the bytes are others")
