"""What proves, what disproves and what decides nothing: one table for each kind of object and server."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s5jtd.integrity.evidence import (
    MIB,
    EtagKind,
    etag_kind,
    etag_parts,
    judge,
    matching_part_size,
    missing_for,
    plausible_part_sizes,
    same_object,
    sane_upload_part_size,
    wanted_for,
    worth_a_head,
)
from s5jtd.integrity.hashing import Wanted, hash_stream
from s5jtd.model import Digests, Evidence, Head, Listed, Verdict

CONTENT = b"the bytes that arrived" * 100
OTHER = CONTENT[:-1] + b"!"
SIZE = len(CONTENT)
PART = 1000  # bytes; the content has three such parts
PARTS = frozenset({PART})

PROVEN, DISPROVEN, UNKNOWN = True, False, None
BY_CHECKSUM, BY_ETAG = Evidence.CHECKSUM, Evidence.ETAG


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def multipart(content: bytes, part_size: int = PART) -> str:
    parts = [content[at : at + part_size] for at in range(0, len(content), part_size)] or [b""]
    return f"{md5(b''.join(hashlib.md5(part).digest() for part in parts))}-{len(parts)}"


def crc64(content: bytes) -> dict[str, str]:
    return {"crc64nvme": hash_stream([content], Wanted()).crc64nvme}


def sha256(content: bytes) -> dict[str, str]:
    return {"sha256": base64.b64encode(hashlib.sha256(content).digest()).decode()}


def composite_sha256(content: bytes, suffix: str = "") -> dict[str, str]:
    parts = b"".join(hashlib.sha256(content[at : at + PART]).digest() for at in range(0, len(content), PART))
    return {"sha256": base64.b64encode(hashlib.sha256(parts).digest()).decode() + suffix}


def head(etag: str, checksums: dict[str, str] | None = None, **more: Any) -> Head:
    return Head(size=more.pop("size", SIZE), etag=etag, checksums=checksums or {}, **more)


def listed(etag: str, size: int = SIZE) -> Listed:
    return Listed(b"key", size, etag, 0)


HERE = hash_stream([CONTENT], Wanted(md5=True, sha256=True, part_sizes=PARTS))
FULL: dict[str, Any] = {"checksum_type": "FULL_OBJECT"}
COMPOSITE: dict[str, Any] = {"checksum_type": "COMPOSITE"}
KMS: dict[str, Any] = {"encrypted": "aws:kms"}
SSE_S3: dict[str, Any] = {"encrypted": "AES256"}
OPAQUE = "0123456789abcdef0123456789abcdef"  # of the form of an MD5, and the MD5 of nothing


class Row(NamedTuple):
    says: str
    etag: str
    head: Head | None
    equal: bool | None
    evidence: Evidence | None = None
    part_size: int | None = None
    here: Digests = HERE


def table(*rows: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[row.says for row in rows])


def check(row: Row) -> None:
    verdict = judge(row.here, SIZE, row.etag, part_size=row.part_size, head=row.head)

    assert (verdict.equal, verdict.evidence) == (row.equal, row.evidence), verdict.detail
    assert verdict.detail


@table(
    Row("listing_md5_agrees", md5(CONTENT), None, PROVEN, BY_ETAG),
    Row("listing_md5_agrees_in_capitals", md5(CONTENT).upper(), None, PROVEN, BY_ETAG),
    Row("listing_md5_differs", md5(OTHER), None, DISPROVEN),
    Row("md5_differs_and_head_knows_no_encryption", md5(OTHER), head(md5(OTHER)), DISPROVEN),
    Row("md5_differs_under_sse_s3", md5(OTHER), head(md5(OTHER), **SSE_S3), DISPROVEN),
    Row("crc64nvme_agrees", md5(CONTENT), head(md5(CONTENT), crc64(CONTENT), **FULL), PROVEN, BY_CHECKSUM),
    Row("crc64nvme_differs", md5(CONTENT), head(md5(CONTENT), crc64(OTHER), **FULL), DISPROVEN),
    Row("sha256_agrees", OPAQUE, head(OPAQUE, sha256(CONTENT), **FULL), PROVEN, BY_CHECKSUM),
    Row("sha256_of_untold_type_agrees", OPAQUE, head(OPAQUE, sha256(CONTENT)), PROVEN, BY_CHECKSUM),
    Row("sha256_differs", md5(CONTENT), head(md5(CONTENT), sha256(OTHER)), DISPROVEN),
    Row("one_of_two_checksums_differs", "", head("", crc64(CONTENT) | sha256(OTHER), **FULL), DISPROVEN),
    Row(
        "sha256_there_but_not_here_leaves_the_etag",
        md5(CONTENT),
        head(md5(CONTENT), sha256(OTHER), **FULL),
        PROVEN,
        BY_ETAG,
        here=replace(HERE, sha256=None),
    ),
)
def test_plain_or_sse_s3_in_a_single_put(row):
    check(row)


MULTI = multipart(CONTENT)


@table(
    Row("crc64nvme_agrees", MULTI, head(MULTI, crc64(CONTENT), **FULL), PROVEN, BY_CHECKSUM),
    Row("crc64nvme_of_untold_type_differs", MULTI, head(MULTI, crc64(OTHER)), DISPROVEN),
    Row("crc64nvme_outranks_the_etag", MULTI, head(MULTI, crc64(OTHER), **FULL), DISPROVEN),
    Row(
        "32_bits_are_too_few_to_prove",
        multipart(OTHER),
        head(multipart(OTHER), {"crc32c": "yZRlqg=="}, **FULL),
        UNKNOWN,
    ),
    Row("sha256_said_to_be_full_differs", MULTI, head(MULTI, sha256(OTHER), **FULL), DISPROVEN),
    Row("a_part_was_asked_for", MULTI, head(MULTI, crc64(CONTENT[:PART]), part_size=PART), PROVEN, BY_ETAG),
)
def test_multipart_with_a_full_object_checksum(row):
    check(row)


@table(
    Row(
        "composite_checksum_leaves_the_etag",
        MULTI,
        head(MULTI, composite_sha256(CONTENT), **COMPOSITE),
        PROVEN,
        BY_ETAG,
    ),
    Row("its_suffix_gives_it_away", MULTI, head(MULTI, composite_sha256(CONTENT, "-3")), PROVEN, BY_ETAG),
    Row(
        "of_untold_type_it_disproves_nothing", MULTI, head(MULTI, composite_sha256(CONTENT)), PROVEN, BY_ETAG
    ),
    Row("and_proves_nothing", multipart(OTHER), head(multipart(OTHER), composite_sha256(OTHER)), UNKNOWN),
    Row(
        "beside_it_a_crc64nvme_still_proves",
        multipart(OTHER),
        head(multipart(OTHER), composite_sha256(OTHER) | crc64(CONTENT)),
        PROVEN,
        BY_CHECKSUM,
    ),
)
def test_multipart_with_a_composite_checksum(row):
    check(row)


UNEVEN = f"{md5(b'uneven parts')}-4"
ONE_PART = multipart(CONTENT, SIZE)
BARE = hash_stream([CONTENT], Wanted())


@table(
    Row("part_size_known_and_agrees", MULTI, None, PROVEN, BY_ETAG, PART),
    Row("part_size_known_from_a_head_and_agrees", MULTI, head(MULTI, part_size=PART), PROVEN, BY_ETAG),
    Row("part_size_guessed_and_agrees", MULTI, None, PROVEN, BY_ETAG),
    Row("part_size_known_and_differs", multipart(OTHER), None, DISPROVEN, None, PART),
    Row(
        "part_size_known_from_a_head_and_differs",
        multipart(OTHER),
        head(multipart(OTHER), part_size=PART),
        DISPROVEN,
    ),
    Row("part_size_guessed_and_differs", multipart(OTHER), None, UNKNOWN),
    Row("part_size_known_but_not_computed", MULTI, None, UNKNOWN, None, PART, here=BARE),
    Row("first_part_of_uneven_ones", UNEVEN, None, UNKNOWN, None, PART),
    Row("one_part_agrees", ONE_PART, None, PROVEN, BY_ETAG),
    Row("one_part_leaves_nothing_to_guess", multipart(OTHER, SIZE), None, DISPROVEN),
    Row("one_part_but_no_md5_here", ONE_PART, None, UNKNOWN, here=BARE),
)
def test_multipart_with_an_etag_only(row):
    check(row)


def test_one_part_larger_than_the_object_is_the_whole():
    here = hash_stream([CONTENT], Wanted(part_sizes=frozenset({5 * MIB})))

    assert judge(here, SIZE, ONE_PART).equal
    assert judge(here, SIZE, multipart(OTHER, SIZE), part_size=5 * MIB).equal is False


@table(
    Row("crc64nvme_agrees", OPAQUE, head(OPAQUE, crc64(CONTENT), **KMS), PROVEN, BY_CHECKSUM),
    Row("crc64nvme_differs", OPAQUE, head(OPAQUE, crc64(OTHER), **KMS), DISPROVEN),
    Row("multipart_crc64nvme_agrees", UNEVEN, head(UNEVEN, crc64(CONTENT), **KMS), PROVEN, BY_CHECKSUM),
    Row(
        "dsse_crc64nvme_agrees",
        OPAQUE,
        head(OPAQUE, crc64(CONTENT), encrypted="aws:kms:dsse"),
        PROVEN,
        BY_CHECKSUM,
    ),
)
def test_sse_kms_with_a_checksum(row):
    check(row)


@table(
    Row("etag_is_opaque", OPAQUE, head(OPAQUE, **KMS), UNKNOWN),
    Row("dsse_etag_is_opaque", OPAQUE, head(OPAQUE, encrypted="aws:kms:dsse"), UNKNOWN),
    Row("multipart_etag_is_opaque", f"{OPAQUE}-3", head(f"{OPAQUE}-3", **KMS), UNKNOWN, None, PART),
    Row("an_md5_that_agrees_is_no_accident", md5(CONTENT), head(md5(CONTENT), **KMS), PROVEN, BY_ETAG),
    Row("only_the_size_differs", OPAQUE, head(OPAQUE, size=SIZE + 1, **KMS), DISPROVEN),
)
def test_sse_kms_without_a_checksum(row):
    check(row)


@table(
    Row("whatever_its_head_calls_it", OPAQUE, head(OPAQUE, encrypted="sse-c"), UNKNOWN),
    Row(
        "a_checksum_still_proves",
        OPAQUE,
        head(OPAQUE, crc64(CONTENT), encrypted="sse-c"),
        PROVEN,
        BY_CHECKSUM,
    ),
)
def test_sse_c(row):
    check(row)


EMPTY = hash_stream([], Wanted(md5=True))


@pytest.mark.parametrize(
    ("etag", "size", "equal"),
    [
        ("d41d8cd98f00b204e9800998ecf8427e", 0, PROVEN),
        (multipart(b""), 0, PROVEN),
        (md5(CONTENT), SIZE, DISPROVEN),  # a file that lost its bytes in a power cut
        ("", 0, UNKNOWN),
    ],
    ids=["md5", "one_empty_part", "zero_length_after_a_crash", "no_etag"],
)
def test_zero_bytes(etag, size, equal):
    assert judge(EMPTY, size, etag).equal is equal


@table(
    Row("no_etag", "", None, UNKNOWN),
    Row("no_etag_and_a_bare_head", "", head(""), UNKNOWN),
    Row("the_head_brings_the_etag", "", head(md5(CONTENT)), PROVEN, BY_ETAG),
    Row("weak_etag", f'W/"{md5(CONTENT)}"', None, UNKNOWN),
    Row("some_other_token", "5f3c-17ab", None, UNKNOWN),
    Row("checksum_that_is_none", "", head("", {"crc64nvme": "not base64!"}), UNKNOWN),
    Row("checksum_of_another_length", "", head("", {"crc64nvme": "AAAA"}), UNKNOWN),
    Row("checksum_among_junk", "", head("", {"crc64nvme": f"!{HERE.crc64nvme}"}), UNKNOWN),
    Row("checksum_with_other_letters", "", head("", {"crc64nvme": "é" * 12}), UNKNOWN),
    Row("algorithm_nobody_knows", "", head("", {"crc128": "AAAA"}, **FULL), UNKNOWN),
)
def test_no_server_evidence_at_all(row):
    check(row)


@table(
    Row(
        "old_listing_new_head_with_our_bytes",
        md5(OTHER),
        head(md5(CONTENT), crc64(CONTENT)),
        PROVEN,
        BY_CHECKSUM,
    ),
    Row("old_listing_new_head_with_other_bytes", md5(CONTENT), head(md5(OTHER), crc64(OTHER)), UNKNOWN),
    Row("old_listing_new_head_of_another_size", md5(CONTENT), head(md5(OTHER), size=SIZE + 1), UNKNOWN),
    Row("old_listing_agrees_new_head_without_checksum", md5(CONTENT), head(md5(OTHER)), UNKNOWN),
)
def test_a_head_of_another_version_disproves_nothing(row):
    check(row)


def test_another_size_disproves_whatever_else_agrees():
    verdict = judge(HERE, SIZE + 1, md5(CONTENT))

    assert verdict == Verdict(False, None, f"{SIZE} bytes here, {SIZE + 1} there")


@pytest.mark.parametrize(
    ("there", "minimum", "worth"),
    [
        (md5(CONTENT), Evidence.ETAG, False),
        (md5(CONTENT), Evidence.SIZE, False),
        (md5(CONTENT), Evidence.CHECKSUM, True),
        (md5(OTHER), Evidence.ETAG, True),
        ("", Evidence.ETAG, True),
    ],
)
def test_a_head_is_worth_its_cost_where_a_listing_did_not_prove_enough(there, minimum, worth):
    assert worth_a_head(judge(HERE, SIZE, there), minimum) is worth


@pytest.mark.parametrize(
    ("etag", "here", "part_size", "missing"),
    [
        (md5(CONTENT), HERE, None, None),
        (md5(CONTENT), replace(HERE, md5=None), None, Wanted(md5=True)),  # an MD5 for an upload in parts
        (MULTI, HERE, None, None),
        (MULTI, BARE, PART, Wanted(part_sizes=PARTS)),
        (MULTI, BARE, None, None),  # no usual part size makes three parts of so few bytes
        (multipart(OTHER), HERE, PART, None),  # computed, and it differs
        (ONE_PART, BARE, None, Wanted(part_sizes=frozenset({SIZE}))),
        (multipart(OTHER, SIZE), HERE, None, None),
        ("opaque", BARE, None, None),
    ],
)
def test_what_is_missing_is_named_only_where_it_can_decide(etag, here, part_size, missing):
    assert missing_for(etag, here, part_size=part_size) == missing
    if missing is not None:
        assert judge(here, SIZE, etag, part_size=part_size).equal is None
        again = hash_stream([CONTENT], missing)
        assert judge(again, SIZE, etag, part_size=part_size).equal is not None


@pytest.mark.parametrize(
    ("etag", "kind", "parts"),
    [
        (md5(b""), EtagKind.MD5, None),
        (md5(b"").upper(), EtagKind.MD5, None),
        (f"{md5(b'')}-1", EtagKind.MULTIPART, 1),
        (f"{md5(b'')}-10000", EtagKind.MULTIPART, 10_000),
        (f"{md5(b'')}-0", EtagKind.OPAQUE, None),
        (f"{md5(b'')}-01", EtagKind.OPAQUE, None),
        (f"{md5(b'')}-123456", EtagKind.OPAQUE, None),
        (f"{md5(b'')}-٣", EtagKind.OPAQUE, None),
        (f"{md5(b'')}\n", EtagKind.OPAQUE, None),
        (f'"{md5(b"")}"', EtagKind.OPAQUE, None),
        (md5(b"")[:-1], EtagKind.OPAQUE, None),
        ("", EtagKind.OPAQUE, None),
    ],
)
def test_an_etag_is_known_by_its_form(etag, kind, parts):
    assert (etag_kind(etag), etag_parts(etag)) == (kind, parts)


@pytest.mark.parametrize(
    ("etag", "size", "source_part", "upload_part", "wanted"),
    [
        (md5(b""), 100, None, 5 * MIB, Wanted(md5=True)),
        (md5(b""), 5 * MIB, None, 5 * MIB, Wanted(md5=True)),
        (md5(b""), 5 * MIB + 1, None, 5 * MIB, Wanted(md5=True, part_sizes=frozenset({5 * MIB}))),
        ("", 100, None, 5 * MIB, Wanted(md5=True)),
        ("", 100 * MIB, None, 64 * MIB, Wanted(part_sizes=frozenset({64 * MIB}))),
        (f"{OPAQUE}-13", 100 * MIB, 8 * MIB, 8 * MIB, Wanted(part_sizes=frozenset({8 * MIB}))),
        (f"{OPAQUE}-13", 100 * MIB, 8 * MIB, 64 * MIB, Wanted(part_sizes=frozenset({8 * MIB, 64 * MIB}))),
        (f"{OPAQUE}-2", 100 * MIB, None, 50 * MIB, Wanted(part_sizes=frozenset({50 * MIB, 64 * MIB}))),
        # A first part of 30 MiB cannot make two even ones: what is usual is tried instead.
        (f"{OPAQUE}-2", 100 * MIB, 30 * MIB, 50 * MIB, Wanted(part_sizes=frozenset({50 * MIB, 64 * MIB}))),
    ],
)
def test_the_one_pass_computes_what_both_ends_will_be_asked_about(
    etag, size, source_part, upload_part, wanted
):
    assert wanted_for(etag, size, source_part, upload_part, False) == wanted
    assert wanted_for(etag, size, source_part, upload_part, True) == replace(wanted, sha256=True)
    assert wanted_for(etag, size, source_part, upload_part, False, whole_md5=True) == replace(
        wanted, md5=True
    )


@given(size=st.integers(0, 1 << 44), part_mib=st.integers(5, 512))
def test_what_was_wanted_is_enough_to_predict_and_judge_both_etags(size, part_mib):
    part_size = part_mib * MIB
    parts = max(1, -(-size // part_size))
    source_etag = f"{OPAQUE}-{parts}" if size > part_size and parts <= 10_000 else OPAQUE

    upload = sane_upload_part_size(size, source_etag, part_size, 64 * MIB)
    wanted = wanted_for(source_etag, size, part_size, upload, False)

    assert wanted.md5 or upload in wanted.part_sizes
    assert etag_parts(source_etag) is None or part_size in wanted.part_sizes


@pytest.mark.parametrize(
    ("size", "etag", "source_part", "upload"),
    [
        (100 * MIB, f"{OPAQUE}-13", 8 * MIB, 8 * MIB),
        (100 * MIB, f"{OPAQUE}-13", None, 8 * MIB),
        (100 * MIB, f"{OPAQUE}-2", None, 64 * MIB),
        (100 * MIB, f"{OPAQUE}-1", 100 * MIB, 64 * MIB),  # s5cmd never makes one part
        (100 * MIB, f"{OPAQUE}-34", 3 * MIB, 64 * MIB),  # too small for S3
        (100 * MIB, f"{OPAQUE}-20", 5 * MIB + 1, 64 * MIB),  # not in whole MiB
        (2000 * MIB, f"{OPAQUE}-2", 1000 * MIB, 64 * MIB),  # too much to send again
        (100 * MIB, f"{OPAQUE}-6", 8 * MIB, 64 * MIB),  # uneven parts
        (50_000 * MIB, f"{OPAQUE}-10000", 5 * MIB, 64 * MIB),  # where s5cmd changes the part size
        (50_000 * MIB - 1, f"{OPAQUE}-10000", 5 * MIB, 5 * MIB),
        (100 * MIB, OPAQUE, None, 100 * MIB),
        (256 * MIB, OPAQUE, None, 256 * MIB),
        (256 * MIB + 1, OPAQUE, None, 64 * MIB),
        (100 * MIB - 5, OPAQUE, None, 100 * MIB),
        (10, OPAQUE, None, 64 * MIB),
        (100 * MIB, "", None, 64 * MIB),
        (1000 * 1000 * MIB, "", None, 101 * MIB),
    ],
)
def test_an_upload_copies_the_parts_of_the_source_where_that_is_sane(size, etag, source_part, upload):
    assert sane_upload_part_size(size, etag, source_part, 64 * MIB) == upload


@given(
    size=st.integers(0, 1 << 46),
    etag=st.one_of(
        st.just(""), st.just(OPAQUE), st.integers(1, 99_999).map(lambda parts: f"{OPAQUE}-{parts}")
    ),
    source_part=st.one_of(st.none(), st.integers(1, 1 << 46), st.integers(1, 600).map(lambda mib: mib * MIB)),
    default=st.integers(1, 1 << 30),
)
def test_s5cmd_takes_every_part_size_as_it_is_told(size, etag, source_part, default):
    part_size = sane_upload_part_size(size, etag, source_part, default)

    assert part_size % MIB == 0
    assert part_size >= 5 * MIB
    assert size // part_size < 10_000


@given(size=st.integers(0, 1 << 44), parts=st.integers(1, 10_000))
def test_a_plausible_part_size_makes_that_many_parts(size, parts):
    for part_size in plausible_part_sizes(size, parts):
        assert max(1, -(-size // part_size)) == parts


def test_the_part_size_that_was_proven_can_be_told():
    here = hash_stream([CONTENT], Wanted(md5=True, part_sizes=frozenset({500, PART})))

    assert matching_part_size(MULTI, here) == PART
    assert matching_part_size(ONE_PART, here) == SIZE
    assert matching_part_size(multipart(OTHER), here) is None
    assert matching_part_size(md5(CONTENT), here) is None


FULL_SHA = head(OPAQUE, sha256(CONTENT), **FULL)


@pytest.mark.parametrize(
    ("source", "destination", "equal", "evidence"),
    [
        (listed(md5(CONTENT)), listed(md5(CONTENT)), PROVEN, BY_ETAG),
        (listed(MULTI), listed(MULTI), PROVEN, BY_ETAG),
        (listed(md5(CONTENT)), listed(md5(CONTENT), SIZE + 1), DISPROVEN, None),
        (listed(md5(CONTENT)), listed(md5(OTHER)), UNKNOWN, None),  # the destination may use KMS
        (head(md5(CONTENT)), listed(md5(OTHER)), UNKNOWN, None),
        (head(md5(CONTENT)), head(md5(OTHER)), DISPROVEN, None),
        (head(md5(CONTENT)), head(OPAQUE, **KMS), UNKNOWN, None),
        (head(OPAQUE, **KMS), head(md5(CONTENT)), UNKNOWN, None),
        (head(md5(CONTENT)), head(md5(OTHER), **SSE_S3), DISPROVEN, None),
        (listed(md5(CONTENT)), listed(MULTI), UNKNOWN, None),
        (listed(MULTI), listed(multipart(CONTENT, 2 * PART)), UNKNOWN, None),
        (listed(""), listed(""), UNKNOWN, None),
        (listed("token"), listed("token"), UNKNOWN, None),
        (head(MULTI, crc64(CONTENT)), head(OPAQUE, crc64(CONTENT), **KMS), PROVEN, BY_CHECKSUM),
        (head(MULTI, crc64(CONTENT)), head(MULTI, crc64(OTHER)), DISPROVEN, None),
        (head(md5(CONTENT), crc64(CONTENT)), FULL_SHA, DISPROVEN, None),
        (head(MULTI, crc64(CONTENT)), FULL_SHA, UNKNOWN, None),
        (FULL_SHA, head(MULTI, sha256(CONTENT), **FULL), PROVEN, BY_CHECKSUM),
        (FULL_SHA, head(MULTI, composite_sha256(CONTENT), **COMPOSITE), UNKNOWN, None),
        (FULL_SHA, head(MULTI, composite_sha256(CONTENT)), UNKNOWN, None),
    ],
)
def test_two_objects_elsewhere_are_compared_by_what_both_ends_say(source, destination, equal, evidence):
    verdict = same_object(source, destination)

    assert (verdict.equal, verdict.evidence) == (equal, evidence), verdict.detail
    assert verdict.detail
    assert same_object(destination, source).equal is equal


@given(
    etag=st.text(max_size=40), name=st.sampled_from(["sha256", "crc64nvme", "x"]), value=st.text(max_size=50)
)
def test_nothing_a_server_says_by_accident_proves_or_breaks_anything(etag, name, value):
    there = head(etag, {name: value})

    assert judge(HERE, SIZE, etag, head=there).equal is not True
    assert judge(HERE, SIZE, etag).equal is not True
    same_object(there, there)
