"""How a transaction changes states: compare-and-set, set-based, counted; used by `store` alone."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from s5jtd.errors import LedgerError, LostRace
from s5jtd.ledger.rows import Chunk, Item, Returned, Staged
from s5jtd.ledger.states import ALLOWED, ChunkState, State

#: (state, "objects" or "bytes") -> change
Deltas = Counter[tuple[State, str]]


def count(sql: sqlite3.Connection, job_id: int, deltas: Deltas) -> None:
    for state in {state for state, _ in deltas}:
        sql.execute(
            "UPDATE counters SET objects = objects + ?, bytes = bytes + ? WHERE job_id = ? AND state = ?",
            (deltas[state, "objects"], deltas[state, "bytes"], job_id, state),
        )


def move(
    sql: sqlite3.Connection,
    job_id: int,
    expected: State,
    to: State,
    items: Sequence[Item],
    assignments: str,
    values: Sequence[tuple[object, ...]],
) -> None:
    """Move every object from `expected` to `to`, or raise and change nothing.

    The only place that writes `objects.state` of an existing row.  The size is compared too: what is
    `seen` may be admitted in another version by the time it is moved, and the bytes counted are ours.

    Raises:
        LedgerError: the table of states knows no such move.
        LostRace: an object is no longer in `expected`, or no longer of this size.
    """
    if to not in ALLOWED[expected]:
        raise LedgerError(f"there is no move from {expected.word} to {to.word}")
    if not items:
        return
    moved = sql.executemany(
        f"UPDATE objects SET state = ?, {assignments} WHERE id = ? AND state = ? AND size = ?",
        [(to, *rest, item.id, expected, item.size) for item, rest in zip(items, values, strict=True)],
    ).rowcount
    if moved != len(items):
        raise LostRace(f"{len(items) - moved} of {len(items)} objects had left {expected.word} or changed")
    size = sum(item.size for item in items)
    count(
        sql, job_id,
        Counter({
            (expected, "objects"): -moved, (expected, "bytes"): -size,
            (to, "objects"): moved, (to, "bytes"): size,
        }),
    )  # fmt: skip


def move_chunk(
    sql: sqlite3.Connection,
    chunk: Chunk,
    expected: ChunkState,
    to: ChunkState,
    assignments: str,
    values: tuple[object, ...],
) -> None:
    moved = sql.execute(
        f"UPDATE chunks SET state = ?, {assignments} WHERE id = ? AND state = ?",
        (to, *values, chunk.id, expected),
    ).rowcount
    if moved != 1:
        raise LostRace(f"chunk {chunk.name} had left {expected}")


def keep_delivery(sql: sqlite3.Connection, object_id: int) -> None:
    sql.execute(
        "INSERT INTO past_deliveries (object_id, size, etag, modified_ms, staged_at_ms, pull_evidence,"
        " crc64nvme, delivered_at_ms, push_evidence, destination_etag, chunk_id, pull_insecure,"
        " push_insecure)"
        " SELECT id, size, etag, modified_ms, staged_at_ms, pull_evidence, crc64nvme, delivered_at_ms,"
        " push_evidence, destination_etag, chunk_id, pull_insecure, push_insecure FROM objects WHERE id = ?",
        (object_id,),
    )


def is_aboard(sql: sqlite3.Connection, object_id: int, chunk_id: int, state: State) -> bool:
    """Whether an object in this state has its file in the folder of this chunk."""
    found = sql.execute(
        "SELECT 1 FROM objects WHERE id = ? AND chunk_id = ? AND aboard = 1 AND state = ?",
        (object_id, chunk_id, state),
    )
    return found.fetchone() is not None


def disembark(
    sql: sqlite3.Connection, chunk_id: int, sizes: Sequence[tuple[int, int]], *, delivered: bool
) -> None:
    """Count files of a chunk, by object and size, no more; what is left of them goes with the folder."""
    sql.executemany("UPDATE objects SET aboard = 0 WHERE id = ?", [(object_id,) for object_id, _ in sizes])
    sql.execute(
        "UPDATE chunks SET aboard = aboard - ?, aboard_bytes = aboard_bytes - ?, delivered = delivered - ?"
        " WHERE id = ?",
        (len(sizes), sum(size for _, size in sizes), len(sizes) if delivered else 0, chunk_id),
    )


def stage(sql: sqlite3.Connection, job_id: int, staged: Sequence[Staged], now: int) -> None:
    """`pulling -> staged`, with what was established."""
    move(
        sql, job_id, State.PULLING, State.STAGED, [one.item for one in staged],
        "since_ms = ?, staged_at_ms = ?, attempts = 0, not_before_ms = 0, aboard = 1, reason = NULL,"
        " pull_evidence = ?, crc64nvme = ?, md5 = ?, sha256 = ?, part_size = ?, part_etag = ?,"
        " pull_insecure = ?",
        [(now, now, *_proof(one)) for one in staged],
    )  # fmt: skip


def _proof(one: Staged) -> tuple[object, ...]:
    digests = one.digests
    part_etag = digests.multipart_etags.get(one.part_size) if one.part_size else None
    return (
        one.evidence, digests.crc64nvme, digests.md5, digests.sha256, one.part_size, part_etag,
        int(one.insecure),
    )  # fmt: skip


def or_lost(sql: sqlite3.Connection, one: Returned) -> Returned:
    """Park what its source lost after our own copy of it was lost: that is a loss, and a person must know."""
    if one.to is not State.GONE:
        return one
    (staged_at_ms,) = sql.execute("SELECT staged_at_ms FROM objects WHERE id = ?", (one.item.id,)).fetchone()
    if staged_at_ms is None:
        return one
    message = f"its copy on a volume was lost, and now the source has none: {one.message}"
    return replace(one, to=State.PARKED, code="lost", message=message)
