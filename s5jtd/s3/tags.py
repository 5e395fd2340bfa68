"""The tags of an object, and whether a server has such a thing."""

from __future__ import annotations

from typing import Final

from s5jtd.s3.client import S3Client
from s5jtd.s3.markup import Markup, NotXml

#: Ten tags with the longest names and values there may be, as XML, are less than half of this.
_ANSWER_BYTES_MAX: Final = 64 * 1024


def tags_of(client: S3Client, key: bytes) -> dict[str, str] | None:
    """The tags of `key`; None where the server knows no tags, which servers say in several ways.

    Some overlook what was asked for and send the object itself, so no more than tags can be is read.

    Raises:
        ObjectGone: there is no such object, or the server has that word for one without tags.
        ObjectRefused: we may not see its tags, or there is no such operation.
        EndpointDown, EndpointRefused: the endpoint cannot say.
    """
    body = bytearray()
    with client.unobserved().stream("GET", key, {"tagging": ""}) as stream:
        for data in stream:
            body += data
            if len(body) > _ANSWER_BYTES_MAX:
                return None
    return _read(bytes(body))


def _read(body: bytes) -> dict[str, str] | None:
    found: dict[str, str] = {}

    def take() -> None:
        texts = markup.texts
        found[texts.pop("Key", "")] = texts.pop("Value", "")

    markup = Markup("Tag", take)
    try:
        markup.feed(body)
        markup.close()
    except NotXml:
        return None
    return found if markup.root == "Tagging" else None
