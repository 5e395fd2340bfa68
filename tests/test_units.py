"""Quantities mean what their unit says, and what means nothing is refused with an example."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s5jtd import units
from s5jtd.units import TimetableEntry

PARSERS = (
    units.parse_duration,
    units.parse_size,
    units.parse_rate,
    units.parse_percent,
    units.parse_timetable_entry,
)
EVERY_DAY = (0, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0), ("30s", 30), ("5m", 300), ("2h", 7200), ("7d", 604_800), ("1.5h", 5400),
        ("1h30m", 5400), ("1d 4h", 100_800), (" 5m ", 300),
    ],
)  # fmt: skip
def test_a_duration_is_seconds(text, seconds):
    assert seconds == units.parse_duration(text)


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("64MiB", 64 * 2**20), ("1GiB", 2**30), ("10MB", 10_000_000), ("1048576", 2**20), (1048576, 2**20),
        ("1.5KiB", 1536), ("0.3KiB", 307), ("5 TiB", 5 * 2**40), ("0", 0), ("9223372036854775807", 2**63 - 1),
    ],
)  # fmt: skip
def test_a_size_is_bytes(written, size_bytes):
    assert size_bytes == units.parse_size(written)


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("50Mbit/s", 6_250_000), ("6MiB/s", 6 * 2**20), ("8bit/s", 1), ("1.5kB/s", 1500), ("1Gbit/s", 125e6)],
)
def test_a_rate_is_bytes_per_second(text, bytes_per_second):
    assert bytes_per_second == units.parse_rate(text)


def test_a_percentage_is_a_share_of_the_whole():
    assert [units.parse_percent(text) for text in ("5%", "100%", "0 %")] == [0.05, 1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("Mon-Fri 08:00 10Mbit/s", TimetableEntry((0, 1, 2, 3, 4), 480, 1_250_000.0)),
        ("12:00 stop", TimetableEntry(EVERY_DAY, 720, 0.0)),
        ("19:00 unlimited", TimetableEntry(EVERY_DAY, 1140, None)),
        ("sat-mon,Wed 7:05 6MiB/s", TimetableEntry((0, 2, 5, 6), 425, 6.0 * 2**20)),
    ],
)
def test_a_timetable_entry_has_days_a_minute_and_a_rate(text, entry):
    assert entry == units.parse_timetable_entry(text)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "nonsense",
    [
        "", " ", "-5s", "-5", "nan", "NaN", ".nan", "inf", "1e309", "1e309s", "1e309MiB", "1e3MiB/s", "5 x",
        "٣MiB", "5%5", "0x10", "1_000s", "\n", "5s\n", "5MiB\n", "5MiB/s\n", "5%\n",
        "9" * 4300, "9" * 4300 + "s", None, [], {}, True, 1.5, math.nan, math.inf, b"5s", -1, 10**4300,
    ],
    ids=lambda nonsense: repr(nonsense)[:20] if not isinstance(nonsense, int) or nonsense < 2 else "huge",
)  # fmt: skip
def test_nonsense_is_a_short_value_error_and_nothing_else(parse, nonsense):
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse(nonsense)

    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (units.parse_rate, "50", "with its unit, like 50Mbit/s or 6MiB/s"),
        (units.parse_rate, "50Mbps", "like 50Mbit/s"),
        (units.parse_rate, "5mb/s", "like 50Mbit/s"),
        (units.parse_rate, "0B/s", "at least 1B/s"),
        (units.parse_rate, "99999999999999999999GB/s", "less than"),
        (units.parse_duration, "60", "like 30s, 5m, 2h or 7d"),
        (units.parse_duration, "30m1h", "like 30s"),
        (units.parse_duration, "9" * 4300 + "s", "is too long to be a duration"),
        (units.parse_size, "9" * 4300, "is too long to be a size"),
        (units.parse_duration, "5 m", "like 30s"),
        (units.parse_duration, "9999999d", "longer than a hundred years"),
        (units.parse_size, "64M", "like 64MiB, 10MB"),
        (units.parse_size, "9223372036854775808", "less than 8192PiB"),
        (units.parse_size, "5%", "like 64MiB"),
        (units.parse_percent, "101%", "more than the whole"),
        (units.parse_percent, "5", "write it like 5%"),
        (units.parse_timetable_entry, "08:00 10", "like 50Mbit/s"),
        (units.parse_timetable_entry, "24:00 stop", "from 00:00 to 23:59"),
        (units.parse_timetable_entry, "08:60 stop", "from 00:00 to 23:59"),
        (units.parse_timetable_entry, "Tag 08:00 stop", "like Mon, Mon-Fri"),
        (units.parse_timetable_entry, "Mon- 08:00 stop", "like Mon, Mon-Fri"),
        (units.parse_timetable_entry, "Mon-Tue-Wed 08:00 stop", "like Mon, Mon-Fri"),
        (units.parse_timetable_entry, "08:00", '"12:00 stop"'),
    ],
)
def test_a_slip_is_answered_with_what_to_write_instead(parse, text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        parse(text)


def test_two_entries_for_one_minute_of_the_week_are_refused():
    with pytest.raises(ValueError, match="entries 1 and 3 both begin at Wed 08:00"):
        units.parse_timetable(["Mon-Fri 08:00 10Mbit/s", "12:00 stop", "Wed 8:00 unlimited"])


def test_one_minute_on_different_days_is_two_times():
    assert len(units.parse_timetable(["Mon-Fri 08:00 10Mbit/s", "Sat,Sun 08:00 unlimited"])) == 2


@given(st.sampled_from("dhms"), st.integers(0, 36_500))
def test_every_whole_duration_is_read(unit, count):
    assert count * {"d": 86_400, "h": 3_600, "m": 60, "s": 1}[unit] == units.parse_duration(f"{count}{unit}")


@given(st.integers(0, units.LARGEST))
def test_every_plain_number_of_bytes_is_read_exactly(size_bytes):
    assert size_bytes == units.parse_size(size_bytes) == units.parse_size(str(size_bytes))
    if size_bytes <= units.LARGEST >> 20:
        assert size_bytes << 20 == units.parse_size(f"{size_bytes}MiB")


@given(st.integers(0, units.LARGEST // 2))
def test_a_size_as_shown_reads_back_within_half_a_percent(size_bytes):
    told = units.format_bytes(size_bytes)

    back = units.parse_size(told)

    assert size_bytes == pytest.approx(back, rel=0.005, abs=0)
    assert told == units.format_bytes(back)


@given(st.floats(1, 1e15))
def test_a_rate_as_shown_reads_back_within_half_a_percent(bytes_per_second):
    told = units.format_rate(bytes_per_second)

    assert bytes_per_second == pytest.approx(units.parse_rate(told), rel=0.0051, abs=0)


@given(st.floats(0, 3e9))
def test_a_duration_as_shown_reads_back_within_half_of_its_second_unit(seconds):
    told = units.format_duration(seconds)
    slack = {"d": 1800, "h": 1800 if "d" in told else 30, "m": 30 if "h" in told else 0.5, "s": 0.5}

    assert seconds == pytest.approx(units.parse_duration(told), rel=0, abs=slack[told.split()[0][-1]] + 1e-6)


@given(st.text() | st.integers() | st.floats() | st.none())
def test_whatever_is_written_the_answer_is_a_number_or_a_value_error(anything):
    for parse in PARSERS:
        try:
            value = parse(anything)
        except ValueError:
            continue
        if not isinstance(value, TimetableEntry):
            assert math.isfinite(value)
            assert value >= 0


def test_people_see_three_digits_and_two_units():
    assert [units.format_bytes(size) for size in (0, 999, 1024, 1500, 2**20 - 1, 150 * 2**30)] == [
        "0B",
        "999B",
        "1KiB",
        "1.46KiB",
        "1MiB",
        "150GiB",
    ]
    assert units.format_rate(6_250_000) == "5.96MiB/s"
    assert [
        units.format_duration(seconds) for seconds in (0, 0.35, 9.996, 59.97, 125, 3599.6, 86_399, 100_000)
    ] == ["0s", "0.35s", "10s", "1m", "2m 5s", "1h", "1d", "1d 4h"]


def test_what_is_shown_in_a_message_cannot_move_the_cursor():
    assert units.shown("\x1b[2J") == r"'\x1b[2J'"
    assert units.shown("\u202e") == r"'\u202e'"
    assert len(units.shown("x" * 1000)) < 70
