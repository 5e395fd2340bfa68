"""Resync from outside: the real daemon, real servers, and buckets that somebody else meddles with."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from s5jtctl.client import Failure
from s5jtd import protocol
from s5jtd.errors import EndpointDown, Exit
from s5jtd.ledger.rearm import Doubt, Found, Known
from s5jtd.ledger.rows import Returned, Staged
from s5jtd.ledger.spool import Spool
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.model import Digests, Evidence, Listed, Side
from s5jtd.stages.findings import ENTRIES_KEPT
from s5jtd.stages.threeway import BrokeOff, Triple, merged
from tests.appliance import WAIT_SECONDS, Appliance, contents, digests, side, until
from tests.chaos import Chaos, Delay, Flip, Header, Listing, Refuse, _followed, _relisted, early_end, unsorted
from tests.chaos import Request as Asked
from tests.impatient import Impatient, ImpatientNursery
from tests.servers import ACCESS_KEY, SECRET_KEY, Server, SnowballLike


@pytest.fixture
def appliance(tmp_path: Path, impatient: ImpatientNursery) -> Iterator[Appliance]:
    with Impatient(tmp_path, impatient, volumes=1) as appliance:
        yield appliance


@pytest.fixture
def chaos(moto: Server) -> Iterator[Chaos]:
    """What stands between the daemon and the destination."""
    with Chaos(moto.url) as chaos:
        yield chaos


def some(count: int, prefix: bytes = b"") -> dict[bytes, bytes]:
    return {b"%s%03d" % (prefix, n): b"bytes of %d" % n * (n + 1) for n in range(count)}


@dataclass
class Scene:
    """A job that has delivered all of its objects, and whose volume is empty again."""

    appliance: Appliance
    server: Server
    here: str
    there: str

    def resync(self, **options: Any) -> Any:
        return self.appliance.ask("job.resync", job="archive", wait=True, **options)

    def overwrite(self, key: bytes, body: bytes) -> None:
        self.server.fill(self.there, {key: body})

    def delete(self, bucket: str, *keys: bytes) -> None:
        for key in keys:
            self.server.boto().delete_object(Bucket=bucket, Key=key.decode())

    def row(self, key: bytes) -> Any:
        return self.appliance.ask("object.explain", job="archive", key=key.decode())

    def problems(self) -> dict[str, str]:
        return {problem["code"]: problem["message"] for problem in self.appliance.status()["problems"]}

    def last(self) -> Any:
        return self.appliance.status()["jobs"][0]["last_resync"]


def delivered(
    appliance: Appliance,
    server: Server,
    objects: dict[bytes, bytes],
    *,
    source: dict[str, Any] | None = None,
    destination: dict[str, Any] | None = None,
    top: dict[str, Any] | None = None,
    **more: Any,
) -> Scene:
    here, there = server.new_bucket(), server.new_bucket()
    server.fill(here, objects)
    job = {
        "name": "archive",
        "source": side(server, here, **(source or {})),
        "destination": side(server, there, **(destination or {})),
        "scan_every": "1h",  # what happens is the resync's doing
        **more,
    }
    appliance.configure(job, **(top or {}))
    appliance.start()
    appliance.settled()
    released(appliance)
    return Scene(appliance, server, here, there)


def released(appliance: Appliance) -> None:
    until(lambda: not appliance.status()["volumes"][0]["staged_bytes"], "the volume to be empty again")


def marks(answer: Any) -> dict[str, str]:
    """Key to mark, of all that is not the same."""
    return {entry["key"]: entry["mark"] for entry in answer["entries"]}


def totals(**numbers: int) -> dict[str, int]:
    names = ("same", "missing", "different", "extra", "errors", "under_way")
    return {name: numbers.get(name, 0) for name in names}


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_each_class_is_told_apart_and_what_is_missing_or_different_arrives_again(
    appliance: Appliance, kind: str, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    objects = some(30)
    scene = delivered(appliance, server, objects)
    scene.delete(scene.there, b"003", b"029")
    scene.overwrite(b"007", b"shorter")
    scene.overwrite(b"011", b"X" * len(objects[b"011"]))
    scene.overwrite(b"more", b"somebody else's")
    scene.delete(scene.here, b"005")
    meddled = contents(server, scene.there)
    server.log.clear()

    dry = scene.resync(dry_run=True)

    expected = {"003": "+", "005": "-", "007": "*", "011": "*", "029": "+", "more": "-"}
    assert expected == marks(dry)
    assert totals(same=25, missing=2, different=2, extra=2) == dry["totals"]
    assert (dry["dry_run"], dry["rearmed"], dry["entries_omitted"]) == (True, 0, 0)
    assert appliance.counted() == {"delivered": 30}
    assert meddled == contents(server, scene.there)
    assert "resync_differences" in scene.problems()

    done = scene.resync()

    assert expected == marks(done)
    assert done["rearmed"] == 4
    # Taken in at most, but never lost from sight.
    assert appliance.settled() == {"delivered": 30}
    extra = digests({b"more": b"somebody else's"})
    assert digests(objects) | extra == contents(server, scene.there)
    sent = [r.key for r in server.log.requests() if r.method == "PUT" and r.kind == "object"]
    assert sorted(sent) == [b"003", b"007", b"011", b"029"]
    assert server.log.count("DELETE") == 0

    released(appliance)
    again = scene.resync()
    assert marks(again) == {"005": "-", "more": "-"}
    assert totals(same=29, extra=2) == again["totals"]
    assert "resync_differences" not in scene.problems()


def test_what_was_delivered_before_and_why_it_travelled_again_stays_on_record(
    appliance: Appliance, moto: Server
) -> None:
    scene = delivered(appliance, moto, {b"k": b"bytes"})
    scene.delete(scene.there, b"k")

    scene.resync()
    appliance.settled()

    story = scene.row(b"k")
    assert [(f["step"], f["code"]) for f in story["failures"]] == [("resync", "destination_missing")]
    deliveries = [line for line in story["story"] if line["what"] == "delivered"]
    assert len(deliveries) == 2
    assert "for the first time, this version" in deliveries[0]["detail"]
    assert story["object"]["delivered_at"] == deliveries[1]["at"] > deliveries[0]["at"]


def test_an_object_that_neither_side_holds_is_an_error_and_is_not_taken_for_missing(
    appliance: Appliance, moto: Server
) -> None:
    scene = delivered(appliance, moto, some(3))
    scene.delete(scene.here, b"001")
    scene.delete(scene.there, b"001")

    answer = scene.resync()

    assert marks(answer) == {"001": "!"}
    assert "neither side" in answer["entries"][0]["detail"]
    assert answer["rearmed"] == 0
    assert appliance.counted() == {"delivered": 3}


def test_what_changed_at_the_destination_and_is_gone_from_the_source_is_told_but_cannot_be_repaired(
    appliance: Appliance, moto: Server
) -> None:
    scene = delivered(appliance, moto, some(3))
    scene.delete(scene.here, b"001", b"002")
    scene.overwrite(b"001", b"other")

    answer = scene.resync()

    assert marks(answer) == {"001": "*", "002": "-"}
    assert answer["rearmed"] == 0


def test_only_what_lies_below_the_prefix_is_compared(appliance: Appliance, moto: Server) -> None:
    objects = some(4, b"in/a/") | some(4, b"in/b/")
    scene = delivered(appliance, moto, objects, source={"prefix": "in/"}, destination={"prefix": "out/"})
    scene.delete(scene.there, b"out/a/001", b"out/b/001")
    scene.overwrite(b"out/a/zzz", b"extra")
    scene.overwrite(b"elsewhere", b"not ours to look at")

    answer = scene.resync(prefix="in/a/")

    assert marks(answer) == {"in/a/001": "+", "in/a/zzz": "-"}
    assert totals(same=3, missing=1, extra=1) == answer["totals"]
    assert appliance.settled() == {"delivered": 8}
    assert b"out/a/001" in contents(moto, scene.there)
    assert b"out/b/001" not in contents(moto, scene.there)
    assert marks(scene.resync(prefix="in")) == {"in/b/001": "+", "in/a/zzz": "-"}
    with pytest.raises(Failure) as refused:
        scene.resync(prefix="other/")
    assert refused.value.exit_code == Exit.USAGE
    assert "in/" in refused.value.hint


def test_what_the_ledger_does_not_know_is_taken_in_as_found_or_to_travel(
    appliance: Appliance, moto: Server
) -> None:
    scene = delivered(appliance, moto, some(2))
    appliance.ask("job.pause", job="archive")
    moto.fill(scene.here, {b"both": b"same", b"here": b"only", b"other": b"this", b"new\nline": b"x"})
    moto.fill(scene.there, {b"both": b"same", b"other": b"that"})

    answer = scene.resync()

    assert marks(answer) == {"here": "+", "other": "*", "new\nline": "+"}
    assert totals(same=3, missing=2, different=1) == answer["totals"]
    assert answer["rearmed"] == 3
    assert appliance.counted() == {"delivered": 3, "seen": 3}
    assert scene.row(b"both")["object"]["push_evidence"] == "etag"
    assert totals(same=3, under_way=3) == scene.resync()["totals"]


def test_what_is_on_its_way_is_left_alone_and_counted_apart(appliance: Appliance, moto: Server) -> None:
    scene = delivered(appliance, moto, some(3))
    appliance.ask("job.pause", job="archive", side="destination")
    moto.fill(scene.here, some(5, b"new/"))
    appliance.ask("job.scan", job="archive", wait=True)
    until(lambda: appliance.counted() == {"delivered": 3, "staged": 5}, "the new ones on a volume")

    answer = scene.resync()

    assert totals(same=3, under_way=5) == answer["totals"]
    assert (answer["entries"], answer["rearmed"]) == ([], 0)
    assert appliance.counted() == {"delivered": 3, "staged": 5}


def test_a_parked_object_stays_parked_unless_both_sides_prove_to_hold_it(
    appliance: Appliance, moto: Server
) -> None:
    large = {key: key * 100_000 for key in (b"a", b"b", b"c")}
    scene = delivered(appliance, moto, some(1) | large, top={"limits": {"largest_object": "50KiB"}})
    assert appliance.counted() == {"delivered": 1, "parked": 3}
    moto.fill(scene.there, {b"a": large[b"a"], b"b": b"X"})

    answer = scene.resync()

    assert marks(answer) == {"b": "*", "c": "+"}
    assert all("parked: " in entry["detail"] for entry in answer["entries"])
    assert appliance.counted() == {"delivered": 2, "parked": 2}
    assert "resync_differences" not in scene.problems()


def half(page: bytes, request: Asked) -> bytes:
    """The first half of a page, and the promise of more."""
    return _followed(_relisted(page, lambda entries: entries[: len(entries) // 2]), b"more")


def goes_on(request: Asked) -> bool:
    """Whether a listing is asked for from somewhere in the middle."""
    return any(word in request.target for word in ("continuation-token=", "start-after="))


@pytest.mark.parametrize("broken", ["source", "destination"])
def test_beyond_the_end_of_a_listing_that_breaks_off_nothing_is_said_and_nothing_done(
    appliance: Appliance, moto: Server, chaos: Chaos, broken: str
) -> None:
    objects = some(20)
    scene = delivered(appliance, moto, objects, **{broken: {"url": chaos.url}})
    scene.delete(scene.there, b"003", b"013")
    scene.overwrite(b"zzz", b"extra")
    chaos.add(Refuse("InternalError", method="GET", key=b"", where=goes_on))
    chaos.add(Listing(half))

    answer = scene.resync()

    inside, error = answer["entries"]
    # Asked when its endpoint had failed too often, it may not have been heard either: but no more than that.
    unheard = broken == "destination" and inside["mark"] == "!"
    assert inside["key"] == "003"
    assert inside["mark"] == ("!" if unheard else "+")
    assert ("!", broken) == (error["mark"], error["detail"].split()[1])
    assert error["key"] in ("009", "010")
    assert answer["totals"]["extra"] == 0
    assert answer["rearmed"] == int(not unheard)
    assert not scene.last()["complete"]
    chaos.clear()

    def whole() -> dict[str, str] | None:
        """What a resync says once the endpoint's failures are far enough behind."""
        again = scene.resync(dry_run=True)
        return None if again["totals"]["errors"] else marks(again)

    assert {"013": "+", "zzz": "-"}.items() <= until(whole, "a resync that hears everything").items()


def test_a_destination_that_cannot_be_listed_at_all_proves_nothing(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    scene = delivered(appliance, moto, some(5), destination={"url": chaos.url})
    chaos.add(Refuse("AccessDenied", method="GET", key=b""))

    answer = scene.resync()

    assert totals(errors=1) == answer["totals"]
    assert appliance.counted() == {"delivered": 5}


def test_a_listing_that_was_cut_goes_on_behind_its_last_key(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    scene = delivered(appliance, moto, some(20), destination={"url": chaos.url})
    scene.delete(scene.there, b"003", b"013")
    chaos.add(Refuse("SlowDown", method="GET", key=b"", where=goes_on, nth=1))
    chaos.add(Listing(half, nth=1))

    answer = scene.resync()

    assert marks(answer) == {"003": "+", "013": "+"}
    assert totals(same=18, missing=2) == answer["totals"]
    assert scene.last()["complete"]
    assert any("start-after=0" in exchange.query for exchange in chaos.log)


def test_a_listing_that_lies_about_its_end_makes_nothing_travel_again(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    scene = delivered(appliance, moto, some(20), destination={"url": chaos.url})
    scene.delete(scene.there, b"017")
    chaos.add(Listing(early_end))

    answer = scene.resync()

    assert marks(answer) == {"017": "+"}
    assert answer["rearmed"] == 1


def test_deep_reads_what_a_true_etag_hides_and_sends_it_again(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    """The destination's disk rotted: it still tells the ETag of what it once received."""
    scene = delivered(appliance, moto, some(6), destination={"url": chaos.url})
    rot = chaos.add(Flip(method="GET", key=b"004", at=3))
    assert totals(same=6) == scene.resync()["totals"]

    answer = scene.resync(deep=True, dry_run=True)

    assert marks(answer) == {"004": "*"}
    assert "read back" in answer["entries"][0]["detail"]
    rot.remove()
    chaos.add(Flip(method="GET", key=b"004", at=3, nth=1))
    moto.log.clear()
    assert scene.resync(deep=True)["rearmed"] == 1
    assert appliance.settled() == {"delivered": 6}
    # Its ETag says that it is there already, and that is not believed a second time.
    assert moto.log.count("PUT", b"004") == 1
    assert scene.problems().keys() >= {"resync_differences"}
    released(appliance)
    assert totals(same=6) == scene.resync()["totals"]
    assert "resync_differences" in scene.problems(), "a shallow look does not answer what a deep one asked"
    assert totals(same=6) == scene.resync(deep=True)["totals"]
    assert "resync_differences" not in scene.problems()


def test_deep_believes_a_checksum_of_the_whole_and_reads_nothing_then(
    appliance: Appliance, moto: Server
) -> None:
    objects = some(4)
    scene = delivered(appliance, moto, {})
    appliance.ask("job.pause", job="archive")
    boto = moto.boto()
    for key, body in objects.items():
        for bucket, sent in ((scene.here, body), (scene.there, body.swapcase() if key == b"002" else body)):
            boto.put_object(Bucket=bucket, Key=key.decode(), Body=sent, ChecksumAlgorithm="SHA256")
    moto.log.clear()

    answer = scene.resync(deep=True, dry_run=True)

    assert marks(answer) == {"002": "*"}
    assert moto.log.count("GET") == 0


def no_etags(page: bytes, request: Asked) -> bytes:
    return re.sub(rb"<ETag>.*?</ETag>", b"", page)


def test_without_etags_only_deep_can_compare_and_it_reads_both_sides_where_it_must(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    objects = some(5)
    chaos.add(Listing(no_etags))
    chaos.add(Header("ETag", None, method="GET HEAD"))
    scene = delivered(
        appliance, moto, objects, source={"url": chaos.url}, destination={"url": chaos.url}
    )  # fmt: skip
    assert appliance.counted() == {"delivered": 5}

    shallow = scene.resync()

    assert totals(errors=5) == shallow["totals"]
    assert "--deep" in shallow["entries"][0]["detail"]
    scene.overwrite(b"002", b"X" * len(objects[b"002"]))
    # One that never was on a volume: there is nothing to compare with but the source itself.
    appliance.ask("job.pause", job="archive")
    moto.fill(scene.here, {b"new": b"abc"})
    moto.fill(scene.there, {b"new": b"abd"})
    deep = scene.resync(deep=True)
    assert marks(deep) == {"002": "*", "new": "*"}
    assert totals(same=4, different=2) == deep["totals"]
    appliance.ask("job.resume", job="archive")
    assert appliance.settled() == {"delivered": 6}
    assert digests(objects | {b"new": b"abc"}) == contents(moto, scene.there)


def test_a_job_that_is_content_with_sizes_takes_them_for_the_same(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    chaos.add(Listing(no_etags))
    chaos.add(Header("ETag", None, method="GET HEAD"))
    scene = delivered(
        appliance, moto, some(5), destination={"url": chaos.url}, evidence={"minimum": "size"}
    )  # fmt: skip
    scene.overwrite(b"002", b"shorter")

    answer = scene.resync()

    assert marks(answer) == {"002": "*"}
    assert totals(same=4, different=1) == answer["totals"]


def test_servers_that_list_in_no_order_are_compared_as_exactly(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    objects = {b"%02d" % (n * 37 % 60): b"body %d" % n for n in range(60)}
    chaos.add(Listing(unsorted))
    there = moto.new_bucket()
    with SnowballLike(objects) as snowball:
        job = {
            "name": "archive",
            "source": {
                "bucket": "bucket", "endpoints": [snowball.url],
                "credentials": {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY},
            },
            "destination": side(moto, there, url=chaos.url),
            "scan_every": "1h",
            "evidence": {"minimum": "size"},
        }  # fmt: skip
        appliance.configure(job)
        appliance.start()
        assert appliance.settled() == {"delivered": 60}
        released(appliance)
        scene = Scene(appliance, moto, "", there)
        scene.delete(there, b"11", b"42")
        scene.overwrite(b"50", b"X")
        scene.overwrite(b"70", b"extra")

        answer = scene.resync(dry_run=True)

    assert marks(answer) == {"11": "+", "42": "+", "50": "*", "70": "-"}
    assert totals(same=57, missing=2, different=1, extra=1) == answer["totals"]


def ask_and_leave(appliance: Appliance, count: int) -> None:
    """So many clients ask for a resync, wait for its end, and are gone before it comes."""
    line = protocol.encode(
        {"jsonrpc": "2.0", "id": 1, "method": "job.resync", "params": {"job": "archive", "wait": True}}
    )
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(appliance.socket))
            client.sendall(line)


def test_others_are_served_meanwhile_and_a_second_resync_says_that_there_is_one(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    scene = delivered(appliance, moto, some(5), destination={"url": chaos.url})
    scene.delete(scene.there, b"001")
    slow = chaos.add(Delay(600, method="GET", key=b""))

    assert appliance.ask("job.resync", job="archive")["result"] == "resync_started"

    second = appliance.ask("job.resync", job="archive", deep=True)
    assert (second["result"], second["totals"], second["rearmed"]) == ("already_resyncing", None, None)
    with pytest.raises(Failure) as busy:
        scene.resync(prefix="0")
    assert busy.value.exit_code == Exit.BUSY
    for _ in range(3):  # more of them than the socket serves at a time
        ask_and_leave(appliance, 40)
        time.sleep(0.5)
    assert scene.last()["finished_at"] is None
    assert "compared" in said(appliance, "status").stdout
    slow.remove()
    chaos.pause()
    chaos.resume()
    until(lambda: scene.last()["finished_at"], "the end of the resync that nobody waits for")
    assert totals(same=4, missing=1) == scene.last()["totals"]


def said(appliance: Appliance, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "s5jtctl", "--socket", str(appliance.socket), *arguments],
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip


def test_the_daemon_ends_in_the_middle_of_a_resync_and_says_so_to_who_waits(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    objects = some(300)
    scene = delivered(appliance, moto, objects, destination={"url": chaos.url})
    scene.delete(scene.there, *objects)
    chaos.add(Delay(4.0, method="HEAD"))
    before = len(chaos.log)
    with ThreadPoolExecutor(1) as waiting:
        answer = waiting.submit(scene.resync)
        chaos.wait_until(
            lambda: any(exchange.method == "HEAD" for exchange in chaos.log[before:]), WAIT_SECONDS
        )

        started = time.monotonic()
        assert appliance.stop() == 0

        assert time.monotonic() - started < 30
        last = answer.result(10)["entries"][-1]
    assert (last["mark"], last["detail"]) == ("!", "it ends here: the daemon is stopping")


def test_the_client_shows_marks_and_totals_and_says_by_its_exit_code_what_was_found(
    appliance: Appliance, moto: Server
) -> None:
    scene = delivered(appliance, moto, some(3))
    assert said(appliance, "resync", "archive", "--wait").returncode == 0
    scene.delete(scene.there, b"000")
    scene.overwrite(b"002", b"x")

    shown = said(appliance, "resync", "archive", "--wait", "--dry-run")

    assert shown.returncode == Exit.MISMATCH
    assert shown.stdout == (
        "+ 000  (delivered, and no longer there)\n"
        f"* 002  ({len(some(3)[b'002'])} bytes at the source, 1 at the destination)\n\n"
        "= 1 same\n+ 1 missing at the destination\n* 1 different\n"
        "- 0 only at the destination\n! 0 could not be compared\n"
        "dry run: nothing was changed\n"
    )
    status = said(appliance, "status").stdout
    assert "3 compared, 1 missing, 1 different" in status
    assert "2 delivered objects are not at the destination as delivered" in status


def test_more_differences_than_one_answer_holds_are_counted_and_none_hides_another_kind(
    appliance: Appliance, moto: Server
) -> None:
    scene = delivered(appliance, moto, some(2))
    moto.fill(scene.there, {b"extra/%04d" % n: b"" for n in range(ENTRIES_KEPT + 20)} | {b"001": b"other"})

    answer = scene.resync(dry_run=True)

    assert answer["totals"]["extra"] == ENTRIES_KEPT + 20
    assert (answer["entries_omitted"], answer["entries"][0]["mark"]) == (20, "*")


# Parts of it


def listed(key: bytes, etag: str = "e", size: int = 10) -> Listed:
    return Listed(key, size, etag, 1)


class Books:
    """A ledger with one job, whose objects are delivered."""

    def __init__(self, path: Path, *keys: bytes) -> None:
        self.ledger = Ledger(path / "ledger.db")
        self.job = self.ledger.enrol_job("archive", "s3://a/", "s3://b/")
        self.take_in(dict.fromkeys(keys, ("d", Evidence.ETAG)), *keys)

    def take_in(self, found: dict[bytes, tuple[str, Evidence]], *keys: bytes) -> None:
        self.ledger.admit(
            self.job, self.ledger.begin_pass(self.job), [listed(key) for key in keys], found, {}
        )

    def rows(self, prefix: bytes = b"") -> list[Known]:
        return list(self.ledger.views.known(self.job, prefix))

    def counted(self) -> dict[str, tuple[int, int]]:
        objects, sizes = self.ledger.views.counters(self.job)
        return {word: (objects[word], sizes[word]) for word in objects if objects[word] or sizes[word]}


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path, b"a", b"b", b"c")
    yield books
    books.ledger.close()


def test_a_row_that_moved_on_since_it_was_compared_is_left_alone(books: Books) -> None:
    a, b, c = books.rows()
    stale = b._replace(since_ms=b.since_ms - 1)
    aboard = c._replace(aboard=1)
    doubts = [Doubt(row, listed(row.key, "new", 25), "code", "why") for row in (a, stale, aboard)]

    assert books.ledger.settle_resync(books.job, doubts, [], []) == 1

    assert books.counted() == {"delivered": (2, 20), "seen": (1, 25)}
    assert books.ledger.settle_resync(books.job, doubts, [], []) == 0


def test_unknown_objects_are_taken_in_once_whoever_comes_first(books: Books) -> None:
    fresh = [listed(b"b"), listed(b"d")]

    assert (
        books.ledger.settle_resync(books.job, [], fresh, [Found(None, listed(b"e"), "x", Evidence.ETAG)]) == 1
    )

    assert books.counted() == {"delivered": (4, 40), "seen": (1, 10)}


def test_what_is_found_of_a_parked_object_may_leave_its_volume(books: Books) -> None:
    ledger = books.ledger
    books.take_in({}, b"d")
    volume = ledger.enrol_volume("uuid", "vol", "/mnt/1", 1).id
    items = ledger.views.candidates(books.job, 10)
    ledger.plan(books.job, volume, items, 4096)
    chunk = ledger.take_pull(volume)
    assert chunk is not None
    staged = [Staged(item, Digests(item.size, "AAAAAAAAAAA="), Evidence.ETAG, None) for item in items]
    ledger.settle_pull(chunk, staged, [], None)
    taken = ledger.take_push(volume, [books.job])
    assert taken is not None
    ledger.settle_push(taken[0], [], [Returned(taken[1][0], State.PARKED, "code", "why")], None)
    assert ledger.views.releasable(volume) is None

    found = Found(books.rows(b"d")[0], listed(b"d"), "x", Evidence.CHECKSUM)
    assert ledger.settle_resync(books.job, [], [], [found]) == 0

    assert books.counted() == {"delivered": (4, 40)}
    releasable = ledger.views.releasable(volume)
    assert releasable is not None
    assert releasable.id == chunk.id


def test_rows_come_in_key_order_below_their_prefix_however_many_pages_they_fill(tmp_path: Path) -> None:
    keys = [b"%s/%05d" % (prefix, n) for prefix in (b"a", b"b", b"c") for n in range(1500)]
    books = Books(tmp_path, *keys)
    try:
        assert keys == [row.key for row in books.rows()]
        assert keys[1500:3000] == [row.key for row in books.rows(b"b/")]
        assert books.rows(b"bb") == []
    finally:
        books.ledger.close()


def test_a_merge_shows_every_key_once_and_all_of_them_up_to_where_a_side_breaks_off() -> None:
    def breaks_off(*keys: bytes) -> Iterator[Listed]:
        yield from map(listed, keys)
        raise BrokeOff(Side.SOURCE, EndpointDown("gone"))

    seen: list[Triple] = []
    triples = merged(breaks_off(b"b", b"d"), map(listed, [b"a", b"d", b"e", b"z"]), iter(()))
    with pytest.raises(BrokeOff):
        seen.extend(triples)

    found = [(one.key, one.source is not None, one.destination is not None) for one in seen]
    assert found == [(b"a", False, True), (b"b", True, False), (b"d", True, True)]


def test_a_spool_gives_each_key_once_in_order_as_it_was_listed_last() -> None:
    with Spool() as spool:
        spool.add([listed(b"b"), listed(b"\xff"), listed(b"a", "old")])
        spool.add([listed(b"a", "new"), listed(b"a\x00")])

        shown = [(one.key, one.etag) for one in spool.ordered()]

    assert shown == [(b"a", "new"), (b"a\x00", "e"), (b"b", "e"), (b"\xff", "e")]
