"""Rows of `docs/FAULTS.md` that no other test had: each is named after its row."""

from __future__ import annotations

import os
import queue
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from s5jtd import daemon
from s5jtd.daemon import Inbox, Stop, serve
from s5jtd.engine.s5cmd import find_binary
from s5jtd.errors import LedgerError, VolumeError, VolumeFailed, VolumeForeign
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.verify import verify_all
from s5jtd.volumes import chunks, probe
from s5jtd.volumes.chunks import ChunkFolder
from s5jtd.volumes.seals import read_sealed, write_sealed
from s5jtd.volumes.volume import Volume
from s5jtd.worker import Bell, Worker
from tests import chaos_road
from tests.appliance import Appliance, contents, digests, side, some_objects, until
from tests.chaos_road import Road
from tests.filesystems import need_mounts
from tests.impatient import ImpatientNursery
from tests.servers import Server
from tests.test_fold_in import Site, site  # noqa: F401  a fixture
from tests.test_ledger import Clock, deliver_all
from tests.test_ledger import Road as LedgerRoad

ROOT = Path(__file__).parents[1]
KEY = b"k" * 32


# The page


def rows_of(page: str) -> dict[str, str]:
    """The rows of its tables: number and what stands behind it."""
    lines = (line for line in page.splitlines() if re.match(r"\| [A-Z]\d+ \|", line))
    return {line.split("|")[1].strip(): line for line in lines}


def test_the_page_of_faults_has_every_row_and_each_test_it_names_exists() -> None:
    rows = rows_of((ROOT / "docs/FAULTS.md").read_text())
    counts = {"P": 20, "D": 28, "N": 18, "S": 23, "L": 12, "C": 10, "K": 11}
    assert {f"{letter}{n}" for letter, count in counts.items() for n in range(1, count + 1)} <= rows.keys()
    for number, row in rows.items():
        named = re.findall(r"`(test_\w+\.py)::(\w+)`", row)
        assert named or "not tested" in row, f"{number} names no test and does not say why"
        for file, name in named:
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^(?:async )?def {name}\(", text, re.MULTILINE), f"{number}: {file}::{name}"
    for number in [f"K{n}" for n in range(1, 10)] + [f"C{n}" for n in range(1, 11)]:
        assert f"::test_{number.lower()}_" in rows[number], f"{number} has no test that is named after it"


# Process


def test_p2_what_a_surviving_s5cmd_still_writes_is_not_touched(site: Site) -> None:  # noqa: F811
    """The lock of a chunk's folder is inherited: it goes with the last process that may write there."""
    site.see(b"a")
    items = site.ledger.views.candidates(site.job.id, 10)
    site.ledger.plan(site.job.id, site.volume.ledger_id, items, 0)
    chunk = site.ledger.take_pull(site.volume.ledger_id)
    assert chunk is not None
    with ChunkFolder(site.volume.fd, chunk.name, create=True) as folder:
        survivor = subprocess.Popen(["sleep", "60"], pass_fds=[folder.data_fd])
    try:
        site.die()
        with pytest.raises(VolumeFailed, match=chunk.name):
            site.recover()
        assert site.folders() == [chunk.name]
    finally:
        survivor.kill()
        survivor.wait()

    site.recover()

    assert site.folders() == []
    assert site.states() == {b"a": "seen"}


class Life:
    """As much of a daemon as `serve` knows, with one worker."""

    def __init__(self, step: Callable[[Callable[[], None]], bool], inbox: Inbox, *, critical: bool) -> None:
        self.step = step
        self.name, self.idle_seconds, self.quiet_seconds_max = "the worker", 0.01, 0.2
        self.told: list[str] = []
        self.stop = threading.Event()
        self._worker = Worker(
            self, stop=self.stop, bell=Bell(), critical=critical,
            on_crash=lambda name, error: inbox.put(Stop(f"{name} crashed: {error}", 1)),
        )  # fmt: skip

    def recover(self) -> None:
        pass

    def listen(self) -> AbstractContextManager[object]:
        return nullcontext()

    def workers(self) -> list[Worker]:
        return [self._worker]

    def halt(self) -> None:
        self.stop.set()

    def reload(self, answer: object) -> None:
        pass

    def finished(self) -> Stop | None:
        return None

    def enter(self, state: str) -> None:
        pass

    def headline(self) -> str:
        return ""

    def tend(self) -> None:
        pass


def test_p13_what_fails_unexpectedly_in_a_worker_ends_the_daemon_aloud() -> None:
    def fail(beat: object) -> bool:
        raise RuntimeError("a bug")

    inbox: Inbox = queue.SimpleQueue()

    stop = serve(Life(fail, inbox, critical=True), inbox, lambda _: None)

    assert stop == Stop("the worker crashed: a bug", 1)


@pytest.mark.parametrize("critical", [True, False], ids=["one everybody needs", "one of a volume"])
def test_p14_the_watchdog_is_fed_no_more_once_a_worker_is_stuck_that_everybody_needs(
    critical: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "TICK_SECONDS_MAX", 0.02)
    released = threading.Event()
    inbox: Inbox = queue.SimpleQueue()
    life = Life(lambda beat: released.wait(60), inbox, critical=critical)
    fed_while_stuck: list[bool] = []
    rounds = iter(range(40))

    def notify(message: str) -> None:
        stuck = life.workers()[0].stuck()
        if stuck and message == "WATCHDOG=1":
            fed_while_stuck.append(True)
        if stuck and message.startswith("STATUS=") and next(rounds, None) is None:
            inbox.put(Stop("enough was seen", 0))

    with capture_logs() as told:
        serve(life, inbox, notify)
    released.set()

    assert bool(fed_while_stuck) is not critical
    # Once, and with the place: what it waits in first, then the way there.
    stuck = [one["where"] for one in told if one["event"] == "worker_stuck"]
    assert len(stuck) == int(critical)
    assert all(re.match(r"threading.py:\d+ wait < ", one) and "worker.py" in one for one in stuck), stuck


@pytest.fixture
def road(tmp_path: Path, impatient: ImpatientNursery, rclone: Server) -> Iterator[Road]:
    with chaos_road.road(tmp_path, impatient, rclone, rclone) as road:
        yield road


def instead_of_s5cmd(road: Road, words: str = "") -> Path:
    """A program that does what `words` say, given the lines of the batch, and then what s5cmd does."""
    program = road.appliance.folder / "s5cmd"
    program.write_text(
        f"#!{sys.executable} -IS\nimport os, shlex, signal, sys\n"
        "lines = [shlex.split(line)[-2:] for line in open(sys.argv[-1])] if 'run' in sys.argv else []\n"
        f"{words}\nos.execv({str(find_binary())!r}, sys.argv)\n"
    )
    program.chmod(0o755)
    return program


def test_p11_where_memory_is_short_less_runs_at_a_time_and_it_is_said(road: Road) -> None:
    """An s5cmd of more than four workers gets no more memory, and says what Go says then."""
    instead_of_s5cmd(
        road,
        "workers = int(sys.argv[sys.argv.index('--numworkers') + 1]) if 'run' in sys.argv else 0\n"
        "if workers > 4:\n"
        "    sys.stderr.write('fatal error: runtime: out of memory\\n')\n"
        "    sys.exit(2)",
    )

    road.run(some_objects(60), attempts=4)

    assert road.delivers_all()
    assert "journalctl" in road.problems()["memory_short"]
    (job,) = road.appliance.status()["jobs"]
    chosen = [one for one in (job["concurrency"]["pull"], job["concurrency"]["push"]) if one]
    assert chosen
    assert all("memory is short: one in" in one["why"] for one in chosen)


def test_p19_an_object_that_kills_s5cmd_each_time_is_found_and_takes_no_other_with_it(road: Road) -> None:
    instead_of_s5cmd(road, "if 'poison' in str(lines): os.kill(os.getpid(), signal.SIGKILL)")

    road.run({**some_objects(40), b"poison": b"1"}, attempts=2)

    assert road.settled() == {"delivered": 40, "parked": 1}
    assert road.arrived_but(b"poison")
    assert road.reasons()["poison"].startswith("no_answer")


def test_p6_p12_without_a_program_to_start_the_work_waits_and_says_so(road: Road) -> None:
    program = instead_of_s5cmd(road)
    road.run({})
    hidden = program.rename(program.with_name("hidden"))
    road.fill(some_objects(5))
    until(lambda: "engine_failed" in road.problems(), "the problem")

    hidden.rename(program)

    assert road.delivers_all()
    until(lambda: "engine_failed" not in road.problems(), "the end of the problem")


def test_d5_a_file_that_cannot_be_read_any_more_is_pulled_again(road: Road) -> None:
    """What an unreadable sector looks like: s5cmd says EIO, and so does whoever looks after it."""
    once = road.appliance.folder / "once"
    instead_of_s5cmd(
        road,
        "bad = [file for file, there in lines if there.endswith('/bad')]\n"
        f"if bad and not os.path.exists({str(once)!r}):\n"
        f"    os.mkdir({str(once)!r})\n"
        "    open(bad[0], 'r+b').write(b'#')\n"
        """    said = '{"operation":"cp","command":"cp %s x","error":"read %s: input/output error"}'\n"""
        "    sys.exit(said % (bad[0], bad[0]))",
    )

    road.run({b"bad": b"the bytes", b"good": b"others"}, attempts=2)

    assert road.delivers_all()
    assert once.is_dir(), "nothing went wrong"
    assert "local_rot" in str(road.explain("bad"))


def test_n11_a_server_that_moved_to_another_address_is_found_without_a_restart(
    tmp_path: Path, rclone: Server
) -> None:
    """The daemon has a table of hosts of its own, in which the name leads to nobody at first."""
    need_mounts()
    here, there, objects = rclone.new_bucket(), rclone.new_bucket(), some_objects(5)
    rclone.fill(here, objects)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.9 archive.test\n")
    in_its_own_world = ("unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts; exec "$@"', "sh")
    with Appliance(tmp_path, volumes=1) as appliance:
        named = side(rclone, here, url=rclone.url.replace("127.0.0.1", "archive.test"))
        appliance.configure(
            {"name": "archive", "source": named, "destination": side(rclone, there), "scan_every": "1s"}
        )
        appliance.start(prefix=in_its_own_world)
        until(lambda: appliance.status()["endpoints"][0]["state"] == "down", "the endpoint's absence")

        hosts.write_text("127.0.0.1 archive.test\n")

        until(lambda: appliance.counted() == {"delivered": 5}, "the delivery of all")
        assert contents(rclone, there) == digests(objects)


# Disk and volume


def test_d12_a_copy_of_a_volume_that_fell_behind_is_refused(tmp_path: Path) -> None:
    volume = Volume(tmp_path, "vol1", 0, KEY)
    volume.attach(None, lambda _: 0)
    volume.detach()
    shutil.copyfile(tmp_path / ".s5jtd-volume", tmp_path / "kept")
    epoch = volume.attach(volume.uuid, lambda _: 1).attach_epoch
    volume.detach()
    (tmp_path / "kept").rename(tmp_path / ".s5jtd-volume")

    with pytest.raises(VolumeForeign, match="old copy"):
        volume.attach(volume.uuid, lambda _: epoch)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def changed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))


def trailed(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"more\n")


def nested(path: Path) -> None:
    path.write_bytes(b"[" * 100_000 + b"\n")


def huge(path: Path) -> None:
    os.truncate(path, 1 << 30)


def linked(path: Path) -> None:
    path.rename(path.with_name("there"))
    path.symlink_to("there")


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def resealed(path: Path) -> None:
    """Whole, and sealed with another key."""
    path.write_bytes(re.sub(rb'"hmac":"[0-9a-f]{4}', b'"hmac":"0000', path.read_bytes()))


DAMAGES = [torn, emptied, changed, trailed, nested, huge, linked, piped, resealed]


@pytest.mark.parametrize("damage", DAMAGES)
def test_d13_a_stamp_that_is_not_as_it_was_written_is_refused_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    volume = Volume(tmp_path, "vol1", 0, KEY)
    volume.attach(None, lambda _: 0)
    volume.detach()
    stamp = tmp_path / ".s5jtd-volume"
    damage(stamp)
    before = stamp.lstat()

    with pytest.raises(VolumeError):
        volume.attach(volume.uuid, lambda _: 0)

    after = stamp.lstat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("damage", DAMAGES)
def test_d14_a_manifest_that_is_not_as_it_was_written_says_nothing(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    write_sealed(fd, "sealed.json", [{"format": 1, "chunk": "c"}, {"id": 1}], KEY)
    assert len(read_sealed(fd, "sealed.json", KEY)) == 2

    damage(tmp_path / "sealed.json")

    with pytest.raises(VolumeError):
        read_sealed(fd, "sealed.json", KEY)
    os.close(fd)


def test_d19_what_is_not_ours_in_a_folder_of_ours_is_left_alone(tmp_path: Path) -> None:
    volume = Volume(tmp_path, "vol1", 0, KEY)
    volume.attach(None, lambda _: 0)
    (tmp_path / "s5jtd" / "somebody's folder").mkdir()
    name = "0123456789abcdef"
    with ChunkFolder(volume.fd, name, create=True) as folder:
        data = tmp_path / "s5jtd" / name / "data"
        for file in ("1.obj", "2.obj", "2.obj1234", "notes.txt", "3.OBJ"):
            (data / file).touch()

        assert folder.sweep(frozenset({"1.obj"})) == 2

        assert sorted(os.listdir(data)) == ["1.obj", "3.OBJ", "notes.txt"]
    assert chunks.chunk_names(volume.fd) == [name]
    volume.detach()


@pytest.mark.parametrize("kind", ["vfat", "nfs4", "fuseblk"])
def test_d26_a_file_system_that_keeps_no_promise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mount = probe.Mount(1, str(tmp_path), kind, "/dev/sdb1", frozenset())
    monkeypatch.setattr(probe, "mount_of", lambda _fd: mount)

    with pytest.raises(VolumeForeign, match=kind) as refusal:
        Volume(tmp_path, "vol1", 0, KEY).attach(None, lambda _: 0)
    assert "ext4 or xfs" in refusal.value.hint
    assert os.listdir(tmp_path) == []


# Ledger


def lose_the_wal(path: Path) -> None:
    path.with_name("ledger.db-wal").unlink()


def cut_the_wal_short(path: Path) -> None:
    wal = path.with_name("ledger.db-wal")
    os.truncate(wal, wal.stat().st_size * 2 // 3)


def garble_the_shm(path: Path) -> None:
    path.with_name("ledger.db-shm").write_bytes(os.urandom(32_768))


def take_the_wal_of_another(path: Path) -> None:
    other = path.with_name("other.db")
    with closing(sqlite3.connect(other, isolation_level=None)) as sql:
        sql.execute("PRAGMA journal_mode = wal")
        sql.execute("CREATE TABLE other (x)")
        sql.executemany("INSERT INTO other VALUES (?)", [("x" * 500,)] * 200)
        shutil.copyfile(f"{other}-wal", f"{path}-wal")


@pytest.mark.parametrize("change", [lose_the_wal, cut_the_wal_short, garble_the_shm, take_the_wal_of_another])
def test_l2_with_another_wal_a_ledger_is_older_or_refused_and_never_half_right(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    (tmp_path / "lived").mkdir()
    lived = LedgerRoad(tmp_path / "lived" / "ledger.db", Clock())
    for n in range(20):
        lived.see(*(b"%d/%d" % (n, k) for k in range(20)))
        deliver_all(lived)
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "lived", killed)
    lived.ledger.close()
    change(killed / "ledger.db")

    with suppress(LedgerError):  # refused: then nothing is decided on its word
        opened = Ledger(killed / "ledger.db")
        opened.database.prove(lambda: True)
        opened.close()
        assert [check for check in verify_all(killed / "ledger.db") if check.findings] == []
