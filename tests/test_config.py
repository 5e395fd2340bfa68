"""A configuration is understood as a whole, or refused with file, line and key path for every reason."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from s5jtd.config import (
    Config,
    FolderDestination,
    FolderSource,
    load,
)
from s5jtd.config.schema import Log, WorkerBounds, sections_at
from s5jtd.config.sides import Section
from s5jtd.config.tree import KeyPath
from s5jtd.config.values import url
from s5jtd.jobs import allowed
from s5jtd.model import Evidence
from s5jtd.units import TimetableEntry
from tests.configs import (
    GOOD,
    config_of,
    destination_of,
    job_of,
    loaded,
    refused,
    source_of,
)

EXAMPLE = Path(__file__).parent.parent / "etc" / "config.yaml"

# What is understood


def test_the_example_for_operators_is_valid():
    assert load(EXAMPLE).jobs[0].name == "archive-to-cloud"


def test_the_example_is_valid_with_all_its_commented_keys():
    text = re.sub(r"(?m)^(\s*)#: ", r"\1", EXAMPLE.read_text())
    assert text.count("#:") < EXAMPLE.read_text().count("#:")

    assert destination_of(loaded(text).jobs[0]).acl == "bucket-owner-full-control"


def test_the_example_names_every_key_of_the_schema():
    models: list[type[Section]] = [Config]
    seen = set()
    while models:
        model = models.pop()
        seen.add(model)
        for name in model.model_fields:
            assert re.search(rf"\b{name}\b", EXAMPLE.read_text()), f"{model.__name__}.{name}"
            path = (*_path_to(model), name)
            models += [below for below in sections_at(path) if below not in seen]
    assert len(seen) > 15


def _path_to(model):
    """A key path that leads to this model."""
    ways: list[tuple[KeyPath, type[Section]]] = [((), Config)]
    for path, here in ways:
        if here is model:
            return path
        ways += [((*path, name), below) for name in here.model_fields for below in sections_at((*path, name))]
    raise AssertionError(model)


def test_what_is_left_out_has_its_default(monkeypatch):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)

    config = loaded(GOOD)

    only = config.jobs[0]
    assert (config.state_dir, config.runtime_dir) == (Path("/var/lib/s5jtd"), Path("/run/s5jtd"))
    assert (config.reports.keep, config.log.level, config.limits.workers) == (
        90 * 86_400, "info", WorkerBounds(),
    )  # fmt: skip
    assert (only.mode, only.engine, only.scan_every, only.attempts) == ("staged", "s5cmd", 60.0, 8)
    assert (only.chunk.bytes, only.chunk.objects) == (2**30, 1000)
    assert (only.evidence.minimum, only.evidence.otherwise) == (Evidence.ETAG, "readback")
    assert (only.skip_existing, only.sha256, only.preserve) == (
        "proven",
        False,
        ("content", "metadata", "tags"),
    )
    source = source_of(only)
    assert (source.prefix, source.region, source.credentials) == ("", None, None)
    assert destination_of(only).endpoints == ()


def test_the_folders_of_systemd_are_the_default(monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/one:/var/lib/two")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one/")

    config = loaded(GOOD)

    assert (config.state_dir, config.runtime_dir) == (Path("/var/lib/one"), Path("/run/one"))


def test_a_relative_state_folder_from_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", "state")

    assert refused(GOOD) == ["1: state_dir: must be an absolute path, like /srv/data"]


def test_a_key_with_nothing_after_it_means_its_default():
    empty = GOOD + "    chunk:\n    attempts: null\nlimits:\nlog:\n  level: ~\n"

    assert loaded(empty) == loaded(GOOD)


def test_text_that_older_yaml_takes_for_something_else_stays_text():
    text = GOOD.replace("bucket: archive\n", "bucket: 0123\n      prefix: no\n      region: 2024-01-01\n")

    source = source_of(loaded(text).jobs[0])

    assert (source.bucket, source.prefix, source.region) == ("0123", "no", "2024-01-01")


@pytest.mark.parametrize("variation", [b"\xef\xbb\xbf" + GOOD.encode(), GOOD.replace("\n", "\r\n").encode()])
def test_byte_order_mark_and_windows_line_ends_do_not_matter(variation):
    assert loaded(variation) == loaded(GOOD)


def test_lines_are_counted_alike_with_windows_line_ends():
    text = GOOD.replace("bucket: archive\n", "bucket: a\n")

    assert refused(text.replace("\n", "\r\n")) == refused(text)


def test_an_anchor_may_be_used_again():
    text = GOOD.replace("[http", "&ends [http") + "      endpoints: *ends\n"

    config = loaded(text)

    assert source_of(config.jobs[0]).endpoints == destination_of(config.jobs[0]).endpoints


@pytest.mark.parametrize(
    ("given", "credentials"),
    [
        ("{profile: sbe-1}", {"profile": "sbe-1"}),
        ("{systemd: cloud}", {"systemd": "cloud"}),
        ("{env: S5JT_CLOUD}", {"env": "S5JT_CLOUD"}),
        ("{anonymous: true}", {"anonymous": True}),
        (
            "{access_key_id: FAKEACCESSKEY, secret_access_key: fake-secret-for-tests}",
            {"access_key_id": "FAKEACCESSKEY", "secret_access_key": "***", "session_token": None},
        ),
    ],
)
def test_each_form_of_credentials_is_read(given, credentials):
    config = loaded(f"{GOOD}      credentials: {given}\n")

    assert config.public()["jobs"][0]["destination"]["credentials"] == credentials


def test_encryption_is_an_algorithm_or_a_key():
    sides = [
        destination_of(job_of(destination={"bucket": "cloud", "sse": sse}))
        for sse in ("AES256", "aws:kms", {"kms_key_id": "alias/ours"})
    ]

    assert [(side.sse_algorithm, side.sse_kms_key_id) for side in sides] == [
        ("AES256", None), ("aws:kms", None), ("aws:kms", "alias/ours"),
    ]  # fmt: skip


def test_a_rate_is_a_timetable_of_one_entry():
    limits = {"bandwidth": {"push": "50Mbit/s", "pull": ["Mon-Fri 08:00 10Mbit/s", "19:00 unlimited"]}}

    bandwidth = config_of(limits=limits).limits.bandwidth

    assert bandwidth.push == (TimetableEntry((0, 1, 2, 3, 4, 5, 6), 0, 6_250_000.0),)
    assert [entry.bytes_per_second for entry in bandwidth.pull] == [1_250_000.0, None]


def test_folders_are_in_the_schema():
    folders = job_of(
        source={"directory": "/data/hot/", "after": {"move": "/data/done"}}, destination={"directory": "/in"}
    )

    assert isinstance(folders.source, FolderSource)
    assert isinstance(folders.destination, FolderDestination)
    assert (folders.source.directory, folders.source.settle) == (Path("/data/hot"), 30.0)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("http://10.20.1.20:8080/", "http://10.20.1.20:8080"),
        ("HTTPS://S3.Example.NET:443", "https://s3.example.net"),
        ("http://minio_1:80", "http://minio_1"),
        ("http://[fd00:0::1]:9000", "http://[fd00::1]:9000"),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000"),
    ],
)
def test_one_endpoint_has_one_spelling(written, kept):
    assert url(written) == kept
    assert url(kept) == kept


def test_the_prefix_is_bytes_inside_the_daemon():
    assert source_of(job_of(source={"bucket": "archive", "prefix": "é　/"})).key_prefix == "é　/".encode()


def test_models_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        loaded(GOOD).log = Log(level="debug")


# What is refused


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("jobs:", "job:", "2: job: unknown key; did you mean jobs? Known here: jobs, limits, log,"),
        ("endpoints", "endpoint", "6: jobs[0].source.endpoint: unknown key; did you mean endpoints? K"),
        ("    source:", "    sorce:", "4: jobs[0].sorce: unknown key; did you mean source? Known here: at"),
        ("name: archive", "nmae: archive", "3: jobs[0].nmae: unknown key; did you mean name?"),
        ("bucket: archive", "stamp: true", "5: jobs[0].source.stamp: unknown key; did you mean "),
        ("name: archive", '"\\e[2J": x', r"3: jobs[0].'\x1b[2J': unknown key"),
        ("name: archive", '"<s3>": x', "3: jobs[0].'<s3>': unknown key"),
        ("bucket: archive", "prefix: x", "4: jobs[0].source.bucket: is required"),
        ("name: archive", "sha256: yes", "3: jobs[0].name: is required"),
        ("name: archive", "name: Archive", "3: jobs[0].name: must be at most 63 lower-case letters"),
        ("name: archive", "name: -all", "3: jobs[0].name: must be at most 63 lower-case letters"),
        ("name: archive", "name: [a]", "3: jobs[0].name: must be text"),
        ("bucket: archive", "bucket: a..b", "5: jobs[0].source.bucket: must be a bucket name: 3 to 63"),
        ("bucket: archive", "bucket: 10.1.2.3", "5: jobs[0].source.bucket: must be a bucket name"),
        ("bucket: archive", "bucket: arn:aws:iam::1:x", "5: jobs[0].source.bucket: must be the ARN of an a"),
        ("bucket: archive", 'bucket: "a\\nb"', "5: jobs[0].source.bucket: must be a bucket name"),
        ("[http://10.0.0.1:8080]", "http://a", "6: jobs[0].source.endpoints: must be a list"),
        ("[http://10.0.0.1:8080]", "[http://a, http://A/]", "6: jobs[0].source.endpoints: 'http://a' is th"),
        ("[http://10.0.0.1:8080]", "\n        - ftp://a", "7: jobs[0].source.endpoints[0]: must be a URL"),
        ("[/mnt/a]", "/mnt/a", "1: volumes: must be a list"),
        ("[/mnt/a]", "[mnt/a]", "1: volumes[0].path: must be an absolute path"),
        ("[/mnt/a]", "[/mnt/../a]", "1: volumes[0].path: must be a path without '..'"),
        ("[/mnt/a]", '["/mnt/a\\n"]', "1: volumes[0].path: must be a path without control char"),
        ("[/mnt/a]", "[{path: /a, reserve: 100%}]", "1: volumes[0].reserve: must leave something"),
        ("[/mnt/a]", "[{path: /a, reserve: 5}, {path: /b, reserve: -5}]", "1: volumes[1].reserve: '-5' is"),
        ("[/mnt/a]", "[{path: /a, name: a b}]", "1: volumes[0].name: must be letters, digits"),
        ("[/mnt/a]", "[{path: /a-*, name: a}]", "1: volumes[0]: a pattern stands for many volumes; leave na"),
        ("[/mnt/a]", "[]", "1: volumes: is required: job archive stages its objects"),
    ],
)  # fmt: skip
def test_c2_a_mistake_is_answered_with_line_key_path_and_remedy(old, new, line):
    assert old in GOOD

    lines = refused(GOOD.replace(old, new, 1))

    assert any(told.startswith(line) for told in lines), lines


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("attempts: 0", "attempts: must be greater than or equal to 1, not '0'"),
        ("attempts: 1001", "attempts: must be less than or equal to 1000, not '1001'"),
        ("attempts: -1", "attempts: must be greater than or equal to 1"),
        ("attempts: .nan", "attempts: must be a whole number, not '.nan'"),
        ("attempts: 1e309", "attempts: must be a whole number"),
        ("attempts: 2.5", "attempts: must be a whole number"),
        (f"attempts: {'9' * 4300}", "attempts: must be less than or equal to 1000, not '9999"),
        (f"attempts: {'9' * 5000}", "attempts: must be a whole number of reasonable size"),
        ("attempts: [8]", "attempts: "),
        ("sha256: maybe", "sha256: must be true or false, not 'maybe'"),
        ("scan_every: 60", "scan_every: '60' is not a duration; write it with its unit, like 30s"),
        ("scan_every: 0.5s", "scan_every: must be at least 1s"),
        ("scan_every: .nan", "scan_every: '.nan' is not a duration"),
        ("scan_every: 1e309s", "scan_every: '1e309s' is not a duration"),
        (f"scan_every: {'9' * 4300}s", "scan_every: '9999"),
        ("chunk: 1GiB", "chunk: must hold keys of its own"),
        ("chunk: {bytes: 0}", "chunk.bytes: must be greater than or equal to 1"),
        ("chunk: {bytes: 64M}", "chunk.bytes: '64M' is not a size"),
        ("chunk: {objects: 0}", "chunk.objects: must be greater than or equal to 1"),
        ("chunk: {size: 1}", "chunk.size: unknown key; did you mean "),
        ("evidence: {minimum: md5}", "evidence.minimum: must be 'checksum', 'etag', 'readback' or 's"),
        ("evidence: {otherwise: x}", "evidence.otherwise: must be 'accept', 'readback' or 'park', not 'x'"),
        ("skip_existing: always", "skip_existing: must be 'proven', 'size' or 'never', not 'always'"),
        ("mode: dierct", "mode: must be 'staged' or 'direct', not 'dierct'"),
        ("preserve: [tags, tags]", "preserve: 'tags' is there twice"),
        ("max_size: -1", "max_size: '-1' is not a size"),
    ],
)  # fmt: skip
def test_c2_a_wrong_value_of_a_job_is_answered_on_its_line(given, message):
    lines = refused(f"{GOOD}    {given}\n")

    assert any(line.startswith(f"9: jobs[0].{message}") for line in lines), lines
    assert all(len(line) < 400 for line in lines)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('prefix: "a\\0b"', "prefix: must be a prefix without control characters"),
        ('prefix: "\\ud800"', "prefix: must be a prefix without control characters"),
        (f"prefix: {'é' * 513}", "prefix: must be at most 1024 bytes"),
        ("region: eu west", "region: must be the name of a region"),
        ("part_size: 1MiB", "part_size: must be auto, or from 5MiB to 5GiB"),
        ("part_size: big", "part_size: 'big' is not a size"),
        ("list_version: 3", "list_version: must be '1', '2' or 'auto', not '3'"),
        ("addressing: dns", "addressing: must be 'auto', 'path' or 'virtual', not 'dns'"),
        ("tls: {ca_bundle: ca.pem}", "tls.ca_bundle: must be an absolute path"),
        ("proxy: https://proxy", "proxy: must be a URL that begins with http://"),
        ("proxy: http://u:hidden@proxy", "proxy: must be a URL without a user name or password"),
        ("storage_class: cold", "storage_class: must be a storage class"),
        ("acl: everybody", "acl: must be 'private', "),
        ("sse: AES512", "sse: must be 'AES256' or 'aws:kms', not 'AES512'"),
        ("directory:", "directory: does not go with the keys beside it"),
        ("sse: {kms_key: x}", "sse.kms_key: unknown key; did you mean kms_key_id?"),
        ("credentials: {}", "credentials: must be exactly one of {profile: NAME}"),
        ("credentials: sbe-1", "credentials: must be exactly one of"),
        ("credentials: {profile: a, env: B}", "credentials: must be exactly one of"),
        ("credentials: {anonymous: false}", "credentials.anonymous: must be true"),
        ("credentials: {access_key_id: FAKEACCESSKEY}", "credentials.secret_access_key: is required"),
        ("credentials: {secret_access_key: hidden}", "credentials.access_key_id: is required"),
        ("credentials: {acess_key_id: A, secret_access_key: hidden}", "credentials.acess_key_id: unknown "),
        ("credentials: {systemd: ../x}", "credentials.systemd: must be the name of a systemd credential"),
        ("credentials: {env: 1X}", "credentials.env: must be how the names"),
        ('credentials: {profile: "a]\\n[b"}', "credentials.profile: must be the name of a profile"),
    ],
)  # fmt: skip
def test_a_wrong_value_of_a_side_is_answered_on_its_line(given, message):
    lines = refused(f"{GOOD}      {given}\n")

    assert any(f": jobs[0].destination.{message}" in line for line in lines), lines
    assert any(line.startswith("9: ") for line in lines)
    assert "hidden" not in "".join(lines)


def test_a_bucket_and_a_folder_do_not_go_together():
    assert refused(f"{GOOD}      directory: /data\n") == [
        "8: jobs[0].destination.bucket: does not go with the keys beside it"
    ]


@pytest.mark.parametrize(
    "endpoint",
    [
        "10.0.0.1:8080", "file:///etc/passwd", "http://", "http:///x", "http://host/path", "http://host?x", "http://h#",
        "http://h?", "http://user@host", "http://user:hidden@host", "http://host:0", "http://host:65536", "http://h:x",
        "http://[::1", "http://ho st", "http://host\\x", "http://host\n", "http://hö.example", "http://a..b", "http://-a",
        "http://169.254.169.254", "http://169.254.0.1:80/", "http://[fe80::1]", "http://[fe80::1%25eth0]",
        "http://[::ffff:169.254.169.254]", "http://2852039166", "http://0xa9fea9fe", "http://169.254.43518",
        "http://0251.0376.0251.0376", "http://[fd00::1%eth0]", "http://host.", None, 5,
    ],
)  # fmt: skip
def test_c4_what_is_no_endpoint_is_refused_without_quoting_it(endpoint):
    with pytest.raises(ValueError, match="must be a URL") as caught:
        url(endpoint)

    assert "hidden" not in str(caught.value)


@given(st.text(max_size=40).map("http://".__add__) | st.text(max_size=40))
def test_whatever_is_written_an_endpoint_is_normal_or_refused(text):
    try:
        kept = url(text)
    except ValueError:
        return
    assert re.fullmatch(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?", kept)
    assert url(kept) == kept


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file():
    text = (
        GOOD.replace("bucket: archive\n", "bukket: archive\n")
        + "    attempts: x\n    mode: dierct\nlgo: {}\n"
    )

    lines = refused(text)

    assert [line.split(": ")[:2] for line in lines] == [
        ["4", "jobs[0].source.bucket"],
        ["5", "jobs[0].source.bukket"],
        ["9", "jobs[0].attempts"],
        ["10", "jobs[0].mode"],
        ["11", "lgo"],
    ]


def test_a_file_without_jobs_is_refused():
    assert refused("") == refused("# nothing yet\n") == refused("jobs:\n") == ["1: jobs: is required"]
    assert refused("jobs: []") == ["1: jobs: must not be empty"]
    assert refused("just text") == ["1: must hold keys of its own"]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (
            "workers: lots",
            "10: limits.workers: must be auto, a whole number from 1 to 1024, or {min: 4, max: 64}",
        ),
        (
            "workers: 0",
            "10: limits.workers: must be auto, a whole number from 1 to 1024, or {min: 4, max: 64}",
        ),
        (
            "workers: [4]",
            "10: limits.workers: must be auto, a whole number from 1 to 1024, or {min: 4, max: 64}",
        ),
        ("workers: {min: 4, maximum: 9}", "10: limits.workers.maximum: unknown key; did you mean max? Known"),
        (
            "workers: {min: 8, max: 4}",
            "10: limits.workers: min is more than max: no number lies between them",
        ),
        ("workers: {min: 0}", "10: limits.workers.min: must be greater than or equal to 1"),
        ("workers: {max: 2000}", "10: limits.workers.max: must be less than or equal to 1024, not '2000'"),
        ("parts: 200", "10: limits.parts: must be auto, a whole number from 1 to 128, or {min: 4, max: 64}"),
    ],
)
def test_bounds_that_leave_nothing_to_choose_are_refused(written, told):
    lines = refused(f"{GOOD}limits:\n  {written}\n")

    assert [line for line in lines if line.startswith(told)] == lines


def test_bounds_are_shown_as_they_are_written_and_one_alone_moves_the_other():
    limits = config_of(limits={"workers": {"max": 2}, "parts": {"min": 32}}).limits

    assert limits.model_dump(mode="json")["workers"] == {"min": None, "max": 2}
    assert config_of(limits={"workers": "7"}).public()["limits"]["workers"] == 7
    assert config_of().public()["limits"]["parts"] == "auto"
    assert allowed(config_of(limits={"workers": {"max": 2}, "parts": {"min": 32}})) == ((2, 2), (32, 32))
    assert allowed(config_of(limits={"workers": 7})) == ((7, 7), (1, 16))
    assert allowed(config_of()) == ((4, 128), (1, 16))


def test_limits_that_exclude_each_other_are_refused():
    with pytest.raises(ValidationError, match="min_bytes is more than bytes"):
        job_of(chunk={"bytes": "1MiB", "min_bytes": "2MiB"})
    with pytest.raises(ValidationError, match="min_objects is more than objects"):
        job_of(chunk={"objects": 10, "min_objects": 11})
    with pytest.raises(ValidationError, match="min_size is more than max_size"):
        job_of(min_size="2MB", max_size="1MB")
    with pytest.raises(ValidationError, match="min_age is more than max_age"):
        job_of(min_age="2d", max_age="1h")
    with pytest.raises(ValidationError, match="must lead out of the directory"):
        job_of(source={"directory": "/data", "after": {"move": "/data/done"}})
    with pytest.raises(ValidationError, match="symlinks: follow needs after: keep"):
        job_of(source={"directory": "/data", "after": "delete", "symlinks": "follow"})
