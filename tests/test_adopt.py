"""A volume that was carried to another appliance: nothing of it is believed until an operator says so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from s5jtd.errors import Exit
from tests.appliance import Appliance, contents, digests, side, some_objects, until
from tests.servers import Server


def config(source: Server, here: str, destination: Server, there: str) -> dict[str, Any]:
    return {"name": "archive", "source": side(source, here), "destination": side(destination, there)}


def carried(tmp_path: Path, moto: Server, here: str, objects: dict[bytes, bytes]) -> Appliance:
    """A second appliance that received the volume of a first one, full of what that one could not push."""
    moto.fill(here, objects)
    dead = {**side(moto, "nowhere"), "endpoints": ["http://127.0.0.1:9"]}
    with Appliance(tmp_path / "first", volumes=1) as first:
        first.configure({"name": "archive", "source": side(moto, here), "destination": dead})
        first.start()
        until(lambda: first.counted() == {"staged": len(objects)}, "everything staged")
        first.stop()
    second = Appliance(tmp_path / "second", volumes=1)
    shutil.rmtree(second.volumes[0])
    shutil.copytree(first.volumes[0], second.volumes[0])
    return second


def test_an_adopted_volume_delivers_what_it_holds_without_another_pull(tmp_path: Path, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(40)
    with carried(tmp_path, moto, here, objects) as second:
        second.configure(config(moto, here, moto, there))
        second.start()
        until(lambda: second.status()["volumes"][0]["state"] == "foreign", "the volume's state")
        assert "adopt" in second.status()["problems"][0]["hint"]
        second.stop()
        moto.log.clear()

        shown = second.command("volumes", "adopt", "--dry-run", str(second.volumes[0]))
        assert "40 objects" in shown.stdout
        taken = second.command("volumes", "adopt", "--yes", str(second.volumes[0]))
        assert taken.returncode == Exit.DONE, taken.stderr
        second.start()
        assert second.settled() == {"delivered": 40}

    fetched = [r for r in moto.log.requests() if r.method == "GET" and r.kind == "object"]
    assert fetched == []
    assert contents(moto, there) == digests(objects)


def test_bytes_that_changed_on_the_way_are_left_out_and_pulled_again(tmp_path: Path, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(10)
    with carried(tmp_path, moto, here, objects) as second:
        second.configure(config(moto, here, moto, there))
        victim = next(p for p in sorted(second.volumes[0].glob("s5jtd/*/data/*.obj")) if p.stat().st_size)
        victim.write_bytes(b"!" + victim.read_bytes()[1:])

        taken = second.command("volumes", "adopt", "--yes", str(second.volumes[0]))
        assert taken.returncode == Exit.MISMATCH
        assert "left out" in taken.stdout
        second.start()
        assert second.settled() == {"delivered": 10}

    assert contents(moto, there) == digests(objects)


def test_a_volume_of_our_own_or_of_nobody_is_not_adopted(tmp_path: Path, moto: Server) -> None:
    with Appliance(tmp_path, volumes=1) as appliance:
        appliance.configure(config(moto, moto.new_bucket(), moto, moto.new_bucket()))
        assert (
            appliance.command("volumes", "adopt", "--yes", str(appliance.volumes[0])).returncode == Exit.USAGE
        )
        assert appliance.command("volumes", "stamp", str(appliance.volumes[0])).returncode == Exit.DONE

        again = appliance.command("volumes", "adopt", "--yes", str(appliance.volumes[0]))

        assert again.returncode == Exit.USAGE
        assert "already" in again.stderr


def test_a_chunk_of_a_job_with_the_same_name_and_another_source_is_left_as_it_is(
    tmp_path: Path, moto: Server
) -> None:
    there = moto.new_bucket()
    with carried(tmp_path, moto, moto.new_bucket(), some_objects(5)) as second:
        second.configure(config(moto, moto.new_bucket(), moto, there))
        taken = second.command("volumes", "adopt", "--yes", str(second.volumes[0]))
        assert "left as it is" in taken.stdout
        second.start()
        second.settled()
        assert [problem["code"] for problem in second.status()["problems"]] == ["chunk_unreadable"]

    assert contents(moto, there) == {}
    assert list(second.volumes[0].glob("s5jtd/*/data/*.obj"))
