"""The ledger: compare-and-set moves, counters that cannot disagree, claims, rescans, durability."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from s5jtd.errors import LedgerDamaged, LedgerError, LedgerNewer, LostRace
from s5jtd.ledger.database import Database
from s5jtd.ledger.rows import FOREVER_MS, Delivered, Item, Returned, Staged
from s5jtd.ledger.states import ChunkState, State
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.verify import verify_all
from s5jtd.model import Digests, Evidence, Listed

NOW = 1_800_000_000.0


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Road:
    """One job and one volume on a fresh ledger, with the usual steps as single calls."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.ledger = Ledger(path, clock=clock)
        self.clock = clock
        self.job = self.ledger.enrol_job("archive", "s3://a/", "s3://b/")
        self.volume = self.ledger.enrol_volume("uuid-1", "vol1", "/mnt/1", 1).id

    def see(self, *keys: bytes, size: int = 10, etag: str = "e") -> None:
        listed = [Listed(key, size, etag, 1) for key in sorted(keys)]
        fresh = self.ledger.views.fresh(self.job, listed, ascending=True)
        pass_id = self.ledger.begin_pass(self.job)
        self.ledger.admit(self.job, pass_id, fresh, {}, {})
        self.ledger.end_pass(pass_id, listed=len(listed), error=None)

    def pull(self, limit: int = 100) -> tuple[object, list[Item]]:
        items = self.ledger.views.candidates(self.job, limit)
        self.ledger.plan(self.job, self.volume, items, 4096 * len(items))
        chunk = self.ledger.take_pull(self.volume)
        assert chunk is not None
        return chunk, self.ledger.views.pulling(chunk.id)

    def stage(self, limit: int = 100) -> None:
        chunk, items = self.pull(limit)
        self.ledger.settle_pull(chunk, [staged(item) for item in items], [], "http://s")  # type: ignore[arg-type]

    def states(self) -> dict[bytes, str]:
        rows = self.ledger.views.objects(self.job, state=None, prefix=b"", after=b"", limit=1000)
        return {row["key"]: State(row["state"]).word for row in rows}

    def counted(self) -> dict[str, tuple[int, int]]:
        """Counters that are not zero."""
        objects, sizes = self.ledger.views.counters(self.job)
        return {word: (objects[word], sizes[word]) for word in objects if objects[word] or sizes[word]}


def staged(item: Item) -> Staged:
    return Staged(item, Digests(item.size, "AAAAAAAAAAA="), Evidence.ETAG, None)


@pytest.fixture
def road(tmp_path: Path) -> Iterator[Road]:
    road = Road(tmp_path / "ledger.db", Clock())
    yield road
    road.ledger.close()


def test_an_object_goes_the_whole_road_and_the_counters_go_with_it(road: Road) -> None:
    road.see(b"a", b"b")
    assert road.counted() == {"seen": (2, 20)}

    chunk, items = road.pull()
    assert road.counted() == {"pulling": (2, 20)}
    road.ledger.settle_pull(chunk, [staged(item) for item in items], [], "http://s")  # type: ignore[arg-type]
    assert road.counted() == {"staged": (2, 20)}
    assert road.ledger.views.staged_bytes().get(road.volume, 0) == 20

    taken = road.ledger.take_push(road.volume, [road.job])
    assert taken is not None
    chunk, due = taken
    assert road.counted() == {"pushing": (2, 20)}
    road.ledger.settle_push(chunk, [Delivered(i, "x", Evidence.ETAG) for i in due], [], "http://d")
    assert road.counted() == {"delivered": (2, 20)}

    left = road.ledger.views.releasable(road.volume)
    assert left is not None
    assert left.state is ChunkState.RESTING
    road.ledger.released(left, due, folder_gone=True)
    assert road.ledger.views.releasable(road.volume) is None
    assert road.ledger.views.staged_bytes().get(road.volume, 0) == 0
    assert road.ledger.views.reserved_bytes([road.volume]) == 0


def test_a_move_of_an_object_that_is_elsewhere_changes_nothing_at_all(road: Road) -> None:
    road.see(b"a", b"b")
    items = road.ledger.views.candidates(road.job, 10)
    road.ledger.plan(road.job, road.volume, items[:1], 1)

    with pytest.raises(LostRace):
        road.ledger.plan(road.job, road.volume, items, 1)

    assert road.states() == {b"a": "pulling", b"b": "seen"}
    assert road.counted() == {"seen": (1, 10), "pulling": (1, 10)}
    assert road.ledger.views.planned(road.volume) == 1


def test_a_move_the_table_does_not_know_is_refused(road: Road) -> None:
    road.see(b"a")
    chunk, items = road.pull()

    with pytest.raises(LedgerError, match="no move from pulling to delivered"):
        road.ledger.settle_pull(chunk, [], [Returned(items[0], State.DELIVERED, "x", "y")], None)  # type: ignore[arg-type]

    assert road.states() == {b"a": "pulling"}


def test_a_rescan_of_unchanged_objects_writes_nothing(road: Road) -> None:
    page = [Listed(b"k%04d" % n, 5, "e", 1) for n in range(1000)]
    road.see(*[one.key for one in page], size=5)

    assert road.ledger.views.fresh(road.job, page, ascending=True) == []
    assert road.ledger.views.fresh(road.job, page[::-1], ascending=False) == []


def test_a_page_over_a_range_that_the_source_has_left_costs_the_page_and_not_the_range(road: Road) -> None:
    road.see(*(b"%04d" % number for number in range(1000)))
    page = [Listed(b"0000", 10, "e", 1), Listed(b"0500x", 10, "e", 1), Listed(b"0999", 10, "changed", 1)]

    assert road.ledger.views.fresh(road.job, page, ascending=True) == page[1:]


def test_a_listing_of_a_rare_state_goes_through_the_ledger_in_bounded_stretches(road: Road) -> None:
    road.see(b"a", *(b"k/%02d" % number for number in range(25)), b"z")
    views, found, after, ends = road.ledger.views, [], b"", []
    while True:
        end = views.key_further_on(road.job, prefix=b"k/", after=after, rows=10)
        found += list(
            views.objects(road.job, state=State.SEEN, prefix=b"k/", after=after, limit=100, until=end)
        )
        if end is None:
            break
        ends.append(end)
        after = end

    assert ends == [b"k/09", b"k/19"]
    assert [row["key"] for row in found] == [b"k/%02d" % number for number in range(25)]


def test_what_was_staged_and_lost_and_is_gone_at_the_source_is_a_loss_and_no_end(road: Road) -> None:
    road.see(b"here before", b"never here")
    chunk, items = road.pull()
    first, second = items
    back = Returned(second, State.SEEN, "engine_failed", "x", counted=False)
    road.ledger.settle_pull(chunk, [staged(first)], [back], "http://s")  # type: ignore[arg-type]
    taken = road.ledger.take_push(road.volume, [road.job])
    assert taken is not None
    rotten = [Returned(item, State.SEEN, "local_rot", "its bytes changed") for item in taken[1]]
    road.ledger.settle_push(taken[0], [], rotten, "http://d")
    assert road.ledger.views.last_delivery_ms(road.job) is None

    chunk, items = road.pull()
    gone = [Returned(item, State.GONE, "object_gone", "404") for item in items]
    road.ledger.settle_pull(chunk, [], gone, "http://s")  # type: ignore[arg-type]

    assert road.states() == {b"here before": "parked", b"never here": "gone"}
    story = road.ledger.views.explain(road.job, b"here before")
    assert story is not None
    assert str(story["object"][0]["reason"]).startswith("lost: its copy on a volume was lost")


def test_a_changed_object_travels_again_and_its_old_delivery_stays_in_the_story(road: Road) -> None:
    road.see(b"a")
    deliver_all(road)

    road.see(b"a", etag="e2", size=30)

    assert road.states() == {b"a": "seen"}
    assert road.counted() == {"seen": (1, 30)}
    story = road.ledger.views.explain(road.job, b"a")
    assert story is not None
    assert [(past["etag"], past["destination_etag"]) for past in story["past"]] == [("e", "x")]


def deliver_all(road: Road) -> None:
    road.stage()
    taken = road.ledger.take_push(road.volume, [road.job])
    assert taken is not None
    chunk, due = taken
    road.ledger.settle_push(chunk, [Delivered(i, "x", Evidence.ETAG) for i in due], [], "http://d")
    left = road.ledger.views.releasable(road.volume)
    assert left is not None
    road.ledger.released(left, due, folder_gone=True)


def test_the_same_bytes_with_a_new_date_do_not_travel_again(road: Road) -> None:
    road.see(b"a")

    assert road.ledger.views.fresh(road.job, [Listed(b"a", 10, "e", 2)], ascending=True) == []
    assert len(road.ledger.views.fresh(road.job, [Listed(b"a", 11, "e", 1)], ascending=True)) == 1


def test_without_an_etag_the_date_decides(road: Road) -> None:
    road.see(b"a", etag="")

    assert len(road.ledger.views.fresh(road.job, [Listed(b"a", 10, "", 2)], ascending=True)) == 1


def test_an_object_in_flight_finishes_in_its_version_before_the_new_one_is_taken_in(road: Road) -> None:
    road.see(b"a")
    road.pull()

    road.see(b"a", etag="e2")

    assert road.states() == {b"a": "pulling"}
    assert len(road.ledger.views.fresh(road.job, [Listed(b"a", 10, "e2", 1)], ascending=True)) == 1


def test_what_was_found_at_the_destination_is_delivered_without_travelling(road: Road) -> None:
    pass_id = road.ledger.begin_pass(road.job)
    fresh = [Listed(b"a", 10, "e", 1), Listed(b"b", 10, "e", 1)]
    road.ledger.admit(road.job, pass_id, fresh, {b"a": ("e", Evidence.ETAG)}, {b"b": "unmovable: newline"})

    assert road.states() == {b"a": "delivered", b"b": "parked"}
    assert road.ledger.views.parked_reasons(road.job) == {"unmovable": 1}


def test_what_was_put_off_waits_and_comes_after_what_was_not(road: Road) -> None:
    road.see(b"a", b"b")
    chunk, items = road.pull()
    later = int((NOW + 60) * 1000)
    road.ledger.settle_pull(
        chunk,  # type: ignore[arg-type]
        [],
        [
            Returned(items[0], State.SEEN, "transfer_failed", "no", not_before_ms=later),
            Returned(items[1], State.SEEN, "endpoint_down", "no", counted=False),
        ],
        None,
    )

    due = road.ledger.views.candidates(road.job, 10)
    assert [(item.key, item.attempts) for item in due] == [(b"b", 0)]
    road.clock.now += 61
    due = road.ledger.views.candidates(road.job, 10)
    assert [(item.key, item.attempts) for item in due] == [(b"b", 0), (b"a", 1)]


def test_a_clock_that_was_wrong_does_not_put_an_object_off_for_years(road: Road) -> None:
    road.see(b"a")
    chunk, items = road.pull()
    far = int((NOW + 10 * 365 * 86400) * 1000)
    road.ledger.settle_pull(chunk, [], [Returned(items[0], State.SEEN, "x", "y", not_before_ms=far)], None)  # type: ignore[arg-type]

    assert [item.key for item in road.ledger.views.candidates(road.job, 10)] == [b"a"]


def test_a_push_that_was_cut_goes_back_to_staged(road: Road) -> None:
    road.see(b"a")
    road.stage()
    road.ledger.take_push(road.volume, [road.job])

    assert road.ledger.unpush() == 1

    assert road.states() == {b"a": "staged"}
    assert road.ledger.take_push(road.volume, [road.job]) is not None


def test_a_chunk_that_was_only_planned_costs_nobody_an_attempt(road: Road) -> None:
    road.see(b"a")
    chunk, _ = road.pull()

    road.ledger.unplan(chunk)  # type: ignore[arg-type]

    assert [item.attempts for item in road.ledger.views.candidates(road.job, 10)] == [0]
    assert road.ledger.views.reserved_bytes([road.volume]) == 0


def test_parked_objects_go_on_from_where_their_bytes_are(road: Road) -> None:
    road.see(b"a", b"b")
    chunk, items = road.pull()
    park = Returned(items[0], State.PARKED, "source_mismatch", "no")
    road.ledger.settle_pull(chunk, [staged(items[1])], [park], None)  # type: ignore[arg-type]
    taken = road.ledger.take_push(road.volume, [road.job])
    assert taken is not None
    road.ledger.settle_push(taken[0], [], [Returned(taken[1][0], State.PARKED, "x_mismatch", "no")], None)
    assert road.states() == {b"a": "parked", b"b": "parked"}

    assert road.ledger.retry(road.job, None) == 2

    assert road.states() == {b"a": "seen", b"b": "staged"}
    assert road.ledger.take_push(road.volume, [road.job]) is not None


def test_a_parked_object_travels_in_its_new_version_and_its_old_copy_counts_no_more(road: Road) -> None:
    road.see(b"a", b"b")
    road.stage()
    taken = road.ledger.take_push(road.volume, [road.job])
    assert taken is not None
    chunk, items = taken
    park = Returned(items[0], State.PARKED, "object_refused", "no")
    road.ledger.settle_push(chunk, [Delivered(items[1], "x", Evidence.ETAG)], [park], None)

    road.see(b"a", size=30, etag="another")

    assert road.states() == {b"a": "seen", b"b": "delivered"}
    assert road.counted() == {"seen": (1, 30), "delivered": (1, 10)}
    resting = road.ledger.views.releasable(road.volume)
    assert resting is not None
    assert road.ledger.views.all_delivered(resting.id)
    road.ledger.released(resting, [items[1]], folder_gone=True)
    road.stage()
    assert road.counted() == {"staged": (1, 30), "delivered": (1, 10)}
    assert [check for check in verify_all(road.ledger.database.path) if check.findings] == []


def test_what_is_delivered_need_not_wait_for_its_volume_to_travel_in_a_new_version(road: Road) -> None:
    """Its file lies on a volume that is away, or the releaser has it in hand just now."""
    road.see(b"a", b"b")
    road.stage()
    taken = road.ledger.take_push(road.volume, [road.job])
    assert taken is not None
    chunk, items = taken
    road.ledger.settle_push(chunk, [Delivered(item, "x", Evidence.ETAG) for item in items], [], None)

    road.see(b"a", etag="another")
    road.ledger.released(chunk, items, folder_gone=True)

    assert road.states() == {b"a": "seen", b"b": "delivered"}
    assert road.ledger.views.releasable(road.volume) is None
    assert [check for check in verify_all(road.ledger.database.path) if check.findings] == []


def test_what_the_destination_refused_is_tried_again_from_the_same_chunk(road: Road) -> None:
    road.see(b"a", b"b")
    road.stage()
    taken = road.ledger.take_push(road.volume, [road.job])
    assert taken is not None
    chunk, due = taken
    later = int((NOW + 5) * 1000)
    back = Returned(due[1], State.STAGED, "object_refused", "no", not_before_ms=later)
    road.ledger.settle_push(chunk, [Delivered(due[0], "x", Evidence.ETAG)], [back], "http://d")

    assert road.ledger.views.last_delivery_ms(road.job) == int(NOW * 1000)
    assert road.ledger.take_push(road.volume, [road.job]) is None
    left = road.ledger.views.releasable(road.volume)
    assert left is not None
    assert left.state is ChunkState.SEALED
    road.clock.now += 6
    again = road.ledger.take_push(road.volume, [road.job])
    assert again is not None
    assert [item.key for item in again[1]] == [b"b"]


def test_a_pause_survives_a_restart_and_ends_by_itself(tmp_path: Path) -> None:
    clock = Clock()
    road = Road(tmp_path / "l.db", clock)
    road.ledger.pause(road.job, pull=True, push=False, until_ms=int((NOW + 10) * 1000))
    road.ledger.close()
    ledger = Ledger(tmp_path / "l.db", clock=clock)

    assert ledger.views.pauses(road.job).pull_until_ms is not None
    assert ledger.views.pauses(road.job).push_until_ms is None
    clock.now += 11
    assert ledger.views.pauses(road.job).pull_until_ms is None
    ledger.pause(road.job, pull=True, push=True)
    assert ledger.views.pauses(road.job).push_until_ms == FOREVER_MS
    ledger.close()


def test_a_job_name_given_to_other_data_is_refused(road: Road) -> None:
    with pytest.raises(LedgerError, match="used to move s3://a/"):
        road.ledger.enrol_job("archive", "s3://other/", "s3://b/")


def test_the_pragmas_that_durability_rests_on_are_in_force(tmp_path: Path) -> None:
    db = Database(tmp_path / "l.db")
    with db.writing() as sql:
        assert sql.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert sql.execute("PRAGMA synchronous").fetchone()[0] == 2
    with pytest.raises(LedgerError, match=r"readonly|read-only"):
        db.reading().execute("DELETE FROM jobs")
    db.close()


def test_a_ledger_from_the_future_is_refused(tmp_path: Path) -> None:
    Database(tmp_path / "l.db").close()
    with sqlite3.connect(tmp_path / "l.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()

    with pytest.raises(LedgerNewer, match="999"):
        Database(tmp_path / "l.db")


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "l.db") as connection:
        connection.execute("PRAGMA application_id = 7")
    connection.close()

    with pytest.raises(LedgerError, match="another program"):
        Database(tmp_path / "l.db")


def test_a_damaged_ledger_is_refused_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "l.db").write_bytes(b"this is no database at all" * 100)

    with pytest.raises(LedgerDamaged):
        Database(tmp_path / "l.db")

    assert (tmp_path / "l.db").read_bytes().startswith(b"this is no database")


def test_claims_use_the_partial_index(road: Road) -> None:
    plan = road.ledger.views._db.reading().execute(
        "EXPLAIN QUERY PLAN SELECT id FROM objects INDEXED BY objects_seen"
        " WHERE job_id = 1 AND state = 0 AND not_before_ms = 0 ORDER BY key LIMIT 10"
    )
    steps = " ".join(row[3] for row in plan)

    assert "objects_seen" in steps
    assert "TEMP B-TREE" not in steps


def fold_in(road: Road, found: list[Staged], name: str = "00" * 8) -> tuple[dict[int, int], set[int], int]:
    """Take a found chunk in to the end: old ids with their new ones, those not needed, how many are kept."""
    adoption = road.ledger.adopt(road.job, road.volume, name, found)
    if adoption.chunk is not None:
        taken = [one for one in found if one.item.id in adoption.taken]
        settled = [replace(one, item=adoption.taken[one.item.id]) for one in taken]
        road.ledger.settle_pull(adoption.chunk, settled, [], None)
    return {old: item.id for old, item in adoption.taken.items()}, set(adoption.needless), adoption.kept


def test_a_sealed_chunk_is_folded_into_a_ledger_that_never_heard_of_it(road: Road, tmp_path: Path) -> None:
    road.see(b"a", b"b")
    _, items = road.pull()
    fresh = Road(tmp_path / "new.db", road.clock)

    taken, _, _ = fold_in(fresh, [staged(item) for item in items])

    assert taken == {item.id: item.id for item in items}
    assert fresh.counted() == {"staged": (2, 20)}
    assert fresh.ledger.take_push(fresh.volume, [fresh.job]) is not None
    fresh.ledger.close()


def test_a_folded_in_chunk_does_not_overrule_what_the_ledger_knows_better(road: Road) -> None:
    road.see(b"a", b"b")
    before = road.ledger.views.candidates(road.job, 10)
    deliver_all(road)
    road.see(b"b", etag="e2")

    taken, needless, kept = fold_in(road, [staged(item) for item in before])

    assert (taken, needless, kept) == ({}, {item.id for item in before}, 0)
    assert road.states() == {b"a": "delivered", b"b": "seen"}
