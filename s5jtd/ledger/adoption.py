"""How ledger and volume come to one opinion where one of them is older: sealed chunks found, folders lost.

A file on a volume may be the last copy of its object anywhere.  So it counts as needless only when the
ledger knows its very version delivered, or a newer one; everything else is taken in or left where it is.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from s5jtd.ledger.moves import count, disembark, keep_delivery, move, move_chunk
from s5jtd.ledger.rows import Chunk, Item, Staged
from s5jtd.ledger.states import ChunkState, State


class Fate(Enum):
    """What becomes of a sealed file that the ledger does not count on."""

    TAKE = "take"  #: It is a proven copy of what still has to be delivered.
    DROP = "drop"  #: The destination has it, or something newer.
    KEEP = "keep"  #: That cannot be said yet; the next look will tell.


@dataclass(frozen=True, slots=True)
class Adoption:
    """What the ledger decided about the files of a found chunk, by the ids that their names tell."""

    #: Where those that were taken are promised now; to be settled like a pull once the files are there.
    #: None: nothing was taken.
    chunk: Chunk | None
    taken: Mapping[int, Item]  #: the ids, and so the files' names, may have to be others from now on
    needless: frozenset[int]
    kept: int


def adopt(
    sql: sqlite3.Connection,
    job_id: int,
    volume_id: int,
    name: str,
    found: Sequence[Staged],
    now: int,
    *,
    stay: bool = False,
) -> Adoption:
    """Promise the objects of a found chunk to a chunk of the ledger, as a plan does: `pulling`.

    That is the chunk itself, if all of it is taken and under the ids it has; otherwise a new one on the
    same volume, into which the files have to be moved.  The new ledger may have given the old ids to
    other keys, and a file's name is all that says whose it is.  With `stay` no file can be moved: a chunk
    that would need it is kept as a whole.
    """
    fates = {one.item.id: _fate(sql, job_id, one.item) for one in found}
    wanted = [one.item for one in found if fates[one.item.id] is Fate.TAKE]
    needless = frozenset(id_ for id_, fate in fates.items() if fate is Fate.DROP)
    kept = len(found) - len(wanted) - len(needless)
    if stay and wanted and (kept or not all(_keeps_its_id(sql, job_id, item) for item in wanted)):
        return Adoption(None, {}, frozenset(), len(found))
    taken = {item.id: _readmit(sql, job_id, item, now) for item in wanted}
    if not taken:
        return Adoption(None, {}, needless, kept)
    items = list(taken.values())
    if kept or any(item.id != id_ for id_, item in taken.items()):
        name = os.urandom(8).hex()
    chunk_id = sql.execute(
        "INSERT INTO chunks (name, job_id, volume_id, state, objects, bytes, reserved_bytes, planned_at_ms,"
        " pulling_at_ms) VALUES (?, ?, ?, 'pulling', ?, ?, 0, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET state = 'pulling', volume_id = excluded.volume_id,"
        " reserved_bytes = 0, aboard = 0, aboard_bytes = 0, delivered = 0, not_before_ms = 0,"
        " released_at_ms = NULL RETURNING id",
        (name, job_id, volume_id, len(items), sum(item.size for item in items), now, now),
    ).fetchone()[0]
    move(
        sql, job_id, State.SEEN, State.PULLING, items,
        "chunk_id = ?, since_ms = ?, attempts = attempts + 1", [(chunk_id, now)] * len(items),
    )  # fmt: skip
    chunk = Chunk(chunk_id, name, job_id, volume_id, ChunkState.PULLING)
    return Adoption(chunk, taken, needless, kept)


def lose(sql: sqlite3.Connection, chunk: Chunk, now: int) -> int:
    """Write down that the folder of a chunk at rest is not on its volume; how many must travel again.

    The ledger is older than the volume, or somebody removed the folder.
    """
    rows = sql.execute(
        "SELECT id, key, size, etag, modified_ms, attempts, state FROM objects INDEXED BY objects_aboard"
        " WHERE chunk_id = ? AND aboard = 1",
        (chunk.id,),
    ).fetchall()
    lost = [Item(*row[:6]) for row in rows if row[6] == State.STAGED]
    move(
        sql, chunk.job_id, State.STAGED, State.SEEN, lost,
        "since_ms = ?, attempts = 0, not_before_ms = 0", [(now,)] * len(lost),
    )  # fmt: skip
    sql.executemany("UPDATE objects SET aboard = 0 WHERE id = ?", [(row[0],) for row in rows])
    move_chunk(
        sql, chunk, chunk.state, ChunkState.RELEASED,
        "aboard = 0, aboard_bytes = 0, delivered = 0, released_at_ms = ?", (now,),
    )  # fmt: skip
    return len(lost)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the ledger has of a key."""

    item: Item
    state: State
    chunk_id: int | None  #: the chunk in whose folder its file is; None: it has none

    @property
    def aboard(self) -> bool:
        return self.chunk_id is not None


def fate(known: _Known | None, past: bool, found: Item) -> Fate:
    """Decide about one file; `past`: its version was delivered before a newer one came."""
    if known is None:
        return Fate.TAKE
    same = _same_version(known.item, found)
    newer = not same and found.modified_ms > known.item.modified_ms
    if known.state is State.DELIVERED and (same or found.modified_ms < known.item.modified_ms):
        return Fate.DROP
    if past and not same:
        return Fate.DROP
    if newer and known.state in (State.STAGED, State.PARKED):
        return Fate.TAKE  # what it overtakes is not to be sent any more, least of all before it
    if known.aboard or known.state in (State.PULLING, State.STAGED, State.PUSHING):
        return Fate.KEEP
    # With a version that is newer than the ledger's, the ledger is the older of the two.
    return Fate.TAKE if same or newer else Fate.KEEP


def _fate(sql: sqlite3.Connection, job_id: int, found: Item) -> Fate:
    known = _known(sql, job_id, found.key)
    past = (
        known is not None
        and sql.execute(
            "SELECT 1 FROM past_deliveries WHERE object_id = ? AND size = ? AND etag = ? AND (etag <> '' OR"
            " modified_ms = ?)",
            (known.item.id, found.size, found.etag, found.modified_ms),
        ).fetchone()
    )
    return fate(known, bool(past), found)


def _known(sql: sqlite3.Connection, job_id: int, key: bytes) -> _Known | None:
    row = sql.execute(
        "SELECT id, key, size, etag, modified_ms, attempts, state, iif(aboard, chunk_id, NULL) FROM objects"
        " WHERE job_id = ? AND key = ?",
        (job_id, key),
    ).fetchone()
    return row and _Known(Item(*row[:6]), State(row[6]), row[7])


def _overtake(sql: sqlite3.Connection, item: Item, chunk_id: int) -> None:
    """The file of an older version is not to be pushed any more; a chunk without another one rests."""
    disembark(sql, chunk_id, [(item.id, item.size)], delivered=False)
    sql.execute(
        "UPDATE chunks SET state = 'resting' WHERE id = ? AND state = 'sealed' AND NOT EXISTS (SELECT 1 FROM"
        " objects INDEXED BY objects_aboard WHERE chunk_id = chunks.id AND aboard = 1 AND state = ?)",
        (chunk_id, State.STAGED),
    )


def _keeps_its_id(sql: sqlite3.Connection, job_id: int, found: Item) -> bool:
    """Whether `_readmit` would give an object the id that its file is named by."""
    known = _known(sql, job_id, found.key)
    if known is not None:
        return known.item.id == found.id
    return sql.execute("SELECT 1 FROM objects WHERE id = ?", (found.id,)).fetchone() is None


def _same_version(one: Item, other: Item) -> bool:
    """As the scan sees it: the modified time decides only where there is no ETag."""
    same = (one.size, one.etag) == (other.size, other.etag)
    return same and (bool(one.etag) or one.modified_ms == other.modified_ms)


def _readmit(sql: sqlite3.Connection, job_id: int, found: Item, now: int) -> Item:
    """Make the object `seen` in the version that was found; the object as the ledger has it then."""
    known = _known(sql, job_id, found.key)
    if known is None:
        free = _keeps_its_id(sql, job_id, found)
        made = sql.execute(
            "INSERT INTO objects (id, job_id, key, size, etag, modified_ms, state, since_ms, seen_at_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?)",
            (
                found.id if free else None,
                job_id,
                found.key,
                found.size,
                found.etag,
                found.modified_ms,
                now,
                now,
            ),
        )
        count(sql, job_id, Counter({(State.SEEN, "objects"): 1, (State.SEEN, "bytes"): found.size}))
        return replace(found, id=int(made.lastrowid or 0))
    if known.state is State.DELIVERED:
        keep_delivery(sql, known.item.id)
    if known.chunk_id is not None:
        _overtake(sql, known.item, known.chunk_id)
    if known.state is not State.SEEN:
        move(sql, job_id, known.state, State.SEEN, [known.item], "since_ms = ?", [(now,)])
    sql.execute(
        "UPDATE objects SET size = ?, etag = ?, modified_ms = ?, attempts = 0, not_before_ms = 0,"
        " reason = NULL, delivered_at_ms = NULL, push_evidence = NULL, destination_etag = NULL, found = 0,"
        " push_insecure = 0 WHERE id = ?",
        (found.size, found.etag, found.modified_ms, known.item.id),
    )
    count(sql, job_id, Counter({(State.SEEN, "bytes"): found.size - known.item.size}))
    return replace(found, id=known.item.id)
