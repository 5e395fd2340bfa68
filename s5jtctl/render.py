"""Every other answer as text.  Pure: a reply in, lines out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s5jtctl import units
from s5jtctl.status import INSECURE, latency, ordered_volumes
from s5jtctl.terminal import Look
from s5jtctl.text import paint, paint_state, safe, table

# Replies may come from a newer or older daemon: what was added after the first version is read with
# `get`, what was there from the beginning is promised.
Reply = Mapping[str, Any]

_MARKS = {
    "=": ("same", "same"),
    "+": ("missing", "missing at the destination"),
    "*": ("different", "different"),
    "-": ("extra", "only at the destination"),
    "!": ("errors", "could not be compared"),
}


def ping(reply: Reply, _look: Look) -> list[str]:
    return [safe(reply["result"])]


def results(reply: Reply, _look: Look) -> list[str]:
    """One line for each job: what became of the request."""
    return [f"{safe(job['name'])}: {_words(job['result'])}" for job in reply["jobs"]] or ["there is no job"]


def scan(reply: Reply, _look: Look) -> list[str]:
    line = f"{safe(reply['name'])}: {_words(reply['result'])}"
    if reply["pass"] is not None:
        line += f", pass {reply['pass']}"
    if reply["objects"] is not None:
        line += f": {units.count(reply['objects'])} objects, {units.count(reply['new'])} must travel"
    return [line]


def resync(reply: Reply, look: Look) -> list[str]:
    lines = [
        f"{safe(entry['mark'])} {safe(entry['key'])}{_aside(entry['detail'])}" for entry in reply["entries"]
    ]
    if omitted := reply["entries_omitted"]:
        lines.append(f"  and {units.count(omitted)} more")
    totals = reply["totals"]
    if totals is None:
        started = f"{safe(reply['name'])}: {_words(reply['result'])}"
        return [
            *lines,
            f"{started}; its totals: s5jtctl status {safe(reply['name'])}; to wait for all it finds: --wait",
        ]
    column = max(len(units.count(totals[name])) for name, _ in _MARKS.values())
    if lines:
        lines.append("")
    for mark, (name, words) in _MARKS.items():
        colour = "red" if mark in "*!" and totals[name] else None
        lines.append(paint(f"{mark} {units.count(totals[name]):>{column}} {words}", colour, on=look.colour))
    if under_way := totals.get("under_way"):
        lines.append(f"  {units.count(under_way):>{column}} on their way already, left alone")
    rearmed = units.count(reply["rearmed"])
    lines.append("dry run: nothing was changed" if reply["dry_run"] else f"{rearmed} will travel again")
    return lines


def objects(reply: Reply, look: Look) -> list[str]:
    """The key stands last and whole, so that it can be copied."""
    if not reply["objects"]:
        return ["no such object"]
    rows = [
        [
            safe(row["state"]),
            units.amount(row["size_bytes"]),
            safe(row["evidence"]),
            safe(row["volume"]),
            safe(row["attempts"]),
            safe(row["since"]),
            safe(row["key"]) + _aside(row["reason"]),
        ]
        for row in reply["objects"]
    ]
    return _tabled("STATE >SIZE EVIDENCE VOLUME >TRIES SINCE KEY", rows, look)


#: Of what is known of an object; the rest of it is for whoever looks into the ledger.
_ASKED_FIRST = (
    "state", "reason", "since", "size", "volume", "attempts", "not_before", "pull_evidence", "push_evidence",
    "etag", "destination_etag",
)  # fmt: skip


def explain(reply: Reply, look: Look) -> list[str]:
    """The story of one object: what is known, what happened in order, what failed."""
    row = reply["object"]
    lines = [paint(safe(row.get("key")), "bold", on=look.colour)]
    known = [name for name in row if name != "key" and row[name] is not None]
    names = [*(name for name in _ASKED_FIRST if name in known), *(n for n in known if n not in _ASKED_FIRST)]
    column = max(map(len, names), default=0)
    lines += [f"  {safe(name):<{column}}  {_value(name, row[name])}" for name in names]
    lines += ["", paint("STORY", "bold", on=look.colour)]
    lines += [
        f"{safe(line['at'])}  {safe(line['what'])}{_aside(line['detail'])}" for line in reply["story"]
    ] or ["nothing has happened to it yet"]
    told = {line["what"] for line in reply["story"]}
    if reply["failures"] and not told & {"failed", "interrupted"}:  # by a daemon before them
        rows = [
            [
                safe(each["at"]),
                safe(each["step"]),
                safe(each["volume"]),
                safe(each["endpoint"]),
                f"{safe(each['code'])}: {safe(each['message'])}",
            ]
            for each in reply["failures"]
        ]
        lines += ["", *_headed("FAILED STEP VOLUME ENDPOINT WHY", rows, look)]
    return lines


def retried(reply: Reply, _look: Look) -> list[str]:
    return [f"{units.count(reply['retried'])} will travel again"]


def volumes(reply: Reply, look: Look) -> list[str]:
    if not reply["volumes"]:
        return ["there is no volume"]
    ordered: Sequence[Any] = ordered_volumes(reply["volumes"])
    rows = [
        [
            safe(volume["state"]),
            safe(volume["name"]),
            units.amount(volume["total_bytes"]),
            units.amount(volume["free_bytes"]),
            units.amount(volume["staged_bytes"]),
            units.amount(volume["only_here_bytes"]),
            safe(volume["path"]),
        ]
        for volume in ordered
    ]
    heading, *lines = _tabled("STATE VOLUME >SIZE >FREE >STAGED >ONLY-HERE PATH", rows, look)
    told = [f"  {safe(volume['reason'])}" if volume["reason"] else "" for volume in ordered]
    return [heading, *(text for pair in zip(lines, told, strict=True) for text in pair if text)]


def volume_change(reply: Reply, _look: Look) -> list[str]:
    staged = units.amount(reply["staged_bytes"])
    lines = [
        f"{safe(reply['name'])}: {_words(reply['result'])}, state {safe(reply['state'])}, {staged} staged"
    ]
    if reply.get("reason"):
        lines.append(f"  {safe(reply['reason'])}")
    return lines


def endpoints(reply: Reply, look: Look) -> list[str]:
    if not reply["endpoints"]:
        return ["there is no endpoint"]
    rows = [
        [
            safe(each["state"]),
            latency(each["latency_ms"]),
            units.count(each["errors"]),
            safe(each["checked_at"]),
            safe(each["side"]),
            safe(each["job"]),
            safe(each["url"]) + _aside(INSECURE if each.get("insecure") else "") + _aside(each["last_error"]),
        ]
        for each in reply["endpoints"]
    ]
    return _tabled("STATE >LATENCY >ERRORS CHECKED SIDE JOB URL", rows, look)


def bandwidth(reply: Reply, look: Look) -> list[str]:
    rows = []
    for limit in reply["limits"]:
        allowed = limit["limit_bytes_per_second"]
        by = "by an operator" if limit["set_by"] == "operator" else "as configured"
        change = limit["next_change_at"]
        rows.append(
            [
                safe(limit["direction"]),
                "unlimited" if allowed is None else units.rate(allowed),
                units.rate(limit["rate_bytes_per_second"]),
                by + (f", changes {safe(units.ahead(change, look.now))}" if change else ""),
            ]
        )
    return _headed("DIRECTION >LIMIT >NOW SET", rows, look)


def reports(reply: Reply, look: Look) -> list[str]:
    if not reply["reports"]:
        return ["there is no report"]
    rows = [
        [
            safe(each["status"]),
            safe(each["id"]),
            units.count(each["files_synced"]),
            units.amount(each["bytes_transferred"]),
            units.span(each["duration_seconds"]),
            units.count(each["failed"]),
            units.count(each["parked"]),
            f"{safe(each['timestamp'])}  {safe(each['job'])}, pass {safe(each['pass'])}",
        ]
        for each in reply["reports"]
    ]
    return _tabled("STATUS >ID >FILES >BYTES >TOOK >FAILED >PARKED REPORT", rows, look)


def report(reply: Reply, look: Look) -> list[str]:
    """Every member in its order; the objects, where they were asked for, as a table below."""
    lines = []
    plain = {name: value for name, value in reply.items() if name not in ("objects", "next")}
    column = max(map(len, plain), default=0)
    for name, value in plain.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {_value(key, inner)}" for key, inner in value.items())  # noqa: PLW2901
        elif isinstance(value, list):
            value = ", ".join(safe(item) for item in value) or None  # noqa: PLW2901
        lines.append(f"{safe(name):<{column}}  {_value(name, value)}")
    if moved := reply.get("objects"):
        rows = [
            [
                safe(each["evidence"]),
                units.amount(each["size_bytes"]),
                units.span(each["seconds"]),
                safe(each["delivered_at"]),
                safe(each["key"]) + _aside(each["error"]),
            ]
            for each in moved
        ]
        lines += ["", *_headed("EVIDENCE >SIZE >TOOK DELIVERED KEY", rows, look)]
    return lines


def reloaded(reply: Reply, _look: Look) -> list[str]:
    lines = [_words(reply["result"])]
    lines += [f"  in force: {safe(name)}" for name in reply["changed"]]
    lines += [f"  not before a restart: {safe(name)}" for name in reply["kept"]]
    if len(lines) == 1:
        lines = [f"{lines[0]}, nothing differs"]
    # Whether they changed cannot be seen from inside, so it is said each time.
    given = [safe(name) for name in reply.get("given", ())]
    return lines + [f"  not read again before a restart: {name}" for name in given]


def event(reply: Reply) -> str:
    job = f"  {safe(reply['job'])}" if reply["job"] else ""
    return f"{safe(reply['at'])}{job}  {safe(reply['event'])}  {safe(reply['message'])}".rstrip()


def _words(result: object) -> str:
    return safe(result).replace("_", " ")


def _aside(detail: object) -> str:
    return f"  ({safe(detail)})" if detail else ""


def _value(name: str, value: object) -> str:
    """A value by what its name says it is; the exact number stays, since it is what people compare."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if ("bytes" in name or name == "size") and value >= units.KIB:
            return f"{value:,} ({units.amount(value)})"
        if name.endswith("_seconds") and value >= units.MINUTE:
            return f"{value:g} ({units.span(value)})"
    return safe(value)


def _headed(headings: str, rows: list[list[str]], look: Look) -> list[str]:
    heading, *lines = table(headings, rows)
    return [paint(heading, "bold", on=look.colour), *lines]


def _tabled(headings: str, rows: list[list[str]], look: Look) -> list[str]:
    """A table whose first column is a state."""
    heading, *lines = _headed(headings, rows, look)
    return [
        heading,
        *(paint_state(line, row[0], on=look.colour) for line, row in zip(lines, rows, strict=True)),
    ]


Renderer = Callable[[Reply, Look], list[str]]
