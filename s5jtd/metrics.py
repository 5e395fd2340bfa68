"""The daemon's status as Prometheus reads it: the one definition for the file of metrics and the log API.

Pure.  Labels are names out of the configuration and words of ours; never a key, of which there are too many.
That of a job is `s5jtd_job`, since Prometheus gives each target a `job` of its own.  What is unknown has no
sample, rather than one that lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from s5jtd.events import PROBLEMS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_JOB_STATES = ("running", "idle", "paused", "blocked", "failed")
_VOLUME_STATES = ("online", "draining", "full", "missing", "foreign", "readonly", "failed")
_ENDPOINT_STATES = ("up", "degraded", "down", "unknown")


class Sample(NamedTuple):
    """One value, and whose it is."""

    value: float | None
    labels: Mapping[str, str]


class Family(NamedTuple):
    """All samples of one name: a counter where it ends in `_total`, else a gauge."""

    name: str
    meaning: str
    samples: Iterable[Sample]


def of_status(status: Mapping[str, Any]) -> Iterator[Family]:
    """What a daemon that answers has to say."""
    yield _one("s5jtd_up", "Whether the daemon answers.", 1)
    yield from _daemon(status)
    yield from _jobs(status["jobs"])
    yield from _volumes(status["volumes"])
    yield from _endpoints(status["endpoints"])


def of_none() -> Iterator[Family]:
    """The daemon did not answer, and only that is said."""
    yield _one("s5jtd_up", "Whether the daemon answers.", 0)


def one(name: str, meaning: str, value: float | None) -> Family:
    """A family of one sample without labels."""
    return _one(name, meaning, value)


def text(families: Iterable[Family]) -> bytes:
    """The text of a scrape."""
    return "".join(line for family in families for line in _lines(family)).encode()


def _daemon(status: Mapping[str, Any]) -> Iterator[Family]:
    daemon = status["daemon"]
    version = Sample(1, {"version": daemon["version"]})
    yield Family("s5jtd_build_info", "The daemon's version.", [version])
    yield _one("s5jtd_start_time_seconds", "When the daemon started.", _epoch(daemon["started_at"]))
    counts = dict.fromkeys(PROBLEMS, 0)  # each code that may come: an alert need not know absence
    for problem in status["problems"]:
        counts[problem["code"]] = counts.get(problem["code"], 0) + 1
    yield Family(
        "s5jtd_problems",
        "What is wrong now, by code.",
        [Sample(count, {"code": code}) for code, count in counts.items()],
    )


def _jobs(jobs: list[dict[str, Any]]) -> Iterator[Family]:
    def each(name: str, meaning: str, value: Any) -> Family:
        return Family(
            f"s5jtd_job_{name}", meaning, [Sample(value(job), {"s5jtd_job": job["name"]}) for job in jobs]
        )

    def per_state(name: str, meaning: str) -> Family:
        samples = [
            Sample(number, {"s5jtd_job": job["name"], "state": state})
            for job in jobs
            for state, number in job[name].items()
        ]
        return Family(f"s5jtd_job_{name}", meaning, samples)

    def scan(job: dict[str, Any], member: str) -> Any:
        return (job["last_scan"] or {}).get(member)

    yield _states("s5jtd_job_state", "What a job does.", jobs, {"s5jtd_job": "name"}, _JOB_STATES)
    yield per_state("objects", "Objects of a job, by their state.")
    yield per_state("bytes", "Bytes of these objects.")
    yield Family(
        "s5jtd_job_rate_bytes_per_second",
        "What a half of a job moves.",
        [
            Sample(job["rates"][f"{half}_bytes_per_second"], {"s5jtd_job": job["name"], "direction": half})
            for job in jobs
            for half in ("pull", "push")
        ],
    )
    yield Family(
        "s5jtd_job_moved_bytes_total",
        "What a half of a job moved since the daemon started, repeated attempts included.",
        [
            Sample(job["moved"][f"{half}_bytes"], {"s5jtd_job": job["name"], "direction": half})
            for job in jobs
            if "moved" in job  # an older daemon does not tell
            for half in ("pull", "push")
        ],
    )
    yield each("eta_seconds", "Until all that is known has arrived.", lambda job: job["eta_seconds"])
    yield each(
        "last_delivery_timestamp_seconds",
        "When an object last arrived.",
        lambda job: _epoch(job["last_delivery_at"]),
    )
    yield each(
        "last_scan_timestamp_seconds",
        "When the last look at the source ended.",
        lambda job: _epoch(scan(job, "finished_at")),
    )
    yield each("last_scan_complete", "Whether it saw all of the source.", lambda job: scan(job, "complete"))
    yield each("last_scan_objects", "How many objects it saw.", lambda job: scan(job, "objects"))


def _volumes(volumes: list[dict[str, Any]]) -> Iterator[Family]:
    yield _states("s5jtd_volume_state", "How a volume is.", volumes, {"volume": "name"}, _VOLUME_STATES)
    for member, meaning in (
        ("free_bytes", "What may still be written to a volume."),
        ("staged_bytes", "What waits on a volume for its delivery."),
    ):
        samples = [Sample(volume[member], {"volume": volume["name"]}) for volume in volumes]
        yield Family(f"s5jtd_volume_{member}", meaning, samples)


def _endpoints(endpoints: list[dict[str, Any]]) -> Iterator[Family]:
    whose = {"s5jtd_job": "job", "side": "side", "url": "url"}
    yield _states("s5jtd_endpoint_state", "How an endpoint is.", endpoints, whose, _ENDPOINT_STATES)
    samples = [
        Sample(None if each["latency_ms"] is None else each["latency_ms"] / 1000, _labels(each, whose))
        for each in endpoints
    ]
    yield Family("s5jtd_endpoint_latency_seconds", "How long an endpoint takes to answer.", samples)


def _states(
    name: str, meaning: str, things: list[dict[str, Any]], whose: Mapping[str, str], known: tuple[str, ...]
) -> Family:
    """1 for the state each is in and 0 for the others, so that a query need not know absence."""
    samples = [
        Sample(state == thing["state"], {**_labels(thing, whose), "state": state})
        for thing in things
        for state in dict.fromkeys((*known, thing["state"]))  # a newer daemon may know more
    ]
    return Family(name, meaning, samples)


def _labels(thing: Mapping[str, str], whose: Mapping[str, str]) -> dict[str, str]:
    return {label: thing[member] for label, member in whose.items()}


def _one(name: str, meaning: str, value: float | None) -> Family:
    return Family(name, meaning, [Sample(value, {})])


def _epoch(time: str | None) -> float | None:
    return datetime.fromisoformat(time).timestamp() if time else None


def _lines(family: Family) -> Iterator[str]:
    known = [(value, labels) for value, labels in family.samples if value is not None]
    if known:
        kind = "counter" if family.name.endswith("_total") else "gauge"
        yield f"# HELP {family.name} {family.meaning}\n# TYPE {family.name} {kind}\n"
    for value, labels in known:
        inner = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
        yield f"{family.name}{f'{{{inner}}}' if inner else ''} {float(value)!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
