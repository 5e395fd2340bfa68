"""Decides what checksums, ETags and sizes prove; pure: it asks nobody and reads nothing.

A match always proves, because no accident makes two checksums of 64 bits or more agree.  A
difference disproves only where it is certain what the other side computed: a full-object checksum,
the ETag of an object that is not encrypted with its own key, a multipart ETag whose part size the
server or the upload settled.  All else decides nothing, and the job's policy does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from s5jtd.integrity.hashing import Wanted
from s5jtd.model import Digests, Evidence, Head, Listed, Verdict

MIB: Final = 1 << 20
#: S3's smallest part.
PART_BYTES_MIN: Final = 5 * MIB
#: A part is sent again as a whole when the link drops; larger ones may never get through.
PART_BYTES_COPIED_MAX: Final = 512 * MIB
#: Up to here an object whose source ETag is an MD5 goes up in one PUT, so that the ETags agree.
SINGLE_PUT_BYTES_MAX: Final = 256 * MIB
#: From this quotient on s5cmd silently takes another part size than it was told.
PARTS_MAX: Final = 10_000

#: Part sizes that uploaders use by default, in MiB, the commonest first.
_USUAL_PART_MIB: Final = (8, 5, 16, 64, 50, 10, 15, 100, 128, 20, 25, 32, 256, 512, 1024)

#: Checksums long enough to prove; of 32 bits, one pair in four thousand million agrees by accident.
_DIGEST_BYTES: Final[Mapping[str, int]] = {"sha512": 64, "sha256": 32, "sha1": 20, "md5": 16, "crc64nvme": 8}

_ETAG: Final = re.compile(r"([0-9a-f]{32})(?:-([1-9][0-9]{0,4}))?", re.ASCII | re.IGNORECASE)


class EtagKind(StrEnum):
    """What an ETag may be compared with, by its form."""

    MD5 = "md5"  #: of the whole, unless the object is encrypted with a key of its own
    MULTIPART = "multipart"  #: the MD5 of the MD5s of the parts
    OPAQUE = "opaque"  #: nothing


def etag_kind(etag: str) -> EtagKind:
    """What an ETag without its quotes says; a weak one, an empty one and any other form are opaque."""
    match = _ETAG.fullmatch(etag)
    if match is None:
        return EtagKind.OPAQUE
    return EtagKind.MULTIPART if match[2] else EtagKind.MD5


def etag_parts(etag: str) -> int | None:
    """How many parts a multipart ETag names; None for every other ETag."""
    match = _ETAG.fullmatch(etag)
    return int(match[2]) if match and match[2] else None


def plausible_part_sizes(size: int, parts: int) -> list[int]:
    """The usual part sizes, in bytes, that cut `size` bytes into so many parts, the commonest first.

    A single part can only be the whole, so that is no guess.
    """
    if parts == 1:
        return [max(1, size)]
    return [mib * MIB for mib in _USUAL_PART_MIB if _part_count(size, mib * MIB) == parts]


def wanted_for(
    listed_etag: str,
    size: int,
    source_part_size: int | None,
    upload_part_size: int,
    sha256: bool,
    *,
    whole_md5: bool = False,
) -> Wanted:
    """What the one pass must compute to judge the source and to predict the destination's ETag.

    An object up to `upload_part_size` goes up in one PUT and gets its MD5 for an ETag; a larger one
    gets a multipart ETag, or on servers known to answer so (`whole_md5`) the MD5 all the same.
    """
    single_put = size <= upload_part_size
    return Wanted(
        md5=single_put or whole_md5 or etag_kind(listed_etag) is EtagKind.MD5,
        sha256=sha256,
        part_sizes=frozenset(_source_part_sizes(listed_etag, size, source_part_size))
        | (frozenset() if single_put else {upload_part_size}),
    )


def judge(
    digests: Digests,
    size: int,
    etag: str,
    *,
    part_size: int | None = None,
    head: Head | None = None,
) -> Verdict:
    """Whether the bytes behind `digests` are those of an object of `size` bytes with this ETag.

    `etag` is what a listing showed, and "" where the endpoint's ETags are known to mean nothing.
    `part_size` is given only where it is certain: the server told it, or we uploaded with it.
    Without a HEAD a differing MD5 counts as disproof although encryption may explain it: see
    `worth_a_head`.  A HEAD of another version than the listing's proves by its checksum or not at all.
    """
    verdict = _judge_one_version(digests, size, etag, part_size, head)
    other_version = head is not None and etag and head.etag and not _same_etag(head.etag, etag)
    if other_version and verdict.evidence is not Evidence.CHECKSUM:
        return _unknown("the HEAD shows another version than the listing")
    return verdict


def _judge_one_version(
    digests: Digests, size: int, etag: str, part_size: int | None, head: Head | None
) -> Verdict:
    there = size if head is None else head.size
    if digests.size != there:
        return _different(f"{digests.size} bytes here, {there} there")
    if head is not None:
        verdict = _by_checksums(_as_checksums(digests), _full_checksums(head), head)
        if verdict is not None:
            return verdict
        etag = etag or head.etag
        part_size = part_size or head.part_size
    match etag_kind(etag):
        case EtagKind.MD5:
            return _by_md5(digests, etag, head)
        case EtagKind.MULTIPART:
            return _by_multipart(digests, etag, part_size, head)
        case EtagKind.OPAQUE:
            return _unknown("the ETag is no MD5 of anything" if etag else "there is no ETag")


def worth_a_head(verdict: Verdict, minimum: Evidence = Evidence.ETAG) -> bool:
    """Whether a HEAD with checksums may turn what was decided from a listing, or strengthen it.

    It may: a listing tells nothing of encryption, and it may be older than the object.
    """
    return not verdict.equal or verdict.evidence is None or not verdict.evidence.satisfies(minimum)


def missing_for(etag: str, digests: Digests, *, part_size: int | None = None) -> Wanted | None:
    """What must still be computed before this ETag can decide; None if nothing would help.

    Whoever hashes the bytes again compares the CRC64NVME of both passes first: what the second pass
    says counts only if it saw the same bytes.
    """
    match etag_kind(etag):
        case EtagKind.MD5:
            return Wanted(md5=True) if digests.md5 is None else None
        case EtagKind.MULTIPART:
            computed = _multipart_etags(digests)
            missing = frozenset(_source_part_sizes(etag, digests.size, part_size)) - computed.keys()
            return Wanted(part_sizes=missing) if missing and not matching_part_size(etag, digests) else None
        case EtagKind.OPAQUE:
            return None


def matching_part_size(etag: str, digests: Digests) -> int | None:
    """The part size in bytes that is proven by a multipart ETag recomputed from the bytes."""
    return next(
        (size for size, ours in _multipart_etags(digests).items() if _same_etag(ours, etag)),
        None,
    )


def same_object(source: Listed | Head, destination: Listed | Head) -> Verdict:
    """Whether two objects, neither of them here, hold the same bytes.

    Two MD5s that differ disprove only between two HEADs: a listing does not tell that an object is
    encrypted with its own key, and taking that for a difference would send every object twice.
    """
    if source.size != destination.size:
        return _different(f"{source.size} bytes at the source, {destination.size} at the destination")
    if isinstance(source, Head) and isinstance(destination, Head):
        checksums = _full_checksums(source), _full_checksums(destination)
        verdict = _by_checksums(*checksums, source, destination)
        if verdict is not None:
            return verdict
        verdict = _by_md5_of_one(source, checksums[1]) or _by_md5_of_one(destination, checksums[0])
        if verdict is not None:
            return verdict
    kinds = {etag_kind(source.etag), etag_kind(destination.etag)}
    if EtagKind.OPAQUE not in kinds and _same_etag(source.etag, destination.etag):
        return Verdict(True, Evidence.ETAG, "the ETags agree")
    if kinds != {EtagKind.MD5}:
        return _unknown("the ETags cannot be compared")
    if not (_etag_is_md5(source) and _etag_is_md5(destination)):
        return _unknown("the ETags differ, but one of the objects may be encrypted with a key of its own")
    return _different("both ETags are MD5s, and they differ")


def sane_upload_part_size(
    size: int,
    source_etag: str,
    source_part_size: int | None,
    default: int,
    *,
    single_put_max: int = SINGLE_PUT_BYTES_MAX,
) -> int:
    """The part size in bytes, whole MiB, to upload with; an object up to it goes up in one PUT.

    The source's own, where that makes the destination's ETag equal to the source's, so that whole
    buckets compare by listing alone; else `default`, or more where S3's number of parts demands it.
    Above `single_put_max` bytes an object goes up in parts, whatever its ETag.
    """
    least = max(PART_BYTES_MIN, default, size // PARTS_MAX + 1)
    if etag_kind(source_etag) is EtagKind.MD5 and size <= single_put_max:
        return _whole_mib(max(least, size))
    for part_size in _source_part_sizes(source_etag, size, source_part_size):
        if _can_upload_with(part_size, size, etag_parts(source_etag)):
            return part_size
    return _whole_mib(least)


def _source_part_sizes(etag: str, size: int, known: int | None) -> list[int]:
    parts = etag_parts(etag)
    if parts is None:
        return []
    if known and _part_count(size, known) == parts:
        return [known]
    return plausible_part_sizes(size, parts)  # the parts are uneven, or the server told us nonsense


def _can_upload_with(part_size: int, size: int, parts: int | None) -> bool:
    return (
        part_size % MIB == 0
        and PART_BYTES_MIN <= part_size <= PART_BYTES_COPIED_MAX
        and part_size < size  # else it would go up in one PUT and get an MD5
        and size // part_size < PARTS_MAX
        and _part_count(size, part_size) == parts
    )


def _part_count(size: int, part_size: int) -> int:
    return max(1, -(-size // part_size))


def _whole_mib(size: int) -> int:
    return -(-size // MIB) * MIB


def _by_checksums(ours: Mapping[str, bytes], theirs: Mapping[str, bytes], *heads: Head) -> Verdict | None:
    """The verdict of the checksums that both sides have, the strongest first; None if none decides."""
    common = [name for name in _DIGEST_BYTES if name in ours and name in theirs]
    differing = [name for name in common if ours[name] != theirs[name]]
    for name in differing:
        if not any(_may_be_composite(head, name) for head in heads):
            return _different(f"{name.upper()} of the whole differs")
    for name in common:
        if name not in differing:
            return Verdict(True, Evidence.CHECKSUM, f"{name.upper()} of the whole agrees")
    return None


def _by_md5_of_one(one: Head, of_other: Mapping[str, bytes]) -> Verdict | None:
    """Where one side's ETag is an MD5, and of the other's bytes an MD5 is known."""
    if "md5" not in of_other or etag_kind(one.etag) is not EtagKind.MD5 or not _etag_is_md5(one):
        return None
    if _same_etag(of_other["md5"].hex(), one.etag):
        return Verdict(True, Evidence.ETAG, "the ETag of one is the MD5 of the other")
    return _different("the ETag of one is not the MD5 of the other")


def _full_checksums(head: Head) -> dict[str, bytes]:
    """The checksums of a HEAD that speak of the whole content and are what they claim to be.

    A HEAD that asked for one part may carry that part's.
    """
    if head.checksum_type == "COMPOSITE" or head.part_size not in {None, head.size}:
        return {}
    decoded = {name: _decoded(text) for name, text in head.checksums.items() if name in _DIGEST_BYTES}
    return {name: value for name, value in decoded.items() if len(value) == _DIGEST_BYTES[name]}


def _decoded(text: str) -> bytes:
    """The bytes of a checksum; b"" for what is none, such as a composite one ("...-N")."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _may_be_composite(head: Head, name: str) -> bool:
    """Servers that do not tell the type may mean the parts; a CRC64NVME is always of the whole."""
    return head.checksum_type is None and name != "crc64nvme" and etag_kind(head.etag) is EtagKind.MULTIPART


def _as_checksums(digests: Digests) -> dict[str, bytes]:
    hexadecimal = {"sha256": digests.sha256, "md5": digests.md5}
    return {
        "crc64nvme": base64.b64decode(digests.crc64nvme),
        **{name: bytes.fromhex(text) for name, text in hexadecimal.items() if text is not None},
    }


def _by_md5(digests: Digests, etag: str, head: Head | None) -> Verdict:
    if digests.md5 is None:
        return _unknown("the ETag is an MD5, and none was computed here")
    if _same_etag(digests.md5, etag):
        return Verdict(True, Evidence.ETAG, "the ETag is the MD5 of the bytes")
    if head is not None and not _etag_is_md5(head):
        return _unknown("the object is encrypted with a key of its own, so its ETag is no MD5")
    return _different("the ETag is not the MD5 of the bytes")


def _by_multipart(digests: Digests, etag: str, part_size: int | None, head: Head | None) -> Verdict:
    matching = matching_part_size(etag, digests)
    if matching is not None:
        return Verdict(True, Evidence.ETAG, f"the ETag is that of parts of {matching} bytes")
    parts = etag_parts(etag)
    if parts == 1:
        part_size = max(1, digests.size)
    if part_size is None:
        return _unknown("the ETag is that of parts of unknown size")
    if _part_count(digests.size, part_size) != parts:
        return _unknown(f"the ETag names {parts} parts, which are not all of {part_size} bytes")
    if part_size not in _multipart_etags(digests):
        return _unknown(f"the ETag is that of parts of {part_size} bytes, and none was computed here")
    if head is not None and not _etag_is_md5(head):
        return _unknown("the object is encrypted with a key of its own, so its ETag may mean nothing")
    return _different(f"the ETag is not that of parts of {part_size} bytes")


def _multipart_etags(digests: Digests) -> dict[int, str]:
    """All that is known, by part size: what has a single part is the same at any size from the whole up."""
    whole = max(1, digests.size)
    known = {min(size, whole): etag for size, etag in digests.multipart_etags.items()}
    if digests.md5 is not None:
        of_part = hashlib.md5(bytes.fromhex(digests.md5), usedforsecurity=False)
        known[whole] = f"{of_part.hexdigest()}-1"
    return known


def _etag_is_md5(one: Listed | Head) -> bool:
    """Whether an ETag is surely made of MD5s; only a HEAD tells of encryption that makes it opaque."""
    return isinstance(one, Head) and one.encrypted in {None, "", "AES256"}


def _same_etag(one: str, other: str) -> bool:
    return one.lower() == other.lower()


def _different(detail: str) -> Verdict:
    return Verdict(False, None, detail)


def _unknown(detail: str) -> Verdict:
    return Verdict(None, None, detail)
