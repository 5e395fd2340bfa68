"""Opening a ledger's file: SQLite's errors in our words, readers, and a copy as of one moment."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from s5jtd.errors import LedgerBlocked, LedgerDamaged, LedgerError, LedgerFull
from s5jtd.ledger.files import disk_trouble, free_bytes

BUSY_MS = 5000
#: Pages (4 KiB) that are copied between two signs of life.
COPY_PAGES = 10_000

_NO_ROOM_BYTES = 128 << 10

DAMAGED_HINT = "stop s5jtd, then: s5jtd ledger rebuild"
DISK_HINT = "look at the disk under state_dir (`journalctl -k`), repair or mount it, then start again"

#: What a question to a database may end with; of a damaged one the error's very words may be no text.
Failures = (sqlite3.DatabaseError, UnicodeDecodeError)

_BLOCKED = {
    sqlite3.SQLITE_BUSY: "another program holds the ledger: end it",
    sqlite3.SQLITE_IOERR: DISK_HINT,
    sqlite3.SQLITE_READONLY: "check that this user may write to state_dir, and that it is mounted writable",
}


@contextlib.contextmanager
def told_plainly(path: Path) -> Iterator[None]:
    """Whatever SQLite or the file system says becomes a LedgerError with a hint."""
    try:
        yield
    except Failures as error:
        raise plainly(path, error) from error
    except OSError as error:
        raise LedgerError(
            f"{error.filename or path}: {error.strerror}", hint="check state_dir and who owns it"
        ) from error


def plainly(path: Path, error: sqlite3.Error | UnicodeDecodeError) -> LedgerError:
    """An error of SQLite in our words."""
    if isinstance(error, UnicodeDecodeError):
        return damaged(path, "it holds text that is none")
    told = f"{path}: {error}"
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # extended codes carry it below
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "unsupported file format" in str(error):
        return damaged(path, str(error))
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_room(path)):
        return LedgerFull(told, hint="make room on the disk under state_dir; it goes on by itself")
    if code in _BLOCKED:
        return LedgerBlocked(told, hint=_BLOCKED[code])
    if code == sqlite3.SQLITE_CANTOPEN:
        return LedgerError(told, hint="check that state_dir exists and that this user may write to it")
    return LedgerError(told, hint="check the disk under state_dir")


def _no_room(path: Path) -> bool:
    """SQLite cannot tell a full disk from a failing one where it makes the file that readers share."""
    with contextlib.suppress(OSError):
        return free_bytes(path.parent) < _NO_ROOM_BYTES
    return False


def damaged(path: Path, detail: str) -> LedgerError:
    """That a file is damaged, unless its very disk is."""
    trouble = disk_trouble(path.parent)
    if trouble is not None:
        return LedgerError(f"{path}: the disk under it does not work: {trouble}", hint=DISK_HINT)
    return LedgerDamaged(f"{path}: {detail}", hint=DAMAGED_HINT)


class PlainReader(sqlite3.Connection):
    """Tells plainly what stands in the way of a question, so that nobody who asks needs to know SQLite."""

    path = Path()  #: of the ledger

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Ask.

        Raises:
            LedgerError: no answer can be had.
        """
        try:
            return super().execute(sql, parameters)
        except Failures as error:
            raise plainly(self.path, error) from error


def open_reader(path: Path, kind: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    """A read-only connection, to be used by one thread at a time."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False,
        factory=kind,
    )  # fmt: skip
    if isinstance(connection, PlainReader):
        connection.path = path
    else:
        # Those who look at a damaged ledger meet text that is none.
        connection.text_factory = lambda text: text.decode("utf-8", "backslashreplace")
    connection.execute("PRAGMA query_only = ON")
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    return connection


def copy_database(source: Path, target: Path, alive: Callable[[], None] = lambda: None) -> None:
    """Copy a database with SQLite's backup, as of one moment, also while it is written to.

    `alive` is called now and then; what it raises ends the copy.  The copy is not durable yet.

    Raises:
        LedgerError: it cannot be read or written.
    """
    with told_plainly(source), contextlib.ExitStack() as stack:
        reader = stack.enter_context(contextlib.closing(open_reader(source)))
        writer = stack.enter_context(contextlib.closing(sqlite3.connect(target)))
        # An open transaction keeps the reader at its moment; without one each commit of the daemon's
        # would make the copy begin again.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        reader.backup(writer, pages=COPY_PAGES, progress=lambda *_: alive())
