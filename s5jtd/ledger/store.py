"""Every change the ledger can undergo: set-based, compare-and-set, counted in the same transaction."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from s5jtd.errors import LedgerError
from s5jtd.ledger import passes, volumes
from s5jtd.ledger.access import copy_database
from s5jtd.ledger.adoption import Adoption, adopt, lose
from s5jtd.ledger.database import Clock, Database
from s5jtd.ledger.moves import (
    Deltas,
    count,
    disembark,
    is_aboard,
    keep_delivery,
    move,
    move_chunk,
    or_lost,
    stage,
)
from s5jtd.ledger.patience import OnBlocked, give_up, patient
from s5jtd.ledger.rearm import Doubt, Found, settle
from s5jtd.ledger.rows import FOREVER_MS, Chunk, Delivered, Item, Returned, Staged, Volume
from s5jtd.ledger.states import RETREAT, ChunkState, State
from s5jtd.ledger.views import BACKOFF_MS_MAX, Views
from s5jtd.model import Evidence, Listed


@patient
class Ledger:
    """The writing door to the ledger; `views` is the reading one, `database` the file behind both."""

    def __init__(self, path: Path, *, clock: Clock = time.time, on_blocked: OnBlocked = give_up) -> None:
        """Open the ledger at `path`, made if it is not there.

        Raises:
            LedgerError: see `Database`.
        """
        self.database = self._db = Database(path)
        self.on_blocked = on_blocked
        self._clock = clock
        self.views = Views(self._db, clock)

    @staticmethod
    def copy(source: Path, target: Path) -> None:
        """Copy a ledger, also one that a daemon is writing to, as of one moment.

        Raises:
            LedgerError: it cannot be read or written.
        """
        copy_database(source, target)

    def close(self) -> None:
        """Close the file; nothing is pending, each change was durable when it was made."""
        self._db.close()

    def _now(self) -> int:
        """The time; asked inside a transaction, so that a step is never dated before the one it follows."""
        return int(self._clock() * 1000)

    # Who is there

    def enrol_job(self, name: str, source: str, destination: str) -> int:
        """The id of a job, made if it is new.

        Raises:
            LedgerError: the ledger knows the name with another source or destination.
        """
        with self._db.writing() as sql:
            row = sql.execute("SELECT id, source, destination FROM jobs WHERE name = ?", (name,)).fetchone()
            if row is None:
                made = sql.execute(
                    "INSERT INTO jobs (name, source, destination) VALUES (?, ?, ?)",
                    (name, source, destination),
                )
                job_id = int(made.lastrowid or 0)
                sql.executemany(
                    "INSERT INTO counters (job_id, state) VALUES (?, ?)", [(job_id, s.value) for s in State]
                )
                return job_id
        if (row[1], row[2]) != (source, destination):
            raise LedgerError(
                f"job {name} used to move {row[1]} to {row[2]}, and now {source} to {destination}",
                hint=f"give the new job another name, or forget the old one: s5jtd reset --job {name}",
            )
        return int(row[0])

    def enrol_volume(self, uuid: str, name: str, path: str, attach_epoch: int) -> Volume:
        """Remember a volume by its UUID, and where and how often it was attached."""
        with self._db.writing() as sql:
            return volumes.enrol(sql, uuid, name, path, attach_epoch)

    def drain_volume(self, volume_id: int, *, wanted: bool) -> bool:
        """Keep whether a volume is to be empty; whether that is news.  It survives a restart."""
        with self._db.writing() as sql:
            return volumes.wish_empty(sql, volume_id, self._now() if wanted else None)

    def pause(self, job_id: int, *, pull: bool, push: bool, until_ms: int = FOREVER_MS) -> None:
        """Let the halves of a job rest; it survives a restart."""
        self._set_pauses(job_id, pull=pull, push=push, until_ms=until_ms)

    def resume(self, job_id: int, *, pull: bool, push: bool) -> None:
        """Let the halves of a job work again."""
        self._set_pauses(job_id, pull=pull, push=push, until_ms=None)

    def _set_pauses(self, job_id: int, *, pull: bool, push: bool, until_ms: int | None) -> None:
        with self._db.writing() as sql:
            if pull:
                sql.execute("UPDATE jobs SET pull_paused_until_ms = ? WHERE id = ?", (until_ms, job_id))
            if push:
                sql.execute("UPDATE jobs SET push_paused_until_ms = ? WHERE id = ?", (until_ms, job_id))

    # scan

    def begin_pass(self, job_id: int) -> int:
        """Write down that a look at the source begins."""
        with self._db.writing() as sql:
            return passes.begin(sql, job_id, self._now())

    def end_pass(self, pass_id: int, *, listed: int, listed_bytes: int = 0, error: str | None) -> None:
        """Write down how a look at the source ended; only one without an error was complete."""
        with self._db.writing() as sql:
            sql.execute(
                "UPDATE passes SET finished_at_ms = ?, listed = ?, listed_bytes = ?, complete = ?, error = ?"
                " WHERE id = ?",
                (self._now(), listed, listed_bytes, int(error is None), error, pass_id),
            )
            passes.end(sql, pass_id)

    def admit(
        self,
        job_id: int,
        pass_id: int,
        fresh: Sequence[Listed],
        found: Mapping[bytes, tuple[str, Evidence]],
        unmovable: Mapping[bytes, str],
        *,
        insecure: bool = False,
    ) -> None:
        """Take in new and changed objects as `seen`, or at once as `delivered` or `parked`.

        `fresh` is what `Views.fresh` picked from a page; nobody but the job's one scanner admits.
        `found` holds what the destination proved to have already: its ETag and the evidence;
        `unmovable` why a key cannot travel; `insecure`: that proof came over TLS nobody verified.  A row
        in flight is left alone: its version finishes first, and the next pass sees that there is another.
        """
        if not fresh:
            return
        now = self._now()
        deltas: Deltas = Counter()
        with self._db.writing(intake=True) as sql:
            owner = passes.owner(sql, pass_id)
            for listed in fresh:
                self._admit_one(sql, job_id, listed, found, unmovable, now, deltas, pass_id=owner)
            if insecure:
                sql.executemany(
                    "UPDATE objects SET push_insecure = 1 WHERE job_id = ? AND key = ? AND found = 1",
                    [(job_id, key) for key in found],
                )
            count(sql, job_id, deltas)
            sql.execute(
                "UPDATE passes SET fresh = fresh + ?, found = found + ? WHERE id = ?",
                (len(fresh), len(found), pass_id),
            )

    def _admit_one(
        self,
        sql: sqlite3.Connection,
        job_id: int,
        listed: Listed,
        found: Mapping[bytes, tuple[str, Evidence]],
        unmovable: Mapping[bytes, str],
        now: int,
        deltas: Deltas,
        *,
        pass_id: int,
    ) -> None:
        etag, evidence = found.get(listed.key, (None, None))
        reason = unmovable.get(listed.key)
        state = State.DELIVERED if evidence else State.PARKED if reason else State.SEEN
        old = sql.execute(
            "SELECT id, state, size, aboard, chunk_id FROM objects WHERE job_id = ? AND key = ?",
            (job_id, listed.key),
        ).fetchone()
        if old is not None:
            was = State(old[1])
            if was in RETREAT or was is State.STAGED:
                return
            if was is State.DELIVERED:
                keep_delivery(sql, old[0])
            if old[3]:  # parked, or its volume is away or read-only: that file is of the former version
                disembark(sql, old[4], [(old[0], old[2])], delivered=was is State.DELIVERED)
            deltas[was, "objects"] -= 1
            deltas[was, "bytes"] -= old[2]
        sql.execute(
            "INSERT INTO objects (job_id, key, size, etag, modified_ms, state, since_ms, seen_at_ms, reason,"
            " delivered_at_ms, push_evidence, destination_etag, found, pass_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job_id, key) DO UPDATE SET"
            " pass_id = excluded.pass_id,"
            " size = excluded.size, etag = excluded.etag, modified_ms = excluded.modified_ms,"
            " state = excluded.state, since_ms = excluded.since_ms, seen_at_ms = excluded.seen_at_ms,"
            " reason = excluded.reason, delivered_at_ms = excluded.delivered_at_ms,"
            " push_evidence = excluded.push_evidence, destination_etag = excluded.destination_etag,"
            " found = excluded.found, attempts = 0, not_before_ms = 0, chunk_id = NULL, staged_at_ms = NULL,"
            " pull_evidence = NULL, crc64nvme = NULL, md5 = NULL, sha256 = NULL, part_size = NULL,"
            " part_etag = NULL, pull_insecure = 0, push_insecure = 0",
            (
                job_id, listed.key, listed.size, listed.etag, listed.modified_ms, state, now, now, reason,
                now if evidence else None, evidence, etag, int(evidence is not None), pass_id,
            ),
        )  # fmt: skip
        deltas[state, "objects"] += 1
        deltas[state, "bytes"] += listed.size

    # plan

    def plan(self, job_id: int, volume_id: int, items: Sequence[Item], reserved_bytes: int) -> Chunk:
        """Promise the objects to a new chunk: `seen -> pulling`, attempts counted before the work."""
        now = self._now()
        name = os.urandom(8).hex()
        size = sum(item.size for item in items)
        with self._db.writing(intake=True) as sql:
            made = sql.execute(
                "INSERT INTO chunks (name, job_id, volume_id, state, objects, bytes, reserved_bytes,"
                " planned_at_ms) VALUES (?, ?, ?, 'planned', ?, ?, ?, ?)",
                (name, job_id, volume_id, len(items), size, reserved_bytes, now),
            )
            chunk_id = int(made.lastrowid or 0)
            move(
                sql, job_id, State.SEEN, State.PULLING, items,
                "chunk_id = ?, since_ms = ?, attempts = attempts + 1",
                [(chunk_id, now)] * len(items),
            )  # fmt: skip
        return Chunk(chunk_id, name, job_id, volume_id, ChunkState.PLANNED)

    def park(self, job_id: int, items: Sequence[Item], code: str, message: str) -> None:
        """Objects that are `seen` and cannot travel: a person must look."""
        with self._db.writing() as sql:
            now = self._now()
            move(
                sql, job_id, State.SEEN, State.PARKED, items,
                "since_ms = ?, reason = ?", [(now, f"{code}: {message}")] * len(items),
            )  # fmt: skip

    # pull

    def take_pull(self, volume_id: int, resting_jobs: Iterable[int] = ()) -> Chunk | None:
        """The oldest planned chunk of a volume, now `pulling`; not one of the resting jobs."""
        paused = sorted(resting_jobs)
        with self._db.writing() as sql:
            now = self._now()
            row = sql.execute(
                "SELECT id, name, job_id FROM chunks WHERE volume_id = ? AND state = 'planned'"
                " AND (not_before_ms <= ? OR not_before_ms > ?)"
                f" AND job_id NOT IN ({', '.join('?' * len(paused))}) ORDER BY id LIMIT 1",
                (volume_id, now, now + BACKOFF_MS_MAX, *paused),
            ).fetchone()
            if row is None:
                return None
            sql.execute("UPDATE chunks SET state = 'pulling', pulling_at_ms = ? WHERE id = ?", (now, row[0]))
        return Chunk(row[0], row[1], row[2], volume_id, ChunkState.PULLING)

    def settle_pull(
        self, chunk: Chunk, staged: Sequence[Staged], returned: Sequence[Returned], endpoint: str | None
    ) -> None:
        """Write down a sealed chunk; call it only when the seal is durable on the volume.

        `staged -> staged`, `returned` where each says.  Without any staged object the chunk is over.  To an
        older ledger a chunk may be `planned` whose seal is on the volume already.
        """
        size = sum(one.item.size for one in staged)
        with self._db.writing() as sql:
            now = self._now()
            stage(sql, chunk.job_id, staged, now)
            self._return(sql, chunk, State.PULLING, returned, "pull", endpoint, now)
            move_chunk(
                sql, chunk, chunk.state, ChunkState.SEALED if staged else ChunkState.RELEASED,
                "reserved_bytes = 0, aboard = ?, aboard_bytes = ?, pull_endpoint = ?, sealed_at_ms = ?,"
                " released_at_ms = ?",
                (len(staged), size, endpoint, now if staged else None, None if staged else now),
            )  # fmt: skip

    # push

    def take_push(self, volume_id: int, jobs: Iterable[int]) -> tuple[Chunk, list[Item]] | None:
        """The oldest chunk of these jobs on a volume that is due, its due objects now `pushing`.

        Objects that failed before travel in ever smaller company, like those of a pull.
        """
        able = sorted(jobs)
        with self._db.writing() as sql:
            now = self._now()
            far = now + BACKOFF_MS_MAX
            row = sql.execute(
                "SELECT id, name, job_id FROM chunks WHERE volume_id = ? AND state = 'sealed'"
                f" AND (not_before_ms <= ? OR not_before_ms > ?) AND job_id IN ({', '.join('?' * len(able))})"
                " ORDER BY id LIMIT 1",
                (volume_id, now, far, *able),
            ).fetchone()
            if row is None:
                return None
            chunk = Chunk(row[0], row[1], row[2], volume_id, ChunkState.PUSHING)
            waiting = self.views.aboard(chunk.id, State.STAGED, sql)
            due = _in_company([item for item, at_ms in waiting if not now < at_ms <= far])
            move(
                sql, chunk.job_id, State.STAGED, State.PUSHING, due,
                "since_ms = ?, attempts = attempts + 1", [(now,)] * len(due),
            )  # fmt: skip
            sql.execute(
                "UPDATE chunks SET state = 'pushing', pushing_at_ms = ? WHERE id = ?",
                (now, chunk.id),
            )
        return chunk, [replace(item, attempts=item.attempts + 1) for item in due]

    def settle_push(
        self,
        chunk: Chunk,
        delivered: Sequence[Delivered],
        returned: Sequence[Returned],
        endpoint: str | None,
    ) -> None:
        """Write down what the destination was seen to hold: `pushing -> delivered`, or back."""
        with self._db.writing() as sql:
            now = self._now()
            # First of all: what comes to rest is noted with the endpoint it went through.
            sql.execute(
                "UPDATE chunks SET push_endpoint = coalesce(?, push_endpoint) WHERE id = ?",
                (endpoint, chunk.id),
            )
            move(
                sql, chunk.job_id, State.PUSHING, State.DELIVERED, [one.item for one in delivered],
                "since_ms = ?, delivered_at_ms = ?, not_before_ms = 0, reason = NULL, destination_etag = ?,"
                " push_evidence = ?, push_insecure = ?",
                [(now, now, one.etag, one.evidence, int(one.insecure)) for one in delivered],
            )  # fmt: skip
            self._return(sql, chunk, State.PUSHING, returned, "push", endpoint, now)
            waiting, due = sql.execute(
                "SELECT count(*), min(not_before_ms) FROM objects WHERE chunk_id = ? AND aboard = 1"
                " AND state = ?",
                (chunk.id, State.STAGED),
            ).fetchone()
            move_chunk(
                sql, chunk, ChunkState.PUSHING, ChunkState.SEALED if waiting else ChunkState.RESTING,
                "not_before_ms = ?, delivered = delivered + ?, pushed_at_ms = coalesce(?, pushed_at_ms)",
                (due or 0, len(delivered), now if delivered else None),
            )  # fmt: skip

    # release

    def released(self, chunk: Chunk, items: Sequence[Item], *, folder_gone: bool) -> None:
        """Write down that the files of delivered objects are unlinked, and perhaps the whole folder."""
        with self._db.writing() as sql:
            # One whose source changed meanwhile may be `seen` again, and is not aboard any more.
            still = [item for item in items if is_aboard(sql, item.id, chunk.id, State.DELIVERED)]
            disembark(sql, chunk.id, [(item.id, item.size) for item in still], delivered=True)
            if folder_gone:
                sql.execute(
                    "UPDATE chunks SET state = 'released', released_at_ms = ? WHERE id = ? AND aboard = 0",
                    (self._now(), chunk.id),
                )

    # What people ask for, and what a restart finds

    def retry(self, job_id: int, key: bytes | None) -> int:
        """Re-arm one parked object, or all of a job; those with a local copy go on from there."""
        with self._db.writing() as sql:
            now = self._now()
            rows = sql.execute(
                "SELECT id, key, size, etag, modified_ms, attempts, aboard, chunk_id FROM objects"
                " WHERE job_id = ? AND state = 6 AND (? IS NULL OR key = ?)",
                (job_id, key, key),
            ).fetchall()
            for aboard, to in ((0, State.SEEN), (1, State.STAGED)):
                items = [Item(*row[:6]) for row in rows if row[6] == aboard]
                move(
                    sql, job_id, State.PARKED, to, items,
                    "since_ms = ?, attempts = 0, not_before_ms = 0, reason = NULL", [(now,)] * len(items),
                )  # fmt: skip
            sql.executemany(
                "UPDATE chunks SET state = 'sealed', not_before_ms = 0 WHERE id = ?"
                " AND state IN ('sealed', 'resting')",
                [(chunk_id,) for chunk_id in {row[7] for row in rows if row[6]}],
            )
        return len(rows)

    def settle_resync(
        self, job_id: int, doubts: Sequence[Doubt], unknown: Sequence[Listed], found: Sequence[Found]
    ) -> int:
        """Make true what a comparison showed: see `rearm`; how many objects travel because of it."""
        with self._db.writing(intake=bool(unknown)) as sql:
            return settle(sql, job_id, doubts, unknown, found, self._now())

    def adopt(
        self, job_id: int, volume_id: int, name: str, found: Sequence[Staged], *, stay: bool = False
    ) -> Adoption:
        """Begin to take a sealed chunk that the ledger does not count on back in: see `adoption`."""
        with self._db.writing() as sql:
            return adopt(sql, job_id, volume_id, name, found, self._now(), stay=stay)

    def lose(self, chunk: Chunk) -> int:
        """The folder of a chunk at rest is gone: see `adoption`; how many objects must travel again."""
        with self._db.writing() as sql:
            return lose(sql, chunk, self._now())

    def unpush(self) -> int:
        """At start: objects whose push was cut go back to `staged`; the destination is asked first."""
        now = self._now()
        count = 0
        with self._db.writing() as sql:
            chunks = sql.execute("SELECT id, job_id FROM chunks WHERE state = 'pushing'").fetchall()
            for chunk_id, job_id in chunks:
                rows = self.views.aboard(chunk_id, State.PUSHING, sql)
                items = [item for item, _ in rows]
                move(
                    sql, job_id, State.PUSHING, State.STAGED, items,
                    "since_ms = ?, not_before_ms = 0", [(now,)] * len(items),
                )  # fmt: skip
                sql.execute(
                    "UPDATE chunks SET state = 'sealed', not_before_ms = 0 WHERE id = ?",
                    (chunk_id,),
                )
                count += len(items)
        return count

    def unplan(self, chunk: Chunk) -> None:
        """Give a chunk that never began back: its objects are `seen`, their attempt not counted."""
        items = self.views.pulling(chunk.id)
        with self._db.writing() as sql:
            now = self._now()
            move(
                sql, chunk.job_id, State.PULLING, State.SEEN, items,
                "since_ms = ?, attempts = attempts - 1, chunk_id = NULL", [(now,)] * len(items),
            )  # fmt: skip
            move_chunk(
                sql, chunk, chunk.state, ChunkState.RELEASED, "reserved_bytes = 0, released_at_ms = ?", (now,)
            )

    def _return(
        self,
        sql: sqlite3.Connection,
        chunk: Chunk,
        was: State,
        returned: Sequence[Returned],
        step: str,
        endpoint: str | None,
        now: int,
    ) -> None:
        """Move what did not make its hop to where each entry says, and keep the reason."""
        if was is State.PULLING:
            returned = [or_lost(sql, one) for one in returned]
        for to in {one.to for one in returned}:
            these = [one for one in returned if one.to is to]
            parked = to is State.PARKED
            move(
                sql, chunk.job_id, was, to, [one.item for one in these],
                "since_ms = ?, attempts = attempts - ?, not_before_ms = ?, reason = ?",
                [
                    (now, int(not one.counted), one.not_before_ms,
                     f"{one.code}: {one.message}" if parked else None)
                    for one in these
                ],
            )  # fmt: skip
        if was is State.PUSHING:
            bad = [(one.item.id, one.item.size) for one in returned if one.to is State.SEEN]
            disembark(sql, chunk.id, bad, delivered=False)
        for one in returned:
            if one.etag is not None:
                self._new_version(sql, chunk.job_id, one)
        sql.executemany(
            "INSERT INTO failures (object_id, at_ms, step, chunk_id, endpoint, code, message)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(one.item.id, now, step, chunk.id, endpoint, one.code, one.message) for one in returned],
        )

    def _new_version(self, sql: sqlite3.Connection, job_id: int, one: Returned) -> None:
        """The source was found to hold another version than planned: that one travels now."""
        size = one.item.size if one.size is None else one.size
        sql.execute(
            "UPDATE objects SET etag = ?, size = ?, modified_ms = ?, attempts = 0 WHERE id = ?",
            (one.etag, size, one.modified_ms or one.item.modified_ms, one.item.id),
        )
        count(sql, job_id, Counter({(one.to, "bytes"): size - one.item.size}))


def _in_company(due: Sequence[Item]) -> list[Item]:
    """Which of these travel together: those that never failed first, the others in ever smaller company."""
    chosen: list[Item] = []
    for item in sorted(due, key=lambda one: one.attempts):
        if len(chosen) >= max(1, len(due) >> (2 * item.attempts)):
            break
        chosen.append(item)
    return chosen
