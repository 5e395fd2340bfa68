"""The volumes of a running daemon: emptied before they are pulled, and found when they are plugged in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from s5jtctl.client import Failure
from tests.appliance import Appliance, contents, digests, side, some_objects, until
from tests.filesystems import loop_volume
from tests.servers import Server

pytestmark = pytest.mark.timeout(180)

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
