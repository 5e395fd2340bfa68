"""A slow disk does not hold a fast one back: what is given to whom, by free space and measured speed."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from s5jtd.config.schema import Chunk, Limits
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.unfinished import Unfinished
from s5jtd.link.tuning import Tuner
from s5jtd.model import Listed
from s5jtd.pool import Pool
from s5jtd.problems import Problems
from s5jtd.stages import spread
from s5jtd.stages.budget import Budget
from s5jtd.stages.job import Job
from s5jtd.stages.plan import Plan
from s5jtd.volumes.pace import Pace
from s5jtd.volumes.volume import Volume
from s5jtd.worker import Bell
from tests.filesystems import MIB

GIB = 1024 * MIB


def test_pace_is_what_became_durable_by_the_time_it_took_and_is_forgotten_with_age() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    pace.note(1000, 5.0)
    assert pace.bytes_per_second is None  # too little to tell anything
    pace.note(30 * MIB, 1.0)
    pace.note(30 * MIB, 5.0)
    assert pace.bytes_per_second == pytest.approx(60 * MIB / 11, rel=0.01)
    now[0] = 1000.0
    assert pace.bytes_per_second is None


def test_a_volume_of_unknown_speed_counts_as_fast_and_the_emptier_comes_first() -> None:
    weighed = spread.lanes([(10 * GIB, 0, None, inf), (50 * GIB, 0, 100.0, inf), (90 * GIB, 500, 100.0, inf)])

    assert [lane.speed for lane in weighed] == [100.0, 100.0, 100.0]
    assert spread.order(weighed) == [1, 0, 2]


def test_a_volume_of_unknown_speed_begins_with_little_unless_it_is_alone() -> None:
    new, known = spread.lanes([(100 * GIB, 0, None, inf), (100 * GIB, 0, 100.0, inf)])

    assert spread.share_bytes(new, [new, known], GIB, 64 * MIB) == spread.TASTE_BYTES
    assert spread.share_bytes(known, [new, known], GIB, 64 * MIB) == GIB
    assert spread.share_bytes(new, [new], GIB, 64 * MIB) == GIB


def test_a_slow_volume_helps_with_much_and_stays_out_of_the_way_of_little() -> None:
    slow, fast = spread.Lane(100 * GIB, 0, 5e6), spread.Lane(100 * GIB, 0, 100e6)

    assert spread.is_worth(slow, [fast], GIB, 100 * GIB)
    assert not spread.is_worth(slow, [fast], GIB, 2 * GIB)
    assert spread.is_worth(fast, [slow], GIB, 2 * GIB)
    assert spread.is_worth(spread.Lane(GIB, 0, 60e6), [fast], GIB, 2 * GIB)  # not much slower
    assert spread.is_worth(slow, [spread.Lane(GIB, 0, 100e6)], GIB, 2 * GIB)  # the fast one has no room
    assert spread.share_bytes(slow, [slow, fast], GIB, 64 * MIB) == GIB // 20
    assert spread.share_bytes(slow, [slow, fast], 64 * MIB, 64 * MIB) == spread.TASTE_BYTES
    assert spread.share_bytes(fast, [slow, fast], GIB, 64 * MIB) == GIB
    assert spread.share_bytes(spread.Lane(4 * GIB, 0, 1.0), [slow], GIB, MIB) < GIB


class Site:
    """A real ledger, a real pool of two folders, and the planner; nobody pulls."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder / "ledger.db")
        key = bytes(32)
        self.volumes = [Volume(folder / name, name, 0, key) for name in ("slow", "fast")]
        self.pool = Pool(self.volumes, self.ledger, Problems())
        for volume in self.volumes:
            volume.path.mkdir()
            assert self.pool.attach(volume, cast("Any", lambda *_: None), lambda: None)
        job_id = self.ledger.enrol_job("archive", "s3://a/", "s3://b/")
        config = SimpleNamespace(
            chunk=Chunk(objects=1000, bytes=64 * MIB), order="key", mode="staged", resume_above=GIB
        )
        link = SimpleNamespace(folder=None, endpoints=SimpleNamespace(available=lambda: True, all=list))
        self.job = Job(job_id, cast("Any", config), cast("Any", link), cast("Any", link))
        budget = Budget(Limits, self.ledger.views)
        self.planner = Plan(
            lambda: [self.job],
            self.ledger,
            self.pool,
            Bell(),
            budget,
            Tuner(),
            Unfinished(self.ledger.database),
        )

    def admit(self, count: int) -> None:
        self.ledger.admit(
            self.job.id, self.ledger.begin_pass(self.job.id),
            [Listed(b"%06d" % n, 64 * MIB, f"e{n}", 1) for n in range(count)], {}, {},
        )  # fmt: skip

    def planned(self) -> dict[str, int]:
        return {volume.name: self.ledger.views.planned(volume.ledger_id) for volume in self.volumes}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(tmp_path)
    monkeypatch.setattr(made.pool, "usable_bytes", lambda _: 1000 * GIB)
    monkeypatch.setattr(made.pool, "largest_bytes", lambda: 1000 * GIB)
    yield made
    for volume in made.volumes:
        volume.detach()
    made.ledger.close()


def steps(site: Site) -> None:
    while site.planner.step(lambda: None):
        pass


def test_the_last_chunks_go_to_the_fast_volume_and_many_to_both(site: Site) -> None:
    site.volumes[0].pace.note(64 * MIB, 64.0)
    site.volumes[1].pace.note(64 * MIB, 1.0)
    site.admit(3)
    steps(site)
    assert site.planned() == {"slow": 0, "fast": 2}

    site.admit(400)
    steps(site)
    assert site.planned() == {"slow": 2, "fast": 2}


def test_what_waits_on_a_slow_volume_is_handed_over_to_a_fast_one(site: Site) -> None:
    site.admit(4)
    steps(site)
    assert site.planned() == {"slow": 2, "fast": 2}  # nothing is known of them yet
    pull(site, "slow"), pull(site, "fast"), pull(site, "fast")
    site.volumes[0].pace.note(64 * MIB, 64.0)
    site.volumes[1].pace.note(64 * MIB, 1.0)

    steps(site)

    assert site.planned() == {"slow": 0, "fast": 1}


@pytest.mark.parametrize(("way_ms", "objects"), [(5.0, 1), (600.0, 16)])
def test_unknown_volumes_begin_with_little_but_for_a_far_destination(
    site: Site, way_ms: float, objects: int
) -> None:
    endpoint = SimpleNamespace(way_ms=way_ms)
    site.job.destination = cast("Any", SimpleNamespace(endpoints=SimpleNamespace(all=lambda: [endpoint])))
    site.job.config = cast("Any", SimpleNamespace(**{**vars(site.job.config), "chunk": Chunk(bytes=GIB)}))
    site.admit(200)

    site.planner.step(lambda: None)

    chunk = site.ledger.take_pull(site.volumes[0].ledger_id)
    assert chunk is not None
    assert len(site.ledger.views.pulling(chunk.id)) == objects


def test_a_disk_that_is_slow_only_now_is_told_by_what_does_not_come_to_an_end() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    with pace.under_way(100 * MIB), pace.under_way(10 * MIB), pace.under_way(0):
        now[0] = 10.0
        assert pace.ceiling == MIB
    assert pace.ceiling == inf

    was_fast, fast = spread.lanes([(GIB, 0, 50.0 * MIB, 1.0 * MIB), (GIB, 0, 50.0 * MIB, inf)])
    assert (was_fast.speed, fast.speed) == (MIB, 50 * MIB)


def pull(site: Site, name: str) -> Any:
    volume = next(volume for volume in site.volumes if volume.name == name)
    return site.ledger.take_pull(volume.ledger_id)
