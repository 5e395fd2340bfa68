"""What a dead appliance says: its ledger, read by SQLite alone, and the files that the ledger counts on.

Nothing of the daemon's code looks at them, and the ledger is read from a copy: whoever opens a ledger may
repair what somebody is looking for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from s5jtd.ledger.states import State


@dataclass(frozen=True)
class Row:
    """An object as the ledger has it."""

    id: int
    key: str
    size: int
    etag: str  #: rclone's: the MD5 of the bytes
    state: State
    aboard: bool
    staged_at_ms: int
    chunk: str  #: "" where it is in none
    volume: str  #: the path of its chunk's


@dataclass(frozen=True)
class Ledger:
    """What a ledger says."""

    rows: list[Row]
    delivered: frozenset[tuple[str, str]]  #: (key, ETag), earlier versions too
    faults: list[str]


def read_ledger(path: Path, scratch: Path) -> Ledger:
    """Read the ledger of a dead daemon; one that was never made is empty."""
    scratch.mkdir(exist_ok=True)
    for suffix in ("", "-wal"):
        (scratch / f"copy{suffix}").unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}{suffix}", scratch / f"copy{suffix}")
    with contextlib.closing(sqlite3.connect(scratch / "copy")) as sql:
        (verdict,) = sql.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            return Ledger([], frozenset(), [f"ledger damaged: {verdict}"])
        if sql.execute("PRAGMA user_version").fetchone()[0] == 0:
            return Ledger([], frozenset(), [])
        rows = [
            Row(
                row[0],
                row[1].decode(),
                row[2],
                row[3],
                State(row[4]),
                bool(row[5]),
                row[6] or 0,
                row[7] or "",
                row[8] or "",
            )
            for row in sql.execute(
                "SELECT o.id, o.key, o.size, o.etag, o.state, o.aboard, o.staged_at_ms, c.name, v.path"
                " FROM objects AS o LEFT JOIN chunks AS c ON c.id = o.chunk_id"
                " LEFT JOIN volumes AS v ON v.id = c.volume_id"
            )
        ]
        past = sql.execute(
            "SELECT o.key, p.etag FROM past_deliveries AS p JOIN objects AS o ON o.id = p.object_id"
        )
        delivered = {(row.key, row.etag) for row in rows if row.state is State.DELIVERED}
        delivered |= {(key.decode(), etag) for key, etag in past}
        return Ledger(rows, frozenset(delivered), [*_miscounted(sql), *_chunks_miscounted(sql)])


def _miscounted(sql: sqlite3.Connection) -> Iterator[str]:
    counted = "SELECT job_id, state, objects, bytes FROM counters WHERE objects <> 0 OR bytes <> 0"
    recounted = "SELECT job_id, state, count(*), sum(size) FROM objects GROUP BY job_id, state"
    for one, other, words in ((counted, recounted, "not so"), (recounted, counted, "not counted")):
        for row in sql.execute(f"{one} EXCEPT {other}"):
            yield f"counters disagree with the rows: {row} is {words}"


def _chunks_miscounted(sql: sqlite3.Connection) -> Iterator[str]:
    for row in sql.execute(
        "SELECT c.name, c.state, c.aboard, c.aboard_bytes, c.delivered, count(o.id) AS files_now,"
        " coalesce(sum(o.size), 0) AS bytes_now, coalesce(sum(o.state = 4), 0) AS delivered_now"
        " FROM chunks AS c LEFT JOIN objects AS o ON o.chunk_id = c.id AND o.aboard = 1"
        " GROUP BY c.id"
        " HAVING (c.aboard, c.aboard_bytes, c.delivered) <> (files_now, bytes_now, delivered_now)"
    ):
        yield f"chunk disagrees with the rows: {row}"


def claims(rows: Sequence[Row], mounted: Callable[[str], bool], before_ms: float) -> list[Row]:
    """Local copies that the ledger counts on, because nobody else is known to have the object.

    Only what was staged before `before_ms` counts: a sync that runs while a file system is shut down may
    answer well and lose its bytes all the same.
    """
    counted_on = (State.STAGED, State.PUSHING, State.PARKED)
    return [
        row
        for row in rows
        if row.aboard and row.state in counted_on and row.staged_at_ms < before_ms and mounted(row.volume)
    ]


def refuted(row: Row) -> str | None:
    """What is wrong with a local copy that the ledger counts on."""
    file = Path(row.volume, "s5jtd", row.chunk, "data", f"{row.id:x}.obj")
    try:
        body = file.read_bytes()
    except OSError as error:
        return f"{row.key} is {row.state.word}, and its file: {error.strerror}"
    if hashlib.md5(body, usedforsecurity=False).hexdigest() != row.etag:
        return f"{row.key} is {row.state.word}, and its file holds other bytes ({len(body)} of {row.size})"
    return None


def unsealed(row: Row) -> str | None:
    """What is wrong with the seal that a staged object's chunk must have."""
    path = Path(row.volume, "s5jtd", row.chunk, "sealed.json")
    try:
        body, _, last = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
        whole = json.loads(last)["sha256"] == hashlib.sha256(body + b"\n").hexdigest()
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{row.key} is {row.state.word}, and its chunk's seal: {error}"
    return None if whole else f"{row.key} is {row.state.word}, and its chunk's seal is torn"
