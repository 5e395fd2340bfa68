"""What `status` needs of the ledger, in two questions whose answers are few rows.

Between two rows that SQLite gives, every thread that computes may have its turn first, and on a busy
machine that takes longer than all the questions.  Besides, what one question answers was true at one moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from s5jtd.ledger.rows import Pass, Pauses
from s5jtd.ledger.states import State


@dataclass(frozen=True, slots=True)
class Overview:
    """One job."""

    objects: dict[str, int]  #: by state
    sizes: dict[str, int]  #: bytes by state
    pauses: Pauses
    last_pass: Pass | None  #: the newest look at the source
    seen_whole: bool  #: some look has seen all of it
    last_delivery_ms: int | None  #: when anything last reached the destination


#: Of a row of `jobs`, in milliseconds; 0: nothing was delivered yet.
LAST_DELIVERY: Final = (
    "max(coalesce((SELECT max(pushed_at_ms) FROM"
    " (SELECT pushed_at_ms FROM chunks WHERE job_id = jobs.id ORDER BY id DESC LIMIT 64)), 0),"
    " coalesce((SELECT max(delivered_at_ms) FROM streams"
    " WHERE job_id = jobs.id AND delivered_at_ms IS NOT NULL), 0))"
)


def overview(sql: sqlite3.Connection, job_id: int, now_ms: int) -> Overview:
    """As it is now."""
    counted, pulls, pushes, seen_whole, delivered_ms, *last = sql.execute(
        "SELECT (SELECT group_concat(state || ' ' || objects || ' ' || bytes) FROM counters"
        " WHERE job_id = jobs.id),"
        " pull_paused_until_ms, push_paused_until_ms,"
        " EXISTS (SELECT 1 FROM passes WHERE job_id = jobs.id AND complete),"
        f" {LAST_DELIVERY},"
        " passes.id, started_at_ms, finished_at_ms, complete, listed, fresh, found, error"
        " FROM jobs LEFT JOIN passes ON passes.id = (SELECT max(id) FROM passes WHERE job_id = jobs.id)"
        " WHERE jobs.id = ?",
        (job_id,),
    ).fetchone()
    rows = [tuple(map(int, row.split(" "))) for row in counted.split(",")]
    return Overview(
        {State(state).word: objects for state, objects, _ in rows},
        {State(state).word: size for state, _, size in rows},
        in_force(pulls, pushes, now_ms),
        None if last[0] is None else as_pass(last),
        bool(seen_whole),
        delivered_ms or None,
    )


def as_pass(row: Sequence[Any]) -> Pass:
    """The columns of `passes` in the order of `Pass`."""
    number, started_ms, finished_ms, complete, *rest = row
    return Pass(number, started_ms, finished_ms, bool(complete), *rest)


def in_force(pull_until_ms: int | None, push_until_ms: int | None, now_ms: int) -> Pauses:
    """A pause that is over is none."""
    pull, push = (None if end is None or end <= now_ms else end for end in (pull_until_ms, push_until_ms))
    return Pauses(pull, push)


def staged_bytes(sql: sqlite3.Connection) -> dict[int, int]:
    """Bytes of objects that lie on each volume, proven and not unlinked; nothing is said of one without."""
    (held,) = sql.execute(
        "SELECT group_concat(volume_id || ' ' || bytes) FROM (SELECT volume_id, sum(aboard_bytes) AS bytes"
        " FROM chunks WHERE state <> 'released' GROUP BY volume_id)"
    ).fetchone()
    pairs = [row.split(" ") for row in held.split(",")] if held else []
    return {int(volume_id): int(size) for volume_id, size in pairs}
