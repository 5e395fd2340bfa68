"""What an object is put with besides its bytes, in the words of the API."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.header import Header
from typing import Any, Final
from urllib.parse import urlencode

from s5jtd.engine.contract import Remote, Transfer
from s5jtd.engine.language import CONTENT_TYPE_DEFAULT
from s5jtd.model import Belongings

_NAMES: Final = {
    "content-type": "ContentType",
    "content-encoding": "ContentEncoding",
    "content-disposition": "ContentDisposition",
    "content-language": "ContentLanguage",
    "cache-control": "CacheControl",
}
#: The library writes `Expires` from a date and refuses what is none; so it is put in by hand, as it was.
_AS_IT_IS: Final = "expires"
_extra = threading.local()


def refusal(takes: Belongings) -> str | None:
    """Why these cannot be sent, or None if they can."""
    for name, value in (*takes.content.items(), *takes.metadata.items()):
        if any(ord(character) < 0x20 or ord(character) == 0x7F for character in name + value):
            return f"no request can carry the value of {name!r}: it holds control characters"
    if any(not name.isascii() or not name for name in takes.metadata):
        return "no request can carry user metadata whose name is not plain ASCII"
    return None


def parameters(remote: Remote, transfer: Transfer) -> dict[str, Any]:
    """The arguments of the call that makes the object."""
    content = {"content-type": CONTENT_TYPE_DEFAULT, **transfer.takes.content}
    found: dict[str, Any] = {
        _NAMES[name]: value for name, value in content.items() if name in _NAMES and value
    }
    if transfer.takes.metadata:
        found["Metadata"] = {name: _ascii(value) for name, value in transfer.takes.metadata.items()}
    if transfer.takes.tags:
        found["Tagging"] = urlencode(transfer.takes.tags)
    return found | settings(remote)


def settings(remote: Remote) -> dict[str, Any]:
    """Those of them that are the destination's own."""
    wanted = {
        "StorageClass": remote.storage_class,
        "ACL": remote.acl,
        "ServerSideEncryption": remote.sse,
        "SSEKMSKeyId": remote.sse_kms_key_id,
    }
    return {name: value for name, value in wanted.items() if value}


def _ascii(value: str) -> str:
    """A value as S3 takes it in and gives it out: what is not ASCII in the words of RFC 2047."""
    return value if value.isascii() else Header(value, "utf-8", maxlinelen=1 << 20).encode()


@contextmanager
def as_they_are(transfer: Transfer) -> Iterator[None]:
    """While this is open, calls of this thread carry what the library would not."""
    value = transfer.takes.content.get(_AS_IT_IS)
    _extra.headers = {"Expires": value} if value else {}
    try:
        yield
    finally:
        _extra.headers = {}


def install(client: Any) -> None:
    """Let a client's calls carry what `as_they_are` says."""

    def add(params: dict[str, Any], **_more: object) -> None:
        params["headers"].update(getattr(_extra, "headers", {}))

    for operation in ("PutObject", "CreateMultipartUpload", "CopyObject"):
        client.meta.events.register(f"before-call.s3.{operation}", add)
