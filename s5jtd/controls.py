"""What each verb of the control socket does; the daemon's answers in the protocol's words."""

from __future__ import annotations

import base64
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from s5jtd import __version__, protocol, resyncs, shapes
from s5jtd.control import requests
from s5jtd.control.presence import client_is_gone
from s5jtd.errors import Busy, EndpointError, UsageError
from s5jtd.ledger.rows import FOREVER_MS
from s5jtd.ledger.states import State
from s5jtd.model import Side, printable
from s5jtd.stages.failures import INTERRUPTED
from s5jtd.stages.findings import Wish
from s5jtd.stages.job import Job
from s5jtd.status import endpoint_rows, rfc3339
from s5jtd.volume_desk import VolumeDesk

if TYPE_CHECKING:  # it builds this; the types alone go round
    from s5jtd.app import App

#: How often a verb that waits looks again.
POLL_SECONDS = 0.1
ROWS_LOOKED_AT_MAX = 100_000  #: of the ledger for one page of a listing
#: What a verb that waits gives its work to end in order, when the daemon does.
STOP_SECONDS = 2.0
#: Columns of the ledger's object row that are kept in Unix milliseconds.
_TIMES = ("modified_ms", "since_ms", "seen_at_ms", "not_before_ms", "staged_at_ms", "delivered_at_ms")


class Controls:
    """The verbs, each on the thread of the client that asked."""

    def __init__(self, app: App) -> None:
        """It answers from the daemon's parts."""
        self._app = app
        self._volumes = VolumeDesk(app.pool, app.ledger.views, app.desk, app.bell.ring)

    def ping(self, request: requests.Ping) -> shapes.Pong:
        """Somebody is there."""
        return {"result": "pong"}

    def version(self, request: requests.Version) -> shapes.Version:
        """Of the program and of the protocol."""
        return {"version": __version__, "protocol": protocol.PROTOCOL_VERSION}

    def status(self, request: requests.Status) -> shapes.Status:
        """All of it, or one job's part."""
        jobs = [self._job(request.job)] if request.job else self._app.job_list()
        status = self._app.desk.status(jobs)
        if not request.events:
            return status
        news = self._app.chronicle.news(request.events)
        mine = [event for event in news if request.job is None or event["job"] in (None, request.job)]
        return cast("shapes.StatusAndEvents", {**status, "events": mine})

    def job_pause(self, request: requests.JobPause) -> shapes.Paused:
        """Let jobs rest; it survives a restart."""
        until = FOREVER_MS if request.for_seconds is None else int((time.time() + request.for_seconds) * 1000)
        pull, push = _halves(request.side)
        answer: list[shapes.PausedJob] = []
        for job in self._chosen(request.job):
            old = self._app.ledger.views.pauses(job.id)
            already = (not pull or old.pull_until_ms == until) and (not push or old.push_until_ms == until)
            if not already:
                self._app.ledger.pause(job.id, pull=pull, push=push, until_ms=until)
            if request.now:
                self._app.hold(job.id, held=True)
            answer.append({"name": job.name, "result": "already_paused" if already else "paused"})
        if request.now:
            self._wait_for_quiet(self._chosen(request.job))
        return {"jobs": answer}

    def _wait_for_quiet(self, jobs: Sequence[Job]) -> None:
        """Until nothing of these jobs is in flight; then a later resume need not lift the hold."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(self._in_flight(job) for job in jobs):
            time.sleep(POLL_SECONDS)
        for job in jobs:
            self._app.hold(job.id, held=False)

    def _in_flight(self, job: Job) -> int:
        objects, _ = self._app.ledger.views.counters(job.id)
        return objects[State.PUSHING.word] + self._app.ledger.views.chunks_pulling(job.id)

    def job_resume(self, request: requests.JobResume) -> shapes.Resumed:
        """Let jobs work again."""
        pull, push = _halves(request.side)
        answer: list[shapes.ResumedJob] = []
        for job in self._chosen(request.job):
            old = self._app.ledger.views.pauses(job.id)
            runs = (not pull or old.pull_until_ms is None) and (not push or old.push_until_ms is None)
            if not runs:
                self._app.ledger.resume(job.id, pull=pull, push=push)
            answer.append({"name": job.name, "result": "already_running" if runs else "resumed"})
        self._app.bell.ring()
        return {"jobs": answer}

    def job_scan(self, request: requests.JobScan) -> shapes.Scan:
        """Look at a source now, and wait for the end of the look where asked to."""
        job = self._job(request.job)
        views = self._app.ledger.views
        before = views.last_pass(job.id)
        if job.scanning and not request.wait:
            return {
                "name": job.name,
                "pass": None,
                "result": "already_scanning",
                "objects": None,
                "new": None,
            }
        job.scan_requested.set()
        self._app.bell.ring()
        if not request.wait:
            return {"name": job.name, "pass": None, "result": "scan_started", "objects": None, "new": None}
        while True:
            last = views.last_pass(job.id)
            over = (
                last is not None
                and last.finished_at_ms is not None
                and (before is None or last.id > before.id)
            )
            if over and last is not None and not job.scan_requested.is_set() and not job.scanning:
                break
            if self._app.desk.state == "stopping" or client_is_gone():
                raise UsageError("the daemon is stopping")
            time.sleep(POLL_SECONDS)
        if last.error is not None:
            raise EndpointError(f"the look at the source failed: {last.error}", hint="run `s5jtd check`")
        return {
            "name": job.name, "pass": last.id, "result": "scanned", "objects": last.listed, "new": last.fresh,
        }  # fmt: skip

    def job_resync(self, request: requests.JobResync) -> shapes.Resync:
        """Compare the two sides and the ledger, and wait for what that shows where asked to."""
        job = self._job(request.job)
        wish = Wish(resyncs.source_prefix(job, request.prefix), request.deep, request.dry_run)
        run, is_new = job.resync.request(wish)
        self._app.bell.ring()
        if not request.wait:
            return resyncs.answer(job, run, "resync_started" if is_new else "already_resyncing")
        if run.wish != wish:
            raise Busy(
                f"job {job.name} is being resynced with other options",
                hint=f"see how far it is: s5jtctl status {job.name}; then ask again",
            )
        while not run.over.wait(POLL_SECONDS):
            # It goes on without us; but a thread that waits for nobody's sake is one client less.
            if client_is_gone() or (self._app.desk.state == "stopping" and not run.over.wait(STOP_SECONDS)):
                raise UsageError("the daemon is stopping")
        return resyncs.answer(job, run, "resynced")

    def object_list(self, request: requests.ObjectList) -> shapes.ObjectPage:
        """Rows in key order.

        For a rare state one stretch of the ledger is looked at and the page may be short: no answer
        is as long in coming as the ledger is large.
        """
        job = self._job(request.job)
        views = self._app.ledger.views
        state = State[request.state.upper()] if request.state else None
        prefix = requests.spellings(request.prefix)[-1] if request.prefix else b""
        after = _after(request.after)
        end = None
        if state not in (None, State.PARKED):  # these are found by an index
            end = views.key_further_on(job.id, prefix=prefix, after=after, rows=ROWS_LOOKED_AT_MAX)
        rows = list(
            views.objects(job.id, state=state, prefix=prefix, after=after, limit=request.limit, until=end)
        )
        last = rows[-1]["key"] if len(rows) == request.limit else end
        return {
            "objects": [_object_row(row) for row in rows],
            "next": None if last is None else base64.urlsafe_b64encode(last).decode(),
        }

    def object_explain(self, request: requests.ObjectExplain) -> shapes.Explanation:
        """The whole story of one object."""
        job = self._job(request.job)
        for key in requests.spellings(request.key):
            found = self._app.ledger.views.explain(job.id, key)
            if found is not None:
                return explanation(found)
        folder = request.key[: request.key.rfind("/") + 1]
        near = f" --prefix {shlex.quote(folder)}" if folder else ""
        raise UsageError(
            f"job {job.name} knows no object {request.key!r}",
            hint=f"list what there is: s5jtctl objects {job.name}{near}",
        )

    def object_retry(self, request: requests.ObjectRetry) -> shapes.Retried:
        """Re-arm what is parked."""
        job = self._job(request.job)
        keys: Sequence[bytes | None] = requests.spellings(request.key) if request.key else [None]
        retried = 0
        for key in keys:
            retried = retried or self._app.ledger.retry(job.id, key)
        self._app.bell.ring()
        return {"retried": retried}

    def endpoint_list(self, request: requests.EndpointList) -> shapes.EndpointList:
        """The endpoints of the jobs."""
        rows = [row for job in self._chosen(request.job) for row in endpoint_rows(job)]
        return {"endpoints": rows}

    def endpoint_check(self, request: requests.EndpointCheck) -> shapes.EndpointList:
        """Ask every endpoint now; one that answers has its share again."""
        for job in self._chosen(request.job):
            for link in (job.source, job.destination):
                link.endpoints.probe_due(lambda: None, at_once=True)
        self._app.bell.ring()
        return self.endpoint_list(requests.EndpointList(job=request.job))

    def volume_list(self, request: requests.VolumeList) -> shapes.VolumeList:
        """The volumes."""
        return self._volumes.rows()

    def volume_drain(self, request: requests.VolumeDrain) -> shapes.VolumeChange:
        """Empty a volume."""
        return self._volumes.drain(
            request.volume,
            wait=request.wait,
            gave_up=lambda: self._app.desk.state == "stopping" or client_is_gone(),
        )

    def volume_activate(self, request: requests.VolumeActivate) -> shapes.VolumeChange:
        """Use a volume again."""
        return self._volumes.activate(request.volume)

    def report_list(self, request: requests.ReportList) -> shapes.ReportList:
        """The newest reports."""
        rows = self._app.reports.rows(
            job=request.job, start=request.start, end=request.end, limit=request.limit
        )
        if request.job and not rows:
            self._job(request.job)  # one that is no longer configured may have reports; a typo has none
        return {"reports": rows}

    def report_get(self, request: requests.ReportGet) -> shapes.Report:
        """One report, with a page of its objects where they are asked for."""
        epoch = None if request.id == "latest" else request.id
        return self._app.reports.get(
            epoch, request.job, objects=request.objects, limit=request.limit, after=request.after
        )

    def bandwidth_get(self, request: requests.BandwidthGet) -> shapes.Bandwidth:
        """What each direction may move and does move."""
        meter, jobs = self._app.meter, self._app.job_list()
        return {
            "limits": [
                {
                    "direction": limit.direction.value,
                    "limit_bytes_per_second": None if limit.rate is None else round(limit.rate),
                    "set_by": "operator" if limit.by_operator else "config",
                    "rate_bytes_per_second": round(
                        sum(meter.bytes_per_second(job.id, limit.direction) for job in jobs)
                    ),
                    "next_change_at": rfc3339(
                        None if limit.next_change is None else int(limit.next_change * 1000)
                    ),
                    "timezone": time.strftime("%Z"),
                }
                for limit in self._app.line.limits()
            ]
        }

    def bandwidth_set(self, request: requests.BandwidthSet) -> shapes.Bandwidth:
        """Another limit from now on, also for what moves already; it survives a restart."""
        try:
            self._app.line.order(request.direction, request.limit_bytes_per_second)
        except OSError as error:
            raise UsageError(
                f"the limit cannot be kept: {error.strerror}", hint="check state_dir and who owns it"
            ) from error
        self._app.bell.ring()
        return self.bandwidth_get(requests.BandwidthGet())

    def config_reload(self, request: requests.ConfigReload) -> shapes.Reloaded:
        """Read the configuration again."""
        return self._app.ask_to_reload()

    def event_subscribe(self, request: requests.EventSubscribe) -> Iterator[shapes.Event | None]:
        """What happened, and where asked to what happens."""
        return cast(
            "Iterator[shapes.Event | None]", self._app.chronicle.since(request.since, follow=request.follow)
        )

    def _job(self, name: str) -> Job:
        for job in self._app.job_list():
            if job.name == name:
                return job
        known = ", ".join(job.name for job in self._app.job_list())
        raise UsageError(f"there is no job {name!r}", hint=f"the jobs are: {known}")

    def _chosen(self, name: str | None) -> list[Job]:
        return self._app.job_list() if name is None else [self._job(name)]


def _halves(side: Side | None) -> tuple[bool, bool]:
    return side is not Side.DESTINATION, side is not Side.SOURCE


def _after(cursor: str | None) -> bytes:
    if cursor is None:
        return b""
    try:
        return base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
    except ValueError as error:
        raise UsageError("`after` is not the `next` of an earlier page") from error


def _object_row(row: Mapping[str, Any]) -> shapes.ObjectRow:
    return {
        "id": row["id"],
        "key": printable(row["key"]),
        "size_bytes": row["size"],
        "state": State(row["state"]).word,
        "etag": row["etag"] or None,
        "evidence": row["push_evidence"] or row["pull_evidence"],
        "volume": row["volume"],
        "attempts": row["attempts"],
        "reason": row["reason"],
        "since": rfc3339(row["since_ms"]),
    }


def explanation(found: Mapping[str, list[Mapping[str, Any]]]) -> shapes.Explanation:
    """What the ledger holds of one object, as a story in the order it happened."""
    row = found["object"][0]
    story = [
        *_seen(row),
        *(line for past in found["past"] for line in _past(row, past)),
        *(line for chunk in found["chunk"] for line in _aboard(row, chunk)),
        *(line for failure in found["failures"] for line in _failed(failure)),
        *_ended(row),
    ]
    return {
        "object": {
            **{name: value for name, value in row.items() if name not in (*_TIMES, "key", "state")},
            "key": printable(row["key"]),
            "state": State(row["state"]).word,
            "pull_insecure": bool(row["pull_insecure"]),
            "push_insecure": bool(row["push_insecure"]),
            **{name.removesuffix("_ms"): rfc3339(row[name] or None) for name in _TIMES},
        },
        "story": sorted(story, key=lambda line: line["at"]),
        "failures": [
            {
                "at": rfc3339(f["at_ms"]) or "",
                "step": f["step"],
                "endpoint": f["endpoint"],
                "volume": f["volume"],
                "code": f["code"],
                "message": f["message"],
            }
            for f in found["failures"]
        ],
    }


def _line(at_ms: int | None, what: str, detail: str | None) -> list[shapes.StoryLine]:
    at = rfc3339(at_ms)
    return [{"at": at, "what": what, "detail": detail}] if at else []


def _seen(row: Mapping[str, Any]) -> list[shapes.StoryLine]:
    return _line(
        row["seen_at_ms"], "seen", f"listed at the source: {row['size']} bytes, ETag {row['etag'] or 'none'}"
    )


def _past(row: Mapping[str, Any], past: Mapping[str, Any]) -> list[shapes.StoryLine]:
    same = (past["size"], past["etag"]) == (row["size"], row["etag"])
    which = "for the first time, this version" if same else "an earlier version"
    unverified = _unverified(past["push_insecure"] or past["pull_insecure"])
    detail = f"{which} (ETag {past['etag']}), proven by {past['push_evidence']}{unverified}"
    return _line(past["delivered_at_ms"], "delivered", detail)


def _aboard(row: Mapping[str, Any], chunk: Mapping[str, Any]) -> list[shapes.StoryLine]:
    """What the object went through with its chunk; only what is known to hold for the object."""
    where = f"chunk {chunk['name']} on volume {row['volume']}"
    lines = _line(chunk["planned_at_ms"], "planned", where)
    lines += _line(chunk["pulling_at_ms"], "pulling", f"from {chunk['pull_endpoint'] or 'the source'}")
    if row["staged_at_ms"]:
        lines += _line(
            row["staged_at_ms"], "staged",
            f"durable on {row['volume']}; equals the source by {row['pull_evidence']}"
            f"{_unverified(row['pull_insecure'])}; crc64nvme {row['crc64nvme']}"
            + (f", md5 {row['md5']}" if row["md5"] else ""),
        )  # fmt: skip
        if not row["delivered_at_ms"] or (chunk["pushing_at_ms"] or 0) <= row["delivered_at_ms"]:
            # Else it is from a later push, of what was left of the chunk.
            to = chunk["push_endpoint"] or "the destination"
            lines += _line(chunk["pushing_at_ms"], "pushing", f"to {to}")
    return lines


def _unverified(insecure: int) -> str:
    """What an operator who reads of evidence must know besides."""
    return ", over TLS whose certificate nobody verified" if insecure else ""


def _failed(failure: Mapping[str, Any]) -> list[shapes.StoryLine]:
    """An attempt that came to nothing, in its place in the story."""
    cut = failure["code"] == INTERRUPTED
    way = "from" if failure["step"] == "pull" else "to"
    where: str = failure["step"]
    if failure["endpoint"] or not cut:
        where += f" {way} {failure['endpoint'] or 'no endpoint'}"
    if failure["volume"]:
        where += f" by way of {failure['volume']}"
    if cut:
        return _line(failure["at_ms"], "interrupted", f"{where}: {failure['message']}")
    return _line(failure["at_ms"], "failed", f"{where}: {failure['code']}: {failure['message']}")


def _ended(row: Mapping[str, Any]) -> list[shapes.StoryLine]:
    state = State(row["state"])
    if state is State.DELIVERED:
        how = "was there already" if row["found"] else "the destination holds the same bytes"
        return _line(
            row["delivered_at_ms"],
            "delivered",
            f"{how}, by {row['push_evidence']} ({row['destination_etag']})"
            + _unverified(row["push_insecure"]),
        )
    if state in (State.PARKED, State.GONE):
        return _line(row["since_ms"], state.word, row["reason"])
    return []
