"""Objects that go from bucket to bucket without a volume: claimed, and settled from `seen` at once.

They stay `seen` while they travel, for nothing of them lies anywhere that a crash would leave to be
recovered: what was not settled is asked for again, at the destination first.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from s5jtd.errors import LostRace
from s5jtd.ledger.database import Clock, Database
from s5jtd.ledger.moves import count, move
from s5jtd.ledger.patience import OnBlocked, give_up, patient
from s5jtd.ledger.rows import Delivered, Item, Returned
from s5jtd.ledger.states import State

#: Longer than any look at a source takes, and than a day.
_STREAMS_KEPT_MS = 32 * 86_400_000


@patient
class DirectBook:
    """The door of the direct road to the ledger."""

    def __init__(
        self, database: Database, *, clock: Clock = time.time, on_blocked: OnBlocked = give_up
    ) -> None:
        """`database` is the one the `Ledger` writes to."""
        self._db = database
        self._clock = clock
        self.on_blocked = on_blocked

    def claim(self, job_id: int, items: Sequence[Item]) -> int:
        """Count the attempt before the work, so that what brings the daemon down is parked after a while.

        The bytes count against the limits from now on; the answer is what `settle` knows them by.

        Raises:
            LostRace: one of them is no longer `seen` in this version; nothing was changed.
        """
        with self._db.writing(intake=True) as sql:
            claimed = sql.executemany(
                "UPDATE objects SET attempts = attempts + 1"
                " WHERE id = ? AND state = ? AND size = ? AND etag = ?",
                [(item.id, State.SEEN, item.size, item.etag) for item in items],
            ).rowcount
            if claimed != len(items):
                raise LostRace(f"{len(items) - claimed} of {len(items)} objects changed")
            now = int(self._clock() * 1000)
            sql.execute("DELETE FROM streams WHERE at_ms < ?", (now - _STREAMS_KEPT_MS,))
            made = sql.execute(
                "INSERT INTO streams (job_id, at_ms, bytes) VALUES (?, ?, ?)",
                (job_id, now, sum(item.size for item in items)),
            )
            return int(made.lastrowid or 0)

    def settle(
        self,
        job_id: int,
        delivered: Sequence[Delivered],
        returned: Sequence[Returned],
        endpoint: str | None,
        *,
        claim: int,
        streamed_bytes: int,
        pull_insecure: bool = False,
    ) -> None:
        """Write down what was delivered, with both hops' evidence in its item, and what was not.

        `streamed_bytes` is what counts against the limits of what was claimed; `pull_insecure`: the source
        spoke TLS to us, and nobody looked at its certificate.

        An object that the scanner took in anew meanwhile is left as it is: its new version travels.
        """
        now = int(self._clock() * 1000)
        with self._db.writing() as sql:
            sql.execute(
                "UPDATE streams SET bytes = ?, delivered_at_ms = ? WHERE id = ?",
                (streamed_bytes, now if delivered else None, claim),
            )
            items = [one.item for one in delivered] + [one.item for one in returned]
            still = _unchanged(sql, items)
            arrived = [one for one in delivered if one.item.id in still]
            move(
                sql, job_id, State.SEEN, State.DELIVERED, [one.item for one in arrived],
                "since_ms = ?, delivered_at_ms = ?, staged_at_ms = ?, attempts = 0, not_before_ms = 0,"
                " reason = NULL, chunk_id = NULL, pull_evidence = ?, crc64nvme = ?, md5 = ?, sha256 = ?,"
                " part_size = ?, destination_etag = ?, push_evidence = ?, push_insecure = ?,"
                " pull_insecure = ?",
                [(now, now, now, *_proof(one), int(pull_insecure)) for one in arrived],
            )  # fmt: skip
            for one in returned:
                if one.item.id in still:
                    _return(sql, job_id, one, now)
            sql.executemany(
                "INSERT INTO failures (object_id, at_ms, step, chunk_id, endpoint, code, message)"
                " VALUES (?, ?, 'direct', NULL, ?, ?, ?)",
                [(one.item.id, now, endpoint, one.code, one.message) for one in returned],
            )


def _unchanged(sql: sqlite3.Connection, items: Iterable[Item]) -> set[int]:
    """Which of these are `seen` in the version that was claimed."""
    found = set()
    for item in items:
        row = sql.execute("SELECT state, size, etag FROM objects WHERE id = ?", (item.id,)).fetchone()
        if row == (State.SEEN, item.size, item.etag):
            found.add(item.id)
    return found


def _proof(one: Delivered) -> tuple[object, ...]:
    item, digests = one.item, one.item.digests
    sums = (digests.crc64nvme, digests.md5, digests.sha256) if digests else (None, None, None)
    return item.pull_evidence, *sums, item.part_size, one.etag, one.evidence, int(one.insecure)


def _return(sql: sqlite3.Connection, job_id: int, one: Returned, now: int) -> None:
    item = one.item
    if one.to is State.SEEN:
        size = item.size if one.size is None else one.size
        sql.execute(
            "UPDATE objects SET attempts = ?, not_before_ms = ?, size = ?, etag = ?, modified_ms = ?"
            " WHERE id = ?",
            (
                0 if one.etag is not None else item.attempts - int(not one.counted),
                one.not_before_ms, size, item.etag if one.etag is None else one.etag,
                one.modified_ms or item.modified_ms, item.id,
            ),
        )  # fmt: skip
        count(sql, job_id, Counter({(State.SEEN, "bytes"): size - item.size}))
        return
    reason = f"{one.code}: {one.message}" if one.to is State.PARKED else None
    move(sql, job_id, State.SEEN, one.to, [item], "since_ms = ?, reason = ?", [(now, reason)])
