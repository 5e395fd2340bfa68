"""`s5jtd reset`: it says exactly what goes, asks, and takes that and nothing else."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s5jtd.errors import Exit
from s5jtd.ledger import forget, snapshots
from s5jtd.ledger.verify import verify_all
from tests.appliance import WAIT_SECONDS, Appliance, contents, digests, side, some_objects, until
from tests.servers import Server

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path) as appliance:
        yield appliance


class Two:
    """Two jobs: one delivered all it has, the other has all of it on the volumes."""

    def __init__(self, appliance: Appliance, server: Server) -> None:
        self.appliance, self.server = appliance, server
        self.here = [server.new_bucket() for _ in range(2)]
        self.there = [server.new_bucket() for _ in range(2)]
        self.objects = [some_objects(30), some_objects(40, b"second")]
        for bucket, objects in zip(self.here, self.objects, strict=True):
            server.fill(bucket, objects)
        self.configure(NOWHERE)
        appliance.start()
        until(
            lambda: (appliance.counted(0), appliance.counted(1)) == ({"delivered": 30}, {"staged": 40}),
            "one job delivered, the other staged",
        )
        until(lambda: not self.folders("delivers"), "the release of what was delivered")
        appliance.stop()

    def configure(self, url: str | None = None) -> None:
        names = ("delivers", "waits")
        jobs: list[dict[str, Any]] = [
            {
                "name": name,
                "source": side(self.server, self.here[n]),
                "destination": side(self.server, self.there[n], url=url if n else None),
            }
            for n, name in enumerate(names)
        ]
        self.appliance.configure(*jobs)

    @property
    def ledger(self) -> Path:
        return self.appliance.folder / "state" / "ledger.db"

    def folders(self, _job: str = "") -> list[Path]:
        found = [path for volume in self.appliance.volumes for path in volume.glob("s5jtd/*/data")]
        return [path.parent for path in found if not _job or f'"job":"{_job}"' in manifest(path.parent)]

    def jobs(self) -> dict[str, dict[str, int]]:
        return {one.name: dict(one.objects) for one in forget.jobs(self.ledger, None)}

    def all_files(self) -> dict[str, bytes]:
        """Every file of state folder and volumes, but for what a look by SQLite leaves."""
        roots = [self.appliance.folder / "state", *self.appliance.volumes]
        return {
            str(path): path.read_bytes()
            for root in roots
            for path in root.rglob("*")
            if path.is_file() and not path.name.endswith(("-shm", "-wal"))
        }


def manifest(folder: Path) -> str:
    try:
        return (folder / "manifest.jsonl").read_text()
    except FileNotFoundError:
        return ""


@pytest.fixture
def two(appliance: Appliance, moto: Server) -> Two:
    return Two(appliance, moto)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, moto: Server) -> Iterator[Two]:
    """For tests in which nothing may change."""
    with Appliance(tmp_path_factory.mktemp("untouched")) as appliance:
        yield Two(appliance, moto)


def test_a_dry_run_says_exactly_what_goes_and_changes_nothing(untouched: Two) -> None:
    two = untouched
    before = two.all_files()

    told = two.appliance.command("reset", "--dry-run")

    assert told.returncode == 0, told.stderr
    assert "job delivers: 30 objects (30 delivered)" in told.stdout
    assert "job waits: 40 objects (40 staged)" in told.stdout
    sizes = [sum(file.stat().st_size for file in folder.glob("data/*")) for folder in two.folders()]
    assert sum(sizes) == sum(len(body) for body in two.objects[1].values())
    lines = told.stdout.splitlines()
    chunks = [line for line in lines if "chunks with" in line]
    assert sum(int(line.split(" chunks with ")[1].split()[0]) for line in chunks) == 40
    lost = [line for line in lines if "were not delivered" in line]
    assert sum(int(line.split("of these ")[1].split()[0]) for line in lost) == 40
    assert two.all_files() == before


def test_without_a_yes_nothing_happens(untouched: Two) -> None:
    two = untouched
    before = two.all_files()

    refused = two.appliance.command("reset")

    assert refused.returncode == Exit.USAGE
    assert "--yes" in refused.stderr
    after = two.all_files()
    assert {name for name in before if before[name] != after.get(name)} <= {str(two.ledger.parent / "lock")}


@pytest.mark.parametrize(("typed", "goes"), [("reset", True), ("yes", False), ("", False)])
def test_at_a_terminal_the_word_must_be_typed(two: Two, typed: str, goes: bool) -> None:
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "s5jtd", "--config", str(two.appliance.config_path), "reset"],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, f"{typed}\n".encode())
    _, told = program.communicate(timeout=WAIT_SECONDS)
    os.close(ours)

    assert program.returncode == (0 if goes else Exit.USAGE), told
    assert "Type `reset` to go on" in told
    assert bool(two.jobs()) is not goes
    assert bool(two.folders()) is not goes


def test_one_job_is_forgotten_and_the_other_keeps_everything(two: Two) -> None:
    done = two.appliance.command("reset", "--job", "waits", "--yes")

    assert done.returncode == 0, done.stderr
    assert two.jobs() == {"delivers": {"delivered": 30}}
    assert two.folders() == []
    assert [check for check in verify_all(two.ledger) if check.findings] == []
    two.server.log.clear()
    two.configure()
    assert two.appliance.once() == Exit.DONE, two.appliance.log()
    requests = two.server.log.requests()
    fetched = {request.key for request in requests if request.kind == "object" and request.method == "GET"}
    assert fetched == set(two.objects[1]), "only the forgotten job's objects travel again"
    for bucket, objects in zip(two.there, two.objects, strict=True):
        assert contents(two.server, bucket) == digests(objects)


def test_the_job_that_delivers_is_forgotten_and_finds_its_objects_again(two: Two) -> None:
    done = two.appliance.command("reset", "--job", "delivers", "--yes")

    assert done.returncode == 0, done.stderr
    assert two.jobs() == {"waits": {"staged": 40}}
    assert sum(len(list(folder.glob("data/*.obj"))) for folder in two.folders()) == 40
    two.server.log.clear()
    two.configure()
    assert two.appliance.once() == Exit.DONE, two.appliance.log()
    requests = two.server.log.requests()
    assert [r.key for r in requests if r.kind == "object" and r.method == "GET"] == []
    assert {r.key for r in requests if r.kind == "object" and r.method == "PUT"} == set(two.objects[1])


def test_everything_is_forgotten_but_stamps_keys_and_both_ends_of_the_road(two: Two) -> None:
    state = two.appliance.folder / "state"
    stamps = [(volume / ".s5jtd-volume").read_bytes() for volume in two.appliance.volumes]
    key = (state / "seal.key").read_bytes()
    (two.appliance.volumes[0] / "s5jtd" / "somebody's file").write_text("not ours")
    two.server.log.clear()

    done = two.appliance.command("reset", "--yes")

    assert done.returncode == 0, done.stderr
    assert two.server.log.requests() == []
    assert two.jobs() == {}
    assert two.folders() == []
    assert [(volume / ".s5jtd-volume").read_bytes() for volume in two.appliance.volumes] == stamps
    assert (state / "seal.key").read_bytes() == key
    assert (two.appliance.volumes[0] / "s5jtd" / "somebody's file").exists()
    known = forget.volumes(two.ledger, None)
    assert len(known) == 2, "a volume's epoch tells it from its copy"
    newest = snapshots.snapshots(state / "backups")[0]
    assert forget.jobs(newest, None) == [], "a rebuild must not bring back what was forgotten"
    two.configure()
    assert two.appliance.once() == Exit.DONE, two.appliance.log()
    for bucket, objects in zip(two.there, two.objects, strict=True):
        assert contents(two.server, bucket) == digests(objects)


def test_chunks_that_the_ledger_never_heard_of_go_with_their_job(two: Two) -> None:
    """The ledger was lost; what the folders say of themselves decides."""
    shutil.rmtree(two.ledger.parent / "backups", ignore_errors=True)
    for path in two.ledger.parent.glob("ledger.*"):
        path.unlink()

    other = two.appliance.command("reset", "--job", "delivers", "--yes")
    assert other.returncode == 0, other.stderr
    assert len(two.folders("waits")) >= 1

    done = two.appliance.command("reset", "--job", "waits", "--yes")
    assert done.returncode == 0, done.stderr
    assert two.folders() == []


def test_what_lies_on_a_volume_that_is_away_is_told_and_comes_back_with_it(two: Two) -> None:
    volume = two.appliance.volumes[0]
    chunks = len([folder for folder in two.folders() if volume in folder.parents])
    volume.rename(f"{volume}-away")

    done = two.appliance.command("reset", "--yes")

    assert done.returncode == 0, done.stderr
    if chunks:
        assert f"not here; {chunks} chunks" in done.stdout
    assert "not looked at: volume-1" in done.stderr
    Path(f"{volume}-away").rename(volume)
    two.configure()
    assert two.appliance.once() == Exit.DONE, two.appliance.log()
    assert contents(two.server, two.there[1]) == digests(two.objects[1])


def test_a_running_daemon_is_not_reset(two: Two) -> None:
    two.appliance.start()

    refused = two.appliance.command("reset", "--yes")
    looked = two.appliance.command("reset", "--dry-run")

    assert refused.returncode == Exit.BUSY
    assert "is held by process" in refused.stderr
    assert looked.returncode == 0, "to look needs no lock"
    assert two.appliance.counted(1) == {"staged": 40}


def test_a_job_nobody_knows_is_named_with_those_there_are(untouched: Two) -> None:
    told = untouched.appliance.command("reset", "--job", "wiats", "--yes")

    assert told.returncode == Exit.USAGE
    assert "there is no job 'wiats'" in told.stderr
    assert "the jobs are: delivers, waits" in told.stderr


def test_a_job_s_name_can_be_given_to_other_data_after_a_reset(two: Two) -> None:
    two.here.reverse()
    two.there.reverse()
    two.configure()
    refused = two.appliance.command("run", "--once")
    assert refused.returncode == Exit.FAILED
    assert "s5jtd reset --job delivers" in refused.stderr

    assert two.appliance.command("reset", "--yes").returncode == 0
    assert two.appliance.once() == Exit.DONE, two.appliance.log()


def test_a_folder_that_another_program_still_writes_is_not_removed(two: Two) -> None:
    """An s5cmd that outlived its daemon holds the folder's lock."""
    folder = two.folders()[0]
    program = "import fcntl, os, sys, time; fd = os.open(sys.argv[1], os.O_RDONLY);"
    program += "fcntl.flock(fd, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(folder / "data")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    holder.stdout.readline()

    refused = two.appliance.command("reset", "--yes")
    holder.kill()
    holder.wait()
    holder.stdout.close()

    assert refused.returncode == Exit.BUSY
    assert folder.name in refused.stderr
    assert two.jobs() == {"delivers": {"delivered": 30}, "waits": {"staged": 40}}
    assert len(two.folders()) >= 1
