"""Forgetting runs: a job's rows go, or all of them; volumes and what was never ours stay."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s5jtd.errors import Busy
from s5jtd.ledger.access import open_reader, told_plainly
from s5jtd.ledger.database import Database, bring_up
from s5jtd.ledger.files import install, scratch
from s5jtd.ledger.states import State
from s5jtd.ledger.volumes import COLUMNS

#: Objects that go in one transaction: the WAL stays small, and a cut leaves a ledger that is whole and has
#: forgotten a part.
_STRIDE: Final = 5_000


@dataclass(frozen=True, slots=True)
class JobTally:
    """What the ledger holds of a job."""

    name: str
    objects: Mapping[str, int]  #: by the word of their state; those that are not zero


@dataclass(frozen=True, slots=True)
class VolumeTally:
    """What the ledger believes to lie on a volume, of the jobs that are asked about."""

    uuid: str
    name: str
    path: str
    chunks: frozenset[str]  #: names of those with a folder
    objects: int  #: with a file there
    size: int  #: bytes of them
    undelivered: int  #: of these objects
    undelivered_size: int  #: bytes


def jobs(path: Path, name: str | None) -> list[JobTally]:
    """The jobs a ledger knows, or the one of that name.

    Raises:
        LedgerError: it cannot be read.
    """
    with _reading(path) as sql:
        rows = sql.execute(
            "SELECT id, name FROM jobs WHERE ?1 IS NULL OR name = ?1 ORDER BY name", (name,)
        ).fetchall()
        return [JobTally(row[1], _by_state(sql, row[0])) for row in rows]


def volumes(path: Path, job: str | None) -> list[VolumeTally]:
    """What lies on the volumes a ledger knows, of one job or of all.

    Raises:
        LedgerError: it cannot be read.
    """
    with _reading(path) as sql:
        known = sql.execute("SELECT id, uuid, name, path FROM volumes ORDER BY id").fetchall()
        return [_on_volume(sql, row, job) for row in known]


def forget_job(path: Path, name: str, on_progress: Callable[[int], None]) -> None:
    """Remove a job's rows; the daemon is stopped.  `on_progress` is told how many objects went, so far.

    Raises:
        LedgerError: it cannot be read or written; what went before is gone, the rest is as it was.
    """
    database = Database(path)
    try:
        job_id = database.reading().execute("SELECT id FROM jobs WHERE name = ?", (name,)).fetchone()[0]
        gone = 0
        while some := _forget_some(database, job_id):
            gone += some
            on_progress(gone)
        with database.unguarded() as sql:
            sql.execute(
                "DELETE FROM arrivals WHERE pass_id IN (SELECT pass_id FROM open_passes WHERE job_id = ?)",
                (job_id,),
            )
            sql.execute(
                "DELETE FROM upload_parts WHERE upload IN (SELECT id FROM uploads WHERE job_id = ?)",
                (job_id,),
            )
            for table in ("uploads", "streams", "chunks", "passes", "open_passes", "counters"):
                sql.execute(f"DELETE FROM {table} WHERE job_id = ?", (job_id,))
            sql.execute(
                "DELETE FROM endpoint_checks WHERE job = (SELECT name FROM jobs WHERE id = ?)", (job_id,)
            )
            sql.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
    finally:
        database.close()


def forget_all(path: Path) -> None:
    """Put an empty ledger in the place, that still knows its volumes; the daemon is stopped.

    A new file instead of a hundred million deletions: at once, and the disk gets its room back.

    Raises:
        Busy: another program reads the ledger; the file under it may not be exchanged.
        LedgerError: it cannot be read or written.
    """
    Database(path).close()  # an orderly end leaves nothing in a WAL
    if any(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-shm")):
        raise Busy(f"another program reads {path}", hint=f"end it: fuser -v {path}")
    with told_plainly(path), scratch(path) as temporary:
        temporary.touch(0o600)
        bring_up(temporary)
        with _reading(path) as old, contextlib.closing(sqlite3.connect(temporary)) as new:
            rows = old.execute(f"SELECT {COLUMNS} FROM volumes").fetchall()
            new.executemany(f"INSERT INTO volumes ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", rows)
            new.commit()
        install(temporary, path)


def _forget_some(database: Database, job_id: int) -> int:
    ids = "SELECT id FROM objects WHERE job_id = ? ORDER BY key LIMIT ?"
    of_these = (job_id, _STRIDE)
    with database.writing() as sql:
        gone = sql.execute(
            f"SELECT state, count(*), sum(size) FROM objects WHERE id IN ({ids}) GROUP BY state", of_these
        ).fetchall()
        for table in ("failures", "past_deliveries"):
            sql.execute(f"DELETE FROM {table} WHERE object_id IN ({ids})", of_these)
        sql.execute(f"DELETE FROM objects WHERE id IN ({ids})", of_these)
        sql.executemany(
            "UPDATE counters SET objects = objects - ?, bytes = bytes - ? WHERE job_id = ? AND state = ?",
            [(count, size, job_id, state) for state, count, size in gone],
        )
        # What the chunks count is right again at once: a cut must not leave a ledger that is damaged.
        if gone:
            sql.execute(
                "UPDATE chunks SET (aboard, aboard_bytes, delivered) = (SELECT count(*), coalesce(sum(size),"
                " 0), coalesce(sum(state = 4), 0) FROM objects INDEXED BY objects_aboard WHERE chunk_id ="
                " chunks.id AND aboard = 1) WHERE job_id = ? AND aboard > 0",
                (job_id,),
            )
    return sum(count for _, count, _ in gone)


def _by_state(sql: sqlite3.Connection, job_id: int) -> dict[str, int]:
    rows = sql.execute("SELECT state, objects FROM counters WHERE job_id = ? AND objects > 0", (job_id,))
    return {State(state).word: objects for state, objects in rows}


def _on_volume(sql: sqlite3.Connection, volume: tuple[int, str, str, str], job: str | None) -> VolumeTally:
    of_these = "c.volume_id = ?1 AND c.state <> 'released' AND (?2 IS NULL OR j.name = ?2)"
    found = sql.execute(
        "SELECT c.name, c.aboard, c.aboard_bytes FROM chunks AS c JOIN jobs AS j ON j.id = c.job_id"
        f" WHERE {of_these}",
        (volume[0], job),
    ).fetchall()
    undelivered = sql.execute(
        "SELECT count(*), coalesce(sum(o.size), 0) FROM chunks AS c JOIN jobs AS j ON j.id = c.job_id"
        " CROSS JOIN objects AS o INDEXED BY objects_aboard ON o.chunk_id = c.id AND o.aboard = 1"
        f" WHERE {of_these} AND o.state <> 4",
        (volume[0], job),
    ).fetchone()
    names = frozenset(row[0] for row in found)
    objects, size = sum(row[1] for row in found), sum(row[2] for row in found)
    return VolumeTally(*volume[1:], names, objects, size, *undelivered)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    with told_plainly(path), contextlib.closing(open_reader(path)) as sql:
        yield sql
