"""What happened is numbered without a gap, kept across restarts and power cuts, bounded, and resumable."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import threading
from typing import Any

import pytest

from s5jtctl.client import Daemon
from s5jtd import log_repeats
from s5jtd.ledger import chronicle as room
from s5jtd.ledger.chronicle import Chronicle
from s5jtd.log_repeats import LeftOut, Repeats
from tests.appliance import Appliance, side, some_objects, until


def happening(number: int, **more) -> dict[str, object]:
    at = f"2026-01-01T00:{number // 60 % 60:02d}:{number % 60:02d}.000Z"
    return {"at": at, "level": "info", "event": "scan_finished", "job": "a", "number": number, **more}


def told(chronicle: Chronicle, since=0, follow=False) -> list[dict[str, Any]]:
    return [event for event in chronicle.since(since, follow=follow) if event is not None]


def ids(chronicle: Chronicle, since=0) -> list[Any]:
    return [event["id"] for event in told(chronicle, since)]


def happen(chronicle: Chronicle, numbers) -> None:
    newest = chronicle.newest
    numbers = list(numbers)
    for number in numbers:
        chronicle.note(happening(number))
    until(lambda: chronicle.newest == newest + len(numbers), "the events being told")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "events"


@pytest.fixture
def small(monkeypatch):
    """Files and memory so small that everything that is bounded is met."""
    monkeypatch.setattr(room, "FILE_BYTES", 4096)
    monkeypatch.setattr(room, "FILES", 3)
    monkeypatch.setattr(room, "TAIL", 5)
    monkeypatch.setattr(room, "GATHER_SECONDS", 0.0)


def test_numbers_go_on_where_an_earlier_life_ended(folder):
    for life in range(3):
        chronicle = Chronicle(folder)
        happen(chronicle, range(life * 4, life * 4 + 4))
        chronicle.close()

    chronicle = Chronicle(folder)
    assert [(event["id"], event["data"]["number"]) for event in told(chronicle)] == [
        (number + 1, number) for number in range(12)
    ]
    assert ids(chronicle, since=10) == [11, 12]
    assert ids(chronicle, since=12) == []
    assert ids(chronicle, since=None) == []
    chronicle.close()


def test_an_event_says_what_the_log_says(folder):
    chronicle = Chronicle(folder)
    chronicle.note(happening(5, error="no route", hint=None, exception="secret\nplace"))
    until(lambda: chronicle.newest == 1)

    assert told(chronicle) == [
        {
            "id": 1,
            "at": "2026-01-01T00:00:05.000Z",
            "event": "scan_finished",
            "job": "a",
            "message": 'number=5 error="no route" hint=null',
            "level": "info",
            "data": {"number": 5, "error": "no route", "hint": None},
        }
    ]
    chronicle.close()


@pytest.mark.parametrize("torn", [b'{"id": 4', b'{"id": 4}', b"\0\0\0\0"])
def test_a_line_that_a_power_cut_tore_is_no_event(folder, torn):
    chronicle = Chronicle(folder)
    happen(chronicle, range(3))
    chronicle.close()
    (path,) = folder.glob("*.jsonl")
    with path.open("ab") as file:
        file.write(torn)

    chronicle = Chronicle(folder)
    happen(chronicle, [3])
    chronicle.close()

    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == [1, 2, 3, 4]


def test_what_is_kept_is_bounded_and_has_no_gap(folder, small):
    chronicle = Chronicle(folder)
    for start in range(0, 400, 20):
        happen(chronicle, range(start, start + 20))

    kept = ids(chronicle)
    assert kept == list(range(kept[0], 401))
    assert 1 < kept[0] < 400
    assert len(list(folder.glob("*.jsonl"))) == 3
    assert sum(path.stat().st_size for path in folder.glob("*.jsonl")) < 3 * 4096 + 20 * 300
    assert ids(chronicle, since=397) == [398, 399, 400]
    assert ids(chronicle, since=kept[0] + 3)[:2] == [kept[0] + 4, kept[0] + 5]
    chronicle.close()


def test_a_time_finds_what_came_since(folder, small):
    chronicle = Chronicle(folder)
    for start in range(0, 120, 20):
        happen(chronicle, range(start, start + 20))

    assert [event["data"]["number"] for event in told(chronicle, "2026-01-01T00:01:55Z")] == list(
        range(115, 120)
    )
    assert told(chronicle, "2100-01-01T00:00:00Z") == []
    assert told(chronicle, "2026-01-01T00:00:00+00:00")[-1]["id"] == 120
    chronicle.close()


def test_a_follower_misses_nothing_while_files_come_and_go(folder, small):
    chronicle = Chronicle(folder)
    happen(chronicle, range(3))
    stream = chronicle.since(1, follow=True)
    seen: list[object] = []

    def follow() -> None:
        seen.extend(event["id"] for event in itertools.islice(filter(None, stream), 60))

    follower = threading.Thread(target=follow)
    follower.start()
    for start in range(0, 60, 10):
        happen(chronicle, range(start, start + 10))
    follower.join(30)

    assert seen == list(range(2, 62))
    chronicle.close()
    assert list(chronicle.since(0, follow=True))[-1] is not None  # it ends, though it follows


def test_a_full_disk_costs_no_event_that_is_told_later(folder, monkeypatch):
    """They are told from memory, `trouble` says that they are not durable, and they are written later."""
    chronicle = Chronicle(folder)
    happen(chronicle, range(2))
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 100:
            write(descriptor, bytes(data[:50]))  # as a disk does: some of it is there
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    happen(chronicle, range(2, 5))
    assert "No space left" in str(chronicle.trouble)
    assert ids(chronicle) == [1, 2, 3, 4, 5]

    monkeypatch.setattr(os, "write", write)
    happen(chronicle, range(5, 6))
    assert chronicle.trouble is None
    chronicle.close()
    (path,) = folder.glob("*.jsonl")
    assert [json.loads(line)["id"] for line in path.read_bytes().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_too_many_at_once_are_left_out_and_nobody_waits(folder, monkeypatch):
    monkeypatch.setattr(room, "WAITING_MAX", 10)
    monkeypatch.setattr(Chronicle, "_write_all", lambda self: None)
    chronicle = Chronicle(folder)
    for number in range(25):
        chronicle.note(happening(number))
    chronicle._write_some()

    assert ids(chronicle) == list(range(1, 11))
    assert "15 events" in str(chronicle.trouble)


def test_the_same_warning_again_and_again_is_counted_and_not_written():
    repeats = Repeats()
    refused = {"event": "peer_refused", "level": "warning", "method": "job.pause", "pid": 1}
    admitted = [repeats.admits(refused | {"pid": pid}, now=0.0) for pid in range(50)]

    assert admitted == [True] * log_repeats.SAME_MAX + [False] * (50 - log_repeats.SAME_MAX)
    assert repeats.admits(refused | {"method": "job.resume"}, now=1.0)
    assert repeats.over(now=30.0) == []
    assert repeats.over(now=61.5) == [LeftOut("peer_refused", 50 - log_repeats.SAME_MAX)]
    assert repeats.admits(refused, now=62.0)


def test_new_words_each_time_do_not_get_around_the_limit():
    repeats = Repeats()
    admitted = [
        repeats.admits({"event": "library_message", "level": "warning", "message": str(number)}, now=0.0)
        for number in range(3000)
    ]

    assert sum(admitted) == log_repeats.EVENT_MAX
    assert len(repeats._windows) <= log_repeats.KNOWN_MAX + 1
    assert repeats.all() == [LeftOut("library_message", 3000 - log_repeats.EVENT_MAX)]


def events_of(appliance: Appliance, since: int = 0) -> list[dict[str, Any]]:
    daemon = Daemon(str(appliance.socket), 30)
    try:
        return list(daemon.events({"since": since, "follow": False}))
    finally:
        daemon.close()


def events_up_to(name: str, appliance: Appliance) -> list[dict[str, Any]]:
    events = events_of(appliance)
    return events if name in {event["event"] for event in events} else []


def test_after_a_kill_a_subscriber_goes_on_where_it_was(tmp_path, moto):
    """`kill -9` and a restart: the numbers go on, and the life of the appliance reads as a story."""
    origin, target = moto.new_bucket(), moto.new_bucket()
    moto.fill(origin, some_objects(20))
    with Appliance(tmp_path, volumes=1) as appliance:
        appliance.configure({"name": "a", "source": side(moto, origin), "destination": side(moto, target)})
        appliance.start()
        appliance.settled()
        appliance.ask("job.pause", job="a")
        before = until(lambda: events_up_to("operator_request", appliance), "the request being told")
        appliance.stop(signal.SIGKILL)
        appliance.start()
        after = events_of(appliance, since=before[-1]["id"])

    assert [event["id"] for event in before + after] == list(range(1, len(before + after) + 1))
    story = [event["event"] for event in before]
    wanted = [
        "daemon_started", "volume_attached", "daemon_ready", "scan_finished", "chunk_staged", "chunk_pushed",
        "operator_request",
    ]  # fmt: skip
    assert next(event for event in story if event in wanted) == "daemon_started"
    assert set(wanted) <= set(story)
    assert after[0]["event"] == "daemon_started"
    (request,) = [event for event in before if event["event"] == "operator_request"]
    assert request["data"]["method"] == "job.pause"
    assert request["data"]["uid"] == os.getuid()
