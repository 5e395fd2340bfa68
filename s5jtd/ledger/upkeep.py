"""What keeps a ledger well for years: bounded history, a short WAL, and a reserve on its disk.

Deliveries and the versions before them are kept for ever: they are what the ledger is for.
"""

from __future__ import annotations

import contextlib
import os
from enum import Enum
from pathlib import Path
from typing import Final

from s5jtd.ledger.database import Database
from s5jtd.ledger.files import free_bytes, hand_over, sync_folder

MIB: Final = 1 << 20

#: Failed attempts that are remembered, the newest of all jobs: some 200 MB.  A dead line can write
#: hundreds of thousands in a night, and what parked an object stands in its row besides.
FAILURES_KEPT: Final = 1_000_000
#: Looks at a source that are remembered of each job: a week at one a minute.  The newest that saw all
#: of the source stays in any case, for `status` tells of it.
PASSES_KEPT: Final = 10_000
#: Rows that go in one transaction: writers wait for it, so it is short.
_STRIDE: Final = 5_000

#: Kept allocated in the state folder: what makes a full disk bearable.  It is given up when the ledger
#: cannot be written any more, and is then enough for what is in flight to be delivered and released.
BALLAST_BYTES: Final = 32 * MIB
#: With less than this beside the ballast nothing new is taken in: rows for new objects would only eat
#: what deliveries still need.
INTAKE_BYTES: Final = BALLAST_BYTES
#: With less than this somebody should look.
LOW_BYTES: Final = 8 * BALLAST_BYTES

#: A WAL above this is cut as soon as nobody reads it; SQLite alone would never give the space back.
WAL_BYTES: Final = 64 * MIB
#: A WAL above this has a reader that does not end.
WAL_BYTES_ALARM: Final = 16 * WAL_BYTES


class Room(Enum):
    """What the disk under the ledger allows."""

    PLENTY = "plenty"
    LOW = "low"  #: It works, and somebody should look.
    FULL = "full"  #: Nothing new is taken in; what is there goes on to be delivered.


def room(free: int, *, was: Room) -> Room:
    """Judge the free bytes; once it was full it must get well clear of that to take in again."""
    if free < (2 * INTAKE_BYTES if was is Room.FULL else INTAKE_BYTES):
        return Room.FULL
    return Room.LOW if free < LOW_BYTES else Room.PLENTY


class Ballast:
    """A file that only takes up room, until the room is needed."""

    def __init__(self, folder: Path) -> None:
        """Nothing is done yet."""
        self._path = folder / "ballast"

    def drop(self) -> bool:
        """Give its room to the ledger; whether there was any to give."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True

    def load(self) -> bool:
        """Make it where it is missing and the disk has plenty; whether it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size == BALLAST_BYTES:
                return True
        if free_bytes(self._path.parent) < BALLAST_BYTES + 2 * INTAKE_BYTES:
            return False
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, BALLAST_BYTES)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        hand_over(self._path)
        sync_folder(self._path.parent)
        return True


def trim(db: Database) -> int:
    """Forget the oldest failures and looks beyond what is kept, a little at a time; how many went.

    Nothing went: nothing is too old.

    Raises:
        LedgerBlocked: nothing happened.
    """
    return _trim_failures(db) + sum(_trim_passes(db, job) for job in _jobs(db))


def _jobs(db: Database) -> list[int]:
    return [row[0] for row in db.reading().execute("SELECT id FROM jobs").fetchall()]


def _trim_failures(db: Database) -> int:
    # Ids grow: nothing but this deletes failures one by one, and it begins at the oldest.
    first, last = db.reading().execute("SELECT min(id), max(id) FROM failures").fetchone()
    if first is None or last - first < FAILURES_KEPT:
        return 0
    bound = min(first + _STRIDE, last - FAILURES_KEPT + 1)
    with db.writing() as sql:
        return sql.execute("DELETE FROM failures WHERE id < ?", (bound,)).rowcount


def _trim_passes(db: Database, job_id: int) -> int:
    oldest_kept = (
        db.reading()
        .execute(
            "SELECT id FROM passes WHERE job_id = ? ORDER BY id DESC LIMIT 1 OFFSET ?",
            (job_id, PASSES_KEPT - 1),
        )
        .fetchone()
    )
    if oldest_kept is None:
        return 0
    with db.writing() as sql:
        return sql.execute(
            "DELETE FROM passes WHERE id IN (SELECT id FROM passes WHERE job_id = ?1 AND id < ?2 AND id <>"
            " coalesce((SELECT max(id) FROM passes WHERE job_id = ?1 AND complete = 1), 0)"
            " AND id NOT IN (SELECT pass_id FROM open_passes)"
            " ORDER BY id LIMIT ?3)",
            (job_id, oldest_kept[0], _STRIDE),
        ).rowcount


def fingerprint(db: Database) -> tuple[object, ...]:
    """Two that are equal: nothing moved between them.  Looks at a source that showed nothing do not count."""
    sql = db.reading()
    newest = sql.execute(
        "SELECT (SELECT max(id) FROM objects), (SELECT max(id) FROM chunks), (SELECT max(id) FROM failures),"
        " (SELECT max(id) FROM past_deliveries), (SELECT sum(attach_epoch) FROM volumes)"
    ).fetchone()
    small = (sql.execute(f"SELECT * FROM {table}").fetchall() for table in ("counters", "jobs"))
    return (*newest, *small)


def is_empty(db: Database) -> bool:
    """Whether it never met an object: then a copy of it is worth nothing."""
    return db.reading().execute("SELECT 1 FROM objects LIMIT 1").fetchone() is None
