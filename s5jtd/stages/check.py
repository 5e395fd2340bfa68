"""The two checks of the road: local bytes against the source, the destination against local bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from s5jtd.errors import EndpointError, ObjectError, ObjectGone, VolumeFailed
from s5jtd.integrity.evidence import (
    etag_kind,
    etag_parts,
    judge,
    plausible_part_sizes,
    sane_upload_part_size,
    wanted_for,
)
from s5jtd.integrity.hashing import Wanted, hash_file, hash_stream
from s5jtd.ledger.rows import Delivered, Item, Returned, Staged
from s5jtd.ledger.states import State
from s5jtd.model import Digests, Evidence, Head, Listed, Side, Verdict
from s5jtd.s3.client import S3Client
from s5jtd.s3.heads import head, read_back, same_etag
from s5jtd.s3.listing import list_objects
from s5jtd.stages.belongings import belongings_of
from s5jtd.stages.job import Job
from s5jtd.stages.resuming import is_large, part_bytes

#: Where nothing else decides, objects above this size are uploaded in parts of this size.
UPLOAD_PART_BYTES = 64 * 1024 * 1024

#: To be held while a disk is read.
Readers = threading.Semaphore | contextlib.nullcontext[None]
NO_LIMIT: Final[Readers] = contextlib.nullcontext()

SOURCE_MISMATCH = "source_mismatch"
DESTINATION_MISMATCH = "destination_mismatch"


class StagedCheck:
    """Compares a pulled file with the source's evidence, and asks the source no more than it must."""

    def __init__(self, job: Job, client: S3Client, readers: Readers = NO_LIMIT) -> None:
        """`client` speaks to the endpoint the bytes came from; `readers` lets few read the disk at a time."""
        self._job = job
        self.client = client
        self._readers = readers

    def __call__(self, item: Item, data_fd: int, name: str, beat: Callable[[int], None]) -> Staged | Returned:
        """Hash the file once and judge it.

        Raises:
            VolumeError: the disk could not give the bytes.
            EndpointError: the source had to be asked and did not answer.
            ObjectError: the file or the object is not what it should be.
        """
        part_answer = self.part_answer(item)
        source_part = self.source_part(part_answer)
        upload_part = self._upload_part_size(item, source_part)
        wanted = wanted_for(
            item.etag, item.size, source_part, upload_part, self._job.config.sha256,
            whole_md5=self._job.destination.whole_md5,
        )  # fmt: skip
        with self._readers:
            digests = hash_file(data_fd, name, wanted, beat=beat)
        return self.settle(item, digests, part_answer, upload_part if item.size > upload_part else None, beat)

    def settle(
        self,
        item: Item,
        digests: Digests,
        part_answer: Head | None,
        part: int | None,
        beat: Callable[[int], None],
    ) -> Staged | Returned:
        """Judge bytes that were hashed; `part_answer` as of `part_answer`, `part` the upload's size of parts.

        Raises:
            EndpointError, ObjectError: as `__call__`.
        """
        source_part = self.source_part(part_answer)
        verdict = judge(digests, item.size, item.etag, part_size=source_part, head=None)
        minimum = self._job.config.evidence.minimum
        version = item.etag
        answer: Head | None = None
        if not verdict.equal or verdict.evidence is None or not verdict.evidence.satisfies(minimum):
            answer = head(self.client, item.key, checksums=True)
            if _is_another(item, answer):
                return self.changed(item)
            asked = judge(digests, item.size, "", part_size=source_part, head=answer)
            verdict = verdict if verdict.equal and asked.equal is None else asked
            version = answer.etag or version
        elif self._job.config.preserve:
            answer = part_answer or head(self.client, item.key)
            if _is_another(item, answer):
                return self.changed(item)
        settled = self._judged(item, digests, verdict, part, version, beat)
        if isinstance(settled, Staged) and answer is not None and self._job.config.preserve:
            found = belongings_of(self._job, self.client, item.key, answer)
            return dataclasses.replace(settled, belongings=found)
        return settled

    def _upload_part_size(self, item: Item, source_part: int | None) -> int:
        if not is_large(self._job, item) or self._job.destination.folder is not None:
            default = self._job.part_size(Side.DESTINATION)
            etag = "" if default else item.etag  # what was asked for goes before an ETag like the source's
            return sane_upload_part_size(item.size, etag, source_part, default or UPLOAD_PART_BYTES)
        return part_bytes(self._job, item, source_part)

    def source_part(self, part_answer: Head | None) -> int | None:
        """The size of the parts that the source's ETag was made of, where anybody knows it."""
        told = part_answer.part_size if part_answer else None
        return told or self._job.part_size(Side.SOURCE)

    def part_answer(self, item: Item) -> Head | None:
        """What the source says of the object and its first part, where its ETag was made of parts."""
        if etag_parts(item.etag) is None:
            return None
        return head(self.client, item.key, part_number=1)

    def changed(self, item: Item) -> Returned:
        """A HEAD shows another version: it is taken in as the listing names it, if the listing agrees.

        Where the listing goes on naming the planned one, something answers for the object that is not it.
        """
        version = self._job.source.list_version
        pages = list_objects(self.client, item.key, end_at=item.key, version=version, page_size=1)
        now = next((one for page in pages for one in page.objects), None)
        if now is None or (now.size, now.etag) == (item.size, item.etag):
            return Returned(item, State.SEEN, SOURCE_MISMATCH, "a HEAD of it and its listing do not agree")
        return Returned(
            item, State.SEEN, "source_changed", "the source holds another version than was planned",
            counted=False, etag=now.etag, size=now.size, modified_ms=now.modified_ms,
            not_before_ms=self._job.source.settled_ms(),
        )  # fmt: skip

    def _judged(
        self,
        item: Item,
        digests: Digests,
        verdict: Verdict,
        part: int | None,
        version: str,
        beat: Callable[[int], None],
    ) -> Staged | Returned:
        policy = self._job.config.evidence
        if verdict.equal is False:
            return Returned(item, State.SEEN, SOURCE_MISMATCH, verdict.detail)
        evidence = verdict.evidence or Evidence.SIZE
        if not evidence.satisfies(policy.minimum) and policy.otherwise == "readback":
            body = read_back(self.client, item.key, if_match=version or None)
            again = hash_stream(_beating(body, beat), Wanted())
            if again.crc64nvme != digests.crc64nvme:
                return Returned(item, State.SEEN, SOURCE_MISMATCH, "fetched twice, it was not the same twice")
            evidence = max(evidence, Evidence.READBACK, key=lambda one: one.strength)
        elif not evidence.satisfies(policy.minimum) and policy.otherwise == "park":
            return _too_weak(item, evidence, policy.minimum, "source")
        return Staged(item, digests, evidence, part, insecure=self.client.insecure)


class DeliveredCheck:
    """Compares what the destination shows with what is known of the local bytes."""

    def __init__(
        self,
        job: Job,
        client: S3Client,
        data_fd: int,
        name_of: Callable[[Item], str],
        beat: Callable[[int], None],
    ) -> None:
        """`client` speaks to the destination; the folder is read again only for rare kinds of ETag.

        `beat` is told the bytes of every block that is read, here or there.
        """
        self._job = job
        self._client = client
        self._data_fd = data_fd
        self._name_of = name_of
        self._beat = beat

    def __call__(self, item: Item, there: Listed | None, *, after_push: bool) -> Delivered | Returned | None:
        """What is true of one object; None when it is not there (yet) and nothing was claimed.

        Raises:
            VolumeError, EndpointError, ObjectError: as the disk and the destination answer.
        """
        if there is None and after_push:
            there = self._asked_alone(item)
        if there is None:
            return _not_there(item) if after_push else None
        verdict = self._verdict(item, there)
        if not after_push:
            return self._delivered_before(item, there, verdict)
        if verdict.equal is False:
            self._rehash(item, Wanted())  # if it is our copy that changed, it must not be sent again
            return Returned(item, State.STAGED, DESTINATION_MISMATCH, verdict.detail)
        policy = self._job.config.evidence
        evidence = verdict.evidence or Evidence.SIZE
        if not evidence.satisfies(policy.minimum) and policy.otherwise == "readback":
            if not self._reads_back(item, there):
                return Returned(
                    item, State.STAGED, DESTINATION_MISMATCH, "read back, it is not what was sent"
                )
            evidence = max(evidence, Evidence.READBACK, key=lambda one: one.strength)
        elif not evidence.satisfies(policy.minimum) and policy.otherwise == "park":
            return _too_weak(item, evidence, policy.minimum, "destination")
        return Delivered(item, there.etag, evidence, self._client.insecure)

    def unreadable(self, item: Item) -> Returned | None:
        """What is wrong with a file that the engine could not read, on a volume that is well, if we agree."""
        try:
            self._rehash(item, Wanted())
        except (ObjectError, VolumeFailed) as error:
            return refused(item, LocalRot(str(error)), State.STAGED, 0)
        return None

    def _asked_alone(self, item: Item) -> Listed | None:
        """What a listing did not show may be there: listings lag, and some end too early."""
        key = self._job.destination_key(item.key)
        try:
            answer = head(self._client, key)
        except ObjectGone:
            return None
        return Listed(key, answer.size, answer.etag, answer.modified_ms)

    def _delivered_before(self, item: Item, there: Listed, verdict: Verdict) -> Delivered | None:
        """Before a push only proof counts: what is doubtful is sent."""
        minimum = self._job.config.evidence.minimum
        if verdict.equal and verdict.evidence and verdict.evidence.satisfies(minimum):
            return Delivered(item, there.etag, verdict.evidence, self._client.insecure)
        return None

    def _verdict(self, item: Item, there: Listed) -> Verdict:
        digests = _digests(item)
        verdict = judge(digests, there.size, there.etag, part_size=item.part_size, head=None)
        if verdict.equal and verdict.evidence and verdict.evidence.satisfies(self._minimum):
            return verdict
        if there.size != item.size:
            return verdict
        wanted, part_size = self._missing(item, there)
        if wanted is not None:
            digests = self._rehash(item, wanted)
            verdict = judge(digests, there.size, there.etag, part_size=part_size, head=None)
            if verdict.equal and wanted.md5:
                # This destination answers uploads in parts with the MD5 of the whole.
                self._job.destination.whole_md5 = True
            if verdict.equal and verdict.evidence and verdict.evidence.satisfies(self._minimum):
                return verdict
        answer = head(self._client, self._job.destination_key(item.key), checksums=True)
        return judge(digests, there.size, there.etag, part_size=part_size, head=answer)

    @property
    def _minimum(self) -> Evidence:
        return self._job.config.evidence.minimum

    def _missing(self, item: Item, there: Listed) -> tuple[Wanted | None, int | None]:
        """What must be computed that the one pass did not, to compare with this ETag."""
        digests = _digests(item)
        parts = etag_parts(there.etag)
        if parts is None:
            return (Wanted(md5=True), None) if digests.md5 is None and len(there.etag) == 32 else (None, None)
        if item.part_size and there.etag == digests.multipart_etags.get(item.part_size):
            return None, item.part_size
        sent = item.part_size
        if sent and sent not in digests.multipart_etags and -(-item.size // sent) == parts:
            return Wanted(part_sizes=frozenset({sent})), sent  # in others than it was hashed for
        answer = head(self._client, self._job.destination_key(item.key), part_number=1)
        if (
            answer.part_size is None and sent is None
        ):  # it may have gone in parts before a crash, or by others
            usual = frozenset(plausible_part_sizes(item.size, parts)) - digests.multipart_etags.keys()
            return (Wanted(part_sizes=usual), None) if usual else (None, None)
        if answer.part_size is None or answer.part_size == item.part_size:
            return None, answer.part_size
        return Wanted(part_sizes=frozenset({answer.part_size})), answer.part_size

    def _rehash(self, item: Item, wanted: Wanted) -> Digests:
        """Compute more from the local file, which must still be what was recorded.

        Raises:
            ObjectError: it is not: the local copy rotted.
        """
        recorded = _digests(item)
        again = hash_file(self._data_fd, self._name_of(item), wanted, beat=self._beat)
        if again.crc64nvme != recorded.crc64nvme:
            raise LocalRot(f"{item.id:x}: its bytes on the volume are no longer those that were staged")
        return dataclasses.replace(
            again,
            md5=again.md5 or recorded.md5,
            sha256=recorded.sha256,
            multipart_etags={**recorded.multipart_etags, **again.multipart_etags},
        )

    def _reads_back(self, item: Item, there: Listed) -> bool:
        key = self._job.destination_key(item.key)
        body = read_back(self._client, key, if_match=there.etag or None)
        again = hash_stream(_beating(body, self._beat), Wanted())
        return again.crc64nvme == _digests(item).crc64nvme


class LocalRot(ObjectError):
    """Cannot use a local copy that changed on the volume."""

    code = "local_rot"


def refused(item: Item, error: ObjectError | EndpointError, rest: State, not_before_ms: int) -> Returned:
    """What an error about one object makes of it; one of the endpoint costs it no attempt."""
    if isinstance(error, ObjectGone) and rest is State.SEEN:
        return Returned(item, State.GONE, error.code, str(error))
    if isinstance(error, LocalRot):
        return Returned(item, State.SEEN, error.code, str(error))
    counted = isinstance(error, ObjectError)
    return Returned(item, rest, error.code, str(error), counted, not_before_ms)


def _digests(item: Item) -> Digests:
    if item.digests is None:
        raise ValueError(f"object {item.id} was never staged")
    return item.digests


def _beating(body: Iterable[bytes], beat: Callable[[int], None]) -> Iterator[bytes]:
    """What arrives over the network is a sign of life too."""
    for data in body:
        beat(len(data))
        yield data


def _is_another(item: Item, now: Head) -> bool:
    """Whether a HEAD surely shows another version than the planned one.

    An ETag that is missing or weak on either side tells nothing.  Of another kind than the listing's (some
    servers have two for large objects), it tells only together with the time of the last change.
    """
    if now.size != item.size:
        return True
    if not (item.etag and now.etag) or now.etag.startswith("W/") or same_etag(item.etag, now.etag):
        return False
    is_same_kind = etag_kind(item.etag) is etag_kind(now.etag)
    return is_same_kind or item.modified_ms // 1000 != now.modified_ms // 1000


def _not_there(item: Item) -> Returned:
    return Returned(item, State.STAGED, "not_delivered", "after the push the destination does not have it")


def _too_weak(item: Item, evidence: Evidence, minimum: Evidence, side: str) -> Returned:
    return Returned(
        item, State.PARKED, "evidence_too_weak",
        f"the {side} offers only {evidence}, and the job wants {minimum}",
    )  # fmt: skip
