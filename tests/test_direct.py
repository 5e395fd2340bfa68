"""Direct mode: from bucket to bucket through memory, proven, and going on after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s5jtd.errors import Exit
from tests.appliance import WAIT_SECONDS, Appliance, contents, digests, side, some_objects, until
from tests.chaos import Assembling, Chaos, Delay, Fault, Forward, Luck, Refuse, Reply, Request
from tests.servers import ODD_KEYS, Server
from tests.test_metadata import CONTENT, METADATA, TAGS, described, put, tagging

MIB = 1 << 20


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path, volumes=0) as appliance:
        yield appliance


def job(source: Server, here: str, destination: Server, there: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "archive",
        "source": side(source, here),
        "destination": side(destination, there),
        "mode": "direct",
        **more,
    }


def test_objects_of_every_key_and_size_arrive_without_a_volume(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = {key: b"bytes of %d" % n for n, key in enumerate(ODD_KEYS)} | some_objects(50)
    objects |= {b"new\nline": b"x", b"empty": b"", b"large": hashlib.shake_128(b"x").digest(17 * MIB + 1)}
    moto.fill(here, objects)
    put(moto, here, "full", **CONTENT, Metadata=METADATA, Tagging=tagging())
    streamed = job(moto, here, moto, there, sha256=True)  # which makes the bytes come by
    streamed["destination"]["part_size"] = "6MiB"
    appliance.configure(streamed)

    assert appliance.once() == Exit.DONE, appliance.log()

    assert digests(objects | {b"full": b"body"}) == contents(moto, there)
    assert moto.boto().head_object(Bucket=there, Key="large")["ETag"].endswith('-3"')
    assert described(moto, there, "full") == described(moto, here, "full")
    assert described(moto, there, "full")["Tags"] == TAGS
    (report,) = (appliance.folder / "state" / "reports").glob("[0-9]*.json")
    told = json.loads(report.read_text())
    assert told["files_synced"] == len(objects) + 1
    assert {one["key"] for one in told["objects"]} == {key.decode() for key in objects} | {"full"}
    assert {one["evidence"] for one in told["objects"]} <= {"etag", "checksum", "readback"}
    assert not appliance.command("ledger", "verify").returncode


@dataclasses.dataclass
class Together(Fault):
    """A request waits until so many are under way."""

    barrier: threading.Barrier

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        self.barrier.wait(WAIT_SECONDS / 3)
        return forward(request)


def test_to_afar_the_parts_of_an_object_go_side_by_side(appliance: Appliance, moto: Server) -> None:
    """Two at a time, as to near, would carry next to nothing."""
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = {b"large": bytes(25 * MIB)}
    moto.fill(here, objects)
    with Chaos(moto.url) as up:
        up.add(Delay(0.1, method="HEAD GET"))
        up.add(Together(threading.Barrier(4), method="PUT", query="partNumber"))
        appliance.configure(job(moto, here, dataclasses.replace(moto, url=up.url), there, preserve=[]))

        assert appliance.once() == Exit.DONE, appliance.log()

    assert digests(objects) == contents(moto, there)


def test_a_kill_in_the_middle_repeats_nothing_that_arrived(
    appliance: Appliance, moto: Server, rclone: Server
) -> None:
    """Between two kinds of server."""
    here, there = rclone.new_bucket(), moto.new_bucket()
    objects = some_objects(900)
    rclone.fill(here, objects)
    appliance.configure(job(rclone, here, moto, there, preserve=[]))
    appliance.start()
    until(lambda: moto.log.count("PUT") >= 300, "the middle")
    appliance.stop(signal.SIGKILL)
    arrived = set(contents(moto, there))
    moto.log.clear()

    appliance.start()

    assert appliance.settled() == {"delivered": 900}
    assert digests(objects) == contents(moto, there)
    again = {one.key for one in moto.log.requests() if one.method == "PUT" and one.kind == "object"}
    assert not again & arrived


def test_a_large_object_goes_on_where_a_kill_broke_it_off(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    body = hashlib.shake_128(b"large").digest(MIB) * 96
    moto.fill(here, {b"large": body})
    with Chaos(moto.url) as chaos:
        up = dataclasses.replace(moto, url=chaos.url)
        appliance.configure(
            job(moto, here, up, there, resume_above="32MiB", evidence={"otherwise": "accept"})
        )
        appliance.start()

        def sent() -> int:
            return sum(one.request_bytes for one in chaos.log if one.method == "PUT")

        until(lambda: sent() >= len(body) // 2, "the middle")
        appliance.stop(signal.SIGKILL)
        slow = chaos.add(Assembling(cuts=3, says_done=True))
        appliance.start()
        assert appliance.settled() == {"delivered": 1}
        assert slow.hits
        assert sent() < 1.5 * len(body)
        assert sum(one.query.startswith("uploads") and one.method == "POST" for one in chaos.log) == 1
        appliance.stop()

    assert digests({b"large": body}) == contents(moto, there)


def test_a_dead_destination_costs_no_object_an_attempt(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, some_objects(20))
    with Chaos(moto.url) as chaos:
        chaos.pause()
        appliance.configure(job(moto, here, dataclasses.replace(moto, url=chaos.url), there))
        appliance.start()
        until(lambda: appliance.status()["jobs"][0]["state"] == "blocked", "the job's state")
        assert appliance.status()["jobs"][0]["last_delivery_at"] is None
        chaos.resume()
        assert appliance.settled() == {"delivered": 20}
        assert appliance.status()["jobs"][0]["last_delivery_at"] is not None
        appliance.stop()
    assert contents(moto, there) == digests(some_objects(20))


def copies(request: Any) -> bool:
    return bool(request.headers.find("x-amz-copy-source"))


def pinned(request: Any) -> bool:
    return bool(request.headers.find("x-amz-copy-source-if-match"))


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_inside_one_server_no_byte_travels(
    appliance: Appliance, request: pytest.FixtureRequest, kind: str
) -> None:
    server: Server = request.getfixturevalue(kind)
    here, there = server.new_bucket(), server.new_bucket()
    objects = some_objects(60)
    server.fill(here, objects)
    boto = server.boto()
    if kind == "moto":
        put(server, here, "full", **CONTENT, Metadata=METADATA, Tagging=tagging())
        objects |= {b"full": b"body", b"parts": b"p" * (13 * MIB)}
        upload = boto.create_multipart_upload(Bucket=here, Key="parts", ContentType="text/parts")["UploadId"]
        sent = [
            boto.upload_part(Bucket=here, Key="parts", UploadId=upload, PartNumber=n, Body=b"p" * size * MIB)
            for n, size in enumerate((6, 6, 1), 1)
        ]
        numbered = [{"PartNumber": n, "ETag": answer["ETag"]} for n, answer in enumerate(sent, 1)]
        boto.complete_multipart_upload(
            Bucket=here, Key="parts", UploadId=upload, MultipartUpload={"Parts": numbered}
        )
    with Chaos(server.url) as chaos:
        chaos.add(Refuse("AccessDenied", where=lambda one: copies(one) and not pinned(one)))
        near = dataclasses.replace(server, url=chaos.url)
        appliance.configure(job(near, here, near, there))

        assert appliance.once() == Exit.DONE, appliance.log()

        travelled = [one for one in chaos.log if one.key]
        assert sum(one.request_bytes for one in travelled if one.method == "PUT") == 0
        assert not [one for one in travelled if one.fetches]
    assert contents(server, there) == digests(objects)
    if kind == "moto":
        assert described(server, there, "full") == described(server, here, "full")
        heads = [boto.head_object(Bucket=bucket, Key="parts") for bucket in (here, there)]
        assert heads[0]["ETag"] == heads[1]["ETag"]
        assert heads[1]["ContentType"] == "text/parts"


def test_what_a_server_will_not_copy_is_streamed(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(20)
    moto.fill(here, objects)
    with Chaos(moto.url) as chaos:
        chaos.add(Refuse("NotImplemented", 501, where=copies))
        near = dataclasses.replace(moto, url=chaos.url)
        appliance.configure(job(near, here, near, there))
        assert appliance.once() == Exit.DONE, appliance.log()
    assert contents(moto, there) == digests(objects)
    assert len(appliance.events("copies_given_up")) == 1


def test_the_limits_hold_without_volumes_too(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"%d" % n: b"x" * 100 for n in range(5)} | {b"huge": b"h" * 1000})
    limits = {"largest_object": 999, "bytes_per_pass": 250}
    appliance.configure(job(moto, here, moto, there, sha256=True), limits=limits)

    assert appliance.once() == Exit.OBJECTS_FAILED, appliance.log()
    assert sorted(contents(moto, there)) == [b"0", b"1"]

    appliance.start()
    until(lambda: appliance.counted().get("delivered") == 4, "the next pass")
    shot = appliance.status()["jobs"][0]
    assert (shot["state"], shot["reason"]) == ("blocked", "limits.bytes_per_pass is 250B: what is more waits")
    assert len(contents(moto, there)) == 4
