"""The answer to `status`: what is true now, from counters that cost the same at any size."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from s5jtd import __version__, shapes
from s5jtd.errors import VolumeError
from s5jtd.ledger.rows import FOREVER_MS, Pass, Pauses
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.link.tuning import Lane, Tuner
from s5jtd.meter import Meter, Pace
from s5jtd.model import Direction, Learned, printable
from s5jtd.pool import Pool
from s5jtd.problems import Problems
from s5jtd.s3.endpoints import EndpointStatus
from s5jtd.stages.findings import Mark, Run
from s5jtd.stages.job import Job, Link
from s5jtd.volumes.volume import Volume, VolumeState


def rfc3339(milliseconds: int | None) -> str | None:
    """Unix milliseconds as people and JSON want them."""
    if milliseconds is None:
        return None
    return (
        datetime.fromtimestamp(milliseconds / 1000, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def eta_seconds(*halves: tuple[int, int, Pace | None]) -> float | None:
    """When the slowest is done of halves that go on side by side; None where one that has work has no pace.

    Each half is the bytes and the objects that it has left, and its pace.
    """
    times = []
    for size, objects, pace in halves:
        if not objects:
            continue
        if pace is None:
            return None
        times.append(pace.seconds(size, objects))
    return round(max(times), 1) if times else None


class StatusDesk:
    """Builds the answer from the parts that know."""

    def __init__(
        self, ledger: Ledger, pool: Pool, meter: Meter, tuner: Tuner, problems: Problems, config_path: str
    ) -> None:
        """Built once; `state` is set by the daemon as its life goes on."""
        self._ledger = ledger
        self._pool = pool
        self._meter = meter
        self._tuner = tuner
        self._problems = problems
        self._config_path = config_path
        self._started_ms = int(time.time() * 1000)
        self._started = time.monotonic()
        self.state = "starting"

    def status(self, jobs: Sequence[Job]) -> shapes.Status:
        """All of it; `jobs` in the order they are to be shown."""
        staged = self._ledger.views.staged_bytes()
        return {
            "daemon": {
                "version": __version__,
                "pid": os.getpid(),
                "state": self.state,
                "started_at": rfc3339(self._started_ms) or "",
                "uptime_seconds": round(time.monotonic() - self._started, 1),
                "config_path": self._config_path,
            },
            "jobs": [self.job(job) for job in jobs],
            "volumes": [self.volume(volume, staged) for volume in self._pool.volumes],
            "endpoints": [line for job in jobs for line in endpoints(job)],
            "problems": [
                {
                    "code": problem.code,
                    "subject": problem.subject,
                    "message": problem.message,
                    "hint": problem.hint,
                    "since": rfc3339(int(problem.since * 1000)),
                }
                for problem in self._problems.now()
            ],
        }

    def job(self, job: Job) -> shapes.Job:
        """One job."""
        known = self._ledger.views.overview(job.id)
        objects, sizes, last = known.objects, known.sizes, known.last_pass
        state, reason = self._state(job, known.pauses, objects)
        # The ledger and the meter are asked one after the other; what was settled in between is not in both.
        pulled = min(self._meter.under_way_bytes(job.id, Direction.PULL), sizes["pulling"])
        pushed = min(self._meter.under_way_bytes(job.id, Direction.PUSH), sizes["pushing"])
        return {
            "name": job.name,
            "state": state,
            "paused_until": _paused_until(known.pauses),
            "reason": reason,
            "objects": _per_state(objects),
            "bytes": _per_state(sizes),
            "rates": {
                "pull_bytes_per_second": round(self._meter.bytes_per_second(job.id, Direction.PULL)),
                "push_bytes_per_second": round(self._meter.bytes_per_second(job.id, Direction.PUSH)),
            },
            "under_way": {"pull_bytes": pulled, "push_bytes": pushed},
            "moved": {
                "pull_bytes": self._meter.total_bytes(job.id, Direction.PULL),
                "push_bytes": self._meter.total_bytes(job.id, Direction.PUSH),
            },
            # What a source holds is not known before one look at it was complete.
            "eta_seconds": self._eta(job, objects, sizes)
            if state == "running" and known.seen_whole
            else None,
            "last_scan": None if last is None else _last_scan(last),
            "last_delivery_at": rfc3339(known.last_delivery_ms),
            "last_resync": _last_resync(job.resync.latest),
            "concurrency": {
                "pull": self._concurrency(job, Direction.PULL),
                "push": self._concurrency(job, Direction.PUSH),
                "chunk": self._portion(job),
            },
        }

    def _eta(self, job: Job, objects: dict[str, int], sizes: dict[str, int]) -> float | None:
        to_pull = ["seen", "pulling"]
        to_push = [*to_pull, "staged", "pushing"]

        def half(direction: Direction, states: list[str]) -> tuple[int, int, Pace | None]:
            # In direct mode what is under way stays `seen` until it is delivered.
            state = "seen" if job.config.mode == "direct" else f"{direction.value}ing"
            moved, ended = self._meter.under_way(job.id, direction)
            size = sum(sizes[one] for one in states) - min(moved, sizes[state])
            count = sum(objects[one] for one in states) - min(ended, objects[state])
            return size, count, self._meter.pace(job.id, direction)

        return eta_seconds(half(Direction.PULL, to_pull), half(Direction.PUSH, to_push))

    def _concurrency(self, job: Job, direction: Direction) -> shapes.Concurrency | None:
        choice = self._tuner.shown(Lane(job.id, direction))
        if choice is None:
            return None
        workers, parts = self._tuner.allowed
        found: shapes.Concurrency = {
            "workers": choice.workers, "parts": choice.parts, "why": choice.why,
            "workers_min": workers.least, "workers_max": workers.most,
            "parts_min": parts.least, "parts_max": parts.most,
        }  # fmt: skip
        if direction is Direction.PUSH:
            found |= {"upload_part_bytes": choice.cut_bytes, "upload_part_why": choice.cut_why}
        return found

    def _portion(self, job: Job) -> shapes.Portion:
        found = job.portion(self._tuner)
        return {"bytes": found.bytes, "objects": found.objects, "why": found.why}

    def _state(self, job: Job, pauses: Pauses, objects: dict[str, int]) -> tuple[str, str | None]:
        resting = [
            half
            for half, until in (("pull", pauses.pull_until_ms), ("push", pauses.push_until_ms))
            if until is not None
        ]
        if resting:
            return "paused", f"{' and '.join(resting)} paused by an operator"
        for link in (job.source, job.destination):
            if not link.endpoints.available():
                return "blocked", f"no endpoint of the {link.side} answers"
        if self.state == "starting":
            return "running", "what an earlier life left is settled first"
        is_staged = job.config.mode == "staged"
        if is_staged and not any(volume.state.gives_pushes for volume in self._pool.volumes):
            return "blocked", "no volume can be used"
        is_moving = job.under_way or any(
            objects[state.word] for state in (State.PULLING, State.STAGED, State.PUSHING)
        )
        if objects[State.SEEN.word]:
            return "blocked" if job.held and not is_moving else "running", job.held
        if is_moving:
            return "running", None
        return ("running" if job.scanning else "idle"), None

    def volume(self, volume: Volume, staged: Mapping[int, int]) -> shapes.Volume:
        """One volume; what is `staged`, by its id in the ledger."""
        free: int | None
        try:
            free = volume.space().free_bytes if volume.attached else None
        except VolumeError:
            free = None
        is_being_settled = volume.attached and volume.state is VolumeState.MISSING  # it is there
        return {
            "name": volume.name,
            "path": str(volume.path),
            "uuid": volume.uuid or None,
            "state": (VolumeState.ONLINE if is_being_settled else volume.state).value,
            "free_bytes": free,
            "staged_bytes": staged.get(volume.ledger_id, 0) if volume.ledger_id else None,
        }


def _last_scan(last: Pass) -> shapes.LastScan:
    return {
        "started_at": rfc3339(last.started_at_ms) or "",
        "finished_at": rfc3339(last.finished_at_ms),
        "objects": last.listed,
        "complete": last.complete,
    }


def _last_resync(run: Run | None) -> shapes.LastResync | None:
    """The newest run as `status` shows it, also while it is under way."""
    if run is None:
        return None
    return {
        "started_at": rfc3339(run.started_ms) or "",
        "finished_at": rfc3339(run.finished_ms),
        "prefix": printable(run.wish.prefix),
        "deep": run.wish.deep,
        "dry_run": run.wish.dry_run,
        "compared": run.compared,
        "totals": resync_totals(run),
        "rearmed": run.rearmed,
        "complete": run.complete,
    }


def resync_totals(run: Run) -> shapes.ResyncTotals:
    """What a resync counted."""
    totals = run.totals
    return {
        "same": totals[Mark.SAME],
        "missing": totals[Mark.MISSING],
        "different": totals[Mark.DIFFERENT],
        "extra": totals[Mark.EXTRA],
        "errors": totals[Mark.ERROR],
        "under_way": totals[Mark.UNDER_WAY],
    }


def endpoints(job: Job) -> list[shapes.Endpoint]:
    """The endpoints of both sides of a job."""
    return [_endpoint(job, link, shot) for link, shot in _snapshots(job)]


def endpoint_rows(job: Job) -> list[shapes.EndpointRow]:
    """The same with what is known of each besides."""
    return [
        {
            **_endpoint(job, link, shot),
            "errors": shot.errors,
            "checked_at": rfc3339(None if shot.checked_at is None else int(shot.checked_at * 1000)),
            "check": _check(shot.learned),
        }
        for link, shot in _snapshots(job)
    ]


def _check(learned: Learned | None) -> shapes.EndpointCheck | None:
    if learned is None:
        return None
    orders: dict[bool | None, Literal["ordered", "unordered"] | None] = {True: "ordered", False: "unordered"}
    return {
        "at": rfc3339(learned.checked_at_ms) or "",
        "ok": bool(learned.ok),
        "list_version": "1" if learned.list_version == "1" else "2" if learned.list_version else None,
        "listing": orders.get(learned.is_ordered),
        "part_number": learned.part_numbers,
        "s5cmd": learned.s5cmd,
    }


def _snapshots(job: Job) -> Iterator[tuple[Link, EndpointStatus]]:
    for link in (job.source, job.destination):
        for shot in link.endpoints.snapshot():
            yield link, shot


def _endpoint(job: Job, link: Link, shot: EndpointStatus) -> shapes.Endpoint:
    return {
        "job": job.name,
        "side": link.side.value,
        "url": shot.url,
        "state": shot.state,
        "latency_ms": shot.latency_ms,
        "last_error": shot.last_error,
        "insecure": shot.insecure,
    }


def _per_state(numbers: dict[str, int]) -> shapes.PerState:
    return {
        "seen": numbers["seen"],
        "pulling": numbers["pulling"],
        "staged": numbers["staged"],
        "pushing": numbers["pushing"],
        "delivered": numbers["delivered"],
        "gone": numbers["gone"],
        "parked": numbers["parked"],
    }


def _paused_until(pauses: Pauses) -> str | None:
    ends = [until for until in (pauses.pull_until_ms, pauses.push_until_ms) if until is not None]
    return rfc3339(max(ends)) if ends and FOREVER_MS not in ends else None
