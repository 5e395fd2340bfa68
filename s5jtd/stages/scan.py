"""scan: look at a source and take in what is new or changed; nothing -> seen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

import structlog

from s5jtd.engine.contract import Engine
from s5jtd.errors import EndpointError, ObjectError, S5jtError
from s5jtd.integrity.evidence import same_object
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.model import Evidence, Head, Listed, Verdict
from s5jtd.problems import Problems
from s5jtd.s3.endpoints import Endpoint
from s5jtd.s3.heads import head
from s5jtd.s3.listing import list_objects
from s5jtd.stages.choose import Choice
from s5jtd.stages.inquiry import holdings
from s5jtd.stages.job import Changes, Folder, Job, unmovable
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

#: After a look that failed, the next comes no sooner, however short `scan_every` is.
RETRY_SECONDS = 5.0
#: Between two looks that changes in a folder ask for: so many seconds, or times as long as the last took.
REST_SECONDS = 1.0
REST_SHARE = 10.0
CHECK_HINT = "run `s5jtd check`"


class Scan:
    """The one scanner of one job."""

    idle_seconds = 1.0
    quiet_seconds_max = 300.0

    def __init__(
        self,
        job: Job,
        ledger: Ledger,
        engine: Engine,
        asking: Executor,
        problems: Problems,
        bell: Bell,
    ) -> None:
        """`asking` runs single requests to the servers side by side."""
        self.name = f"scan {job.name}"
        self._job = job
        self._ledger = ledger
        self._engine = engine
        self._asking = asking
        self._problems = problems
        self._bell = bell
        self._due = self._rested = time.monotonic()
        self._looked_at_ms, self._found_some = 0, False
        self._busy = 0  # files that somebody was writing to
        self.last_error: S5jtError | None = None
        self.passes_done = 0
        self._told: tuple[int, int] | None = None  # objects and those left out, when they were last told

    def step(self, beat: Callable[[], None]) -> bool:
        """Look at the source if it is time to."""
        began = time.monotonic()
        if not self._job.scan_requested.is_set() and (not self._is_time(began) or self._paused()):
            return False
        self._job.scan_requested.clear()
        self._looked_at_ms, self._found_some = int(time.time() * 1000), False
        if self._changes is not None:
            self._changes.begin()
        self._job.scanning = True
        try:
            self._pass(beat)
        finally:
            self._job.scanning = False
        ended = time.monotonic()
        failed = self.last_error is not None
        self._due = ended + (RETRY_SECONDS if failed else self._job.config.scan_every)
        rest = max(REST_SECONDS, REST_SHARE * (ended - began))
        self._rested = min(self._due, ended + (RETRY_SECONDS if failed else rest))
        self.passes_done += 1
        self._bell.ring()
        return True

    @property
    def _changes(self) -> Changes | None:
        return self._job.source.folder.changes if self._job.source.folder else None

    def _is_time(self, now: float) -> bool:
        """Whether to look: each `scan_every`; sooner where something changed, or may leave."""
        return now >= self._due or (now >= self._rested and (self._hears() or self._owes()))

    def _hears(self) -> bool:
        return self._changes is not None and self._changes.is_due()

    def _owes(self) -> bool:
        folder = self._job.source.folder
        if folder is None or folder.leave is None:
            return False
        if self._found_some:  # which are delivered without ever having been pushed
            return True
        return (self._ledger.views.last_delivery_ms(self._job.id) or 0) >= self._looked_at_ms

    def _paused(self) -> bool:
        return self._ledger.views.pauses(self._job.id).pull_until_ms is not None

    def _pass(self, beat: Callable[[], None]) -> None:
        """One look at the whole source; what came before an error stays taken in."""
        pass_id = self._ledger.begin_pass(self._job.id)
        started = time.monotonic()
        listed = listed_bytes = left_out = new = self._busy = 0
        self.last_error = None
        source = self._job.source
        choice = Choice(self._job.config, source.prefix)
        try:
            with source.endpoints.lease() as endpoint:
                try:
                    for page in list_objects(endpoint.client, source.prefix, version=source.list_version):
                        beat()
                        listed += len(page.objects)
                        listed_bytes += sum(one.size for one in page.objects)
                        chosen = choice.of(page.objects)
                        left_out += len(page.objects) - len(chosen)
                        new += self._take_in(pass_id, chosen, page.sorted, beat)
                except EndpointError as error:
                    # The answer to a request may be well and the listing made of them still be none.
                    source.endpoints.report(endpoint, error)
                    raise
        except (EndpointError, ObjectError) as error:
            self.last_error = error
        self._ledger.end_pass(
            pass_id, listed=listed, listed_bytes=listed_bytes,
            error=str(self.last_error) if self.last_error else None,
        )  # fmt: skip
        self._job.settling = self._busy + (self._changes.young if self._changes is not None else 0)
        self._tell(listed, left_out, new, time.monotonic() - started)

    def _tell(self, listed: int, left_out: int, new: int, seconds: float) -> None:
        """A look that shows what the one before did is no news: there may be one a minute, for years."""
        name = self._job.name
        if self.last_error is None:
            cleared = self._problems.clear("scan_incomplete", name)
            picture: dict[str, object] = {"objects": listed, "new": new, "left_out": left_out}
            picture["seconds"] = round(seconds, 3)
            if self._job.settling:
                picture["settling"] = self._job.settling
            if cleared or new or self._told != (listed, left_out):
                log.info("scan_finished", job=name, **picture)
            else:
                log.debug("scan_unchanged", job=name, **picture)
            self._told = (listed, left_out)
            return
        self._told = None
        if self._problems.raise_(
            "scan_incomplete",
            name,
            f"the source of job {name} could not be listed to its end: {self.last_error}",
            self.last_error.hint or CHECK_HINT,
        ):
            log.warning("scan_failed", job=name, error=str(self.last_error), hint=self.last_error.hint)

    def _take_in(
        self, pass_id: int, chosen: Sequence[Listed], ascending: bool, beat: Callable[[], None]
    ) -> int:
        """Enter in the ledger what it does not know; how many these were."""
        job = self._job
        fresh = self._ledger.views.fresh(job.id, chosen, ascending=ascending)
        if job.source.folder is not None:
            self._let_leave(job.source.folder, chosen, fresh, beat)
            ready = [listed for listed in fresh if job.source.folder.is_ready(listed)]
            self._busy += len(fresh) - len(ready)
            fresh = ready
        if not fresh:
            return 0
        reasons = {listed.key: self.unmovable(listed.key) for listed in fresh}
        unmovable = {key: f"unmovable: {reason}" for key, reason in reasons.items() if reason is not None}
        movable = [listed for listed in fresh if listed.key not in unmovable]
        found = self.already_there(movable, beat)
        self._found_some |= bool(found)
        self._ledger.admit(
            job.id, pass_id, fresh, found, unmovable, insecure=job.source.insecure or job.destination.insecure
        )  # fmt: skip
        self._bell.ring()
        return len(fresh)

    def _let_leave(
        self, folder: Folder, chosen: Sequence[Listed], fresh: Sequence[Listed], beat: Callable[[], None]
    ) -> None:
        """Of files that are delivered in the very version that is there, do with them what is to be done."""
        if folder.leave is None:
            return
        newer = {listed.key for listed in fresh}
        known = [listed for listed in chosen if listed.key not in newer]
        states = self._ledger.views.states(self._job.id, [listed.key for listed in known])
        delivered = [listed for listed in known if states.get(listed.key) is State.DELIVERED]
        left = folder.leave(delivered, beat)
        if left:
            log.info("files_left", job=self._job.name, files=len(left), bytes=sum(one.size for one in left))

    def unmovable(self, key: bytes) -> str | None:
        """Why an object cannot travel, or None if it can."""
        return unmovable(self._job, self._engine, key)

    def already_there(
        self, fresh: Sequence[Listed], beat: Callable[[], None]
    ) -> Mapping[bytes, tuple[str, Evidence]]:
        """Which of these objects the destination holds already, and how that is known.

        It only saves work: where the destination cannot be asked now, the objects travel, and the
        push half asks again before it sends anything.
        """
        job = self._job
        if job.config.skip_existing == "never" or not fresh:
            return {}
        try:
            with job.destination.endpoints.lease() as endpoint:
                held = holdings(
                    endpoint.client,
                    [job.destination_key(listed.key) for listed in fresh],
                    version=job.destination.list_version,
                    pool=self._asking,
                    beat=beat,
                )
                pairs = [(one, held.get(job.destination_key(one.key))) for one in fresh]
                asked = [(one, there) for one, there in pairs if there is not None]
                verdicts = self._asking.map(lambda pair: self._same(endpoint, *pair), asked)
                return {
                    one.key: (there.etag, verdict.evidence)
                    for (one, there), verdict in zip(asked, verdicts, strict=True)
                    if verdict.equal and verdict.evidence is not None
                }
        except (EndpointError, ObjectError) as error:
            log.debug("destination_not_asked", job=job.name, error=str(error))
            return {}

    def _same(self, endpoint: Endpoint, one: Listed, there: Listed) -> Verdict:
        """Whether source and destination hold the same bytes, by listing, then by HEAD of both."""
        config = self._job.config
        verdict = same_object(one, there)
        if verdict.equal is None:
            verdict = self._same_by_heads(endpoint, one, there)
        if verdict.equal is None and config.skip_existing == "size":
            return Verdict(True, Evidence.SIZE, "the same size, which this job takes for enough")
        if verdict.equal and verdict.evidence and not verdict.evidence.satisfies(config.evidence.minimum):
            return Verdict(None, None, f"only {verdict.evidence}, and the job wants more")
        return verdict

    def _same_by_heads(self, endpoint: Endpoint, one: Listed, there: Listed) -> Verdict:
        try:
            with self._job.source.endpoints.lease() as source:
                ours: Head = head(source.client, one.key, checksums=True)
            theirs = head(endpoint.client, self._job.destination_key(one.key), checksums=True)
        except (EndpointError, ObjectError) as error:
            return Verdict(None, None, str(error))
        return same_object(ours, theirs)
