"""What an object takes along besides its bytes: asked of the source once, told at the put."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog

from s5jtd import __version__
from s5jtd.errors import ObjectError
from s5jtd.model import NO_BELONGINGS, Belongings, Head
from s5jtd.s3.client import S3Client
from s5jtd.s3.tags import tags_of
from s5jtd.stages.job import Job, Link

log = structlog.get_logger(__name__)

#: What S3 says of an object that was put without a type.
_TYPE_DEFAULT: Final = "binary/octet-stream"
#: S3's limit on names and values of user metadata together.
_METADATA_BYTES_MAX: Final = 2048


def belongings_of(job: Job, client: S3Client, key: bytes, answer: Head) -> Belongings:
    """What of an object the job wants carried; `answer` is a HEAD of the version that is carried.

    Raises:
        EndpointError: the source had to be asked for tags and did not answer.
    """
    preserve = job.config.preserve
    content = {}
    if "content" in preserve:
        content = {name: value for name, value in answer.content.items() if value}
        if content.get("content-type") == _TYPE_DEFAULT:
            del content["content-type"]
        if "content-encoding" in content:
            content = _without_framing(content)
    metadata = answer.metadata if "metadata" in preserve else {}
    tags = (
        _tags(job.source, client, key, answer.tags_count)
        if "tags" in preserve and job.source.folder is None
        else {}
    )
    return Belongings(content, metadata, tags) if content or metadata or tags else NO_BELONGINGS


def stamped(job: Job, belongings: Belongings) -> Belongings:
    """The same with who brought it and when, where the job wants that and there is room for it."""
    if not getattr(job.config.destination, "stamp", False):
        return belongings
    now = datetime.fromtimestamp(time.time(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {**belongings.metadata, "synced-by": f"s5jtd/{__version__}", "synced-at": now}
    if (
        sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())
        > _METADATA_BYTES_MAX
    ):
        return belongings
    return replace(belongings, metadata=metadata)


def _without_framing(content: Mapping[str, str]) -> dict[str, str]:
    """`aws-chunked` says how an upload was framed, and some servers keep it; no object is so encoded."""
    left = [one.strip() for one in content["content-encoding"].split(",") if one.strip() != "aws-chunked"]
    return {name: value for name, value in content.items() if name != "content-encoding"} | (
        {"content-encoding": ", ".join(left)} if left else {}
    )


def _tags(link: Link, client: S3Client, key: bytes, count: int | None) -> Mapping[str, str]:
    """The tags of an object; asks only where there may be some."""
    tagging = link.tagging
    if not tagging.readable or count == 0 or (count is None and tagging.counted):
        return {}
    try:
        found = tags_of(client, key)
    except ObjectError as error:
        if count or error.code != "object_gone":
            tagging.readable = False
            log.warning("tags_not_readable", endpoint=client.endpoint_url, error=str(error))
        return {}
    if found is None:
        tagging.readable = False
        return {}
    if found:
        # Once seen, a server that tells how many there are can be believed where it tells of none.
        tagging.counted = count is not None
    return found
