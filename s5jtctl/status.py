"""The status screen, and the one line of it that monitoring wants.  Pure: a reply in, lines out."""

from __future__ import annotations

from enum import IntEnum

from s5jtctl import units
from s5jtctl.terminal import Look
from s5jtctl.text import cut, pad, paint, paint_state, safe, table, width, wrap

TYPE_CHECKING = False
if TYPE_CHECKING:  # somebody waits for what is loaded
    from collections.abc import Sequence
    from datetime import datetime

    from s5jtd.shapes import Concurrency, Daemon, Endpoint, Job, LastResync, PerState, Problem, Status, Volume

_TO_GO = ("seen", "pulling", "staged", "pushing")
# What needs a person comes first; a state from a newer daemon is shown before all, rather than hidden.
_JOB_ORDER = ("failed", "blocked", "paused", "running", "idle")
_VOLUME_ORDER = ("failed", "missing", "foreign", "readonly", "full", "draining", "online")
#: Codes of problems that `verdict` has told already where it said these words.
_TOLD = {"endpoint_down": " endpoint ", "volume_": "volume ", "objects_parked": " parked in "}
#: One line is read on a pager.
_SAID_MAX = 6
_ENDPOINT_ORDER = ("down", "degraded", "unknown", "up")


class Level(IntEnum):
    """What a monitoring plug-in exits with."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


def status(reply: Status, look: Look) -> list[str]:
    """The whole screen; no line is wider than `look.width`."""
    sections = [
        wrap(headline(reply["daemon"]), look.width),
        _problems(reply["problems"], look),
        _jobs(reply["jobs"], look),
        _volumes(reply["volumes"], look),
        endpoints(reply["endpoints"], look),
    ]
    lines: list[str] = []
    for section in filter(None, sections):
        lines += ["", *section] if lines else section
    return lines


def verdict(reply: Status) -> tuple[Level, str]:
    """CRITICAL where something stands still, WARNING where a person should look, in one line."""
    critical, warning = [], []
    if (state := reply["daemon"]["state"]) != "running":
        warning.append(f"the daemon is {state}")
    for job in reply["jobs"]:
        if job["state"] in ("failed", "blocked"):
            critical.append(f"job {job['name']} is {job['state']}: {job['reason'] or 'no reason given'}")
        elif job["state"] == "paused":
            warning.append(f"job {job['name']} is paused")
        if parked := job["objects"]["parked"]:
            warning.append(f"{units.count(parked)} parked in {job['name']}")
    usable = ("online", "draining", "full")
    # One that is not looked at yet is not lost; what is wrong with it would stand among the problems.
    lost = [one for one in reply["volumes"] if one["state"] not in usable and state != "starting"]
    (critical if lost and len(lost) == len(reply["volumes"]) else warning).extend(
        f"volume {volume['name']} is {volume['state']}" for volume in lost
    )
    warning += [
        f"{endpoint['side']} endpoint {endpoint['url']} is {endpoint['state']}"
        for endpoint in reply["endpoints"]
        if endpoint["state"] in ("down", "degraded")
    ]
    # What was said of jobs, volumes and endpoints above is not said twice.
    told = tuple(code for code, said in _TOLD.items() if any(said in words for words in critical + warning))
    warning += [one["message"] for one in reply["problems"] if not one["code"].startswith(told)]
    if critical or warning:
        words = [*critical, *warning]
        more = [f"and {len(words) - _SAID_MAX} more"] if len(words) > _SAID_MAX else []
        return Level.CRITICAL if critical else Level.WARNING, safe("; ".join([*words[:_SAID_MAX], *more]))
    to_go = sum(_sum(job["objects"], _TO_GO) for job in reply["jobs"])
    jobs = len(reply["jobs"])
    return Level.OK, f"{jobs} job{'' if jobs == 1 else 's'}, {units.count(to_go)} objects to go"


def check(level: Level, words: str) -> str:
    """The line that monitoring reads."""
    return f"s5jtd {level.name} - {safe(words)}"


def headline(daemon: Daemon) -> str:
    """The daemon in one line."""
    up = f"{daemon['state']} for {units.span(daemon['uptime_seconds'])}"
    return safe(f"s5jtd {daemon['version']} {up}, pid {daemon['pid']}, {daemon['config_path']}")


def _problems(problems: list[Problem], look: Look) -> list[str]:
    if not problems:
        return []
    lines = [paint("PROBLEMS", "bold", on=look.colour)]
    for problem in problems:
        first, *rest = wrap(safe(problem["message"]), look.width, "  ") or [f"  {safe(problem['code'])}"]
        lines += [paint("!", "red", on=look.colour) + first[1:], *rest]
        if problem["hint"]:
            lines += wrap(f"hint: {safe(problem['hint'])}", look.width, "  ")
        if since := problem["since"]:
            lines += wrap(f"since {safe(since)}, {safe(units.ago(since, look.now))}", look.width, "  ")
    return lines


def _jobs(jobs: list[Job], look: Look) -> list[str]:
    lines = [paint("JOBS", "bold", on=look.colour)]
    column = min(22, max((width(safe(job["name"])) for job in jobs), default=0))
    for job in ordered_jobs(jobs):
        lines += [*job_head(job, column, look), *_job_progress(job, look)]
    return lines if jobs else []


def ordered_jobs(jobs: Sequence[Job]) -> list[Job]:
    """What needs a person comes first."""
    return sorted(jobs, key=lambda job: (_rank(job["state"], _JOB_ORDER), job["name"]))


def ordered_volumes(volumes: Sequence[Volume]) -> list[Volume]:
    """The same for volumes."""
    return sorted(volumes, key=lambda volume: (_rank(volume["state"], _VOLUME_ORDER), volume["name"]))


def to_go(numbers: PerState) -> int:
    """What has not arrived and is not given up."""
    return _sum(numbers, _TO_GO)


def job_head(job: Job, name_columns: int, look: Look) -> list[str]:
    """State, name, rates, and why it is so; the name filled up to its columns."""
    state, rates = safe(job["state"]), job["rates"]
    name = cut(safe(job["name"]), look.width - 9)
    flow = (
        f"pull {units.rate(rates['pull_bytes_per_second'])}"
        f"  push {units.rate(rates['push_bytes_per_second'])}"
        f"  ETA {units.span(job['eta_seconds'])}"
    )
    line = f"{pad(state, 7)}  {pad(name, name_columns)}  {flow}"
    who = cut(f"{pad(state, 7)}  {name}", look.width)
    lines = [line] if width(line) <= look.width else [who, *wrap(flow, look.width, "  ")]
    lines[0] = paint_state(lines[0], state, on=look.colour)
    if until := job["paused_until"]:
        lines += wrap(f"paused until {safe(until)}, {safe(units.ahead(until, look.now))}", look.width, "  ")
    if job["reason"]:
        lines += wrap(f"reason: {safe(job['reason'])}", look.width, "  ")
    return lines


def _job_progress(job: Job, look: Look) -> list[str]:
    objects, sizes = job["objects"], job["bytes"]
    done, to_go = objects["delivered"], _sum(objects, _TO_GO)
    column = max(len(units.count(done)), len(units.count(to_go)))
    delivered = (
        f"delivered  {units.count(done):>{column}} objects  {units.amount(sizes['delivered']):>8}"
        f"  {_percent(objects, sizes)}"
    )
    if job["last_delivery_at"]:
        delivered += f"  last {safe(units.ago(job['last_delivery_at'], look.now))}"
    waiting = f"to go      {units.count(to_go):>{column}} objects  {units.amount(_sum(sizes, _TO_GO)):>8}"
    states = [f"{units.count(objects[state])} {state}" for state in _TO_GO]  # type: ignore[literal-required]
    parked = f"{units.count(objects['parked'])} parked"
    lines = [f"  {cut(delivered, look.width - 2)}", f"  {cut(waiting, look.width - 2)}"]
    if (moved := job.get("under_way")) and any(moved.values()):
        halves = [
            f"{units.amount(moved[f'{half}_bytes'])} of {units.amount(sizes[state])} {half}ed"  # type: ignore[literal-required]
            for state, half in (("pulling", "pull"), ("pushing", "push"))
            if objects[state]  # type: ignore[literal-required]
        ]
        lines += wrap(f"under way  {', '.join(halves)}", look.width, "  ") if halves else []
    lines += _at_a_time(job, look)
    detail = f"{', '.join(states)}, {units.count(objects['gone'])} gone, {parked}"
    lines += wrap(detail, look.width, "  ")
    if objects["parked"]:
        lines[-1] = lines[-1].removesuffix(parked) + paint(parked, "red", on=look.colour)
    lines += wrap(_scan(job, look.now), look.width, "  ")
    return [
        *lines,
        *(wrap(resync_line(last, look.now), look.width, "  ") if (last := job.get("last_resync")) else []),
    ]


def _at_a_time(job: Job, look: Look) -> list[str]:
    """How much was chosen to travel at a time, and why, of each half that moves."""
    chosen = job.get("concurrency")
    halves = (("pull", "pulling"), ("push", "pushing"))
    told = [
        f"{half} {choice['workers']} ({safe(choice['why'])}){_cut(choice)}"
        for half, state in halves
        if chosen and job["objects"][state] and (choice := chosen[half])  # type: ignore[literal-required]
    ]
    return wrap(f"at a time  {', '.join(told)}", look.width, "  ") if told else []


def _cut(choice: Concurrency) -> str:
    size = choice.get("upload_part_bytes")
    return f" in parts of {units.amount(size)} ({safe(choice.get('upload_part_why', ''))})" if size else ""


def _scan(job: Job, now: datetime) -> str:
    scan = job["last_scan"]
    if scan is None:
        return "source not scanned yet"
    seen = f"{units.count(scan['objects'])} objects"
    if scan["finished_at"] is None:
        return f"source being scanned, begun {safe(units.ago(scan['started_at'], now))}: {seen} so far"
    when = safe(units.ago(scan["finished_at"], now))
    return f"source scanned {when}: {seen}" if scan["complete"] else f"source scan broke off {when}: {seen}"


def resync_line(last: LastResync, now: datetime) -> str:
    """How far the newest resync is, or how it ended."""
    totals = last["totals"]
    kinds = (("missing", "missing"), ("different", "different"), ("errors", "not comparable"))
    found = [f"{units.count(totals[name])} {words}" for name, words in kinds if totals[name]]  # type: ignore[literal-required]
    said = f"{units.count(last['compared'])} compared, {', '.join(found) or 'nothing missing or different'}"
    if last["rearmed"]:
        said += f", {units.count(last['rearmed'])} will travel again"
    name = "deep resync" if last["deep"] else "resync"
    if last["prefix"]:
        name += f" of {safe(last['prefix'])}"
    if last["finished_at"] is None:
        return f"{name} under way, begun {safe(units.ago(last['started_at'], now))}: {said} so far"
    end = "" if last["complete"] else " broke off"
    return f"{name}{end} {safe(units.ago(last['finished_at'], now))}: {said}"


def _percent(objects: PerState, sizes: PerState) -> str:
    # Bytes say more, but a job of empty objects has none.
    return percent(sizes if _sum(sizes, (*_TO_GO, "parked", "delivered")) else objects, objects)


def percent(counted: PerState, objects: PerState) -> str:
    """The share that has arrived of all that must; rounded down, so that 100% means all of it."""
    whole = _sum(counted, (*_TO_GO, "parked", "delivered"))
    if not whole:
        return "-"
    share = 100 * counted["delivered"] // whole
    unfinished = _sum(objects, (*_TO_GO, "parked"))
    return f"{min(share, 99) if unfinished else share}%"


def _volumes(volumes: list[Volume], look: Look) -> list[str]:
    ordered = ordered_volumes(volumes)
    rows = [
        [
            safe(volume["state"]),
            safe(volume["name"]),
            units.amount(volume["staged_bytes"]),
            units.amount(volume["free_bytes"]),
            _fill(volume["staged_bytes"], volume["free_bytes"]),
            safe(volume["path"]),
        ]
        for volume in ordered
    ]
    return _states(table("STATE VOLUME >STAGED >FREE >FILL PATH", rows, look.width), rows, look)


def _fill(staged_bytes: int | None, free_bytes: int | None) -> str:
    """How much of what we may use is used: a reserve and the files of others are not ours to count."""
    if staged_bytes is None or free_bytes is None:
        return "-"
    usable_bytes = staged_bytes + free_bytes
    return f"{100 * staged_bytes // usable_bytes if usable_bytes else 100}%"


#: Of an endpoint, wherever it is shown.
INSECURE = "INSECURE: its certificate is not verified (tls.verify: false)"


def endpoints(endpoints: Sequence[Endpoint], look: Look, *, explained: bool = True) -> list[str]:
    """Each endpoint, and where asked for what is wrong with it."""
    ordered = sorted(
        endpoints,
        key=lambda each: (_rank(each["state"], _ENDPOINT_ORDER), each["job"], each["side"], each["url"]),
    )
    rows = [
        [
            safe(each["state"]),
            latency(each["latency_ms"]),
            safe(each["side"]),
            safe(each["url"]),
            safe(each["job"]),
        ]
        for each in ordered
    ]
    heading, *lines = _states(table("STATE >LATENCY SIDE URL JOB", rows, look.width), rows, look) or [""]
    shown = [heading] if heading else []
    for line, endpoint in zip(lines, ordered, strict=True):
        shown.append(line)
        if endpoint.get("insecure"):
            shown += wrap(INSECURE, look.width, "  ")
        if explained and endpoint["last_error"] and endpoint["state"] != "up":
            shown += wrap(f"last error: {safe(endpoint['last_error'])}", look.width, "  ")
    return shown


def latency(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.0f} ms"


def _states(lines: list[str], rows: list[list[str]], look: Look) -> list[str]:
    """Colour a table whose first column is a state; nothing where it has no rows."""
    if not rows:
        return []
    painted = [paint_state(line, row[0], on=look.colour) for line, row in zip(lines[1:], rows, strict=True)]
    return [paint(lines[0], "bold", on=look.colour), *painted]


def _sum(numbers: PerState, states: tuple[str, ...]) -> int:
    return sum(numbers[state] for state in states)  # type: ignore[literal-required]


def _rank(state: str, order: tuple[str, ...]) -> int:
    return order.index(state) if state in order else -1
