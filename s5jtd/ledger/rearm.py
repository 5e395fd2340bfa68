"""The ledger's part in a resync: its rows in key order, and what a comparison makes true of them."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from s5jtd.ledger.moves import count, keep_delivery, move
from s5jtd.ledger.rows import Item
from s5jtd.ledger.states import State
from s5jtd.model import Digests, Evidence, Listed

#: Rows read at a time: short transactions, so that the WAL can be checkpointed in between.
PAGE_ROWS = 1000

#: Why a delivery is believed no more.
MISSING = "destination_missing"
DIFFERS = "destination_differs"
#: Its bytes are others although what the destination says of them is not: its word is not taken again.
CONTENT_DIFFERS = "content_differs"

_COLUMNS = (
    "id, key, size, etag, modified_ms, state, since_ms, aboard, reason, crc64nvme, md5, sha256, part_size,"
    " part_etag, destination_etag"
)


class Known(NamedTuple):
    """A row as a comparison needs it; a tuple because a resync reads a hundred million of them."""

    id: int
    key: bytes
    size: int
    etag: str
    modified_ms: int
    state: int
    since_ms: int
    aboard: int
    reason: str | None
    crc64nvme: str | None
    md5: str | None
    sha256: str | None
    part_size: int | None
    part_etag: str | None
    destination_etag: str | None

    def is_version(self, listed: Listed) -> bool:
        """Whether the source still shows the version of this row."""
        if self.size != listed.size or self.etag != listed.etag:
            return False
        return bool(self.etag) or self.modified_ms == listed.modified_ms

    @property
    def digests(self) -> Digests | None:
        """What was computed of the bytes while they were here; None where they never were."""
        if self.crc64nvme is None:
            return None
        parts = {self.part_size: self.part_etag} if self.part_size and self.part_etag else {}
        return Digests(self.size, self.crc64nvme, self.md5, self.sha256, parts)

    @property
    def item(self) -> Item:
        """As the moves of the ledger want it."""
        return Item(self.id, self.key, self.size, self.etag, self.modified_ms, 0)


@dataclass(frozen=True, slots=True)
class Doubt:
    """An object that must travel again, because the destination was seen not to hold it (any more)."""

    row: Known  #: `delivered` or `gone`
    version: Listed  #: what the source holds now
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Found:
    """An object that need not travel, because both sides were seen to hold the same."""

    row: Known | None  #: `seen` or `parked`, in the version of `listed`; None: the ledger never met it
    listed: Listed  #: at the source
    etag: str  #: the destination's
    evidence: Evidence
    insecure: bool = False  #: a side spoke TLS to us, and nobody looked at its certificate


def rows(sql: sqlite3.Connection, job_id: int, prefix: bytes) -> Iterator[Known]:
    """The rows whose keys begin with `prefix`, in key order, each as it is when its page is read."""
    # One lower bound: of two SQLite may take the wrong one, and read all over again for each page.
    beyond, start = ">=", prefix
    while True:
        page = sql.execute(
            f"SELECT {_COLUMNS} FROM objects WHERE job_id = ? AND key {beyond} ? ORDER BY key LIMIT ?",
            (job_id, start, PAGE_ROWS),
        ).fetchall()
        for row in map(Known._make, page):
            if not row.key.startswith(prefix):
                return
            yield row
        if len(page) < PAGE_ROWS:
            return
        beyond, start = ">", page[-1][1]


def distrusted(sql: sqlite3.Connection, chunk_id: int) -> set[int]:
    """The objects aboard a chunk whose last resync found the destination's word for them to be false."""
    found = sql.execute(
        "SELECT f.object_id FROM objects AS o INDEXED BY objects_aboard JOIN failures AS f"
        " ON f.object_id = o.id WHERE o.chunk_id = ? AND o.aboard = 1 AND f.code = ?"
        " AND f.id = (SELECT max(id) FROM failures WHERE object_id = o.id AND step = 'resync')",
        (chunk_id, CONTENT_DIFFERS),
    )
    return {row[0] for row in found}


def settle(
    sql: sqlite3.Connection,
    job_id: int,
    doubts: Sequence[Doubt],
    unknown: Sequence[Listed],
    found: Sequence[Found],
    now: int,
) -> int:
    """Make true what a comparison showed; the number of objects that travel because of it.

    Doubted objects are `seen` again, and their delivery stays on record; unknown ones are taken in as
    `seen`; found ones are `delivered`.  A row that moved on since it was compared is left alone.
    """
    standing = [doubt for doubt in doubts if not doubt.row.aboard and _stands(sql, doubt.row)]
    for was in (State.DELIVERED, State.GONE):
        _rearm(sql, job_id, was, [doubt for doubt in standing if doubt.row.state == was], now)
    new = sum(_insert(sql, job_id, State.SEEN, listed, now) for listed in unknown)
    _deliver(sql, job_id, found, now)
    return len(standing) + new


def _stands(sql: sqlite3.Connection, row: Known) -> bool:
    """Whether a row is still as it was when it was read."""
    found = sql.execute(
        "SELECT state, since_ms, size, etag, aboard FROM objects WHERE id = ?", (row.id,)
    ).fetchone()
    return bool(found == (row.state, row.since_ms, row.size, row.etag, row.aboard))


def _rearm(sql: sqlite3.Connection, job_id: int, was: State, doubts: Sequence[Doubt], now: int) -> None:
    for doubt in doubts:
        if was is State.DELIVERED:
            keep_delivery(sql, doubt.row.id)
    # Before the move: it is why they travel, and not how this journey went.
    sql.executemany(
        "INSERT INTO failures (object_id, at_ms, step, code, message) VALUES (?, ?, 'resync', ?, ?)",
        [(doubt.row.id, now, doubt.code, doubt.message) for doubt in doubts],
    )
    move(
        sql, job_id, was, State.SEEN, [doubt.row.item for doubt in doubts],
        "since_ms = ?, size = ?, etag = ?, modified_ms = ?, attempts = 0, not_before_ms = 0,"
        " chunk_id = NULL, reason = NULL, staged_at_ms = NULL, pull_evidence = NULL, crc64nvme = NULL,"
        " md5 = NULL, sha256 = NULL, part_size = NULL, part_etag = NULL, delivered_at_ms = NULL,"
        " push_evidence = NULL, destination_etag = NULL, found = 0,"
        " pull_insecure = 0, push_insecure = 0",
        [(now, d.version.size, d.version.etag, d.version.modified_ms) for d in doubts],
    )  # fmt: skip
    grown = sum(doubt.version.size - doubt.row.size for doubt in doubts)
    count(sql, job_id, Counter({(State.SEEN, "bytes"): grown}))


def _insert(
    sql: sqlite3.Connection,
    job_id: int,
    state: State,
    listed: Listed,
    now: int,
    proof: tuple[int, Evidence, str, int, int] | tuple[None, None, None, int, int] = (None, None, None, 0, 0),
) -> int:
    """Take in an object that nobody took in meanwhile; 1 if so."""
    made = sql.execute(
        "INSERT INTO objects (job_id, key, size, etag, modified_ms, state, since_ms, seen_at_ms,"
        " delivered_at_ms, push_evidence, destination_etag, found, push_insecure)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id, key) DO NOTHING",
        (job_id, listed.key, listed.size, listed.etag, listed.modified_ms, state, now, now, *proof),
    ).rowcount
    if made:
        count(sql, job_id, Counter({(state, "objects"): 1, (state, "bytes"): listed.size}))
    return made


def _deliver(sql: sqlite3.Connection, job_id: int, found: Sequence[Found], now: int) -> None:
    for one in found:
        if one.row is None:
            proof = (now, one.evidence, one.etag, 1, int(one.insecure))
            _insert(sql, job_id, State.DELIVERED, one.listed, now, proof)
    known = [one for one in found if one.row is not None and _stands(sql, one.row)]
    rows = [one.row for one in known if one.row is not None]
    parked = [row for row in rows if row.state == State.PARKED]
    move(
        sql, job_id, State.PARKED, State.SEEN, [row.item for row in parked],
        "since_ms = ?", [(now,)] * len(parked),
    )  # fmt: skip
    move(
        sql, job_id, State.SEEN, State.DELIVERED, [row.item for row in rows],
        "since_ms = ?, delivered_at_ms = ?, attempts = 0, not_before_ms = 0, reason = NULL,"
        " push_evidence = ?, destination_etag = ?, found = 1, push_insecure = ?",
        [(now, now, one.evidence, one.etag, int(one.insecure)) for one in known],
    )  # fmt: skip
    # A parked one may have a file on a volume, which may go now.
    sql.executemany(
        "UPDATE chunks SET delivered = delivered + 1 WHERE id = (SELECT chunk_id FROM objects WHERE id = ?)",
        [(row.id,) for row in rows if row.aboard],
    )
