"""What a report says of a pass: counted from what came to rest, without any I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from s5jtd.ledger.passes import Arrival, Looks, OpenPass
from s5jtd.ledger.states import State
from s5jtd.model import Evidence, printable
from s5jtd.shapes import Report, ReportObject
from s5jtd.units import format_bytes

MEGABYTE = 1_000_000
#: Of every object, whatever else its job asks for.
ALGORITHM = "CRC64NVME"
GONE = "gone: the source no longer had it when its turn came"
TAKEN_UP = " (taken up again since)"


class Cause(StrEnum):
    """Why a report is written."""

    OVER = "over"  #: Everything that the pass showed is at rest.
    UNDER_WAY = "under_way"  #: The pass goes on, and has for so long that it is time to tell.
    INTERRUPTED = "interrupted"  #: The daemon ended in the middle of it; the next life goes on with it.
    GIVEN_UP = "given_up"  #: A single pass ends although something is left to move.


@dataclass(slots=True)
class Tally:
    """Counts arrivals as they are told one by one; its size does not grow with their number."""

    files: int = 0  #: delivered
    bytes: int = 0  #: of them
    gone: int = 0
    parked: int = 0  #: and not taken up again since
    retried: int = 0
    mismatches: int = 0
    unresolved: int = 0  #: parked, with a comparison that found a difference
    last_ms: int = 0
    evidence: dict[Evidence, int] = field(default_factory=lambda: dict.fromkeys(Evidence, 0))
    endpoints: set[str] = field(default_factory=set)
    volumes: set[str] = field(default_factory=set)

    def tell(self, one: Arrival) -> ReportObject:
        """Count one, and say what is told of it."""
        self.mismatches += one.mismatches
        self.last_ms = max(self.last_ms, one.at_ms)
        evidence = None
        if one.state == State.DELIVERED:
            evidence = _weaker(one)
            self._delivered(one, evidence)
        elif one.state == State.GONE:
            self.gone += 1
        elif one.stays:
            self.parked += 1
            self.unresolved += one.mismatches > 0
        return _told(one, evidence)

    def _delivered(self, one: Arrival, evidence: Evidence) -> None:
        self.files += 1
        self.bytes += one.size
        self.retried += one.failures > 0
        self.evidence[evidence] += 1
        self.endpoints.update(url for url in (one.pull_endpoint, one.push_endpoint) if url)
        self.volumes.update([one.volume] if one.volume else [])


def _weaker(one: Arrival) -> Evidence:
    """An object is proven no better than on the weaker of its two hops."""
    levels = [Evidence(level) for level in (one.pull_evidence, one.push_evidence) if level]
    return min(levels, key=lambda level: level.strength, default=Evidence.SIZE)


def _told(one: Arrival, evidence: Evidence | None) -> ReportObject:
    seconds = None
    if evidence is not None and one.pulling_at_ms is not None:
        seconds = max(0, one.at_ms - one.pulling_at_ms) / 1000
    return {
        "key": printable(one.key),
        "size_bytes": one.size,
        "etag": one.etag or None,
        "evidence": evidence,
        "pulled_at": None if one.staged_at_ms is None else instant(one.staged_at_ms),
        "delivered_at": None if evidence is None else instant(one.at_ms),
        "seconds": seconds,
        "endpoint": None if evidence is None else one.push_endpoint,
        "error": _error(one),
    }


def _error(one: Arrival) -> str | None:
    """Why it came to rest before its destination; where it arrives later, another entry says so."""
    reason = GONE if one.state == State.GONE else one.reason
    return f"{reason}{TAKEN_UP}" if one.state == State.PARKED and not one.stays else reason


def status(cause: Cause, tally: Tally, looks: Looks, *, found: int, left: int) -> str:
    """The report in one word: success, partial, failed or interrupted."""
    saw_all = looks.error is None and not looks.unfinished
    if cause is Cause.INTERRUPTED and (left or looks.unfinished):
        return "interrupted"
    if saw_all and not left and not tally.parked:
        return "success"
    return "partial" if tally.files or found or cause is Cause.UNDER_WAY else "failed"


def worth(one: OpenPass, looks: Looks, cause: Cause, *, always: bool) -> bool:
    """Whether there is anything to tell of a pass that was not told before.

    A source that stays dead is told once, and a daemon that crashes again and again without moving
    anything tells so once: reports must not fill a disk with what everybody knows.
    """
    if one.arrived > one.told:
        return True
    if one.reports or cause is Cause.UNDER_WAY:
        return False
    failed = looks.error is not None and not looks.failed_again
    return always or failed or looks.found > 0 or one.open > 0


def compose(
    one: OpenPass, looks: Looks, cause: Cause, tally: Tally, *, epoch: int, failing: int, engine: str
) -> tuple[Report, int]:
    """The report without its objects, and when what it tells ended, in Unix milliseconds.

    A look that was cut told nobody how much it had seen: at least what it took in.
    """
    told_before = one.reports > 0 or one.since_ms > (looks.finished_at_ms or one.since_ms)
    found = 0 if told_before else looks.found
    until_ms = max(one.since_ms, tally.last_ms, looks.finished_at_ms or 0)
    seconds = (until_ms - one.since_ms) / 1000
    listed = max(looks.listed, one.admitted + looks.found)
    report: Report = {
        "timestamp": instant(epoch * 1000),
        "duration_seconds": seconds,
        "files_synced": tally.files,
        "bytes_transferred": tally.bytes,
        "source_size": format_bytes(max(looks.listed_bytes, one.admitted_bytes)),
        "s3_objects": listed,
        "status": status(cause, tally, looks, found=found, left=one.open),
        "tool": "s5jtd",
        "engine": engine,
        "throughput_mbps": round(tally.bytes / MEGABYTE / seconds, 3) if seconds else 0.0,
        "source": looks.source,
        "destination": looks.destination,
        "checksum_verification": {
            "enabled": True,
            "algorithm": ALGORITHM,
            "verified": not tally.evidence[Evidence.SIZE] and not tally.unresolved,
            "errors": tally.mismatches,
        },
        "job": looks.job,
        "pass": one.id,
        "skipped": listed - one.admitted,
        "failed": failing,
        "parked": tally.parked,
        "retried": tally.retried,
        "evidence": {
            "checksum": tally.evidence[Evidence.CHECKSUM],
            "etag": tally.evidence[Evidence.ETAG],
            "readback": tally.evidence[Evidence.READBACK],
            "size": tally.evidence[Evidence.SIZE],
        },
        "endpoints": sorted(tally.endpoints),
        "volumes": sorted(tally.volumes),
        "id": epoch,
        "started_at": instant(one.since_ms),
        "ended_at": instant(until_ms),
        "found": found,
        "gone": tally.gone,
        "left": one.open,
        "error": looks.error,
    }
    return report, until_ms


def instant(milliseconds: int) -> str:
    """Unix milliseconds in RFC 3339."""
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
