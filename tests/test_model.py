"""The ledger against a dictionary: any order of its moves, with the process gone between any two.

The model knows no SQL.  After every step the two must agree on every object, the counters on the rows, and
nothing may be stuck: whatever still has to travel can be reached by the next claim of some stage.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from s5jtd.errors import LostRace
from s5jtd.ledger.rows import Chunk, Delivered, Item, Returned, Staged
from s5jtd.ledger.states import ChunkState, State
from s5jtd.ledger.store import Ledger
from s5jtd.model import Digests, Evidence, Listed

KEYS = [b"a", b"b", b"c/1", b"c/2", b"\xff\xfe", b"z" * 40]
DELAY_MS = 60_000
NOW = 1_800_000_000.0

keys = st.lists(st.sampled_from(KEYS), unique=True, min_size=1).map(sorted)
#: A version: what the source may show under a key.  The size goes with it, as it does in life.
versions = st.integers(0, 2)
pull_ends = st.sampled_from(["staged", "staged", "staged", "seen", "blameless", "gone", "parked", "changed"])
push_ends = st.sampled_from(["delivered", "delivered", "staged", "later", "rot", "parked"])


def listed(key: bytes, version: int) -> Listed:
    return Listed(key, 10 + 7 * version, f"etag-{version}", 1000 + version)


@dataclass
class Object:
    """What the model knows of a key."""

    version: int
    state: State
    chunk: str | None = None  #: the one it was promised to last
    aboard: bool = False
    later: bool = False  #: put off
    past: set[int] = field(default_factory=set)  #: versions delivered before


class Model(RuleBasedStateMachine):
    """Drives a real ledger file; `self.objects` says what must be true of it."""

    def __init__(self) -> None:
        super().__init__()
        # Where there is one, a disk in memory: what a sync costs is not the question here.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="s5jtd-model-", dir=memory))
        self.now = NOW
        self.objects: dict[bytes, Object] = {}
        self.found = 0
        self.pulling: dict[str, Chunk] = {}
        self.pushing: dict[str, tuple[Chunk, list[Item]]] = {}

    @initialize()
    def begin(self) -> None:
        self.open()

    def open(self) -> None:
        self.ledger = Ledger(self.folder / "ledger.db", clock=lambda: self.now)
        self.job = self.ledger.enrol_job("archive", "s3://a/", "s3://b/")
        self.volumes = [self.ledger.enrol_volume(f"uuid-{n}", f"v{n}", f"/mnt/{n}", 1).id for n in (1, 2)]

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)

    # scan

    @rule(which=keys, version=versions, found=st.booleans(), unmovable=st.booleans())
    def see(self, which: list[bytes], version: int, found: bool, unmovable: bool) -> None:
        """A page of a listing; of what is fresh on it, the first is there already, the last cannot travel."""
        page = [listed(key, version) for key in which]
        fresh = self.ledger.views.fresh(self.job, page, ascending=True)
        assert [key for key in which if self.is_fresh(key, version)] == [one.key for one in fresh]
        there = {fresh[0].key: ("x", Evidence.ETAG)} if found and fresh else {}
        stuck = {fresh[-1].key: "unmovable: newline"} if unmovable and fresh else {}
        pass_id = self.ledger.begin_pass(self.job)
        self.ledger.admit(self.job, pass_id, fresh, there, stuck)
        self.ledger.end_pass(pass_id, listed=len(page), error=None)
        for one in fresh:
            state = State.DELIVERED if one.key in there else State.PARKED if one.key in stuck else State.SEEN
            self.admitted(one.key, version, state)

    def is_fresh(self, key: bytes, version: int) -> bool:
        known = self.objects.get(key)
        return known is None or known.version != version or known.state is State.GONE

    def admitted(self, key: bytes, version: int, state: State) -> None:
        known = self.objects.get(key)
        if known is None:
            self.objects[key] = Object(version, state)
        elif known.state not in (State.PULLING, State.STAGED, State.PUSHING):
            past = known.past | ({known.version} if known.state is State.DELIVERED else set())
            self.objects[key] = Object(version, state, past=past)

    # plan, pull

    @rule(volume=st.integers(0, 1), limit=st.integers(1, 4), overtaken_by=st.none() | versions)
    def plan(self, volume: int, limit: int, overtaken_by: int | None) -> None:
        """Promise what is due; perhaps the scanner admits another version while the planner chooses."""
        chosen = self.ledger.views.candidates(self.job, limit)
        due = {key for key, one in self.objects.items() if one.state is State.SEEN and not one.later}
        assert {item.key for item in chosen} <= due
        assert len(chosen) == min(limit, len(due))
        if not chosen:
            return
        overtaken = overtaken_by is not None and self.objects[chosen[0].key].version != overtaken_by
        if overtaken_by is not None:
            self.see([chosen[0].key], overtaken_by, False, False)
        reserved = 4096 * len(chosen)
        if overtaken:
            with pytest.raises(LostRace):
                self.ledger.plan(self.job, self.volumes[volume], chosen, reserved)
            return
        chunk = self.ledger.plan(self.job, self.volumes[volume], chosen, reserved)
        for item in chosen:
            one = self.objects[item.key]
            one.state, one.chunk = State.PULLING, chunk.name

    @rule(volume=st.integers(0, 1))
    def take_pull(self, volume: int) -> None:
        waiting = self.ledger.views.planned(self.volumes[volume])
        chunk = self.ledger.take_pull(self.volumes[volume])
        assert (chunk is not None) == (waiting > 0)
        if chunk is not None:
            self.pulling[chunk.name] = chunk

    @precondition(lambda self: self.pulling)
    @rule(data=st.data())
    def settle_pull(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.pulling)))
        chunk = self.pulling.pop(name)
        items = self.ledger.views.pulling(chunk.id)
        assert {item.key for item in items} == self.promised(name, State.PULLING)
        staged, returned = [], []
        for item in items:
            end = data.draw(pull_ends)
            if end == "staged":
                staged.append(Staged(item, Digests(item.size, "AAAAAAAAAAA="), Evidence.ETAG, None))
            else:
                returned.append(self.pull_return(item, end))
        self.ledger.settle_pull(chunk, staged, returned, "http://s")
        for one in staged:
            known = self.objects[one.item.key]
            known.state, known.aboard, known.later = State.STAGED, True, False

    def pull_return(self, item: Item, end: str) -> Returned:
        known = self.objects[item.key]
        if end == "changed":
            known.version = (known.version + 1) % 3
            known.state, known.later = State.SEEN, False
            now = listed(item.key, known.version)
            return Returned(
                item,
                State.SEEN,
                "source_changed",
                "",
                False,
                etag=now.etag,
                size=now.size,
                modified_ms=now.modified_ms,
            )
        known.state = {"gone": State.GONE, "parked": State.PARKED}.get(end, State.SEEN)
        known.later = end == "seen"
        not_before_ms = self.later_ms() if end == "seen" else 0
        return Returned(item, known.state, "failed", "no", end != "blameless", not_before_ms)

    def later_ms(self) -> int:
        return int(self.now * 1000) + DELAY_MS

    # push

    @rule(volume=st.integers(0, 1))
    def take_push(self, volume: int) -> None:
        taken = self.ledger.take_push(self.volumes[volume], [self.job])
        if taken is None:
            return
        chunk, items = taken
        assert chunk.name not in self.pushing
        for item in items:
            known = self.objects[item.key]
            assert (known.state, known.chunk, known.later) == (State.STAGED, chunk.name, False)
            known.state = State.PUSHING
        self.pushing[chunk.name] = (chunk, items)

    @precondition(lambda self: self.pushing)
    @rule(data=st.data())
    def settle_push(self, data: st.DataObject) -> None:
        chunk, items = self.pushing.pop(data.draw(st.sampled_from(list(self.pushing))))
        delivered, returned = [], []
        for item in items:
            end = data.draw(push_ends)
            known = self.objects[item.key]
            known.state = {"delivered": State.DELIVERED, "rot": State.SEEN, "parked": State.PARKED}.get(
                end, State.STAGED
            )
            known.later = end == "later"
            if end == "delivered":
                delivered.append(Delivered(item, "x", Evidence.ETAG))
                continue
            known.aboard = end != "rot"
            not_before_ms = self.later_ms() if end == "later" else 0
            returned.append(Returned(item, known.state, "failed", "no", end == "later", not_before_ms))
        self.ledger.settle_push(chunk, delivered, returned, "http://d")

    # release, retry, lose

    @rule(volume=st.integers(0, 1))
    def release(self, volume: int) -> None:
        chunk = self.ledger.views.releasable(self.volumes[volume])
        if chunk is None:
            return
        views = self.ledger.views
        items = [item for item, _ in views.aboard(chunk.id, State.DELIVERED)]
        over = chunk.state is ChunkState.RESTING and views.all_delivered(chunk.id)
        needed = {k for k, o in self.objects.items() if o.chunk == chunk.name and o.aboard} - {
            i.key for i in items
        }
        assert not (over and needed), "a folder would go with what is still needed"
        self.ledger.released(chunk, items, folder_gone=over)
        for item in items:
            assert self.objects[item.key].state is State.DELIVERED
            self.objects[item.key].aboard = False

    @rule(key=st.none() | st.sampled_from(KEYS))
    def retry(self, key: bytes | None) -> None:
        parked = {k: o for k, o in self.objects.items() if o.state is State.PARKED and key in (None, k)}
        assert len(parked) == self.ledger.retry(self.job, key)
        for known in parked.values():
            known.state, known.later = State.STAGED if known.aboard else State.SEEN, False

    @rule(data=st.data(), volume=st.integers(0, 1))
    def lose_folder(self, data: st.DataObject, volume: int) -> None:
        """Somebody removed the folder of a chunk at rest."""
        at_rest = self.ledger.views.chunks(self.volumes[volume], ChunkState.SEALED, ChunkState.RESTING)
        if not at_rest:
            return
        chunk = data.draw(st.sampled_from(at_rest))
        aboard = [one for one in self.objects.values() if one.chunk == chunk.name and one.aboard]
        staged = [one for one in aboard if one.state is State.STAGED]
        assert len(staged) == self.ledger.lose(chunk)
        for one in aboard:
            one.aboard = False
        for one in staged:
            one.state, one.later = State.SEEN, False

    # a lost or older ledger

    @rule(
        which=keys,
        version=versions,
        volume=st.integers(0, 1),
        first_id=st.integers(1, 9),
        known=st.booleans(),
    )
    def adopt(self, which: list[bytes], version: int, volume: int, first_id: int, known: bool) -> None:
        """A sealed chunk lies on a volume that this ledger does not count on, or not any more."""
        found = []
        for id_, key in enumerate(which, first_id):
            one = listed(key, version)
            item = Item(id_, key, one.size, one.etag, one.modified_ms, 0)
            found.append(Staged(item, Digests(one.size, "AAAAAAAAAAA="), Evidence.ETAG, None))
        fates = {id_: self.fate(key, version) for id_, key in enumerate(which, first_id)}
        name = self.released() if known else None
        if name is None:
            name = f"{self.found:016x}"
            self.found += 1
        adoption = self.ledger.adopt(self.job, self.volumes[volume], name, found)
        assert {id_ for id_, fate in fates.items() if fate == "take"} == set(adoption.taken)
        assert {id_ for id_, fate in fates.items() if fate == "drop"} == adoption.needless
        assert sum(fate == "keep" for fate in fates.values()) == adoption.kept
        if adoption.chunk is None:
            return
        for item in adoption.taken.values():
            past = self.objects[item.key].past if item.key in self.objects else set()
            if item.key in self.objects and self.objects[item.key].state is State.DELIVERED:
                past = past | {self.objects[item.key].version}
            self.objects[item.key] = Object(version, State.PULLING, adoption.chunk.name, past=past)
        self.pulling[adoption.chunk.name] = adoption.chunk

    def released(self) -> str | None:
        """A chunk whose folder came back with the power, because its unlinks were not durable."""
        with self.raw() as sql:
            row = sql.execute(
                "SELECT name FROM chunks WHERE state = 'released' ORDER BY id LIMIT 1"
            ).fetchone()
        return row and str(row[0])

    def fate(self, key: bytes, version: int) -> str:
        """A copy may be the last one anywhere: it goes only if the destination has it or a newer one."""
        known = self.objects.get(key)
        if known is None:
            return "take"
        if known.state is State.DELIVERED and version <= known.version:
            return "drop"
        # Also while a newer version is on its way: the destination had this one.
        if version in known.past and version != known.version:
            return "drop"
        # At rest: the older one is not to be sent before it.
        if version > known.version and known.state in (State.STAGED, State.PARKED):
            return "take"
        if known.aboard or known.state in (State.PULLING, State.STAGED, State.PUSHING):
            return "keep"
        if known.version == version:
            return "take"
        return "take" if version > known.version else "keep"

    # time and the end of the process

    @rule()
    def wait(self) -> None:
        self.now += DELAY_MS / 1000 + 1
        for known in self.objects.values():
            known.later = False

    @rule(salvaged=st.booleans())
    def crash(self, salvaged: bool) -> None:
        """The process is gone; the next one settles what was in flight, before anything else."""
        self.ledger.close()
        self.open()
        in_flight = sum(one.state is State.PUSHING for one in self.objects.values())
        assert in_flight == self.ledger.unpush()
        self.pushing.clear()
        for one in self.objects.values():
            if one.state is State.PUSHING:
                one.state, one.later = State.STAGED, False
        for volume in self.volumes:
            for chunk in self.ledger.views.chunks(volume, ChunkState.PLANNED, ChunkState.PULLING):
                self.recover(chunk, salvaged=salvaged)
        self.pulling.clear()

    def recover(self, chunk: Chunk, *, salvaged: bool) -> None:
        items = self.ledger.views.pulling(chunk.id)
        if salvaged and chunk.state is ChunkState.PULLING:
            proven = [Staged(item, Digests(item.size, "AAAAAAAAAAA="), Evidence.ETAG, None) for item in items]
            self.ledger.settle_pull(chunk, proven, [], None)
        else:
            self.ledger.unplan(chunk)
        for item in items:
            known = self.objects[item.key]
            if salvaged and chunk.state is ChunkState.PULLING:
                known.state, known.aboard, known.later = State.STAGED, True, False
            else:
                known.state, known.chunk = State.SEEN, None

    # What must be true after every step

    def promised(self, chunk: str, state: State) -> set[bytes]:
        return {key for key, one in self.objects.items() if one.chunk == chunk and one.state is state}

    @contextlib.contextmanager
    def raw(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(f"file:{self.folder}/ledger.db?mode=ro", uri=True)) as sql:
            yield sql

    @invariant()
    def it_says_what_the_model_says(self) -> None:
        if not hasattr(self, "ledger"):
            return
        with self.raw() as sql:
            rows = sql.execute(
                "SELECT key, state, size, etag, aboard, chunk_id IS NOT NULL FROM objects"
            ).fetchall()
        said = {row[0]: (State(row[1]), row[2], row[3], bool(row[4])) for row in rows}
        meant = {}
        for key, one in self.objects.items():
            version = listed(key, one.version)
            meant[key] = (one.state, version.size, version.etag, one.aboard)
        assert meant == said

    @invariant()
    def its_counters_are_its_rows(self) -> None:
        if not hasattr(self, "ledger"):
            return
        with self.raw() as sql:
            recounted = dict(_by_state(sql, "SELECT state, count(*), sum(size) FROM objects GROUP BY state"))
            counted = dict(
                _by_state(sql, "SELECT state, objects, bytes FROM counters WHERE objects OR bytes")
            )
            assert recounted == counted
            aboard: Counter[Any] = Counter()
            for chunk, size, state in sql.execute("SELECT chunk_id, size, state FROM objects WHERE aboard"):
                aboard[chunk, "aboard"] += 1
                aboard[chunk, "bytes"] += size
                aboard[chunk, "delivered"] += state == State.DELIVERED
            for row in sql.execute(
                "SELECT id, aboard, aboard_bytes, delivered, state, reserved_bytes FROM chunks"
            ):
                assert row[1:4] == tuple(aboard[row[0], what] for what in ("aboard", "bytes", "delivered"))
                assert not row[5] or row[4] in ("planned", "pulling"), "space stays promised for nothing"
                assert row[4] != "released" or row[1] == 0, "files without a folder"

    @invariant()
    def nothing_is_stuck(self) -> None:
        """Every object that must still travel is where some stage will come for it."""
        if not hasattr(self, "ledger"):
            return
        way_on = {
            State.PULLING: ("planned", "pulling"),
            State.STAGED: ("sealed", "pushing"),
            State.PUSHING: ("pushing",),
        }
        with self.raw() as sql:
            rows = sql.execute(
                "SELECT o.key, o.state, c.state, o.aboard, o.not_before_ms, c.not_before_ms FROM objects AS o"
                " JOIN chunks AS c ON c.id = o.chunk_id"
            ).fetchall()
        for key, state, chunk_state, aboard, due_ms, chunk_due_ms in rows:
            assert chunk_state in way_on.get(State(state), (chunk_state,)), key
            assert not aboard or chunk_state != "released", key
            if State(state) is State.STAGED and chunk_state == "sealed":
                assert chunk_due_ms <= due_ms, f"{key!r} is due before anybody looks at its chunk"
        flying = {
            k for k, o in self.objects.items() if o.state in (State.PULLING, State.STAGED, State.PUSHING)
        }
        assert flying <= {row[0] for row in rows}


def _by_state(sql: sqlite3.Connection, question: str) -> Iterator[tuple[State, tuple[int, int]]]:
    return ((State(state), (objects, size)) for state, objects, size in sql.execute(question))


class TestModel(Model.TestCase):  # type: ignore[misc, valid-type]  # hypothesis makes it at run time
    settings = settings(
        max_examples=60, stateful_step_count=40, deadline=None, derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip


def test_what_is_retried_does_not_wait_for_what_was_put_off(tmp_path: Path) -> None:
    """Both lie in one chunk, and the chunk is looked at when the first of them is due."""
    ledger = Ledger(tmp_path / "ledger.db", clock=lambda: NOW)
    job, volume = (
        ledger.enrol_job("archive", "s3://a/", "s3://b/"),
        ledger.enrol_volume("u", "v", "/mnt/v", 1).id,
    )
    chunk, items = _pushing(ledger, job, volume, [b"a", b"b"])
    later = int(NOW * 1000) + DELAY_MS
    off = [
        Returned(items[0], State.STAGED, "x", "", not_before_ms=later),
        Returned(items[1], State.PARKED, "x", ""),
    ]
    ledger.settle_push(chunk, [], off, None)

    ledger.retry(job, b"b")

    taken = ledger.take_push(volume, [job])
    assert taken is not None
    assert [item.key for item in taken[1]] == [b"b"]
    ledger.close()


def test_a_clock_that_was_wrong_does_not_put_a_push_off_for_years(tmp_path: Path) -> None:
    now = NOW + 10 * 365 * 86_400
    ledger = Ledger(tmp_path / "ledger.db", clock=lambda: now)
    job, volume = (
        ledger.enrol_job("archive", "s3://a/", "s3://b/"),
        ledger.enrol_volume("u", "v", "/mnt/v", 1).id,
    )
    chunk, items = _pushing(ledger, job, volume, [b"a"])
    off = Returned(items[0], State.STAGED, "x", "", not_before_ms=int(now * 1000) + DELAY_MS)
    ledger.settle_push(chunk, [], [off], None)

    now = NOW

    taken = ledger.take_push(volume, [job])
    assert taken is not None
    assert [item.key for item in taken[1]] == [b"a"]
    ledger.close()


def _pushing(ledger: Ledger, job: int, volume: int, which: list[bytes]) -> tuple[Chunk, list[Item]]:
    """Objects on their way to the destination."""
    ledger.admit(job, ledger.begin_pass(job), [listed(key, 0) for key in which], {}, {})
    ledger.plan(job, volume, ledger.views.candidates(job, 10), 1)
    chunk = ledger.take_pull(volume)
    assert chunk is not None
    items = ledger.views.pulling(chunk.id)
    proven = [Staged(item, Digests(item.size, "AAAAAAAAAAA="), Evidence.ETAG, None) for item in items]
    ledger.settle_pull(chunk, proven, [], None)
    taken = ledger.take_push(volume, [job])
    assert taken is not None
    return taken
