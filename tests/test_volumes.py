"""The volumes of a running daemon: emptied before they are pulled, and found when they are plugged in."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from s5jtctl.client import Failure
from s5jtd import hotplug
from s5jtd.config import load
from s5jtd.ledger.store import Ledger
from s5jtd.volumes import probe
from tests.appliance import Appliance, contents, digests, side, some_objects, until
from tests.filesystems import loop_volume
from tests.servers import Server

JOB = "archive"


def job(server: Server, here: str, there: str, **more: Any) -> dict[str, Any]:
    return {"name": JOB, "source": side(server, here), "destination": side(server, there), **more}


def row(appliance: Appliance, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = appliance.ask("volume.list")["volumes"]
    return next(each for each in found if name in (each["name"], each["path"]))


def test_a_drained_volume_is_emptied_let_go_of_and_stays_so_until_it_is_activated(
    tmp_path: Path, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    first, later = some_objects(60), {b"later/%03d" % n: b"x" * 500 for n in range(40)}
    moto.fill(here, first)
    with loop_volume(tmp_path / "disk") as disk, Appliance(tmp_path, volumes=1) as appliance:
        appliance.volumes.append(disk.path)
        appliance.configure(job(moto, here, there, chunk={"objects": 10}))
        appliance.start()
        appliance.ask("job.pause", job=JOB, side="destination")
        appliance.ask("job.scan", job=JOB)
        until(lambda: appliance.counted() == {"staged": 60}, "everything staged")
        held = row(appliance, "ext4")
        assert held["only_here_bytes"] == held["staged_bytes"] > 0
        assert not held["safe_to_remove"]

        answer = appliance.ask("volume.drain", volume="ext4")
        assert (answer["result"], answer["state"]) == ("draining", "draining")
        assert f"{held['only_here_objects']} objects" in answer["reason"]
        assert appliance.ask("volume.drain", volume=str(disk.path))["result"] == "already_draining"
        appliance.stop()
        appliance.start()
        assert row(appliance, "ext4")["state"] == "draining"
        moto.fill(here, later)
        appliance.ask("job.scan", job=JOB, wait=True)
        until(lambda: appliance.counted() == {"staged": 100}, "the rest on the other volume")
        assert row(appliance, "ext4")["staged_bytes"] == held["staged_bytes"]

        appliance.ask("job.resume", job=JOB)
        drained = appliance.ask("volume.drain", volume="ext4", wait=True)
        assert drained["safe_to_remove"]
        assert drained["only_here_bytes"] == 0
        assert "safe to unmount" in drained["reason"]
        disk.unmount(lazily=False)  # nobody holds it open
        assert list((disk.path).iterdir()) == []
        assert appliance.settled() == {"delivered": 100}
        appliance.stop()
        appliance.start()
        assert row(appliance, "ext4")["state"] == "draining"
        assert row(appliance, "ext4")["safe_to_remove"]
        assert appliance.status()["problems"] == []

        disk.mount()
        assert appliance.ask("volume.activate", volume="ext4")["state"] == "online"
        assert row(appliance, "ext4")["uuid"] == held["uuid"]
    assert contents(moto, there) == digests(first | later)


def test_a_volume_that_is_not_there_is_not_drained_by_another_name(tmp_path: Path, moto: Server) -> None:
    with Appliance(tmp_path, volumes=1) as appliance:
        appliance.configure(job(moto, moto.new_bucket(), moto.new_bucket()))
        appliance.start()
        with pytest.raises(Failure, match="no volume 'vol9'") as refused:
            appliance.ask("volume.drain", volume="vol9")
        assert "volume-1" in refused.value.hint


def test_disks_that_a_pattern_finds_come_and_go_without_a_restart(tmp_path: Path, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    slots, pattern = tmp_path / "slots", str(tmp_path / "slots" / "*" / "ext4")
    first, later = some_objects(30), {b"later/%03d" % n: b"x" * 700 for n in range(30)}
    with contextlib.ExitStack() as stack, Appliance(tmp_path, volumes=0) as appliance:
        stack.enter_context(loop_volume(slots / "one"))
        appliance.configure(job(moto, here, there, chunk={"objects": 5}), volumes=[pattern])
        appliance.start()
        assert volumes(appliance) == {"one-ext4": "online"}
        appliance.ask("job.pause", job=JOB, side="destination")
        moto.fill(here, first)
        appliance.ask("job.scan", job=JOB, wait=True)
        until(lambda: appliance.counted() == {"staged": 30}, "everything on the first disk")

        second = stack.enter_context(loop_volume(slots / "two"))
        until(lambda: volumes(appliance) == {"one-ext4": "online", "two-ext4": "online"}, "the second disk")
        moto.fill(here, later)
        appliance.ask("job.scan", job=JOB, wait=True)
        until(lambda: appliance.counted() == {"staged": 60}, "everything staged")
        assert row(appliance, "two-ext4")["staged_bytes"]

        # It is pulled, and what it holds with it: the folder goes, as with an automounter, and is missed.
        second.unmount()
        second.path.rmdir()
        until(lambda: volumes(appliance)["two-ext4"] == "missing", "the disk that went")
        appliance.stop()
        appliance.start()
        assert volumes(appliance) == {"one-ext4": "online", "two-ext4": "missing"}
        assert row(appliance, "two-ext4")["only_here_bytes"]
        second.path.mkdir()
        second.mount()
        until(lambda: volumes(appliance)["two-ext4"] == "online", "the disk that came back")
        appliance.ask("job.resume", job=JOB)
        assert appliance.settled() == {"delivered": 60}

        until(lambda: row(appliance, "two-ext4")["staged_bytes"] == 0, "an empty disk")
        second.unmount()
        second.path.rmdir()
        until(lambda: volumes(appliance) == {"one-ext4": "online"}, "what went empty is not missed")
        assert appliance.status()["problems"] == []

        one_more = stack.enter_context(loop_volume(tmp_path / "more"))
        appliance.configure(job(moto, here, there), volumes=[pattern, str(one_more.path)])
        assert f"volumes[{one_more.path}] added" in appliance.ask("config.reload")["changed"]
        until(lambda: volumes(appliance) == {"one-ext4": "online", "ext4": "online"}, "the one written out")
        appliance.configure(job(moto, here, there), volumes=[pattern])
        assert appliance.ask("config.reload")["kept"] == [f"volumes[{one_more.path}] removed"]
        assert volumes(appliance)["ext4"] == "online"
    assert contents(moto, there) == digests(first | later)


def volumes(appliance: Appliance) -> dict[str, str]:
    return {volume["name"]: volume["state"] for volume in appliance.status()["volumes"]}


def test_a_mount_point_that_a_pattern_finds_and_nothing_was_mounted_on_is_no_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    for name in ("volume-1", "volume-2", "volume-3"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(
        probe, "listed_in_fstab", lambda path: "/etc/fstab" if path.name != "volume-1" else None
    )
    (tmp_path / "config.yaml").touch(mode=0o600)
    (tmp_path / "config.yaml").write_text(
        f"volumes: ['{tmp_path}/volume-*', '{tmp_path}/volume-3']\n"
        "jobs: [{name: a, source: {bucket: aaa}, destination: {bucket: bbb}}]\n"
    )
    found = hotplug.volumes_now(load(tmp_path / "config.yaml"), ledger.views)
    ledger.close()

    # What is written out is meant, whether it is there or not.
    assert sorted(volume.name for volume in found) == ["volume-1", "volume-3"]
