"""The file behind the ledger: connections, pragmas that are checked, migrations, transactions.

One connection writes and checkpoints, and it alone: SQLite before 3.51.3 can corrupt a WAL that two
connections write and checkpoint at once.  Readers have a read-only connection for each thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from s5jtd.errors import (
    IntakeStopped,
    LedgerBlocked,
    LedgerDamaged,
    LedgerError,
    LedgerFull,
)
from s5jtd.ledger import closing, schema
from s5jtd.ledger.access import (
    BUSY_MS,
    DAMAGED_HINT,
    PlainReader,
    copy_database,
    damaged,
    open_reader,
    plainly,
    told_plainly,
)
from s5jtd.ledger.files import Identity, identity, install, make_folder, scratch, sync_folder
from s5jtd.ledger.verify import structure

#: Pages (4 KiB) in the WAL before the writer checkpoints it.
CHECKPOINT_PAGES = 4000
#: Where the copies of a ledger lie, beside it.
BACKUPS = "backups"


class Database:
    """One ledger file, opened for a process's life."""

    def __init__(self, path: Path) -> None:
        """Open or create the ledger, migrated.  What is in `doubt` is still to be proven.

        Raises:
            LedgerNewer: a newer s5jtd wrote it.
            LedgerDamaged: it is no database, or it is gone and its leftovers say that there was one.
            LedgerError: the file, its folder or its disk cannot be used.
        """
        self.path = path
        self.commits = 0  #: of this process; they tell that something was written
        self.intake_stopped: LedgerBlocked | None = None  #: why nothing new is taken in, while nothing is
        self._lock = threading.Lock()
        self._readers: dict[threading.Thread, sqlite3.Connection] = {}
        self._readers_lock = threading.Lock()
        with told_plainly(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Temporary files stay beside the ledger: a small /tmp must not stop a large sort.
            os.environ["SQLITE_TMPDIR"] = str(path.parent)
            _refuse_to_start_over(path)
            #: Why the whole file should be read through before it is relied on; None: it was, lately.
            self.doubt, self._checked_at = closing.take(path)
            self._writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                _settle(self._writer)
                _migrate(self._writer, path)
            except BaseException:
                self._writer.close()
                raise
            # SQLite ignores an error of its own directory sync, so the name is made durable here.
            sync_folder(path.parent)
        self._files: dict[str, Identity] = {}
        self.astray()

    def prove(self, go_on: Callable[[], bool]) -> bool:
        """Read the whole file through where it is in doubt; False where `go_on` said no before the end.

        Raises:
            LedgerDamaged: SQLite finds it broken.
            LedgerError: the disk under it does not work.
        """
        if self.doubt is not None:
            with told_plainly(self.path):
                found = structure(self.path, "quick_check", go_on)
            if found is None:
                return False
            if found:
                raise damaged(self.path, found[0])
            self.doubt, self._checked_at = None, time.time()
        return True

    @contextlib.contextmanager
    def writing(self, *, intake: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is durable on return, or none of it happened.

        `intake`: it makes the ledger larger for new objects, which has to wait while that is stopped.

        Raises:
            LedgerBlocked: nothing happened; the same may work later.
        """
        if intake and (why := self.intake_stopped) is not None:
            raise IntakeStopped(why.detail, hint=why.hint)
        with self._lock, told_plainly(self.path):
            before = self._writer.total_changes
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException as error:
                if isinstance(error, sqlite3.Error):
                    self._take_note(error)
                with contextlib.suppress(
                    sqlite3.Error
                ):  # a dead disk refuses this too; the first error tells
                    self._writer.rollback()
                raise
            # A worker that asks for work and finds none has written nothing.
            self.commits += self._writer.total_changes != before

    @contextlib.contextmanager
    def unguarded(self) -> Iterator[sqlite3.Connection]:
        """A transaction that may break references for a while, and is told to leave none broken.

        To prove that nothing refers to a chunk would cost a look at every object for each chunk.
        """
        self._writer.execute("PRAGMA foreign_keys = OFF")
        try:
            with self.writing() as sql:
                yield sql
        finally:
            self._writer.execute("PRAGMA foreign_keys = ON")

    def keep_orders(self, orders: Collection[str]) -> None:
        """Be ready to tell candidates in these orders; a new one costs an index of all that is `seen`.

        Raises:
            LedgerBlocked: nothing happened; the same may work later.
        """
        if not schema.keeps_orders(self.reading(), orders):
            with self.writing() as sql:
                schema.keep_orders(sql, orders)

    def _take_note(self, error: sqlite3.Error) -> None:
        told = plainly(self.path, error)
        if isinstance(told, LedgerFull):
            # At once: before anybody has looked, new objects would eat what is kept for deliveries.
            self.intake_stopped = told
        elif not isinstance(told, LedgerBlocked) or error.sqlite_errorname.startswith("SQLITE_IOERR"):
            self.doubt = f"SQLite said: {error}"

    def reading(self) -> sqlite3.Connection:
        """This thread's own read-only connection; that of a thread that is gone serves the next."""
        thread = threading.current_thread()
        connection = self._readers.get(thread)
        if connection is None:
            with self._readers_lock, told_plainly(self.path):
                over = next((owner for owner in self._readers if not owner.is_alive()), None)
                connection = self._open_reader() if over is None else self._readers.pop(over)
                self._readers[thread] = connection
        return connection

    def _open_reader(self) -> sqlite3.Connection:
        if (name := self.astray()) is not None:
            raise LedgerError(f"{name} was deleted or replaced while it was in use", hint=DAMAGED_HINT)
        return open_reader(self.path, PlainReader)

    def astray(self) -> str | None:
        """Which of the open files is no longer where it was opened, if one is not."""
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            there, opened = identity(path), self._files.get(path.name)
            if opened is None and there is not None:
                self._files[path.name] = there
            elif opened is not None and (there is None or not there.same_file(opened)):
                return path.name
        return None

    def wal_bytes(self) -> int:
        """How large the WAL is."""
        wal = identity(self.path.with_name(f"{self.path.name}-wal"))
        return wal.size if wal else 0

    def checkpoint(self) -> bool:
        """Bring all of the WAL into the database and cut it to nothing; False where a reader needs it."""
        with self._lock, told_plainly(self.path):
            # Without waiting: for as long as it waited, nobody else could write.
            self._writer.execute("PRAGMA busy_timeout = 0")
            try:
                busy = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        return not busy

    def rescue(self, target: Path) -> None:
        """Copy what the open connection holds, whatever became of its file.

        Raises:
            LedgerError: it cannot be read, or not be written there.
        """
        with (
            self._lock,
            told_plainly(self.path),
            contextlib.closing(sqlite3.connect(target)) as writer,
        ):
            self._writer.backup(writer)

    def close(self) -> None:
        """Close readers first, so that the last one out is the one that may checkpoint."""
        with self._lock, self._readers_lock:
            for connection in self._readers.values():
                connection.close()
            self._readers.clear()
            well = self.doubt is None and self.astray() is None
            self._writer.close()
            if well:
                closing.leave(self.path, self._checked_at)


def _refuse_to_start_over(path: Path) -> None:
    """A ledger that is gone is not begun anew as if there had never been one."""
    if path.exists():
        return
    wal = path.with_name(f"{path.name}-wal")
    left = [p for p in (wal, closing.mark_of(path), *path.parent.glob(f"{BACKUPS}/*.db")) if p.exists()]
    if left:
        raise LedgerDamaged(f"{path} is gone; {left[0]} is still there", hint=DAMAGED_HINT)


def _settle(connection: sqlite3.Connection) -> None:
    """Set the pragmas that durability rests on and believe only what SQLite answers.

    With an I/O error in the first syncs, `journal_mode=wal` was seen to stay in rollback mode
    without any error.
    """
    connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    wanted = {
        "journal_mode = WAL": "wal",
        "synchronous = FULL": 2,
        "foreign_keys = ON": 1,
        "trusted_schema = OFF": 0,
        "cell_size_check = ON": 1,
        "mmap_size = 0": 0,
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}": CHECKPOINT_PAGES,
    }
    for setting, expected in wanted.items():
        connection.execute(f"PRAGMA {setting}").fetchall()
        name = setting.split(" ")[0]
        answer = connection.execute(f"PRAGMA {name}").fetchone()
        # A build without memory mapping answers nothing to mmap_size, which is as good as 0.
        if answer is not None and answer[0] != expected:
            raise LedgerError(f"SQLite answers {answer[0]!r} to PRAGMA {setting}", hint="check the disk")


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    steps = schema.missing(connection)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if steps and version:
        _keep(path, path.parent / BACKUPS / f"version-{version}.db")
    schema.migrate(connection, steps)
    if found := schema.alien(connection):
        raise damaged(path, found[0])


def bring_up(path: Path) -> None:
    """Make a file a ledger of this version; an empty one where there is nothing in it yet."""
    with told_plainly(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        _migrate(connection, path)


def _keep(path: Path, copy: Path) -> None:
    """The way back to an older program: the ledger as it was before its first migration."""
    make_folder(copy.parent)
    with scratch(copy) as temporary:
        temporary.touch(0o600)
        copy_database(path, temporary)
        install(temporary, copy)


#: How the ledger tells the time; tests give their own.
Clock = Callable[[], float]
