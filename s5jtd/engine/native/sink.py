"""Where bytes go that lie on no disk: puts from memory, part by part, and copies inside one server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from s5jtd.engine.contract import Original, Remote, Transfer, TransferFailed
from s5jtd.engine.native import completion, headers
from s5jtd.engine.native.client import failure_of, is_answer

P = ParamSpec("P")
R = TypeVar("R")


class Held(NamedTuple):
    """A part that the destination has."""

    size: int
    etag: str  #: without quotes


def _told(method: Callable[Concatenate[Sink, P], R]) -> Callable[Concatenate[Sink, P], R]:
    """Whatever the library raises leaves as one error of the contract."""

    @wraps(method)
    def call(sink: Sink, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(sink, *args, **kwargs)
        except Exception as error:
            failure, message = failure_of(error)
            raise TransferFailed(failure, message) from error

    return call


class Sink:
    """One bucket at one endpoint, written to from memory.  Threads may share it.

    `Transfer.name` is not used.  Every method may raise TransferFailed.
    """

    def __init__(self, make_client: Callable[[Remote], Any], remote: Remote) -> None:
        """Nothing happens before the first call."""
        self._make_client = make_client
        self._remote = remote

    @_told
    def put(self, transfer: Transfer, body: bytes) -> str:
        """Put a whole object; its ETag."""
        with headers.as_they_are(transfer):
            answer = self._client.put_object(
                **self._place(transfer),
                Body=body,
                ContentMD5=_md5(body),
                **headers.parameters(self._remote, transfer),
            )
        return _etag(answer)

    @_told
    def begin(self, transfer: Transfer) -> str:
        """Begin an upload in parts; its id."""
        with headers.as_they_are(transfer):
            answer = self._client.create_multipart_upload(
                **self._place(transfer), **headers.parameters(self._remote, transfer)
            )
        return str(answer["UploadId"])

    @_told
    def part(self, transfer: Transfer, upload_id: str, number: int, body: bytes, md5: bytes) -> str:
        """Put one part, whose MD5 is known; its ETag."""
        answer = self._client.upload_part(
            **self._place(transfer),
            UploadId=upload_id,
            PartNumber=number,
            Body=body,
            ContentMD5=base64.b64encode(md5).decode(),
        )
        return _etag(answer)

    @_told
    def held(self, transfer: Transfer, upload_id: str) -> dict[int, Held] | None:
        """The parts that the destination has, by number; None where it knows no such upload."""
        pages = self._client.get_paginator("list_parts")
        try:
            return {
                part["PartNumber"]: Held(part["Size"], part["ETag"].strip('"'))
                for page in pages.paginate(**self._place(transfer), UploadId=upload_id)
                for part in page.get("Parts", ())
            }
        except Exception as error:
            if is_answer(error, "NoSuchUpload", "404"):
                return None
            raise

    def complete(
        self,
        transfer: Transfer,
        upload_id: str,
        etags: Mapping[int, str],
        look: Callable[[], None],
        *,
        again: bool,
    ) -> bool:
        """Make an object of the parts, and wait until it is there; False where no such upload is known.

        `again`: an earlier attempt may have asked for it.  `look` is called while it is waited for.
        """
        asked = self._ask(transfer, upload_id, etags, again)
        return completion.awaited(asked, lambda: self._etag_there(transfer), look)

    @_told
    def _ask(
        self, transfer: Transfer, upload_id: str, etags: Mapping[int, str], again: bool
    ) -> completion.Asked:
        return completion.ask(self._client, self._place(transfer), upload_id, etags, again=again)

    @_told
    def _etag_there(self, transfer: Transfer) -> str | None:
        return completion.etag_there(self._client, self._place(transfer))

    @_told
    def copy(self, transfer: Transfer, original: Original, *, as_it_is: bool) -> None:
        """Let the server copy an object of its own, if it still is that version.

        It takes along what `transfer` says and nothing of the original's; `as_it_is`: all of the original's.
        """
        more = headers.settings(self._remote)
        if not as_it_is:
            more |= headers.parameters(self._remote, transfer)
            more |= {"MetadataDirective": "REPLACE", "TaggingDirective": "REPLACE"}
        with headers.as_they_are(transfer):
            self._client.copy_object(**self._place(transfer), **_from(original), **more)

    @_told
    def copy_part(
        self, transfer: Transfer, upload_id: str, number: int, original: Original, first: int, last: int
    ) -> str:
        """Let the server make a part of an object of its own, from byte `first` to `last`; its ETag."""
        answer = self._client.upload_part_copy(
            **self._place(transfer),
            **_from(original),
            UploadId=upload_id,
            PartNumber=number,
            CopySourceRange=f"bytes={first}-{last}",
        )
        return _etag(answer["CopyPartResult"])

    @property
    def _client(self) -> Any:
        return self._make_client(self._remote)

    def _place(self, transfer: Transfer) -> dict[str, str]:
        return {"Bucket": self._remote.bucket, "Key": transfer.key.decode()}


def _from(original: Original) -> dict[str, Any]:
    return {
        "CopySource": {"Bucket": original.bucket, "Key": original.key.decode()},
        "CopySourceIfMatch": f'"{original.etag}"',
    }


def _md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')
