"""What must hold between the parts of a configuration, what is not built yet, and what becomes of it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s5jtd.config import (
    Config,
    VolumeConfig,
    changes,
    expand_volumes,
    merged,
)
from s5jtd.errors import ConfigError
from tests.configs import (
    GOOD,
    JOB,
    SECRET,
    loaded,
    refused,
)

EXAMPLE = Path(__file__).parent.parent / "etc" / "config.yaml"


def test_a_default_may_be_written_out():
    text = GOOD + (
        "      stamp: no\n      bind: null\n"
        "    mode: staged\n    engine: s5cmd\n    order: key\n    include: []\n"
        "    exclude: []\n    preserve: [content, metadata, tags]\n"
        "    min_size:\n    max_size: null\n    min_age: ~\n    max_age:\n"
        "limits: {bandwidth: {pull: null, push: []}}\nreports: {upload: null}\n"
    )

    assert loaded(text) == loaded(GOOD)


def test_a_value_that_is_none_is_told_once():
    [told] = refused(GOOD + "    mode: dierct\n")

    assert told.startswith("9: jobs[0].mode: must be")


# What must hold between the parts


def two_jobs(first, second):
    """A file of two jobs; each is source, destination, as flow mappings."""
    rows = [f"  - {{name: j{n}, source: {s}, destination: {d}}}" for n, (s, d) in enumerate([first, second])]
    return "\n".join(["volumes: [/mnt/a]", "jobs:", *rows, ""])


def test_c3_names_and_paths_meet_once():
    text = (
        "volumes:\n  - /mnt/a\n  - {path: /mnt/b, name: disk}\n"
        "  - /mnt/./a/\n  - {path: /mnt/c, name: disk}\n"
        + GOOD[GOOD.index("jobs:") :]
        + "  - {name: archive, source: {bucket: one}, destination: {bucket: two}}\n"
    )

    assert refused(text) == [
        "4: volumes[2].path: /mnt/a is what volumes[0] has already",
        "5: volumes[3].name: disk is what volumes[1] has already",
        "13: jobs[1].name: archive is what jobs[0] has already",
    ]


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("{bucket: one}", "{bucket: one}"),
        ("{bucket: one}", "{bucket: one, prefix: copy/}"),
        ("{bucket: one, prefix: a/}", "{bucket: one, prefix: a/b/}"),
        ("{bucket: one, prefix: a/b/}", "{bucket: one, prefix: a/}"),
        ("{bucket: one, endpoints: [http://h, http://i]}", "{bucket: one, endpoints: [http://I:80/]}"),
        ("{bucket: one}", "{bucket: one, endpoints: [https://s3.eu-west-1.amazonaws.com]}"),
    ],
)
def test_c3_a_job_that_would_feed_itself_is_refused(source, destination):
    [told] = refused(
        f"volumes: [/mnt/a]\njobs:\n  - name: me\n    source: {source}\n    destination: {destination}\n"
    )

    assert told.startswith("5: jobs[0].destination: a loop: job me would write where it reads")
    assert "s3://one/" in told


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("{bucket: one, prefix: a/}", "{bucket: one, prefix: b/}"),
        ("{bucket: one}", "{bucket: two}"),
        ("{bucket: one, endpoints: [http://h]}", "{bucket: one, endpoints: [http://h:8080]}"),
        ("{bucket: one, endpoints: [http://h]}", "{bucket: one}"),
    ],
)
def test_a_job_between_two_places_is_fine(source, destination):
    text = f"volumes: [/mnt/a]\njobs:\n  - name: me\n    source: {source}\n    destination: {destination}\n"

    assert loaded(text).jobs[0].name == "me"


@pytest.mark.parametrize(
    "prefixes", [("", ""), ("site/", ""), ("", "site/"), ("site/", "site/7/"), ("sit", "site/")]
)
def test_two_jobs_that_could_write_the_same_names_are_refused(prefixes):
    ends = [
        (
            f"{{bucket: from{n}}}",
            f"{{bucket: into, endpoints: [http://h, http://{n}.net], prefix: {prefix!r}}}",
        )
        for n, prefix in enumerate(prefixes)
    ]

    [told] = refused(two_jobs(*ends))

    assert told.startswith("4: jobs[1].destination: jobs j0 and j1 could write the same names")
    assert f"s3://into/{prefixes[0]} and s3://into/{prefixes[1]};" in told


def test_c3_jobs_that_feed_each_other_are_refused():
    [told] = refused(two_jobs(("{bucket: one}", "{bucket: two}"), ("{bucket: two}", "{bucket: one}")))

    assert told.startswith("3: jobs[0].destination: a loop: each job reads what the one before it writes")
    assert told.endswith("j0 -> j1 -> j0")


def test_a_ring_of_jobs_is_refused_once_and_a_chain_is_fine():
    ring = ["one", "two", "three", "four", "one"]
    text = "volumes: [/mnt/a]\njobs:\n" + "".join(
        f"  - {{name: {s}, source: {{bucket: {s}}}, destination: {{bucket: {d}}}}}\n"
        for s, d in itertools.pairwise(ring)
    )

    [told] = refused(text)

    assert told.endswith("one -> two -> three -> four -> one")
    assert len(loaded(text.replace("destination: {bucket: one}", "destination: {bucket: end}")).jobs) == 4


# Volumes


def volumes(*given):
    return expand_volumes(Config.model_validate({"volumes": given, "jobs": [JOB]}))


def test_a_pattern_stands_for_the_folders_there_are_at_that_moment(tmp_path):
    (tmp_path / "volume-list.txt").touch()
    pattern = f"{tmp_path}/volume-*"
    config = Config.model_validate({"volumes": [{"path": pattern, "reserve": "1GiB"}], "jobs": [JOB]})
    assert expand_volumes(config) == ()

    for name in ("volume-10", "volume-02", "other"):
        (tmp_path / name).mkdir()

    assert str(config.volumes[0].path) == pattern
    assert expand_volumes(config) == (
        VolumeConfig(path=tmp_path / "volume-02", name="volume-02", reserve=2**30),
        VolumeConfig(path=tmp_path / "volume-10", name="volume-10", reserve=2**30),
    )


def test_a_folder_written_out_keeps_what_is_written_for_it(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v2").mkdir()

    found = volumes(
        f"{tmp_path}/v*", {"path": f"{tmp_path}/v2", "name": "slow", "reserve": "10%"}, f"{tmp_path}/v?"
    )

    assert [(volume.name, volume.reserve) for volume in found] == [("slow", 0.1), ("v1", 0.05)]


def test_the_share_of_a_reserve_is_a_float_and_its_size_an_int():
    [share, size] = volumes({"path": "/a", "reserve": "5%"}, {"path": "/b", "reserve": "20GiB"})

    assert (type(share.reserve), share.reserve) == (float, 0.05)
    assert (type(size.reserve), size.reserve) == (int, 20 * 2**30)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["/mnt/a", "/mnt/b"], ["a", "b"]),
        (["/mnt/a/data", "/mnt/b/data"], ["mnt-a-data", "mnt-b-data"]),
        (["/x/a b", "/y/a-b"], ["x-a-b", "y-a-b"]),
        (["/a-b/c", "/a/b-c", "/a/b/c"], ["a-b-c-2", "b-c", "a-b-c"]),
        ([{"path": "/mnt/z", "name": "a"}, "/mnt/a"], ["a", "mnt-a"]),
        (["/"], ["volume"]),
        (["/mnt/" + "x" * 100], ["x" * 63]),
        (["/mnt/.hidden"], ["hidden"]),
    ],
)
def test_each_volume_has_a_name_of_its_own(given, names):
    assert [volume.name for volume in volumes(*given)] == names


def test_the_name_of_a_folder_that_a_pattern_finds_does_not_depend_on_the_others(tmp_path):
    for disk in ("disk1", "disk2"):
        (tmp_path / disk / "data").mkdir(parents=True)
    both = volumes(f"{tmp_path}/*/data")
    (tmp_path / "disk1" / "data").rmdir()

    assert [volume.name for volume in both] == ["disk1-data", "disk2-data"]
    assert volumes(f"{tmp_path}/*/data") == both[1:]


@given(
    st.lists(
        st.text(st.sampled_from("ab-/. é"), min_size=1, max_size=8).map("/".__add__), unique=True, max_size=6
    )
)
def test_however_folders_are_called_their_names_differ(paths):
    if any(".." in path.split("/") for path in paths):
        return

    names = [volume.name for volume in volumes(*paths)]

    assert len(set(names)) == len(names)


# What a reload may change


def test_the_same_configuration_has_no_changes():
    assert changes(loaded(SECRET), loaded(SECRET)) == ([], [])


@pytest.mark.parametrize(
    ("added", "path"),
    [
        ("log: {level: debug}\n", "log.level"),
        ("limits: {workers: 4}\n", "limits.workers"),
        ("limits: {workers: {max: 4}}\n", "limits.workers"),
        ("limits: {parts: 4}\n", "limits.parts"),
        ("    scan_every: 5m\n", "jobs[archive].scan_every"),
        ("    attempts: 3\n", "jobs[archive].attempts"),
        ("    evidence: {minimum: size}\n", "jobs[archive].evidence.minimum"),
        ("    chunk: {objects: 10}\n", "jobs[archive].chunk.objects"),
        ("      credentials: {profile: new}\n", "jobs[archive].destination.credentials"),
        ("      storage_class: GLACIER\n", "jobs[archive].destination.storage_class"),
        ("      region: r\n", "jobs[archive].destination.region"),
        ("      endpoints: [http://10.0.0.9]\n", "jobs[archive].destination.endpoints"),
        ("reports: {keep: 1d}\n", "reports.keep"),
        ("  - {name: more, source: {bucket: one}, destination: {bucket: two}}\n", "jobs[more] added"),
    ],
)
def test_what_a_reload_changes_live_is_named(added, path):
    assert changes(loaded(GOOD), loaded(GOOD + added)) == ([path], [])


@pytest.mark.parametrize(
    ("old", "new", "paths"),
    [
        ("volumes:", "state_dir: /srv/s\nvolumes:", ["state_dir"]),
        ("volumes:", "runtime_dir: /run/s\nvolumes:", ["runtime_dir"]),
        ("[/mnt/a]", "[/mnt/*]", ["volumes[/mnt/a] removed"]),
        ("[/mnt/a]", "[{path: /mnt/a, name: x}]", ["volumes[/mnt/a].name"]),
        ("bucket: archive", "bucket: other", ["jobs[archive].source.bucket"]),
        ("bucket: cloud-a", "prefix: x\n      bucket: cloud-a", ["jobs[archive].destination.prefix"]),
        (
            "bucket: archive\n      endpoints: [http://10.0.0.1:8080]", "bucket: other\n      endpoints: [http://b]",
            ["jobs[archive].source.bucket", "jobs[archive].source.endpoints"],
        ),
    ],
)  # fmt: skip
def test_what_needs_a_restart_is_named(old, new, paths):
    _changed, kept = changes(loaded(GOOD), loaded(GOOD.replace(old, new)))
    assert kept == paths


def test_new_volumes_are_taken_up_and_old_ones_stay_until_a_restart():
    old, new = loaded(GOOD), loaded(GOOD.replace("[/mnt/a]", "[/mnt/b, {path: /mnt/c-*, reserve: 1GiB}]"))

    assert changes(old, new) == (
        ["volumes[/mnt/b] added", "volumes[/mnt/c-*] added"], ["volumes[/mnt/a] removed"],
    )  # fmt: skip
    assert [str(spec.path) for spec in merged(old, new).volumes] == ["/mnt/a", "/mnt/b", "/mnt/c-*"]


def test_a_side_that_leads_elsewhere_is_kept_whole_and_the_rest_of_its_job_changes():
    """The old bucket at the new endpoints, or with the new credentials, would be neither."""
    before = loaded(GOOD)
    after = loaded(
        GOOD.replace("bucket: archive", "bucket: other").replace("10.0.0.1", "10.0.0.2")
        + "      region: r\n    scan_every: 5m\n"
    )

    both = merged(before, after)

    assert both.jobs[0].source == before.jobs[0].source
    assert both.jobs[0].destination == after.jobs[0].destination
    assert both.jobs[0].scan_every == 300
    assert changes(before, after) == (
        ["jobs[archive].destination.region", "jobs[archive].scan_every"],
        ["jobs[archive].source.bucket", "jobs[archive].source.endpoints"],
    )


def test_what_is_kept_is_named_again_at_the_next_reload():
    before, after = loaded(GOOD), loaded(GOOD.replace("[/mnt/a]", "[/mnt/b]"))

    assert changes(merged(before, after), after) == ([], changes(before, after)[1])


def test_what_is_kept_must_go_together_with_what_is_new():
    """The name the old job gives up is not free before a restart."""
    before = loaded(GOOD + "      prefix: x/\n")
    after = loaded(
        GOOD
        + "      prefix: y/\n  - {name: more, source: {bucket: one},"
        + " destination: {bucket: cloud-archive, prefix: x/}}\n"
    )

    with pytest.raises(ConfigError, match="could write the same names") as refusal:
        merged(before, after)
    assert "restart" in refusal.value.hint


def test_a_job_that_goes_and_an_order_that_changes_are_live():
    other = "  - {name: more, source: {bucket: one}, destination: {bucket: two}}\n"
    turned = GOOD.replace("jobs:\n", "jobs:\n" + other)

    assert changes(loaded(GOOD + other), loaded(turned)) == ([], [])
    assert changes(loaded(GOOD + other), loaded(GOOD)) == (["jobs[more] removed"], [])


def test_a_new_secret_is_a_change_that_is_named_and_not_shown():
    [path], frozen = changes(loaded(SECRET), loaded(SECRET.replace("-for-", "-in-")))

    assert (path, frozen) == ("jobs[archive].destination.credentials.secret_access_key", [])


def test_a_side_that_becomes_a_folder_needs_a_restart():
    before, after = (
        Config.model_validate({"volumes": ["/mnt/a"], "jobs": [JOB | {"source": source}]})
        for source in ({"bucket": "archive"}, {"directory": "/data"})
    )

    assert changes(before, after) == ([], ["jobs[archive].source"])
