"""A large object goes on where it broke off, on both hops, whatever ended it; a proxy counts the bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s5jtd.ledger.rows import Item
from s5jtd.ledger.unfinished import Begun, Part
from s5jtd.stages.resuming import part_bytes_now
from tests.appliance import Appliance, contents, digests, side, until
from tests.chaos import Chaos, Delay, Refuse, Request, Reset, Silence, by_s5cmd
from tests.servers import Server

MIB = 1 << 20
SIZE = 128 * MIB
BREAKS = 4
PART = 8 * MIB


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path, volumes=1) as appliance:
        yield appliance


@pytest.fixture(scope="module")
def body() -> bytes:
    return hashlib.shake_128(b"large").digest(MIB) * (SIZE // MIB)


def moved(chaos: Chaos, method: str) -> int:
    """Bytes of bodies that went through the proxy so far."""
    exchanges = [one for one in chaos.log if one.method == method and one.key == b"large"]
    return sum(one.response_bytes if method == "GET" else one.request_bytes for one in exchanges)


def job(source: Server, here: str, destination: Server, there: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "archive",
        "source": side(source, here),
        "destination": side(destination, there),
        "resume_above": "32MiB",
        "preserve": [],
        **more,
    }


def break_off(appliance: Appliance, chaos: Chaos, how: str) -> None:
    """End what runs: the server goes and comes back, or the daemon is killed and started again."""
    if how == "server":
        chaos.pause()
        chaos.resume()
    else:
        appliance.stop(signal.SIGKILL)
        appliance.start()


def goes_on_with_what_there_is(appliance: Appliance, chaos: Chaos, method: str) -> None:
    """Whatever came before a restart counts again before anything else moves."""

    def under_way() -> int:
        found = appliance.status()["jobs"][0]["under_way"]
        return found["pull_bytes"] if method == "GET" else found["push_bytes"]

    appliance.stop(signal.SIGKILL)
    silence = chaos.add(Silence(method=method, key="large"))
    appliance.start()
    until(lambda: under_way() >= SIZE // 2, "what there is")
    silence.remove()
    break_off(appliance, chaos, "server")


@pytest.mark.parametrize("how", ["server", "daemon"])
def test_each_byte_travels_about_once_however_often_it_breaks_off(
    appliance: Appliance, moto: Server, body: bytes, how: str
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"large": body})
    with Chaos(moto.url) as down, Chaos(moto.url) as up:
        proxied = dataclasses.replace(moto, url=down.url), dataclasses.replace(moto, url=up.url)
        # What a break costs: the parts that were under way in that moment.
        appliance.configure(job(proxied[0], here, proxied[1], there), limits={"parts": 2})
        appliance.start()
        for chaos, method in ((down, "GET"), (up, "PUT")):
            for number in range(1, BREAKS + 1):
                goal = number * SIZE // (BREAKS + 1)
                until(lambda: moved(chaos, method) >= goal, f"break {number}", 90)  # noqa: B023
                break_off(appliance, chaos, how)
            if how == "daemon":
                goes_on_with_what_there_is(appliance, chaos, method)
        assert appliance.settled(120) == {"delivered": 1}
        appliance.stop()
        wire = {"down": moved(down, "GET") / SIZE, "up": moved(up, "PUT") / SIZE}
        print(wire)

    assert digests({b"large": body}) == contents(moto, there)
    breaks = BREAKS + (2 if how == "daemon" else 0)  # see `goes_on_with_what_there_is`
    assert max(wire.values()) < 1.0 + breaks * 2 * PART / SIZE + 0.05, wire
    with contextlib.closing(moto.boto()) as boto:
        assert not boto.list_multipart_uploads(Bucket=there).get("Uploads")


@pytest.mark.parametrize("mode", ["staged", "direct"])
def test_where_no_part_ever_gets_through_they_become_smaller(
    appliance: Appliance, moto: Server, body: bytes, mode: str
) -> None:
    """As on a line that holds for a minute, and a part takes longer."""
    here, there = moto.new_bucket(), moto.new_bucket()
    large = body[: 36 * MIB]
    moto.fill(here, {b"large": large})
    with Chaos(moto.url) as up:
        up.add(Reset(6 * MIB, method="PUT", query="partNumber", side="request"))
        appliance.configure(job(moto, here, dataclasses.replace(moto, url=up.url), there, mode=mode))
        appliance.start()
        assert appliance.settled() == {"delivered": 1}
        row = appliance.ask("object.list", job="archive")["objects"][0]
        appliance.stop()

    assert digests({b"large": large}) == contents(moto, there)
    with contextlib.closing(moto.boto()) as boto:
        assert boto.head_object(Bucket=there, Key="large", PartNumber=1)["ContentLength"] == 5 * MIB
    assert row["evidence"] == "etag"


def goes_on(request: Request) -> bool:
    """Whether our own engine asks for the rest of a range."""
    start = request.headers.find("Range").removeprefix("bytes=").partition("-")[0]
    return not by_s5cmd(request) and bool(start) and int(start) % (16 * MIB) > 0


def test_what_breaks_off_again_and_again_goes_on_where_it_was_though_it_is_not_large(
    appliance: Appliance, moto: Server, body: bytes
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    middling = body[: 36 * MIB]
    moto.fill(here, {b"middling": middling, b"small": b"x"})
    with Chaos(moto.url) as down, Chaos(moto.url) as up:
        down.add(Reset(MIB // 2, method="GET", key="middling"))
        down.add(Reset(0, where=goes_on, nth=range(1, 3)))
        up.add(Reset(20 * MIB, method="PUT", side="request"))
        proxied = dataclasses.replace(moto, url=down.url), dataclasses.replace(moto, url=up.url)
        appliance.configure(job(proxied[0], here, proxied[1], there, resume_above="256MiB"))
        appliance.start()
        assert appliance.settled() == {"delivered": 2}
        rows = appliance.ask("object.list", job="archive")["objects"]
        appliance.stop()

    assert appliance.events("chunk_put_off")
    assert digests({b"middling": middling, b"small": b"x"}) == contents(moto, there)
    with contextlib.closing(moto.boto()) as boto:
        assert boto.head_object(Bucket=there, Key="middling", PartNumber=1)["ContentLength"] == 8 * MIB
    assert [row["evidence"] for row in rows] == ["etag", "etag"]


@pytest.mark.parametrize(
    ("parts", "failures", "goes_on_in"),
    [(0, 2, 64), (0, 3, 16), (9, 3, 64), (9, 5, 64), (9, 6, 16)],
)
def test_parts_become_smaller_sooner_or_later_whatever_has_come(
    parts: int, failures: int, goes_on_in: int
) -> None:
    item = Item(1, b"key", 1024 * MIB, "e", 0, 1)
    begun = Begun(1, "u", b"key", 64 * MIB, {n: Part("e") for n in range(parts)}, failures)

    assert part_bytes_now(item, 64 * MIB, begun) == goes_on_in * MIB


def test_few_objects_go_to_afar_in_parts_and_are_known_again(
    appliance: Appliance, moto: Server, body: bytes
) -> None:
    """Each in one PUT they would leave a long way empty; whatever a server tells of parts, it is proven."""
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = {b"middling": body[: 17 * MIB]}
    moto.fill(here, objects)
    with Chaos(moto.url) as up:
        up.add(Refuse("InvalidArgument", 400, query="partNumber", method="HEAD"))
        up.add(Delay(0.1, method="HEAD GET"))
        appliance.configure(job(moto, here, dataclasses.replace(moto, url=up.url), there))
        appliance.start()
        assert appliance.settled() == {"delivered": 1}
        chosen: Any = appliance.status()["jobs"][0]["concurrency"]["push"]
        rows = appliance.ask("object.list", job="archive")["objects"]
        appliance.stop()
        puts = [one.key for one in up.log if one.method == "PUT"]
        with Appliance(appliance.folder / "another", volumes=1) as another:  # which never met any of it
            another.configure(job(moto, here, dataclasses.replace(moto, url=up.url), there))
            another.start()
            assert another.settled() == {"delivered": 1}
        again = [one.key for one in up.log if one.method == "PUT"]

    assert chosen["upload_part_bytes"] == 8 * MIB
    assert chosen["upload_part_why"].startswith("1 in one PUT each do not fill a way of ")
    assert [row["evidence"] for row in rows] == ["etag"]
    assert puts == [b"middling"] * 3
    assert again == puts
    assert digests(objects) == contents(moto, there)
