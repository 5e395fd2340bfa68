"""A new beginning for a ledger that cannot be trusted: nothing is thrown away, and nothing travels twice.

What a copy says of deliveries stays true for ever, for nobody deletes at a destination.  All else it says
may be overtaken: chunks have come and gone since.  So the rest is asked for anew: sealed chunks on the
volumes tell what they hold, and the next look at the source asks the destination about every object whose
delivery is not known, before it moves.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from s5jtd.ledger.access import told_plainly
from s5jtd.ledger.database import bring_up
from s5jtd.ledger.files import hand_over, install, make_folder, scratch, sync_folder

ASIDE: Final = "damaged"
_IN_DOUBT: Final = "in_doubt: the ledger was rebuilt; the next look at the source tells"


class Restored(NamedTuple):
    """What a ledger holds after it was rebuilt."""

    delivered: int  #: objects
    in_doubt: int  #: objects; shown as `gone` until the next look at their source


def put_aside(path: Path) -> Path | None:
    """Move the file and what belongs to it into a folder of its own, together; None: nothing was there.

    The file goes first: if the power is cut now, a WAL without its file is left, and that is noticed at
    the next start.  A file without its WAL would only be an older ledger, and could be believed.

    Raises:
        LedgerError: it cannot be moved.
    """
    names = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
    there = [name for name in names if name.exists()]
    if not there:
        return None
    with told_plainly(path):
        make_folder(path.parent / ASIDE)
        folder = _new_folder(path.parent / ASIDE)
        for name in there:
            name.rename(folder / name.name)
            sync_folder(folder)
            sync_folder(path.parent)
    return folder


def _new_folder(parent: Path) -> Path:
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for number in range(1, 1000):
        folder = parent / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            hand_over(folder)
            sync_folder(parent)
            return folder
    raise FileExistsError(f"{parent / stem} and its like")


def restore(copy: Path, path: Path) -> Restored:
    """Put a proven copy in the ledger's place, with everything that may be overtaken marked as in doubt.

    Raises:
        LedgerError: there is no room, or something cannot be read or written.
    """
    with told_plainly(path), scratch(path) as temporary:
        temporary.touch(0o600)
        shutil.copyfile(copy, temporary)
        bring_up(temporary)
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as sql:
            restored = _doubt(sql)
        install(temporary, path)
    return restored


def begin_anew(path: Path) -> None:
    """Put an empty ledger in the place.

    Raises:
        LedgerError: it cannot be written.
    """
    with told_plainly(path), scratch(path) as temporary:
        temporary.touch(0o600)
        bring_up(temporary)
        install(temporary, path)


def _doubt(sql: sqlite3.Connection) -> Restored:
    """Take back what only a moment's ledger could know: chunks, files aboard, what was on its way."""
    now = int(time.time() * 1000)
    # Nobody else has this file, and if anything goes wrong it is thrown away as a whole.
    for setting in ("journal_mode = OFF", "synchronous = OFF"):
        sql.execute(f"PRAGMA {setting}").fetchall()
    with _transaction(sql):
        sql.execute(
            "UPDATE chunks SET state = 'released', reserved_bytes = 0, aboard = 0, aboard_bytes = 0,"
            " delivered = 0, released_at_ms = ? WHERE state <> 'released'",
            (now,),
        )
        sql.execute("UPDATE objects SET aboard = 0 WHERE aboard = 1")
        # A look at the source takes up what is `gone` as if it were new, and asks the destination first.
        in_doubt = sql.execute(
            "UPDATE objects SET state = 5, since_ms = ?, attempts = 0, not_before_ms = 0, reason = ?"
            " WHERE state NOT IN (4, 5)",
            (now, _IN_DOUBT),
        ).rowcount
        # Reports that the copy had not told may have been told since: nothing is told twice.
        sql.execute("DELETE FROM arrivals")
        sql.execute("DELETE FROM open_passes")
        sql.execute("UPDATE counters SET objects = 0, bytes = 0")
        sql.execute(
            "UPDATE counters SET objects = told.objects, bytes = told.bytes FROM (SELECT job_id, state,"
            " count(*) AS objects, sum(size) AS bytes FROM objects GROUP BY job_id, state) AS told"
            " WHERE counters.job_id = told.job_id AND counters.state = told.state"
        )
        delivered = sql.execute("SELECT coalesce(sum(objects), 0) FROM counters WHERE state = 4").fetchone()[
            0
        ]
    return Restored(delivered, in_doubt)


@contextlib.contextmanager
def _transaction(sql: sqlite3.Connection) -> Iterator[None]:
    sql.execute("BEGIN")
    yield
    sql.execute("COMMIT")
