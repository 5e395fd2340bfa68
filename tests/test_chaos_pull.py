"""What befalls the road on the source's side: every object arrives whole, or says why it cannot."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import chaos_road
from tests.appliance import some_objects, until
from tests.chaos import (
    Bandwidth,
    Chaos,
    Delay,
    EndlessListing,
    Fault,
    Flip,
    Header,
    Listing,
    Meanwhile,
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
from tests.chaos_road import Road, of_objects, requests_in, sent
from tests.impatient import ImpatientNursery
from tests.servers import Server

#: Of one listing, one range of a GET: what the source's proxy is to do to requests for objects.
GET: dict[str, Any] = {"method": "GET", "where": of_objects}
ANY: dict[str, Any] = {"method": "HEAD GET", "where": of_objects}
#: A few keys of `some_objects`.
ONE = "missions/0005.dat"


@pytest.fixture
def road(tmp_path: Path, impatient: ImpatientNursery, moto: Server, rclone: Server) -> Iterator[Road]:
    with chaos_road.road(tmp_path, impatient, moto, rclone) as road:
        yield road


# The network


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Stall(100, nth=range(1, 3), **GET), id="N4 N17 a body stops, and the connection stays"),
        pytest.param(Silence(nth=range(1, 3), **ANY), id="N3 a request is heard and never answered"),
        pytest.param(Reset(100, share=0.4, **GET), id="N5 connections are reset"),
        pytest.param(Truncate(100, share=0.4, **GET), id="N6 connections end too early"),
        pytest.param(Refuse("SlowDown", retry_after_s=1, share=0.2, **ANY), id="S1 a storm of 503"),
        pytest.param(Refuse("InternalError", share=0.3, **ANY), id="S1 a storm of 500"),
        pytest.param(
            Refuse("KMS.ThrottlingException", status=400, share=0.3, **GET), id="S21 KMS is asked too often"
        ),
        pytest.param(Delay(1.0, nth=range(1, 20), **GET), id="S18 the first byte comes late"),
    ],
)
def test_what_befalls_the_link_costs_no_object_an_attempt(road: Road, fault: Fault) -> None:
    hit = road.before.add(fault)

    road.run(some_objects(20))

    assert road.delivers_all()
    assert hit.hits
    assert max(sent(road.behind).values()) == 1


def test_n9_n10_a_link_that_comes_and_goes_costs_no_attempt_and_sends_nothing_twice(road: Road) -> None:
    """N1, N9, N10: while it is gone connections are refused."""
    road.run(some_objects(150), chunk={"objects": 15})
    for _ in range(3):
        for chaos in (road.before, road.behind):
            chaos.pause()
        time.sleep(0.7)
        for chaos in (road.before, road.behind):
            chaos.resume()
        time.sleep(0.7)

    assert road.delivers_all()
    assert max(sent(road.behind).values()) == 1


def test_n7_n8_a_thin_and_slow_link_is_no_dead_one(road: Road) -> None:
    """600 kB at 200 kB/s take longer than the patience with a link that moves nothing."""
    road.before.add(Bandwidth(200_000))
    road.before.add(Delay(0.2, jitter_s=0.4))

    road.run({b"%d" % n: hashlib.shake_128(b"%d" % n).digest(200_000) for n in range(3)})

    assert road.delivers_all()
    assert road.said()["chunk_staged"] == 1
    assert sum(e.response_bytes for e in road.before.log if e.fetches) == 600_000


@pytest.mark.parametrize("other", ["dead", "silent", "unknown", "wrong"])
def test_n12_one_bad_endpoint_of_two_holds_nothing_up(road: Road, other: str) -> None:
    """N2, N11, N12: one that is not there, that swallows connections, that has no address, that lies."""
    urls = {"dead": "http://127.0.0.1:9", "unknown": "http://s5jtd.invalid"}
    if other == "silent":
        road.before.pause(silent=True)
    road.before.add(Flip(**GET))
    road.fill(some_objects(30))
    road.configure(
        endpoints={"source": [urls.get(other, road.before.url), road.source.url]},
        attempts=4, chunk={"objects": 5},
    )  # fmt: skip
    road.start()

    assert road.delivers_all()
    if other == "wrong":
        assert any("source_mismatch" in line for line in road.appliance.log().splitlines())
    else:
        assert "endpoint_down" in road.problems()


def test_n14_a_captive_portal_is_no_object_and_no_empty_bucket(road: Road) -> None:
    road.run(some_objects(10), attempts=3)
    road.settled()
    portal = road.before.add(Portal())
    road.fill({b"late %d" % n: b"late" for n in range(5)})

    down = road.comes_to("down")

    assert "not S3" in down["last_error"]
    assert requests_in(road.before, 2.0) <= 6
    assert road.appliance.counted() == {"delivered": 10}
    assert road.said()["endpoint_down"] == 1
    portal.remove()
    assert road.delivers_all()
    assert road.said()["endpoint_up"] == 1


def test_n14_a_portal_that_answers_for_objects_alone_is_noticed_by_their_bytes(road: Road) -> None:
    hit = road.before.add(Portal(nth=range(1, 6), **GET))

    road.run(some_objects(20), attempts=3)

    assert road.delivers_all()
    assert hit.hits == 5
    assert road.said()["bytes_differ"] >= 1


def test_n15_of_a_thousand_answers_one_is_wrong_on_either_side(
    tmp_path: Path, impatient: ImpatientNursery, rclone: Server
) -> None:
    with chaos_road.road(tmp_path, impatient, rclone, rclone) as road:
        objects = {b"%04d" % n: hashlib.shake_128(b"%d" % n).digest(300) for n in range(1200)}
        fetched = road.before.add(Flip(share=0.001, **GET))
        stored = road.behind.add(Flip(share=0.001, method="PUT", side="request"))

        road.run(objects, attempts=3)

        assert road.delivers_all()
        assert 0 < fetched.hits < 10
        assert 0 < stored.hits < 10
        again = sum(sent(road.behind).values()) - len(objects)
        assert again <= stored.hits


def test_n16_where_something_rewrites_a_key_on_the_way_that_key_alone_suffers(road: Road) -> None:
    """A signature is for one path: whoever tidies it up on the way breaks it."""
    road.before.add(Refuse("SignatureDoesNotMatch", key=ONE, method="HEAD GET"))

    road.run(some_objects(20))

    assert road.settled() == {"delivered": 19, "parked": 1}
    assert road.arrived_but(ONE.encode())
    assert "SignatureDoesNotMatch" in road.reasons()[ONE]
    assert road.said()["endpoint_down"] == 0


def test_n16_another_objects_bytes_are_not_taken_for_a_new_version(road: Road) -> None:
    """Asked for one object, something on the way answers for another one of the same length."""

    def elsewhere(request: Request) -> bool:
        request.target = request.target.replace("/a", "/b")
        return False

    road.before.add(Delay(0.0, where=lambda request: bool(request.key) and elsewhere(request)))

    road.run({b"a": b"the right one", b"b": b"another's own"}, attempts=2)

    assert road.settled() == {"delivered": 1, "parked": 1}
    assert road.arrived_but(b"a")
    assert road.reasons()["a"].startswith("source_mismatch: ")


# What the source answers


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ExpiredToken", "renew the temporary credentials"),
        ("InvalidAccessKeyId", "check that these credentials are for this endpoint"),
        ("RequestTimeTooSkewed", "check time synchronisation"),
        ("NoSuchBucket", "check the bucket's name"),
    ],
    ids=["S3 expired", "S3 unknown key", "S5 T1 clock", "S14 no bucket"],
)
def test_s3_what_a_person_must_mend_is_said_once_and_costs_objects_nothing(
    road: Road, code: str, words: str
) -> None:
    """S3, S5, S14: the endpoint rests, is asked now and then, and goes on by itself."""
    road.run(some_objects(5))
    road.settled()
    refusal = road.before.add(Refuse(code, status=403))
    road.fill({b"late %d" % n: b"late" for n in range(5)})

    road.comes_to("down")

    until(lambda: words in road.problems().get("endpoint_down", ""), "the problem and its hint")
    assert requests_in(road.before, 2.0) <= 6
    refusal.remove()
    assert road.delivers_all()
    assert (road.said()["endpoint_down"], road.said()["endpoint_up"]) == (1, 1)


def test_s3_credentials_that_end_while_a_chunk_is_pulled_cost_its_objects_nothing(road: Road) -> None:
    expired = road.before.add(Refuse("ExpiredToken", method="HEAD GET", nth=range(20, 10**6)))

    road.run(some_objects(40))
    road.comes_to("down")
    expired.remove()

    assert road.delivers_all()


@pytest.mark.parametrize(
    ("code", "words"), [("AccessDenied", "AccessDenied"), ("InvalidObjectState", "InvalidObjectState")],
    ids=["S4 denied", "S15 archived"],
)  # fmt: skip
def test_s4_what_may_not_be_read_is_parked_by_its_cause_and_the_rest_arrives(
    road: Road, code: str, words: str
) -> None:
    objects = some_objects(20)
    denied = {key for key in objects if key.startswith(b"missions/000")}
    road.before.add(Refuse(code, method="GET", prefix="missions/000"))

    road.run(objects, attempts=2)

    assert road.settled() == {"delivered": 10, "parked": 10}
    assert road.arrived_but(*denied)
    assert {key.encode() for key in road.reasons()} == denied
    assert all(words in reason for reason in road.reasons().values())
    assert sum(e.status == 403 for e in road.before.log) == 2 * len(denied)


def test_s6_what_is_deleted_after_the_listing_is_gone_and_what_is_not_is_not(road: Road) -> None:
    """A 404 for one that is there, as from a cache, is asked again and not believed."""
    objects = some_objects(20)
    victims = [b"missions/0003.dat", b"missions/0004.dat"]
    boto = road.source.boto()
    for key in victims:
        act = lambda key=key: boto.delete_object(Bucket=road.here, Key=key.decode())  # noqa: E731
        road.before.add(Meanwhile(act, key=key, method="HEAD", nth=1))
    untrue = road.before.add(Refuse("NoSuchKey", key=ONE, method="GET", nth=range(1, 2)))

    road.run(objects, attempts=3)

    assert road.settled() == {"delivered": 18, "gone": 2}
    assert road.arrived_but(*victims)
    assert untrue.hits
    assert set(road.rows("gone")) == {key.decode() for key in victims}


@pytest.mark.parametrize("size", [1000, 40 << 20], ids=["small", "in ranges"])
def test_s7_what_is_overwritten_while_it_is_pulled_arrives_in_its_new_version(road: Road, size: int) -> None:
    """Also where it is pulled in ranges, and its file is a mixture of two versions."""
    old, new = (hashlib.shake_128(word).digest(size) for word in (b"old", b"new"))
    torn = Torn(lambda: road.fill({b"k": new}), key="k")
    road.before.add(torn if size > 1000 else Meanwhile(torn.overwrite, key="k", method="GET", nth=1))

    road.run({b"k": old})

    assert road.delivers_all()
    story = [line["what"] for line in road.explain("k")["story"]]
    assert "source_changed" in str(road.explain("k")), story


@pytest.mark.parametrize(
    ("edit", "nth"),
    [(torn_xml, range(1, 3)), (early_end, range(1, 3)), (unsorted, None), (doubled, None)],
    ids=["torn", "ends early", "unsorted", "doubled"],
)
def test_s8_a_listing_that_lies_loses_nothing_and_moves_nothing_twice(
    road: Road, edit: Any, nth: range | None
) -> None:
    road.before.add(Listing(edit, query="", nth=nth, where=is_scan))

    road.run(some_objects(40))

    until(lambda: road.appliance.counted() == {"delivered": 40}, "all of it")
    assert road.delivers_all()
    assert max(sent(road.behind).values()) == 1
    assert road.said()["scan_failed"] == (1 if edit is torn_xml else 0)


def is_scan(request: Request) -> bool:
    """A listing of the source, and not a probe."""
    return not request.key and "max-keys=1&" not in request.target + "&"


def test_s8_a_listing_that_has_no_end_is_noticed_and_said_once(road: Road) -> None:
    endless = road.before.add(EndlessListing())
    road.fill(some_objects(20))
    road.configure()
    road.start()
    until(lambda: "scan_incomplete" in road.problems(), "the problem")
    until(lambda: road.appliance.counted() == {"delivered": 20}, "what was listed")

    assert requests_in(road.before, 2.0) <= 20
    assert "circles" in road.problems()["scan_incomplete"]
    assert road.said()["scan_failed"] == 1
    endless.remove()
    assert road.delivers_all()
    until(lambda: "scan_incomplete" not in road.problems(), "the end of the problem")


def test_s8_what_a_listing_leaves_out_is_not_gone(road: Road) -> None:
    road.run(some_objects(30))
    assert road.delivers_all()
    short = road.before.add(Listing(early_end, query="", where=is_scan))

    until(lambda: short.hits >= 2, "two short listings")

    assert road.appliance.counted() == {"delivered": 30}


def no_etags(page: bytes, request: Request) -> bytes:
    return re.sub(rb"<ETag>.*?</ETag>", b"", page)


@pytest.mark.parametrize(
    ("fault", "job"),
    [
        (Listing(no_etags, query=""), {}),
        (Header("ETag", None, **ANY), {"evidence": {"minimum": "checksum"}}),
        (Header("ETag", 'W/"weak"', **ANY), {"evidence": {"minimum": "checksum"}}),
    ],
    ids=["missing in listings", "missing in answers", "weak in answers"],
)
def test_s10_an_etag_that_says_nothing_makes_no_object_new_at_each_look(
    road: Road, fault: Fault, job: dict[str, Any]
) -> None:
    road.before.add(fault)
    road.run(some_objects(10), skip_existing="never", **job)
    assert road.delivers_all()
    fetched = requests_for_objects(road.before)

    for _ in range(2):
        before = last_look(road)
        until(partial(newer_look, road, before), "another look")

    assert road.delivers_all()
    assert requests_for_objects(road.before) == fetched
    assert max(sent(road.behind).values()) == 1


def last_look(road: Road) -> str:
    """When the newest look at the source ended that did."""
    scan = road.appliance.status()["jobs"][0]["last_scan"]
    return (scan and scan["finished_at"]) or ""


def newer_look(road: Road, before: str) -> bool:
    return last_look(road) > before


def requests_for_objects(chaos: Chaos) -> int:
    return sum(bool(exchange.key) for exchange in chaos.log)


def test_s10_a_body_of_untold_length_that_is_cut_is_noticed(road: Road) -> None:
    road.before.add(Header("Content-Length", None, **GET))
    cut = road.before.add(Truncate(100, nth=range(1, 6), **GET))

    road.run(some_objects(20), attempts=4)

    assert road.delivers_all()
    assert cut.hits


def test_s19_a_checksum_that_the_bytes_do_not_have_keeps_the_object_here(road: Road) -> None:
    road.before.add(Header("x-amz-checksum-crc64nvme", "AAAAAAAAAAA=", method="HEAD", key="a"))

    road.run({b"a": b"bytes", b"b": b"bytes"}, attempts=2, evidence={"minimum": "checksum"})

    assert road.settled() == {"delivered": 1, "parked": 1}
    assert road.arrived_but(b"a")
    assert road.reasons()["a"].startswith("source_mismatch: CRC64NVME")


def test_s14_a_bucket_of_another_region_names_it(road: Road) -> None:
    road.run(some_objects(3))
    road.settled()
    road.before.add(Redirect("http://127.0.0.1:9", status=301, region="eu-west-9"))

    until(lambda: "eu-west-9" in road.problems().get("endpoint_down", ""), "the problem and its hint")
    assert road.appliance.counted() == {"delivered": 3}


def test_s22_nothing_that_is_signed_goes_where_a_redirect_points(road: Road) -> None:
    signed: list[str] = []

    def note(request: Request) -> bool:
        signed.append(request.headers.find("Authorization"))
        return False

    with Chaos(road.source.url) as elsewhere:
        elsewhere.add(Delay(0.0, where=note))
        redirect = road.before.add(Redirect(elsewhere.url.replace("127.0.0.1", "localhost"), **ANY))

        road.run(some_objects(5), attempts=2)
        road.comes_to("down")
        redirect.remove()

        assert road.delivers_all()
        assert not any(signed)
