"""What befalls the road on the destination's side: what is there is right, proven, and was sent once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import chaos_road
from tests.appliance import some_objects, until
from tests.chaos import (
    BadComplete,
    Delay,
    EndlessListing,
    FalseAck,
    Fault,
    Listing,
    LostReply,
    Meanwhile,
    Portal,
    Refuse,
    Reset,
    Silence,
    Stall,
    doubled,
    early_end,
    torn_xml,
    unsorted,
)
from tests.chaos_road import Road, requests_in, sent
from tests.impatient import ImpatientNursery
from tests.servers import Server

PUT: dict[str, Any] = {"method": "PUT"}
#: A key of `some_objects`.
ONE = "missions/0005.dat"


@pytest.fixture
def road(tmp_path: Path, impatient: ImpatientNursery, moto: Server, rclone: Server) -> Iterator[Road]:
    """To a server that answers like AWS."""
    with chaos_road.road(tmp_path, impatient, rclone, moto) as road:
        yield road


def puts(road: Road, key: str) -> int:
    """How often an object was sent, answered or not."""
    return road.behind.counts()["PUT", key.encode()]


# The network


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            Stall(100, side="request", nth=range(1, 3), **PUT), id="N4 N17 a body stops, the connection stays"
        ),
        pytest.param(Silence(nth=range(1, 3), **PUT), id="N3 a request is heard and never answered"),
        pytest.param(Reset(100, side="request", share=0.4, **PUT), id="N5 connections are reset"),
        pytest.param(LostReply(share=0.3, **PUT), id="N5 N6 it is stored, and the answer is lost"),
        pytest.param(Refuse("SlowDown", retry_after_s=1, share=0.2, **PUT), id="S1 a storm of 503"),
        pytest.param(Refuse("InternalError", share=0.3, **PUT), id="S1 a storm of 500"),
        pytest.param(Delay(1.0, nth=range(1, 20), **PUT), id="S18 the answer comes late"),
    ],
)
def test_what_befalls_the_link_costs_no_object_an_attempt(road: Road, fault: Fault) -> None:
    hit = road.behind.add(fault)

    road.run(some_objects(20))

    assert road.delivers_all()
    assert hit.hits


def test_n5_what_arrived_although_its_answer_was_lost_is_not_sent_again(road: Road) -> None:
    """s5cmd itself tries three times; the daemon asks before it would."""
    lost = road.behind.add(LostReply(key=ONE, **PUT))

    road.run(some_objects(20))

    assert road.delivers_all()
    assert puts(road, ONE) == lost.hits == 3


def test_n9_n10_while_the_destination_is_gone_the_pull_goes_on_and_nothing_is_lost(road: Road) -> None:
    road.behind.pause()
    road.run(some_objects(60), chunk={"objects": 20})
    until(lambda: road.appliance.counted() == {"staged": 60}, "all of it on the volumes")
    until(lambda: "endpoint_down" in road.problems(), "the problem")
    # One that is tried counts until it is seen to have failed by the endpoint.
    until(lambda: all(row["attempts"] == 0 for row in road.rows().values()), "no attempt that counts")

    road.behind.resume()

    assert road.delivers_all()
    assert road.said()["endpoint_down"] == 1
    assert max(sent(road.behind).values()) == 1


def test_n12_one_dead_endpoint_of_two_holds_nothing_up(road: Road) -> None:
    road.fill(some_objects(30))
    road.configure(
        endpoints={"destination": ["http://127.0.0.1:9", road.behind.url]}, chunk={"objects": 10}
    )  # fmt: skip
    road.start()

    assert road.delivers_all()


def test_n14_a_captive_portal_has_stored_nothing(road: Road) -> None:
    """It answers a PUT with 200, too."""
    portal = road.behind.add(Portal())

    road.run(some_objects(20))
    down = road.comes_to("down", "destination")

    assert "not S3" in down["last_error"]
    assert requests_in(road.behind, 2.0) <= 6
    assert road.appliance.counted() == {"staged": 20}
    portal.remove()
    assert road.delivers_all()


def test_n14_a_portal_that_answers_for_objects_alone_has_stored_nothing_either(road: Road) -> None:
    hit = road.behind.add(Portal(nth=range(1, 6), **PUT))

    road.run(some_objects(20), attempts=3)

    assert road.delivers_all()
    assert hit.hits == 5


def test_n18_what_is_too_large_for_the_way_is_parked_and_the_small_arrives(road: Road) -> None:
    """Small packets pass, large ones vanish: one large body never comes, the other never goes."""
    come, go = b"large to come", b"large to go"
    road.before.add(Stall(0, key=come, method="GET"))
    road.behind.add(Stall(60_000, key=go, side="request", **PUT))

    road.run({**some_objects(10), come: bytes(100_000), go: bytes(1_000_000)})

    assert road.settled(90.0) == {"delivered": 10, "parked": 2}
    assert road.arrived_but(come, go)
    assert all("stalled" in reason for reason in road.reasons().values())


# What the destination answers


@pytest.mark.parametrize("done", [True, False], ids=["done all the same", "not done"])
def test_s2_an_error_inside_a_200_is_no_success_and_a_look_decides(
    tmp_path: Path, impatient: ImpatientNursery, moto: Server, done: bool
) -> None:
    with chaos_road.road(tmp_path, impatient, moto, moto) as road:
        body = hashlib.shake_128(b"large").digest(11 << 20)
        put_in_parts(road.source, road.here, "large", body, 5 << 20)
        road.objects[b"large"] = body
        bad = road.behind.add(BadComplete(done=done, nth=range(1, 4)))

        road.run({}, attempts=2)

        assert road.delivers_all()
        assert bad.hits
        # Not its parts are counted: a busy machine may break one off, which s5cmd sends again by itself.
        begun = sum(e.method == "POST" and e.query.startswith("uploads") for e in road.behind.log)
        assert begun == 1 if done else begun >= 2


def put_in_parts(server: Server, bucket: str, key: str, body: bytes, part_bytes: int) -> None:
    boto = server.boto()
    upload = boto.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    named = {"Bucket": bucket, "Key": key, "UploadId": upload}
    parts = []
    for number, start in enumerate(range(0, len(body), part_bytes), 1):
        answer = boto.upload_part(**named, PartNumber=number, Body=body[start : start + part_bytes])
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    boto.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})


@pytest.mark.parametrize(
    ("code", "words"),
    [("ExpiredToken", "renew the temporary credentials"), ("SignatureDoesNotMatch", "secret access key")],
)
def test_s3_what_a_person_must_mend_is_said_once_and_costs_objects_nothing(
    road: Road, code: str, words: str
) -> None:
    refusal = road.behind.add(Refuse(code))

    road.run(some_objects(20))
    until(lambda: words in road.problems().get("endpoint_down", ""), "the problem and its hint")
    until(lambda: road.appliance.counted() == {"staged": 20}, "all of it on the volumes")

    assert requests_in(road.behind, 2.0) <= 6
    refusal.remove()
    assert road.delivers_all()
    assert (road.said()["endpoint_down"], road.said()["endpoint_up"]) == (1, 1)


def test_s4_what_may_not_be_written_is_parked_by_its_cause_and_the_rest_arrives(road: Road) -> None:
    objects = some_objects(20)
    road.behind.add(Refuse("AccessDenied", prefix="missions/000", **PUT))

    road.run(objects, attempts=2)

    assert road.settled() == {"delivered": 10, "parked": 10}
    assert road.arrived_but(*(key for key in objects if key.startswith(b"missions/000")))
    assert all("AccessDenied" in reason for reason in road.reasons().values())


def test_s11_s12_what_is_there_already_with_other_bytes_is_replaced_and_proven(road: Road) -> None:
    road.destination.fill(road.there, {ONE.encode(): b"another content"})

    road.run(some_objects(20))

    assert road.delivers_all()


def test_s13_who_writes_the_same_key_at_the_same_time_is_noticed(road: Road) -> None:
    intruder = {ONE.encode(): b"an intruder"}
    road.behind.add(
        Meanwhile(lambda: road.destination.fill(road.there, intruder), method="GET", key=b"", nth=3)
    )

    road.run(some_objects(20), attempts=3)

    assert road.delivers_all()


@pytest.mark.parametrize(
    ("edit", "nth"),
    [(torn_xml, range(2, 4)), (early_end, None), (unsorted, None), (doubled, None)],
    ids=["torn", "ends early", "unsorted", "doubled"],
)
def test_s8_a_listing_that_lies_makes_nothing_travel_twice(road: Road, edit: Any, nth: range | None) -> None:
    road.behind.add(Listing(edit, query="", nth=nth))

    road.run(some_objects(40))

    assert road.delivers_all()
    assert max(sent(road.behind).values()) == 1


def test_s8_a_listing_that_has_no_end_holds_the_push_and_breaks_nothing(road: Road) -> None:
    endless = road.behind.add(EndlessListing())
    road.run(some_objects(20))
    until(lambda: endless.hits >= 4, "some questions")

    assert requests_in(road.behind, 2.0) <= 30
    endless.remove()
    assert road.delivers_all()
    assert max(sent(road.behind).values()) == 1


def test_worse_than_s11_what_was_acknowledged_and_not_stored_is_sent_again(road: Road) -> None:
    false = road.behind.add(FalseAck(nth=range(1, 6)))

    road.run(some_objects(20), attempts=3)

    assert road.delivers_all()
    assert false.hits == 5


def test_worse_than_s11_what_is_never_stored_is_parked_and_never_called_delivered(road: Road) -> None:
    road.behind.add(FalseAck(key=ONE))

    road.run(some_objects(20), attempts=2)

    assert road.settled() == {"delivered": 19, "parked": 1}
    assert road.arrived_but(ONE.encode())
    assert road.reasons()[ONE].startswith("not_delivered: ")
    assert puts(road, ONE) == 2


def test_s16_nothing_is_ever_deleted_at_either_side(road: Road) -> None:
    road.run(some_objects(20))
    assert road.delivers_all()

    assert not [e for chaos in (road.before, road.behind) for e in chaos.log if e.method == "DELETE"]


def test_s23_what_a_server_stores_in_another_form_is_not_taken_for_delivered(road: Road) -> None:
    """As where a server keeps the framing of a body in chunks as part of the object."""

    def framed() -> None:
        road.destination.fill(road.there, {ONE.encode(): b"5\r\nbytes\r\n0\r\n\r\n"})

    road.behind.add(Meanwhile(framed, method="GET HEAD"))

    road.run(some_objects(20), attempts=2)

    assert road.settled() == {"delivered": 19, "parked": 1}
    assert road.reasons()[ONE].startswith("destination_mismatch: ")


# Both sides


def test_two_sides_that_fail_each_in_its_way_at_once(road: Road) -> None:
    """Recovery breaks where two faults meet."""
    road.before.add(Reset(100, method="GET", share=0.2))
    road.before.add(Refuse("SlowDown", method="HEAD GET", share=0.1))
    road.behind.add(LostReply(share=0.2, **PUT))
    road.behind.add(Stall(100, side="request", nth=range(3, 5), **PUT))
    road.run(some_objects(60), attempts=3, chunk={"objects": 20})
    time.sleep(0.5)
    road.behind.pause()
    time.sleep(1.0)
    road.behind.resume()

    assert road.delivers_all()
