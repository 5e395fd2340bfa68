"""`s5jtd check`: what it finds out about endpoints, what it says, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from s5jtd.errors import Exit
from s5jtd.ledger.endpoint_checks import FILE
from s5jtd.model import Learned
from s5jtd.s3.address import Address
from s5jtd.s3.heads import head
from s5jtd.s3.reaching import Step, reach
from s5jtd.s3.transport import Link
from s5jtd.s3.trial import Capabilities, Trial
from tests.appliance import Appliance, contents, side, until
from tests.chaos import Chaos, Refuse, by_s5cmd
from tests.servers import (
    Asked,
    Certificates,
    Reply,
    Server,
    SnowballLike,
    ToldServer,
    listing,
    make_certificates,
    refused,
)


def tried(client: Any, *, destination: bool = False) -> tuple[dict[str, Step], Capabilities]:
    trial = Trial(client, b"", "auto", destination=destination)
    return {step.name: step for step in trial.steps()}, trial.found


def reached(url: str, **link: Any) -> dict[str, Step]:
    scheme, _, rest = url.partition("://")
    host, _, port = rest.rpartition(":")
    address = Address(scheme, host, int(port), "/bucket", "us-east-1", "s3")
    return {step.name: step for step in reach(address, Link(**link))}


def test_an_aws_like_endpoint_can_do_everything_and_keeps_nothing(moto: Server) -> None:
    bucket = moto.new_bucket()
    moto.fill(bucket, {b"a": b"12"})

    steps, found = tried(moto.client(bucket), destination=True)

    assert steps.pop("clock").state == "skipped"  # moto does not tell its time
    assert {step.state for step in steps.values()} == {"ok"}, steps
    assert (found.list_version, found.listing, found.multipart) == ("2", "ordered", True)
    assert found.objects_seen == 1
    boto = moto.boto()
    assert [entry["Key"] for entry in boto.list_objects_v2(Bucket=bucket)["Contents"]] == ["a"]
    assert "Uploads" not in boto.list_multipart_uploads(Bucket=bucket)
    boto.close()


def test_a_snowball_lists_in_version_1_and_in_no_order(snowball: SnowballLike) -> None:
    snowball.objects = {b"b": b"1", b"a": b"22"}

    steps, found = tried(snowball.client())

    assert (found.list_version, found.listing, found.part_number) == ("1", "unordered", None)
    assert {step.state for step in steps.values()} <= {"ok", "skipped"}
    assert steps["clock"].state == "skipped"  # it does not tell its time
    assert "multipart" not in steps


@pytest.mark.parametrize(
    ("reply", "step", "words"),
    [
        (refused(403, "SignatureDoesNotMatch"), "access", "SignatureDoesNotMatch"),
        (refused(403, "ExpiredToken"), "access", "ExpiredToken"),
        (refused(404, "NoSuchBucket"), "access", "NoSuchBucket"),
        (Reply(503, b""), "access", "503"),
        (Reply(200, b"<html>log in</html>"), "access", "no S3 server"),
        (Reply(200, listing({}), {"Date": formatdate(0, usegmt=True)}), "clock", "clock differs"),
    ],
)
def test_what_is_refused_is_said_at_its_step(reply: Reply, step: str, words: str) -> None:
    with ToldServer(lambda _: reply) as server:
        steps, _ = tried(server.client())

    assert steps[step].state == "failed"
    assert words in steps[step].detail
    assert steps[step].hint


def test_who_may_not_write_is_told_so_and_an_upload_is_always_aborted() -> None:
    begun = b"<InitiateMultipartUploadResult><UploadId>u&amp;1</UploadId></InitiateMultipartUploadResult>"
    may_write = True

    def reply(asked: Asked) -> Reply:
        if asked.method == "POST":
            return Reply(200, begun) if may_write else refused(403, "AccessDenied")
        return Reply(204) if asked.method == "DELETE" else Reply(200, listing({}))

    with ToldServer(reply) as server:
        steps, found = tried(server.client(), destination=True)
        assert (steps["multipart"].state, found.multipart) == ("ok", True)
        begin, end = (one for one in server.asked if one.method in {"POST", "DELETE"})
        assert begin.path == end.path
        assert begin.path.startswith("/bucket/.s5jtd-check-")
        assert end.query == {"uploadId": b"u&1"}

        may_write = False
        steps, found = tried(server.client(), destination=True)

    assert (steps["multipart"].state, found.multipart) == ("failed", None)
    assert not [one for one in server.asked if one.method == "PUT"]


class TestReaching:
    def test_plain_http_is_reached_and_said_to_be_plain(self, moto: Server) -> None:
        steps = reached(moto.url)

        assert [(name, step.state) for name, step in steps.items()] == [
            ("dns", "ok"), ("tcp", "ok"), ("tls", "skipped"),
        ]  # fmt: skip

    def test_nobody_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closing:
            port = closing.getsockname()[1]

        step = reached(f"http://127.0.0.1:{port}")["tcp"]

        assert (step.state, step.may_pass) == ("failed", True)
        assert reached("http://s3.invalid:80")["dns"].state == "failed"

    def test_a_certificate_is_judged_by_chain_and_name(
        self, rclone_tls: Server, certificates: Certificates
    ) -> None:
        by_name = rclone_tls.url.replace("127.0.0.1", "localhost")

        soon = reached(rclone_tls.url, ca_bundle=certificates.ca)["tls"]
        assert (soon.state, "valid until" in soon.detail) == ("warning", True)  # for a day only
        assert "not trusted" in reached(rclone_tls.url)["tls"].detail
        wrong = reached(by_name, ca_bundle=certificates.ca)["tls"]
        assert wrong.state == "failed"
        assert "name" in wrong.hint
        open_to_all = reached(rclone_tls.url, verify_tls=False)["tls"]
        assert (open_to_all.state, "INSECURE" in open_to_all.detail) == ("warning", True)
        assert reached(rclone_tls.url, ca_bundle=Path("/nowhere"))["tls"].state == "failed"

    def test_an_expired_certificate_and_a_port_without_tls(self, moto: Server, tmp_path: Path) -> None:
        expired = make_certificates(tmp_path, expired=True)
        with ToldServer(lambda _: Reply(), expired) as server:
            step = reached(server.url, ca_bundle=expired.ca)["tls"]
        assert step.state == "failed"
        assert "expired" in step.detail
        assert "clock" in step.hint

        assert "https?" in reached(moto.url.replace("http:", "https:"))["tls"].hint

    def test_a_proxy_is_asked_for_the_way(self, rclone_tls: Server, moto: Server) -> None:
        with ToldServer(lambda _: Reply(403)) as proxy:
            assert reached(moto.url, proxy=proxy.url)["proxy"].state == "ok"
            assert reached(rclone_tls.url, proxy=proxy.url)["proxy"].state == "failed"
        assert reached(moto.url, proxy="https://p:1")["proxy"].state == "failed"


def test_the_command_says_what_each_endpoint_lacks_and_which_job_can_go(
    tmp_path: Path, moto: Server, snowball: SnowballLike
) -> None:
    snowball.objects = {b"a": b"1"}
    there = moto.new_bucket()
    source = side(moto, "bucket", url=snowball.url, endpoints=[snowball.url, "http://127.0.0.1:9"])
    with Appliance(tmp_path) as appliance:
        appliance.configure({"name": "snow", "source": source, "destination": side(moto, there)})

        as_json = appliance.command("check", "--json")
        shown = appliance.command("check")

    answer = json.loads(as_json.stdout)
    assert as_json.returncode == shown.returncode == Exit.TEMPORARY
    assert (answer["feasible"], answer["obstacles"]) == ({"snow": True}, {"snow": []})
    well, dead, destination = answer["endpoints"]
    assert (well["ok"], well["list_version"], well["listing"]) == (True, "1", "ordered")
    assert (dead["ok"], [step["name"] for step in dead["steps"]]) == (False, ["dns", "tcp"])
    assert (destination["multipart"], destination["verify_tls"]) == (True, True)
    failed = json.loads((tmp_path / "state" / "failed_endpoints.json").read_text())["failed_endpoints"]
    assert [line["url"] for line in failed] == ["http://127.0.0.1:9"]
    assert "job snow: a transfer is feasible" in shown.stdout
    assert "- tcp" in shown.stdout
    assert moto.secret_key not in as_json.stdout + shown.stdout


def test_what_a_check_found_is_kept_and_saves_the_road_its_questions(
    tmp_path: Path, snowball: SnowballLike, rclone_tls: Server
) -> None:
    snowball.objects = {b"%d" % n: b"x" * n for n in (7, 3, 5)}
    there = rclone_tls.new_bucket()
    source = side(rclone_tls, "bucket", url=snowball.url)
    destination = side(rclone_tls, there, tls={"verify": False})
    with Appliance(tmp_path) as appliance:
        appliance.configure({"name": "snow", "source": source, "destination": destination})
        assert appliance.command("check").returncode == Exit.DONE
        snowball.asked.clear()

        appliance.start()

        assert appliance.settled() == {"delivered": 3}
        (row, unverified) = appliance.ask("endpoint.list")["endpoints"]
        story = [line["detail"] for line in appliance.ask("object.explain", job="snow", key="7")["story"]]
        newer = tmp_path / "state" / FILE
        newer.write_text("torn")
        until(lambda: appliance.events("endpoint_checks_unreadable"), "the news that it cannot be read")
        assert appliance.stop() == Exit.DONE
    # It lists in version 1 and in no order: nobody asked for version 2 again.
    assert not [asked for asked in snowball.asked if "list-type" in asked.query]
    assert row["check"].pop("at")
    assert row["check"] == {
        "ok": True,
        "list_version": "1",
        "listing": "unordered",
        "part_number": None,
        "s5cmd": True,
    }
    assert (row["insecure"], unverified["insecure"]) == (False, True)
    assert ["nobody verified" in str(detail) for detail in story] == [False] * (len(story) - 1) + [True]
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / "ledger.db")) as ledger:
        kept = ledger.execute("SELECT side, ok, list_version, ordered FROM endpoint_checks").fetchall()
    assert sorted(kept) == [("destination", 1, None, 1), ("source", 1, "1", 0)]


def test_folders_and_jobs_without_volumes_are_checked_for_what_they_need(
    tmp_path: Path, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    hot, arrivals = tmp_path / "hot", tmp_path / "in"
    for folder in (hot, arrivals, tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
    direct = {"name": "d", "source": side(moto, here), "destination": side(moto, there), "mode": "direct"}
    up = {"name": "up", "source": {"directory": str(hot)}, "destination": side(moto, there, "up/")}
    down = {"name": "down", "source": side(moto, here), "destination": {"directory": str(arrivals)}}
    with Appliance(tmp_path / "a", volumes=0) as appliance:
        appliance.configure(direct)
        alone = appliance.command("check")
    with Appliance(tmp_path / "b", volumes=1) as appliance:
        appliance.configure(up, down)
        well = appliance.command("check")
        hot.rmdir()
        gone = appliance.command("check", "--json")

    assert (alone.returncode, "job d: a transfer is feasible" in alone.stdout) == (Exit.DONE, True)
    assert well.returncode == Exit.DONE, well.stdout
    assert f"ok    up source {hot}: is there, and may be read" in well.stdout
    assert f"ok    down destination {arrivals}: is there, and may be written to" in well.stdout
    assert gone.returncode == Exit.TEMPORARY
    assert json.loads(gone.stdout)["feasible"] == {"up": False, "down": True}


def test_where_s5cmd_is_refused_a_check_finds_it_out_and_the_native_engine_does_it_all(
    tmp_path: Path, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"%d" % n: b"x" for n in range(3)})
    with Chaos(moto.url) as chaos, Appliance(tmp_path) as appliance:
        chaos.add(Refuse("NotImplemented", 501, method="GET", where=by_s5cmd))
        source = side(moto, here, url=chaos.url)
        appliance.configure({"name": "j", "source": source, "destination": side(moto, there)})
        shown = appliance.command("check")
        before = len(chaos.log)

        assert appliance.once() == Exit.DONE, appliance.log()

        gets = [one for one in chaos.log[before:] if one.fetches]
    assert "+ s5cmd     cannot read from it, so the native engine will: NotImplemented" in shown.stdout
    assert shown.returncode == Exit.DONE
    assert len(contents(moto, there)) == 3
    assert [one.status for one in gets] == [200] * 3


def test_a_server_that_tells_no_parts_is_not_asked_for_them(snowball: SnowballLike) -> None:
    snowball.objects = {b"a": b"1"}
    client = snowball.client()
    client.learned = Learned(1, ok=True, part_numbers=False)

    assert head(client, b"a", part_number=1, checksums=True).part_size is None
    assert len(snowball.asked) == 1
