"""What stands between a file and a configuration: YAML that is none, hostile YAML, permissions, secrets."""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s5jtd.config import (
    find,
    load,
)
from s5jtd.config.sides import KeyCredentials
from s5jtd.config.tree import MAX_DEPTH, MAX_NODES, Unreadable, plain, read
from s5jtd.errors import ConfigError
from tests.configs import (
    GOOD,
    SECRET,
    destination_of,
    loaded,
    refusal,
    refused,
)

EXAMPLE = Path(__file__).parent.parent / "etc" / "config.yaml"

# YAML that is none, or too much


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("jobs:\n\t- name: a", "2:1: a tab; YAML indents with spaces only"),
        ("jobs:\n  - name: a\n   source: b", "3:4: not valid YAML: "),
        ("jobs: a\n  log: b", "2:6: not valid YAML: mapping values are not allowed here"),
        ("jobs: 'a\n", "2:1: not valid YAML: found unexpected end of stream"),
        ("jobs: [a\nlog: b", "2:4: not valid YAML: expected ',' or ']'"),
        ("jobs: []\nlog: {}\njobs: []", "3:1: jobs: given twice; first on line 1"),
        ("log: {level: info,\n level: info}", "2:2: log.level: given twice; first on line 1"),
        ("log: *log", "1:6: an alias (*...) without its anchor"),
        ("log: &a [*a]", "1:10: an alias (*...) without its anchor"),
        ("a: &a {}\nlog:\n  <<: *a", "3:3: log.'<<': keys cannot be merged in; write them out"),
        ("log: !!python/object/apply:os.system [id]", "1:6: a tag (!...) means nothing here"),
        ("log: !foo!bar x", "1:6: a tag (!...) means nothing here"),
        ("? [a]\n: b", "1:3: a key must be plain text"),
        ("log: {}\n---\nlog: {}", "2:1: a second document (---)"),
        ("log: {}\njobs: \x07", "2:1: a control character (U+0007)"),
        ("log: {}\n\x00", "2:1: a control character (U+0000)"),
        (b"log: {}\n\njobs: \xff", "3:1: not UTF-8 text"),
        (GOOD.encode("utf-16"), "1:1: not UTF-8 text"),
        ("[" * 1000, f"1:{MAX_DEPTH + 2}: nested more than {MAX_DEPTH} levels deep"),
        ("- " * 1000, f"1:{2 * MAX_DEPTH + 3}: nested more than {MAX_DEPTH} levels deep"),
        ("a: [" + "x," * MAX_NODES + "]", f"1:{2 * (MAX_NODES - 2) + 5}: more than {MAX_NODES} values"),
    ],
)  # fmt: skip
def test_yaml_that_cannot_be_used_is_refused_with_line_and_column(text, line):
    [told] = refused(text)

    assert told.startswith(line)


def test_what_an_alias_repeats_is_wrong_where_it_is_used():
    text = (
        GOOD.replace("[http://10.0.0.1:8080]", "[&end http://a]")
        + "      endpoints:\n        - *end\n        - *end\n"
    )

    assert refused(text) == ["9: jobs[0].destination.endpoints: 'http://a' is there twice"]
    assert refused(text.replace("http://a", "ftp://a")) == [
        f"{line}: jobs[0].{key}: must be a URL that begins with http:// or https://"
        for line, key in [
            (6, "source.endpoints[0]"),
            (10, "destination.endpoints[0]"),
            (11, "destination.endpoints[1]"),
        ]
    ]


def test_c9_a_bomb_of_anchors_goes_off_nowhere():
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    began = time.monotonic()

    [told] = refused("\n".join(rows))

    assert told.endswith(f"more than {MAX_NODES} values")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    "secret", ["*fake-secret", "!fake!secret", "a: fake-secret", "'fake-secret", "@fake-secret"]
)
def test_a_secret_that_yaml_trips_over_is_not_quoted(secret):
    error = refusal(f"{GOOD}      credentials: {{access_key_id: A, secret_access_key: {secret}}}\n")

    assert "fake" not in "".join(traceback.format_exception(error))


@given(st.text(st.sampled_from("ab:- \n\t[]{},&*!|>'\"%@#?~<"), max_size=40))
def test_whatever_is_written_yaml_becomes_text_or_an_answer(text):
    try:
        json.dumps(plain(read(text)))
    except Unreadable as error:
        line = error.line
    else:
        line = 1

    assert 1 <= line <= text.count("\n") + 2  # the end of the text may be what is wrong


# The file itself


def test_the_file_is_the_one_asked_for_else_the_environments_else_the_usual_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert find("a.yaml", {"S5JTD_CONFIG": "/b.yaml"}) == tmp_path / "a.yaml"
    assert find(None, {"S5JTD_CONFIG": "/b.yaml"}) == Path("/b.yaml")
    assert find(None, {"S5JTD_CONFIG": ""}) == find(None, {}) == Path("/etc/s5jtd/config.yaml")


def test_c9_a_file_that_cannot_be_one_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as file:
        file.truncate(10**9)
    for path, reason in [
        (tmp_path / "none.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "pipe", "not a regular file"),
        (huge, "larger than 1MiB"),
        (tmp_path / "nul\0", "no path can be made of it"),
    ]:
        with pytest.raises(ConfigError, match=reason) as caught:
            load(path)
        assert caught.value.hint


def test_a_megabyte_of_comments_is_still_a_configuration():
    filler = "#" * 1000 + "\n"

    text = GOOD + filler * ((2**20 - len(GOOD)) // len(filler))

    assert loaded(text) == loaded(GOOD)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o666])
def test_c5_a_file_with_a_secret_that_every_user_may_read_is_refused(mode):
    [told] = refused(SECRET, mode)

    assert told.startswith(
        "9: jobs[0].destination.credentials.secret_access_key: a secret in a file that every user"
    )
    assert "fake-secret" not in told


def test_a_file_with_a_secret_for_owner_and_group_is_fine():
    credentials = destination_of(loaded(SECRET, 0o640).jobs[0]).credentials

    assert isinstance(credentials, KeyCredentials)
    assert credentials.secret_access_key.get_secret_value() == "fake-secret-for-tests"


def test_a_file_without_a_secret_may_be_read_by_all():
    assert loaded(GOOD, 0o644) == loaded(GOOD, 0o600)


@pytest.mark.parametrize(
    "broken", ["fake secret", '"fake\\nsecret"', '""', '"fake\\r"', "fäke", "[fake]", "{fake: x}"]
)
def test_a_secret_that_could_add_a_line_to_a_file_is_refused_unseen(broken):
    error = refusal(SECRET.replace("fake-secret-for-tests", broken))

    assert "credentials.secret_access_key" in str(error)
    assert "fake" not in "".join(traceback.format_exception(error)).replace("fäke", "fake")


def test_a_secret_is_in_no_repr_and_no_public_form():
    config = loaded(SECRET)

    for told in (repr(config), str(config), json.dumps(config.public()), repr(config.jobs[0].destination)):
        assert "fake-secret" not in told
    assert config.public()["jobs"][0]["destination"]["credentials"]["secret_access_key"] == "***"


def test_the_public_form_is_plain_json_with_units_in_its_names():
    public = loaded(GOOD).public()

    assert json.loads(json.dumps(public)) == public
    assert public["jobs"][0]["scan_every_seconds"] == 60.0
    assert public["jobs"][0]["chunk"] == {
        "bytes": 2**30, "objects": 1000, "min_bytes": None, "min_objects": None,
    }  # fmt: skip
    assert public["volumes"] == [{"path": "/mnt/a", "name": None, "reserve": {"share": 0.05}}]
