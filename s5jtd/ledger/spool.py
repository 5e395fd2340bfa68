"""A listing that came in no order, put in order on disk: memory stays flat, and repetitions go."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from s5jtd.ledger.access import told_plainly
from s5jtd.ledger.schema import ORDERS
from s5jtd.model import Listed

#: What errors name: the file is SQLite's own, without a name, in the folder of the ledger.
_PLACE = Path("temporary file in state_dir")


class Spool:
    """Fill it, then read it in key order; closing it frees the disk, and so does the end of the process."""

    def __init__(self) -> None:
        """Make the file.

        Raises:
            LedgerError: as all else here, where the disk does not let us.
        """
        with told_plainly(_PLACE):
            self._sql = sqlite3.connect("", isolation_level=None)
            # It need survive nothing.
            self._sql.execute("PRAGMA journal_mode = OFF")
            self._sql.execute("PRAGMA synchronous = OFF")
            self._sql.execute(
                "CREATE TABLE listed (key BLOB NOT NULL, size INTEGER NOT NULL, etag TEXT NOT NULL,"
                " modified_ms INTEGER NOT NULL) STRICT"
            )

    def add(self, objects: Sequence[Listed]) -> None:
        """Take in some of the listing."""
        with told_plainly(_PLACE):
            self._sql.execute("BEGIN")
            self._sql.executemany("INSERT INTO listed VALUES (?, ?, ?, ?)", objects)
            self._sql.execute("COMMIT")

    def ordered(self, order: str = "key") -> Iterator[Listed]:
        """All of it, in key order or in another of `ORDERS`; each key once: as it was listed last."""
        if order != "key":
            yield from self._by(ORDERS[order][1])
            return
        with told_plainly(_PLACE):
            last: Listed | None = None
            for one in map(
                Listed._make,
                self._sql.execute("SELECT key, size, etag, modified_ms FROM listed ORDER BY key, rowid"),
            ):
                if last is not None and last.key != one.key:
                    yield last
                last = one
            if last is not None:
                yield last

    def _by(self, columns: str) -> Iterator[Listed]:
        with told_plainly(_PLACE):
            yield from map(
                Listed._make,
                self._sql.execute(
                    "SELECT key, size, etag, modified_ms FROM listed"
                    f" WHERE rowid IN (SELECT max(rowid) FROM listed GROUP BY key) ORDER BY {columns}"
                ),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sql.close()
