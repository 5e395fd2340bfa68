"""The lines both programs exchange: what is written can be read, what is ambiguous is refused."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s5jtd import errors, protocol

_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)  # lone surrogates too
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(_VALUES)
def test_whatever_is_encoded_is_one_printable_line_that_decodes_to_the_same(value):
    line = protocol.encode(value)

    assert line.endswith(b"\n")
    assert line[:-1].decode("ascii").isprintable()
    assert protocol.decode(line) == value


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_malformed(line):
    with suppress(protocol.Malformed):
        protocol.decode(line)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'"\x00"', "not JSON"),
        (b"NaN", "NaN is not JSON"),
        (b"-Infinity", "-Infinity is not JSON"),
        (b"1e999", "too large"),
        (b"9223372036854775809", "64 bits"),
        (b"-9223372036854775809", "64 bits"),
        (b"1" * 5000, "64 bits"),
        (b'{"a":1,"a":1}', "named twice"),
        (b'{"x":{"a":1,"\\u0061":2}}', "named twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b" " * (protocol.LINE_BYTES_MAX + 2), "longer than"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(line, why):
    with pytest.raises(protocol.Malformed, match=why):
        protocol.decode(line)


@pytest.mark.parametrize("unspeakable", [float("nan"), float("inf"), {"a": float("-inf")}, b"bytes"])
def test_what_json_cannot_say_is_never_sent(unspeakable):
    with pytest.raises((ValueError, TypeError)):
        protocol.encode(unspeakable)


def test_a_line_of_the_greatest_length_is_read():
    text = "x" * (protocol.LINE_BYTES_MAX - 2)

    assert protocol.decode(json.dumps(text).encode() + b"\n") == text


def test_both_programs_promise_the_same_exit_codes():
    assert {code.name: code.value for code in errors.Exit} == {
        code.name: code.value for code in protocol.Exit
    }
