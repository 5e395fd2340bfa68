"""Aborts multipart uploads that s5cmd began for us and that nobody will end: their parts cost money."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import structlog

from s5jtd.errors import EndpointError, ObjectError
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.unfinished import Unfinished
from s5jtd.s3.client import S3Client
from s5jtd.s3.uploads import Upload, abort, list_uploads
from s5jtd.stages.job import Job

log = structlog.get_logger(__name__)

EVERY_SECONDS = 86_400.0
RETRY_SECONDS = 600.0
#: How far the destination's clock may be behind ours.
SKEW_MS = 15 * 60_000
_BATCH = 500


def abandoned(upload: Upload, state: State | None, began_ms: int) -> bool:
    """Whether an upload is ours and nobody's any more.

    Ours: of a key that this job moves, begun since the job began.  Nobody's: the object is not being
    pushed now, so no process of ours can end it.
    """
    return state is not None and state is not State.PUSHING and upload.initiated_ms >= began_ms - SKEW_MS


class Sweep:
    """The one sweeper: looks at each job's destination at start, and then once a day."""

    name = "sweep"
    idle_seconds = 5.0
    quiet_seconds_max = 300.0

    def __init__(self, jobs: Callable[[], Sequence[Job]], ledger: Ledger, unfinished: Unfinished) -> None:
        """`jobs` tells which jobs there are now."""
        self._jobs = jobs
        self._ledger = ledger
        self._unfinished = unfinished
        self._due: dict[int, float] = {}

    def step(self, beat: Callable[[], None]) -> bool:
        """Sweep the destinations whose turn it is."""
        for job in self._jobs():
            began_ms = self._ledger.views.began_ms(job.id)
            # Before its first look a job began nothing.
            is_bucket = job.destination.folder is None
            if is_bucket and began_ms is not None and time.monotonic() >= self._due.get(job.id, 0.0):
                self._due[job.id] = time.monotonic() + self._sweep(job, began_ms, beat)
        return False

    def _sweep(self, job: Job, began_ms: int, beat: Callable[[], None]) -> float:
        """Abort what is abandoned; after how many seconds to come again."""
        aborted = 0
        try:
            with job.destination.endpoints.lease() as endpoint:
                aborted += self._abort_obsolete(job, endpoint.client, beat)
                uploads = list_uploads(endpoint.client, job.destination.prefix)
                while batch := list(itertools.islice(uploads, _BATCH)):
                    beat()
                    aborted += self._abort(job, endpoint.client, batch, began_ms)
        except (EndpointError, ObjectError) as error:
            log.debug("uploads_not_swept", job=job.name, error=str(error))
            return RETRY_SECONDS
        finally:
            if aborted:
                log.info("uploads_aborted", job=job.name, uploads=aborted)
        return EVERY_SECONDS

    def _abort_obsolete(self, job: Job, client: S3Client, beat: Callable[[], None]) -> int:
        """End the uploads of ours whose object has no use for them any more."""
        count = 0
        while batch := self._unfinished.obsolete(job.id, _BATCH):
            for one in batch:
                beat()
                abort(client, Upload(one.key, one.upload_id, 0))
                self._unfinished.end(one.id)
            count += len(batch)
        return count

    def _abort(self, job: Job, client: S3Client, batch: Sequence[Upload], began_ms: int) -> int:
        live = self._unfinished.live(
            job.id
        )  # asked for after the listing: what it shows is in it, if it is ours
        states = self._ledger.views.states(job.id, {job.source_key(upload.key) for upload in batch})
        count = 0
        for upload in batch:
            if upload.upload_id not in live and abandoned(
                upload, states.get(job.source_key(upload.key)), began_ms
            ):
                abort(client, upload)
                count += 1
        return count
