"""Multipart uploads that were begun and not ended: listed, and aborted one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from s5jtd.errors import EndpointDown, ObjectGone
from s5jtd.s3.client import S3Client
from s5jtd.s3.markup import Markup, NotXml
from s5jtd.s3.moments import milliseconds
from s5jtd.s3.refusals import NOT_S3, NOT_S3_HINT

#: Answers to one walk; each has up to 1,000 uploads.  What is left then is seen by the next walk.
PAGES_MAX = 1000


class Upload(NamedTuple):
    """One upload that was begun and not ended."""

    key: bytes
    upload_id: str
    initiated_ms: int  #: Unix time; 0 where the server does not say


def list_uploads(client: S3Client, prefix: bytes) -> Iterator[Upload]:
    """The unended uploads of keys below `prefix`.

    Raises:
        EndpointDown, EndpointRefused: the endpoint did not tell all of them.
    """
    client = client.unobserved()  # rclone answers 404 to it
    query: dict[str, str | bytes] = {"uploads": "", "prefix": prefix, "encoding-type": "url"}
    for _ in range(PAGES_MAX):
        found, said = _page(client, query)
        yield from found
        marker = _decoded(said, "NextKeyMarker"), said.get("NextUploadIdMarker", "")
        if said.get("IsTruncated") != "true" or marker == (
            query.get("key-marker"),
            query.get("upload-id-marker"),
        ):
            return
        query |= {"key-marker": marker[0], "upload-id-marker": marker[1]}


def abort(client: S3Client, upload: Upload) -> None:
    """End an upload and free its parts; one that is gone already is success.

    Raises:
        EndpointDown, EndpointRefused, ObjectRefused: it may still be there.
    """
    try:
        client.request("DELETE", upload.key, {"uploadId": upload.upload_id})
    except ObjectGone:
        return


def _page(client: S3Client, query: dict[str, str | bytes]) -> tuple[list[Upload], dict[str, str]]:
    rows: list[tuple[str, str, str]] = []

    def take() -> None:
        texts = markup.texts
        rows.append((texts.pop("Key", ""), texts.pop("UploadId", ""), texts.pop("Initiated", "")))

    markup = Markup("Upload", take)
    answer = client.request("GET", None, query)
    try:
        markup.feed(answer.body)
        markup.close()
    except NotXml as error:
        raise EndpointDown(f"bucket {client.bucket}: {NOT_S3}", hint=NOT_S3_HINT) from error
    if markup.root != "ListMultipartUploadsResult":
        raise EndpointDown(f"bucket {client.bucket}: {NOT_S3}", hint=NOT_S3_HINT)
    said = dict(markup.texts)
    uploads = [
        Upload(_decoded({**said, "Key": key}, "Key"), upload_id, milliseconds(initiated))
        for key, upload_id, initiated in rows
        if key and upload_id
    ]
    return uploads, said


def _decoded(said: dict[str, str], name: str) -> bytes:
    text = said.get(name, "")
    if said.get("EncodingType") != "url":
        return text.encode()
    return unquote_to_bytes(text.replace("+", " "))
