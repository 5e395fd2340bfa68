"""What an operator sees, whole screens at a time; and that nothing in it can do more than be seen."""

from __future__ import annotations

import copy
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s5jtctl import live, render, units
from s5jtctl.live import bar
from s5jtctl.status import Level, status, verdict
from s5jtctl.terminal import Look, failure
from s5jtctl.text import cut, paint, safe, table, width, wrap
from s5jtctl.watch import changes, frame
from s5jtd import shapes
from s5jtd.control import requests
from tests.fake_controls import STATUS, FakeControls, per_state

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
PLAIN = Look(80, colour=False, now=NOW)
COLOUR = Look(80, colour=True, now=NOW)


def troubled() -> shapes.Status:
    """An appliance at 3 a.m.: one job as it should be, one paused, one blocked, a disk and a link gone."""
    reply = copy.deepcopy(STATUS)
    fine: Any = reply["jobs"][0]
    paused = copy.deepcopy(fine) | {
        "name": "hot-folder",
        "state": "paused",
        "paused_until": "2026-01-31T13:30:00Z",
        "objects": per_state(
            delivered=1234567, seen=12000, pulling=200, staged=145, pushing=50, gone=3, parked=2
        ),
        "bytes": per_state(delivered=97 * 2**40, seen=2**40, parked=5),
        "rates": {"pull_bytes_per_second": None, "push_bytes_per_second": None},
        "last_scan": None,
    }
    blocked = copy.deepcopy(fine) | {
        "name": "a-job-with-a-name-that-is-longer-than-anyone-would-like",
        "state": "blocked",
        "reason": "every endpoint of the source is down, the last one said: connection refused by peer",
        "eta_seconds": 9000,
        "last_scan": fine["last_scan"] | {"finished_at": None, "objects": 12000, "complete": False},
        "last_delivery_at": None,
    }
    reply["jobs"] += [paused, blocked]
    reply["volumes"] += [
        {
            "name": "vol2", "path": "/mnt/volume-02", "uuid": None, "state": "missing", "free_bytes": None,
            "staged_bytes": None,
        },
        {
            "name": "vol3", "path": "/mnt/a/path/that/goes/on/and/on/until/it/is/longer/than/there/is/room",
            "uuid": "x", "state": "full", "free_bytes": 0, "staged_bytes": 900 * 2**30,
        },
    ]  # fmt: skip
    reply["endpoints"] += [
        {
            "job": "archive-to-cloud", "side": "destination", "url": "https://s3.eu-central-1.amazonaws.com",
            "state": "degraded", "latency_ms": 250.4, "last_error": "503 SlowDown",
        },
        {
            "job": "archive-to-cloud", "side": "source", "url": "http://10.20.1.21:8080", "state": "down",
            "latency_ms": None, "last_error": "connection refused",
        },
    ]  # fmt: skip
    reply["problems"] = [
        {
            "code": "endpoint_down",
            "message": "Cannot reach the endpoint: http://10.20.1.21:8080 of archive-to-cloud: refused",
            "hint": "look at the cable and at the device, then: s5jtctl endpoints check",
            "since": "2026-01-31T09:48:00Z",
        }
    ]
    return reply


FINE_SCREEN = """\
s5jtd 0.1.0 running for 4h, pid 812, /etc/s5jtd/config.yaml

JOBS
running  archive-to-cloud  pull 6.00 MiB/s  push -  ETA -
  delivered  85 objects  85.0 MiB  85%  last 14s ago
  to go      15 objects  15.0 MiB
  12 seen, 0 pulling, 3 staged, 0 pushing, 0 gone, 0 parked
  source scanned 1m ago: 100 objects

STATE   VOLUME    STAGED      FREE  FILL  PATH
online  vol1    3.00 MiB  97.0 GiB    0%  /mnt/volume-01

STATE  LATENCY  SIDE    URL                     JOB
up        2 ms  source  http://10.20.1.20:8080  archive-to-cloud
"""

TROUBLED_SCREEN = """\
s5jtd 0.1.0 running for 4h, pid 812, /etc/s5jtd/config.yaml

PROBLEMS
! Cannot reach the endpoint: http://10.20.1.21:8080 of archive-to-cloud: refused
  hint: look at the cable and at the device, then: s5jtctl endpoints check
  since 2026-01-31T09:48:00Z, 2h 12m ago

JOBS
blocked  a-job-with-a-name-that-is-longer-than-anyone-would-like
  pull 6.00 MiB/s  push -  ETA 2h 30m
  reason: every endpoint of the source is down, the last one said: connection
  refused by peer
  delivered  85 objects  85.0 MiB  85%
  to go      15 objects  15.0 MiB
  12 seen, 0 pulling, 3 staged, 0 pushing, 0 gone, 0 parked
  source being scanned, begun 2m ago: 12,000 objects so far
paused   hot-folder              pull -  push -  ETA -
  paused until 2026-01-31T13:30:00Z, in 1h 30m
  delivered  1,234,567 objects  97.0 TiB  98%  last 14s ago
  to go         12,395 objects  1.00 TiB
  12,000 seen, 200 pulling, 145 staged, 50 pushing, 3 gone, 2 parked
  source not scanned yet
running  archive-to-cloud        pull 6.00 MiB/s  push -  ETA -
  delivered  85 objects  85.0 MiB  85%  last 14s ago
  to go      15 objects  15.0 MiB
  12 seen, 0 pulling, 3 staged, 0 pushing, 0 gone, 0 parked
  source scanned 1m ago: 100 objects

STATE    VOLUME    STAGED      FREE  FILL  PATH
missing  vol2           -         -     -  /mnt/volume-02
full     vol3     900 GiB       0 B  100%  /mnt/a/path/that/goes/on/and/on/unti~
online   vol1    3.00 MiB  97.0 GiB    0%  /mnt/volume-01

STATE     LATENCY  SIDE         URL                                    JOB
down            -  source       http://10.20.1.21:8080                 archive-~
  last error: connection refused
degraded   250 ms  destination  https://s3.eu-central-1.amazonaws.com  archive-~
  last error: 503 SlowDown
up           2 ms  source       http://10.20.1.20:8080                 archive-~
"""


def screen(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def test_an_appliance_in_order_fits_one_screen():
    assert screen(status(STATUS, PLAIN)) == FINE_SCREEN


def test_trouble_comes_first_with_what_to_do_about_it():
    assert screen(status(troubled(), PLAIN)) == TROUBLED_SCREEN


def test_a_half_that_moves_says_how_much_at_a_time_and_why() -> None:
    reply = copy.deepcopy(STATUS)
    job: Any = reply["jobs"][0]
    job["objects"]["pulling"] = 5
    job["concurrency"] = {
        "pull": {"workers": 57, "parts": 1, "why": "the limit feeds 57"},
        "push": {"workers": 16, "parts": 4, "why": "usual"},
    }

    assert "  at a time  pull 57 (the limit feeds 57)" in status(reply, PLAIN)
    job["objects"] |= {"pulling": 0, "pushing": 3}
    job["concurrency"]["push"] |= {"upload_part_bytes": 8 << 20, "upload_part_why": "a long way"}
    assert "  at a time  push 16 (usual) in parts of 8.00 MiB (a long way)" in status(reply, PLAIN)


def test_colour_adds_nothing_but_colour():
    coloured = screen(status(troubled(), COLOUR))
    sequences = ["\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"]

    assert all(sequence in coloured for sequence in sequences)
    for sequence in sequences:
        coloured = coloured.replace(sequence, "")
    assert coloured == TROUBLED_SCREEN


def test_a_daemon_with_nothing_to_do_says_just_that():
    idle = copy.deepcopy(STATUS) | {"jobs": [], "volumes": [], "endpoints": []}

    assert status(idle, PLAIN) == ["s5jtd 0.1.0 running for 4h, pid 812, /etc/s5jtd/config.yaml"]


HOSTILE = st.text(st.characters(exclude_categories=()), min_size=1, max_size=150)


@given(text=HOSTILE, columns=st.integers(40, 120))
def test_no_text_from_outside_leaves_its_line_or_its_width(text, columns):
    reply = troubled()
    for part in (*reply["jobs"], *reply["volumes"], *reply["endpoints"], *reply["problems"], reply["daemon"]):
        for name, value in part.items():
            if isinstance(value, str):
                part[name] = text  # type: ignore[literal-required]

    lines = status(reply, Look(columns, colour=False, now=NOW))

    assert [line for line in lines if not line.isprintable() or width(line) > columns] == []


@pytest.mark.parametrize(
    ("done", "left", "shown"),
    [(0, 0, "-"), (0, 5, "0%"), (5, 0, "100%"), (10**6, 1, "99%"), (1, 2, "33%")],
)
def test_a_hundred_percent_is_all_of_it(done, left, shown):
    reply = copy.deepcopy(STATUS)
    reply["jobs"][0]["bytes"] = per_state(delivered=done, seen=left)
    reply["jobs"][0]["objects"] = per_state(delivered=done, seen=left)

    assert f"  {shown}  last" in status(reply, PLAIN)[4]


def test_an_empty_object_that_has_to_travel_is_not_a_hundred_percent():
    reply = copy.deepcopy(STATUS)
    reply["jobs"][0]["bytes"] = per_state(delivered=7)
    reply["jobs"][0]["objects"] = per_state(delivered=1, parked=1)

    assert "  99%  " in status(reply, PLAIN)[4]


def test_a_problem_without_words_is_shown_by_its_code():
    reply = troubled()
    reply["problems"][0]["message"] = " "

    assert status(reply, PLAIN)[3] == "! endpoint_down"


# Monitoring.


def changed(**parts: Any) -> shapes.Status:
    reply = copy.deepcopy(STATUS)
    for part, change in parts.items():
        target: Any = reply[part]  # type: ignore[literal-required]
        (target if part == "daemon" else target[0]).update(change)
    return reply


@pytest.mark.parametrize(
    ("reply", "level", "words"),
    [
        (STATUS, Level.OK, "1 job, 15 objects to go"),
        (changed(jobs={"state": "idle"}), Level.OK, "1 job, 15 objects to go"),
        (changed(volumes={"state": "full"}), Level.OK, "1 job, 15 objects to go"),
        (changed(jobs={"state": "paused"}), Level.WARNING, "job archive-to-cloud is paused"),
        (
            changed(jobs={"objects": per_state(parked=2000)}),
            Level.WARNING,
            "2,000 parked in archive-to-cloud",
        ),
        (changed(daemon={"state": "stopping"}), Level.WARNING, "the daemon is stopping"),
        (
            changed(endpoints={"state": "down"}),
            Level.WARNING,
            "source endpoint http://10.20.1.20:8080 is down",
        ),
        (changed(volumes={"state": "missing"}), Level.CRITICAL, "volume vol1 is missing"),
        (
            changed(jobs={"state": "blocked", "reason": "no endpoint\nis up"}),
            Level.CRITICAL,
            r"job archive-to-cloud is blocked: no endpoint\x0ais up",
        ),
        (
            changed(jobs={"state": "failed"}),
            Level.CRITICAL,
            "job archive-to-cloud is failed: no reason given",
        ),
    ],
)
def test_monitoring_hears_one_line_with_the_right_level(reply, level, words):
    assert verdict(reply) == (level, words)


def test_one_lost_volume_of_several_is_a_warning_and_what_stands_still_is_said_first():
    level, words = verdict(troubled())

    assert level is Level.CRITICAL
    assert words.startswith("job a-job-with-a-name-that-is-longer-than-anyone-would-like is blocked: every")
    reply = troubled()
    del reply["jobs"][1:]
    assert verdict(reply)[0] is Level.WARNING


# The other answers.


ANSWERS = [
    (
        render.results,
        FakeControls().job_pause(requests.JobPause(all=True)),
        "archive-to-cloud: paused\n",
    ),
    (
        render.scan,
        FakeControls().job_scan(requests.JobScan(job="archive-to-cloud", wait=True)),
        "archive-to-cloud: scanned, pass 7: 1,234 objects, 12 must travel\n",
    ),
    (
        render.scan,
        FakeControls().job_scan(requests.JobScan(job="archive-to-cloud")),
        "archive-to-cloud: scan started, pass 7\n",
    ),
    (
        render.resync,
        FakeControls().job_resync(requests.JobResync(job="archive-to-cloud", wait=True)),
        """\
+ a/1
* a/2  (etag differs)
  and 2 more

= 1,234 same
+     2 missing at the destination
*     1 different
-     1 only at the destination
!     0 could not be compared
3 will travel again
""",
    ),
    (
        render.resync,
        FakeControls().job_resync(requests.JobResync(job="archive-to-cloud")),
        (
            "archive-to-cloud: resync started; its totals: s5jtctl status archive-to-cloud; to wait for"
            " all it finds: --wait\n"
        ),
    ),
    (
        render.objects,
        FakeControls().object_list(requests.ObjectList(job="archive-to-cloud")),
        r"""STATE          SIZE  EVIDENCE  VOLUME  TRIES  SINCE                 KEY
delivered  1.00 MiB  etag      -           1  2026-01-31T11:00:00Z  a/1
delivered  1.00 MiB  etag      -           1  2026-01-31T11:00:00Z  a/2
delivered  1.00 MiB  etag      -           1  2026-01-31T11:00:00Z  b/\x1b[31mred
delivered  1.00 MiB  etag      -           1  2026-01-31T11:00:00Z  b/raw\xff
""",
    ),
    (
        render.explain,
        {
            "object": {
                "key": "a/\u202e1",
                "id": 7,
                "state": "parked",
                "size_bytes": 2**20,
                "reason": None,
                "sha": False,
                "age_seconds": 7300,
            },
            "story": [
                {"at": "2026-01-31T11:00:00Z", "what": "seen", "detail": "listed, 1.00 MiB"},
                {"at": "2026-01-31T11:00:01Z", "what": "pulling", "detail": None},
            ],
            "failures": [
                {
                    "at": "2026-01-31T11:00:02Z",
                    "step": "pull",
                    "endpoint": "http://10.20.1.20:8080",
                    "volume": "vol1",
                    "code": "object_refused",
                    "message": "403",
                }
            ],
        },
        r"""a/\u202e1
  state        parked
  id           7
  size_bytes   1,048,576 (1.00 MiB)
  sha          no
  age_seconds  7300 (2h 1m)

STORY
2026-01-31T11:00:00Z  seen  (listed, 1.00 MiB)
2026-01-31T11:00:01Z  pulling

FAILED                STEP  VOLUME  ENDPOINT                WHY
2026-01-31T11:00:02Z  pull  vol1    http://10.20.1.20:8080  object_refused: 403
""",
    ),
    (
        render.volumes,
        FakeControls().volume_list(requests.VolumeList()),
        """\
STATE   VOLUME     SIZE      FREE    STAGED  ONLY-HERE  PATH
online  vol1    100 GiB  97.0 GiB  3.00 MiB        0 B  /mnt/volume-01
""",
    ),
    (
        render.volume_change,
        FakeControls().volume_drain(requests.VolumeDrain(volume="vol1")),
        "vol1: draining, state draining, 3.00 MiB staged\n",
    ),
    (
        render.endpoints,
        FakeControls().endpoint_list(requests.EndpointList()),
        """\
STATE  LATENCY  ERRORS  CHECKED               SIDE    JOB               URL
up        2 ms       0  2026-01-31T11:59:00Z  source  archive-to-cloud  http://10.20.1.20:8080
""",
    ),
    (
        render.bandwidth,
        {
            "limits": [
                {
                    "direction": "pull",
                    "limit_bytes_per_second": None,
                    "set_by": "operator",
                    "rate_bytes_per_second": None,
                    "next_change_at": "2026-01-31T19:00:00Z",
                },
                {
                    "direction": "push",
                    "limit_bytes_per_second": 6_250_000,
                    "set_by": "config",
                    "rate_bytes_per_second": 5_000_000,
                    "next_change_at": None,
                },
            ]
        },
        """\
DIRECTION       LIMIT         NOW  SET
pull        unlimited           -  by an operator, changes in 7h
push       5.96 MiB/s  4.77 MiB/s  as configured
""",
    ),
    (
        render.reports,
        FakeControls().report_list(requests.ReportList()),
        """\
STATUS           ID  FILES     BYTES   TOOK  FAILED  PARKED  REPORT
success  1769860000     85  85.0 MiB  1m 1s       0       0  2026-01-31T11:46:40Z  archive-to-cloud, pass 7
""",
    ),
    (
        render.reloaded,
        FakeControls().config_reload(requests.ConfigReload()),
        """\
reloaded
  in force: limits.bandwidth
  not before a restart: state_dir
  not read again before a restart: systemd credential cloud
""",
    ),
    (render.reloaded, {"result": "reloaded", "changed": [], "kept": []}, "reloaded, nothing differs\n"),
    (render.retried, {"retried": 1200}, "1,200 will travel again\n"),
    (render.ping, {"result": "pong"}, "pong\n"),
    (render.objects, {"objects": [], "next": None}, "no such object\n"),
    (render.volumes, {"volumes": []}, "there is no volume\n"),
    (render.endpoints, {"endpoints": []}, "there is no endpoint\n"),
    (render.reports, {"reports": []}, "there is no report\n"),
    (render.results, {"jobs": []}, "there is no job\n"),
]


@pytest.mark.parametrize(("renderer", "reply", "shown"), ANSWERS)
def test_an_answer_reads_as_it_should(renderer, reply, shown):
    assert screen(renderer(reply, PLAIN)) == shown


def test_a_report_shows_every_member_and_its_objects():
    lines = render.report(FakeControls().report_get(requests.ReportGet(id="latest", objects=True)), PLAIN)

    assert lines[1:4] == [
        "duration_seconds       61.5 (1m 1s)",
        "files_synced           1",
        "bytes_transferred      1,048,576 (1.00 MiB)",
    ]
    assert "evidence               checksum 0, etag 1, readback 0, size 0" in lines
    assert "volumes                -" in lines
    assert lines[-2:] == [
        "EVIDENCE      SIZE  TOOK  DELIVERED             KEY",
        "etag      1.00 MiB    1s  2026-01-31T11:46:00Z  a/1",
    ]


def test_an_event_is_one_line():
    event = {"id": 1, "at": "2026-01-31T11:00:00Z", "event": "parked", "job": None, "message": "a\nb\x07"}

    assert render.event(event) == r"2026-01-31T11:00:00Z  parked  a\x0ab\x07"


def test_an_error_is_two_lines_whatever_it_says():
    assert failure("no\r\nway", "do\x1b[2Jthis") == [r"s5jtctl: no\x0d\x0away", r"hint: do\x1b[2Jthis"]


# Text.


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain é 漢 'quoted' a\\b", "plain é 漢 'quoted' a\\b"),
        ("\x00\x1b]0;owned\x07\x7f", r"\x00\x1b]0;owned\x07\x7f"),
        ("\x85\x9b31m", r"\u0085\u009b31m"),
        ("gpj.\u202eexe\u2066\u200f", r"gpj.\u202eexe\u2066\u200f"),
        ("zero\u200bwidth\ufeff", r"zero\u200bwidth\ufeff"),
        ("line\u2028\u2029", r"line\u2028\u2029"),
        ("half\ud800", r"half\ud800"),
        ("\U000e0001tag", r"\U000e0001tag"),
        (None, "-"),
    ],
)
def test_what_could_fool_a_terminal_or_a_reader_is_spelled_out(raw, shown):
    assert safe(raw) == shown


@given(HOSTILE)
def test_a_key_that_was_shown_can_be_pasted_back(text):
    key = text.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")

    assert key.encode() in requests.spellings(safe(key)) or "\\" in key


@given(HOSTILE, st.integers(1, 30))
def test_wrapped_text_keeps_its_letters_and_its_width(text, columns):
    shown = safe(text)
    lines = wrap(shown, columns)

    assert "".join(lines).replace(" ", "") == shown.replace(" ", "")
    assert all(width(line) <= max(columns, 2) for line in lines)  # one wide letter takes two
    assert width(cut(shown, columns)) <= columns


def test_a_table_lines_up_by_what_letters_take_on_the_screen():
    assert table("NAME >SIZE KEY", [["漢字", "1", "k"], ["e\u0301", "200", "k2"]]) == [
        "NAME  SIZE  KEY",
        "漢字     1  k",
        "e\u0301      200  k2",
    ]


def test_paint_without_colour_is_the_text_itself():
    assert (paint("x", "red", on=False), paint("x", None, on=True)) == ("x", "x")


# Quantities.


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30), ("5m", 300), ("2h", 7200), ("7d", 604800), ("0s", None), ("5", None), ("2 h", None),
        ("1.5h", None), ("-5m", None), ("", None), ("\u0663s", None), ("5w", None),
    ],
)  # fmt: skip
def test_durations(text, seconds):
    if seconds is None:
        with pytest.raises(ValueError, match="write it like 30s, 5m, 2h or 7d"):
            units.duration_seconds(text)
    else:
        assert units.duration_seconds(text) == seconds


@pytest.mark.parametrize(
    ("text", "rate"), [("50Mbit/s", 6_250_000), ("6MiB/s", 6 * 2**20), ("1.5kB/s", 1500), ("8bit/s", 1),
                       ("50", None), ("50M", None), ("50Mb/s", None), ("50mbit/s", None), ("1bit/s", None),
                       ("0B/s", None), ("1e3B/s", None), ("nan", None), ("50Mbit", None)],
)  # fmt: skip
def test_rates_need_a_unit(text, rate):
    if rate is None:
        with pytest.raises(ValueError, match="is no rate"):
            units.rate_bytes_per_second(text)
    else:
        assert units.rate_bytes_per_second(text) == rate


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("17", 17),
        ("2h", "2026-01-31T10:00:00Z"),
        ("2026-01-31T13:00:00+02:00", "2026-01-31T11:00:00Z"),
        ("2026-01-31T13:00:00", None),
        ("yesterday", None),
        ("999999999d", None),
    ],
)
def test_since_takes_an_id_a_time_with_its_zone_or_how_long_ago(text, meant):
    if meant is None:
        with pytest.raises(ValueError, match="is no time"):
            units.instant(text, NOW)
    else:
        assert units.instant(text, NOW) == meant


@pytest.mark.parametrize(
    ("size", "shown"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (10239, "10.0 KiB"),
     (2**20 - 1, "1.00 MiB"), (1000 * 1024, "0.98 MiB"), (999 * 1024, "999 KiB"),
     (1.3 * 2**40, "1.30 TiB"), (2**70, "1048576 PiB")],
)  # fmt: skip
def test_amounts_take_three_digits(size, shown):
    assert units.amount(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "-"), (0, "0s"), (0.4, "0s"), (59, "59s"), (60, "1m"), (3605, "1h"), (3660, "1h 1m"),
     (90000, "1d 1h"), (-5, "0s")],
)  # fmt: skip
def test_spans_take_two_units(seconds, shown):
    assert units.span(seconds) == shown


@pytest.mark.parametrize(
    ("time", "before", "after"),
    [
        (None, "-", "-"),
        ("2026-01-31T11:00:00Z", "1h ago", "2026-01-31T11:00:00Z"),
        ("2026-01-31T13:00:00Z", "2026-01-31T13:00:00Z", "in 1h"),
        ("soon", "soon", "soon"),
        ("2026-01-31T11:00:00", "2026-01-31T11:00:00", "2026-01-31T11:00:00"),
    ],
)
def test_a_time_on_the_wrong_side_of_a_clock_is_shown_as_it_is(time, before, after):
    assert (units.ago(time, NOW), units.ahead(time, NOW)) == (before, after)


# The live screen.


def test_only_the_lines_that_changed_are_sent():
    assert changes(["a", "b", "c"], ["a", "B"]) == "\x1b[2;1H\x1b[KB\x1b[3;1H\x1b[K"
    assert changes(["a", "b"], ["a", "b"]) == ""
    assert changes([], ["a"]) == "\x1b[1;1H\x1b[Ka"


@pytest.mark.parametrize(("columns", "rows"), [(80, 23), (200, 49), (40, 10)])
def test_the_live_screen_keeps_to_its_terminal(columns, rows):
    reply = troubled()
    lines = live.screen(reply, Look(columns, colour=False, now=NOW), rows)

    assert max(map(width, lines)) <= columns
    assert lines[1 if lines[1] else 2].startswith("PROBLEMS")
    if rows > 40:  # where there is room for all, all of it is there
        assert len(lines) <= rows
        assert {"JOBS", "STATE"} <= {line.split(" ")[0] for line in lines if line}


def test_colour_adds_nothing_but_colour_to_the_live_screen():
    plain, coloured = (
        live.screen(troubled(), Look(80, colour=colour, now=NOW), 49) for colour in (False, True)
    )

    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured] == plain


@given(
    st.fixed_dictionaries({state: st.integers(0, 10**15) for state in per_state()}),
    st.integers(1, 300),
)
def test_a_bar_is_as_long_as_it_is_to_be_and_shows_all_there_is(numbers, columns):
    drawn = bar(numbers, columns, colour=False)

    assert len(drawn) == max(12, columns)
    letters = {"delivered": "#", "pushing": ">", "staged": "=", "pulling": "<", "seen": ".", "parked": "!"}
    assert set(drawn[1:-1].strip()) == {letter for state, letter in letters.items() if numbers[state]}


def test_what_is_under_way_is_told_inside_a_large_object():
    reply = copy.deepcopy(STATUS)
    job: Any = reply["jobs"][0]
    job["objects"], job["bytes"] = per_state(pulling=1), per_state(pulling=100 * 2**30)
    job["under_way"] = {"pull_bytes": 43 * 2**30, "push_bytes": 0}

    assert "  under way  43.0 GiB of 100 GiB pulled" in status(reply, PLAIN)
    assert "pulling 43.0 GiB of 100 GiB" in "\n".join(live.screen(reply, PLAIN, 49))


def happened(number: int, **more: Any) -> Any:
    return {
        "id": number, "at": f"2026-01-31T11:{number:02d}:00.000Z", "event": f"event_{number}",
        "job": "archive", "message": f"number={number}", "level": "info", **more,
    }  # fmt: skip


def test_what_happened_is_told_where_there_is_room_the_newest_first():
    reply: Any = copy.deepcopy(STATUS)
    without = live.screen(reply, PLAIN, 49)
    events = [happened(number, job=None if number == 3 else "archive") for number in range(30)]
    events.append(happened(31, event="endpoint_down", level="warning", data={"error": "no \x1b route"}))

    dense = [line for line in without if line]
    low, high = (live.screen(reply, PLAIN, rows, events) for rows in (len(dense) + 3, 49))
    assert low[: len(dense)] == dense
    assert low[len(dense) :] == [
        "LATELY",
        r"11:31:00Z  archive  endpoint_down  no \x1b route",
        "11:29:00Z  archive  event_29  number=29",
    ]
    assert high[-1] == "11:00:00Z  archive  event_0  number=0"
    assert "11:03:00Z  event_3  number=3" in high
    assert live.screen(reply, PLAIN, len(dense) + 1, events) == dense
    assert "\x1b[33mendpoint_down\x1b[0m" in live.screen(reply, COLOUR, 49, events)[len(without) + 2]


def test_what_does_not_fit_the_terminal_is_counted():
    assert frame(["a", "b", "c", "d"], 3, "q quits") == ["a", "b", "2 more lines; q quits"]
    assert frame(["a"], 4, "q quits") == ["a", "", "", "q quits"]
