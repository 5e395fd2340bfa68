"""How much is proven, with servers that offer less: the weakest that counts, and what happens below it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from tests import chaos_road
from tests.appliance import some_objects
from tests.chaos import Chaos, Fault, Flip, Forward, Luck, Reply, Request
from tests.chaos_road import Road, sent
from tests.impatient import ImpatientNursery
from tests.servers import Server


@dataclass
class Opaque(Fault):
    """The server's ETags say nothing of the bytes, as with keys of its own, and it has no checksums."""

    etags: dict[bytes, bytes] = field(default_factory=dict)

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        request.headers.put("If-Match", None)
        reply = forward(request)
        for name, value in list(reply.headers):
            if name.lower() == "etag":
                reply.headers.put(name, f'"{self._other(value)}"')
            if name.lower().startswith("x-amz-checksum"):
                reply.headers.put(name, None)
        if request.method == "GET" and not request.key:
            page = re.sub(
                rb"<ETag>(.*?)</ETag>",
                lambda found: b"<ETag>&quot;%b&quot;</ETag>" % self._other(found[1].decode()).encode(),
                b"".join(reply.body),
            )
            reply.headers.put("Transfer-Encoding", None)
            reply.headers.put("Content-Length", str(len(page)))
            reply.body = iter([page])
        return reply

    @staticmethod
    def _other(etag: str) -> str:
        """One that names the same version, and nothing else."""
        return "opaque-" + etag.replace("&quot;", "").strip('"')[:8]


@pytest.fixture
def road(tmp_path: Path, impatient: ImpatientNursery, moto: Server) -> Iterator[Road]:
    """Between two buckets of a server that answers like AWS."""
    with chaos_road.road(tmp_path, impatient, moto, moto) as road:
        yield road


def proxy(road: Road, which: str) -> Chaos:
    return road.before if which == "source" else road.behind


def evidence(road: Road, key: str, hop: Literal["pull", "push"]) -> str:
    return str(road.explain(key)["object"][f"{hop}_evidence"])


def fetched(chaos: Chaos) -> int:
    return sum(e.fetches and e.status in (200, 206) for e in chaos.log)


SIDES = pytest.mark.parametrize("which", ["source", "destination"])


@SIDES
@pytest.mark.parametrize(("minimum", "otherwise"), [("etag", "readback"), ("checksum", "readback")])
def test_where_a_side_offers_too_little_its_bytes_are_read_once_more(
    road: Road, which: str, minimum: str, otherwise: str
) -> None:
    proxy(road, which).add(Opaque())

    road.run(some_objects(10), evidence={"minimum": minimum, "otherwise": otherwise})

    assert road.delivers_all()
    hop: Any = "pull" if which == "source" else "push"
    assert evidence(road, "missions/0003.dat", hop) == "readback"
    assert fetched(proxy(road, which)) >= (19 if which == "source" else 10)
    assert max(sent(road.behind).values()) == 1


@SIDES
def test_where_nobody_asks_for_more_the_size_is_recorded_for_what_it_is(road: Road, which: str) -> None:
    proxy(road, which).add(Opaque())

    road.run(some_objects(10), evidence={"minimum": "etag", "otherwise": "accept"})

    assert road.delivers_all()
    hop: Any = "pull" if which == "source" else "push"
    assert evidence(road, "missions/0003.dat", hop) == "size"
    assert fetched(road.before) + fetched(road.behind) <= 10


@SIDES
def test_where_it_is_to_be_parked_it_is_and_says_which_side_offers_too_little(road: Road, which: str) -> None:
    proxy(road, which).add(Opaque())

    road.run(some_objects(10), evidence={"minimum": "etag", "otherwise": "park"})

    assert road.settled() == {"parked": 10}
    assert set(road.reasons().values()) == {
        f"evidence_too_weak: the {which} offers only size, and the job wants etag"
    }
    assert sum(sent(road.behind).values()) == (0 if which == "source" else 10)


@SIDES
@pytest.mark.parametrize("otherwise", ["accept", "readback", "park"])
def test_a_minimum_of_size_is_content_with_the_size(road: Road, which: str, otherwise: str) -> None:
    proxy(road, which).add(Opaque())

    road.run(some_objects(5), evidence={"minimum": "size", "otherwise": otherwise})

    assert road.delivers_all()
    hop: Any = "pull" if which == "source" else "push"
    assert evidence(road, "missions/0003.dat", hop) == "size"


def test_where_every_object_is_to_be_read_back_it_is(road: Road) -> None:
    road.run(some_objects(5), evidence={"minimum": "readback"})

    assert road.delivers_all()
    assert fetched(road.behind) in {0, 5}


def test_a_checksum_of_the_whole_is_the_strongest_and_needs_no_reading_back(road: Road) -> None:
    boto = road.source.boto()
    objects = {b"%d" % n: hashlib.shake_128(b"%d" % n).digest(1000) for n in range(5)}
    for key, body in objects.items():
        boto.put_object(Bucket=road.here, Key=key.decode(), Body=body, ChecksumAlgorithm="SHA256")
    road.objects |= objects

    road.run({}, evidence={"minimum": "checksum"}, sha256=True)

    assert road.delivers_all()
    assert evidence(road, "3", "pull") == "checksum"
    assert fetched(road.before) == 5


@SIDES
def test_a_side_read_twice_that_is_not_the_same_twice_is_not_believed(road: Road, which: str) -> None:
    """What comes back is another thing than what was fetched or sent."""
    lying = proxy(road, which)
    lying.add(Opaque())
    lying.add(Flip(method="GET", key="k", at=5, where=lambda request: not request.headers.find("Range")))

    road.run({b"k": b"the bytes"}, attempts=2)

    assert road.settled() == {"parked": 1}
    words = {"source": "source_mismatch: fetched twice", "destination": "destination_mismatch: read back"}
    assert road.reasons()["k"].startswith(words[which])
