"""Objects that were moved in part: chunks that are put off with what they have, uploads that can go on."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from s5jtd.ledger.database import Clock, Database
from s5jtd.ledger.moves import move_chunk
from s5jtd.ledger.patience import OnBlocked, give_up, patient
from s5jtd.ledger.rows import Chunk, Item, Returned
from s5jtd.ledger.states import ChunkState, State

_ASKED_AT_A_TIME: Final = 500


@dataclass(frozen=True, slots=True)
class Part:
    """A part that the destination took in."""

    etag: str
    crc64nvme: str | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """A multipart upload that was begun and not ended."""

    id: int
    upload_id: str
    key: bytes  #: at the destination
    part_size: int
    parts: Mapping[int, Part] = field(default_factory=dict)
    failures: int = 0  #: attempts that came to nothing since the last part was taken in


@patient
class Unfinished:
    """The door to what was moved in part."""

    def __init__(
        self, database: Database, *, clock: Clock = time.time, on_blocked: OnBlocked = give_up
    ) -> None:
        """`database` is the one the `Ledger` writes to."""
        self._db = database
        self._clock = clock
        self.on_blocked = on_blocked

    # Half pulled

    def put_off(
        self, chunk: Chunk, returned: Returned, *, done_bytes: int, reserved_bytes: int, attempts_max: int
    ) -> bool:
        """A chunk of one object waits with the bytes it has, and is pulled again; `pulling -> planned`.

        The object stays promised to it.  An attempt that brought bytes is the first of a new count; False,
        and nothing is changed, where too many brought none: then the chunk is settled as any other.
        """
        now = int(self._clock() * 1000)
        with self._db.writing() as sql:
            row = sql.execute("SELECT resumed_bytes FROM chunks WHERE id = ?", (chunk.id,)).fetchone()
            item, got_on = returned.item, done_bytes > row[0]
            if not got_on and returned.counted and item.attempts >= attempts_max:
                return False
            attempts = 1 if got_on else item.attempts + int(returned.counted)
            move_chunk(
                sql, chunk, ChunkState.PULLING, ChunkState.PLANNED,
                "not_before_ms = ?, resumed_bytes = ?, reserved_bytes = ?",
                (returned.not_before_ms, done_bytes, reserved_bytes),
            )  # fmt: skip
            sql.execute(
                "UPDATE objects SET attempts = ? WHERE id = ? AND state = ?",
                (attempts, item.id, State.PULLING),
            )
            sql.execute(
                "INSERT INTO failures (object_id, at_ms, step, chunk_id, endpoint, code, message)"
                " VALUES (?, ?, 'pull', ?, NULL, ?, ?)",
                (item.id, now, chunk.id, returned.code, returned.message),
            )
        return True

    # Half uploaded

    def upload(self, item: Item) -> Begun | None:
        """The upload that was begun last for an object in this version."""
        row = (
            self._db.reading()
            .execute(
                "SELECT id, upload_id, key, part_size, (SELECT count(*) FROM failures AS f"
                " WHERE f.object_id = u.object_id AND f.at_ms >= coalesce(u.part_at_ms, u.began_at_ms))"
                " FROM uploads AS u"
                " WHERE object_id = ? AND size = ? AND etag = ? ORDER BY id DESC LIMIT 1",
                (item.id, item.size, item.etag),
            )
            .fetchone()
        )
        if row is None:
            return None
        parts = self._db.reading().execute(
            "SELECT number, etag, crc64nvme FROM upload_parts WHERE upload = ?", (row[0],)
        )
        held = {number: Part(etag, crc) for number, etag, crc in parts}
        return Begun(row[0], row[1], row[2], row[3], held, row[4])

    def broke_off(self, items: Sequence[Item], step: Literal["pull", "push"], times: int) -> frozenset[int]:
        """The ids of those that a step was not through with so often, but for volumes that failed."""
        found: set[int] = set()
        for start in range(0, len(items), _ASKED_AT_A_TIME):
            these = [item.id for item in items[start : start + _ASKED_AT_A_TIME]]
            rows = self._db.reading().execute(
                f"SELECT object_id FROM failures WHERE object_id IN ({', '.join('?' * len(these))})"
                " AND step = ? AND code NOT LIKE 'volume_%'"
                " GROUP BY object_id HAVING count(*) >= ?",
                (*these, step, times),
            )
            found.update(row[0] for row in rows)
        return frozenset(found)

    def begin(self, job_id: int, item: Item, key: bytes, upload_id: str, part_size: int) -> int:
        """An upload was begun for an object; its id here."""
        with self._db.writing() as sql:
            made = sql.execute(
                "INSERT INTO uploads (upload_id, job_id, object_id, key, size, etag, part_size, began_at_ms)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    upload_id, job_id, item.id, key, item.size, item.etag, part_size,
                    int(self._clock() * 1000),
                ),
            )  # fmt: skip
            return int(made.lastrowid or 0)

    def took(self, upload: int, number: int, part: Part) -> None:
        """The destination took a part in."""
        with self._db.writing() as sql:
            sql.execute(
                "INSERT INTO upload_parts (upload, number, etag, crc64nvme) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (upload, number) DO UPDATE SET etag = excluded.etag,"
                " crc64nvme = excluded.crc64nvme",
                (upload, number, part.etag, part.crc64nvme),
            )
            now = int(self._clock() * 1000)
            sql.execute("UPDATE uploads SET part_at_ms = ? WHERE id = ?", (now, upload))

    def end(self, upload: int) -> None:
        """There is no such upload any more."""
        with self._db.writing() as sql:
            _forget(sql, [upload])

    def drop(self, upload: int) -> None:
        """An upload is of no use: nobody goes on with it, and the sweep tells the destination."""
        with self._db.writing() as sql:
            sql.execute("DELETE FROM upload_parts WHERE upload = ?", (upload,))
            sql.execute("UPDATE uploads SET size = -1 WHERE id = ?", (upload,))

    def live(self, job_id: int) -> frozenset[str]:
        """The destination's words for uploads of a job that will go on."""
        rows = self._db.reading().execute(f"SELECT u.upload_id {_OF_JOB} AND {_LIVE}", (job_id,))
        return frozenset(row[0] for row in rows)

    def obsolete(self, job_id: int, limit: int) -> Sequence[Begun]:
        """Uploads of a job that nobody will go on with."""
        rows = self._db.reading().execute(
            f"SELECT u.id, u.upload_id, u.key, u.part_size {_OF_JOB} AND NOT ({_LIVE}) ORDER BY u.id LIMIT ?",
            (job_id, limit),
        )
        return [Begun(*row) for row in rows]


#: An object that is at rest for good, or in another version, needs no upload; nor does one with a newer.
_LIVE = (
    "o.id IS NOT NULL AND o.state < 4 AND o.size = u.size AND o.etag = u.etag"
    " AND NOT EXISTS (SELECT 1 FROM uploads AS n WHERE n.object_id = u.object_id AND n.id > u.id)"
)
_OF_JOB = "FROM uploads AS u LEFT JOIN objects AS o ON o.id = u.object_id WHERE u.job_id = ?"


def _forget(sql: sqlite3.Connection, uploads: Sequence[int]) -> None:
    sql.executemany("DELETE FROM upload_parts WHERE upload = ?", [(one,) for one in uploads])
    sql.executemany("DELETE FROM uploads WHERE id = ?", [(one,) for one in uploads])
