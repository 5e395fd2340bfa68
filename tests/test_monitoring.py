"""The file of metrics, and what docs/monitoring gives to Grafana and Prometheus: it names what is there."""

from __future__ import annotations

import json
import os
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from s5jtd.api.metrics import render
from s5jtd.meter import OBJECT_BYTES, Meter, Pace
from s5jtd.metrics_file import MetricsFile
from s5jtd.model import Direction
from s5jtd.problems import Problems
from s5jtd.status import eta_seconds
from tests.appliance import Appliance, side, some_objects, until
from tests.fake_controls import STATUS

FOLDER = Path(__file__).parents[1] / "docs" / "monitoring"
#: What others measure and the rules look at.
OF_OTHERS = {"up", "node_textfile_mtime_seconds"}
WORDS = {"sum", "max", "by", "on", "and", "or", "rate", "increase", "time", "instance"}


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> dict[str, set[str]]:
    """Every metric there is, with its labels, as Prometheus' own parser reads them."""
    folder = tmp_path_factory.mktemp("metrics")
    state: Any = full_status()
    written = MetricsFile(folder, lambda: state, Problems())
    written.step(lambda: None)
    text = written.path.read_text() + render(state, datetime.now(UTC)).decode()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def full_status() -> dict[str, Any]:
    moved = {"pull_bytes": 1, "push_bytes": 2}
    job: Any = {**STATUS["jobs"][0], "moved": moved, "eta_seconds": 5.0}
    return {**STATUS, "jobs": [job]}


def queries(text: str) -> list[tuple[str, set[str]]]:
    """Each metric that a PromQL expression names, with the labels it asks for."""
    text = re.sub(r"\[[0-9a-z]+\]", "", text)
    found = []
    for name, _, selector in re.findall(r"\b([a-z][a-z0-9_]*)\b(?!\s*\()(\{([^}]*)\})?", text):
        if name.startswith("s5jtd_") and name != "s5jtd_job":
            found.append((name, set(re.findall(r"(\w+)\s*[!=]", selector)) - {"instance"}))
    return found


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> list[str]:
    dashboard = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return [
        *(target["expr"] for panel in dashboard["panels"] for target in panel["targets"]),
        *(rule["expr"] for rule in rules()),
    ]


@pytest.mark.parametrize("expression", expressions())
def test_what_dashboard_and_rules_ask_for_is_there(expression, known):
    asked = queries(expression)

    assert asked or OF_OTHERS & set(re.findall(r"\w+", expression))
    for name, labels in asked:
        assert name in known, name
        assert labels <= known[name], (name, labels)


def test_rules_name_labels_that_their_metric_has(known):
    for rule in rules():
        said = " ".join(rule["annotations"].values())
        labels = set(re.findall(r"\$labels\.(\w+)", said)) - {"instance", "state"}
        there = {label for name, _ in queries(rule["expr"]) for label in known[name]}
        assert labels <= there, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert re.search(r"s5jtctl|journalctl|systemctl|restart|disk", said), rule["alert"]


def test_the_handbook_names_every_metric(known):
    told = set(re.findall(r"`(s5jtd_\w+)`", (FOLDER / "README.md").read_text()))

    assert told - {"s5jtd_job"} == set(known)


def test_the_file_is_replaced_as_a_whole_and_a_full_disk_is_a_problem(tmp_path, monkeypatch):
    problems = Problems()
    state: Any = full_status()
    metrics = MetricsFile(tmp_path, lambda: state, problems)
    metrics.step(lambda: None)
    before = metrics.path.read_bytes()
    with metrics.path.open("rb") as reader:
        state = {**state, "problems": [{"code": "volume_full", "message": "", "hint": "", "since": None}]}
        metrics.step(lambda: None)
        assert reader.read() == before  # whoever reads while it is replaced reads one of the two
    assert b'code="volume_full"} 1.0' in metrics.path.read_bytes()

    monkeypatch.setattr(
        os, "fchmod", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    metrics.step(lambda: None)
    assert [problem.code for problem in problems.now()] == ["metrics_not_written"]
    assert os.listdir(tmp_path) == ["metrics.prom"]

    monkeypatch.undo()
    metrics.step(lambda: None)
    assert problems.now() == []
    metrics.remove()
    assert os.listdir(tmp_path) == []


def test_what_is_under_way_is_told_until_it_is_settled():
    now = [100.0]
    meter = Meter(clock=lambda: now[0])
    with meter.batch(1, Direction.PULL):
        now[0] += 1
        meter.add(1, Direction.PULL, 700)
        meter.add(1, Direction.PULL, 300)
        assert meter.under_way_bytes(1, Direction.PULL) == 1000
        assert meter.under_way_bytes(1, Direction.PUSH) == meter.under_way_bytes(2, Direction.PULL) == 0
    assert meter.under_way_bytes(1, Direction.PULL) == 0
    assert meter.total_bytes(1, Direction.PULL) == 1000
    now[0] += 1000
    assert meter.bytes_per_second(1, Direction.PULL) == 0
    assert meter.total_bytes(1, Direction.PULL) == 1000


class Clocked(Meter):
    """A meter with a clock that is told how time goes by."""

    def __init__(self) -> None:
        self.now = 10_000.0
        super().__init__(clock=lambda: self.now)

    def moves(self, seconds: int, rate: int, objects: int = 0) -> None:
        for _ in range(seconds):
            self.now += 1
            self.add(1, Direction.PUSH, rate, objects)

    def seen_pace(self) -> float | None:
        pace = self.pace(1, Direction.PUSH)
        return None if pace is None else pace.bytes_per_second

    def foretells(self, size_bytes: int, objects: int) -> float | None:
        return eta_seconds((0, 0, None), (size_bytes, objects, self.pace(1, Direction.PUSH)))

    def seen_rate(self) -> float:
        return self.bytes_per_second(1, Direction.PUSH)


def test_nothing_is_foretold_from_the_first_seconds_of_work():
    meter = Clocked()
    assert meter.seen_pace() is None
    with meter.batch(1, Direction.PUSH):
        meter.now += 60  # the destination is asked first: no byte moves, and it is no part of the pace
        meter.add(1, Direction.PUSH, 3)
        assert meter.seen_pace() is None
        meter.moves(4, 1000)
        assert meter.seen_pace() is None
        assert meter.seen_rate() == pytest.approx(1000, rel=0.01)  # the idle time before does not thin it
        meter.moves(3, 1000)
        assert meter.seen_pace() == pytest.approx(1000, rel=0.1)
        meter.moves(300, 500)
        assert meter.seen_pace() == pytest.approx(500, rel=0.05)
        assert meter.seen_rate() == pytest.approx(500, rel=0.05)


def test_a_half_that_waits_for_work_keeps_its_pace_for_a_while():
    meter = Clocked()
    with meter.batch(1, Direction.PUSH):
        meter.moves(20, 1000)
    before = meter.seen_pace()
    for _ in range(60):  # looked at all the time, as by `status --watch`
        meter.now += 10
        assert meter.seen_pace() == before
    assert meter.seen_rate() == 0
    with meter.batch(1, Direction.PUSH):
        meter.moves(2, 1000)
        assert meter.seen_pace() == pytest.approx(1000, rel=0.1)
    for _ in range(100):
        meter.now += 10
        assert meter.seen_rate() >= 0
    assert meter.seen_pace() is None


def test_a_half_that_stands_still_has_no_pace_and_begins_anew():
    meter = Clocked()
    with meter.batch(1, Direction.PUSH):
        meter.moves(20, 1000)
        meter.now += 32
        assert meter.seen_pace() is None
        assert meter.seen_rate() == 0
        meter.now += 600
        meter.moves(5, 1000)
        assert meter.seen_pace() is None
        meter.moves(3, 1000)
        assert meter.seen_pace() == pytest.approx(1000, rel=0.2)  # and nothing of the ten minutes before


def test_what_many_hands_move_is_under_way_in_the_batch_they_work_for():
    meter = Clocked()
    mine = threading.get_ident()
    with meter.batch(1, Direction.PULL), meter.batch(1, Direction.PUSH):
        meter.add(1, Direction.PUSH, 5, thread=mine)
        hand = threading.Thread(target=meter.add, args=(1, Direction.PULL, 7, 2, mine))
        hand.start()
        hand.join()
        assert meter.under_way_bytes(1, Direction.PUSH) == 5
        assert meter.under_way_bytes(1, Direction.PULL) == 7
        assert meter.under_way(1, Direction.PULL) == (7, 2)
    assert meter.under_way_bytes(1, Direction.PULL) == meter.under_way_bytes(1, Direction.PUSH) == 0


def test_objects_without_a_byte_take_their_time_too():
    meter = Clocked()
    with meter.batch(1, Direction.PUSH):
        meter.moves(20, 0, objects=50)
        assert eta_seconds((0, 0, None), (0, 1000, meter.pace(1, Direction.PUSH))) == pytest.approx(
            20, rel=0.1
        )
        assert meter.seen_rate() == 0


def test_what_small_objects_cost_is_seen_and_tells_nothing_false_of_the_large_ones_behind_them():
    """A line held to 7 MB/s: a thousand objects in two seconds make it no faster for what is left."""
    meter = Clocked()
    with meter.batch(1, Direction.PUSH):
        meter.moves(2, 5_000_000, objects=500)
        meter.moves(8, 7_000_000)
        for _ in range(60):
            meter.moves(1, 7_000_000)
            assert meter.foretells(700_000_000, 2) == pytest.approx(100, rel=0.1)
        assert meter.foretells(10_000_000, 1000) == pytest.approx(2, rel=0.2)


def test_large_objects_tell_nothing_of_the_small_ones_behind_them():
    meter = Clocked()
    with meter.batch(1, Direction.PUSH):
        for _ in range(30):
            meter.moves(1, 7_000_000, objects=1)
            meter.moves(1, 7_000_000)
        assert meter.foretells(0, 10_000) == pytest.approx(10_000 * OBJECT_BYTES / 7e6, rel=0.1)


def test_the_end_is_foretold_by_the_slower_half_or_not_at_all():
    fast, slow = Pace(50.0, 0), Pace(10.0, 0)
    assert eta_seconds((100, 1, fast), (100, 1, slow)) == 10
    assert eta_seconds((0, 0, None), (100, 1, slow)) == 10
    assert eta_seconds((100, 1, fast), (100, 1, None)) is None
    assert eta_seconds((0, 0, fast), (0, 0, slow)) is None


def test_the_daemon_keeps_its_file_current_and_takes_it_away(tmp_path, moto):
    """The numbers are those of the server: what it holds is what is delivered, what it sent has moved."""
    objects = some_objects(40)
    origin, target = moto.new_bucket(), moto.new_bucket()
    moto.fill(origin, objects)
    path = tmp_path / "run" / "metrics.prom"

    def value(name: str, **labels: str) -> float | None:
        for family in text_string_to_metric_families(path.read_text()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None

    size = sum(map(len, objects.values()))
    with Appliance(tmp_path, volumes=1) as appliance:
        appliance.configure({"name": "a", "source": side(moto, origin), "destination": side(moto, target)})
        appliance.start()
        appliance.settled()
        until(
            lambda: value("s5jtd_job_objects", state="delivered") == len(objects), "the file's next version"
        )
        assert value("s5jtd_job_bytes", state="delivered") == size
        assert value("s5jtd_job_moved_bytes_total", direction="push") == size
        assert value("s5jtd_job_moved_bytes_total", direction="pull") == size
        assert value("s5jtd_up") == 1
        (job,) = appliance.status()["jobs"]
        assert job["under_way"] == {"pull_bytes": 0, "push_bytes": 0}
        appliance.stop()
        assert not path.exists()
