"""The native engine: the contract every engine keeps, and what is its own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from s5jtd.engine.choice import Engines
from s5jtd.engine.contract import End, Engine, Failure, Outcome, Preference, Transfer, Upload
from s5jtd.engine.experience import Experience, Place
from s5jtd.engine.native.engine import Native
from s5jtd.model import Belongings, Direction
from tests.chaos import Assembling, Chaos, Meanwhile, Refuse, Request, by_s5cmd
from tests.engine_contract import EngineContract, Result, Stand, stand_at
from tests.servers import Server

MIB = 1 << 20


class TestNative(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return Native()


@pytest.fixture
def stand(moto: Server, tmp_path: Path) -> Iterator[Stand]:
    with stand_at(moto, moto.new_bucket(), Engines(), tmp_path) as stand:
        yield stand


def test_each_engine_gets_what_only_it_can_carry(stand: Stand, moto: Server) -> None:
    """Where both have to work they share the batch, and each object goes once."""
    moto.log.clear()
    keys = [b"plain", b"new\nline", b"folder/", b"tagged"]
    transfers = [stand.write(f"{n}.obj", key, key) for n, key in enumerate(keys)]
    transfers[3] = dataclasses.replace(transfers[3], takes=Belongings(tags={"a": "b c", "x/y": "=+@"}))

    result = stand.push(*transfers)

    assert result.failures == dict.fromkeys(sorted(one.name for one in transfers))
    assert result.run.end is End.EXITED
    assert moto.log.count("PUT") == len(keys)
    boto = moto.boto()
    there = {
        key: boto.get_object(Bucket=stand.remote.bucket, Key=key.decode())["Body"].read() for key in keys
    }
    assert there == {key: key for key in keys}
    tags = boto.get_object_tagging(Bucket=stand.remote.bucket, Key="tagged")["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"a": "b c", "x/y": "=+@"}


@pytest.mark.parametrize(("preference", "loaded"), [("s5cmd", False), ("auto", True), ("native", True)])
def test_the_native_engine_is_loaded_only_where_it_is_needed(
    stand: Stand, moto: Server, preference: Preference, loaded: bool
) -> None:
    engines = stand.engine
    assert isinstance(engines, Engines)

    stand.push(stand.write("1.obj", b"x"), preference=preference)

    assert loaded == ("native" in vars(engines))


def test_left_to_choose_many_objects_go_by_s5cmd(stand: Stand) -> None:
    engines = stand.engine
    assert isinstance(engines, Engines)

    stand.push(*(stand.write(f"{n}.obj", b"x", b"%d" % n) for n in range(20)), preference="auto")

    assert "native" not in vars(engines)


def test_what_a_server_refuses_s5cmd_goes_natively_and_soon_all_of_it(moto: Server, tmp_path: Path) -> None:
    with Chaos(moto.url) as chaos, contextlib.ExitStack() as stack:
        through = dataclasses.replace(moto, url=chaos.url)
        stand = stack.enter_context(stand_at(through, moto.new_bucket(), Engines(), tmp_path))

        def push(*keys: bytes) -> Result:
            return stand.push(*(stand.write(f"{n}.obj", key, key) for n, key in enumerate(keys)))

        one = chaos.add(Refuse("AccessDenied", key="a", method="PUT", where=by_s5cmd))
        only_a = [push(b"a", b"b") for _ in range(4)]
        one.remove()
        chaos.add(Refuse("NotImplemented", 501, method="PUT", where=by_s5cmd))
        with capture_logs() as logs:
            none, again = (push(b"1", b"2", b"3") for _ in range(2))
        new = push(b"4", b"5")

    # Alone it is refused and mended by turns: s5cmd does well with the other.
    assert [result.failures["0.obj"] for result in only_a] == [Failure.REFUSED, None] * 2
    assert {result.failures["1.obj"] for result in only_a} == {None}
    assert set(none.failures.values()) == {Failure.REFUSED}
    assert set(again.failures.values()) == {None}
    assert set(new.failures.values()) == {None}
    assert [(one["event"], one["endpoint"], one["direction"]) for one in logs] == [
        ("s5cmd_unfit", chaos.url, "push")
    ]


def test_s5cmd_is_tried_again_after_a_day() -> None:
    now = [0.0]
    known = Experience(lambda: now[0])
    place = Place("http://a", "bucket", Direction.PULL)
    for n in range(3):
        known.s5cmd_said(place, b"%d" % n, Outcome("", Failure.REFUSED))
        known.native_said(place, b"%d" % n, Outcome(""))
    assert known.is_unfit(place)
    assert not known.is_unfit(place._replace(direction=Direction.PUSH))

    now[0] = 24 * 3600
    assert not known.is_unfit(place)


# What a later run may build on


@dataclasses.dataclass
class Book:
    """A memory of uploads, as the ledger's."""

    known: Upload | None = None
    parts: dict[int, str] = dataclasses.field(default_factory=dict)
    found: int = 0  #: bytes that need not move again

    def recall(self, _name: str) -> Upload | None:
        return self.known and dataclasses.replace(self.known, parts={**self.known.parts, **self.parts})

    def held(self, _name: str, size_bytes: int) -> None:
        self.found = size_bytes

    def begin(self, _name: str, upload_id: str, part_size: int) -> None:
        self.known = Upload(upload_id, part_size, {})

    def part(self, _name: str, _upload_id: str, number: int, etag: str) -> None:
        self.parts[number] = etag

    def end(self, _name: str, _upload_id: str) -> None:
        self.known = None


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("native.down", "parts"):
        monkeypatch.setattr(f"s5jtd.engine.{module}.PULL_RANGE_BYTES", MIB)


@pytest.fixture
def native(moto: Server, tmp_path: Path) -> Iterator[Stand]:
    with stand_at(moto, moto.new_bucket(), Native(), tmp_path) as stand:
        yield stand


def unpinned(request: Request) -> bool:
    return request.headers.find("Range") not in ("", "bytes=0-1048575") and not request.headers.find(
        "If-Match"
    )


@pytest.mark.usefixtures("small_ranges")
def test_what_is_durable_is_written_down_after_it_is_and_not_fetched_again(
    native: Stand, moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = os.urandom(4 * MIB)
    moto.fill(native.remote.bucket, {b"key": body})
    one = Transfer("1.obj", b"key", len(body), resumable=True)
    order: list[tuple[str, str]] = []
    sync, write = os.fdatasync, os.write

    def name_of(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def synced(fd: int) -> None:
        order.append(("sync", name_of(fd)))
        sync(fd)

    def written(fd: int, data: bytes) -> int:
        if b'"done"' in data:
            order.append(("write", name_of(fd)))
        return write(fd, data)

    monkeypatch.setattr(os, "fdatasync", synced)
    monkeypatch.setattr(os, "write", written)
    with Chaos(moto.url) as chaos:
        chaos.add(Refuse("InternalError", where=unpinned))
        refusal = chaos.add(
            Refuse("AccessDenied", where=lambda one: one.headers.find("Range").startswith("bytes=3"))
        )
        assert native.pull(one, endpoint_url=chaos.url).failures == {"1.obj": Failure.REFUSED}
        notes = [at for at, entry in enumerate(order) if entry == ("write", "1.parts")]
        assert notes
        assert all(order[at - 1] == ("sync", "1.part") for at in notes)
        assert all(order[at + 1] == ("sync", "1.parts") for at in notes)
        before = sum(exchange.response_bytes for exchange in chaos.log if exchange.status == 206)
        refusal.remove()

        assert native.pull(one, endpoint_url=chaos.url).failures == {"1.obj": None}
        fetched = sum(exchange.response_bytes for exchange in chaos.log if exchange.status == 206)

    assert native.read() == {"1.obj": body}
    assert fetched == len(body)
    assert before < len(body)


@pytest.mark.usefixtures("small_ranges")
@pytest.mark.parametrize("is_deaf", [False, True], ids=["a server that knows If-Match", "one that does not"])
def test_an_object_that_is_replaced_is_never_mixed(native: Stand, moto: Server, is_deaf: bool) -> None:
    size = 4 * MIB
    moto.fill(native.remote.bucket, {b"key": b"a" * size})
    one = Transfer("1.obj", b"key", size, resumable=True)

    def later(request: Request) -> bool:
        found = bool(request.headers.find("If-Match"))
        if is_deaf:
            request.headers.put("If-Match", None)
        return found

    with Chaos(moto.url) as chaos:
        replace = functools.partial(moto.fill, native.remote.bucket, {b"key": b"b" * size})
        chaos.add(Meanwhile(replace, where=later, nth=1))
        result = native.pull(one, endpoint_url=chaos.url)

    assert result.failures == {"1.obj": Failure.CHANGED}
    assert native.read() == {}


def test_each_body_goes_with_its_md5(native: Stand, moto: Server) -> None:
    small, large = native.write("1.obj", b"x", b"s"), native.write("2.obj", b"y" * 6 * MIB, b"l")
    with Chaos(moto.url) as chaos:
        chaos.add(Refuse("AccessDenied", method="PUT", where=lambda one: not one.headers.find("Content-MD5")))
        transfers = [small, dataclasses.replace(large, part_size=5 * MIB)]
        assert set(native.push(*transfers, endpoint_url=chaos.url).failures.values()) == {None}


def test_of_an_upload_only_parts_that_are_ours_count(native: Stand, moto: Server) -> None:
    """One that an earlier life wrote down, one that it did not come to write down, and one of another."""
    bodies = [os.urandom(5 * MIB) for _ in range(3)]
    one = native.write("1.obj", b"".join(bodies), b"key", part_size=5 * MIB)
    boto = moto.boto()
    place = {"Bucket": native.remote.bucket, "Key": "key"}
    upload_id = boto.create_multipart_upload(**place)["UploadId"]
    etags = [
        boto.upload_part(**place, UploadId=upload_id, PartNumber=n, Body=part)["ETag"].strip('"')
        for n, part in enumerate((bodies[0], bodies[1], b"z" * 5 * MIB), 1)
    ]
    book = Book(Upload(upload_id, 5 * MIB, {1: etags[0]}))

    assert native.push(one, uploads=book).failures == {"1.obj": None}

    assert list(book.parts) == [3]
    assert book.found == 10 * MIB
    assert boto.get_object(**place)["Body"].read() == b"".join(bodies)


@pytest.mark.parametrize("says_done", [True, False], ids=["it says done", "it knows no such upload"])
@pytest.mark.parametrize("cuts", [1, 3], ids=["in one run", "over two"])
def test_an_object_that_the_server_still_puts_together_is_waited_for_and_not_sent_again(
    native: Stand, moto: Server, says_done: bool, cuts: int
) -> None:
    body = os.urandom(11 * MIB)
    one = native.write("1.obj", body, b"key", part_size=5 * MIB)
    book = Book()
    with Chaos(moto.url) as chaos:
        chaos.add(Assembling(cuts, says_done))
        results = [native.push(one, uploads=book, endpoint_url=chaos.url)]
        if cuts > 1:
            assert book.known is not None
            results.append(native.push(one, uploads=book, endpoint_url=chaos.url))
        sent = [exchange.query for exchange in chaos.log if exchange.method in ("PUT", "POST")]

    assert [result.failures["1.obj"] for result in results] == [Failure.ENDPOINT] * (len(results) - 1) + [
        None
    ]
    assert book.known is None
    assert sum("partNumber" in query for query in sent) == 3
    assert sum(query.startswith("uploads") for query in sent) == 1
    assert moto.boto().get_object(Bucket=native.remote.bucket, Key="key")["Body"].read() == body
