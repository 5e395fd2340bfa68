"""Passes on their way to a report: which are open, what came to rest in them, what was told of it.

The numbers are kept by the triggers of migration 0002, in the transactions that move the objects.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from s5jtd.ledger.access import told_plainly
from s5jtd.ledger.database import Database
from s5jtd.ledger.patience import OnBlocked, give_up, patient
from s5jtd.ledger.states import State
from s5jtd.model import Evidence

#: Arrivals read at a time, and deleted at a time: short transactions, so that nobody has to wait.
PAGE_ROWS: Final = 1000
FORGET_ROWS: Final = 10_000

_OPEN: Final = (
    "pass_id, job_id, since_ms, failures_before, looking, open, admitted, admitted_bytes, arrived, told,"
    " reports, epoch, upto, cause"
)
#: The correlated counts are cheap: `failures_of_object` answers them, and most objects have none.
_ARRIVALS: Final = (
    "SELECT a.number, o.key, a.at_ms, a.state, a.size, a.etag, a.pull_evidence, a.push_evidence,"
    " a.staged_at_ms, a.push_endpoint, a.reason, c.pulling_at_ms, c.pull_endpoint, v.name,"
    " o.state = a.state AND o.since_ms = a.at_ms,"
    " (SELECT count(*) FROM failures WHERE object_id = o.id AND id > ?1 AND code <> 'interrupted'),"
    " (SELECT count(*) FROM failures WHERE object_id = o.id AND id > ?1"
    "  AND (code LIKE '%mismatch' OR code = 'local_rot'))"
    " FROM arrivals AS a JOIN objects AS o ON o.id = a.object_id"
    " LEFT JOIN chunks AS c ON c.id = a.chunk_id LEFT JOIN volumes AS v ON v.id = c.volume_id"
    " WHERE a.pass_id = ?2 AND a.number > ?3 AND a.number <= ?4 ORDER BY a.number LIMIT ?5"
)


class OpenPass(NamedTuple):
    """A pass that a report may still have to tell of."""

    id: int
    job_id: int
    since_ms: int  #: when what the next report tells began
    failures_before: int
    looking: int  #: whether a look at the source adds to it now
    open: int  #: objects that are not at rest
    admitted: int  #: objects its looks took in to travel
    admitted_bytes: int
    arrived: int  #: objects that came to rest
    told: int  #: of these, those a report has told
    reports: int
    epoch: int | None  #: of the report under way
    upto: int | None  #: the last arrival it tells
    cause: str | None  #: why it is written

    @property
    def over(self) -> bool:
        """Whether the look ended and everything it showed is at rest."""
        return not self.looking and self.open == 0


@dataclass(frozen=True, slots=True)
class Looks:
    """What the looks of a pass saw: numbers of the newest that saw all of the source, else of the newest."""

    job: str
    source: str
    destination: str
    listed: int
    listed_bytes: int
    found: int  #: by all looks: objects that the destination was seen to hold already
    finished_at_ms: int | None
    error: str | None  #: why none of them saw all of the source
    unfinished: bool  #: none of them came to its end
    failed_again: bool  #: the look before failed too


class Arrival(NamedTuple):
    """What came to rest; a tuple because a report may tell of a million."""

    number: int
    key: bytes
    at_ms: int
    state: int
    size: int
    etag: str
    pull_evidence: str | None
    push_evidence: str | None
    staged_at_ms: int | None
    push_endpoint: str | None
    reason: str | None
    pulling_at_ms: int | None
    pull_endpoint: str | None
    volume: str | None
    stays: int  #: whether the object is still where it came to rest
    failures: int  #: attempts of this pass that failed
    mismatches: int  #: of these, those where a comparison found a difference


# For the scan, inside its transactions


def begin(sql: sqlite3.Connection, job_id: int, now: int) -> int:
    """Begin a look; its id.  It adds to the pass before it while nothing of that has come to rest."""
    row = sql.execute(
        "SELECT pass_id FROM open_passes WHERE job_id = ? AND open > 0 AND arrived = 0 AND reports = 0"
        " AND epoch IS NULL AND pass_id = (SELECT max(pass_id) FROM open_passes WHERE job_id = ?)",
        (job_id, job_id),
    ).fetchone()
    joined = row and row[0]
    made = sql.execute(
        "INSERT INTO passes (job_id, started_at_ms, joined) VALUES (?, ?, ?)", (job_id, now, joined)
    )
    look_id = int(made.lastrowid or 0)
    sql.execute(
        "INSERT INTO open_passes (pass_id, job_id, since_ms, failures_before, looking)"
        " VALUES (?, ?, ?, (SELECT coalesce(max(id), 0) FROM failures), 1)"
        " ON CONFLICT (pass_id) DO UPDATE SET looking = 1",
        (joined or look_id, job_id, now),
    )
    return look_id


def end(sql: sqlite3.Connection, look_id: int) -> None:
    """End a look."""
    sql.execute("UPDATE open_passes SET looking = 0 WHERE pass_id = ?", (owner(sql, look_id),))


def owner(sql: sqlite3.Connection, look_id: int) -> int:
    """The pass that owns what a look takes in."""
    row = sql.execute("SELECT coalesce(joined, id) FROM passes WHERE id = ?", (look_id,)).fetchone()
    return int(row[0])


@patient
class Passes:
    """The reports' door to the ledger."""

    def __init__(self, database: Database, *, on_blocked: OnBlocked = give_up) -> None:
        """`database` is the one the `Ledger` writes to."""
        self._db = database
        self.on_blocked = on_blocked

    @property
    def has_room(self) -> bool:
        """Whether the ledger's disk has room to spare."""
        return self._db.intake_stopped is None

    def any_delivered(self, job_id: int, keys: Collection[bytes], evidence: Collection[Evidence]) -> bool:
        """Whether one of these objects is delivered, with a hop that is proven by this."""
        levels = ", ".join("?" * len(evidence))
        row = self._db.reading().execute(
            f"SELECT 1 FROM objects WHERE job_id = ? AND key IN ({', '.join('?' * len(keys))}) AND state = ?"
            f" AND (pull_evidence IN ({levels}) OR push_evidence IN ({levels})) LIMIT 1",
            (job_id, *keys, State.DELIVERED.value, *evidence, *evidence),
        )
        return row.fetchone() is not None

    def open_passes(self) -> list[OpenPass]:
        """Those that a report may have to tell of, the oldest first."""
        return [OpenPass(*row) for row in self._rows(f"SELECT {_OPEN} FROM open_passes ORDER BY pass_id")]

    def looks(self, one: OpenPass) -> Looks:
        """What the looks of a pass saw."""
        ((job, source, destination),) = self._rows(
            "SELECT name, source, destination FROM jobs WHERE id = ?", one.job_id
        )
        columns = "listed, listed_bytes, found, finished_at_ms, error, complete, id"
        rows = self._rows(
            f"SELECT {columns} FROM passes WHERE id = ?1 UNION ALL SELECT {columns} FROM passes"
            " WHERE joined = ?1 ORDER BY complete, id",
            one.id,
        )
        before = self._rows(
            "SELECT error FROM passes WHERE job_id = ? AND id < ? ORDER BY id DESC LIMIT 1",
            one.job_id, one.id,
        )  # fmt: skip
        best = rows[-1] if rows else (0, 0, 0, None, None)  # a look of long ago may be forgotten
        return Looks(
            job=job,
            source=source,
            destination=destination,
            listed=best[0],
            listed_bytes=best[1],
            found=sum(row[2] for row in rows),
            finished_at_ms=max((row[3] for row in rows if row[3] is not None), default=None),
            error=best[4],
            unfinished=bool(rows) and best[3] is None,
            failed_again=bool(before and before[0][0]),
        )

    def arrivals(self, one: OpenPass, upto: int) -> Iterator[Arrival]:
        """What came to rest and was not told, as far as `upto`, in its order; memory stays flat."""
        after = one.told
        while True:
            rows = self._rows(_ARRIVALS, one.failures_before, one.id, after, upto, PAGE_ROWS)
            yield from (Arrival(*row) for row in rows)
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1][0]

    def failing(self, one: OpenPass) -> int:
        """How many objects of a pass failed and wait for another try at what failed.

        What the end of a daemon cut did not fail, and what lies on a volume has its failed pulls behind it.
        """
        rows = self._rows(
            "SELECT count(DISTINCT f.object_id) FROM failures AS f JOIN objects AS o ON o.id = f.object_id"
            " WHERE f.id > ? AND o.pass_id = ? AND f.code <> 'interrupted'"
            " AND (o.state < 2 OR (o.state < 4 AND f.step = 'push' AND f.at_ms >= o.staged_at_ms))",
            one.failures_before, one.id,
        )  # fmt: skip
        return int(rows[0][0])

    def _rows(self, query: str, *parameters: object) -> list[Any]:
        with told_plainly(self._db.path):
            return self._db.reading().execute(query, parameters).fetchall()

    def cut(self) -> list[OpenPass]:
        """At start: no look is under way, whatever an earlier life wrote; the passes that life cut."""
        cut = [one for one in self.open_passes() if not one.over and one.epoch is None]
        with self._db.writing() as sql:
            sql.execute("UPDATE open_passes SET looking = 0")
        return cut

    def claim(self, one: OpenPass, epoch: int, cause: str) -> OpenPass:
        """Settle what the next report of a pass says: all that has come to rest by now."""
        with self._db.writing() as sql:
            row = sql.execute(
                "UPDATE open_passes SET epoch = ?, upto = arrived, cause = ? WHERE pass_id = ?"
                f" RETURNING {_OPEN}",
                (epoch, cause, one.id),
            ).fetchone()
        return OpenPass(*row)

    def tell(self, one: OpenPass, until_ms: int) -> None:
        """The report that was claimed is durable: what it tells need not be kept.

        A crash in between makes the same report again, so the last of the rows and the claim go together.
        """
        upto = one.upto or 0
        for number in range(one.told + FORGET_ROWS, upto, FORGET_ROWS):
            self._forget(one.id, number)
        with self._db.writing() as sql:
            sql.execute("DELETE FROM arrivals WHERE pass_id = ? AND number <= ?", (one.id, upto))
            sql.execute(
                "UPDATE open_passes SET told = upto, reports = reports + 1, since_ms = ?, epoch = NULL,"
                " upto = NULL, cause = NULL WHERE pass_id = ?",
                (until_ms, one.id),
            )
            self._close(sql, one.id)

    def close(self, one: OpenPass) -> None:
        """A pass of which there is nothing to tell."""
        with self._db.writing() as sql:
            self._close(sql, one.id)

    def _close(self, sql: sqlite3.Connection, pass_id: int) -> None:
        sql.execute(
            "DELETE FROM open_passes WHERE pass_id = ? AND looking = 0 AND open = 0 AND arrived = told"
            " AND epoch IS NULL",
            (pass_id,),
        )

    def _forget(self, pass_id: int, number: int) -> None:
        with self._db.writing() as sql:
            sql.execute("DELETE FROM arrivals WHERE pass_id = ? AND number <= ?", (pass_id, number))
