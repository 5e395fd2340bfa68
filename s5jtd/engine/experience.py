"""What servers make of s5cmd: an object that one refused goes natively, after a few such all of them do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import structlog

from s5jtd.engine.contract import Batch, Failure, Outcome
from s5jtd.model import Direction

log = structlog.get_logger(__name__)

#: What a server says of one object, and might not say to another program.
_OF_THE_ASKING: Final = frozenset({Failure.REFUSED, Failure.OTHER})
#: So many objects in a row that only the native engine could move are no chance.
_PROOFS: Final = 3
#: Servers are upgraded: after so long s5cmd is tried again.
_HOLDS_SECONDS: Final = 24 * 3600.0
#: Refused objects that are remembered for one place; the newest.
_KEYS_MAX: Final = 1000


class Place(NamedTuple):
    """Where something was asked for."""

    endpoint_url: str | None  #: None: AWS itself
    bucket: str
    direction: Direction

    @classmethod
    def of(cls, batch: Batch) -> Place:
        """Where a batch travels."""
        return cls(batch.remote.endpoint_url, batch.remote.bucket, batch.direction)


@dataclass(slots=True)
class _Record:
    refused: dict[bytes, str] = field(default_factory=dict)  #: key -> what s5cmd was told
    proofs: int = 0
    unfit_until: float = 0.0  #: on the clock


class Experience:
    """Kept for the life of the process: a wrong guess costs an object one attempt."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is known of anybody; `clock` gives seconds."""
        self._clock = clock
        self._lock = threading.Lock()
        self._records: dict[Place, _Record] = {}

    def is_unfit(self, place: Place) -> bool:
        """Whether s5cmd is not to be used there."""
        with self._lock:
            record = self._records.get(place)
            return record is not None and self._clock() < record.unfit_until

    def was_refused(self, place: Place, key: bytes) -> bool:
        """Whether s5cmd could not move this object there."""
        with self._lock:
            record = self._records.get(place)
            return record is not None and key in record.refused

    def s5cmd_said(self, place: Place, key: bytes, outcome: Outcome) -> None:
        """Take in what became of an object that s5cmd had."""
        with self._lock:
            if outcome.failure is None:
                if record := self._records.get(place):
                    record.proofs = 0
            elif outcome.failure in _OF_THE_ASKING:
                record = self._records.setdefault(place, _Record())
                record.refused[key] = outcome.message
                if len(record.refused) > _KEYS_MAX:
                    del record.refused[next(iter(record.refused))]

    def native_said(self, place: Place, key: bytes, outcome: Outcome) -> None:
        """Take in what became of an object that the native engine had."""
        with self._lock:
            record = self._records.get(place)
            told = None if record is None else record.refused.pop(key, None)
            if record is None or told is None or outcome.failure is not None:
                return
            record.proofs += 1
            if record.proofs < _PROOFS:
                return
            record.proofs = 0
            record.refused.clear()
            record.unfit_until = self._clock() + _HOLDS_SECONDS
        log.info(
            "s5cmd_unfit", endpoint=place.endpoint_url or "aws", bucket=place.bucket,
            direction=place.direction.value, error=told,
        )  # fmt: skip
