"""Which of a side's endpoints to use: health by circuit breaker, choice by load, return by probes.

The decisions are pure functions over frozen values; `Endpoints` holds the values, a lock and the clocks.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Final

from s5jtd.errors import EndpointDown, EndpointError, EndpointRefused, S5jtError
from s5jtd.model import Learned
from s5jtd.s3.client import S3Client

#: So many errors in a row open the breaker: fewer is a hiccup, more costs every chunk meanwhile.
_FAILURES_MAX: Final = 3
_BACKOFF_SECONDS: Final = 5.0
_BACKOFF_SECONDS_MAX: Final = 300.0
#: A breaker that opens again so soon, without a transfer in between, had been closed too early.
_RELAPSE_SECONDS: Final = 2 * _BACKOFF_SECONDS_MAX
#: What an endpoint refuses changes by somebody's hand, not in seconds.
_REFUSED_SECONDS_MIN: Final = 30.0
#: An endpoint that nobody used for so long is asked again, so that its state stays true.
_IDLE_SECONDS: Final = 60.0
#: What moved how fast is forgotten after this, so that one that was slow gets another chance.
_PACE_SECONDS: Final = 120.0
_PACE_WEIGHT: Final = 0.4  # of the newest run
#: The slowest counts as so much of the quickest; less would tell noise apart.
_PACE_MIN: Final = 0.1
#: So many objects of a run with wrong bytes, and more than came right: it is the endpoint and not they.
_WRONG_MIN: Final = 3
_LIAR_SECONDS: Final = 60.0
_LIAR_SECONDS_MAX: Final = 3600.0
_LATENCY_WEIGHT: Final = 0.2  # of the newest measurement
_ERROR_LENGTH_MAX: Final = 500


class EndpointState(StrEnum):
    """What is known of an endpoint."""

    UP = "up"
    DEGRADED = "degraded"  #: it failed lately, and gets less work
    DOWN = "down"  #: it gets no work until a probe succeeds
    UNKNOWN = "unknown"  #: not asked yet


#: How much a transfer on such an endpoint weighs; what is down can carry none.
_WEIGHTS: Final = {EndpointState.UP: 1, EndpointState.UNKNOWN: 1, EndpointState.DEGRADED: 4}


@dataclass(frozen=True, slots=True)
class Health:
    """What reports made of one endpoint."""

    state: EndpointState = EndpointState.UNKNOWN
    failures: int = 0  #: in a row
    latency_ms: float | None = None  #: moving average of probes
    last_error: str | None = None  #: None again after a success
    hint: str = ""  #: what to do about it
    probe_at: float = 0.0  #: monotonic seconds
    opened_at: float = -_RELAPSE_SECONDS  #: monotonic seconds; when the breaker opened last
    relapses: int = 0  #: how often it opened again with nothing transferred in between
    pace: float | None = None  #: work per second of a run through it, moving average; None: not known
    paced_at: float = 0.0  #: monotonic seconds
    lies: int = 0  #: runs in a row that brought wrong bytes


def after_success(health: Health, now: float, latency_ms: float | None, *, transfers: int = 0) -> Health:
    """A success closes the breaker, whatever was before; only `transfers` show that it is well for good."""
    average = health.latency_ms
    if latency_ms is not None:
        average = latency_ms if average is None else average + _LATENCY_WEIGHT * (latency_ms - average)
    return Health(
        EndpointState.UP,
        latency_ms=average,
        probe_at=now + _IDLE_SECONDS,
        opened_at=-_RELAPSE_SECONDS if transfers else health.opened_at,
        relapses=0 if transfers else health.relapses,
        pace=health.pace,
        paced_at=health.paced_at,
        lies=health.lies,
    )


def after_run(health: Health, pace: float, now: float) -> Health:
    """How fast a run went that had the endpoint for itself and others."""
    known = health.pace if now - health.paced_at < _PACE_SECONDS else None
    average = pace if known is None else known + _PACE_WEIGHT * (pace - known)
    return replace(health, pace=average, paced_at=now)


def after_lies(health: Health, wrong: int, now: float) -> Health:
    """Wrong bytes take an endpoint out for long: that it lists is no proof that it is well again."""
    pause = min(_LIAR_SECONDS * 2**health.lies, _LIAR_SECONDS_MAX)
    return replace(
        health,
        state=EndpointState.DOWN,
        failures=_FAILURES_MAX,
        last_error=f"wrong bytes: {wrong} objects of a run differed from what they should be",
        hint="look at that server: its disks, its memory, a proxy in between",
        probe_at=now + pause,
        opened_at=now,
        lies=health.lies + 1,
    )


def after_error(
    health: Health, error: EndpointError, now: float, jitter: float, *, transfers: int = 1
) -> Health:
    """Errors in a row open the breaker, a refusal does at once; `jitter` (0 to 1) spreads the probes.

    The pause doubles with each probe that fails, so that a dead endpoint costs little, and ends at five
    minutes, so that a link that comes back is used again before anybody looks.  It also doubles where
    probes go well and the `transfers` after them do not.  Work that was under way when the breaker
    opened fails too; that is no news and doubles nothing.
    """
    if health.state is EndpointState.DOWN and now < health.probe_at:
        return health
    is_refused = isinstance(error, EndpointRefused)
    at_once = _FAILURES_MAX if is_refused else min(transfers, _FAILURES_MAX)
    failures = max(health.failures + 1, at_once)
    is_down = failures >= _FAILURES_MAX
    if is_down and health.state is not EndpointState.DOWN:
        is_relapse = now - health.opened_at < _RELAPSE_SECONDS
        health = replace(health, opened_at=now, relapses=health.relapses + 1 if is_relapse else 0)
    doublings = min(max(failures - _FAILURES_MAX, 0) + health.relapses, 10)
    pause = min(_BACKOFF_SECONDS * 2**doublings, _BACKOFF_SECONDS_MAX) * (0.5 + jitter / 2)
    if is_refused:
        pause = max(pause, _REFUSED_SECONDS_MIN)
    return replace(
        health,
        state=EndpointState.DOWN if is_down else EndpointState.DEGRADED,
        failures=failures,
        pace=None if is_down else health.pace,  # what comes back has its whole share again
        last_error=str(error)[:_ERROR_LENGTH_MAX],
        hint=error.hint,
        probe_at=now + pause,
    )


def pick(candidates: Sequence[tuple[Health, int]], turn: int = 0) -> int | None:
    """Which of (health, transfers in flight) gets the next work: the least loaded for its pace.

    None where all are down.  One that is unknown counts as quick: only use can tell.  With each `turn`
    it is the next in this order: what failed one way goes another.
    """
    best = max((health.pace or 0.0 for health, _ in candidates), default=0.0)
    loads = [
        ((in_flight + 1) * _WEIGHTS[health.state] / _share(health, best), health.latency_ms or 0.0, index)
        for index, (health, in_flight) in enumerate(candidates)
        if health.state is not EndpointState.DOWN
    ]
    return sorted(loads)[turn % len(loads)][2] if loads else None


def _share(health: Health, best: float) -> float:
    """How much of the quickest it carries; in steps, as runs of different objects differ a little."""
    if not health.pace or not best:
        return 1.0
    share = max(health.pace / best, _PACE_MIN)
    return 1.0 if share > 0.5 else share


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """One endpoint as `status` shows it."""

    url: str
    state: EndpointState
    latency_ms: float | None
    last_error: str | None
    hint: str
    since: float  #: Unix time at which it came into this state
    skew_seconds: float | None = None  #: how far its clock was ahead of ours when it last answered
    errors: int = 0  #: since the daemon started
    checked_at: float | None = None  #: Unix time at which it was last heard of
    insecure: bool = False  #: whose certificate nobody looks at
    learned: Learned | None = None  #: by the last check that is known


class Endpoint:
    """One endpoint of a side.  Its health is changed by `Endpoints` alone."""

    def __init__(self, url: str, client: S3Client, *, prefix: bytes = b"") -> None:
        """`prefix` is what probes list: a policy may allow us no other."""
        self.url = url
        self.client = client
        self.prefix = prefix
        self.health = Health()
        self.since = 0.0  #: Unix time of the last change of state
        self.in_flight = 0
        self.is_probed = False
        self.errors = 0  #: that were reported
        self.checked_at: float | None = None  #: Unix time of the last report

    @property
    def way_ms(self) -> float | None:
        """How far away it is, in milliseconds there and back; None: not known yet.

        By the quickest answer of late: a server that is slow with one kind of question is not far for it.
        """
        quickest = self.client.quickest.ms
        return self.health.latency_ms if quickest is None else quickest

    def status(self) -> EndpointStatus:
        """As `status` shows it."""
        health = self.health
        return EndpointStatus(
            self.url, health.state, health.latency_ms, health.last_error, health.hint, self.since,
            self.client.skew_seconds,
            self.errors, self.checked_at,
            self.client.insecure,
            self.client.learned or None,
        )  # fmt: skip


class Endpoints:
    """All endpoints of one side of one job.  Threads may share it.

    Requests through a client report themselves; what else went through an endpoint is told by `report`.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._monotonic = monotonic
        self._wall = wall
        self._jitter = jitter
        self._lock = threading.Lock()
        for endpoint in self._endpoints:
            endpoint.since = wall()
            endpoint.client.observe = partial(self._observe, endpoint)

    def teach(self, endpoint: Endpoint, learned: Learned) -> None:
        """Use what a check found out; its latency stands in until one is measured."""
        with self._lock:
            endpoint.client.learned = learned
            if endpoint.health.latency_ms is None:
                endpoint.health = replace(endpoint.health, latency_ms=learned.latency_ms)

    def all(self) -> tuple[Endpoint, ...]:
        """All of them, in the order of the configuration."""
        return self._endpoints

    def available(self) -> bool:
        """Whether any of them may get work.

        Without the lock, as `snapshot`: `status` would wait for whoever holds it and waits for the processor.
        What is looked at is replaced as a whole.
        """
        return any(one.health.state is not EndpointState.DOWN for one in self._endpoints)

    def choose(self) -> Endpoint | None:
        """Which endpoint the next request should use; None: all are down."""
        with self._lock:
            return self._choose()

    @contextmanager
    def lease(self, turn: int = 0) -> Iterator[Endpoint]:
        """Choose an endpoint and count it as in use while the block runs; see `pick` for `turn`.

        Raises:
            EndpointDown: all are down; they are probed, and come back by themselves.
        """
        with self._lock:
            endpoint = self._choose(turn)
            if endpoint is None:
                raise self._all_down()
            endpoint.in_flight += 1
        try:
            yield endpoint
        finally:
            with self._lock:
                endpoint.in_flight -= 1

    def report(
        self,
        endpoint: Endpoint,
        error: S5jtError | None,
        *,
        latency_ms: float | None = None,
        transfers: int = 0,
    ) -> EndpointStatus | None:
        """Say how it went; if that changed the endpoint's state, its status is returned.

        Only an EndpointError speaks against the endpoint: whoever refuses one object is well.
        `transfers` is how many ended so; 0: it was a single request.
        """
        with self._lock:
            now, old = self._monotonic(), endpoint.health.state
            endpoint.checked_at = self._wall()
            if isinstance(error, EndpointError):
                endpoint.errors += 1
                endpoint.health = after_error(
                    endpoint.health, error, now, self._jitter(), transfers=max(1, transfers)
                )
            else:
                endpoint.health = after_success(endpoint.health, now, latency_ms, transfers=transfers)
            if endpoint.health.state is old:
                return None
            endpoint.since = self._wall()
            return endpoint.status()

    def ran(self, endpoint: Endpoint, pace: float) -> None:
        """Say how fast a run through it went, in any unit that holds for all of them."""
        with self._lock:
            endpoint.health = after_run(endpoint.health, pace, self._monotonic())

    def judge(self, endpoint: Endpoint, *, wrong: int, right: int) -> None:
        """Say how many objects of a run had wrong bytes.  Several, and more than right ones, are its fault.

        Of one that was taken out for it and has sent nothing right since, one will do: what failed travels in
        small company.  Unless there is no honest endpoint to compare with: then it may be the objects, and
        who would serve?
        """
        with self._lock:
            enough = 1 if endpoint.health.lies else _WRONG_MIN
            if wrong < enough or wrong <= right:
                if right and not wrong:
                    endpoint.health = replace(endpoint.health, lies=0)
                return
            others = (one.health for one in self._endpoints if one is not endpoint)
            if any(health.state is not EndpointState.DOWN and not health.lies for health in others):
                endpoint.health = after_lies(endpoint.health, wrong, self._monotonic())
                endpoint.since = self._wall()

    def probe_due(self, beat: Callable[[], None], *, at_once: bool = False) -> list[EndpointStatus]:
        """Ask those endpoints whose turn it is to list one key; whose state that changed is returned.

        `at_once` asks all of them, for an operator who knows that something changed.  A recurring duty for a
        thread that may wait: a dead endpoint takes its connect timeout.
        """
        changes = []
        for endpoint in self._due(at_once=at_once):
            beat()
            started = self._monotonic()
            error: S5jtError | None = None
            try:
                endpoint.client.probe(endpoint.prefix)
            except S5jtError as caught:
                error = caught
            finally:
                endpoint.is_probed = False
            latency_ms = (self._monotonic() - started) * 1000
            changes.append(self.report(endpoint, error, latency_ms=latency_ms))
        return [change for change in changes if change is not None]

    def snapshot(self) -> list[EndpointStatus]:
        """All of them as `status` shows them, in the order of the configuration."""
        return [endpoint.status() for endpoint in self._endpoints]

    def _observe(self, endpoint: Endpoint, error: S5jtError | None) -> None:
        self.report(endpoint, error)

    def _all_down(self) -> EndpointDown:
        """Says what the first of them said; it names its URL itself."""
        if not self._endpoints:
            return EndpointDown("there is none")
        first = self._endpoints[0].status()
        _, _, said = (first.last_error or "").partition(": ")
        several = f"all {len(self._endpoints)} are down; " if len(self._endpoints) > 1 else ""
        return EndpointDown(several + (said or f"{first.url} is down"), hint=first.hint)

    def _choose(self, turn: int = 0) -> Endpoint | None:
        old = self._monotonic() - _PACE_SECONDS
        index = pick(
            [
                (one.health if one.health.paced_at > old else replace(one.health, pace=None), one.in_flight)
                for one in self._endpoints
            ],
            turn,
        )
        return None if index is None else self._endpoints[index]

    def _due(self, *, at_once: bool) -> list[Endpoint]:
        """Those to be probed now, marked so that no other thread probes them meanwhile."""
        with self._lock:
            now = self._monotonic()
            due = [e for e in self._endpoints if at_once or (not e.is_probed and e.health.probe_at <= now)]
            for endpoint in due:
                endpoint.is_probed = True
            return due
