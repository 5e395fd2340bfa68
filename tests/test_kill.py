"""SIGKILL at any moment, ledgers that are not the one that was there, volumes that go and come back."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from s5jtd.ledger.store import Ledger
from s5jtd.link.tuning import WORKERS_USUAL
from tests.appliance import some_objects, until
from tests.nursery import why_not_watched
from tests.powercut import JOB, Round, Site
from tests.tampering import CHANGES, delete, mend

KILLS = 10
#: Enough that moving them takes many chunks.
MANY = some_objects(400)


def test_kills_at_random_moments_break_no_promise(make: Callable[..., Site]) -> None:
    result = Round(make(), "plain folders", seed=1).run(KILLS, time.monotonic() + 30.0)

    assert result.violations == []
    assert result.cuts >= 3
    assert result.copies + result.acknowledged > 0


# Another ledger


@pytest.mark.parametrize("change", CHANGES)
def test_with_another_ledger_after_a_kill_nothing_is_lost_or_sent_twice(
    make: Callable[..., Site], change: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    """What was delivered stays so, what lies on the volumes is found, the rest is pulled again."""
    struck = make(chunk={"objects": 20})
    appliance, path, older = struck.appliance, struck.state_dir / "ledger.db", tmp_path / "older.db"
    struck.source.fill(struck.here, MANY)
    life = struck.start()
    until(lambda: path.exists() and appliance.running() and _delivered(struck) >= 20, "the first deliveries")
    Ledger.copy(path, older)
    until(lambda: _delivered(struck) >= 100, "more deliveries")
    life.kill()
    life.wait()
    held = set(struck.holdings())
    struck.new_puts()
    sent = Counter(struck.put)

    change(path, older)
    mend(appliance, path)

    assert struck.settle(60.0) == []
    assert set() == (struck.put - sent).keys() & held


def _delivered(struck: Site) -> int:
    return struck.appliance.counted().get("delivered", 0)


# Volumes


def test_a_volume_that_goes_in_mid_chunk_holds_nobody_up_and_is_taken_up_when_it_is_back(
    make: Callable[..., Site],
) -> None:
    """Unmounted lazily, because it is busy; what was promised to it goes elsewhere."""
    struck = make({"volume-1": "ext4", "volume-2": "ext4"}, chunk={"objects": 10})
    appliance, system = struck.appliance, struck.systems["volume-1"]
    struck.source.fill(struck.here, MANY)
    appliance.start()
    until(lambda: _delivered(struck) >= 20, "the first deliveries")
    system.unmount()

    def states() -> dict[str, str]:
        return {volume["path"]: volume["state"] for volume in appliance.status()["volumes"]}

    until(lambda: states()[str(system.path)] == "missing", "the volume's absence")
    until(lambda: set(appliance.counted()) <= {"delivered", "staged"}, "the rest on the other volume")
    until(lambda: _staged_elsewhere(struck) == 0, "only what the absent volume holds is left")
    assert list(system.path.iterdir()) == []

    system.mount()
    until(lambda: states()[str(system.path)] == "online", "the volume's return")
    assert {"delivered": len(MANY)} == appliance.settled()
    until(lambda: not struck.left_behind(), "empty volumes")
    assert struck.differences() == []
    again = [puts for puts in struck.new_puts().values() if puts > 1]
    assert again in ([], [2] * len(again))  # what was under way when the volume went was cut off
    assert len(again) <= 2 * WORKERS_USUAL


def _staged_elsewhere(struck: Site) -> int:
    """Objects that are staged on a volume that is there."""
    volumes = struck.appliance.status()["volumes"]
    return sum(bool(volume["staged_bytes"]) for volume in volumes if volume["state"] == "online")


def test_a_volume_that_was_read_only_is_used_again_when_it_is_not(make: Callable[..., Site]) -> None:
    struck = make({"volume-1": "ext4"})
    appliance, system = struck.appliance, struck.systems["volume-1"]
    appliance.start()
    system.remount("ro")
    struck.source.fill(struck.here, {b"k": b"x"})
    appliance.ask("job.scan", job=JOB, wait=True)
    until(lambda: appliance.status()["volumes"][0]["state"] == "readonly", "the volume's state")

    system.remount("rw")

    assert appliance.settled() == {"delivered": 1}
    assert appliance.status()["problems"] == []


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["with its ledger", "with a new ledger"])
def test_d8_a_volume_that_is_read_only_at_the_start_is_pushed_from_and_settled_when_it_is_not(
    make: Callable[..., Site], is_forgotten: bool
) -> None:
    """Nothing is pulled onto it, and what was delivered goes once it can."""
    struck = make({"volume-1": "ext4"})
    appliance, system = struck.appliance, struck.systems["volume-1"]
    good = appliance.config_path.read_text()
    appliance.config_path.write_text(good.replace(struck.destination.url, "http://127.0.0.1:9"))
    struck.source.fill(struck.here, some_objects(20))
    appliance.start()
    until(lambda: appliance.counted() == {"staged": 20}, "all staged")
    appliance.stop(signal.SIGKILL)
    appliance.config_path.write_text(good)
    system.remount("ro")
    struck.source.fill(struck.here, {b"later": b"x"})
    if is_forgotten:
        delete(struck.state_dir / "ledger.db", Path())

    appliance.start()

    assert appliance.status()["volumes"][0]["state"] == "readonly"
    until(lambda: appliance.counted() == {"delivered": 20, "seen": 1}, "the delivery of what it holds")
    assert len(struck.left_behind()) > 0

    system.remount("rw")

    assert appliance.settled() == {"delivered": 21}
    until(lambda: not struck.left_behind(), "an empty volume")
    assert struck.differences() == []
    assert appliance.status()["problems"] == []
    assert appliance.stop() == 0
    assert max(struck.new_puts().values()) == 1


def test_a_disk_that_dies_when_nothing_could_be_pulled_ends_nothing_else(make: Callable[..., Site]) -> None:
    """The chunk came to nothing, and the disk refuses to let its folder go."""
    if reason := why_not_watched():
        pytest.skip(reason)
    struck = make(scan_every="1h")
    appliance = struck.appliance
    life = struck.start(at=1, fate="EIO", on=r"unlinkat .*CHUNK/(pull\.batch|manifest\.jsonl|data)$")
    until(appliance.running, "the first answer")
    appliance.ask("job.pause", job=JOB)
    struck.source.fill(struck.here, {b"a": b"1", b"b": b"2"})
    appliance.ask("job.scan", job=JOB, wait=True)
    for key in ("a", "b"):
        struck.source.boto().delete_object(Bucket=struck.here, Key=key)

    appliance.ask("job.resume", job=JOB)

    until(lambda: set(appliance.counted()) == {"gone"}, "that both are gone")
    assert appliance.stop() == 0
    assert life.ended is not None
    assert life.ended.struck, "the call was never made"
    assert appliance.events("worker_crashed") == []


# Local copies


def vanish(file: Path) -> None:
    file.unlink()


def be_cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"!")


def rot(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[0] ^= 1
    file.write_bytes(body)


def lose_its_bytes(file: Path) -> None:
    """The size stays: a file with a hole."""
    size = file.stat().st_size
    os.truncate(file, 0)
    os.truncate(file, size)


def become_a_link(file: Path) -> None:
    there = file.with_name("there")
    file.rename(there)
    file.symlink_to(there)


def be_linked_elsewhere(file: Path) -> None:
    file.with_name("elsewhere").hardlink_to(file)


def become_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def become_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


#: What may happen to a file on a volume; a pipe has no size, so it takes an empty object's place.
HAPPENINGS = (
    vanish, be_cut_short, grow, rot, lose_its_bytes, become_a_link, be_linked_elsewhere, become_a_folder,
    become_a_pipe,
)  # fmt: skip


def test_d15_d17_d18_a_staged_copy_that_is_no_longer_what_it_was_is_pulled_again(
    make: Callable[..., Site],
) -> None:
    struck = make(attempts=2)
    appliance = struck.appliance
    bodies = [b"" if happen is become_a_pipe else b"%d" % n * 100 for n, happen in enumerate(HAPPENINGS)]
    struck.source.fill(struck.here, {b"k%02d" % n: body for n, body in enumerate([*bodies, b"untouched"])})
    good = appliance.config_path.read_text()
    appliance.config_path.write_text(good.replace(struck.destination.url, "http://127.0.0.1:9"))
    appliance.start()
    until(lambda: appliance.counted() == {"staged": len(bodies) + 1}, "all staged")
    appliance.stop(signal.SIGKILL)
    for row in sorted(struck.ledger().rows, key=lambda row: row.key)[: len(HAPPENINGS)]:
        HAPPENINGS[int(row.key[1:])](Path(row.volume, "s5jtd", row.chunk, "data", f"{row.id:x}.obj"))
    appliance.config_path.write_text(good)

    appliance.start()

    assert appliance.settled() == {"delivered": len(bodies) + 1}
    assert struck.differences() == []
    until(lambda: not struck.left_behind(), "empty volumes")
    assert appliance.stop() == 0
