"""Each fault of the proxy is shown to be real, to clients that know nothing of it, before a real server."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import ParseError, fromstring

import pytest
import urllib3
from botocore.exceptions import ClientError, ConnectionClosedError

from s5jtd.engine.s5cmd import find_binary
from tests.chaos import (
    BadComplete,
    Bandwidth,
    Chaos,
    Delay,
    EndlessListing,
    FalseAck,
    Flip,
    Header,
    Listing,
    LostReply,
    Meanwhile,
    Normalise,
    Portal,
    Redirect,
    Refuse,
    Request,
    Reset,
    Silence,
    Stall,
    Torn,
    Truncate,
    doubled,
    early_end,
    torn_xml,
    unsorted,
)
from tests.servers import ODD_KEYS, RCLONE_REFUSES, RCLONE_RENAMES, REGION, Server, ToldServer
from tests.servers import Reply as Told

MIB = 1 << 20
PATIENCE_S = 0.5  #: of clients that are meant to lose it

_numbers = itertools.count()


@pytest.fixture(scope="module")
def shared(moto: Server) -> Iterator[Chaos]:
    with Chaos(moto.url) as chaos:
        yield chaos


@pytest.fixture
def chaos(shared: Chaos) -> Iterator[Chaos]:
    """Before moto."""
    yield shared
    shared.clear()


@pytest.fixture(scope="module")
def s3(moto: Server, shared: Chaos) -> Iterator[Any]:
    """A boto3 client that talks to moto through the proxy."""
    with contextlib.closing(dataclasses.replace(moto, url=shared.url).boto()) as client:
        yield client


@pytest.fixture(scope="module")
def straight(moto: Server) -> Iterator[Any]:
    """A boto3 client that talks to moto itself."""
    with contextlib.closing(moto.boto()) as client:
        yield client


@pytest.fixture
def bucket(straight: Any) -> str:
    """An empty bucket in moto."""
    name = f"chaos-{next(_numbers)}"
    straight.create_bucket(Bucket=name)
    return name


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=20) as manager:
        yield manager


@pytest.fixture
def told() -> Iterator[ToldServer]:
    """A server without signatures: 1,000 bytes for everybody."""
    with ToldServer(lambda asked: Told(200, b"x" * 1000, {"ETag": '"abc"'})) as server:
        yield server


@pytest.fixture
def open_chaos(told: ToldServer) -> Iterator[Chaos]:
    """Before the server without signatures."""
    with Chaos(told.url, seed=7) as chaos:
        yield chaos


@pytest.fixture
def s5cmd(tmp_path: Path, moto: Server) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    def run(url: str, *words: str | Path) -> subprocess.CompletedProcess[bytes]:
        env = {
            "AWS_ACCESS_KEY_ID": moto.access_key,
            "AWS_SECRET_ACCESS_KEY": moto.secret_key,
            "AWS_REGION": REGION,
            "HOME": str(tmp_path),
        }
        command = [find_binary(), "--endpoint-url", url, "--retry-count", "0", *words]
        return subprocess.run(command, env=env, capture_output=True, timeout=30, check=False)

    return run


def the_code(call: Callable[..., object], **arguments: object) -> tuple[int, str]:
    """The status and the code with which a call of boto3 fails."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def connected(chaos: Chaos) -> socket.socket:
    where = urllib3.util.parse_url(chaos.url)
    return socket.create_connection((where.host, where.port), timeout=20)


def seen(chaos: Chaos) -> list[tuple[str, bytes, int, str]]:
    return [(one.method, one.key, one.status, one.fault) for one in chaos.log]


def test_without_faults_signed_requests_and_odd_keys_pass(rclone):
    """This server checks signatures, and so the Host that the client signed."""
    keys = [key for key in ODD_KEYS if key not in RCLONE_REFUSES | RCLONE_RENAMES]
    bucket = rclone.new_bucket()

    with Chaos(rclone.url) as chaos:
        through = dataclasses.replace(rclone, url=chaos.url)
        through.fill(bucket, {key: key for key in keys})
        with contextlib.closing(through.boto()) as s3:
            bodies = [s3.get_object(Bucket=bucket, Key=key.decode())["Body"].read() for key in keys]

        assert keys == bodies
        assert {(verb, key): 1 for key in keys for verb in ("GET", "PUT")} == chaos.counts()
        assert sum(map(len, keys)) == sum(one.request_bytes for one in chaos.log)
        assert sum(map(len, keys)) == sum(one.response_bytes for one in chaos.log)


@pytest.mark.parametrize("name", ["moto", "rclone"])
def test_s5cmd_moves_a_large_object_in_parts_both_ways(name, request, s5cmd, tmp_path):
    server = request.getfixturevalue(name)
    bucket, there, back = server.new_bucket(), tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(16 * MIB))

    with Chaos(server.url) as chaos:
        up = s5cmd(chaos.url, "cp", "--part-size", "5", there, f"s3://{bucket}/large")
        down = s5cmd(chaos.url, "cp", "--part-size", "5", f"s3://{bucket}/large", back)

        assert (up.returncode, down.returncode) == (0, 0), up.stderr + down.stderr
        assert there.read_bytes() == back.read_bytes()
        parts = [one for one in chaos.log if "partNumber" in one.query]
        assert sorted((one.request_bytes for one in parts), reverse=True) == [5 * MIB] * 3 + [MIB]
        assert sum(one.response_bytes for one in chaos.log if one.key and one.method == "GET") == 16 * MIB


def test_a_fault_hits_what_matches_and_nothing_else(chaos, s3, bucket):
    s3.put_object(Bucket=bucket, Key="in/a", Body=b"a")
    s3.put_object(Bucket=bucket, Key="out", Body=b"b")
    chaos.add(Refuse("AccessDenied", method="GET HEAD", prefix="in/"))
    chaos.add(Refuse("SlowDown", query="tagging", key="out"))
    chaos.add(Refuse("NoSuchKey", where=lambda request: "Range" in dict(request.headers)))

    assert the_code(s3.get_object, Bucket=bucket, Key="in/a") == (403, "AccessDenied")
    assert the_code(s3.head_object, Bucket=bucket, Key="in/a") == (403, "403")
    assert chaos.log[-1].response_bytes == 0
    assert the_code(s3.get_object_tagging, Bucket=bucket, Key="out") == (503, "SlowDown")
    assert the_code(s3.get_object, Bucket=bucket, Key="out", Range="bytes=0-0") == (404, "NoSuchKey")
    assert s3.get_object(Bucket=bucket, Key="out")["Body"].read() == b"b"
    assert s3.put_object(Bucket=bucket, Key="in/a", Body=b"a")["ETag"]


@pytest.mark.parametrize(
    ("when", "hit"),
    [({"nth": 2}, [2]), ({"nth": range(2, 4)}, [2, 3]), ({"every": 3}, [3, 6]), ({}, [1, 2, 3, 4, 5, 6])],
)
def test_faults_come_when_they_are_due(when, hit, open_chaos, http):
    refusal = open_chaos.add(Refuse("InternalError", **when))

    statuses = [http.request("GET", f"{open_chaos.url}/b/k").status for _ in range(6)]

    assert [500 if count in hit else 200 for count in range(1, 7)] == statuses
    assert len(hit) == refusal.hits


def test_luck_depends_on_the_seed_and_the_request_and_not_on_the_order(told, http):
    def unlucky(seed: int, keys: list[int]) -> set[int]:
        with Chaos(told.url, seed=seed) as chaos:
            chaos.add(Refuse("InternalError", share=0.5))
            return {key for key in keys if http.request("GET", f"{chaos.url}/b/{key}").status == 500}

    keys = list(range(40))

    first = unlucky(1, keys)
    assert first == unlucky(1, keys[::-1])
    assert first != unlucky(2, keys)
    assert 5 < len(first) < 35


def test_a_removed_fault_and_a_cleared_one_are_over(open_chaos, http):
    one, _ = open_chaos.add(Refuse("SlowDown")), open_chaos.add(Refuse("InternalError"))
    url = f"{open_chaos.url}/b/k"

    statuses = [http.request("GET", url).status]
    one.remove()
    statuses += [http.request("GET", url).status]
    open_chaos.clear()
    statuses += [http.request("GET", url).status]

    assert statuses == [503, 500, 200]
    assert open_chaos.log[0].fault == "Refuse+Refuse"


def test_silence_is_a_connection_without_an_answer(open_chaos, http):
    open_chaos.add(Silence())

    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        http.request("GET", f"{open_chaos.url}/b/k", timeout=PATIENCE_S)

    assert seen(open_chaos) == [("GET", b"k", 0, "Silence")]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Stall, urllib3.exceptions.ReadTimeoutError),
        (Reset, urllib3.exceptions.ProtocolError),
        (Truncate, urllib3.exceptions.ProtocolError),
    ],
)
def test_a_reply_breaks_in_mid_body(fault, error, open_chaos, http):
    open_chaos.add(fault(400))
    patience_s = PATIENCE_S if fault is Stall else 20
    reply = http.request("GET", f"{open_chaos.url}/b/k", preload_content=False, timeout=patience_s)

    with contextlib.closing(reply):
        assert (reply.headers["Content-Length"], reply.read(400)) == ("1000", b"x" * 400)
        with pytest.raises(error) as caught:
            reply.read(1)

    told = {Stall: "timed out", Reset: "ConnectionResetError", Truncate: "IncompleteRead"}
    assert told[fault] in str(caught.value)
    assert (open_chaos.log[0].status, open_chaos.log[0].response_bytes) == (200, 400)


@pytest.mark.parametrize(
    ("fault", "expected"), [(Stall, "timed out"), (Reset, "reset|pipe"), (Truncate, "reset|pipe")]
)
def test_a_request_breaks_in_mid_body_and_is_not_swallowed_whole(fault, expected, open_chaos):
    """The rest stays with the client: what the proxy took is little more than what it passed on."""
    open_chaos.add(fault(1000, side="request"))
    head = b"PUT /b/k HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (64 * MIB)

    with contextlib.closing(connected(open_chaos)) as client:
        client.settimeout(PATIENCE_S if fault is Stall else 20)
        with pytest.raises(OSError, match=expected):
            client.sendall(head + bytes(64 * MIB))

    assert 1000 <= open_chaos.log[0].request_bytes < MIB


def test_one_byte_flips_on_the_way_down(open_chaos, http):
    open_chaos.add(Flip(at=10, key="sure"))
    open_chaos.add(Flip(key="lucky"))

    def flipped(key: str) -> list[int]:
        body = http.request("GET", f"{open_chaos.url}/b/{key}").data
        return [at for at, byte in enumerate(body) if byte != ord("x")]

    assert flipped("sure") == [10]
    assert len(flipped("lucky")) == 1


def test_one_byte_flips_on_the_way_up(chaos, s3, bucket):
    chaos.add(Flip(at=1, side="request", nth=1))

    s3.put_object(Bucket=bucket, Key="k", Body=b"abc")

    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"a\x9dc"


@pytest.mark.parametrize(("code", "status"), sorted(Refuse.STATUS.items()))
def test_s3_refuses_by_code(code, status, chaos, s3):
    chaos.add(Refuse(code, nth=1))
    chaos.add(Refuse(code, status=418))

    assert (status, code) == the_code(s3.get_object, Bucket="b", Key="k")
    assert (418, code) == the_code(s3.get_object, Bucket="b", Key="k")


def test_a_refusal_may_say_when_to_come_back(open_chaos, http):
    open_chaos.add(Refuse("SlowDown", retry_after_s=3))

    assert http.request("GET", f"{open_chaos.url}/b/k").headers["Retry-After"] == "3"


def test_a_refused_body_is_heard_out_so_that_the_connection_can_be_used_again(open_chaos, told, http):
    open_chaos.add(Refuse("SlowDown"))

    for _ in range(2):
        assert http.request("PUT", f"{open_chaos.url}/b/k", body=b"y" * MIB).status == 503

    assert http.connection_from_url(open_chaos.url).num_connections == 1
    assert [one.request_bytes for one in open_chaos.log] == [MIB, MIB]
    assert not told.asked


def test_who_waits_to_be_asked_for_a_body_is_refused_without_sending_it(chaos, s3, bucket):
    """boto3 says `Expect: 100-continue` with each PUT."""
    chaos.add(Refuse("SlowDown", nth=1))

    assert the_code(s3.put_object, Bucket=bucket, Key="k", Body=b"abc") == (503, "SlowDown")
    s3.put_object(Bucket=bucket, Key="k", Body=b"abc")

    assert [one.request_bytes for one in chaos.log if one.path == f"/{bucket}/k"] == [0, 3]


@pytest.mark.parametrize("done", [True, False])
def test_a_completion_says_200_and_means_an_error(done, chaos, s3, bucket):
    upload = {"Bucket": bucket, "Key": "k"}
    upload["UploadId"] = s3.create_multipart_upload(Bucket=bucket, Key="k")["UploadId"]
    etag = s3.upload_part(**upload, PartNumber=1, Body=b"abc")["ETag"]
    chaos.add(BadComplete(done=done))

    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    _, code = the_code(s3.complete_multipart_upload, **upload, MultipartUpload=parts)

    assert code == "InternalError"
    assert chaos.log[-1].status == 200
    assert done == bool(s3.list_objects_v2(Bucket=bucket)["KeyCount"])


def test_s5cmd_takes_the_page_of_a_captive_portal_for_the_object(chaos, s5cmd, tmp_path):
    chaos.add(Portal())

    done = s5cmd(chaos.url, "cp", "s3://any/k", tmp_path / "k")

    assert done.returncode == 0
    assert b"Please log in" in (tmp_path / "k").read_bytes()


def test_s5cmd_tears_an_object_that_is_overwritten_between_its_ranges(
    chaos, straight, bucket, s5cmd, tmp_path
):
    half = 5 * MIB
    straight.put_object(Bucket=bucket, Key="k", Body=b"o" * 2 * half)
    chaos.add(Torn(lambda: straight.put_object(Bucket=bucket, Key="k", Body=b"n" * 2 * half), key="k"))

    done = s5cmd(
        chaos.url, "cp", "--concurrency", "2", "--part-size", "5", f"s3://{bucket}/k", tmp_path / "k"
    )

    body = (tmp_path / "k").read_bytes()
    assert (done.returncode, body.count(b"o"), body.count(b"n")) == (0, half, half)


def test_something_happens_just_before_the_nth_get(chaos, straight, bucket, s3):
    straight.put_object(Bucket=bucket, Key="k", Body=b"old")
    overwrite = functools.partial(straight.put_object, Bucket=bucket, Key="k", Body=b"new")
    chaos.add(Meanwhile(overwrite, method="GET", key="k", nth=2))

    assert [s3.get_object(Bucket=bucket, Key="k")["Body"].read() for _ in range(2)] == [b"old", b"new"]


@pytest.mark.parametrize(
    ("header", "value", "etag"), [("ETag", '"lie"', '"lie"'), ("ETag", None, None), ("X-More", "y", '"abc"')]
)
def test_headers_lie_or_are_missing(header, value, etag, open_chaos, http):
    open_chaos.add(Header(header, value))

    reply = http.request("GET", f"{open_chaos.url}/b/k")

    assert (etag, b"x" * 1000) == (reply.headers.get("ETag"), reply.data)


def test_without_a_content_length_nobody_can_tell_a_cut_from_an_end(open_chaos, http):
    open_chaos.add(Header("Content-Length", None))
    open_chaos.add(Truncate(400, nth=2))

    replies = [http.request("GET", f"{open_chaos.url}/b/k") for _ in range(2)]

    assert [(reply.headers.get("Content-Length"), len(reply.data)) for reply in replies] == [
        (None, 1000),
        (None, 400),
    ]


def test_a_content_length_may_be_wrong_either_way(open_chaos, http):
    open_chaos.add(Header("Content-Length", "10", nth=1))
    open_chaos.add(Header("Content-Length", "2000", nth=2))

    assert http.request("GET", f"{open_chaos.url}/b/k").data == b"x" * 10
    http.clear()  # what came beyond those ten is still on that connection
    with pytest.raises(urllib3.exceptions.ProtocolError):
        http.request("GET", f"{open_chaos.url}/b/k")
    assert http.request("GET", f"{open_chaos.url}/b/k").data == b"x" * 1000


def test_an_answer_comes_late(open_chaos, http):
    open_chaos.add(Delay(0.15, jitter_s=0.05))
    began = time.monotonic()

    http.request("GET", f"{open_chaos.url}/b/k")

    assert time.monotonic() - began >= 0.15


def test_bytes_go_no_faster_than_the_link_in_both_directions_together(chaos, s3, bucket):
    """A burst of 0.1 s is free."""
    chaos.add(Bandwidth(20_000, prefix="k"))
    began = time.monotonic()

    s3.put_object(Bucket=bucket, Key="k", Body=b"y" * 5000)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"y" * 5000

    assert time.monotonic() - began >= 0.5 - 0.1


def test_the_link_is_cut_and_comes_back_on_the_same_port(open_chaos, http):
    http.request("GET", f"{open_chaos.url}/b/k")
    for _ in range(2):
        open_chaos.pause()
        with pytest.raises(urllib3.exceptions.NewConnectionError, match="refused"):
            http.request("GET", f"{open_chaos.url}/b/k")
        open_chaos.resume()

        assert http.request("GET", f"{open_chaos.url}/b/k").status == 200


def test_a_cut_link_ends_what_is_under_way(open_chaos, http):
    open_chaos.add(Stall(400))
    reply = http.request("GET", f"{open_chaos.url}/b/k", preload_content=False)

    open_chaos.pause()

    with contextlib.closing(reply), pytest.raises(urllib3.exceptions.ProtocolError):
        reply.read()


def test_the_link_may_be_cut_by_the_request_that_wants_it(open_chaos, http):
    open_chaos.add(Meanwhile(open_chaos.pause, nth=2))
    url = f"{open_chaos.url}/b/k"

    assert http.request("GET", url).status == 200
    with pytest.raises(urllib3.exceptions.ProtocolError):
        http.request("GET", url)
    with pytest.raises(urllib3.exceptions.NewConnectionError, match="refused"):
        http.request("GET", url)


def test_a_swallowed_connection_is_neither_made_nor_refused(open_chaos, http):
    open_chaos.pause(silent=True)
    with pytest.raises(urllib3.exceptions.ConnectTimeoutError):
        http.request("GET", f"{open_chaos.url}/b/k", timeout=PATIENCE_S)

    open_chaos.resume()

    assert http.request("GET", f"{open_chaos.url}/b/k").status == 200


def test_a_server_that_dies_is_a_reset(http):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with Chaos(f"http://127.0.0.1:{port}") as chaos:
        with pytest.raises(urllib3.exceptions.ProtocolError, match="reset"):
            http.request("GET", f"{chaos.url}/b/k")

        assert seen(chaos) == [("GET", b"k", 0, "")]


@pytest.fixture
def keys(straight: Any, bucket: str) -> list[str]:
    keys = [f"k{number}" for number in range(4)]
    for key in keys:
        straight.put_object(Bucket=bucket, Key=key)
    return keys


@pytest.mark.parametrize(
    ("edit", "shown"),
    [
        (early_end, ["k0", "k1"]),
        (unsorted, ["k3", "k2", "k1", "k0"]),
        (doubled, ["k0", "k0", "k1", "k1", "k2", "k2", "k3", "k3"]),
    ],
)
@pytest.mark.usefixtures("keys")
def test_a_listing_lies(edit, shown, chaos, s3, bucket):
    chaos.add(Listing(edit))

    page = s3.list_objects_v2(Bucket=bucket)

    assert (shown, False) == ([entry["Key"] for entry in page["Contents"]], page["IsTruncated"])


def test_an_early_end_hides_that_there_is_more(chaos, s3, bucket, keys):
    chaos.add(Listing(early_end))

    page = s3.list_objects_v2(Bucket=bucket, MaxKeys=2)

    assert ([entry["Key"] for entry in page["Contents"]], page["IsTruncated"]) == (["k0"], False)
    assert "NextContinuationToken" not in page


def test_half_a_listing_is_whole_http_and_broken_xml(chaos, s3, bucket, keys):
    pages: list[bytes] = []

    def torn(page: bytes, request: Request) -> bytes:
        pages.append(torn_xml(page, request))
        return pages[-1]

    chaos.add(Listing(torn))

    assert the_code(s3.list_objects_v2, Bucket=bucket) == (500, "500"), "boto3 takes it for a 500"
    assert chaos.log[-1].status == 200
    with pytest.raises(ParseError):
        fromstring(pages[0])


def test_a_listing_never_ends(chaos, s3, bucket, keys):
    chaos.add(EndlessListing())
    first = s3.list_objects_v2(Bucket=bucket)

    again = s3.list_objects_v2(Bucket=bucket, ContinuationToken=first["NextContinuationToken"])

    assert first["NextContinuationToken"] == again["NextContinuationToken"]
    assert keys == [entry["Key"] for entry in again["Contents"]]


def test_a_put_is_acknowledged_and_nothing_is_stored(chaos, s3, bucket):
    honest = s3.put_object(Bucket=bucket, Key="real", Body=b"abc")["ETag"]
    chaos.add(FalseAck())

    assert honest == s3.put_object(Bucket=bucket, Key="k", Body=b"abc")["ETag"]
    assert the_code(s3.get_object, Bucket=bucket, Key="k") == (404, "NoSuchKey")


def test_a_put_is_stored_and_its_answer_is_lost(chaos, s3, bucket):
    chaos.add(LostReply(method="PUT"))

    with pytest.raises(ConnectionClosedError):
        s3.put_object(Bucket=bucket, Key="k", Body=b"abc")

    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == b"abc"


@pytest.mark.parametrize(("status", "code"), [(301, "PermanentRedirect"), (307, "TemporaryRedirect")])
def test_a_bucket_is_elsewhere(status, code, open_chaos, http):
    open_chaos.add(Redirect("http://elsewhere.example:9", status, region="eu-west-1"))

    reply = http.request("GET", f"{open_chaos.url}/b/k?x=y", redirect=False)

    assert status == reply.status
    assert code.encode() in reply.data
    assert reply.headers["Location"] == "http://elsewhere.example:9/b/k?x=y"
    assert reply.headers["x-amz-bucket-region"] == "eu-west-1"


def test_a_tidied_path_is_another_key_or_a_wrong_signature(chaos, s3, bucket, rclone):
    s3.put_object(Bucket=bucket, Key="a//b", Body=b"abc")
    chaos.add(Normalise())

    assert the_code(s3.get_object, Bucket=bucket, Key="a//b") == (404, "NoSuchKey")
    with Chaos(rclone.url) as strict:
        strict.add(Normalise())
        with contextlib.closing(dataclasses.replace(rclone, url=strict.url).boto()) as signed:
            assert the_code(signed.get_object, Bucket="any", Key="a//b") == (403, "SignatureDoesNotMatch")


def test_a_stalled_request_is_in_the_log_while_it_lasts(open_chaos):
    stall = open_chaos.add(Silence())
    with contextlib.closing(connected(open_chaos)) as client:
        client.sendall(b"GET /b/k HTTP/1.1\r\nHost: x\r\n\r\n")

        open_chaos.wait_until(lambda: stall.hits == 1)

        assert seen(open_chaos) == [("GET", b"k", 0, "Silence")]
        with pytest.raises(TimeoutError):
            open_chaos.wait_until(lambda: stall.hits == 2, timeout_s=0.01)
