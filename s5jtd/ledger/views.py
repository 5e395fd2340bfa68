"""Every question the ledger answers; each costs what its answer is long, not what the ledger is."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from s5jtd.ledger import rearm
from s5jtd.ledger.database import Clock, Database
from s5jtd.ledger.overview import LAST_DELIVERY, Overview, as_pass, in_force, overview, staged_bytes
from s5jtd.ledger.rows import Chunk, Item, Pass, Pauses, Volume
from s5jtd.ledger.schema import ORDERS
from s5jtd.ledger.states import ChunkState, State
from s5jtd.ledger.volumes import COLUMNS, Holdings, holdings, queued_bytes
from s5jtd.model import Digests, Evidence, Listed

#: Key, size, ETag, modified time, as `Listed` has them; what is gone is no version.
Version = tuple[bytes, int, str, int]
_VERSION = "key, CASE state WHEN ? THEN -1 ELSE size END, etag, modified_ms"
_RANGE_ROWS_PER_KEY = 4  #: a range is read up to this many rows for each key of the page

#: No backoff is longer; one that seems to be was written by a clock that was wrong.
BACKOFF_MS_MAX = 3_600_000

_ITEM = "id, key, size, etag, modified_ms, attempts"


def _version(key: bytes, size: int, etag: str, modified_ms: int) -> Version:
    return key, size, etag, 0 if etag else modified_ms


class Views:
    """The reading door to the ledger."""

    def __init__(self, db: Database, clock: Clock) -> None:
        """`clock` tells which delays are over."""
        self._db = db
        self._clock = clock

    def _now(self) -> int:
        return int(self._clock() * 1000)

    # scan

    def fresh(self, job_id: int, page: Sequence[Listed], *, ascending: bool) -> list[Listed]:
        """Which of a listing page's objects are new or changed.

        An ascending page is merged with one range of the index; otherwise each key is looked up.
        A version is its size and ETag; the modified time decides only where there is no ETag,
        because the same bytes written again need not travel again.
        """
        if not page:
            return []
        known = self._between(job_id, page) if ascending else None
        if known is None:
            known = self._among(job_id, page)
        if known == page:  # as nearly every page of a rescan
            return []
        versions = {_version(*one) for one in known}
        return [one for one in page if _version(*one) not in versions]

    def _between(self, job_id: int, page: Sequence[Listed]) -> Sequence[Version] | None:
        """The versions known from a page's first key to its last, by key.

        None where they are many more than the page: a source that lost most of its objects is asked
        after key by key.
        """
        enough = _RANGE_ROWS_PER_KEY * len(page)
        rows = (
            self._db.reading()
            .execute(
                f"SELECT {_VERSION} FROM objects WHERE job_id = ? AND key BETWEEN ? AND ?"
                " ORDER BY key LIMIT ?",
                (State.GONE, job_id, page[0].key, page[-1].key, enough + 1),
            )
            .fetchall()
        )
        return None if len(rows) > enough else rows

    def _among(self, job_id: int, page: Sequence[Listed]) -> Sequence[Version]:
        return (
            self._db.reading()
            .execute(
                f"SELECT {_VERSION} FROM objects WHERE job_id = ? AND key IN ({', '.join('?' * len(page))})",
                (State.GONE, job_id, *[one.key for one in page]),
            )
            .fetchall()
        )

    def unknown(self, job_id: int, keys: Sequence[bytes]) -> set[bytes]:
        """Which of these keys the ledger never met."""
        rows = self._db.reading().execute(
            f"SELECT key FROM objects WHERE job_id = ? AND key IN ({', '.join('?' * len(keys))})",
            (job_id, *keys),
        )
        return set(keys) - {row[0] for row in rows}

    def began_ms(self, job_id: int) -> int | None:
        """When a job first looked at its source."""
        row = (
            self._db.reading()
            .execute("SELECT started_at_ms FROM passes WHERE job_id = ? ORDER BY id LIMIT 1", (job_id,))
            .fetchone()
        )
        return None if row is None else int(row[0])

    def states(self, job_id: int, keys: Collection[bytes]) -> dict[bytes, State]:
        """The states of these objects, of those that are known."""
        rows = self._db.reading().execute(
            f"SELECT key, state FROM objects WHERE job_id = ? AND key IN ({', '.join('?' * len(keys))})",
            (job_id, *keys),
        )
        return {row[0]: State(row[1]) for row in rows}

    # plan

    def candidates(self, job_id: int, limit: int, order: str = "key") -> list[Item]:
        """The next objects that are `seen` and due, first those never put off, in the order asked for.

        For another order than by key the ledger must keep its index: see `Database.keep_orders`.
        """
        sql = self._db.reading()
        now = self._now()
        items: list[Item] = []
        index, columns = ORDERS[order]
        for by, condition, parameters in (
            (index, f"not_before_ms = 0 ORDER BY {columns}", ()),
            ("objects_seen", "not_before_ms BETWEEN 1 AND ? ORDER BY not_before_ms", (now,)),
            ("objects_seen", "not_before_ms > ? ORDER BY not_before_ms", (now + BACKOFF_MS_MAX,)),
        ):
            if len(items) < limit:
                rows = sql.execute(
                    f"SELECT {_ITEM} FROM objects INDEXED BY {by}"
                    f" WHERE job_id = ? AND state = 0 AND {condition} LIMIT ?",
                    (job_id, *parameters, limit - len(items)),
                )
                items += [Item(*row) for row in rows]
        return items

    def planned(self, volume_id: int) -> int:
        """How many chunks of a volume wait for a puller and nothing else."""
        return int(
            self._db.reading()
            .execute(
                "SELECT count(*) FROM chunks WHERE volume_id = ? AND state = 'planned'"
                " AND not_before_ms <= ?",
                (volume_id, int(self._clock() * 1000)),
            )
            .fetchone()[0]
        )

    def queued_bytes(self, volume_id: int) -> int:
        """Bytes that are promised to a volume and not proven there yet."""
        return queued_bytes(self._db.reading(), volume_id)

    def reserved_bytes(self, volume_ids: Iterable[int]) -> int:
        """Bytes promised on these volumes that may not have been written yet."""
        ids = list(volume_ids)
        row = (
            self._db.reading()
            .execute(
                "SELECT coalesce(sum(reserved_bytes), 0) FROM chunks WHERE state <> 'released'"
                f" AND volume_id IN ({', '.join('?' * len(ids))})",
                ids,
            )
            .fetchone()
        )
        return int(row[0])

    def taken_bytes(self, since_ms: int, planned_since_ms: int, job_id: int | None = None) -> int:
        """Bytes (of a job) that were pulled or streamed since then, or are about to be.

        No older chunk than one planned at `planned_since_ms` is looked at.
        """
        row = (
            self._db.reading()
            .execute(
                "SELECT (SELECT coalesce(sum(bytes), 0) FROM chunks WHERE id > coalesce("
                "(SELECT id FROM chunks WHERE planned_at_ms < ?1 ORDER BY id DESC LIMIT 1), 0)"
                " AND (state IN ('planned', 'pulling') OR sealed_at_ms >= ?2)"
                " AND (?3 IS NULL OR job_id = ?3))"
                " + (SELECT coalesce(sum(bytes), 0) FROM streams"
                " WHERE at_ms >= ?2 AND (?3 IS NULL OR job_id = ?3))",
                (planned_since_ms, since_ms, job_id),
            )
            .fetchone()
        )
        return int(row[0])

    # pull, push, release

    def pulling(self, chunk_id: int) -> list[Item]:
        """The objects promised to a chunk.

        Its rows are found by id: a chunk that is being pulled has no files that count yet.
        """
        rows = self._db.reading().execute(
            f"SELECT {_ITEM} FROM objects INDEXED BY objects_in_flight WHERE chunk_id = ? AND state = 1"
            " ORDER BY key",
            (chunk_id,),
        )
        return [Item(*row) for row in rows]

    def aboard(
        self, chunk_id: int, state: State, sql: sqlite3.Connection | None = None
    ) -> list[tuple[Item, int]]:
        """The objects of a chunk with a file in its folder, in one state; each with its delay's end."""
        rows = (sql or self._db.reading()).execute(
            f"SELECT {_ITEM}, not_before_ms, crc64nvme, md5, sha256, part_size, part_etag, pull_evidence"
            " FROM objects INDEXED BY objects_aboard WHERE chunk_id = ? AND aboard = 1 AND state = ?"
            " ORDER BY key",
            (chunk_id, state),
        )
        return [(_staged_item(row), row[6]) for row in rows]

    def files(self, chunk_id: int) -> list[int]:
        """The ids of the objects with a file in a chunk's folder, whatever their state."""
        query = "SELECT id FROM objects INDEXED BY objects_aboard WHERE chunk_id = ? AND aboard = 1"
        return [id_ for (id_,) in self._db.reading().execute(query, (chunk_id,))]

    def all_delivered(self, chunk_id: int) -> bool:
        """Whether no file of a chunk is needed any more.

        One question, because a retry may turn `parked` into `staged` between two.
        """
        row = (
            self._db.reading()
            .execute(
                "SELECT NOT EXISTS (SELECT 1 FROM objects INDEXED BY objects_aboard"
                " WHERE chunk_id = ? AND aboard = 1 AND state <> 4)",
                (chunk_id,),
            )
            .fetchone()
        )
        return bool(row[0])

    def releasable(self, volume_id: int) -> Chunk | None:
        """A chunk of a volume with delivered files to unlink, or with a folder to remove."""
        row = (
            self._db.reading()
            .execute(
                "SELECT id, name, job_id, state FROM chunks WHERE volume_id = ?"
                " AND state IN ('sealed', 'resting') AND (delivered > 0 OR aboard = 0) ORDER BY id LIMIT 1",
                (volume_id,),
            )
            .fetchone()
        )
        return row and Chunk(row[0], row[1], row[2], volume_id, ChunkState(row[3]))

    def chunks(self, volume_id: int, *states: ChunkState) -> list[Chunk]:
        """The chunks of a volume in the given states, oldest first."""
        rows = self._db.reading().execute(
            "SELECT id, name, job_id, state FROM chunks WHERE volume_id = ?"
            f" AND state IN ({', '.join('?' * len(states))}) ORDER BY id",
            (volume_id, *states),
        )
        return [Chunk(row[0], row[1], row[2], volume_id, ChunkState(row[3])) for row in rows]

    def next_due_ms(self, job_id: int) -> int | None:
        """When the next object that was put off is due again, if any waits."""
        sql = self._db.reading()
        times = [
            sql.execute(
                "SELECT min(not_before_ms) FROM objects INDEXED BY objects_seen WHERE job_id = ?"
                " AND state = 0 AND not_before_ms > 0",
                (job_id,),
            ).fetchone()[0],
            sql.execute(
                "SELECT min(not_before_ms) FROM chunks WHERE state = 'sealed' AND job_id = ?", (job_id,)
            ).fetchone()[0],
        ]
        return min((time for time in times if time is not None), default=None)

    # resync

    def known(self, job_id: int, prefix: bytes) -> Iterator[rearm.Known]:
        """The rows of a job whose keys begin with `prefix`, in key order, for as long as one thread reads."""
        return rearm.rows(self._db.reading(), job_id, prefix)

    def distrusted(self, chunk_id: int) -> set[int]:
        """The objects aboard a chunk for which the destination's word, asked before a push, is not enough."""
        return rearm.distrusted(self._db.reading(), chunk_id)

    # status

    def overview(self, job_id: int) -> Overview:
        """What `status` tells of a job."""
        return overview(self._db.reading(), job_id, self._now())

    def counters(self, job_id: int) -> tuple[dict[str, int], dict[str, int]]:
        """Objects and bytes of a job by state."""
        rows = (
            self._db.reading()
            .execute("SELECT state, objects, bytes FROM counters WHERE job_id = ?", (job_id,))
            .fetchall()
        )
        return ({State(r[0]).word: r[1] for r in rows}, {State(r[0]).word: r[2] for r in rows})

    def pauses(self, job_id: int) -> Pauses:
        """Until when the halves of a job rest; a pause that is over is none."""
        row = (
            self._db.reading()
            .execute("SELECT pull_paused_until_ms, push_paused_until_ms FROM jobs WHERE id = ?", (job_id,))
            .fetchone()
        )
        return in_force(row[0], row[1], self._now())

    def last_pass(self, job_id: int) -> Pass | None:
        """The newest look at a job's source."""
        row = (
            self._db.reading()
            .execute(
                "SELECT id, started_at_ms, finished_at_ms, complete, listed, fresh, found, error FROM passes"
                " WHERE job_id = ? ORDER BY id DESC LIMIT 1",
                (job_id,),
            )
            .fetchone()
        )
        return None if row is None else as_pass(row)

    def last_delivery_ms(self, job_id: int) -> int | None:
        """When anything of this job last reached the destination."""
        asked = f"SELECT {LAST_DELIVERY} FROM jobs WHERE id = ?"
        row = self._db.reading().execute(asked, (job_id,)).fetchone()
        return None if row is None else int(row[0]) or None

    def staged_bytes(self) -> dict[int, int]:
        """Bytes of objects that lie on each volume, proven and not unlinked."""
        return staged_bytes(self._db.reading())

    def holdings(self, volume_id: int) -> Holdings:
        """What lies on a volume or is promised to it, and what of it would be lost with it."""
        return holdings(self._db.reading(), volume_id)

    def volumes(self) -> list[Volume]:
        """Every volume the ledger ever met."""
        rows = self._db.reading().execute(f"SELECT {COLUMNS} FROM volumes")
        return [Volume(*row) for row in rows]

    def chunk_known(self, name: str) -> bool:
        """Whether a chunk of this name was ever planned here."""
        row = self._db.reading().execute("SELECT 1 FROM chunks WHERE name = ?", (name,)).fetchone()
        return row is not None

    def chunks_pulling(self, job_id: int) -> int:
        """How many chunks of a job are being pulled right now."""
        row = (
            self._db.reading()
            .execute("SELECT count(*) FROM chunks WHERE state = 'pulling' AND job_id = ?", (job_id,))
            .fetchone()
        )
        return int(row[0])

    def parked_reasons(self, job_id: int) -> dict[str, int]:
        """How many objects of a job are parked, by the code of their reason."""
        rows = self._db.reading().execute(
            "SELECT substr(reason, 1, instr(reason, ':') - 1) AS code, count(*)"
            " FROM objects INDEXED BY objects_parked WHERE job_id = ? AND state = 6 GROUP BY code",
            (job_id,),
        )
        return dict(rows.fetchall())

    def volume_by_uuid(self, uuid: str) -> Volume | None:
        """A volume the ledger knows."""
        row = self._db.reading().execute(f"SELECT {COLUMNS} FROM volumes WHERE uuid = ?", (uuid,)).fetchone()
        return row and Volume(*row)

    def volume_at(self, path: str) -> Volume | None:
        """The volume that was last attached at a path."""
        row = (
            self._db.reading()
            .execute(
                f"SELECT {COLUMNS} FROM volumes WHERE path = ? ORDER BY id DESC LIMIT 1",
                (path,),
            )
            .fetchone()
        )
        return row and Volume(*row)

    # objects, explain

    def objects(
        self,
        job_id: int,
        *,
        state: State | None,
        prefix: bytes,
        after: bytes,
        limit: int,
        until: bytes | None = None,
    ) -> Iterator[Mapping[str, Any]]:
        """Rows of a job in key order, strictly after a key, with their volume's name."""
        where, parameters = _stretch(job_id, prefix, after)
        if until is not None:
            where += " AND o.key <= ?"
            parameters.append(until)
        if state is not None:
            where += f" AND o.state = {state.value}"
        cursor = self._db.reading().execute(
            "SELECT o.*, v.name AS volume FROM objects AS o LEFT JOIN chunks AS c ON c.id = o.chunk_id"
            f" LEFT JOIN volumes AS v ON v.id = c.volume_id WHERE {where} ORDER BY o.key LIMIT ?",
            (*parameters, limit),
        )
        return _mappings(cursor)

    def key_further_on(self, job_id: int, *, prefix: bytes, after: bytes, rows: int) -> bytes | None:
        """The key that is `rows` rows further on; None where there are not so many."""
        where, parameters = _stretch(job_id, prefix, after)
        row = (
            self._db.reading()
            .execute(
                f"SELECT o.key FROM objects AS o WHERE {where} ORDER BY o.key LIMIT 1 OFFSET ?",
                (*parameters, rows - 1),
            )
            .fetchone()
        )
        return None if row is None else bytes(row[0])

    def explain(self, job_id: int, key: bytes) -> dict[str, list[Mapping[str, Any]]] | None:
        """All that is written about one object: itself, its chunk, past deliveries, failures."""
        sql = self._db.reading()
        found = list(self.objects(job_id, state=None, prefix=key, after=b"", limit=1))
        if not found or found[0]["key"] != key:
            return None
        row = found[0]
        return {
            "object": [row],
            "chunk": list(_mappings(sql.execute("SELECT * FROM chunks WHERE id = ?", (row["chunk_id"],)))),
            "past": list(
                _mappings(
                    sql.execute("SELECT * FROM past_deliveries WHERE object_id = ? ORDER BY id", (row["id"],))
                )
            ),
            "failures": list(
                _mappings(
                    sql.execute(
                        "SELECT f.*, v.name AS volume FROM failures AS f LEFT JOIN chunks AS c"
                        " ON c.id = f.chunk_id LEFT JOIN volumes AS v ON v.id = c.volume_id"
                        " WHERE f.object_id = ? ORDER BY f.id",
                        (row["id"],),
                    )
                )
            ),
        }


def _staged_item(row: tuple[Any, ...]) -> Item:
    crc64nvme, md5, sha256, part_size, part_etag, evidence = row[7:13]
    multipart = {part_size: part_etag} if part_size and part_etag else {}
    digests = Digests(row[2], crc64nvme, md5, sha256, multipart)
    return Item(row[0], row[1], row[2], row[3], row[4], row[5], digests, part_size, Evidence(evidence))


def _stretch(job_id: int, prefix: bytes, after: bytes) -> tuple[str, list[object]]:
    """The SQL condition for the keys of a job that begin with `prefix` and come after a key."""
    # One lower bound only: of two, the index might begin at the lower, and each page cost all before it.
    condition, begin = ("o.key > ?", after) if after >= prefix else ("o.key >= ?", prefix)
    end = _after_prefix(prefix)
    if end is None:
        return f"o.job_id = ? AND {condition}", [job_id, begin]
    return f"o.job_id = ? AND {condition} AND o.key < ?", [job_id, begin, end]


def _after_prefix(prefix: bytes) -> bytes | None:
    """The smallest key greater than all that begin with `prefix`, if there is one."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def _mappings(cursor: sqlite3.Cursor) -> Iterator[Mapping[str, Any]]:
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in cursor)
