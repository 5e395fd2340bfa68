"""What the ledger knows of a volume: who it is, whether it is to be empty, and what would go with it."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from s5jtd.ledger.rows import Volume

COLUMNS = "id, uuid, name, path, attach_epoch, draining_since_ms"


@dataclass(frozen=True, slots=True)
class Holdings:
    """What lies on a volume, or is promised to it."""

    chunks: int  #: folders that are there or will be
    only_here: int  #: objects whose copy here is proven, and whose delivery is not
    only_here_bytes: int
    parked: int  #: of these, objects that nothing moves until a person looks


def enrol(sql: sqlite3.Connection, uuid: str, name: str, path: str, attach_epoch: int) -> Volume:
    """Remember a volume by its UUID, and where and how often it was attached."""
    sql.execute(
        "INSERT INTO volumes (uuid, name, path, attach_epoch) VALUES (?, ?, ?, ?) ON CONFLICT (uuid)"
        " DO UPDATE SET name = excluded.name, path = excluded.path,"
        " attach_epoch = max(attach_epoch, excluded.attach_epoch)",
        (uuid, name, path, attach_epoch),
    )
    row = sql.execute(f"SELECT {COLUMNS} FROM volumes WHERE uuid = ?", (uuid,)).fetchone()
    return Volume(*row)


def wish_empty(sql: sqlite3.Connection, volume_id: int, since_ms: int | None) -> bool:
    """Keep that a volume is to be empty, or None: that it is not; whether that is news."""
    changed = sql.execute(
        "UPDATE volumes SET draining_since_ms = ? WHERE id = ? AND (draining_since_ms IS NULL) = ?",
        (since_ms, volume_id, int(since_ms is not None)),
    )
    return changed.rowcount > 0


def holdings(sql: sqlite3.Connection, volume_id: int) -> Holdings:
    """What would be lost with a volume.

    A chunk's own numbers tell, but where it is delivered in part; of those there are only a few at a time.
    """
    row = sql.execute(
        "SELECT count(*), coalesce(sum(aboard - delivered), 0), coalesce(sum(CASE"
        " WHEN delivered = 0 THEN aboard_bytes WHEN delivered = aboard THEN 0 ELSE"
        " (SELECT coalesce(sum(size), 0) FROM objects INDEXED BY objects_aboard"
        "  WHERE chunk_id = chunks.id AND aboard = 1 AND state <> 4) END), 0),"
        " coalesce(sum(CASE WHEN state = 'resting' THEN aboard - delivered ELSE 0 END), 0)"
        " FROM chunks WHERE volume_id = ? AND state <> 'released'",
        (volume_id,),
    ).fetchone()
    return Holdings(*(int(number) for number in row))


def queued_bytes(sql: sqlite3.Connection, volume_id: int) -> int:
    """Bytes that are promised to a volume and not proven there yet."""
    row = sql.execute(
        "SELECT coalesce(sum(bytes), 0) FROM chunks WHERE volume_id = ? AND state IN ('planned', 'pulling')",
        (volume_id,),
    ).fetchone()
    return int(row[0])
