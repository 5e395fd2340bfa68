"""The language s5cmd 2.3.0 is spoken to in: command lines, arguments, environment.  Without I/O.

Keys and header values are hostile.  One quoting function writes every word that is not ours, each
transfer is exactly one line, and the only verb is `cp --raw`.  `answers` reads what comes back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from s5jtd.engine.contract import PULL_RANGE_BYTES, Remote, Transfer
from s5jtd.model import NO_BELONGINGS, Belongings

MIB: Final = 1 << 20
#: S3's limits: the smallest part, and the largest PUT, which is also the largest part.
PART_BYTES_MIN: Final = 5 * MIB
PUT_BYTES_MAX: Final = 5 * 1024 * MIB
#: From this quotient of size and part size on, s5cmd takes a part size of its own that no flag can name.
PARTS_MAX: Final = 10_000

#: Enough for a dropped connection; the ledger counts and spaces the attempts that matter.
RETRY_COUNT: Final = 2

#: What S3 itself says of an object that was put without a type.  One is always sent, because s5cmd
#: would guess: by our `.obj` names it takes everything for a drawing.
CONTENT_TYPE_DEFAULT: Final = "binary/octet-stream"

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
#: What everything on the way hands on unchanged; spaces at the ends are not.
_HEADER_VALUE: Final = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")
#: An HTTP header name, but for `=`, where s5cmd splits.
_METADATA_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_CONTENT_FLAGS: Final = ("content-encoding", "content-disposition", "cache-control")


def refusal(key: bytes, takes: Belongings = NO_BELONGINGS) -> str | None:
    """Why no line can carry an object of this key with what it takes along, or None if one can."""
    if not key:
        return "s5cmd cannot name an empty key"
    if b"\n" in key or b"\0" in key:
        return "s5cmd cannot name a key with a newline or a NUL byte"
    if key.endswith(b"/"):
        return "s5cmd cannot name a key that ends in a slash"
    return "s5cmd cannot set tags" if takes.tags else _header_refusal(takes.content, takes.metadata)


def bucket_refusal(bucket: str) -> str | None:
    """Why no line can name this bucket, or None if one can."""
    return None if _BUCKET.fullmatch(bucket) else f"s5cmd takes plain bucket names only, not {bucket!r}"


def quote(word: bytes) -> bytes:
    """One word as s5cmd's shell-quote parser reads it back, if it holds no newline."""
    return b"'" + word.replace(b"'", b"'\\''") + b"'"


def upload_part_size(size: int, wanted: int | None) -> int:
    """The part size in bytes that an upload of `size` bytes really gets; an object up to it is one PUT.

    s5cmd takes whole MiB, S3 at least five of them and at most ten thousand parts.  None wants one PUT,
    which S3 takes up to 5 GiB.
    """
    asked = min(size if wanted is None else wanted, PUT_BYTES_MAX)
    return _whole_mib(max(PART_BYTES_MIN, asked, size // PARTS_MAX + 1))


def expected_parts(size: int, part_size: int) -> int | None:
    """How many parts the upload's ETag will name; None where it is one PUT and its ETag a plain MD5."""
    return None if size <= part_size else -(-size // part_size)


def pull_line(bucket: str, transfer: Transfer, parts: int = 4, range_bytes: int = PULL_RANGE_BYTES) -> bytes:
    """The line that fetches one object to its opaque name in the working folder.

    Up to `range_bytes` it comes in one GET, which cannot mix two versions of it; a larger one comes in
    ranges of about that size, `parts` of them side by side.
    """
    in_one = _whole_mib(PULL_RANGE_BYTES if transfer.whole else range_bytes)
    single = transfer.size <= in_one
    part_size = _whole_mib(max(transfer.size, 1)) if single else in_one
    return _line(_sizes(part_size, 1 if single else parts), _url(bucket, transfer), _local(transfer))


def push_line(remote: Remote, transfer: Transfer, parts: int = 4) -> bytes:
    """The line that sends one file with its headers, at most so many parts at a time."""
    part_size = upload_part_size(transfer.size, transfer.part_size)
    parts = min(expected_parts(transfer.size, part_size) or 1, parts)
    return _line(
        _sizes(part_size, parts),
        *_remote_flags(remote),
        *_header_flags(transfer),
        _local(transfer),
        _url(remote.bucket, transfer),
    )


def argv(binary: Path, remote: Remote, workers: int, batch_file: str) -> list[str]:
    """The process that works through a batch file."""
    return [
        str(binary),
        "--json",
        "--numworkers", str(workers),
        "--retry-count", str(RETRY_COUNT),
        *(["--endpoint-url", remote.endpoint_url] if remote.endpoint_url else []),
        *([] if remote.verify_tls else ["--no-verify-ssl"]),
        *([] if remote.credentials_file else ["--no-sign-request"]),
        "run", batch_file,
    ]  # fmt: skip


def environment(remote: Remote) -> dict[str, str]:
    """All that the process gets to see: nothing of the daemon's own environment, no key and no secret."""
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        # Measured with 16 KiB objects: a sixth less CPU for each, for 25 to 60 MB more memory.
        "GOGC": "400",
    }
    if remote.credentials_file:
        env |= {"AWS_SHARED_CREDENTIALS_FILE": str(remote.credentials_file), "AWS_PROFILE": "s5jtd"}
    if remote.region:
        env["AWS_REGION"] = remote.region
    if remote.ca_bundle:
        env["AWS_CA_BUNDLE"] = str(remote.ca_bundle)
    if remote.proxy:
        env |= {"HTTP_PROXY": remote.proxy, "HTTPS_PROXY": remote.proxy}
    return env


def _header_refusal(content: Mapping[str, str], metadata: Mapping[str, str]) -> str | None:
    if content.get("content-language"):
        return "s5cmd cannot set a content language"
    for name, value in content.items():
        if not _HEADER_VALUE.fullmatch(value):
            return f"s5cmd cannot carry the value of {name} unchanged"
    if content.get("expires") and _rfc3339(content["expires"]) is None:
        return "s5cmd cannot set an expiry that is no date"
    if len({name.lower() for name in metadata}) != len(metadata):
        return "s5cmd cannot carry user metadata under one name twice"
    for name, value in metadata.items():
        if not _METADATA_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            return "s5cmd cannot carry the user metadata unchanged"
    return None


def _line(*words: bytes) -> bytes:
    line = b" ".join((b"cp --raw", *words))
    if b"\n" in line:
        raise ValueError("a transfer must be exactly one line")
    return line + b"\n"


def _sizes(part_size: int, concurrency: int) -> bytes:
    return b"--concurrency %d --part-size %d" % (concurrency, part_size // MIB)


def _flag(name: str, value: str) -> bytes:
    return b"--" + name.encode() + b" " + quote(value.encode())


def _url(bucket: str, transfer: Transfer) -> bytes:
    return quote(b"s3://" + bucket.encode() + b"/" + transfer.key)


def _local(transfer: Transfer) -> bytes:
    if not _NAME.fullmatch(transfer.name):
        raise ValueError(f"not an opaque name: {transfer.name!r}")
    return transfer.name.encode()


def _remote_flags(remote: Remote) -> list[bytes]:
    wanted = {
        "storage-class": remote.storage_class,
        "acl": remote.acl,
        "sse": remote.sse,
        "sse-kms-key-id": remote.sse_kms_key_id,
    }
    return [_flag(name, value) for name, value in wanted.items() if value]


def _header_flags(transfer: Transfer) -> list[bytes]:
    content = transfer.takes.content
    flags = [_flag("content-type", content.get("content-type") or CONTENT_TYPE_DEFAULT)]
    flags += [_flag(name, content[name]) for name in _CONTENT_FLAGS if content.get(name)]
    expires = _rfc3339(content.get("expires", ""))
    if expires:
        flags.append(_flag("expires", expires))
    return flags + [
        _flag("metadata", f"{name.lower()}={value}") for name, value in transfer.takes.metadata.items()
    ]


def _rfc3339(http_date: str) -> str | None:
    """An HTTP date as s5cmd wants it, which then writes an HTTP date again."""
    try:
        return parsedate_to_datetime(http_date).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def _whole_mib(size: int) -> int:
    return -(-size // MIB) * MIB
