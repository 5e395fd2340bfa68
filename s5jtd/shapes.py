"""The shapes of what the daemon answers, by method, for whoever checks types; nothing else is in them."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class ErrorData(TypedDict):
    code: str  #: a word that stays the same, e.g. "not_permitted"
    hint: str  #: what to do next; "" where nothing sensible can be said
    exit: int  #: what a command-line client should exit with


class Error(TypedDict):
    code: int  #: an RpcCode
    message: str
    data: ErrorData


class Pong(TypedDict):
    result: Literal["pong"]


class Version(TypedDict):
    version: str
    protocol: int


class Daemon(TypedDict):
    version: str
    pid: int
    state: str  #: "running"; what else it may say is the daemon's own life: "starting", "stopping"
    started_at: str
    uptime_seconds: float
    config_path: str


class PerState(TypedDict):
    """One number for each state of an object."""

    seen: int
    pulling: int
    staged: int
    pushing: int
    delivered: int
    gone: int
    parked: int


class Rates(TypedDict):
    pull_bytes_per_second: float | None
    push_bytes_per_second: float | None


class Moved(TypedDict):
    pull_bytes: int
    push_bytes: int


class LastScan(TypedDict):
    started_at: str
    finished_at: str | None
    objects: int
    complete: bool


class LastResync(TypedDict):
    started_at: str
    finished_at: str | None  #: null: it is under way, and what follows is what it found so far
    prefix: str
    deep: bool
    dry_run: bool
    compared: int
    totals: ResyncTotals
    rearmed: int
    complete: bool  #: both sides were listed to their end


class Concurrency(TypedDict):
    """How much a run takes on at a time."""

    workers: int  #: objects
    parts: int  #: ranges or parts of one object
    why: str
    #: Between what both are chosen.
    workers_min: NotRequired[int]
    workers_max: NotRequired[int]
    parts_min: NotRequired[int]
    parts_max: NotRequired[int]
    #: Of a push: in parts of so many bytes went of late what would go in one PUT; null: in one PUT.
    upload_part_bytes: NotRequired[int | None]
    upload_part_why: NotRequired[str]


class Portion(TypedDict):
    """How much is pulled together at most; a small backlog is cut finer."""

    bytes: int
    objects: int
    why: str


class JobConcurrency(TypedDict):
    pull: Concurrency | None  #: null: no run yet
    push: Concurrency | None
    chunk: NotRequired[Portion]


class Job(TypedDict):
    name: str
    state: str  #: running idle paused blocked failed
    paused_until: str | None
    reason: str | None
    objects: PerState
    bytes: PerState
    rates: Rates
    eta_seconds: float | None
    last_scan: LastScan | None
    last_delivery_at: str | None
    #: Of the bytes `pulling` and `pushing`, those that have moved; never more than these.
    under_way: NotRequired[Moved]
    moved: NotRequired[Moved]  #: since the daemon started, repeated attempts included
    last_resync: NotRequired[LastResync | None]  #: since the daemon started
    concurrency: NotRequired[JobConcurrency]


class Volume(TypedDict):
    name: str
    path: str
    uuid: str | None
    state: str  #: online draining full missing foreign readonly failed
    free_bytes: int | None
    staged_bytes: int | None


class Endpoint(TypedDict):
    job: str
    side: str
    url: str
    state: str  #: up degraded down unknown
    latency_ms: float | None
    last_error: str | None
    insecure: NotRequired[bool]  #: TLS without a look at the certificate: `tls.verify: false`


class Problem(TypedDict):
    code: str
    subject: NotRequired[str]  #: the job, volume or endpoint it is about
    message: str
    hint: str
    since: str | None


class Status(TypedDict):
    daemon: Daemon
    jobs: list[Job]
    volumes: list[Volume]
    endpoints: list[Endpoint]
    problems: list[Problem]


class StatusAndEvents(Status):
    events: list[Event]  #: the latest that are no routine, oldest first; only where they are asked for


class PausedJob(TypedDict):
    name: str
    result: Literal["paused", "already_paused"]


class Paused(TypedDict):
    jobs: list[PausedJob]


class ResumedJob(TypedDict):
    name: str
    result: Literal["resumed", "already_running"]


class Resumed(TypedDict):
    jobs: list[ResumedJob]


# By call, because `pass` is a word of Python.
Scan = TypedDict(
    "Scan",
    {
        "name": str,
        "pass": int | None,
        "result": Literal["scan_started", "already_scanning", "scanned"],
        "objects": int | None,  #: that the source listed; null unless scanned
        "new": int | None,  #: of them, that must travel; null unless scanned
    },
)


class ResyncTotals(TypedDict):
    same: int
    missing: int  #: at the destination
    different: int
    extra: int  #: only at the destination
    errors: int  #: could not be compared
    under_way: NotRequired[int]  #: not delivered yet, and on their way; none of the above


class ResyncEntry(TypedDict):
    mark: Literal["=", "+", "*", "-", "!"]
    key: str
    detail: str | None


class Resync(TypedDict):
    name: str
    result: Literal["resync_started", "already_resyncing", "resynced"]
    dry_run: bool
    totals: ResyncTotals | None  #: null unless resynced
    rearmed: int | None  #: objects that will travel again; 0 in a dry run, null unless resynced
    entries: list[ResyncEntry]  #: the first of what is not `=`, as many as fit a line
    entries_omitted: int


class ObjectRow(TypedDict):
    id: int
    key: str  #: UTF-8 where it is, `\xNN` for bytes that are not
    size_bytes: int
    state: str
    etag: str | None
    evidence: str | None
    volume: str | None
    attempts: int
    reason: str | None
    since: str | None


class ObjectPage(TypedDict):
    objects: list[ObjectRow]
    next: str | None  #: give it as `after` to go on; null: there is no more


class StoryLine(TypedDict):
    at: str
    what: str
    detail: str | None


class FailedAttempt(TypedDict):
    at: str
    step: str
    endpoint: str | None
    volume: str | None
    code: str
    message: str


class Explanation(TypedDict):
    object: dict[str, str | int | float | bool | None]  #: every column of the ledger's row
    story: list[StoryLine]  #: in the order it happened
    failures: list[FailedAttempt]


class Retried(TypedDict):
    retried: int


class VolumeRow(Volume):
    total_bytes: int | None
    only_here_bytes: int | None  #: staged and not delivered: what would have to be pulled again without it
    #: One puller's, over the last chunks; it includes the way from the source.
    pull_bytes_per_second: NotRequired[float | None]
    only_here_objects: NotRequired[int | None]
    safe_to_remove: NotRequired[bool]  #: it was drained, is empty, and is not held open
    reason: str | None


class VolumeList(TypedDict):
    volumes: list[VolumeRow]


VolumeResult = Literal["draining", "already_draining", "activated", "already_active"]


class VolumeChange(TypedDict):
    name: str
    state: str
    result: VolumeResult
    staged_bytes: int | None
    only_here_bytes: NotRequired[int | None]
    safe_to_remove: NotRequired[bool]
    reason: NotRequired[str | None]


class EndpointCheck(TypedDict):
    at: str
    ok: bool
    list_version: Literal["1", "2"] | None
    listing: Literal["ordered", "unordered"] | None
    part_number: bool | None  #: whether a HEAD tells the size of one part
    s5cmd: bool | None  #: reads there; False: what only the native engine can


class EndpointRow(Endpoint):
    errors: int | None  #: since the daemon started
    checked_at: str | None
    #: What the last `s5jtd check` found out that is used; null: nothing.
    check: NotRequired[EndpointCheck | None]


class EndpointList(TypedDict):
    endpoints: list[EndpointRow]


class BandwidthLimit(TypedDict):
    direction: Literal["pull", "push"]
    limit_bytes_per_second: int | None  #: null: unlimited; 0: nothing may move, by the timetable
    set_by: Literal["config", "operator"]
    rate_bytes_per_second: float | None  #: what moves now
    next_change_at: str | None  #: by the timetable
    timezone: NotRequired[str]  #: that the timetable is read in


class Bandwidth(TypedDict):
    limits: list[BandwidthLimit]


# By call, because `pass` is a word of Python.
ReportRow = TypedDict(
    "ReportRow",
    {
        "id": int,  #: the epoch the report is filed under
        "timestamp": str,
        "job": str,
        "pass": int,
        "status": str,
        "duration_seconds": float,
        "files_synced": int,
        "bytes_transferred": int,
        "failed": int,
        "parked": int,
    },
)


class ReportList(TypedDict):
    reports: list[ReportRow]


class ReportChecksums(TypedDict):
    enabled: bool
    algorithm: str
    verified: bool
    errors: int


class ReportEvidence(TypedDict):
    checksum: int
    etag: int
    readback: int
    size: int


class ReportObject(TypedDict):
    key: str
    size_bytes: int
    etag: str | None
    evidence: str | None
    pulled_at: str | None
    delivered_at: str | None
    seconds: float | None
    endpoint: str | None
    error: str | None


Report = TypedDict(
    "Report",
    {
        "timestamp": str,
        "duration_seconds": float,
        "files_synced": int,
        "bytes_transferred": int,
        "source_size": str,
        "s3_objects": int,
        "status": str,  #: success partial failed interrupted
        "tool": str,
        "engine": str,
        "throughput_mbps": float,  #: megabytes per second
        "source": str,
        "destination": str,
        "checksum_verification": ReportChecksums,
        "job": str,
        "pass": int,
        "skipped": int,
        "failed": int,
        "parked": int,
        "retried": int,
        "evidence": ReportEvidence,
        "endpoints": list[str],
        "volumes": list[str],
        "objects": NotRequired[list[ReportObject]],  #: only where asked for, and a page of them
        "next": NotRequired[str | None],  #: beside them; give it as `after` to go on; null: there is no more
        "objects_file": NotRequired[str],
        "id": NotRequired[int],  #: the epoch it is filed under
        "started_at": NotRequired[str],
        "ended_at": NotRequired[str],  #: when the last thing happened that it tells
        "found": NotRequired[int],  #: of those skipped, newly seen and at the destination already
        "gone": NotRequired[int],  #: no longer at the source when their turn came
        "left": NotRequired[int],  #: objects still on their way; a later report tells of them
        "error": NotRequired[str | None],  #: why the look did not see all of the source
    },
)


class Reloaded(TypedDict):
    result: Literal["reloaded"]
    changed: list[str]  #: settings in force from now on
    kept: list[str]  #: settings that differ in the file but need a restart
    given: NotRequired[list[str]]  #: credentials that the service manager hands out at the start alone


class Subscribed(TypedDict):
    result: Literal["subscribed"]


class Event(TypedDict):
    id: int  #: one more than the event before it
    at: str
    event: str
    job: str | None
    message: str
    level: NotRequired[str]  #: info warning error
    data: NotRequired[dict[str, object]]  #: what the log's record carries besides; names may come and go


class EventEnd(TypedDict):
    reason: Literal["complete", "stopping", "failed"]
