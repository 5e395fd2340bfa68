"""The road from outside: the real daemon, real s5cmd, real servers, and buckets read by somebody else."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from s5jtd.errors import Exit
from tests.appliance import Appliance, contents, digests, side, some_objects, until
from tests.chaos import Chaos, Listing
from tests.servers import ODD_KEYS, Server


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path) as appliance:
        yield appliance


def job(source: Server, here: str, destination: Server, there: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "archive",
        "source": side(source, here),
        "destination": side(destination, there),
        **more,
    }


def test_a_bucket_arrives_and_a_second_pass_moves_nothing(
    appliance: Appliance, moto: Server, rclone: Server
) -> None:
    """Between two kinds of server: moto, which answers like AWS, and rclone, which does not."""
    here, there = moto.new_bucket(), rclone.new_bucket()
    objects = some_objects(300)
    moto.fill(here, objects)
    appliance.configure(job(moto, here, rclone, there))

    assert appliance.once() == Exit.DONE, appliance.log()
    assert digests(objects) == contents(rclone, there)

    moto.log.clear()
    rclone.log.clear()
    assert appliance.once() == Exit.DONE, appliance.log()
    assert moto.log.count("GET") == 0
    assert rclone.log.count("PUT") == 0


def test_what_the_destination_holds_already_does_not_travel(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(100)
    moto.fill(here, objects)
    held = dict(list(objects.items())[::2])
    moto.fill(there, held)
    moto.log.clear()
    appliance.configure(job(moto, here, moto, there))

    assert appliance.once() == Exit.DONE, appliance.log()

    travelled = {
        request.key for request in moto.log.requests() if request.method == "PUT" and request.kind == "object"
    }
    assert objects.keys() - held.keys() == travelled
    fetched = {
        request.key for request in moto.log.requests() if request.method == "GET" and request.kind == "object"
    }
    assert objects.keys() - held.keys() == fetched
    assert digests(objects) == contents(moto, there)


def test_every_key_arrives_under_its_own_name(appliance: Appliance, moto: Server) -> None:
    """Also those that s5cmd cannot name: markers of folders, and keys that hold a newline."""
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = {key: b"bytes of %d" % n for n, key in enumerate(ODD_KEYS)}
    objects |= {b"a folder/": b"", b"new\nline": b"x", b"/": b"root", b"\n": b"y"}
    moto.fill(here, objects)
    appliance.configure(job(moto, here, moto, there))

    assert appliance.once() == Exit.DONE, appliance.log()

    assert digests(objects) == contents(moto, there)


def test_the_native_engine_moves_all_where_the_job_prefers_it(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(60) | {b"large": hashlib.shake_128(b"x").digest(18 << 20)}
    moto.fill(here, objects)
    appliance.configure(job(moto, here, moto, there, engine="native"))

    assert appliance.once() == Exit.DONE, appliance.log()

    assert digests(objects) == contents(moto, there)


def test_a_name_that_is_too_long_is_parked_with_a_reason(appliance: Appliance, moto: Server) -> None:
    """It takes nothing else with it."""
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"k" * 1024: b"x", b"short": b"y"})
    config = job(moto, here, moto, there)
    config["destination"]["prefix"] = "p/"
    appliance.configure(config)

    assert appliance.once() == Exit.OBJECTS_FAILED, appliance.log()

    assert contents(moto, there) == digests({b"p/short": b"y"})
    (reason,) = parked_reasons(appliance).values()
    assert "1026 bytes" in reason


def parked_reasons(appliance: Appliance) -> dict[str, str]:
    appliance.start()
    page = appliance.ask("object.list", job="archive", state="parked", limit=1000)
    appliance.stop()
    return {row["key"]: row["reason"] for row in page["objects"]}


def test_large_objects_are_proven_part_by_part(appliance: Appliance, moto: Server) -> None:
    """A multipart source of odd part size arrives, and its destination ETag is the source's."""
    here, there = moto.new_bucket(), moto.new_bucket()
    body = hashlib.shake_128(b"large").digest(13 * 1024 * 1024)
    boto = moto.boto()
    upload = boto.create_multipart_upload(Bucket=here, Key="large")["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(body), 6 << 20), 1):
        answer = boto.upload_part(
            Bucket=here, Key="large", UploadId=upload, PartNumber=number, Body=body[start : start + (6 << 20)]
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    boto.complete_multipart_upload(
        Bucket=here, Key="large", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    appliance.configure(job(moto, here, moto, there))

    assert appliance.once() == Exit.DONE, appliance.log()

    assert digests({b"large": body}) == contents(moto, there)
    etags = [boto.head_object(Bucket=bucket, Key="large")["ETag"] for bucket in (here, there)]
    assert etags[0] == etags[1]
    assert etags[0].endswith('-3"')
    appliance.start()
    story = appliance.ask("object.explain", job="archive", key="large")
    assert "etag" == story["object"]["pull_evidence"] == story["object"]["push_evidence"]
    assert [line["what"] for line in story["story"]] == [
        "seen",
        "planned",
        "pulling",
        "staged",
        "pushing",
        "delivered",
    ]


def test_rclone_whole_md5_of_a_multipart_upload_is_understood(
    appliance: Appliance, moto: Server, rclone: Server
) -> None:
    here, there = moto.new_bucket(), rclone.new_bucket()
    body = hashlib.shake_128(b"whole").digest(11 * 1024 * 1024)
    boto = moto.boto()
    upload = boto.create_multipart_upload(Bucket=here, Key="large")["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(body), 5 << 20), 1):
        answer = boto.upload_part(
            Bucket=here, Key="large", UploadId=upload, PartNumber=number, Body=body[start : start + (5 << 20)]
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    boto.complete_multipart_upload(
        Bucket=here, Key="large", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    appliance.configure(job(moto, here, rclone, there))

    assert appliance.once() == Exit.DONE, appliance.log()
    assert digests({b"large": body}) == contents(rclone, there)


def test_a_daemon_notices_new_objects_and_keeps_a_pause_over_a_restart(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    appliance.configure(job(moto, here, moto, there, scan_every="1s"))
    appliance.start()
    moto.fill(here, {b"first": b"1"})
    until(lambda: appliance.counted() == {"delivered": 1}, "the delivery of what was put while it ran")

    assert appliance.ask("job.pause", job="archive")["jobs"] == [{"name": "archive", "result": "paused"}]
    assert appliance.ask("job.pause", job="archive")["jobs"] == [
        {"name": "archive", "result": "already_paused"}
    ]
    assert appliance.stop() == 0
    moto.fill(here, {b"second": b"2"})
    appliance.start()
    assert appliance.status()["jobs"][0]["state"] == "paused"
    assert appliance.counted() == {"delivered": 1}

    appliance.ask("job.resume", job="archive")
    until(lambda: appliance.counted() == {"delivered": 2}, "the delivery after the pause")
    assert digests({b"first": b"1", b"second": b"2"}) == contents(moto, there)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_ended_in_mid_transfer_goes_on_and_repeats_nothing_delivered(
    appliance: Appliance, moto: Server, number: signal.Signals
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(600)
    moto.fill(here, objects)
    appliance.configure(job(moto, here, moto, there, chunk={"objects": 50}))
    appliance.start()
    until(lambda: appliance.counted().get("delivered", 0) >= 50, "the first deliveries")
    appliance.stop(number)
    delivered = set(contents(moto, there))
    moto.log.clear()

    appliance.start()
    assert appliance.settled() == {"delivered": 600}

    assert digests(objects) == contents(moto, there)
    again = {
        request.key for request in moto.log.requests() if request.method == "PUT" and request.kind == "object"
    }
    # What was there when the daemon ended is not sent again: not even where its ledger did not know yet.
    assert set() == again & delivered


def test_pull_and_push_overlap_and_both_volumes_are_used(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, some_objects(800))
    appliance.configure(job(moto, here, moto, there, chunk={"objects": 50}))

    assert appliance.once() == Exit.DONE, appliance.log()

    staged, pushed = appliance.events("chunk_staged"), appliance.events("chunk_pushed")
    assert {"volume-1", "volume-2"} == {record["volume"] for record in staged}
    assert min(r["at"] for r in pushed) < max(r["at"] for r in staged)


def test_a_dead_destination_does_not_stop_the_pull(appliance: Appliance, moto: Server) -> None:
    here = moto.new_bucket()
    moto.fill(here, some_objects(50))
    dead = side(moto, "nowhere-bucket", url="http://127.0.0.1:9")
    appliance.configure({"name": "archive", "source": side(moto, here), "destination": dead})
    appliance.start()

    until(lambda: appliance.counted().keys() <= {"staged", "pushing"}, "everything on a volume")
    until(lambda: appliance.status()["jobs"][0]["state"] == "blocked", "the job's state")
    until(lambda: "endpoint_down" in {one["code"] for one in appliance.status()["problems"]}, "its reason")
    assert sum(appliance.counted().values()) == 50
    page = appliance.ask("object.list", job="archive", limit=1000)
    assert all(row["attempts"] <= 1 for row in page["objects"])


def test_an_object_that_is_gone_when_its_turn_comes_is_no_error(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, some_objects(20))
    appliance.configure(job(moto, here, moto, there))
    appliance.start()
    appliance.settled()
    appliance.ask("job.pause", job="archive")
    moto.fill(here, {b"late": b"x"})
    appliance.ask("job.scan", job="archive", wait=True)
    moto.boto().delete_object(Bucket=here, Key="late")

    appliance.ask("job.resume", job="archive")

    assert appliance.settled() == {"delivered": 20, "gone": 1}


def test_a_changed_object_travels_again(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"k": b"old"})
    appliance.configure(job(moto, here, moto, there))
    assert appliance.once() == Exit.DONE, appliance.log()
    moto.fill(here, {b"k": b"new!"})

    assert appliance.once() == Exit.DONE, appliance.log()

    assert digests({b"k": b"new!"}) == contents(moto, there)


def test_a_dry_run_shows_what_would_travel_and_changes_nothing(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"a": b"1", b"b" * 1024: b""})
    config = job(moto, here, moto, there)
    config["destination"]["prefix"] = "below/"  # which makes the longest name too long
    appliance.configure(config)

    shown = appliance.command("run", "--dry-run")

    assert shown.returncode == 0
    assert [line.split()[0] for line in shown.stdout.splitlines()] == ["new", "unmovable"]
    assert not (appliance.folder / "state").exists()
    assert contents(moto, there) == {}


def test_two_daemons_cannot_share_a_state_folder(appliance: Appliance, moto: Server) -> None:
    appliance.configure(job(moto, moto.new_bucket(), moto, moto.new_bucket()))
    appliance.start()

    second = appliance.command("run")

    assert second.returncode == Exit.BUSY
    assert "is held by process" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"bucket": "no-such-bucket"}, Exit.FAILED, "no-such-bucket"),
        ({"endpoints": ["http://127.0.0.1:9"]}, Exit.TEMPORARY, "Cannot reach the endpoint"),
        (
            {"credentials": {"access_key_id": "FAKEWRONGKEY", "secret_access_key": "fake-wrong-secret"}},
            Exit.FAILED,
            "credentials",
        ),
    ],
    ids=["missing bucket", "dead endpoint", "wrong secret"],
)
def test_a_source_that_cannot_be_used_is_named_with_the_right_exit_code(
    appliance: Appliance, rclone: Server, change: dict[str, Any], code: Exit, words: str
) -> None:
    config = job(rclone, rclone.new_bucket(), rclone, rclone.new_bucket())
    config["source"] = {**config["source"], **change}
    appliance.configure(config)

    ended = appliance.command("run", "--once")

    assert code == ended.returncode, ended.stderr
    assert words in ended.stderr
    assert "hint:" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "fake-wrong-secret" not in ended.stderr


def test_a_socket_path_that_is_a_plain_file_is_refused_and_left_alone(
    appliance: Appliance, moto: Server
) -> None:
    appliance.configure(job(moto, moto.new_bucket(), moto, moto.new_bucket()))
    appliance.socket.parent.mkdir()
    appliance.socket.write_text("mine")

    ended = appliance.command("run", "--once")

    assert ended.returncode == Exit.CONFIG
    assert "control.sock" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert appliance.socket.read_text() == "mine"


def test_an_unusable_volume_is_a_problem_and_the_other_does_the_work(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, some_objects(20))
    (appliance.volumes[0] / "somebody's file").write_text("not ours")
    appliance.configure(job(moto, here, moto, there))

    appliance.start()

    assert appliance.settled() == {"delivered": 20}
    states = {volume["name"]: volume["state"] for volume in appliance.status()["volumes"]}
    assert states == {"volume-1": "foreign", "volume-2": "online"}
    (problem,) = appliance.status()["problems"]
    assert "s5jtd volumes stamp" in problem["hint"]


def test_check_tells_what_is_wrong_and_writes_it_down(appliance: Appliance, moto: Server) -> None:
    config = job(moto, moto.new_bucket(), moto, moto.new_bucket())
    config["destination"]["endpoints"] = ["http://127.0.0.1:9"]
    appliance.configure(config)

    shown = appliance.command("check")

    assert shown.returncode == Exit.TEMPORARY
    assert "job archive: a transfer is NOT feasible" in shown.stdout
    assert "127.0.0.1:9" in (appliance.folder / "state" / "failed_endpoints.json").read_text()


def test_list_shows_what_the_credentials_show(appliance: Appliance, moto: Server) -> None:
    here = moto.new_bucket()
    moto.fill(here, {b"a": b"12"})
    appliance.configure(job(moto, here, moto, moto.new_bucket()))

    shown = appliance.command("list", "source", "archive")

    assert shown.returncode == 0
    assert shown.stdout.split()[-1] == "a"


def test_uploads_that_nobody_will_end_are_aborted_and_others_left_alone(
    appliance: Appliance, moto: Server
) -> None:
    """Moto says that every upload was begun in 2010, so the proxy tells the truth for it."""
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"k": b"x"})
    now = datetime.now(UTC).isoformat().encode()
    with Chaos(moto.url) as chaos:
        chaos.add(Listing(lambda page, _: page.replace(b"2010-11-10T20:48:33.000Z", now), query="uploads"))
        proxied = dataclasses.replace(moto, url=chaos.url)
        appliance.configure(job(moto, here, proxied, there))
        assert appliance.once() == Exit.DONE, appliance.log()
        boto = moto.boto()
        for key in ("k", "somebody's"):
            boto.create_multipart_upload(Bucket=there, Key=key)

        appliance.start()

        until(lambda: appliance.events("uploads_aborted"), "the sweep")
        left = boto.list_multipart_uploads(Bucket=there).get("Uploads", [])
        assert [upload["Key"] for upload in left] == ["somebody's"]
        assert contents(moto, there) == digests({b"k": b"x"})
        appliance.stop()
