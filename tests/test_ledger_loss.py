"""A ledger that is damaged, lost, or without room, as the operator sees it; and what travels then."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s5jtctl.client import Failure
from s5jtctl.status import Level, verdict
from s5jtd.errors import Exit
from s5jtd.ledger import snapshots
from s5jtd.ledger.files import free_bytes
from s5jtd.ledger.verify import verify_all
from tests.appliance import WAIT_SECONDS, Appliance, contents, digests, side, some_objects, until
from tests.filesystems import tmpfs
from tests.servers import Server

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path) as appliance:
        yield appliance


def job(server: Server, here: str, there: str, **more: Any) -> dict[str, Any]:
    return {"name": "archive", "source": side(server, here), "destination": side(server, there), **more}


def state_of(appliance: Appliance) -> Path:
    return appliance.folder / "state"


def damage(path: Path) -> None:
    """As a bad disk would: some pages in the middle are no longer what they were."""
    size = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for page in range(size // 3, size // 3 + 8):
            file.seek(page * 4096)
            file.write(bytes(2048))


def moved(server: Server) -> list[str]:
    """What was fetched or sent since the log was cleared."""
    requests = server.log.requests()
    return [r.method for r in requests if r.kind == "object" and r.method in ("GET", "PUT")]


def delivered_once(appliance: Appliance, moto: Server, count: int = 300) -> tuple[str, dict[bytes, bytes]]:
    """A pass that delivered everything, and a copy of the ledger after it."""
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(count)
    moto.fill(here, objects)
    appliance.configure(job(moto, here, there))
    assert appliance.once() == Exit.DONE, appliance.log()
    moto.log.clear()
    return there, objects


# damage


def test_a_damaged_ledger_is_refused_and_rebuilt_from_the_newest_copy_without_moving_anything(
    appliance: Appliance, moto: Server
) -> None:
    there, objects = delivered_once(appliance, moto)
    made = appliance.command("ledger", "backup")
    assert made.returncode == 0, made.stderr
    ledger = state_of(appliance) / "ledger.db"
    damage(ledger)
    before = ledger.read_bytes()

    refused = appliance.command("run", "--once")
    assert refused.returncode == Exit.FAILED
    assert "Cannot trust the ledger" in refused.stderr
    assert "s5jtd ledger rebuild" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert ledger.read_bytes() == before

    told = appliance.command("ledger", "verify", "--json")
    assert told.returncode == Exit.FAILED
    assert json.loads(told.stdout)["checks"][0]["findings"]

    looked = appliance.command("ledger", "rebuild", "--dry-run")
    assert looked.returncode == 0, looked.stderr
    assert "is damaged" in looked.stdout
    assert "it is restored from" in looked.stdout
    assert ledger.read_bytes() == before

    asked = appliance.command("ledger", "rebuild")
    assert asked.returncode == Exit.USAGE
    assert "--yes" in asked.stderr
    assert ledger.read_bytes() == before

    rebuilt = appliance.command("ledger", "rebuild", "--yes")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "300 objects delivered; 0 in doubt" in rebuilt.stdout
    (aside,) = (state_of(appliance) / "damaged").iterdir()
    assert (aside / "ledger.db").read_bytes() == before

    assert appliance.once() == Exit.DONE, appliance.log()
    assert moved(moto) == []
    assert contents(moto, there) == digests(objects)
    assert [check for check in verify_all(ledger) if check.findings] == []


def test_a_copy_that_is_older_than_the_deliveries_moves_nothing_twice(
    appliance: Appliance, moto: Server
) -> None:
    """The copy knows half of the objects as staged and never heard of the rest."""
    here, there = moto.new_bucket(), moto.new_bucket()
    early, late = some_objects(60), {b"late/" + key: body for key, body in some_objects(60, b"l").items()}
    moto.fill(here, early)
    away = {"name": "archive", "source": side(moto, here), "destination": side(moto, there, url=NOWHERE)}
    appliance.configure(away)
    appliance.start()
    until(lambda: appliance.counted() == {"staged": 60}, "everything staged")
    assert appliance.command("ledger", "backup").returncode == 0
    appliance.stop()
    moto.fill(here, late)
    appliance.configure(job(moto, here, there))
    assert appliance.once() == Exit.DONE, appliance.log()
    damage(state_of(appliance) / "ledger.db")
    moto.log.clear()

    rebuilt = appliance.command("ledger", "rebuild", "--yes")
    assert "0 objects delivered; 60 in doubt" in rebuilt.stdout, rebuilt.stderr
    assert appliance.once() == Exit.DONE, appliance.log()

    assert moved(moto) == []
    assert contents(moto, there) == digests(early | late)
    appliance.start()
    assert appliance.settled() == {"delivered": 120}


def test_where_the_state_folder_lost_its_copies_a_volume_has_one(appliance: Appliance, moto: Server) -> None:
    there, objects = delivered_once(appliance, moto)
    appliance.start()  # of what the pass left, a copy is made at once, and brought to each volume
    copies = [volume / "s5jtd" / "ledger" for volume in appliance.volumes]
    until(lambda: all(any(c.glob("*.db.seal")) for c in copies), "a copy on each volume")
    appliance.stop()
    shutil.rmtree(state_of(appliance) / "backups")
    (state_of(appliance) / "ledger.db").unlink()

    refused = appliance.command("run", "--once")
    assert refused.returncode == Exit.FAILED
    assert "is gone" in refused.stderr
    moto.log.clear()

    rebuilt = appliance.command("ledger", "rebuild", "--yes")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "on volume volume-" in rebuilt.stdout
    assert "300 objects delivered" in rebuilt.stdout
    assert appliance.once() == Exit.DONE, appliance.log()
    assert moved(moto) == []
    assert contents(moto, there) == digests(objects)


def test_a_copy_that_somebody_else_put_on_a_volume_is_not_believed(
    appliance: Appliance, moto: Server
) -> None:
    """It would say that everything is delivered, and nothing would be sent."""
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(30)
    moto.fill(here, objects)
    appliance.configure(job(moto, here, there))
    assert appliance.command("run", "--once").returncode == 0
    state = state_of(appliance)
    assert appliance.command("ledger", "backup").returncode == 0
    (copy, *_) = snapshots.snapshots(state / "backups")
    folder = appliance.volumes[0] / "s5jtd" / "ledger"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(copy, folder / "ledger-20990101T000000Z.db")
    (folder / "ledger-20990101T000000Z.db.seal").write_text('{"file":"ledger-20990101T000000Z.db"}\n{}\n')
    shutil.rmtree(state / "backups")
    damage(state / "ledger.db")

    rebuilt = appliance.command("ledger", "rebuild", "--yes")

    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "it begins anew" in rebuilt.stdout


def test_a_damaged_copy_is_passed_over_for_the_next_older_one(appliance: Appliance, moto: Server) -> None:
    delivered_once(appliance, moto)
    for _ in range(2):
        assert appliance.command("ledger", "backup").returncode == 0
    newest, older, *_ = snapshots.snapshots(state_of(appliance) / "backups")
    damage(newest)
    damage(state_of(appliance) / "ledger.db")

    rebuilt = appliance.command("ledger", "rebuild", "--yes")

    assert rebuilt.returncode == 0, rebuilt.stderr
    assert f"not usable: {newest}" in rebuilt.stderr
    assert f"it is restored from {older}" in rebuilt.stdout


def test_without_any_copy_volumes_and_destination_tell_what_was_done(
    appliance: Appliance, moto: Server
) -> None:
    """Some objects are delivered, some lie on the volumes and are gone at the source: all arrive, once."""
    here, there = moto.new_bucket(), moto.new_bucket()
    first, second = some_objects(60), {b"2/" + key: body for key, body in some_objects(60, b"2").items()}
    moto.fill(here, first)
    appliance.configure(job(moto, here, there))
    assert appliance.once() == Exit.DONE, appliance.log()
    moto.fill(here, second)
    appliance.configure(
        {"name": "archive", "source": side(moto, here), "destination": side(moto, there, url=NOWHERE)}
    )
    appliance.start()
    until(lambda: appliance.counted().get("staged") == 60, "the second half staged")
    appliance.stop()
    for key in second:
        moto.boto().delete_object(Bucket=here, Key=key.decode())
    for volume in appliance.volumes:
        shutil.rmtree(volume / "s5jtd" / "ledger", ignore_errors=True)
    shutil.rmtree(state_of(appliance) / "backups")
    damage(state_of(appliance) / "ledger.db")
    appliance.configure(job(moto, here, there))
    moto.log.clear()

    rebuilt = appliance.command("ledger", "rebuild", "--yes")
    assert "an empty ledger is in place" in rebuilt.stdout, rebuilt.stderr
    assert appliance.once() == Exit.DONE, appliance.log()

    assert sorted(moved(moto)) == ["PUT"] * 60
    assert contents(moto, there) == digests(first | second)


def test_a_volume_that_returns_after_the_ledger_was_lost_loses_nothing_to_new_ids(
    appliance: Appliance, moto: Server
) -> None:
    """The new ledger gave its ids to other keys, and the source no longer has what the volume holds."""
    here, there = moto.new_bucket(), moto.new_bucket()
    old, new = some_objects(50), {b"new/" + key: body for key, body in some_objects(80, b"n").items()}
    moto.fill(here, old)
    appliance.configure(
        {"name": "archive", "source": side(moto, here), "destination": side(moto, there, url=NOWHERE)}
    )
    appliance.start()
    until(lambda: appliance.counted().get("staged") == 50, "everything staged")
    appliance.stop()
    key = (state_of(appliance) / "seal.key").read_bytes()
    shutil.rmtree(state_of(appliance))
    state_of(appliance).mkdir()
    (state_of(appliance) / "seal.key").write_bytes(key)
    for volume in appliance.volumes:
        volume.rename(f"{volume}-away")
    for gone in old:
        moto.boto().delete_object(Bucket=here, Key=gone.decode())
    moto.fill(here, new)
    appliance.configure(job(moto, here, there, scan_every="1s"))
    appliance.start()
    until(lambda: appliance.counted() == {"seen": 80}, "a new ledger with other keys under the old ids")

    for volume in appliance.volumes:
        Path(f"{volume}-away").rename(volume)

    assert appliance.settled() == {"delivered": 130}
    assert contents(moto, there) == digests(old | new)
    assert len(appliance.events("chunk_folded_in")) >= 1


def test_a_rebuild_beside_a_running_daemon_is_refused(appliance: Appliance, moto: Server) -> None:
    appliance.configure(job(moto, moto.new_bucket(), moto.new_bucket()))
    appliance.start()

    refused = appliance.command("ledger", "rebuild", "--yes")

    assert refused.returncode == Exit.BUSY
    assert "is held by process" in refused.stderr
    assert not (state_of(appliance) / "damaged").exists()


def test_a_ledger_deleted_under_the_daemon_is_told_of_and_what_it_held_comes_back(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(40)
    moto.fill(here, objects)
    appliance.configure(job(moto, here, there, scan_every="1s"))
    appliance.start()
    appliance.settled()
    (state_of(appliance) / "ledger.db").unlink()

    def problem() -> Any:
        problems = appliance.status()["problems"]
        return next((one for one in problems if one["code"] == "ledger_replaced"), None)

    told = until(problem, "the problem")
    assert "s5jtd ledger rebuild" in told["hint"]
    moto.fill(here, {b"later": b"x"})
    appliance.stop()
    moto.log.clear()
    assert appliance.command("run", "--once").returncode == Exit.FAILED

    rebuilt = appliance.command("ledger", "rebuild", "--yes")
    assert "40 objects delivered" in rebuilt.stdout, rebuilt.stderr
    assert appliance.once() == Exit.DONE, appliance.log()
    assert moved(moto) == ["GET", "PUT"]
    assert contents(moto, there) == digests(objects | {b"later": b"x"})


# beside the daemon


def test_verify_backup_and_export_work_beside_the_daemon(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(300)
    moto.fill(here, objects)
    appliance.configure(job(moto, here, there, chunk={"objects": 20}))
    appliance.start()
    until(lambda: appliance.counted().get("delivered", 0) >= 20, "the first deliveries")

    checked = appliance.command("ledger", "verify")
    assert (checked.returncode, checked.stdout.count(" ok\n")) == (0, 6), checked.stdout
    target = appliance.folder / "copy.db"
    copied = appliance.command("ledger", "backup", str(target))
    assert copied.returncode == 0, copied.stderr
    assert snapshots.fault(target) is None
    assert target.stat().st_mode & 0o777 == 0o600
    assert appliance.settled() == {"delivered": 300}

    out = appliance.folder / "rows.csv"
    done = appliance.command("ledger", "export", "--job", "archive", "--output", str(out))
    assert (done.returncode, done.stderr) == (0, "300 objects\n")
    rows = list(csv.DictReader(io.StringIO(out.read_text(), newline="")))
    assert {row["key"].encode() for row in rows} == set(objects)
    assert {row["state"] for row in rows} == {"delivered"}
    command = f"{sys.executable} -m s5jtd --config {appliance.config_path} ledger export | head -1"
    cut = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert cut.stdout.startswith("key,")
    assert "Cannot" not in cut.stderr
    lines = appliance.command("ledger", "export", "--format", "jsonl", "--state", "parked")
    assert (lines.returncode, lines.stdout) == (0, "")
    wrong = appliance.command("ledger", "export", "--job", "nobody")
    assert wrong.returncode == Exit.USAGE
    assert "it knows: archive" in wrong.stderr
    itself = appliance.command("ledger", "backup", str(state_of(appliance) / "ledger.db"))
    assert itself.returncode == Exit.USAGE
    assert "is the ledger itself" in itself.stderr


def test_a_daemon_that_reads_its_ledger_through_says_so_and_can_be_stopped(
    appliance: Appliance, moto: Server
) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is missing")
    delivered_once(appliance, moto)
    (state_of(appliance) / "ledger.clean").unlink()  # as after a power cut
    slow = ("strace", "-f", "-o", os.devnull, "-e", "inject=pread64:delay_enter=150000")
    appliance.start(wait=False, prefix=slow)

    def checking() -> Any:
        with contextlib.suppress(Failure):
            status = appliance.status()
            return status if status["problems"] else None
        return None

    told = until(checking, "the daemon's word on what it does")
    assert told["daemon"]["state"] == "starting"
    assert [problem["code"] for problem in told["problems"]] == ["ledger_checking"]
    assert "it was not closed in an orderly way" in told["problems"][0]["message"]
    assert told["jobs"][0]["state"] == "running", "nothing is blocked that was not tried yet"
    level, words = verdict(told)
    assert (level, words.partition(";")[0]) == (Level.WARNING, "the daemon is starting")
    assert "missing" not in words
    os.kill(told["daemon"]["pid"], signal.SIGTERM)
    assert appliance.process is not None
    assert appliance.process.wait(WAIT_SECONDS) == 0
    assert not (state_of(appliance) / "ledger.clean").exists(), "it was not proven"
    assert not appliance.events("ledger_checked")


def test_a_ledger_that_never_was_is_no_damage(appliance: Appliance, moto: Server) -> None:
    appliance.configure(job(moto, moto.new_bucket(), moto.new_bucket()))

    for command in (["verify"], ["backup"], ["export"]):
        told = appliance.command("ledger", *command)
        assert told.returncode == Exit.FAILED
        assert "is not there" in told.stderr
        assert "s5jtd makes it when it runs" in told.stderr
        assert "Traceback" not in told.stderr


# room


def fill_up(folder: Path, name: str = "filler") -> None:
    with contextlib.suppress(OSError), (folder / name).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), (folder / name).open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_state_folder_stops_intake_not_deliveries_and_ends_nothing(
    tmp_path: Path, moto: Server
) -> None:
    """The same daemon, before, while and after: what was staged arrives from the ballast's room."""
    here, there = moto.new_bucket(), moto.new_bucket()
    first, second = some_objects(60), {b"2/" + key: body for key, body in some_objects(60, b"2").items()}
    moto.fill(here, first)
    with tmpfs(tmp_path / "state", 160 << 20) as state, Appliance(tmp_path) as appliance:
        appliance.configure(job(moto, here, there, scan_every="1s"))
        appliance.start()
        appliance.ask("job.pause", job="archive", side="destination")
        until(lambda: appliance.counted() == {"staged": 60}, "everything staged")
        until((state / "ballast").exists, "the ballast")
        # A WAL that was written and not cut is room of its own: sixty deliveries fit into it.
        appliance.ask("job.pause", job="archive")
        until(lambda: (state / "ledger.db-wal").stat().st_size == 0, "a WAL that is cut")

        fill_up(state)
        until(lambda: "ledger_disk_full" in codes(appliance), "the problem")
        moto.fill(here, second)
        appliance.ask("job.resume", job="archive")
        until(lambda: appliance.counted().get("delivered") == 60, "the delivery of what was staged")
        assert appliance.counted() == {"delivered": 60}, "nothing new was taken in"
        assert appliance.events("ledger_ballast_dropped")
        assert appliance.process is not None
        assert appliance.process.poll() is None

        (state / "filler").unlink()
        until(lambda: appliance.counted() == {"delivered": 120}, "the rest, once there is room")
        until(lambda: "ledger_disk_full" not in codes(appliance), "the end of the problem")
        until((state / "ballast").exists, "the ballast again")
        assert appliance.stop() == 0
        assert not appliance.events("worker_crashed")
        assert [check for check in verify_all(state / "ledger.db") if check.findings] == []
    assert contents(moto, there) == digests(first | second)


def codes(appliance: Appliance) -> set[str]:
    return {problem["code"] for problem in appliance.status()["problems"]}


def test_a_daemon_starts_on_a_full_disk_by_giving_up_its_ballast(tmp_path: Path, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, some_objects(30))
    with tmpfs(tmp_path / "state", 160 << 20) as state, Appliance(tmp_path) as appliance:
        appliance.configure(job(moto, here, there))
        appliance.start()
        appliance.settled()
        until((state / "ballast").exists, "the ballast")
        appliance.stop()
        fill_up(state)

        appliance.start()
        until(lambda: "ledger_disk_full" in codes(appliance), "the problem")
        assert not (state / "ballast").exists()
        assert free_bytes(state) > 0
        assert appliance.stop() == 0


def test_one_pass_on_a_full_disk_comes_to_an_end_that_says_why(
    tmp_path: Path, moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tmpfs(tmp_path / "state", 8 << 20) as state, Appliance(tmp_path) as appliance:
        here = moto.new_bucket()
        moto.fill(here, {b"k": b"x"})
        appliance.configure(job(moto, here, moto.new_bucket()))
        fill_up(state)

        ended = appliance.command("run", "--once")

    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr
    assert "hint:" in ended.stderr


def test_the_daemon_never_waits_for_a_program_that_reads_its_ledger(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, some_objects(100))
    appliance.configure(job(moto, here, there))
    appliance.start()
    until(lambda: appliance.status()["jobs"][0]["last_scan"], "the first scan")
    with contextlib.closing(sqlite3.connect(state_of(appliance) / "ledger.db", isolation_level=None)) as sql:
        sql.execute("BEGIN")
        sql.execute("SELECT count(*) FROM objects").fetchone()

        assert appliance.settled() == {"delivered": 100}


def test_what_root_makes_beside_the_ledger_belongs_to_the_daemons_user(
    appliance: Appliance, moto: Server
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make files for others")
    delivered_once(appliance, moto, 20)
    state = state_of(appliance)
    for path in (state, *state.rglob("*")):
        os.chown(path, 4711, 4711)

    assert appliance.command("ledger", "backup").returncode == 0
    assert appliance.command("ledger", "rebuild", "--yes").returncode == 0

    strangers = [path for path in state.rglob("*") if path.stat().st_uid != 4711]
    assert strangers == []
