"""Is a ledger whole, and does it agree with itself?  Reads only; works beside a daemon that writes.

What SQLite can tell is its own affair (`structure`).  What the schema implies and SQLite cannot hold is
recounted here: counters, what chunks say is aboard, and what each state promises of its row.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s5jtd.errors import LedgerDamaged
from s5jtd.ledger import schema
from s5jtd.ledger.access import Failures, open_reader, plainly
from s5jtd.ledger.states import State
from s5jtd.model import Evidence, printable

#: Of each kind of fault so many are named; after that more of the same says nothing new.
FINDINGS_MAX: Final = 20
#: Rows that are looked at in one go, and grouped in memory.
_STRIDE: Final = 100_000
_POLL_SECONDS: Final = 0.2

GoOn = Callable[[], bool]

_EVIDENCE: Final = ", ".join(f"'{one.value}'" for one in Evidence)

#: What must not be true of any object, and how it is told; `o` is the object, `c` its chunk.  The first
#: are CHECKs of the schema too, but who opens a file to read only, SQLite does not check them for.
_FORBIDDEN: Final = (
    ("o.size < 0", "has a negative size"),
    (f"o.pull_evidence NOT IN ({_EVIDENCE})", "was pulled by an evidence that does not exist"),
    (f"o.push_evidence NOT IN ({_EVIDENCE})", "was delivered by an evidence that does not exist"),
    ("o.state = 0 AND o.aboard", "is seen and yet aboard"),
    (
        "o.state = 1 AND (c.id IS NULL OR c.state NOT IN ('planned', 'pulling'))",
        "is pulling and no chunk pulls it",
    ),
    ("o.state = 1 AND o.aboard", "is pulling and yet aboard"),
    ("o.state IN (2, 3) AND NOT o.aboard", "is staged and not aboard"),
    ("o.state = 2 AND c.state NOT IN ('sealed', 'pushing')", "is staged, and its chunk has nothing to push"),
    ("o.state = 3 AND c.state IS NOT 'pushing'", "is pushing and no chunk pushes it"),
    ("o.state IN (2, 3) AND (o.crc64nvme IS NULL OR o.pull_evidence IS NULL)", "is staged without proof"),
    ("o.state = 4 AND (o.delivered_at_ms IS NULL OR o.push_evidence IS NULL)", "is delivered without proof"),
    ("o.state = 5 AND o.aboard", "is gone and yet aboard"),
    ("o.state = 6 AND o.reason IS NULL", "is parked without a reason"),
    ("o.aboard AND (c.id IS NULL OR c.state = 'released')", "is aboard of no chunk"),
    ("c.job_id <> o.job_id", "is in a chunk of another job"),
)

_CHUNKS: Final = (
    "SELECT c.name, c.aboard, c.aboard_bytes, c.delivered, coalesce(o.files, 0), coalesce(o.size, 0),"
    " coalesce(o.delivered, 0) FROM chunks AS c LEFT JOIN (SELECT chunk_id, count(*) AS files,"
    " sum(size) AS size, sum(state = 4) AS delivered FROM objects INDEXED BY objects_aboard"
    " WHERE aboard = 1 GROUP BY chunk_id) AS o ON o.chunk_id = c.id WHERE c.aboard <> coalesce(o.files, 0)"
    " OR c.aboard_bytes <> coalesce(o.size, 0) OR c.delivered <> coalesce(o.delivered, 0) LIMIT ?"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One question and what was found; nothing found is well."""

    name: str
    findings: tuple[str, ...]


def structure(path: Path, pragma: str, go_on: GoOn) -> list[str] | None:
    """What SQLite itself finds wrong with a file; None where `go_on` said no before the end.

    It may take minutes, in which SQLite says nothing: so it has a thread, and this one asks `go_on`.
    `pragma`: quick_check reads every page of the file, integrity_check also compares table and index.

    Raises:
        sqlite3.DatabaseError, UnicodeDecodeError: it is too broken to be read at all.
    """
    if not go_on():  # a small file may be read before anybody could ask
        return None
    answer: list[str] = []
    failure: list[Exception] = []
    with contextlib.closing(open_reader(path)) as sql:

        def ask() -> None:
            try:
                answer.extend(row[0] for row in sql.execute(f"PRAGMA {pragma}({FINDINGS_MAX})"))
            except Exception as error:  # noqa: BLE001  it is told by the thread that waits
                failure.append(error)

        thread = threading.Thread(target=ask, name="ledger-check", daemon=True)
        thread.start()
        while thread.is_alive():
            if not go_on():
                sql.interrupt()
                thread.join()
                return None
            thread.join(_POLL_SECONDS)
    if failure:
        raise failure[0]
    return [] if answer == ["ok"] else answer or ["SQLite gave no answer"]


def is_broken(path: Path, go_on: GoOn) -> bool:
    """Whether SQLite finds a file damaged, as far as `go_on` let it look."""
    try:
        return bool(structure(path, "quick_check", go_on))
    except Failures:
        return True


def verify_all(path: Path) -> Iterator[Check]:
    """Ask everything, one thing after the other; a file that cannot be read to the end is a finding too.

    Raises:
        LedgerError: it cannot even be opened, or another program keeps it from being read.
    """
    try:
        yield from _verify(path)
    except Failures as error:
        told = plainly(path, error)
        if not isinstance(told, LedgerDamaged):
            raise told from error
        yield Check("structure", (str(error),))


def _verify(path: Path) -> Iterator[Check]:
    structural = structure(path, "integrity_check", lambda: True) or []
    with contextlib.closing(open_reader(path)) as sql:
        structural += schema.alien(sql)
        yield Check("structure", tuple(structural))
        if structural:
            return  # of such a file not even the types of its values are sure; to recount it says nothing
        yield Check("references", tuple(_references(sql)))
        yield from _objects(sql)
        yield Check("chunks", tuple(_chunks(sql)))
        yield Check("released chunks", tuple(_released(sql)))


def _references(sql: sqlite3.Connection) -> Iterator[str]:
    rows = sql.execute(
        'SELECT DISTINCT "table", parent FROM pragma_foreign_key_check LIMIT ?', (FINDINGS_MAX,)
    )
    for table, parent in rows:
        yield f"a row of {table} belongs to a row of {parent} that is not there"


def _objects(sql: sqlite3.Connection) -> Iterator[Check]:
    """One look at every object: what the counters must say, and what no row may be.

    It is one transaction, for counters and rows are only equal at one and the same moment; and it goes in
    strides of ids, so that grouping them needs no file on disk.
    """
    tests = ", ".join(f"coalesce(sum({condition}), 0)" for condition, _ in _FORBIDDEN)
    sql.execute("BEGIN")
    last = sql.execute("SELECT coalesce(max(id), 0) FROM objects").fetchone()[0]
    counted = {tuple(row[:2]): tuple(row[2:]) for row in sql.execute("SELECT * FROM counters")}
    objects: Counter[tuple[int, int]] = Counter()
    sizes: Counter[tuple[int, int]] = Counter()
    wrong: list[str] = []
    start = 0
    while start < last:
        # Ids may lie far apart; the next stride begins where the next row is.
        start = sql.execute("SELECT min(id) FROM objects WHERE id > ?", (start,)).fetchone()[0] - 1
        bounds = (start, start + _STRIDE)
        for job, state, number, size, *faults in sql.execute(
            f"SELECT o.job_id, o.state, count(*), sum(o.size), {tests} FROM objects AS o"
            " LEFT JOIN chunks AS c ON c.id = o.chunk_id WHERE o.id > ? AND o.id <= ? GROUP BY 1, 2",
            bounds,
        ):
            objects[job, state] += number
            sizes[job, state] += size
            for (condition, words), count in zip(_FORBIDDEN, faults, strict=True):
                if count and len(wrong) < FINDINGS_MAX:
                    wrong.append(_example(sql, condition, words, bounds))
        start += _STRIDE
    recounted = {place: (objects[place], sizes[place]) for place in objects}
    jobs = [row[0] for row in sql.execute("SELECT id FROM jobs")]
    sql.execute("COMMIT")
    yield Check("counters", tuple(_counters(counted, recounted, jobs)))
    yield Check("objects", tuple(dict.fromkeys(wrong)))


def _example(sql: sqlite3.Connection, condition: str, words: str, bounds: tuple[int, int]) -> str:
    object_id, key = sql.execute(
        "SELECT o.id, o.key FROM objects AS o LEFT JOIN chunks AS c ON c.id = o.chunk_id"
        f" WHERE o.id > ? AND o.id <= ? AND ({condition}) LIMIT 1",
        bounds,
    ).fetchone()
    return f"object {object_id} ({printable(key)}) {words}"


def _counters(
    counted: dict[tuple[int, int], tuple[int, int]],
    recounted: dict[tuple[int, int], tuple[int, int]],
    jobs: list[int],
) -> Iterator[str]:
    for place in sorted(
        counted.keys() | recounted.keys() | {(job, state.value) for job in jobs for state in State}
    ):
        told, there = counted.get(place), recounted.get(place, (0, 0))
        word = State(place[1]).word if place[1] in list(State) else f"state {place[1]}"
        where = f"job {place[0]}, {word}"
        if told is None:
            yield f"{where}: there is no counter"
        elif told != there:
            yield (
                f"{where}: counted {told[0]} objects and {told[1]} bytes, there are {there[0]} and {there[1]}"
            )


def _chunks(sql: sqlite3.Connection) -> Iterator[str]:
    for name, files, size, delivered, *there in sql.execute(_CHUNKS, (FINDINGS_MAX,)):
        yield (
            f"chunk {name} counts {files} files, {size} bytes, {delivered} of them delivered;"
            f" there are {there[0]}, {there[1]} and {there[2]}"
        )


def _released(sql: sqlite3.Connection) -> Iterator[str]:
    for (name,) in sql.execute(
        "SELECT name FROM chunks WHERE state = 'released' AND (reserved_bytes <> 0 OR aboard <> 0) LIMIT ?",
        (FINDINGS_MAX,),
    ):
        yield f"chunk {name} is released and still holds something"
