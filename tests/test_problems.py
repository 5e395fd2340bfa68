"""What is wrong now: told with a code, since when and what to do, in each place alike, and over by itself."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from s5jtctl.client import Daemon, Failure
from s5jtd import shapes
from s5jtd.alarms import Alarms
from s5jtd.config import JobConfig
from s5jtd.events import PROBLEMS
from s5jtd.jobs import build_job
from s5jtd.ledger.chronicle import Chronicle
from s5jtd.ledger.store import Ledger
from s5jtd.link.headroom import Headroom
from s5jtd.pool import Pool
from s5jtd.problems import Problems
from s5jtd.reports.folder import ReportFolder
from tests.appliance import Appliance, side, some_objects, until
from tests.chaos import Chaos, Header, Refuse
from tests.servers import Server


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path) as appliance:
        yield appliance


def problem(appliance: Appliance, code: str) -> shapes.Problem | None:
    return next((one for one in appliance.status()["problems"] if one["code"] == code), None)


def told(appliance: Appliance, name: str, code: str) -> list[dict[str, Any]]:
    daemon = Daemon(str(appliance.socket), 30)
    try:
        events = list(daemon.events({"since": 0, "follow": False}))
    finally:
        daemon.close()
    return [event for event in events if event["event"] == name and event["data"].get("code") == code]


def test_a_skewed_clock_and_weak_evidence_are_problems_until_they_are_not(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, some_objects(5))
    job = {
        "name": "a",
        "destination": side(moto, there),
        "scan_every": "1s",
        "evidence": {"minimum": "checksum", "otherwise": "accept"},
    }
    with Chaos(moto.url) as chaos:
        late = format_datetime(datetime.now(UTC) + timedelta(minutes=7), usegmt=True)
        chaos.add(Header("Date", late))
        appliance.configure({**job, "source": side(moto, here, url=chaos.url)})
        appliance.start()
        skew = until(lambda: problem(appliance, "clock_skew"), "the skew's being noticed")
        assert re.search(r"clock is [67]m behind that of the source endpoint http", skew["message"])
        assert "timedatectl" in skew["hint"]
        assert skew["since"]
        appliance.settled()
        weak = until(lambda: problem(appliance, "evidence_below_policy"), "the weak evidence's being noticed")
        assert weak["message"].startswith(
            "5 of the objects that job a delivered last are proven by less than"
        )

        until(lambda: told(appliance, "problem_raised", "clock_skew"), "the event")
        assert [record["code"] for record in appliance.events("problem_raised")].count("clock_skew") == 1
        metrics = appliance.folder / "run" / "metrics.prom"
        raised = 's5jtd_problems{code="clock_skew"} 1.0'
        until(lambda: raised in metrics.read_text(), "the metrics' next version")

        appliance.ask("job.pause", job="a", side="destination")
        moto.fill(here, dict.fromkeys(some_objects(5), b"another"))  # what was weak is delivered no more
        chaos.clear()
        until(lambda: not problem(appliance, "evidence_below_policy"), "the end of the weak evidence")
        until(lambda: not problem(appliance, "clock_skew"), "the skew's end")
        until(lambda: told(appliance, "problem_cleared", "clock_skew"), "the event of its end")


def test_c8_a_volume_that_was_taken_out_is_not_forgotten_while_it_holds_something(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(30)
    moto.fill(here, objects)
    dead = {
        "name": "a", "source": side(moto, here), "chunk": {"objects": 5},
        "destination": side(moto, there, url="http://127.0.0.1:9"),
    }  # fmt: skip
    appliance.configure(dead)
    appliance.start()
    until(lambda: appliance.counted() == {"staged": 30}, "all staged")
    appliance.stop()
    both = appliance.volumes
    appliance.volumes = both[:1]
    appliance.configure(dead)
    appliance.start()

    left = until(lambda: problem(appliance, "volume_not_configured"), "the volume's being missed")
    assert str(both[1]) in left["message"]
    assert str(both[1]) in left["hint"]
    assert list(both[1].rglob("*.obj"))
    appliance.stop()
    appliance.volumes = both
    appliance.configure({**dead, "destination": side(moto, there)})
    appliance.start()
    assert appliance.settled() == {"delivered": 30}
    assert problem(appliance, "volume_not_configured") is None
    assert problem(appliance, "endpoint_down") is None


def test_a_problem_keeps_the_time_at_which_it_began_and_is_news_once() -> None:
    problems = Problems()

    assert problems.raise_("objects_parked", "a", "1 object")
    (first,) = problems.now()
    assert not problems.raise_("objects_parked", "a", "2 objects")
    (second,) = problems.now()
    assert (second.message, second.since) == ("2 objects", first.since)
    problems.raise_("endpoint_down", "a source http://x", "")
    problems.raise_("endpoint_down", "ab source http://x", "")
    problems.clear_about("", "a")
    assert [one.subject for one in problems.now()] == ["ab source http://x"]


def test_the_end_of_a_pause_is_told_once_and_by_itself(tmp_path: Path) -> None:
    now = [1000.0]
    ledger, problems = Ledger(tmp_path / "ledger.db", clock=lambda: now[0]), Problems()
    nobody = {"bucket": "bucket", "endpoints": ["http://127.0.0.1:9"], "credentials": {"anonymous": True}}
    config = {"name": "a", "source": nobody, "destination": {**nobody, "prefix": "x/"}}
    job = build_job(JobConfig.model_validate(config), ledger, tmp_path)
    alarms = Alarms(
        lambda: [job], ledger, Pool([], ledger, problems), ReportFolder(tmp_path / "reports"),
        Chronicle(tmp_path / "events"), Headroom(), problems,
    )  # fmt: skip

    with capture_logs() as logs:
        alarms.look()
        ledger.pause(job.id, pull=True, push=False, until_ms=2_000_000)
        alarms.look()
        ledger.pause(job.id, pull=False, push=True, until_ms=3_000_000)
        now[0] = 2001
        alarms.look()
        assert logs == []
        now[0] = 3001
        alarms.look()
        alarms.look()

    assert [(one["event"], one["job"]) for one in logs] == [("pause_ended", "a")]
    ledger.close()


def test_every_problem_of_the_issue_of_a_watch_is_in_the_table() -> None:
    """What a person on watch must hear of."""
    wanted = {
        "endpoint_down", "volume_full", "scan_incomplete", "objects_parked", "clock_skew", "ledger_disk_low",
        "evidence_below_policy",
    }  # fmt: skip
    assert wanted <= set(PROBLEMS)


def test_endpoints_are_checked_when_asked_and_an_object_tells_over_which_it_came(
    appliance: Appliance, moto: Server
) -> None:
    """One endpoint lists and gives no object; the other does both, and a third is not there at all."""
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"k": b"bytes"})
    with Chaos(moto.url) as bad:
        bad.add(Refuse("InternalError", key="k", method="GET"))
        source = {**side(moto, here), "endpoints": [bad.url, moto.url]}
        appliance.configure({"name": "a", "source": source, "destination": side(moto, there)})
        appliance.start()
        appliance.settled()

        story = appliance.ask("object.explain", job="a", key="k")
        told = [(line["what"], line["detail"]) for line in story["story"]]
        assert [line["at"] for line in story["story"]] == sorted(line["at"] for line in story["story"])
        assert told[-1][0] == "delivered"
        pulled = next(detail for what, detail in told if what == "pulling")
        failed = [detail for what, detail in told if what == "failed"]
        assert moto.url in pulled or bad.url in pulled
        for detail in failed:
            assert detail.startswith(f"pull from {bad.url} by way of volume-")
        if failed:
            assert moto.url in pulled
            (came_to_nothing, *_) = [one for one in appliance.events("chunk_staged") if not one["objects"]]
            assert "InternalError" in came_to_nothing["error"]
        assert all("error" not in one for one in appliance.events("chunk_pushed"))

        with pytest.raises(Failure) as unknown:
            appliance.ask("object.explain", job="a", key="it's/k")
        assert shlex.split(unknown.value.hint.partition(": ")[2]) == [
            "s5jtctl", "objects", "a", "--prefix", "it's/",
        ]  # fmt: skip

        checked = appliance.ask("endpoint.check")["endpoints"]
        assert [row["state"] != "down" for row in checked] == [True, True, True]
        assert all(row["checked_at"] for row in checked)
        bad.pause()
        states = {row["url"]: row["state"] for row in appliance.ask("endpoint.check", job="a")["endpoints"]}
        assert states[bad.url] in ("degraded", "down")
        assert states[moto.url] == "up"
        errors = {row["url"]: row["errors"] for row in appliance.ask("endpoint.list")["endpoints"]}
        assert errors[bad.url] >= 1
        bad.resume()
        until(
            lambda: {row["state"] for row in appliance.ask("endpoint.check")["endpoints"]} == {"up"},
            "the endpoint's return",
        )
