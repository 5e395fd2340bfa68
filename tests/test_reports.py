"""Run reports: what they tell and when, through the real daemon; that nothing is told twice, on a ledger."""

from __future__ import annotations

import gzip
import json
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from s5jtctl.client import Failure
from s5jtd.errors import Exit, UsageError
from s5jtd.ledger.database import Database
from s5jtd.ledger.forget import forget_job
from s5jtd.ledger.passes import OpenPass, Passes
from s5jtd.ledger.rows import Delivered, Returned, Staged
from s5jtd.ledger.schema import migrations
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.upkeep import trim
from s5jtd.model import Digests, Evidence, Listed
from s5jtd.problems import Problems
from s5jtd.reports import folder as folders
from s5jtd.reports.folder import ReportFolder
from s5jtd.reports.run import DAILY_SECONDS, Reporter
from tests.appliance import Appliance, side, some_objects, until
from tests.chaos import Bandwidth, Chaos, Flip, Stall
from tests.servers import Server

Report = dict[str, Any]


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path) as appliance:
        yield appliance


@pytest.fixture
def chaos(moto: Server) -> Iterator[Chaos]:
    """Faults before moto."""
    with Chaos(moto.url) as chaos:
        yield chaos


def job(source: dict[str, Any], destination: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": "archive", "source": source, "destination": destination, **more}


def reports(appliance: Appliance) -> list[Report]:
    """The files as they lie there, the oldest first; with their objects."""
    found = []
    for path in sorted((appliance.folder / "state" / "reports").glob("*.json")):
        report = json.loads(path.read_text())
        assert str(report["id"]) == path.stem
        if "objects_file" in report:
            lines = gzip.decompress((path.parent / report["objects_file"]).read_bytes()).splitlines()
            report["objects"] = [json.loads(line) for line in lines]
        found.append(report)
    return found


def arrived(told: list[Report]) -> Counter[str]:
    """How often each key was told to be delivered."""
    return Counter(one["key"] for report in told for one in report["objects"] if one["delivered_at"])


# Through the real daemon


def test_a_pass_that_moved_everything_is_a_success_and_says_how(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(20)
    moto.fill(here, objects)
    appliance.configure(job(side(moto, here, prefix="missions/"), side(moto, there, prefix="site-7/")))
    began = time.time()

    assert appliance.once() == Exit.DONE, appliance.log()

    (report,) = reports(appliance)
    size = sum(map(len, objects.values()))
    assert report["status"] == "success"
    assert (report["tool"], report["engine"], report["job"]) == ("s5jtd", "s5cmd", "archive")
    assert report["source"] == f"s3://{here}/missions/"
    assert report["destination"] == f"s3://{there}/site-7/"
    assert (report["s3_objects"], report["files_synced"], report["bytes_transferred"]) == (20, 20, size)
    assert report["source_size"] == f"{size / 1024:.0f}KiB"
    assert [report[name] for name in ("skipped", "failed", "parked", "retried", "found", "gone", "left")] == [
        0
    ] * 7
    assert report["evidence"] == {"checksum": 0, "etag": 20, "readback": 0, "size": 0}
    assert report["checksum_verification"] == {
        "enabled": True, "algorithm": "CRC64NVME", "verified": True, "errors": 0,
    }  # fmt: skip
    assert report["endpoints"] == [moto.url]
    assert set(report["volumes"]) <= {"volume-1", "volume-2"}
    assert 0 < report["duration_seconds"] < time.time() - began
    megabytes_per_second = size / 1e6 / report["duration_seconds"]
    assert report["throughput_mbps"] == pytest.approx(megabytes_per_second, abs=0.001)
    assert began - 1 < report["id"] < time.time()
    assert {one["key"]: one["size_bytes"] for one in report["objects"]} == {
        key.decode(): len(body) for key, body in objects.items()
    }
    for one in report["objects"]:
        assert (one["evidence"], one["endpoint"], one["error"]) == ("etag", moto.url, None)
        assert one["pulled_at"] <= one["delivered_at"]
        assert 0 < one["seconds"] < 60


def test_a_single_pass_is_told_even_where_there_was_nothing_to_do(appliance: Appliance, moto: Server) -> None:
    here = moto.new_bucket()
    moto.fill(here, {b"a": b"1", b"b": b"2"})
    appliance.configure(job(side(moto, here), side(moto, moto.new_bucket())))
    assert appliance.once() == Exit.DONE

    assert appliance.once() == Exit.DONE

    first, second = reports(appliance)
    assert (first["files_synced"], first["skipped"]) == (2, 0)
    assert (second["files_synced"], second["skipped"], second["status"]) == (0, 2, "success")
    assert first["pass"] < second["pass"]


def test_looks_that_show_nothing_new_are_not_told(appliance: Appliance, moto: Server) -> None:
    here = moto.new_bucket()
    moto.fill(here, {b"a": b"1"})
    appliance.configure(job(side(moto, here), side(moto, moto.new_bucket()), scan_every="1h"))
    appliance.start()
    until(lambda: reports(appliance), "the first report")

    for _ in range(3):
        appliance.ask("job.scan", job="archive", wait=True)
    moto.fill(here, {b"b": b"2"})
    last = appliance.ask("job.scan", job="archive", wait=True)["pass"]

    until(lambda: len(reports(appliance)) == 2, "the second report")
    first, second = reports(appliance)
    assert second["pass"] == last == first["pass"] + 4
    assert (second["files_synced"], second["skipped"], second["s3_objects"]) == (1, 1, 2)


def test_what_the_destination_holds_already_is_found_and_not_moved(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(10)
    moto.fill(here, objects)
    moto.fill(there, dict(list(objects.items())[::2]))
    appliance.configure(job(side(moto, here), side(moto, there)))

    assert appliance.once() == Exit.DONE

    (report,) = reports(appliance)
    assert (report["files_synced"], report["found"], report["skipped"], report["s3_objects"]) == (5, 5, 5, 10)
    assert report["status"] == "success"
    assert len(report["objects"]) == 5


def test_parked_objects_make_a_pass_partial_and_a_retry_is_told_by_itself(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    """One name would be too long, another object arrives damaged each time; both say why."""
    here, there, long = moto.new_bucket(), moto.new_bucket(), "k" * 1024
    moto.fill(here, {b"good": b"1" * 100, long.encode(): b"", b"poison": b"2" * 100})
    chaos.add(Flip(method="GET", key="poison"))
    sides = side(moto, here, url=chaos.url), side(moto, there, "below/")
    appliance.configure(job(*sides, attempts=1, scan_every="1h"))
    appliance.start()

    (report,) = until(lambda: reports(appliance), "the report")

    assert (report["status"], report["files_synced"], report["parked"], report["failed"]) == (
        "partial",
        1,
        2,
        0,
    )
    assert report["checksum_verification"]["errors"] == 1
    assert report["checksum_verification"]["verified"] is False
    by_key = {one["key"]: one for one in report["objects"]}
    assert by_key.keys() == {"good", long, "poison"}
    assert by_key["poison"]["error"].startswith("source_mismatch: ")
    assert "1030 bytes" in by_key[long]["error"]
    for key in ("poison", long):
        assert by_key[key]["delivered_at"] is by_key[key]["evidence"] is by_key[key]["seconds"] is None

    chaos.clear()
    assert appliance.ask("object.retry", job="archive", key="poison") == {"retried": 1}
    _, again = until(lambda: len(reports(appliance)) == 2 and reports(appliance), "the report of the retry")
    assert (again["status"], again["files_synced"], again["parked"]) == ("success", 1, 0)
    assert [one["key"] for one in again["objects"]] == ["poison"]
    assert again["duration_seconds"] < 30


def test_an_object_that_arrives_at_the_second_attempt_is_retried_and_its_damage_counted(
    appliance: Appliance, moto: Server, chaos: Chaos
) -> None:
    here = moto.new_bucket()
    moto.fill(here, {b"good": b"1" * 100, b"shaky": b"2" * 100})
    chaos.add(Flip(method="GET", key="shaky", nth=1))
    appliance.configure(job(side(moto, here, url=chaos.url), side(moto, moto.new_bucket())))

    assert appliance.once() == Exit.DONE, appliance.log()

    (report,) = reports(appliance)
    assert (report["status"], report["files_synced"], report["retried"]) == ("success", 2, 1)
    assert report["checksum_verification"] == {
        "enabled": True, "algorithm": "CRC64NVME", "verified": True, "errors": 1,
    }  # fmt: skip


def test_a_source_that_stays_dead_is_told_once(appliance: Appliance, moto: Server) -> None:
    dead = side(moto, "nowhere", url="http://127.0.0.1:9")
    appliance.configure(job(dead, side(moto, moto.new_bucket()), scan_every="1h"))
    appliance.start()
    until(lambda: reports(appliance), "the report")

    with pytest.raises(Failure, match="the look at the source failed"):
        appliance.ask("job.scan", job="archive", wait=True)
    appliance.stop()
    appliance.start()
    until(lambda: appliance.status()["jobs"][0]["state"] == "blocked", "the next look")
    appliance.stop()

    (report,) = reports(appliance)
    assert (report["status"], report["files_synced"], report["s3_objects"]) == ("failed", 0, 0)
    assert "127.0.0.1:9" in report["error"]
    assert report["objects"] == []


def test_a_single_pass_with_a_dead_destination_ends_in_a_failed_report(
    appliance: Appliance, moto: Server
) -> None:
    here = moto.new_bucket()
    moto.fill(here, {b"a": b"1", b"b": b"2"})
    appliance.configure(job(side(moto, here), side(moto, "nowhere", url="http://127.0.0.1:9")))

    assert appliance.once() == Exit.TEMPORARY

    (report,) = reports(appliance)
    assert (report["status"], report["left"], report["parked"], report["files_synced"]) == ("failed", 2, 0, 0)
    assert report["error"] is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_pass_that_was_cut_is_told_as_interrupted_and_nothing_is_told_twice(
    appliance: Appliance, moto: Server, chaos: Chaos, number: signal.Signals
) -> None:
    """At the stop, where there is time for it, else at the next start; then the same pass goes on."""
    here = moto.new_bucket()
    objects = some_objects(300)
    held_up = "missions/0001.dat"  # so its chunk is being pulled when the end comes
    moto.fill(here, objects)
    chaos.add(Bandwidth(400_000))
    chaos.add(Stall(after=0, method="GET", key=held_up))
    appliance.configure(
        job(
            side(moto, here, url=chaos.url),
            side(moto, moto.new_bucket(), url=chaos.url),
            chunk={"objects": 30},
            scan_every="1h",
        )
    )
    appliance.start()
    until(lambda: appliance.counted().get("delivered", 0) >= 30, "the first deliveries")
    appliance.stop(number)
    at_stop = reports(appliance)
    chaos.clear()

    appliance.start()
    assert appliance.settled() == {"delivered": 300}
    until(lambda: sum(report["files_synced"] for report in reports(appliance)) == 300, "the last report")

    told = reports(appliance)
    assert len(at_stop) == (1 if number == signal.SIGTERM else 0)
    cut, *rest = told
    assert cut["status"] == "interrupted"
    assert 30 <= cut["files_synced"] < 300
    assert cut["left"] == 300 - cut["files_synced"]
    # What was cut in mid-pull or in mid-push did not fail.
    assert (cut["failed"], rest[-1]["retried"]) == (0, 0)
    assert rest[-1]["status"] == "success"
    assert rest[-1]["left"] == 0
    assert {report["pass"] for report in told if report["files_synced"]} == {cut["pass"]}
    assert arrived(told) == Counter(key.decode() for key in objects)

    story = appliance.ask("object.explain", job="archive", key=held_up)["story"]
    assert "failed" not in {line["what"] for line in story}
    (interrupted,) = [line["detail"] for line in story if line["what"] == "interrupted"]
    assert interrupted.startswith("pull ")


def test_a_long_list_lies_beside_the_report_and_is_read_in_pages(
    appliance: Appliance, rclone: Server
) -> None:
    here = rclone.new_bucket()
    objects = {b"k/%05d" % number: b"" for number in range(1050)}
    rclone.fill(here, objects)
    appliance.configure(job(side(rclone, here), side(rclone, rclone.new_bucket())))
    assert appliance.once() == Exit.DONE, appliance.log()

    (report,) = reports(appliance)

    assert report["objects_file"] == f"{report['id']}.objects.jsonl.gz"
    assert '"objects"' not in (appliance.folder / f"state/reports/{report['id']}.json").read_text()
    assert arrived([report]) == Counter(key.decode() for key in objects)

    appliance.start()
    pages: list[list[Report]] = []
    after: str | None = None
    while True:
        page = appliance.ask("report.get", id=report["id"], objects=True, limit=500, after=after)
        pages.append(page["objects"])
        if (after := page["next"]) is None:
            break
    assert [len(page) for page in pages] == [500, 500, 50]
    assert [one for page in pages for one in page] == report["objects"]
    assert "objects" not in appliance.ask("report.get", id=report["id"])
    for wrong in ("7.0", "0.9999999", "999999999.0", "x", "../0", "-1.0"):
        with pytest.raises(Failure) as refused:
            appliance.ask("report.get", id=report["id"], objects=True, after=wrong)
        assert refused.value.code == "usage", wrong


def test_the_client_lists_and_shows_reports(appliance: Appliance, moto: Server) -> None:
    here = moto.new_bucket()
    moto.fill(here, some_objects(5))
    appliance.configure(job(side(moto, here), side(moto, moto.new_bucket()), scan_every="1h"))
    appliance.start()
    (report,) = until(lambda: reports(appliance), "the report")

    def ctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "s5jtctl", "--socket", str(appliance.socket), "reports", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert f"success  {report['id']}      5" in ctl().stdout
    assert "files_synced           5" in ctl("latest", "archive").stdout
    shown = ctl("show", str(report["id"]), "--objects", "--limit", "2")
    assert [line.split()[-1] for line in shown.stdout.splitlines()[-2:]] == [
        "missions/0000.dat",
        "missions/0001.dat",
    ]
    assert shown.stderr == f"there are more: s5jtctl reports show {report['id']} --objects --after 0.2\n"
    as_json = json.loads(ctl("show", str(report["id"]), "--objects", "--json").stdout)
    assert as_json == {**report, "next": None}
    assert ctl("show", "17").returncode == Exit.USAGE
    assert "list the reports: s5jtctl reports" in ctl("show", "17").stderr
    assert ctl("list", "no-such-job").returncode == Exit.USAGE


def test_old_reports_go_when_a_delivery_vouches_for_the_clock(appliance: Appliance, moto: Server) -> None:
    here = moto.new_bucket()
    appliance.configure(job(side(moto, here), side(moto, moto.new_bucket())), reports={"keep": "1d"})
    folder = appliance.folder / "state" / "reports"
    folder.mkdir(parents=True)
    now = int(time.time())
    old, young = now - 2 * 86_400, now - 3600
    for epoch in (old, young):
        (folder / f"{epoch}.json").write_text("{}")
        (folder / f"{epoch}.objects.jsonl.gz").write_bytes(b"")
    (folder / "somebody's notes.txt").write_text("not ours")

    assert appliance.once() == Exit.DONE
    assert (folder / f"{old}.json").exists()

    moto.fill(here, {b"a": b"1"})
    assert appliance.once() == Exit.DONE
    names = {path.name for path in folder.iterdir()}
    assert not {f"{old}.json", f"{old}.objects.jsonl.gz"} & names
    assert {f"{young}.json", f"{young}.objects.jsonl.gz", "somebody's notes.txt"} < names


# On a ledger alone


@dataclass
class Desk:
    """A ledger, its reports and nothing that moves by itself."""

    path: Path
    once: bool = False
    problems: Problems = field(default_factory=Problems)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.path / "ledger.db")
        self.passes = Passes(self.ledger.database)
        self.folder = ReportFolder(self.path / "reports")
        self.job = self.ledger.enrol_job("archive", "s3://a/", "s3://b/")
        self.volume = self.ledger.enrol_volume("uuid-1", "vol1", "/mnt/1", 1).id
        self.reporter = Reporter(
            self.passes, self.folder, self.problems,
            engine="s5cmd", keep_seconds=lambda: 86_400.0, once=self.once,
        )  # fmt: skip
        self.reporter.recover()

    def again(self) -> Desk:
        """The next life."""
        self.ledger.close()
        return Desk(self.path, self.once, self.problems)

    def see(self, *keys: bytes, etag: str = "e", error: str | None = None) -> int:
        look = self.ledger.begin_pass(self.job)
        self.admit(look, *keys, etag=etag)
        self.ledger.end_pass(look, listed=len(keys), listed_bytes=10 * len(keys), error=error)
        return look

    def admit(self, look: int, *keys: bytes, etag: str = "e") -> None:
        listed = [Listed(key, 10, etag, 1) for key in sorted(keys)]
        fresh = self.ledger.views.fresh(self.job, listed, ascending=True)
        self.ledger.admit(self.job, look, fresh, {}, {})

    def stage(self, limit: int = 1000, evidence: Evidence = Evidence.ETAG) -> None:
        items = self.ledger.views.candidates(self.job, limit)
        self.ledger.plan(self.job, self.volume, items, 4096)
        chunk = self.ledger.take_pull(self.volume)
        assert chunk is not None
        items = self.ledger.views.pulling(chunk.id)
        digests = Digests(10, "AAAAAAAAAAA=")
        staged = [Staged(item, digests, evidence, None) for item in items]
        self.ledger.settle_pull(chunk, staged, [], "http://s")

    def push(self, evidence: Evidence = Evidence.ETAG, endpoint: str = "http://d") -> None:
        taken = self.ledger.take_push(self.volume, [self.job])
        assert taken is not None
        chunk, items = taken
        self.ledger.settle_push(chunk, [Delivered(item, "d", evidence) for item in items], [], endpoint)
        self.ledger.released(chunk, items, folder_gone=True)

    def deliver(self, limit: int = 1000) -> None:
        self.stage(limit)
        self.push()

    def tell(self) -> list[Report]:
        """Every report there is once the reporter has had its turn, the oldest first."""
        self.reporter.step(lambda: None)
        return self.told()

    def told(self) -> list[Report]:
        epochs = sorted(self.folder.epochs())
        return [
            dict(self.folder.get(epoch, None, objects=True, limit=10_000, after=None)) for epoch in epochs
        ]

    def open(self) -> list[OpenPass]:
        return self.passes.open_passes()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.ledger.close()


def keys_of(report: Report) -> list[str]:
    return [one["key"] for one in report["objects"]]


def test_looks_during_an_outage_add_to_one_pass_and_end_in_one_report(desk: Desk) -> None:
    first = desk.see(b"a")
    desk.see(b"a", b"b")
    desk.see(b"a", b"b", b"c")
    desk.stage()
    assert desk.tell() == []

    desk.push()

    (report,) = desk.tell()
    assert report["pass"] == first
    assert keys_of(report) == ["a", "b", "c"]
    assert report["status"] == "success"
    assert (report["s3_objects"], report["skipped"], report["source_size"]) == (3, 0, "30B")
    assert desk.open() == []


def test_once_something_of_a_pass_arrived_the_next_look_begins_another(desk: Desk) -> None:
    """So a source that never rests still has reports, and each says of its own objects that all arrived."""
    first = desk.see(b"a", b"b")
    desk.deliver(1)
    second = desk.see(b"a", b"b", b"c")
    desk.deliver(1)

    (report,) = desk.tell()
    assert (report["pass"], report["status"], keys_of(report)) == (first, "success", ["a", "b"])

    desk.deliver()
    assert [(one["pass"], keys_of(one)) for one in desk.tell()] == [(first, ["a", "b"]), (second, ["c"])]


def test_reports_of_one_second_get_seconds_of_their_own(desk: Desk) -> None:
    for number in range(4):
        desk.see(b"%d" % number)
        desk.deliver()
        desk.tell()

    assert len(set(desk.folder.epochs())) == 4
    assert [one["timestamp"] for one in desk.told()] == sorted({one["timestamp"] for one in desk.told()})


def test_both_versions_of_an_object_that_changed_within_a_pass_are_told(desk: Desk) -> None:
    desk.see(b"a", b"b")
    desk.deliver(1)
    desk.see(b"a", b"b", etag="new")
    desk.deliver()

    told = [(one["key"], one["etag"]) for report in desk.tell() for one in report["objects"]]

    assert sorted(told) == [("a", "e"), ("a", "new"), ("b", "new")]
    assert desk.open() == []


@pytest.mark.parametrize(
    ("pull", "push", "weaker"),
    [
        (Evidence.SIZE, Evidence.ETAG, "size"),
        (Evidence.ETAG, Evidence.SIZE, "size"),
        (Evidence.CHECKSUM, Evidence.READBACK, "readback"),
    ],
)
def test_an_object_is_proven_no_better_than_on_its_weaker_hop(
    desk: Desk, pull: Evidence, push: Evidence, weaker: str
) -> None:
    desk.see(b"a")
    desk.stage(evidence=pull)
    desk.push(push)

    (report,) = desk.tell()

    none = {"checksum": 0, "etag": 0, "readback": 0, "size": 0}
    assert report["evidence"] == {**none, weaker: 1}
    assert report["objects"][0]["evidence"] == weaker
    assert report["checksum_verification"]["verified"] is (weaker != "size")


def test_each_object_is_told_with_the_endpoint_it_went_through(desk: Desk) -> None:
    """A chunk may be pushed in several batches."""
    desk.see(b"a", b"b")
    desk.stage()
    taken = desk.ledger.take_push(desk.volume, [desk.job])
    assert taken is not None
    chunk, (one, other) = taken
    back = Returned(other, State.STAGED, "transfer_failed", "x")
    desk.ledger.settle_push(chunk, [Delivered(one, "d", Evidence.ETAG)], [back], "http://one")
    desk.push(endpoint="http://two")

    (report,) = desk.tell()

    assert [(o["key"], o["endpoint"]) for o in report["objects"]] == [
        ("a", "http://one"),
        ("b", "http://two"),
    ]
    assert report["endpoints"] == ["http://one", "http://s", "http://two"]
    assert report["retried"] == 1


def test_gone_objects_are_told_and_are_no_failure(desk: Desk) -> None:
    desk.see(b"a")
    items = desk.ledger.views.candidates(desk.job, 10)
    chunk = desk.ledger.plan(desk.job, desk.volume, items, 1)
    taken = desk.ledger.take_pull(desk.volume)
    assert taken is not None
    assert taken.id == chunk.id
    gone = [Returned(item, State.GONE, "object_gone", "404") for item in desk.ledger.views.pulling(chunk.id)]
    desk.ledger.settle_pull(taken, [], gone, "http://s")

    (report,) = desk.tell()

    assert (report["status"], report["gone"], report["files_synced"]) == ("success", 1, 0)
    assert report["objects"][0]["error"].startswith("gone: ")


@pytest.mark.parametrize("crash", ["before the file", "before the ledger"])
def test_a_crash_between_file_and_ledger_makes_the_same_report_and_no_second_one(
    desk: Desk, crash: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.see(b"a", b"b")
    desk.deliver()
    door: Any = ReportFolder if crash == "before the file" else Passes
    method = "put" if crash == "before the file" else "tell"

    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(door, method, power_cut)
        with pytest.raises(KeyboardInterrupt):
            desk.reporter.step(lambda: None)
    claimed = desk.open()[0].epoch
    path = desk.folder.path / f"{claimed}.json"
    written = path.stat().st_ino if path.exists() else None
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)  # or the right name could come about by chance

    life = desk.again()
    (report,) = life.tell()

    assert report["id"] == claimed
    assert written in (None, path.stat().st_ino)  # what somebody may have read does not change
    assert keys_of(report) == ["a", "b"]
    assert life.open() == []
    assert life.tell() == [report]
    desk.ledger = life.ledger


def test_a_daemon_that_crashes_again_and_again_says_so_once(desk: Desk) -> None:
    desk.see(b"a", b"b")
    life = desk
    for _ in range(3):
        life = life.again()
        life.tell()
    assert [one["status"] for one in life.told()] == ["interrupted"]

    life.deliver()
    assert [(one["status"], one["files_synced"]) for one in life.tell()] == [
        ("interrupted", 0),
        ("success", 2),
    ]
    desk.ledger = life.ledger


def test_what_a_crash_cut_or_what_lies_on_a_volume_by_now_did_not_fail(desk: Desk) -> None:
    """Of four that met something: one was cut, one was staged at its second try, two wait for one more."""
    desk.see(b"cut", b"late", b"pull", b"push")

    def hop(codes: dict[bytes, str]) -> None:
        desk.ledger.plan(desk.job, desk.volume, desk.ledger.views.candidates(desk.job, 9), 4096)
        chunk = desk.ledger.take_pull(desk.volume)
        assert chunk is not None
        items = desk.ledger.views.pulling(chunk.id)
        staged = [
            Staged(item, Digests(10, "AAAAAAAAAAA="), Evidence.ETAG, None)
            for item in items
            if item.key not in codes
        ]
        missed = [
            Returned(item, State.SEEN, codes[item.key], "x", counted=False)
            for item in items
            if item.key in codes
        ]
        desk.ledger.settle_pull(chunk, staged, missed, "http://s")

    hop(dict.fromkeys((b"cut", b"late", b"pull"), "interrupted") | {b"late": "server_error"})
    taken = desk.ledger.take_push(desk.volume, [desk.job])
    assert taken is not None
    chunk, items = taken
    desk.ledger.settle_push(chunk, [], [Returned(item, State.STAGED, "denied", "x") for item in items], None)
    hop({b"cut": "interrupted", b"pull": "server_error"})
    life = desk.again()

    (report,) = life.tell()

    assert (report["status"], report["left"], report["failed"]) == ("interrupted", 4, 2)
    desk.ledger = life.ledger


def test_a_look_that_was_cut_is_told_with_what_it_took_in(desk: Desk) -> None:
    look = desk.ledger.begin_pass(desk.job)
    desk.admit(look, b"a", b"b")
    desk.deliver()
    life = desk.again()

    (report,) = life.tell()

    assert (report["status"], report["s3_objects"], report["source_size"]) == ("interrupted", 2, "20B")
    assert life.open() == []
    desk.ledger = life.ledger


def test_a_pass_that_lasts_longer_than_a_day_is_told_daily(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = desk.see(b"a", b"b")
    desk.deliver(1)
    assert desk.tell() == []
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + DAILY_SECONDS + 60)

    (report,) = desk.tell()
    assert (report["status"], keys_of(report), report["left"]) == ("partial", ["a"], 1)
    assert desk.tell() == [report]

    desk.deliver()
    _, last = desk.tell()
    assert (last["pass"], last["status"], keys_of(last), last["left"]) == (look, "success", ["b"], 0)


def test_a_full_disk_puts_reports_off_and_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.see(b"a")
    desk.deliver()
    with monkeypatch.context() as patch:
        patch.setattr("s5jtd.reports.run.free_bytes", lambda _folder: 0)
        assert desk.tell() == []
    (problem,) = desk.problems.now()
    assert problem.code == "report_failed"
    assert "No space left" in problem.message

    life = desk.again()
    (report,) = life.tell()
    assert keys_of(report) == ["a"]
    assert life.problems.now() == []
    desk.ledger = life.ledger


def test_what_a_resync_or_a_retry_sends_again_belongs_to_the_newest_pass(desk: Desk) -> None:
    desk.see(b"a", b"b")
    desk.ledger.park(desk.job, desk.ledger.views.candidates(desk.job, 10), "too_large", "x")
    assert [one["parked"] for one in desk.tell()] == [2]
    newest = desk.see(b"a", b"b")
    assert len(desk.tell()) == 1

    assert desk.ledger.retry(desk.job, b"a") == 1
    desk.deliver()

    _, report = desk.tell()
    assert (report["pass"], report["status"], keys_of(report)) == (newest, "success", ["a"])
    assert (report["s3_objects"], report["skipped"]) == (2, 2)


def test_what_was_found_is_told_once(desk: Desk) -> None:
    look = desk.ledger.begin_pass(desk.job)
    listed = [Listed(key, 10, "e", 1) for key in (b"a", b"b")]
    desk.ledger.admit(desk.job, look, listed, {b"a": ("d", Evidence.ETAG)}, {b"b": "unmovable: x"})
    desk.ledger.end_pass(look, listed=2, listed_bytes=20, error=None)
    desk.tell()
    time.sleep(0.002)  # the ledger's clock counts milliseconds
    desk.ledger.retry(desk.job, None)
    desk.deliver()

    first, second = desk.tell()

    assert (first["found"], first["parked"], first["skipped"], first["status"]) == (1, 1, 1, "partial")
    assert (second["found"], second["files_synced"], second["pass"]) == (0, 1, look)


def test_each_job_of_a_single_pass_is_told(tmp_path: Path) -> None:
    """One job has nothing to do, the other is not done yet."""
    desk = Desk(tmp_path, once=True)
    quiet, desk.job = desk.job, desk.ledger.enrol_job("another", "s3://c/", "s3://d/")
    desk.see(b"a")
    desk.ledger.end_pass(desk.ledger.begin_pass(quiet), listed=0, error=None)

    assert [(one["job"], one["status"]) for one in desk.tell()] == [("archive", "success")]

    desk.reporter.last_words(interrupted=False)
    assert sorted((one["job"], one["status"]) for one in desk.told()) == [
        ("another", "failed"),
        ("archive", "success"),
    ]
    desk.ledger.close()


def test_an_object_parked_and_retried_within_one_pass_counts_as_it_ended(desk: Desk) -> None:
    desk.see(b"a", b"b")
    desk.ledger.park(desk.job, desk.ledger.views.candidates(desk.job, 1), "too_large", "x")
    desk.ledger.retry(desk.job, None)
    desk.deliver()

    (report,) = desk.tell()

    assert (report["status"], report["parked"], report["files_synced"]) == ("success", 0, 2)
    assert keys_of(report) == ["a", "a", "b"]
    assert [one["error"] for one in report["objects"]] == ["too_large: x (taken up again since)", None, None]


def test_what_was_under_way_before_there_were_reports_is_told_too(tmp_path: Path) -> None:
    """A ledger of the first version has objects that no pass owns."""
    path = tmp_path / "ledger.db"
    with sqlite3.connect(path) as sql:
        sql.executescript(migrations()[0][1])
        sql.execute(
            "INSERT INTO jobs (id, name, source, destination) VALUES (1, 'archive', 's3://a/', 's3://b/')"
        )
        sql.executemany("INSERT INTO counters (job_id, state, objects, bytes) VALUES (1, ?, ?, ?)",
                        [(state, 2 * (state == 0), 20 * (state == 0)) for state in range(7)])  # fmt: skip
        sql.executemany(
            "INSERT INTO objects (job_id, key, size, etag, modified_ms, state, since_ms, seen_at_ms)"
            " VALUES (1, ?, 10, 'e', 1, 0, 5, 5)",
            [(b"a",), (b"b",)],
        )
        sql.execute("PRAGMA application_id = 0x73356A74")
        sql.execute("PRAGMA user_version = 1")
    sql.close()
    desk = Desk(tmp_path)
    desk.see(b"a", b"b")

    desk.deliver()

    (report,) = desk.tell()
    assert keys_of(report) == ["a", "b"]
    assert desk.open() == []
    desk.ledger.close()


def test_memory_and_ledger_stay_flat_however_long_the_list(desk: Desk) -> None:
    keys = [b"some/longer/prefix/%09d.dat" % number for number in range(8_000)]
    desk.see(*keys)
    while desk.ledger.views.candidates(desk.job, 1):
        desk.deliver()
    desk.ledger.views.fresh(desk.job, [], ascending=True)

    tracemalloc.start()
    desk.reporter.step(lambda: None)
    (epoch,) = desk.folder.epochs()
    count, after = 0, None
    while True:
        page = desk.folder.get(epoch, None, objects=True, limit=1000, after=after)
        count += len(page["objects"])
        if (after := page["next"]) is None:
            break
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert count == 8_000
    assert peak < 4 * 2**20, f"{peak} bytes"
    assert desk.open() == []
    with sqlite3.connect(desk.path / "ledger.db") as sql:
        assert sql.execute("SELECT count(*) FROM arrivals").fetchone() == (0,)
    sql.close()


def test_a_forgotten_job_leaves_nothing_to_tell_and_an_open_pass_is_not_trimmed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s5jtd.ledger.upkeep.PASSES_KEPT", 1)
    first = desk.see(b"a", b"b")
    desk.deliver(1)
    for _ in range(5):
        desk.see(b"a", b"b")
        desk.tell()
    while trim(desk.ledger.database):
        pass
    with sqlite3.connect(desk.path / "ledger.db") as sql:
        assert sql.execute("SELECT min(id) FROM passes").fetchone() == (first,)
    sql.close()
    desk.ledger.close()

    forget_job(desk.path / "ledger.db", "archive", lambda _: None)

    database = Database(desk.path / "ledger.db")
    for table in ("open_passes", "arrivals", "passes", "objects"):
        assert database.reading().execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    database.close()
    desk.ledger = Ledger(desk.path / "ledger.db")


def test_leftovers_of_a_crash_are_swept_and_other_files_are_not(desk: Desk) -> None:
    desk.folder.path.mkdir()
    leftovers = [".5.json.123.new", ".5.objects.jsonl.gz.9.new", "5.objects.jsonl.gz"]
    others = ["notes.txt", ".hidden.new", "7.json", "7.objects.jsonl.gz"]
    for name in leftovers + others:
        (desk.folder.path / name).write_bytes(b"")

    desk.reporter.step(lambda: None)

    assert sorted(path.name for path in desk.folder.path.iterdir()) == sorted(others)


def test_no_more_reports_are_kept_than_fit(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "REPORTS_KEPT", 3)
    for number in range(5):
        desk.see(b"%d" % number)
        desk.deliver()
        desk.tell()

    assert [keys_of(report) for report in desk.told()] == [["2"], ["3"], ["4"]]


def test_reports_are_found_by_job_and_time_and_foreign_files_do_no_harm(desk: Desk) -> None:
    for number in range(3):
        desk.see(b"%d" % number)
        desk.deliver()
        desk.tell()
    newest, middle, oldest = desk.folder.epochs()
    for name, text in (("8.json", "no JSON"), ("9.json", "[]"), ("10.json", '{"job": "archive"}')):
        (desk.folder.path / name).write_text(text)

    rows = desk.folder.rows(limit=100)
    assert [row["id"] for row in rows] == [newest, middle, oldest]
    assert [row["id"] for row in desk.folder.rows(start=middle, limit=100)] == [newest, middle]
    assert [row["id"] for row in desk.folder.rows(end=middle, limit=1)] == [middle]
    assert desk.folder.rows(job="another", limit=100) == []
    for epoch in (8, 9):
        with pytest.raises(UsageError, match=f"report {epoch} cannot be read"):
            desk.folder.get(epoch, None, objects=True, limit=1, after=None)
    with pytest.raises(UsageError, match="there is no report yet"):
        desk.folder.get(None, "another", objects=False, limit=1, after=None)


def test_a_list_that_is_gone_or_torn_is_said_to_be(desk: Desk) -> None:
    desk.see(*[b"%05d" % number for number in range(1001)])
    while desk.ledger.views.candidates(desk.job, 1):
        desk.deliver()
    (report,) = desk.tell()
    path = desk.folder.path / report["objects_file"]
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UsageError, match="ends in the middle"):
        desk.told()

    path.unlink()

    with pytest.raises(UsageError, match=r"there is no [0-9]+\.objects\.jsonl\.gz"):
        desk.told()
    assert [row["files_synced"] for row in desk.folder.rows(limit=1)] == [1001]
