"""The link: what a budget lets through, what a timetable says, and whether s5cmd really keeps to it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gc
import hashlib
import itertools
import random
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from s5jtd.engine.contract import End, Failure, Remote, Transfer
from s5jtd.engine.s5cmd import S5cmd
from s5jtd.link import reach
from s5jtd.link.budget import KEPT_SECONDS, Budget
from s5jtd.link.headroom import Headroom
from s5jtd.link.line import Line
from s5jtd.link.timetable import next_change, rate_at
from s5jtd.link.tuning import (
    ANY,
    LEAST,
    PARTS_MAX,
    WORKERS_MAX,
    WORKERS_MIN,
    WORKERS_USUAL,
    Allowed,
    Bounds,
    Choice,
    Lane,
    Least,
    Level,
    Portion,
    Trial,
    Tuner,
    first_level,
    next_level,
)
from s5jtd.model import Direction
from s5jtd.stages import plan
from s5jtd.units import parse_timetable
from tests.appliance import WAIT_SECONDS, until
from tests.engine_contract import MIB, Stand, credentials_file, stand_at
from tests.networks import Network, another_network
from tests.servers import Server, make_certificates

PULL, PUSH = Direction.PULL, Direction.PUSH
RATE = 4.0 * MIB


class TestBudget:
    def moved(self, rates: dict[float, float | None], seconds: float) -> list[tuple[float, int]]:
        """What moves, and when, if whoever draws wakes late by luck: the rate from each time on."""
        luck = random.Random(4)
        now = 0.0
        budget = Budget(lambda: rates[max(begin for begin in rates if begin <= now)], lambda: now)
        moved = []
        while now < seconds:
            granted, pause = budget.draw(MIB)
            if granted:
                moved.append((now, granted))
            if pause:
                now += pause + luck.choice([0.0, 0.0001, 0.001, 0.05])
        return moved

    @pytest.mark.parametrize("rate", [600_000.0, 3_750_000.0, 60_000_000.0])
    def test_no_window_of_ten_seconds_is_off_by_a_tenth(self, rate):
        moved = self.moved({0.0: rate}, 40)

        for begin in range(30):
            window = sum(size for at, size in moved if begin <= at < begin + 10)
            assert window == pytest.approx(rate * 10, rel=0.1)

    def test_it_follows_a_new_rate_at_once_in_either_direction(self):
        moved = self.moved({0.0: 3_750_000.0, 20.0: 625_000.0, 40.0: 3_750_000.0}, 60)

        for begin, rate in ((5, 3_750_000), (20, 625_000), (30, 625_000), (41, 3_750_000)):
            window = sum(size for at, size in moved if begin <= at < begin + 10)
            assert window == pytest.approx(rate * 10, rel=0.1)

    def test_nothing_moves_at_a_rate_of_zero_and_nothing_was_saved_up_meanwhile(self):
        moved = self.moved({0.0: 0.0, 30.0: 1_000_000.0}, 31)

        assert not [at for at, _ in moved if at < 30]
        assert sum(size for _, size in moved) < 1_400_000

    def test_without_a_limit_everything_is_granted_at_once(self):
        assert Budget(lambda: None).draw(123_456_789) == (123_456_789, 0.0)

    def test_what_moved_unasked_is_made_up_for_and_holds_nobody_up_for_ever(self):
        now = [0.0]
        rates: list[float | None] = [100_000.0]
        budget = Budget(lambda: rates[0], lambda: now[0])

        assert budget.charge(300_000) == pytest.approx(3.0)
        now[0] = 2.9
        assert budget.draw(512)[0] == 0
        now[0] = 3.1
        assert budget.draw(512)[0] == 512
        assert budget.charge(10**12) == pytest.approx(10.0)
        rates[0] = 10_000.0  # of which it would be a hundred seconds
        now[0] = 13.2
        assert budget.draw(512)[0] == 512
        rates[0] = 0.0
        assert budget.charge(10**12) == 0.0
        rates[0] = None
        assert budget.charge(10**12) == 0.0

    def test_what_is_given_back_may_be_drawn_again(self):
        now = 0.0
        budget = Budget(lambda: 1_000_000.0, lambda: now)
        now = 0.1
        granted, _ = budget.draw(MIB)
        while budget.draw(MIB)[0]:
            pass

        budget.give_back(granted)

        assert budget.draw(MIB)[0] == granted


class TestTimetable:
    DAYS = parse_timetable(["Mon-Fri 08:00 10Mbit/s", "12:00 stop", "19:00 unlimited"])

    @pytest.fixture(autouse=True)
    def _a_zone_with_summer_time(self, monkeypatch):
        monkeypatch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
        monkeypatch.undo()
        time.tzset()

    def at(self, text: str) -> float:
        return time.mktime(time.strptime(text, "%Y-%m-%d %H:%M"))

    @pytest.mark.parametrize(
        ("when", "rate", "until_when"),
        [
            ("2026-11-23 07:59", None, "2026-11-23 08:00"),  # a Monday: since Sunday 19:00
            ("2026-11-23 08:00", 1_250_000.0, "2026-11-23 12:00"),
            ("2026-11-23 12:00", 0.0, "2026-11-23 19:00"),
            ("2026-11-27 19:00", None, "2026-11-28 12:00"),  # on Saturday nothing begins at eight
            ("2026-10-24 23:00", None, "2026-10-25 12:00"),  # the clocks go back in between
        ],
    )
    def test_the_entry_that_began_last_holds_until_the_next_one(self, when, rate, until_when):
        now = self.at(when)

        assert rate_at(self.DAYS, now) == rate
        assert next_change(self.DAYS, now) == self.at(until_when)

    def test_no_timetable_and_one_that_never_changes_have_no_next_change(self):
        always = parse_timetable(["00:00 5MiB/s"])

        assert rate_at((), 0.0) is next_change((), 0.0) is None
        assert rate_at(always, 0.0) == 5 * MIB
        assert next_change(always, 0.0) is None


class TestOrders:
    def line(self, folder: Path) -> Line:
        return Line(folder, {PUSH: parse_timetable(["00:00 1MiB/s"])})

    def test_an_order_holds_over_a_restart_until_it_is_taken_back(self, tmp_path):
        self.line(tmp_path).order(PUSH, 5000)
        line = self.line(tmp_path)
        assert [(one.rate, one.by_operator) for one in line.limits()] == [(None, False), (5000, True)]

        line.order(None, "unlimited")
        assert [line.rate(one) for one in Direction] == [None, None]

        line.order(None, "configured")
        assert [(one.rate, one.by_operator) for one in self.line(tmp_path).limits()] == [
            (None, False), (MIB, False),
        ]  # fmt: skip
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"up": 5}', b'{"push": "x"}'])
    def test_a_damaged_order_is_no_order(self, tmp_path, content):
        (tmp_path / "bandwidth.json").write_bytes(content)

        assert [one.rate for one in self.line(tmp_path).limits()] == [None, MIB]

    def test_an_order_that_cannot_be_kept_changes_nothing(self, tmp_path):
        line = self.line(tmp_path / "missing")

        with pytest.raises(OSError, match="No such file"):
            line.order(PUSH, 5000)

        assert line.rate(PUSH) == MIB

    def test_other_timetables_hold_at_once(self, tmp_path):
        line = self.line(tmp_path)
        assert line.rate(PUSH) == MIB

        line.configure({PULL: parse_timetable(["00:00 stop"])})

        assert line.rate(PUSH) is None
        assert line.stopped(PULL)


class TestTuning:
    GOOD = Trial(1000, 100 * MIB, 10.0, trouble=False)

    def test_a_lane_begins_with_more_where_the_server_is_far(self):
        assert [first_level(ms).workers for ms in (None, 1, 50, 150, 600, 9000)] == [
            WORKERS_USUAL, WORKERS_USUAL, WORKERS_USUAL, 3 * WORKERS_USUAL, WORKERS_MAX, WORKERS_MAX,
        ]  # fmt: skip

    def test_more_is_tried_kept_while_it_pays_and_taken_back_where_it_does_not(self):
        level = next_level(Level(16, "usual"), self.GOOD)
        assert level.workers == 32

        better = dataclasses.replace(self.GOOD, seconds=6.0)
        level = next_level(level, better)
        assert level.workers == 64
        assert "pays" in level.why

        level = next_level(level, better)
        assert level.workers == 32
        assert level.why == "64 at a time brought no more"
        assert next_level(level, better).workers == 32

    def test_trouble_halves_down_to_the_least(self):
        level = Level(16, "usual")
        for _ in range(9):
            level = next_level(level, dataclasses.replace(self.GOOD, trouble=True))

        assert level.workers == WORKERS_MIN
        assert "failures" in level.why

    def test_a_run_of_few_objects_teaches_nothing_and_has_more_parts_of_each(self):
        tuner = Tuner()
        lane = Lane(1, PULL)
        assert tuner.shown(lane) is None

        choice = tuner.choose(lane, None, 2)
        tuner.learn(lane, choice, Trial(2, 1000 * MIB, 1.0, trouble=False))

        assert (choice.workers, choice.parts) == (WORKERS_USUAL, PARTS_MAX)
        assert choice.upload_parts == 2
        assert tuner.choose(Lane(2, PUSH), 600.0, 2).upload_parts == PARTS_MAX
        shown = tuner.shown(lane)
        assert shown is not None
        assert (shown.workers, shown.parts, shown.why) == (WORKERS_USUAL, 4, "usual")

    def test_a_limit_is_not_spread_too_thin(self):
        rates: dict[Direction, float | None] = {PULL: 640 * 1024.0, PUSH: None}
        tuner = Tuner(rate=rates.__getitem__)

        assert tuner.choose(Lane(1, PULL), 600.0, 1000).workers == 10
        assert tuner.choose(Lane(1, PUSH), 600.0, 1000).workers == WORKERS_MAX
        rates[PULL] = 1.0
        assert tuner.choose(Lane(1, PULL), 600.0, 1000).workers == WORKERS_MIN

    def test_a_chunk_is_what_the_slower_direction_is_through_with_in_time(self):
        tuner, most = Tuner(), Portion(1024 * MIB, 1000, "configured")
        pull, push = Lane(1, PULL), Lane(1, PUSH)

        def ran(lane: Lane, size: int, seconds: float) -> None:
            tuner.learn(lane, tuner.choose(lane, None, 1), Trial(1, size, seconds, trouble=False))

        ran(pull, 1024 * MIB, 10.0)
        ran(push, MIB, 0.5)  # too short to tell anything
        assert tuner.portion(1, most) == most

        ran(push, 600_000, 1.0)
        slow = tuner.portion(1, most)
        assert (slow.bytes, slow.objects) == (600 * (600_000 + 2**18), 1000)
        assert slow.why == "a push is through with it in 10 minutes"
        assert tuner.portion(2, most) == most

        for _ in range(20):
            ran(pull, 1, 1e6)
        least = tuner.portion(1, most)
        assert (least.bytes, least.objects) == tuple(LEAST)
        more = tuner.portion(1, most, Least(100 * MIB, 500))
        assert (more.bytes, more.objects) == (100 * MIB, 500)

    def test_what_the_configuration_says_holds_and_may_change(self):
        says = [Allowed(Bounds(7, 7), Bounds(3, 3))]
        rates: dict[Direction, float | None] = {PULL: None, PUSH: None}
        tuner, lane = Tuner(lambda: says[0], rates.__getitem__), Lane(1, PUSH)

        def chosen(**trial: Any) -> tuple[int, int, str]:
            choice = tuner.choose(lane, 100.0, 1000)
            tuner.learn(lane, choice, dataclasses.replace(self.GOOD, **trial))
            return choice.workers, choice.parts, choice.why

        assert chosen() == (7, 3, "configured: limits.workers")
        rates[PUSH] = 64 * 1024.0
        assert chosen(trouble=True) == (7, 3, "configured: limits.workers")  # who named a number means it
        rates[PUSH] = None
        says[0] = Allowed(Bounds(4, 20), Bounds(1, 2))
        assert chosen(trouble=True) == (20, 2, "limits.workers allows 20")
        assert chosen(trouble=True)[0] == 10
        says[0] = Allowed(Bounds(9, 20))
        assert chosen(trouble=True)[0] == 10 - 1  # half of 10 is less than was asked for
        says[0] = Allowed(Bounds(200, 300))
        assert chosen()[::2] == (200, "limits.workers asks for 200")
        assert chosen()[0] == 300

    def test_from_afar_few_objects_come_in_smaller_pieces_and_from_near_they_do_not(self):
        tuner = Tuner()

        def pieces(latency_ms: float, objects: int, each: int, lane: int = 1) -> int:
            return tuner.choose(Lane(lane, PULL), latency_ms, objects, objects * each).range_bytes

        assert pieces(600.0, 9, 8 * MIB) == MIB
        assert pieces(600.0, 64, 8 * MIB) == 4 * MIB
        assert pieces(600.0, 128, 8 * MIB) == 16 * MIB  # there are enough of them
        assert pieces(600.0, 4, 1000 * MIB) == 16 * MIB
        assert pieces(20.0, 9, 8 * MIB, lane=2) == 16 * MIB

    def test_to_afar_few_objects_go_in_parts_where_that_fills_the_way(self):
        limit: list[int | None] = [None]
        tuner, lane = Tuner(lambda: says[0], lambda _direction: limit[0]), Lane(1, PUSH)
        says = [ANY]

        def cut(latency_ms: float | None, to_cut: int) -> int | None:
            return tuner.choose(lane, latency_ms, 100, to_cut=to_cut).cut_bytes

        assert cut(600.0, 12) == cut(600.0, 64) == 8 * MIB
        shown = tuner.shown(lane)
        assert shown is not None
        assert shown.cut_why == "64 in one PUT each do not fill a way of 600 ms"
        assert [cut(600.0, 65), cut(600.0, 0), cut(20.0, 12), cut(None, 12)] == [None] * 4
        says[0] = Allowed(parts=Bounds(1, 1))
        assert cut(600.0, 12) is None
        says[0], limit[0] = ANY, 640 * 1024  # which ten connections use up
        assert [cut(600.0, 3), cut(600.0, 12)] == [None, None]

    def test_for_a_far_destination_a_chunk_has_as_many_objects_as_fill_the_line(self):
        tuner, lane = Tuner(), Lane(1, PUSH)
        portion, backlog = Portion(1024 * MIB, 1000, ""), plan.Limits(75, 600 * MIB)

        def size(latency_ms: float) -> int:
            wide = tuner.wide(lane, latency_ms)
            return plan.limits(portion, backlog, 8, wide=wide).bytes

        assert size(20.0) == 75 * MIB
        assert size(200.0) == 64 * 8 * MIB
        assert size(600.0) == 1024 * MIB
        least = plan.Limits(100, 200 * MIB)
        assert plan.limits(portion, backlog, 8, least) == least


class TestHeadroom:
    @staticmethod
    def runs(headroom: Headroom, count: int, *, killed: bool = False) -> int:
        for _ in range(count):
            headroom.ran(headroom.divisor, killed=killed, moved=not killed)
        return headroom.divisor

    def test_p11_each_kill_halves_and_runs_that_end_well_bring_it_back(self):
        headroom = Headroom()

        assert [self.runs(headroom, 1, killed=True) for _ in range(6)] == [2, 4, 8, 16, 32, 32]
        assert self.runs(headroom, 19) == 32
        assert [self.runs(headroom, count) for count in (1, 20, 20, 20, 20)] == [16, 8, 4, 2, 1]

    def test_p11_after_a_relapse_it_takes_longer_until_more_is_tried(self):
        headroom = Headroom()
        self.runs(headroom, 1, killed=True)
        assert self.runs(headroom, 20) == 1

        assert self.runs(headroom, 1, killed=True) == 2
        assert self.runs(headroom, 39) == 2
        assert self.runs(headroom, 1) == 1
        self.runs(headroom, 40)  # all is well for so long that the next kill is a first one
        self.runs(headroom, 1, killed=True)
        assert self.runs(headroom, 20) == 1

    def test_p11_what_is_killed_together_halves_once_and_what_moved_nothing_tells_nothing(self):
        headroom = Headroom()
        for _ in range(4):
            headroom.ran(1, killed=True, moved=False)
        for _ in range(99):
            headroom.ran(2, killed=False, moved=False)

        assert (headroom.divisor, headroom.killed) == (2, 4)

    def test_p11_fewer_run_at_a_time_and_one_in_each_direction_always_may(self):
        headroom = Headroom()
        with contextlib.ExitStack() as stack:
            before = [stack.enter_context(headroom.turn(PULL)) for _ in range(5)]
        self.runs(headroom, 1, killed=True)
        with contextlib.ExitStack() as stack:
            pulls = [stack.enter_context(headroom.turn(PULL)) for _ in range(4)]
            pushes = [stack.enter_context(headroom.turn(PUSH)) for _ in range(2)]

        assert (before, pulls, pushes) == ([True] * 5, [True, True, False, False], [True, False])
        with headroom.turn(PUSH) as again:
            assert again

    def test_p11_also_what_is_configured_is_divided(self):
        tuner, lane = Tuner(lambda: Allowed(Bounds(12, 12))), Lane(1, PULL)
        choice = tuner.choose(lane, None, 1000)
        tuner.learn(lane, choice, Trial(0, 0, 1.0, trouble=False, killed=True))

        assert tuner.choose(lane, None, 1000) == Choice(6, 2, "memory is short: one in 2 of 12", 2)


# With s5cmd


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    folder = tmp_path / "state"
    folder.mkdir()
    line = Line(folder, {})
    yield line
    line.close()


@contextlib.contextmanager
def stand_on(line: Line, server: Server, folder: Path, **engine: Any) -> Iterator[Stand]:
    folder.mkdir(exist_ok=True)
    with stand_at(server, server.new_bucket(), S5cmd(ways=line.open, **engine), folder) as stand:
        yield stand


def bodies(count: int, size: int) -> dict[bytes, bytes]:
    return {b"k%d" % n: random.Random(n).randbytes(size) for n in range(count)}


@pytest.mark.parametrize(
    ("tls", "count", "size"), [(False, 3, 2 * MIB), (True, 300, 16 * 1024)], ids=["large", "small over TLS"]
)
def test_s5cmd_moves_no_faster_than_the_limit_and_whole(line, rclone, rclone_tls, tmp_path, tls, count, size):
    """Too fast is what a limit can do wrong and what a busy machine cannot: the mean is bound from above."""
    server = rclone_tls if tls else rclone
    line.order(None, int(RATE))
    objects = bodies(count, size)
    with stand_on(line, server, tmp_path / "stand") as stand:
        for direction in (PUSH, PULL):
            transfers = [Transfer(f"{n:x}.obj", key, size) for n, key in enumerate(objects)]
            if direction is PUSH:
                transfers = [stand.write(t.name, objects[t.key], t.key) for t in transfers]
            began = time.monotonic()
            result = stand.run(direction, transfers)
            seconds = time.monotonic() - began
            assert result.run.end is End.EXITED
            assert not any(result.failures.values()), result.failures
            assert count * size < RATE * (seconds + KEPT_SECONDS) * 1.02
            told = itertools.accumulate(result.moved)
            pairs = zip(told, result.beats, strict=True)
            assert all(moved <= RATE * (at - began + KEPT_SECONDS) * 1.02 for moved, at in pairs)
            if direction is PUSH:
                for name in stand.read():
                    (stand.data / name).unlink()
        assert {hashlib.md5(body).digest() for body in stand.read().values()} == {
            hashlib.md5(body).digest() for body in objects.values()
        }


def test_the_window_of_a_connection_that_began_among_many_grows_when_they_are_gone(line):
    """A larger buffer alone leaves it small: the tail of a chunk came at a thirtieth of the limit.

    Made smaller again, it stalls: after a limit was lowered half of the new one came.
    """
    line.order(PULL, int(RATE))
    budget = line.budget(PULL)
    route = reach.Route(None, b"", None, PULL, budget, Counter(), Counter({PULL: 500}), {}, [])
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as near:
        host, port = server.getsockname()
        reach.leave_from(near, route, host)
        near.connect((host, port))

        def window() -> int:
            return near.getsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP)

        among_many = window()
        reach.let_in_more(near, route, 4, reach.round_trip_of(near, route))
        alone = window()
        line.order(PULL, int(RATE) // 6)
        reach.let_in_more(near, route, 4, reach.round_trip_of(near, route))

        assert among_many < 8 * 1024
        assert alone > 128 * 1024
        assert window() == alone


def test_what_a_low_limit_lets_by_is_no_stall(line, rclone, tmp_path):
    """The program has long written all of it to its socket, and waits."""
    line.order(PUSH, 128 * 1024)
    with stand_on(line, rclone, tmp_path / "stand", stall_seconds=1.0) as stand:
        result = stand.push(stand.write("1.obj", bytes(MIB // 2), b"k"))

    assert (result.run.end, result.failures) == (End.EXITED, {"1.obj": None})


def test_two_processes_share_one_budget(line, rclone, tmp_path):
    line.order(PUSH, int(RATE))
    began = time.monotonic()
    with stand_on(line, rclone, tmp_path / "a") as a, stand_on(line, rclone, tmp_path / "b") as b:
        results = []
        threads = []
        for stand in (a, b):
            transfers = [stand.write(f"{n}.obj", bytes(MIB), b"k%d" % n) for n in range(4)]
            threads.append(threading.Thread(target=lambda s=stand, t=transfers: results.append(s.push(*t))))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seconds = time.monotonic() - began

    assert [set(result.failures.values()) for result in results] == [{None}, {None}]
    assert RATE * (seconds + KEPT_SECONDS) * 1.02 > 8 * MIB


def test_a_limit_ends_what_runs_without_one_and_a_stop_ends_everything(line, rclone, tmp_path):
    """What was ended begins anew, under the limit; nothing failed, so that no attempt is lost."""
    with stand_on(line, rclone, tmp_path / "stand") as stand:
        moving = threading.Event()
        transfers = [stand.write(f"{n}.obj", bytes(16 * MIB), b"k%d" % n) for n in range(12)]

        def stop() -> bool:  # asked as long as it runs
            moving.set()
            return False

        for order in (1000, "stop"):
            moving.clear()
            results: list[Any] = []
            thread = threading.Thread(
                target=lambda r=results: r.append(stand.push(*transfers, workers=1, stop=stop))
            )
            thread.start()
            assert moving.wait(WAIT_SECONDS)
            if order == "stop":
                line.order(None, "configured")
                line.configure({PUSH: parse_timetable(["00:00 stop"])})
            else:
                line.order(PUSH, 1000)
            thread.join(60)

            assert results[0].run.end is End.STOPPED
            assert set(results[0].failures.values()) <= {None}


def test_an_endpoint_that_is_dead_is_to_blame_and_not_the_relay(line, tmp_path):
    line.order(None, int(RATE))
    dead = socket.create_server(("127.0.0.1", 0))
    port = dead.getsockname()[1]
    dead.close()
    chunk = tmp_path / "chunk"
    chunk.mkdir()
    credentials = credentials_file(tmp_path, "a", "b")
    remote = Remote("bucket", f"http://127.0.0.1:{port}", "us-east-1", credentials)
    stand = Stand(S5cmd(ways=line.open), chunk, remote)

    result = stand.pull(Transfer("1.obj", b"k", 5))
    stand.close()

    assert result.failures == {"1.obj": Failure.ENDPOINT}
    assert result.outcomes["1.obj"].message == "Connection refused"


class FarServer:
    """Answers for objects of ten bytes, over there, and remembers from where it was asked."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        self.peers: list[tuple[str, str]] = []
        self.put: dict[str, bytes] = {}
        far = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                far.peers.append((self.client_address[0], f"{self.command} {self.path}"))
                if self.command == "PUT":
                    if self.headers.get("Expect"):
                        self.send_response_only(100)
                        self.end_headers()
                    far.put[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
                body = b"" if self.command == "PUT" else b"0123456789"
                self.send_response_only(200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", '"x"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_GET = do_HEAD = do_PUT = answer  # noqa: N815

            def handle_expect_100(self) -> bool:
                return True

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.port = listener.getsockname()[1]
        self._server = ThreadingHTTPServer(("", 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = tls.wrap_socket(listener, server_side=True) if tls else listener
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with another_network() as network:
        yield network


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("rate", [None, int(RATE)], ids=["unlimited", "limited"])
def test_s5cmd_leaves_from_the_address_or_interface_that_is_bound(line, network, tmp_path, tls, rate):
    """In a network of its own behind a small MTU; the kernel would choose the first address by itself."""
    context = None
    ca = None
    if tls:
        made = make_certificates(tmp_path, host=network.theirs)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.chain, made.key)
        ca = made.ca
    if rate:
        line.order(None, rate)
    far = FarServer(network.listen(), context)
    chunk = tmp_path / "chunk"
    chunk.mkdir()
    url = f"{'https' if tls else 'http'}://{network.theirs}:{far.port}"
    stand = Stand(
        S5cmd(ways=line.open), chunk,
        Remote("bucket", url, "us-east-1", credentials_file(tmp_path, "a", "b"), ca_bundle=ca),
    )  # fmt: skip
    try:
        for bind, seen_from in (
            (network.ours[1], network.ours[1]),
            (network.interface, network.ours[0]),
        ):
            far.peers.clear()
            body = random.Random(1).randbytes(3 * MIB)
            pushed = stand.push(stand.write("2.obj", body, b"up"), bind=bind)
            pulled = stand.pull(Transfer("1.obj", b"down/a b", 10), bind=bind)

            assert set({**pushed.failures, **pulled.failures}.values()) == {None}, (pushed, pulled)
            assert {peer for peer, _ in far.peers} == {seen_from}
            assert "GET /bucket/down/a%20b" in {what for _, what in far.peers}
            assert far.put["/bucket/up"] == body
            assert stand.read()["1.obj"] == b"0123456789"
    finally:
        stand.close()
        far.close()


def test_an_address_that_is_not_ours_is_a_failure_of_the_endpoint(line, network, tmp_path):
    far = FarServer(network.listen())
    chunk = tmp_path / "chunk"
    chunk.mkdir()
    url = f"http://{network.theirs}:{far.port}"
    stand = Stand(
        S5cmd(ways=line.open), chunk, Remote("bucket", url, "us-east-1", credentials_file(tmp_path, "a", "b"))
    )
    result = stand.pull(Transfer("1.obj", b"k", 10), bind="192.0.2.1")
    stand.close()
    far.close()

    assert result.failures == {"1.obj": Failure.ENDPOINT}
    assert far.peers == []


class TestRelayAsProxy:
    """What whoever is not our process gets to hear."""

    def ask(self, line: Line, request: bytes) -> tuple[bytes, str]:
        with line.open(PULL, "http://s3.invalid", proxy=None, bind="127.0.0.1") as way:
            assert way.proxy is not None
            parts = urlsplit(way.proxy)
            with socket.create_connection((parts.hostname or "", parts.port or 0), 30) as client:
                client.sendall(request)
                answer = b""
                while piece := client.recv(65536):
                    answer += piece
                return answer, way.proxy

    @pytest.mark.parametrize(
        "request_", [b"CONNECT 127.0.0.1:1 HTTP/1.1\r\n\r\n", b"GET http://127.0.0.1:1/ HTTP/1.1\r\n\r\n",
                     b"CONNECT a:1 HTTP/1.1\r\nProxy-Authorization: Basic eA==\r\n\r\n"],
    )  # fmt: skip
    def test_who_does_not_know_the_word_gets_nowhere(self, line, request_):
        assert self.ask(line, request_)[0].startswith(b"HTTP/1.1 407 ")

    @pytest.mark.parametrize("request_", [b"hello\r\n\r\n", b"A" * 80_000, b"\r\n\r\n"])
    def test_what_is_no_request_is_refused(self, line, request_):
        assert self.ask(line, request_)[0][:10] in (b"HTTP/1.1 4", b"")

    def test_the_port_is_closed_when_the_run_is_over(self, line):
        with line.open(PULL, "http://s3.invalid", proxy=None, bind="127.0.0.1") as way:
            assert way.proxy is not None
            parts = urlsplit(way.proxy)

        def is_closed() -> bool:
            try:
                socket.create_connection((parts.hostname or "", parts.port or 0), 5).close()
            except ConnectionRefusedError:
                return True
            except ConnectionResetError:  # it was met in the middle of its end
                return False
            return False

        until(is_closed, "the closing of the port")

    def test_a_way_that_closes_while_an_answer_is_awaited_takes_that_along(self, line, caplog):
        with socket.create_server(("127.0.0.1", 0)) as server:
            with line.open(PULL, "http://s3.invalid", proxy=None, bind="127.0.0.1") as way:
                parts = urlsplit(way.proxy)
                word = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
                with socket.create_connection((parts.hostname, parts.port), 30) as client:
                    client.sendall(
                        f"GET http://127.0.0.1:{server.getsockname()[1]}/ HTTP/1.1\r\n"
                        f"Proxy-Authorization: Basic {word}\r\n\r\n".encode()
                    )
                    client.shutdown(socket.SHUT_WR)
                    far, _ = server.accept()
                    far.settimeout(60)
                    while far.recv(65536):  # to the end of what is asked; and it never answers
                        pass
            line.close()
            far.close()
        gc.collect()
        assert not [record for record in caplog.records if record.name == "asyncio"]

    def test_a_proxy_of_the_site_is_spoken_to_through_the_relay(self, line, tmp_path):
        heard: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as proxy:

            def serve() -> None:
                client, _ = proxy.accept()
                heard.append(client.recv(65536))
                client.close()

            thread = threading.Thread(target=serve)
            thread.start()
            url = f"http://user:pass@127.0.0.1:{proxy.getsockname()[1]}"
            with line.open(PULL, "https://s3.invalid", proxy=url, bind="127.0.0.1") as way:
                assert way.proxy is not None
                parts = urlsplit(way.proxy)
                assert (parts.username, parts.password) == ("user", "pass")
                with socket.create_connection((parts.hostname or "", parts.port or 0), 30) as client:
                    client.sendall(b"CONNECT s3.invalid:443 HTTP/1.1\r\n\r\n")
                    assert client.recv(10) == b""
            thread.join()

        assert heard == [b"CONNECT s3.invalid:443 HTTP/1.1\r\n\r\n"]


def test_without_limit_and_bind_nothing_is_in_the_way(line):
    with line.open(PULL, "http://10.0.0.1:80", proxy="http://p:1", bind=None) as way:
        assert (way.endpoint_url, way.proxy, way.holds()) == ("http://10.0.0.1:80", "http://p:1", True)
