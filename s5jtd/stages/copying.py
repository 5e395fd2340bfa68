"""An object that goes from bucket to bucket inside one server, which copies it: none of its bytes travel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from s5jtd.engine.contract import Failure, Original, Transfer, TransferFailed
from s5jtd.integrity.evidence import EtagKind, etag_kind, etag_parts, same_object
from s5jtd.ledger.rows import Delivered, Item, Returned
from s5jtd.ledger.states import State
from s5jtd.ledger.unfinished import Begun, Part
from s5jtd.model import Belongings, Listed, Verdict
from s5jtd.s3.client import S3Client
from s5jtd.s3.endpoints import Endpoint
from s5jtd.s3.heads import head
from s5jtd.stages.belongings import belongings_of
from s5jtd.stages.check import DESTINATION_MISMATCH
from s5jtd.stages.job import Job
from s5jtd.stages.streaming import Ends, transfer_of

log = structlog.get_logger(__name__)

#: What S3 copies in one request.
COPY_BYTES_MAX: Final = 5 * 2**30
_PARTS_AT_A_TIME: Final = 4
_ALL: Final = frozenset({"content", "metadata", "tags"})
#: A server that answers so will not copy the next one either.
_FOR_GOOD: Final = frozenset({Failure.REFUSED, Failure.BUCKET, Failure.OTHER})


def may_copy(job: Job, destination: Endpoint) -> bool:
    """Whether both sides are one server, for somebody who may read here and write there.

    A job that wants a SHA-256 wants its bytes read.
    """
    if job.destination.copies_given_up or job.config.sha256:
        return False
    return any(one.client.is_beside(destination.client) for one in job.source.endpoints.all())


def copied(ends: Ends, item: Item) -> bool:
    """Let the server copy an object, if it still has the version that was listed; False: it must be streamed.

    Only where the copy can be expected to show the same ETag, which proves it.

    Raises:
        EndpointError, ObjectError: as the source answers.
        Stopped: the job is to end.
    """
    ends.look(0)
    kind = etag_kind(item.etag)
    try:
        if kind is EtagKind.MD5 and item.size <= COPY_BYTES_MAX:
            _at_once(ends, item)
            return True
        return kind is EtagKind.MULTIPART and _in_parts(ends, item)
    except TransferFailed as error:  # what is wrong with the object itself, streaming it will tell
        if error.failure in _FOR_GOOD:
            give_up(ends.job, str(error))
        return False


def settled_copy(
    job: Job, source: S3Client, destination: S3Client, item: Item, there: Listed | None
) -> Delivered | Returned:
    """What became of a copy, with the evidence of both hops in one.

    Raises:
        EndpointError, ObjectError: as the servers answer.
    """
    key = job.destination_key(item.key)
    minimum = job.config.evidence.minimum
    listed = Listed(item.key, item.size, item.etag, item.modified_ms)
    verdict = Verdict(None, None, "") if there is None else same_object(listed, there)
    if not (verdict.equal and verdict.evidence and verdict.evidence.satisfies(minimum)):
        theirs = head(destination, key, checksums=True)
        verdict = same_object(head(source, item.key, checksums=True), theirs)
        there = Listed(key, theirs.size, theirs.etag, theirs.modified_ms)
    if verdict.equal is False:
        return Returned(item, State.SEEN, DESTINATION_MISMATCH, verdict.detail)
    if there is None or not verdict.evidence or not verdict.evidence.satisfies(minimum):
        give_up(job, f"what it copied cannot be proven: {verdict.detail}")
        return Returned(item, State.SEEN, "copy_unproven", verdict.detail, counted=False)
    known = replace(item, pull_evidence=verdict.evidence)
    return Delivered(known, there.etag, verdict.evidence, destination.insecure)


def give_up(job: Job, reason: str) -> None:
    """From now on the job's objects are streamed."""
    if not job.destination.copies_given_up:
        job.destination.copies_given_up = True
        log.info("copies_given_up", job=job.name, reason=reason)


def _at_once(ends: Ends, item: Item) -> None:
    job = ends.job
    as_it_is = set(job.config.preserve) >= _ALL and not getattr(job.config.destination, "stamp", False)
    if as_it_is or not job.config.preserve:
        belongings = Belongings()
    else:
        belongings = belongings_of(job, ends.source, item.key, head(ends.source, item.key))
    ends.sink.copy(transfer_of(job, item, belongings), _original(ends, item), as_it_is=as_it_is)


def _in_parts(ends: Ends, item: Item) -> bool:
    """In the parts that the source was made of; False where nobody knows them."""
    answer = ends.check.part_answer(item)
    size = answer.part_size if answer else None
    if answer is None or not size or -(-item.size // size) != etag_parts(item.etag):
        return False
    belongings = belongings_of(ends.job, ends.source, item.key, answer) if ends.job.config.preserve else None
    transfer = transfer_of(ends.job, item, belongings or Belongings())
    begun, etags = _take_up(ends, item, transfer, size)
    copy = partial(_part, ends, item, transfer, begun)
    left = [number for number in range(1, -(-item.size // size) + 1) if number not in etags]
    with ThreadPoolExecutor(_PARTS_AT_A_TIME, "copy part") as pool:
        etags |= zip(left, pool.map(copy, left), strict=True)
    ends.complete(transfer, begun, etags)
    return True


def _take_up(ends: Ends, item: Item, transfer: Transfer, size: int) -> tuple[Begun, dict[int, str]]:
    """The upload that an earlier attempt began, with the parts that it has; or a new one."""
    begun = ends.unfinished.upload(item)
    if begun is not None and (begun.key, begun.part_size) == (transfer.key, size):
        held = ends.sink.held(transfer, begun.upload_id)
        if held is not None:
            known = begun.parts.items()
            return begun, {n: part.etag for n, part in known if n in held and held[n].etag == part.etag}
    upload_id = ends.sink.begin(transfer)
    made = ends.unfinished.begin(ends.job.id, item, transfer.key, upload_id, size)
    return Begun(made, upload_id, transfer.key, size), {}


def _part(ends: Ends, item: Item, transfer: Transfer, begun: Begun, number: int) -> str:
    ends.look(0)
    first = (number - 1) * begun.part_size
    last = min(first + begun.part_size, item.size) - 1
    etag = ends.sink.copy_part(transfer, begun.upload_id, number, _original(ends, item), first, last)
    ends.unfinished.took(begun.id, number, Part(etag))
    return etag


def _original(ends: Ends, item: Item) -> Original:
    return Original(ends.source.bucket, item.key, item.etag)
