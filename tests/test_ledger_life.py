"""What keeps a ledger: is it whole, copies of it, its rows for others, how it is opened, and its upkeep."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from s5jtd.errors import (
    IntakeStopped,
    LedgerBlocked,
    LedgerDamaged,
    LedgerError,
    LedgerFull,
    UsageError,
)
from s5jtd.ledger import closing, database, export, schema, snapshots, upkeep
from s5jtd.ledger.access import copy_database
from s5jtd.ledger.database import BACKUPS, Database
from s5jtd.ledger.files import free_bytes
from s5jtd.ledger.rows import Delivered, Returned
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.verify import verify_all
from s5jtd.model import Evidence
from s5jtd.problems import Problems
from s5jtd.stages.keepsake import KeepCopy
from s5jtd.stages.opening import Patience, prove
from s5jtd.stages.upkeep import Upkeep
from s5jtd.volumes import copies
from s5jtd.volumes.seals import load_key
from s5jtd.volumes.volume import Volume, VolumeState
from s5jtd.worker import Bell
from tests.filesystems import loop_volume, tmpfs
from tests.servers import ODD_KEYS
from tests.test_ledger import Clock, Road, deliver_all, staged


@pytest.fixture
def road(tmp_path: Path) -> Iterator[Road]:
    road = Road(tmp_path / "ledger.db", Clock())
    yield road
    with contextlib.suppress(sqlite3.ProgrammingError):
        road.ledger.close()


def lived(road: Road) -> Road:
    """A ledger that has met every state an object can be in, and failures besides."""
    road.see(b"delivered", b"d2")
    deliver_all(road)
    road.see(b"d2", etag="newer")
    deliver_all(road)
    road.see(b"staged 1", b"staged 2", b"parked", b"gone")
    chunk, items = road.pull()
    by_key = {item.key: item for item in items}
    road.ledger.settle_pull(
        chunk,  # type: ignore[arg-type]
        [staged(by_key[b"staged 1"]), staged(by_key[b"staged 2"])],
        [
            Returned(by_key[b"parked"], State.PARKED, "source_mismatch", "no"),
            Returned(by_key[b"gone"], State.GONE, "object_gone", "no"),
        ],
        "http://s",
    )
    taken = road.ledger.take_push(road.volume, [road.job])
    assert taken is not None
    chunk, due = taken
    back = Returned(due[1], State.STAGED, "endpoint_down", "no", counted=False)
    road.ledger.settle_push(chunk, [Delivered(due[0], "x", Evidence.ETAG)], [back], "http://d")
    road.see(b"pulling")
    road.pull()
    road.see(b"seen")
    return road


def found(path: Path) -> dict[str, tuple[str, ...]]:
    """The checks that found something."""
    return {check.name: check.findings for check in verify_all(path) if check.findings}


def break_(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as sql:
        sql.execute("PRAGMA ignore_check_constraints = ON")
        changed = sql.execute(statement).rowcount
        sql.commit()
    assert changed > 0


# verify


def test_a_ledger_that_lived_agrees_with_itself_and_can_be_asked_while_it_is_written(road: Road) -> None:
    lived(road)

    assert found(road.ledger.database.path) == {}
    names = [check.name for check in verify_all(road.ledger.database.path)]
    assert names == ["structure", "references", "counters", "objects", "chunks", "released chunks"]


@pytest.mark.parametrize(
    ("statement", "check", "words"),
    [
        ("UPDATE counters SET objects = objects + 1 WHERE state = 4", "counters", "counted 4 objects"),
        ("UPDATE counters SET bytes = bytes + 1 WHERE state = 0", "counters", "job 1, seen: counted"),
        ("DELETE FROM counters WHERE state = 6", "counters", "job 1, parked: there is no counter"),
        ("UPDATE chunks SET aboard = aboard + 1 WHERE aboard > 0", "chunks", "counts 3 files"),
        ("UPDATE chunks SET delivered = 0 WHERE delivered > 0", "chunks", "0 of them delivered"),
        ("UPDATE objects SET crc64nvme = NULL WHERE state = 2", "objects", "is staged without proof"),
        ("UPDATE objects SET push_evidence = NULL WHERE state = 4", "objects", "is delivered without proof"),
        ("UPDATE objects SET chunk_id = NULL WHERE state = 1", "objects", "pulling and no chunk pulls it"),
        ("UPDATE objects SET reason = NULL WHERE state = 6", "objects", "parked without a reason"),
        (
            "UPDATE failures SET object_id = 999",
            "references",
            "a row of failures belongs to",
        ),
        ("UPDATE objects SET size = -5 WHERE state = 0", "objects", "has a negative size"),
        ("UPDATE objects SET push_evidence = 'faith' WHERE state = 4", "objects", "does not exist"),
        ("UPDATE chunks SET reserved_bytes = 1 WHERE state = 'released'", "released chunks", "still holds"),
    ],
)
def test_each_disagreement_is_found_and_named(road: Road, statement: str, check: str, words: str) -> None:
    path = lived(road).ledger.database.path
    break_(path, statement)

    assert words in " ".join(found(path)[check])


def test_random_damage_never_crashes_what_reads_a_ledger(road: Road, tmp_path: Path) -> None:
    """Whatever bytes change: it is found, or it does not matter; nothing but our own errors comes out."""
    lived(road)
    road.see(*[b"key %05d" % n for n in range(2000)])
    whole = tmp_path / "whole.db"
    snapshots.copy_to(road.ledger.database.path, whole)
    luck = random.Random(7)
    good = whole.read_bytes()
    victim = tmp_path / "victim.db"
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(good)
        for _ in range(luck.choice((1, 8, 200))):
            damaged[luck.randrange(len(damaged))] ^= 1 << luck.randrange(8)
        if luck.random() < 0.2:
            del damaged[luck.randrange(len(damaged)) :]
        victim.write_bytes(damaged)
        outcomes.add(bool(found(victim)))
        try:
            opened = Database(victim)
        except LedgerError:
            continue
        with contextlib.suppress(LedgerDamaged):
            opened.prove(lambda: True)
        opened.close()
        for suffix in ("-wal", "-shm"):
            victim.with_name(victim.name + suffix).unlink(missing_ok=True)

    assert True in outcomes


# copies


def test_a_copy_is_of_one_moment_and_comes_to_an_end_while_the_ledger_is_written(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that never rests must not make the copy begin again, nor show in half of it."""
    road.see(*[b"old %05d" % n for n in range(3000)])
    road.ledger.database.checkpoint()
    monkeypatch.setattr("s5jtd.ledger.access.COPY_PAGES", 5)
    steps: list[int] = []

    def alive() -> None:
        steps.append(len(steps))
        road.see(b"young %05d" % len(steps))

    copy_database(road.ledger.database.path, tmp_path / "copy.db", alive)

    pages = (tmp_path / "copy.db").stat().st_size // 4096
    assert 20 < len(steps) <= pages // 5 + 1
    assert found(tmp_path / "copy.db") == {}
    with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as sql:
        assert sql.execute("SELECT count(*) FROM objects WHERE key >= ?", (b"young",)).fetchone() == (0,)


def test_a_copy_that_is_not_whole_never_takes_the_place_of_a_good_one(road: Road, tmp_path: Path) -> None:
    road.see(*[b"key %05d" % n for n in range(2000)])
    path = road.ledger.database.path
    good = tmp_path / "good.db"
    snapshots.copy_to(path, good)
    before = good.read_bytes()
    road.ledger.close()
    lose_an_index_row(path)

    with pytest.raises(LedgerDamaged, match=r"the copy of .* is not whole"):
        snapshots.copy_to(path, good)

    assert good.read_bytes() == before
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]


def lose_an_index_row(path: Path) -> None:
    """Damage that only a comparison of table and index finds."""
    with contextlib.closing(sqlite3.connect(path)) as sql:
        sql.execute("PRAGMA writable_schema = ON")
        text = sql.execute("SELECT sql FROM sqlite_schema WHERE name = 'objects_parked'").fetchone()[0]
        sql.execute(
            "UPDATE sqlite_schema SET sql = ? WHERE name = 'objects_parked'", (text.replace("= 6", "= 0"),)
        )
        sql.commit()


def test_few_copies_are_kept_and_the_newest_is_the_last_whatever_the_clock_says(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = road.ledger.database.path
    now = 1_800_000_000.0
    monkeypatch.setattr("s5jtd.ledger.snapshots.time.time", lambda: now)
    taken: list[Path] = []
    for moment in (0, 3600, 7200, -50_000_000, 7300):
        now = 1_800_000_000.0 + moment
        road.see(b"key %d" % len(taken))
        taken.append(snapshots.take(path))

    assert [copy.name for copy in taken] == sorted(copy.name for copy in taken)
    assert snapshots.snapshots(path.parent / BACKUPS) == taken[:1:-1]
    assert len(taken[2:]) == snapshots.KEPT
    assert found(taken[-1]) == {}
    assert snapshots.fault(taken[-1]) is None
    assert not [name for name in os.listdir(path.parent / BACKUPS) if "-wal" in name or name.startswith(".")]


def test_a_copy_that_is_told_to_end_leaves_nothing(road: Road, tmp_path: Path) -> None:
    road.see(b"a")

    with pytest.raises(snapshots.ToldToEnd):
        snapshots.take(road.ledger.database.path, lambda: False)

    assert os.listdir(tmp_path / BACKUPS) == []


def test_older_copies_give_way_to_a_new_one_but_never_the_newest(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "state", 96 << 20) as state:
        road = Road(state / "ledger.db", Clock())
        road.see(*[b"key %05d" % n for n in range(20_000)])
        road.ledger.database.checkpoint()
        first, second = snapshots.take(state / "ledger.db"), snapshots.take(state / "ledger.db")
        size = (state / "ledger.db").stat().st_size
        (state / "other").write_bytes(bytes(free_bytes(state) - (64 << 20) - size // 2))

        third = snapshots.take(state / "ledger.db")
        assert snapshots.snapshots(state / BACKUPS) == [third, second]
        assert not first.exists()

        (state / "more").write_bytes(bytes(size * 2))
        with pytest.raises(LedgerFull, match="no room for a copy"):
            snapshots.take(state / "ledger.db")
        assert snapshots.snapshots(state / BACKUPS) == [third]
        road.ledger.close()


def test_what_is_no_ledger_is_not_taken_for_a_copy_of_one(road: Road, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as sql:
        sql.execute("CREATE TABLE x (y)")
    (tmp_path / "text").write_text("no database at all, but long enough to look at" * 50)

    assert snapshots.fault(other) == "it is no ledger"
    assert snapshots.fault(tmp_path / "text") == "file is not a database"
    assert snapshots.fault(tmp_path / "nothing") == "unable to open database file"


# export


def table(road: Road, **filters: object) -> tuple[list[dict[str, str]], list[dict[str, object]]]:
    """The same rows as CSV and as JSON Lines."""
    job, state = filters.get("job"), filters.get("state")
    as_csv, as_json = io.StringIO(), io.StringIO()
    path = road.ledger.database.path
    for write, out in ((export.write_csv, as_csv), (export.write_jsonl, as_json)):
        with export.opened(path, job, state) as table:  # type: ignore[arg-type]
            write(table, out)
    rows = list(csv.DictReader(io.StringIO(as_csv.getvalue(), newline="")))
    return rows, [json.loads(line) for line in as_json.getvalue().splitlines()]


def test_an_export_has_every_column_with_words_and_times_for_people(road: Road) -> None:
    lived(road)

    as_csv, as_json = table(road)

    with contextlib.closing(sqlite3.connect(road.ledger.database.path)) as sql:
        columns = {row[1] for row in sql.execute("PRAGMA table_info(objects)")}
    words = {"size": "size_bytes", "part_size": "part_size_bytes", "job_id": "job", "chunk_id": "chunk"}
    told = {words.get(name, name).removesuffix("_ms").removesuffix("_id") for name in columns - {"id"}} | {
        "id"
    }
    assert told <= set(as_json[0])
    assert list(as_csv[0])[:3] == ["key", "key_base64", "job"]
    assert {row["key"]: row["state"] for row in as_csv} == {
        key.decode(): word for key, word in road.states().items()
    }
    row = next(row for row in as_json if row["key"] == "delivered")
    assert (row["size_bytes"], row["delivered_at"]) == (10, "2027-01-15T08:00:00.000Z")
    assert (row["pull_evidence"], row["push_evidence"], row["found"]) == ("etag", "etag", False)
    assert (row["volume"], row["push_endpoint"], row["not_before"]) == ("vol1", "http://d", None)


def test_every_key_comes_out_exactly_in_both_formats(road: Road) -> None:
    odd = [
        *ODD_KEYS,
        b"\xff\xfe no utf-8",
        b"new\nline",
        b'a "quoted", one',
        b"\\x1b is text",
        b"\x1b[31mred",
    ]
    road.see(*odd)

    as_csv, as_json = table(road)

    assert {exact(row) for row in as_csv} == set(odd)
    assert {exact(row) for row in as_json} == set(odd)
    assert len(as_csv) == len(as_json) == len(set(odd))


def exact(row: dict[str, object] | dict[str, str]) -> bytes:
    """The rule that docs/ledger.md gives to readers."""
    return base64.b64decode(str(row["key_base64"])) if row["key_base64"] else str(row["key"]).encode()


@pytest.mark.parametrize("key", [b"=cmd|' /C calc'!A0", b"+1", b"-1", b"@SUM(1)", b"\tx", b"\rx"])
def test_a_key_is_never_a_formula_in_a_spreadsheet(road: Road, key: bytes) -> None:
    road.see(key, etag="=1+1")

    ((row,), _) = table(road)

    assert row["key"][0] in "'\\"
    assert row["etag"] == "'=1+1"
    assert exact(row) == key


def test_no_control_character_reaches_who_looks_at_the_file(road: Road) -> None:
    road.see(b"\x1b]0;title\x07", "a\u202eb".encode())
    out = io.StringIO()

    with export.opened(road.ledger.database.path, None, None) as opened:
        export.write_csv(opened, out)

    assert not set(out.getvalue()) & {"\x1b", "\x07", "\u202e"}


def test_a_long_export_comes_in_pages_each_row_once(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_PAGE", 7)
    keys = [b"key %03d" % n for n in range(100)]
    road.see(*keys)
    road.stage(30)
    other = road.ledger.enrol_job("another", "s3://c/", "s3://d/")

    rows, _ = table(road)
    some, _ = table(road, job="archive", state=State.STAGED)

    assert [row["key"].encode() for row in rows] == keys
    assert [row["key"].encode() for row in some] == keys[:30]
    assert table(road, job="another") == ([], [])
    assert other != road.job
    with pytest.raises(UsageError, match="knows no job 'nobody'"):
        table(road, job="nobody")


def test_an_export_without_rows_has_its_heading(road: Road) -> None:
    out = io.StringIO()

    with export.opened(road.ledger.database.path, None, None) as opened:
        assert export.write_csv(opened, out) == 0

    assert out.getvalue().startswith("key,key_base64,job,id,size_bytes,etag,modified,state,")


# opening


def test_a_clean_end_is_believed_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    first = Database(path)
    assert first.doubt is None
    first.close()

    second = Database(path)
    assert second.doubt is None
    killed = Database(path)  # as after a kill: the mark was taken away by the second
    assert killed.doubt == "it was not closed in an orderly way"
    killed.close()
    second.close()
    third = Database(path)
    assert third.doubt is None
    third.close()


def test_a_file_that_changed_after_its_clean_end_is_read_through(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Database(path).close()
    break_(path, "INSERT INTO volumes (uuid, name, path) VALUES ('u', 'n', 'p')")

    opened = Database(path)

    assert opened.doubt == "it was changed or replaced since it was closed"
    assert opened.prove(lambda: True)
    assert not opened.doubt
    opened.close()


def test_once_a_week_the_file_is_read_through_and_so_is_one_from_the_future(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    Database(path).close()
    now = time.time()
    for later in (closing.CHECK_SECONDS + 1, -1000):
        monkeypatch.setattr("s5jtd.ledger.closing.time.time", lambda later=later: now + later)
        opened = Database(path)
        monkeypatch.undo()
        assert opened.doubt == "it was last checked more than a week ago"
        assert opened.prove(lambda: True)
        opened.close()
        again = Database(path)
        assert again.doubt is None
        again.close()


def test_a_damaged_file_is_not_worked_with_and_the_hint_names_the_way_out(road: Road) -> None:
    road.see(*[b"key %05d" % n for n in range(5000)])
    path = road.ledger.database.path
    road.ledger.close()
    data = bytearray(path.read_bytes())
    for start in range(40 * 4096, 60 * 4096, 4096):
        data[start : start + 64] = bytes(64)
    path.write_bytes(data)
    opened = Database(path)

    with pytest.raises(LedgerDamaged) as raised:
        opened.prove(lambda: True)
    opened.close()

    assert "s5jtd ledger rebuild" in raised.value.hint
    assert Database(path).doubt is not None, "an end without proof leaves no mark"


def test_a_disk_that_died_is_not_called_damage(tmp_path: Path) -> None:
    """A file system that is gone makes SQLite say `malformed`; nobody may rebuild on the strength of it."""
    with loop_volume(tmp_path, "ext4", 64 << 20) as disk:
        road = Road(disk.path / "ledger.db", Clock())
        road.see(*[b"key %05d" % n for n in range(5000)])
        disk.cut_power()

        with pytest.raises(LedgerError) as raised:
            road.see(b"one more")

        assert not isinstance(raised.value, LedgerDamaged)
        assert "disk" in raised.value.hint
        with contextlib.suppress(LedgerError, sqlite3.Error):
            road.ledger.close()


def test_reading_a_file_through_can_be_told_to_end(road: Road) -> None:
    road.see(b"a")
    road.ledger.database.doubt = "a test wants it"

    assert not road.ledger.database.prove(lambda: False)
    assert road.ledger.database.doubt is not None


def test_status_says_what_is_done_while_a_file_is_read_through(road: Road) -> None:
    road.ledger.database.doubt = "it was not closed in an orderly way"
    problems = Problems()
    told: list[str] = []

    def go_on() -> bool:
        told.extend(f"{problem.code}: {problem.message}" for problem in problems.now())
        return True

    assert prove(road.ledger, problems, go_on)

    words = "the ledger is read through before any work begins: it was not closed in an orderly way"
    assert set(told) == {f"ledger_checking: {words}"}
    assert problems.now() == []
    assert prove(road.ledger, problems, lambda: False), "what was proven is not proven again"


@pytest.mark.parametrize("left", ["ledger.db-wal", "backups/ledger-20270115T080000Z.db", "ledger.clean"])
def test_a_ledger_that_is_gone_is_not_begun_anew_in_silence(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_bytes(b"x")

    with pytest.raises(LedgerDamaged, match=r"ledger\.db is gone") as raised:
        Ledger(tmp_path / "ledger.db")

    assert "s5jtd ledger rebuild" in raised.value.hint
    assert not (tmp_path / "ledger.db").exists()


def test_the_way_back_to_an_older_program_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.db"
    steps = schema.migrations()
    monkeypatch.setattr(schema, "migrations", lambda: steps[:1])
    Database(path).close()
    assert not (tmp_path / BACKUPS).exists()
    monkeypatch.setattr(schema, "migrations", lambda: [*steps, (900, "CREATE TABLE later (x) STRICT;")])

    with pytest.raises(LedgerError):  # a migration that fails changes nothing
        Database(path)
    monkeypatch.setattr(schema, "migrations", lambda: [*steps, (900, "CREATE TABLE later (x INTEGER);")])
    Database(path).close()

    with contextlib.closing(sqlite3.connect(tmp_path / BACKUPS / "version-1.db")) as sql:
        assert sql.execute("PRAGMA user_version").fetchone() == (1,)
        assert sql.execute("PRAGMA integrity_check").fetchone() == ("ok",)


_ROAD = """
import sys, time
from pathlib import Path
from s5jtd.ledger.store import Ledger
from tests.test_ledger import Clock, Road, deliver_all
road = Road.__new__(Road)
blocked = []
def on_blocked(error, seconds):
    blocked.append(type(error).__name__)
    road.ledger.database.intake_stopped = None  # what upkeep does once there is room
    return len(blocked) < 50
road.ledger = Ledger(Path(sys.argv[1]), clock=Clock(), on_blocked=on_blocked)
road.clock = None
road.job = road.ledger.enrol_job("archive", "s3://a/", "s3://b/")
road.volume = road.ledger.enrol_volume("uuid-1", "vol1", "/mnt/1", 1).id
for n in range(6):
    road.see(*[b"key %d %03d" % (n, m) for m in range(50)])
    deliver_all(road)
print(*sorted(set(blocked)) or ["smooth"], sep=",")
"""


@pytest.mark.parametrize(
    ("call", "moments"), [("fdatasync", range(6, 70, 16)), ("pwrite64", range(160, 700, 130))]
)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_a_disk_that_fails_once_at_any_moment_costs_a_try_and_nothing_else(
    tmp_path: Path, call: str, moments: range, error: str
) -> None:
    """Whichever write or sync it is: what was written down is complete, and written down once."""
    if shutil.which("strace") is None:
        pytest.skip("strace is missing")
    outcomes = set()
    for when in moments:
        path = tmp_path / f"{when}" / "ledger.db"
        path.parent.mkdir()
        (path.parent / "program.py").write_text(_ROAD)
        done = subprocess.run(
            [
                "strace", "-f", "-o", os.devnull, "-e", f"inject={call}:error={error}:when={when}",
                sys.executable, str(path.parent / "program.py"), str(path),
            ],
            capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        outcomes.add(done.stdout.strip())
        if done.returncode:
            assert "s5jtd.errors.Ledger" in done.stderr, done.stderr  # it could not even be opened
            continue
        assert found(path) == {}
        with contextlib.closing(sqlite3.connect(path)) as sql:
            assert sql.execute("SELECT state, count(*) FROM objects").fetchall() == [(4, 300)]

    assert outcomes & {"LedgerBlocked", "LedgerFull"}, "the fault was never met: choose other moments"


# readers


def test_a_thread_that_is_gone_leaves_its_connection_to_the_next(road: Road) -> None:
    road.see(b"a")
    seen: list[dict[bytes, str]] = []
    for _ in range(20):
        thread = threading.Thread(target=lambda: seen.append(road.states()))
        thread.start()
        thread.join()

    assert seen == [{b"a": "seen"}] * 20
    assert len(road.ledger.database._readers) <= 2


def test_reading_does_not_wait_for_who_writes(road: Road) -> None:
    with road.ledger.database.writing():
        thread = threading.Thread(target=road.states)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()


# what stands in the way of a transaction


def held_by_another(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Another program takes the ledger's lock; returns when it has it."""
    program = (
        "import sqlite3, sys, time; sql = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "sql.execute('BEGIN IMMEDIATE'); print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


def test_a_lock_that_somebody_else_holds_is_waited_for_and_nothing_is_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_MS", 50)
    tries: list[LedgerBlocked] = []

    def on_blocked(error: LedgerBlocked, _seconds: float) -> bool:
        tries.append(error)
        time.sleep(0.05)
        return True

    ledger = Ledger(tmp_path / "ledger.db", on_blocked=on_blocked)
    with held_by_another(tmp_path / "ledger.db", 0.6):
        job = ledger.enrol_job("archive", "s3://a/", "s3://b/")

    assert tries
    assert "another program holds the ledger" in tries[0].hint
    assert job == 1
    ledger.close()


def test_intake_waits_while_it_is_stopped_and_everything_else_goes_on(road: Road) -> None:
    road.see(b"a", b"b")
    road.stage()
    road.see(b"c")
    road.ledger.database.intake_stopped = LedgerFull("no room")

    with pytest.raises(IntakeStopped, match="no room"):
        road.see(b"d")
    with pytest.raises(IntakeStopped):
        road.pull()

    taken = road.ledger.take_push(road.volume, [road.job])
    assert taken is not None
    road.ledger.settle_push(taken[0], [Delivered(i, "x", Evidence.ETAG) for i in taken[1]], [], None)
    assert road.states() == {b"a": "delivered", b"b": "delivered", b"c": "seen"}
    road.ledger.database.intake_stopped = None
    road.see(b"d")


def test_a_full_disk_undoes_a_transaction_stops_intake_and_is_over_when_there_is_room(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "state", 8 << 20) as state:
        road = Road(state / "ledger.db", Clock())
        road.see(*[b"key %05d" % n for n in range(2000)])
        chunk, items = road.pull(2000)
        waits: list[LedgerBlocked] = []

        def on_blocked(error: LedgerBlocked, _seconds: float) -> bool:
            waits.append(error)
            (state / "ballast").unlink()
            return True

        (state / "ballast").write_bytes(bytes(3 << 20))
        with contextlib.suppress(OSError), (state / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        road.ledger.on_blocked = on_blocked

        road.ledger.settle_pull(chunk, [staged(item) for item in items], [], None)  # type: ignore[arg-type]

        assert [type(error) for error in waits] == [LedgerFull]
        assert road.ledger.database.intake_stopped is not None
        assert road.counted() == {"staged": (2000, 20_000)}
        road.ledger.close()
        assert found(state / "ledger.db") == {}


# upkeep


@pytest.mark.parametrize(
    ("free_mib", "was", "now"),
    [
        (1000, upkeep.Room.PLENTY, upkeep.Room.PLENTY),
        (200, upkeep.Room.PLENTY, upkeep.Room.LOW),
        (31, upkeep.Room.LOW, upkeep.Room.FULL),
        (40, upkeep.Room.LOW, upkeep.Room.LOW),
        (40, upkeep.Room.FULL, upkeep.Room.FULL),
        (70, upkeep.Room.FULL, upkeep.Room.LOW),
        (300, upkeep.Room.FULL, upkeep.Room.PLENTY),
    ],
)
def test_a_disk_that_was_full_must_get_well_clear_of_it(
    free_mib: int, was: upkeep.Room, now: upkeep.Room
) -> None:
    assert upkeep.room(free_mib << 20, was=was) is now


def test_ballast_takes_up_room_and_gives_it_back_once(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "state", 128 << 20) as state:
        ballast = upkeep.Ballast(state)
        before = free_bytes(state)

        assert ballast.load()
        assert before - free_bytes(state) >= upkeep.BALLAST_BYTES
        assert ballast.drop()
        assert not ballast.drop()
        assert free_bytes(state) == before

        (state / "other").write_bytes(bytes(64 << 20))
        assert not ballast.load(), "it would take what the ledger needs"


def test_history_is_bounded_and_deliveries_stay(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "FAILURES_KEPT", 20)
    monkeypatch.setattr(upkeep, "PASSES_KEPT", 5)
    monkeypatch.setattr(upkeep, "_STRIDE", 4)
    road.see(b"a", b"b")
    deliver_all(road)
    road.see(b"a", etag="e2")
    for _ in range(40):
        chunk, items = road.pull()
        road.ledger.settle_pull(chunk, [], [Returned(items[0], State.SEEN, "x", "y", counted=False)], None)  # type: ignore[arg-type]
        pass_id = road.ledger.begin_pass(road.job)
        road.ledger.end_pass(pass_id, listed=0, error="the source is away")

    while upkeep.trim(road.ledger.database):
        pass

    story = road.ledger.views.explain(road.job, b"a")
    assert story is not None
    assert [failure["id"] for failure in story["failures"]] == list(range(21, 41))
    assert len(story["past"]) == 1
    with contextlib.closing(sqlite3.connect(road.ledger.database.path)) as sql:
        passes = sql.execute("SELECT complete FROM passes ORDER BY id").fetchall()
    assert passes == [(1,), (1,), *[(0,)] * 5], "the newest that saw everything stays, and one not told yet"
    assert found(road.ledger.database.path) == {}


class Kept:
    """An upkeep at work on a road's ledger, step by step."""

    def __init__(self, road: Road) -> None:
        self.road = road
        self.problems = Problems()
        self.stop = threading.Event()
        self.folder = road.ledger.database.path.parent
        self.ballast = upkeep.Ballast(self.folder)
        self.upkeep = Upkeep(road.ledger, self.ballast, self.problems, Bell(), self.stop)

    def step(self) -> None:
        self.upkeep.step(lambda: None)

    def codes(self) -> set[str]:
        return {problem.code for problem in self.problems.now()}

    def copies(self) -> list[Path]:
        return snapshots.snapshots(self.folder / BACKUPS)


def test_copies_are_made_when_something_moved_and_they_are_due(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr("s5jtd.stages.upkeep.time.monotonic", lambda: now)
    kept = Kept(road)
    kept.step()
    assert kept.copies() == [], "of an empty ledger no copy is worth anything"

    road.see(b"a")
    now += 301
    kept.step()
    assert len(kept.copies()) == 1
    road.see(b"b")
    now += 3000
    kept.step()
    assert len(kept.copies()) == 1, "it is not an hour yet"
    now += 700
    kept.step()
    assert len(kept.copies()) == 2
    road.see(b"b")  # a look that shows nothing new
    now += 3700
    kept.step()
    assert len(kept.copies()) == 2
    assert kept.codes() == set()


def test_an_idle_ledger_has_no_wal(road: Road) -> None:
    kept = Kept(road)
    road.see(*[b"key %05d" % n for n in range(3000)])
    assert road.ledger.database.wal_bytes() > 0

    kept.step()
    kept.step()

    assert road.ledger.database.wal_bytes() == 0


def test_a_reader_that_does_not_end_is_told_of(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s5jtd.stages.upkeep.WAL_BYTES", 1000)
    monkeypatch.setattr("s5jtd.stages.upkeep.WAL_BYTES_ALARM", 10_000)
    kept = Kept(road)
    with contextlib.closing(sqlite3.connect(road.ledger.database.path, isolation_level=None)) as stuck:
        stuck.execute("BEGIN")
        stuck.execute("SELECT count(*) FROM jobs").fetchone()
        road.see(*[b"key %05d" % n for n in range(3000)])
        kept.step()
        assert "ledger_wal_large" in kept.codes()

    kept.step()
    assert kept.codes() == set()


@pytest.mark.parametrize("how", ["deleted", "replaced", "wal deleted"])
def test_a_ledger_that_is_taken_away_is_noticed_and_what_it_held_is_kept(road: Road, how: str) -> None:
    kept = Kept(road)
    road.see(b"a")
    path = road.ledger.database.path
    if how == "replaced":
        (path.parent / "old").write_bytes(b"x" * 8192)
        (path.parent / "old").replace(path)
    else:
        path.with_name(path.name + ("-wal" if how == "wal deleted" else "")).unlink()
    road.see(b"b")  # it still works, for the file is open

    kept.step()
    kept.step()

    assert kept.codes() == {"ledger_replaced"}
    with pytest.raises(IntakeStopped, match="was deleted or replaced"):
        road.see(b"c")
    (copy,) = kept.copies()
    assert found(copy) == {}
    with contextlib.closing(sqlite3.connect(copy)) as sql:
        assert sql.execute("SELECT key FROM objects").fetchall() == [(b"a",), (b"b",)]


def test_who_asks_after_the_ledger_was_replaced_is_told_so(road: Road) -> None:
    road.see(b"a")
    path = road.ledger.database.path
    (path.parent / "other").write_bytes(b"x" * 8192)
    (path.parent / "other").replace(path)
    told: list[Exception] = []

    def ask() -> None:
        try:
            road.states()
        except LedgerError as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()

    assert "was deleted or replaced while it was in use" in str(told[0])


def test_a_copy_that_shows_damage_in_the_ledger_stops_intake(road: Road) -> None:
    road.see(*[b"key %05d" % n for n in range(2000)])
    path = road.ledger.database.path
    kept = Kept(road)
    kept.step()
    (good,) = kept.copies()
    kept.upkeep._copy_at = 0.0
    road.see(b"one more")
    road.ledger.database.checkpoint()
    with path.open("r+b") as file:  # as a bad disk would: nothing of this goes through SQLite
        file.seek(60 * 4096)
        file.write(bytes(16 * 4096))

    kept.step()

    assert kept.codes() == {"ledger_damaged"}
    assert kept.copies() == [good]
    assert snapshots.fault(good) is None
    with pytest.raises(IntakeStopped):
        road.see(b"two more")


def test_patience_gives_up_the_ballast_first_and_waits_only_where_somebody_can(tmp_path: Path) -> None:
    ballast = upkeep.Ballast(tmp_path)
    (tmp_path / "ballast").write_bytes(b"x")
    problems = Problems()
    patience = Patience(ballast, problems, threading.Event(), lasting_seconds_max=60)

    assert patience(LedgerFull("no room"), 0.0)
    assert problems.now() == []
    assert not patience(LedgerFull("no room"), 0.0), "a client of the socket is not made to wait"
    assert [problem.code for problem in problems.now()] == ["ledger_disk_full"]


# a copy on each volume


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    (tmp_path / "volume").mkdir()
    volume = Volume(tmp_path / "volume", "vol1", 0, load_key(tmp_path))
    volume.attach(None, lambda _uuid: 0)
    volume.turn(VolumeState.ONLINE, None)
    yield volume
    volume.detach()


class NoPool:
    """Stands in for the pool: it only takes note of failures."""

    def __init__(self) -> None:
        self.failed: list[Exception] = []

    def fail(self, _volume: Volume, error: Exception) -> None:
        self.failed.append(error)


def keep(volume: Volume, backups: Path) -> NoPool:
    pool = NoPool()
    KeepCopy(volume, pool, backups, threading.Event()).step(lambda: None)  # type: ignore[arg-type]
    return pool


def test_the_newest_copy_is_kept_on_the_volume_and_the_one_before_goes(road: Road, volume: Volume) -> None:
    backups = road.ledger.database.path.parent / BACKUPS
    assert keep(volume, backups).failed == []
    road.see(b"a")
    snapshots.take(road.ledger.database.path)
    assert keep(volume, backups).failed == []
    road.see(b"b")
    newest = snapshots.take(road.ledger.database.path)
    assert keep(volume, backups).failed == []

    assert copies.copies(volume.fd, volume.key) == [newest.name]
    there = volume.path / "s5jtd" / "ledger"
    assert sorted(os.listdir(there)) == [newest.name, f"{newest.name}.seal"]
    assert (there / newest.name).read_bytes() == newest.read_bytes()
    assert copies.is_whole(volume.fd, newest.name, volume.key, lambda: None)


def test_a_copy_that_another_appliance_or_an_accident_left_is_not_believed(
    road: Road, volume: Volume
) -> None:
    road.see(b"a")
    newest = snapshots.take(road.ledger.database.path)
    keep(volume, newest.parent)
    there = volume.path / "s5jtd" / "ledger" / newest.name

    assert copies.copies(volume.fd, b"another appliance's key".ljust(32)) == []
    there.write_bytes(there.read_bytes()[:-1] + b"x")
    assert not copies.is_whole(volume.fd, newest.name, volume.key, lambda: None)
    there.with_name(f"{newest.name}.seal").unlink()
    assert copies.copies(volume.fd, volume.key) == []


def test_a_copy_that_was_cut_is_cleared_away_by_the_next(road: Road, volume: Volume) -> None:
    road.see(b"a")
    newest = snapshots.take(road.ledger.database.path)

    def cut() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        copies.put(volume.fd, newest, volume.key, cut)
    assert copies.copies(volume.fd, volume.key) == []
    keep(volume, newest.parent)

    assert sorted(os.listdir(volume.path / "s5jtd" / "ledger")) == [newest.name, f"{newest.name}.seal"]


def test_a_volume_without_room_beyond_its_reserve_gets_no_copy(road: Road, volume: Volume) -> None:
    road.see(b"a")
    newest = snapshots.take(road.ledger.database.path)
    volume.reserve = 1 << 62

    assert keep(volume, newest.parent).failed == []
    assert copies.copies(volume.fd, volume.key) == []
