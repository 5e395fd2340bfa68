"""Disks that hang, refuse, or go for good, under the real daemon: the others go on, and nothing is lost."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s5jtd.errors import Exit
from s5jtd.pool import Pool
from s5jtd.problems import Problems
from s5jtd.volumes.volume import Volume, VolumeState
from tests.appliance import some_objects, until
from tests.autopsy import claims, refuted
from tests.chaos import Chaos, Silence
from tests.filesystems import MIB, failing_volume
from tests.impatient import ImpatientNursery
from tests.powercut import Site, when_free


@pytest.fixture(scope="module")
def nursery(impatient: ImpatientNursery) -> ImpatientNursery:
    """The site's daemons wait for nothing here."""
    return impatient


def states(struck: Site) -> dict[str, str]:
    """Of the volumes, by the last part of their path."""
    return {
        Path(volume["path"]).parent.name: volume["state"] for volume in struck.appliance.status()["volumes"]
    }


TWO = {"volume-1": "ext4", "volume-2": "ext4"}


def test_p15_d22_a_disk_that_hangs_in_mid_work_fails_alone_and_returns_by_itself(
    make: Callable[..., Site],
) -> None:
    struck = make(TWO, chunk={"objects": 10})
    struck.start()
    until(struck.appliance.running, "the first answer")
    with struck.systems["volume-1"].frozen():
        struck.source.fill(struck.here, some_objects(60))
        until(lambda: states(struck) == {"volume-1": "failed", "volume-2": "online"}, "the volume's state")
        until(lambda: struck.appliance.counted().get("delivered", 0) >= 10, "the other volume's work")
        assert struck.appliance.events("worker_stuck") == []
        assert struck.appliance.running()

    assert struck.appliance.settled() == {"delivered": 60}
    until(lambda: states(struck) == {"volume-1": "online", "volume-2": "online"}, "its return")
    assert struck.differences() == []


def test_p15_a_disk_that_hangs_at_the_start_keeps_nobody_waiting(make: Callable[..., Site]) -> None:
    struck = make(TWO, chunk={"objects": 10})
    struck.source.fill(struck.here, some_objects(30))
    with struck.systems["volume-1"].frozen():
        struck.start()
        until(struck.appliance.running, "the first answer")
        assert states(struck)["volume-1"] == "failed"
        assert struck.appliance.settled() == {"delivered": 30}

    until(lambda: states(struck) == {"volume-1": "online", "volume-2": "online"}, "its return")
    assert struck.differences() == []


def test_d10_d28_what_only_a_lost_disk_held_is_pulled_again_and_its_return_sends_nothing_twice(
    make: Callable[..., Site],
) -> None:
    """The source lost one of them meanwhile: then the disk that returns has the last copy."""
    struck = make(TWO, chunk={"objects": 10})
    appliance = struck.appliance
    objects = some_objects(40)
    struck.source.fill(struck.here, objects)
    good = appliance.config_path.read_text()
    appliance.config_path.write_text(good.replace(struck.destination.url, "http://127.0.0.1:9"))
    struck.start()
    until(appliance.running, "the first answer")
    until(lambda: appliance.counted() == {"staged": 40}, "all staged")
    appliance.stop()
    lost = struck.systems["volume-1"]
    held = {row.key for row in struck.ledger().rows if row.volume == str(lost.path)}
    assert held
    lost.unmount(lazily=False)
    gone = min(held)
    struck.source.boto().delete_object(Bucket=struck.here, Key=gone)
    appliance.config_path.write_text(good)
    struck.start()
    until(appliance.running, "the first answer")

    until(lambda: appliance.counted() == {"delivered": 39, "parked": 1}, "what can be had without the disk")
    assert [e["objects"] for e in appliance.events("volume_given_up")] == [len(held)]
    assert list(lost.path.iterdir()) == []  # D10: nothing is written where nothing is mounted
    lost.mount()
    until(lambda: appliance.counted() == {"delivered": 40}, "the last copy's delivery")

    until(lambda: not struck.left_behind(), "an empty volume")
    assert struck.new_puts() == Counter({key.decode(): 1 for key in objects})
    struck.source.fill(struck.here, {gone.encode(): objects[gone.encode()]})
    assert struck.differences() == []


def test_d11_volumes_that_changed_places_are_known_by_their_stamps(make: Callable[..., Site]) -> None:
    struck = make(TWO, chunk={"objects": 5}, scan_every="1h")
    appliance = struck.appliance
    struck.source.fill(struck.here, some_objects(20))
    good = appliance.config_path.read_text()
    appliance.config_path.write_text(good.replace(struck.destination.url, "http://127.0.0.1:9"))
    struck.start()
    until(appliance.running, "the first answer")
    until(lambda: appliance.counted() == {"staged": 20}, "all staged")
    appliance.stop()
    one, two = struck.systems["volume-1"], struck.systems["volume-2"]
    for system in (one, two):
        system.unmount(lazily=False)
    one.path, two.path = two.path, one.path
    for system in (one, two):
        system.mount()
    appliance.config_path.write_text(good)
    staged = len(appliance.events("chunk_staged"))

    struck.start()
    until(appliance.running, "the first answer")

    assert appliance.settled() == {"delivered": 20}
    assert len(appliance.events("chunk_staged")) == staged, "nothing was pulled again"
    assert struck.differences() == []


def test_d3_d27_full_volumes_hold_the_pull_until_they_drain(
    make: Callable[..., Site], tmp_path: Path
) -> None:
    """More than the volumes hold: it waits at the source, and no attempt is counted for it."""
    struck = make({"volume-1": "ext4"}, attempts=1, chunk={"objects": 4, "bytes": "16MiB"})
    appliance = struck.appliance
    objects = {b"%02d" % n: bytes([n]) * (4 * MIB) for n in range(24)}
    struck.source.fill(struck.here, objects)
    good = appliance.config_path.read_text()
    with Chaos(struck.destination.url) as slow:
        slow.add(Silence(method="PUT"))
        appliance.config_path.write_text(good.replace(struck.destination.url, slow.url))
        struck.start()
        until(appliance.running, "the first answer")
        until(lambda: appliance.counted().keys() == {"staged", "pushing", "seen"}, "a full volume")
        until(lambda: "has room for" in (appliance.status()["jobs"][0]["reason"] or ""), "why it waits")
        assert appliance.status()["jobs"][0]["state"] == "running"
        appliance.stop()
    assert all(row.state.word in ("seen", "staged") for row in struck.ledger().rows)
    appliance.config_path.write_text(good)

    struck.start()
    until(appliance.running, "the first answer")

    assert appliance.settled() == {"delivered": 24}
    assert struck.differences() == []
    assert max(struck.new_puts().values()) == 1


def test_d4_d5_a_disk_that_takes_bytes_it_cannot_keep_is_found_out_at_the_sync(
    make: Callable[..., Site], tmp_path: Path
) -> None:
    """As a thin pool that ran out: every write answers well, and then the file system dies."""
    struck = make({"volume-1": "ext4"}, chunk={"objects": 3})
    appliance = struck.appliance
    with failing_volume(tmp_path / "thin", backing_bytes=24 * MIB) as thin:
        appliance.volumes.append(thin.path)
        text = appliance.config_path.read_text()
        appliance.config_path.write_text(text.replace("jobs:", f"- {thin.path}\njobs:"))
        objects = {b"%02d" % n: os.urandom(3 * MIB) for n in range(24)}
        struck.source.fill(struck.here, objects)
        appliance.config_path.write_text(
            appliance.config_path.read_text().replace(struck.destination.url, "http://127.0.0.1:9")
        )
        struck.start()
        until(appliance.running, "the first answer")
        until(lambda: appliance.events("volume_changed"), "its death")
        until(lambda: not appliance.counted().get("pulling"), "the rest on the other volume")
        appliance.stop()
        staged = claims(struck.ledger().rows, lambda _path: True, float("inf"))

        assert staged
        assert [row.key for row in staged if refuted(row)] == []
        assert {"failed"} <= {event["state"] for event in appliance.events("volume_changed")}


def test_d24_a_state_folder_that_dies_is_told_of_and_let_go_of_so_that_it_can_be_mended(
    make: Callable[..., Site],
) -> None:
    """Nothing is decided without the ledger; the daemon answers meanwhile, and ends when it does not help."""
    struck = make({"ledger": "ext4", "volume-1": "ext4"})
    appliance, system = struck.appliance, struck.systems["ledger"]
    life = struck.start()
    until(appliance.running, "the first answer")
    system.cut_power()
    struck.source.fill(struck.here, some_objects(10))

    until(lambda: life.poll() is not None, "its end")
    assert life.returncode == Exit.FAILED
    assert appliance.events("ledger_blocked") or appliance.events("ledger_failed")
    assert appliance.events("worker_crashed") == []
    when_free(lambda: system.unmount(lazily=False))
    system.mount()

    assert struck.settle() == []
    assert max(struck.put.values()) == 1


def test_d3_d21_a_volume_that_refuses_bytes_and_shows_room_is_left_alone_ever_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a quota of the daemon's user: what the file system tells is not what it gives."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    nothing: Any = None
    volume = Volume(tmp_path, "vol1", 0, b"k" * 32)
    pool = Pool([volume], nothing, Problems())
    volume.attach(None, lambda _: 0)
    volume.turn(VolumeState.ONLINE, None)
    pauses = []
    for _ in range(6):
        pool.refused_bytes(volume)
        began = now
        while volume.state is VolumeState.FULL:
            now += 1.0
            pool.watch(volume)
        pauses.append(now - began)
    volume.detach()

    assert pauses == [4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
