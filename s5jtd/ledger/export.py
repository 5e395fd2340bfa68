"""Every row of the objects as CSV or JSON Lines, for whoever must prove what arrived.

Rows come in key order, job by job, a page at a time: memory stays flat at any size, and a daemon that
goes on writing is not made to keep an old moment for as long as the export takes.  So each row is true of
the moment it was read; a picture of one moment is what `ledger backup` makes.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO

from s5jtd.errors import UsageError
from s5jtd.ledger.access import PlainReader, open_reader, told_plainly
from s5jtd.ledger.states import State
from s5jtd.log import escape
from s5jtd.model import printable

_PAGE: Final = 5_000
#: Columns that other words serve better outside: sizes carry their unit, and ids of other rows mean nothing.
_RENAMED: Final = {"size": "size_bytes", "part_size": "part_size_bytes", "pass_id": "pass"}
_ELSEWHERE: Final = frozenset({"key", "job_id", "chunk_id"})
_YES_NO: Final = frozenset({"aboard", "found", "pull_insecure", "push_insecure"})
#: What a source or a destination chose the words of.
_HOSTILE: Final = frozenset({"key", "etag", "destination_etag", "reason"})
#: A spreadsheet takes a cell that begins so for a formula, and a key may hold one on purpose.
_FORMULA: Final = tuple("=+-@\t\r")


class Table(NamedTuple):
    """What is exported."""

    names: Sequence[str]  #: of the columns; the first is `key`, whose values are bytes here
    rows: Iterator[Sequence[Any]]  #: to be read while the table is open


@contextlib.contextmanager
def opened(path: Path, job: str | None, state: State | None) -> Iterator[Table]:
    """Every object's row, ready for people and programs: times in RFC 3339, states by name.

    Raises:
        UsageError: the ledger knows no such job.
        LedgerError: it cannot be read, also while rows are read.
    """
    with told_plainly(path):
        sql = open_reader(path, PlainReader)
    with contextlib.closing(sql):
        known = dict(sql.execute("SELECT name, id FROM jobs ORDER BY name").fetchall())
        if job is not None and job not in known:
            raise UsageError(
                f"the ledger knows no job {job!r}", hint=f"it knows: {', '.join(known) or 'none'}"
            )
        columns = _columns(sql)
        ids = list(known.values()) if job is None else [known[job]]
        yield Table(
            list(columns),
            (row for job_id in ids for row in _of_job(path, sql, columns.values(), job_id, state)),
        )


def write_csv(table: Table, out: TextIO) -> int:
    """Write a heading and a line for each row; how many rows there were.

    It is safe to print and to open: in what servers chose, control characters are escaped, and a text
    that a spreadsheet would take for a formula has an apostrophe before it.  `key_base64` holds the exact
    key wherever `key` is not exactly it, and is empty otherwise.
    """
    names = table.names[1:]
    hostile = [place for place, name in enumerate(names) if name in _HOSTILE]
    yes_no = [place for place, name in enumerate(names) if name in _YES_NO]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["key", "key_base64", *names])
    count = 0
    for key, *cells in table.rows:
        for place in hostile:
            if cells[place]:
                cells[place] = _harmless(cells[place])
        for place in yes_no:
            cells[place] = "true" if cells[place] else "false"
        shown, exact = _key(key, _harmless)
        writer.writerow([shown, exact, *cells])
        count += 1
    return count


def write_jsonl(table: Table, out: TextIO) -> int:
    """Write one JSON object a line, in ASCII; how many there were.

    `key` is exact where the key is UTF-8; where it is not, `key_base64` is, which is null otherwise.
    """
    names = ["key", "key_base64", *table.names[1:]]
    yes_no = [place for place, name in enumerate(table.names[1:]) if name in _YES_NO]
    encode = json.JSONEncoder(separators=(",", ":")).encode
    count = 0
    for key, *cells in table.rows:
        for place in yes_no:
            cells[place] = bool(cells[place])
        out.write(encode(dict(zip(names, (*_key(key, str), *cells), strict=True))) + "\n")
        count += 1
    return count


def _key(key: bytes, show: Callable[[str], str]) -> tuple[str, str | None]:
    """A key as it is shown, and its exact bytes where that is something else."""
    shown = show(printable(key))
    return shown, None if shown.encode() == key else base64.b64encode(key).decode()


def _harmless(text: str) -> str:
    text = escape(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _of_job(
    path: Path, sql: sqlite3.Connection, columns: Iterable[str], job_id: int, state: State | None
) -> Iterator[Sequence[Any]]:
    wanted = "" if state is None else f" AND o.state = {state.value}"
    query = (
        f"SELECT {', '.join(columns)} FROM objects AS o JOIN jobs AS j ON j.id = o.job_id"
        " JOIN states AS s ON s.code = o.state LEFT JOIN chunks AS c ON c.id = o.chunk_id"
        " LEFT JOIN volumes AS v ON v.id = c.volume_id"
        f" WHERE o.job_id = ? AND o.key > ? AND o.key <= ?{wanted} ORDER BY o.key"
    )
    after = b""
    while True:
        end = sql.execute(
            "SELECT max(key) FROM"
            " (SELECT key FROM objects WHERE job_id = ? AND key > ? ORDER BY key LIMIT ?)",
            (job_id, after, _PAGE),
        ).fetchone()[0]
        if end is None:
            return
        # The page is read whole: a question that stays open would keep the WAL from being cut.
        with told_plainly(path):
            page = sql.execute(query, (job_id, after, end)).fetchall()
        yield from page
        after = end


def _columns(sql: sqlite3.Connection) -> dict[str, str]:
    """What to select, by its name outside: every column there is, so that none can be forgotten."""
    chosen = {"key": "o.key", "job": "j.name"}
    for name in (row[1] for row in sql.execute("PRAGMA table_info(objects)")):
        if name in _ELSEWHERE:
            continue
        if name == "state":
            chosen[name] = "s.name"
        elif name.endswith("_ms"):
            # 0 stands for a time that was never set.
            chosen[name.removesuffix("_ms")] = (
                f"strftime('%Y-%m-%dT%H:%M:%fZ', nullif(o.{name}, 0) / 1000.0, 'unixepoch')"
            )
        else:
            chosen[_RENAMED.get(name, name)] = f"o.{name}"
    return chosen | {
        "chunk": "c.name", "volume": "v.name",
        "pull_endpoint": "c.pull_endpoint", "push_endpoint": "c.push_endpoint",
    }  # fmt: skip
