"""What a batch's failures say of its objects, of its endpoint and of the engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping

import structlog

from s5jtd.engine.contract import End, Failure, Outcome, Run
from s5jtd.errors import EndpointDown, EndpointError, EndpointRefused, EngineError, S5jtError
from s5jtd.ledger.rows import Delivered, Item, Returned, Staged
from s5jtd.link.tuning import Trial
from s5jtd.problems import Problems
from s5jtd.s3.endpoints import Endpoint, Endpoints

log = structlog.get_logger(__name__)

#: What an engine's failure says of an object, as the ledger's failure codes.
FAILURE_CODES = {
    Failure.ENDPOINT: "endpoint_down",
    Failure.CREDENTIALS: "endpoint_refused",
    Failure.BUCKET: "endpoint_refused",
    Failure.SPACE: "volume_full",
    Failure.LOCAL: "volume_failed",
    Failure.REFUSED: "object_refused",
    Failure.UNFIT: "unfit_name",
    Failure.GONE: "object_gone",
    Failure.CHANGED: "source_changed",
    Failure.OTHER: "transfer_failed",
}
_OF_ENDPOINT = frozenset({Failure.ENDPOINT, Failure.CREDENTIALS, Failure.BUCKET})
#: Failures that no object is to blame for, unless `weigh` names it.
BLAMELESS = _OF_ENDPOINT | {Failure.SPACE, Failure.LOCAL}
#: Links break, and it may hit the same object twice: what looks like the link parks nothing before this.
LINK_ATTEMPTS_MIN = 5
#: Of objects of which the engine said nothing.
NO_ANSWER = "no_answer"
#: Of objects that were under way, or yet to come, when their run was to end: that is no failure of theirs.
INTERRUPTED = "interrupted"


def said_nothing(end: End) -> tuple[str, str]:
    """Code and words for an object that a run which ended so said nothing of."""
    if end is End.STOPPED:
        return INTERRUPTED, "the transfer was ended before it was over"
    return NO_ANSWER, f"the engine said nothing of it and ended ({end})"


def trouble(settled: Iterable[object]) -> dict[str, str]:
    """What most of those met that did not make their hop, for the log; nothing where all did."""
    met = Counter(one.message for one in settled if isinstance(one, Returned))
    return {"error": met.most_common(1)[0][0]} if met else {}


def endpoint_fault(outcomes: Mapping[str, Outcome]) -> EndpointError | None:
    """What a batch's outcomes say about its endpoint: any success speaks for it."""
    failures = [outcome for outcome in outcomes.values() if outcome.failure is not None]
    if len(failures) < len(outcomes) or not failures:
        return None
    worst = next((f for f in failures if f.failure in (Failure.CREDENTIALS, Failure.BUCKET)), None)
    if worst is not None:
        return EndpointRefused(worst.message, hint="run `s5jtd check`")
    down = next((f for f in failures if f.failure is Failure.ENDPOINT), None)
    return EndpointDown(down.message) if down is not None else None


def weigh(
    endpoints: Endpoints,
    endpoint: Endpoint,
    items: Mapping[str, Item],
    outcomes: Mapping[str, Outcome],
    end: End,
) -> frozenset[str]:
    """Tell the breaker how a run went; the names whose failures count although they look like the endpoint's.

    A link that breaks takes with it all that is under way and all that is to come; what fails where most
    others did well has something of its own.  Having failed so once, it also counts where it fails among
    its like, if the endpoint answers: else the last such objects would be tried for ever.
    """
    sick = {name for name in items if _looks_like_endpoint(outcomes.get(name), end)}
    done = sum(outcome.failure is None for outcome in outcomes.values())
    fault = endpoint_fault(outcomes)
    if end is End.STALLED:
        fault = EndpointDown(f"{endpoint.url}: no bytes moved for too long")
    if done >= 2 * len(sick):
        blamed = sick
    else:
        suspects = {name for name in sick if items[name].attempts > 1}
        blamed = suspects if suspects and _answers(endpoint) else set()
    if fault is None and not outcomes:
        return frozenset(blamed)  # a run that was ended before it said anything speaks for nobody
    if fault is None or blamed != sick:
        endpoints.report(endpoint, fault, transfers=max(1, len(outcomes)))
    return frozenset(blamed)


def trial(items: Mapping[str, Item], outcomes: Mapping[str, Outcome], run: Run, started: float) -> Trial:
    """How a run went that began at `started` (monotonic seconds), for the tuner."""
    end = run.end
    done = [name for name, outcome in outcomes.items() if outcome.failure is None]
    sick = sum(_looks_like_endpoint(outcome, end) for outcome in outcomes.values())
    return Trial(
        len(done),
        sum(items[name].size for name in done),
        time.monotonic() - started,
        trouble=end is End.STALLED or sick > len(done) // 8,
        killed=run.starved,
    )


def _looks_like_endpoint(outcome: Outcome | None, end: End) -> bool:
    if outcome is None:
        return end is End.STALLED
    return outcome.failure in _OF_ENDPOINT


def _answers(endpoint: Endpoint) -> bool:
    try:
        endpoint.client.probe(endpoint.prefix)
    except S5jtError:
        return False
    return True


def tell_mismatches(code: str, endpoints: Endpoints, endpoint: Endpoint, settled: Iterable[object]) -> None:
    """Wrong bytes are said once for a chunk, to the log and to the breaker of the endpoint."""
    told = list(settled)
    these = [one for one in told if isinstance(one, Returned) and one.code == code]
    endpoints.judge(
        endpoint, wrong=len(these), right=sum(isinstance(one, Staged | Delivered) for one in told)
    )
    if these:
        log.warning(
            "bytes_differ", code=code, endpoint=endpoint.url, objects=len(these), error=these[0].message
        )


def engine_failed(problems: Problems, error: EngineError) -> None:
    """The engine could not even start: nobody's fault on the road, and for a person to see."""
    if problems.raise_("engine_failed", "s5cmd", str(error), error.hint):
        log.error("engine_failed", error=str(error), hint=error.hint)
