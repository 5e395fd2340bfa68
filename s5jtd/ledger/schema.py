"""What a ledger's tables are: numbered migrations, and whether a file still has just these."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection
from importlib import resources

from s5jtd.errors import LedgerError, LedgerNewer

#: "s5jt" in ASCII, in the file's header: another program's database is not ours to open.
APPLICATION_ID = 0x73356A74

#: Indexes that there are only while a job wants another order than that of the keys: each would cost every
#: object of every job two more writes.
ORDER_INDEXES = {
    "objects_seen_by_size": (
        "CREATE INDEX objects_seen_by_size ON objects (job_id, not_before_ms, size, key) WHERE state = 0"
    ),
    "objects_seen_by_time": (
        "CREATE INDEX objects_seen_by_time ON objects (job_id, not_before_ms, modified_ms, key)"
        " WHERE state = 0"
    ),
}
#: The orders in which objects may travel: the index of each, and what it sorts by.
ORDERS = {
    "key": ("objects_seen", "key"),
    "oldest": ("objects_seen_by_time", "modified_ms, key"),
    "newest": ("objects_seen_by_time", "modified_ms DESC, key DESC"),
    "smallest": ("objects_seen_by_size", "size, key"),
    "largest": ("objects_seen_by_size", "size DESC, key DESC"),
}


def migrations() -> list[tuple[int, str]]:
    """Every migration: its number and its SQL, in order."""
    folder = resources.files("s5jtd.ledger") / "migrations"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".sql")]
    return [(int(entry.name[:4]), entry.read_text("utf-8")) for entry in sorted(found, key=lambda e: e.name)]


def missing(sql: sqlite3.Connection) -> list[tuple[int, str]]:
    """The migrations that a database still lacks.

    Raises:
        LedgerNewer: a newer s5jtd wrote it.
        LedgerError: it is another program's.
    """
    steps = migrations()
    newest = steps[-1][0]
    version = sql.execute("PRAGMA user_version").fetchone()[0]
    owner = sql.execute("PRAGMA application_id").fetchone()[0]
    if owner not in (0, APPLICATION_ID) or (owner == 0 and version):
        raise LedgerError("this database belongs to another program", hint="check state_dir")
    if version > newest:
        raise LedgerNewer(
            f"it has version {version}, this program knows {newest}",
            hint="upgrade s5jtd, or go back to the ledger from before the upgrade: INSTALL.md, Going back",
        )
    return [(number, text) for number, text in steps if number > version]


def migrate(sql: sqlite3.Connection, steps: list[tuple[int, str]]) -> None:
    """Run migrations, each in one transaction: a power cut leaves the version before or the one after."""
    for number, text in steps:
        sql.executescript(
            f"BEGIN IMMEDIATE;\n{text}\nPRAGMA application_id = {APPLICATION_ID};\n"
            f"PRAGMA user_version = {number};\nCOMMIT;"
        )


def alien(sql: sqlite3.Connection) -> list[str]:
    """What of a database's tables, indexes and triggers is not as its version's migrations make it.

    Damage there is none to SQLite: a column by another name is as good as any.
    """
    version = sql.execute("PRAGMA user_version").fetchone()[0]
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        migrate(fresh, [step for step in migrations() if step[0] <= version])
        differing = _parts(sql) ^ _parts(fresh)
    return sorted({f"{kind} {name} is not what it should be" for kind, name, _ in differing})


def _parts(sql: sqlite3.Connection) -> set[tuple[str, str, str | None]]:
    found = sql.execute(
        "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~'"
    ).fetchall()
    return {part for part in found if ORDER_INDEXES.get(part[1]) != part[2]}


def keeps_orders(sql: sqlite3.Connection, orders: Collection[str]) -> bool:
    """Whether there are just the indexes that these orders need."""
    return _order_indexes(sql) == _needed(orders)


def keep_orders(sql: sqlite3.Connection, orders: Collection[str]) -> None:
    """Make the indexes that these orders need, and drop the others."""
    wanted, there = _needed(orders), _order_indexes(sql)
    for name in wanted - there:
        sql.execute(ORDER_INDEXES[name])
    for name in there - wanted:
        sql.execute(f"DROP INDEX {name}")


def _needed(orders: Collection[str]) -> set[str]:
    return {ORDERS[order][0] for order in orders} & ORDER_INDEXES.keys()


def _order_indexes(sql: sqlite3.Connection) -> set[str]:
    return {row[0] for row in sql.execute("SELECT name FROM sqlite_schema")} & ORDER_INDEXES.keys()
