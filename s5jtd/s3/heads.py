"""What an endpoint says of one object, and its bytes once more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Final

from s5jtd.errors import EndpointDown, ObjectChanged, ObjectRefused
from s5jtd.model import CONTENT_HEADERS, Head, printable
from s5jtd.s3.client import S3Client
from s5jtd.s3.refusals import NOT_S3, NOT_S3_HINT

_METADATA: Final = "x-amz-meta-"
_CHECKSUM: Final = "x-amz-checksum-"
_CONTENT_RANGE: Final = re.compile(r"bytes [0-9]{1,18}-[0-9]{1,18}/([0-9]{1,18})")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


def head(client: S3Client, key: bytes, *, part_number: int | None = None, checksums: bool = False) -> Head:
    """What the endpoint says of `key`; with `part_number` also the size of that part.

    A server that knows no part numbers answers as if none were asked for: then `part_size` is None, and
    one that a check found to be such is not asked for them.  With both `part_number` and `checksums` two
    requests are made, as the checksums of a part are not the object's.

    Raises:
        ObjectGone: there is no such object, and the bucket is well.
        ObjectRefused: we may not see it.
        ObjectChanged: it was replaced between two requests.
        EndpointDown, EndpointRefused: the endpoint cannot say.
    """
    if part_number is None or client.learned.part_numbers is False:
        mode = {"x-amz-checksum-mode": "ENABLED"} if checksums else {}
        return _whole(client.request("HEAD", key, headers=mode).headers, client, key)
    whole = head(client, key, checksums=True) if checksums else None
    try:
        part = client.request("HEAD", key, {"partNumber": str(part_number)}).headers
    except ObjectRefused:  # so answer some servers where a part is asked for, of empty objects or at all
        return whole or head(client, key)
    total = _CONTENT_RANGE.fullmatch(part.get("content-range", ""))
    if whole is None and total is None and "x-amz-mp-parts-count" in part:
        whole = head(client, key)
    if whole is None:
        size = int(total[1]) if total else _length(part, client, key)
        whole = replace(_whole(part, client, key), size=size, checksums={}, checksum_type=None)
    return _with_part(whole, part, client, key, is_part=total is not None)


def read_back(client: S3Client, key: bytes, *, if_match: str | None) -> Iterator[bytes]:
    """The bytes of `key` as stored, if its ETag is `if_match`, also where a server ignores If-Match.

    Of a server that sends no ETag with an object the bytes are taken as they are.

    Raises:
        ObjectChanged: its ETag is another.
        ObjectGone, ObjectRefused, EndpointDown, EndpointRefused: what was read so far is not the object.
    """
    is_strong = if_match is not None and not if_match.startswith("W/")
    with client.stream("GET", key, headers={"If-Match": f'"{if_match}"'} if is_strong else {}) as stream:
        etag = _etag(stream.headers)
        if if_match is not None and etag and not same_etag(etag, if_match):
            raise ObjectChanged(f"{printable(key)} is no longer the one with ETag {if_match}")
        yield from stream


def _with_part(whole: Head, part: Mapping[str, str], client: S3Client, key: bytes, *, is_part: bool) -> Head:
    length = _length(part, client, key)
    count = part.get("x-amz-mp-parts-count", "")
    # Some servers give a part its own ETag; then the number of parts tells that it belongs to this object.
    if _etag(part) != whole.etag and not (count and whole.etag.endswith(f"-{count}")):
        raise ObjectChanged(f"{printable(key)} was replaced while it was asked for")
    return replace(
        whole,
        part_size=length if is_part or length != whole.size else None,
        parts_count=int(count) if _NUMBER.fullmatch(count) else None,
    )


def _whole(headers: Mapping[str, str], client: S3Client, key: bytes) -> Head:
    if "etag" not in headers and "last-modified" not in headers:
        raise EndpointDown(f"bucket {client.bucket}, {printable(key)}: {NOT_S3}", hint=NOT_S3_HINT)
    named = {name: _text(value) for name, value in headers.items()}
    return Head(
        size=_length(headers, client, key),
        etag=_etag(headers),
        modified_ms=_milliseconds(headers.get("last-modified", "")),
        version_id=named.get("x-amz-version-id"),
        checksums={
            name.removeprefix(_CHECKSUM): value
            for name, value in named.items()
            if name.startswith(_CHECKSUM) and name != "x-amz-checksum-type"
        },
        checksum_type=named.get("x-amz-checksum-type"),
        encrypted=named.get("x-amz-server-side-encryption"),
        storage_class=named.get("x-amz-storage-class"),
        content={name: named[name] for name in CONTENT_HEADERS if name in named},
        tags_count=int(count) if _NUMBER.fullmatch(count := named.get("x-amz-tagging-count", "")) else None,
        metadata={n.removeprefix(_METADATA): value for n, value in named.items() if n.startswith(_METADATA)},
    )


def _length(headers: Mapping[str, str], client: S3Client, key: bytes) -> int:
    length = headers.get("content-length", "")
    if not _NUMBER.fullmatch(length):
        raise EndpointDown(
            f"bucket {client.bucket}, {printable(key)}: the endpoint does not tell its size", hint=NOT_S3_HINT
        )
    return int(length)


def same_etag(one: str, other: str) -> bool:
    """Whether two ETags name the same content; what a proxy marks as weak (`W/`) it still names."""
    return _bare(one) == _bare(other)


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"').lower()


def _etag(headers: Mapping[str, str]) -> str:
    return headers.get("etag", "").strip('"')


def _text(value: str) -> str:
    """A header's value as UTF-8, where it is; HTTP hands it over as Latin-1."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def _milliseconds(http_date: str) -> int:
    try:
        return int(parsedate_to_datetime(http_date).timestamp() * 1000)
    except (ValueError, TypeError, OverflowError, OSError):
        return 0
