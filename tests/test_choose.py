"""Filters and order: what a job moves of a source, what goes first, and what a dry run says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s5jtd.config import JobConfig
from s5jtd.errors import Exit
from s5jtd.ledger.schema import ORDERS
from s5jtd.ledger.spool import Spool
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.verify import structure
from s5jtd.model import Listed
from s5jtd.stages.choose import Choice
from tests.appliance import Appliance, contents, digests, side, until
from tests.servers import Server

NOW = 1_800_000_000


def choice(**filters: Any) -> Choice:
    config = JobConfig.model_validate(
        {"name": "j", "source": {"bucket": "one"}, "destination": {"bucket": "two"}, **filters}
    )
    return Choice(config, b"in/", lambda: NOW)


def taken(names: list[str], **filters: Any) -> list[str]:
    objects = [Listed(f"in/{name}".encode(), 1, "", 0) for name in names]
    return [one.key.decode().removeprefix("in/") for one in choice(**filters).of(objects)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["a.tif", "logs/b.tif", "logs/c.log", "ä?"]),
        ({"include": ["*.tif"]}, ["a.tif", "logs/b.tif"]),
        ({"include": ["*.tif", "*.log"], "exclude": ["logs/b*"]}, ["a.tif", "logs/c.log"]),
        ({"exclude": ["logs/*"]}, ["a.tif", "ä?"]),
        ({"include": ["?[?]"]}, ["ä?"]),
        ({"include": ["in/*"]}, []),
    ],
)
def test_globs_are_of_the_key_below_the_prefix(filters: dict[str, Any], expected: list[str]) -> None:
    assert expected == taken(["a.tif", "logs/b.tif", "logs/c.log", "ä?"], **filters)


def test_a_key_that_is_no_text_can_be_excluded() -> None:
    odd = Listed(b"in/\xff\n.tmp", 1, "", 0)

    assert not choice(exclude=["*.tmp"]).takes(odd)
    assert choice(include=["*.tmp"]).takes(odd)


@pytest.mark.parametrize(
    ("filters", "size", "age", "expected"),
    [
        ({"min_size": 10}, 9, 0, False),
        ({"min_size": 10}, 10, 0, True),
        ({"max_size": "1KiB"}, 1024, 0, True),
        ({"max_size": "1KiB"}, 1025, 0, False),
        ({"min_age": "1h"}, 1, 3599, False),
        ({"min_age": "1h"}, 1, 3600, True),
        ({"max_age": "1d"}, 1, 86_400, True),
        ({"max_age": "1d"}, 1, 86_401, False),
        ({"min_age": "1h", "max_age": "2h"}, 1, None, True),
    ],
)
def test_size_and_age_are_inclusive_and_an_unknown_age_leaves_nothing_out(
    filters: dict[str, Any], size: int, age: int | None, expected: bool
) -> None:
    modified_ms = 0 if age is None else (NOW - age) * 1000

    assert expected is choice(**filters).takes(Listed(b"in/k", size, "", modified_ms))


# Order

OBJECTS = [
    Listed(b"a", 3, "e", 10),
    Listed(b"b", 1, "e", 30),
    Listed(b"c", 2, "e", 20),
    Listed(b"d", 2, "e", 5),
]
EXPECTED = {
    "key": b"abcd",
    "oldest": b"dacb",
    "newest": b"bcad",
    "smallest": b"bcda",
    "largest": b"adcb",
}


def filled(path: Path) -> tuple[Ledger, int]:
    ledger = Ledger(path)
    job = ledger.enrol_job("j", "s3://a/", "s3://b/")
    ledger.admit(job, ledger.begin_pass(job), OBJECTS, {}, {})
    return ledger, job


@pytest.mark.parametrize("order", ORDERS)
def test_the_ledger_tells_candidates_in_any_order_by_an_index(tmp_path: Path, order: str) -> None:
    ledger, job = filled(tmp_path / "ledger.db")
    ledger.database.keep_orders({order})

    assert EXPECTED[order] == b"".join(item.key for item in ledger.views.candidates(job, 10, order))

    asked: list[str] = []
    reading = ledger.database.reading()
    reading.set_trace_callback(asked.append)
    ledger.views.candidates(job, 3, order)
    reading.set_trace_callback(None)
    plan = [row[3] for row in reading.execute(f"EXPLAIN QUERY PLAN {asked[0]}")]
    assert len(plan) == 1, plan
    assert ORDERS[order][0] in plan[0]
    ledger.close()


def test_a_ledger_with_an_index_for_an_order_is_whole_and_drops_it_when_nobody_asks(tmp_path: Path) -> None:
    ledger, job = filled(tmp_path / "ledger.db")
    ledger.database.keep_orders({"newest", "largest"})
    ledger.close()

    ledger = Ledger(tmp_path / "ledger.db")  # it refuses what it does not know
    assert structure(tmp_path / "ledger.db", "integrity_check", lambda: True) == []
    ledger.database.keep_orders({"key"})

    assert b"".join(item.key for item in ledger.views.candidates(job, 10)) == b"abcd"
    names = {row[0] for row in ledger.database.reading().execute("SELECT name FROM sqlite_schema")}
    assert not {name for name in names if name.startswith("objects_seen_by")}
    ledger.close()


@pytest.mark.parametrize("order", EXPECTED)
def test_a_spool_gives_a_listing_in_any_order_each_key_once(order: str) -> None:
    with Spool() as spool:
        spool.add([Listed(b"b", 99, "e", 99), *OBJECTS])

        assert EXPECTED[order] == b"".join(one.key for one in spool.ordered(order))


# From outside


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path, volumes=1) as appliance:
        yield appliance


def job(server: Server, here: str, there: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "archive",
        "source": side(server, here, "in/"),
        "destination": side(server, there, "out/"),
        **more,
    }


SOURCE = {
    b"in/a.tif": b"1234",
    b"in/b.tmp": b"5",
    b"in/c.tif": b"67",
    b"in/d.tif": b"8" * 99,
    b"in/e.tif": b"",
}
CHOSEN = {b"out/a.tif": b"1234", b"out/c.tif": b"67"}
FILTERS = {"include": ["*.tif"], "min_size": 1, "max_size": 50}


def test_what_the_filters_leave_out_stays_in_a_scan_and_in_a_resync(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, SOURCE)
    appliance.configure(job(moto, here, there, order="largest", **FILTERS))
    assert appliance.once() == Exit.DONE, appliance.log()
    assert digests(CHOSEN) == contents(moto, there)

    appliance.start()
    found = appliance.ask("job.resync", job="archive", wait=True)

    assert found["totals"]["same"] == 2
    assert found["totals"]["missing"] == found["rearmed"] == 0
    assert digests(CHOSEN) == contents(moto, there)


def test_a_dry_run_names_what_would_travel_in_its_order_and_why(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"in/old": b"old", b"in/left.tmp": b"x"})
    appliance.configure(job(moto, here, there))
    assert appliance.once() == Exit.DONE, appliance.log()
    moto.fill(there, {b"out/there": b"there"})
    moto.fill(here, {b"in/old": b"newer", b"in/there": b"there", b"in/big": b"b" * 50, b"in/new": b"n"})
    with_filters = job(moto, here, there, order="largest", exclude=["*.tmp"])
    appliance.configure(with_filters)

    shown = appliance.command("run", "--dry-run", "--json")

    assert shown.returncode == Exit.DONE, shown.stderr
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(line["key"], line["why"]) for line in lines] == [
        ("in/big", "new"),
        ("in/old", "changed"),
        ("in/new", "new"),
    ]
    assert "3 objects, 56B would travel (2 new, 1 changed, 0 missing); 1 there already; 1 left out" in (
        shown.stderr
    )


# Limits


def test_a_pass_takes_up_as_much_as_it_may_and_the_next_goes_on(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = {b"in/%d" % n: bytes([65 + n]) * 100 for n in range(5)}
    moto.fill(here, objects | {b"in/huge": b"h" * 1000})
    appliance.configure(
        job(moto, here, there), limits={"largest_object": 999, "bytes_per_pass": 250, "bytes_per_day": 10**6}
    )

    assert appliance.once() == Exit.OBJECTS_FAILED, appliance.log()
    assert sorted(contents(moto, there)) == [b"out/0", b"out/1"]
    assert appliance.once() == Exit.OBJECTS_FAILED, appliance.log()
    assert sorted(contents(moto, there)) == [b"out/0", b"out/1", b"out/2", b"out/3"]

    appliance.configure(job(moto, here, there), limits={"bytes_per_day": 1100})
    appliance.start()
    until(lambda: appliance.counted().get("delivered") == 5, "the day's allowance to be used up")
    row = appliance.ask("object.explain", job="archive", key="in/huge")
    assert "limits.bytes_per_pass is 250B" in str(row), row
    appliance.ask("object.retry", job="archive", parked=True)
    until(lambda: appliance.status()["jobs"][0]["reason"], "the limit to be told")

    shot = appliance.status()["jobs"][0]
    assert (shot["state"], shot["reason"]) == (
        "blocked",
        "limits.bytes_per_day is 1.07KiB: what is more waits",
    )
    assert appliance.stop() == Exit.DONE
    ended = appliance.command("run", "--once", "--json")
    [told] = json.loads(ended.stdout)["jobs"]
    assert (ended.returncode, told["status"], told["files_synced"], told["left"]) == (0, "partial", 0, 1)
    appliance.configure(job(moto, here, there))
    assert appliance.once() == Exit.DONE, appliance.log()
    assert b"out/huge" in contents(moto, there)
