"""Folders as sides of a job: nothing escapes, nothing is lost, nothing is taken half written."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from s5jtd.engine.contract import Batch, Caller, Failure, Outcome, Remote, Transfer
from s5jtd.errors import EndpointDown, EndpointRefused, Exit, ObjectGone
from s5jtd.folders import room
from s5jtd.folders.client import FolderClient
from s5jtd.folders.engine import FolderEngine
from s5jtd.folders.leave import Leave, is_ready
from s5jtd.folders.paths import etag_of, ignore_lease_breaks, unfit
from s5jtd.folders.watch import FolderWatch
from s5jtd.model import Direction, Listed
from s5jtd.s3.heads import head
from s5jtd.s3.listing import list_objects
from tests.appliance import Appliance, contents, digests, side, until
from tests.filesystems import loop_volume, need_mounts
from tests.servers import Server


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path, volumes=1) as appliance:
        yield appliance


@pytest.fixture
def hot(tmp_path: Path) -> Path:
    """A folder that somebody writes to."""
    folder = tmp_path / "hot"
    folder.mkdir()
    return folder


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, body in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def files_in(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(".s5jtd-") and not path.name.startswith(".s5jtd-leaving."):
            with contextlib.suppress(FileNotFoundError):  # it left in this moment
                found[name] = path.read_bytes()
    return found


def listed(folder: Path, **options: Any) -> list[Listed]:
    pages = list_objects(FolderClient(folder, **options), b"")
    return [one for page in pages for one in page.objects]


def upload(hot: Path, server: Server, there: str, **source: Any) -> dict[str, Any]:
    return {
        "name": "up",
        "source": {"directory": str(hot), "settle": "0s", **source},
        "destination": side(server, there, "site/"),
        "scan_every": "1s",
    }


# A folder to a bucket

BAD_NAME = os.fsdecode(b"not UTF-8 \xff\n")
TREE = {
    "a-b": b"1",
    "a/b": b"22",
    "a0": b"",
    'deep/er/and deeper/ümlaut\'s "file"': b"x" * 70_000,
    "deep/er/.hidden": b"h",
    "con": b"a name like others",
}


def test_a_folder_arrives_and_a_second_pass_moves_nothing(
    appliance: Appliance, hot: Path, moto: Server
) -> None:
    there = moto.new_bucket()
    fill(hot, TREE)
    (hot / "link").symlink_to("/etc/passwd")
    (hot / "linked").symlink_to("/etc")
    os.mkfifo(hot / "pipe")
    appliance.configure(upload(hot, moto, there))
    expected = digests({b"site/" + name.encode(): body for name, body in TREE.items()})

    assert appliance.once() == Exit.DONE, appliance.log()
    assert expected == contents(moto, there)
    assert TREE.items() <= files_in(hot).items()

    moto.log.clear()
    assert appliance.once() == Exit.DONE, appliance.log()
    assert moto.log.count("PUT") == 0

    fill(hot, {"a0": b"no longer empty"})
    with (hot / "busy").open("wb"):
        ended = appliance.command("run", "--once", "--job", "up", "--json")
    assert ended.returncode == Exit.DONE, ended.stderr
    assert digests({b"site/a0": b"no longer empty"}).items() <= contents(moto, there).items()
    assert json.loads(ended.stdout)["jobs"][0]["settling"] == 1

    appliance.configure(upload(hot, moto, there, settle="1h"))
    assert f"; {len(TREE) + 1} files still settling" in appliance.command("run", "--dry-run").stderr


def test_links_are_followed_where_that_is_asked_for(
    appliance: Appliance, hot: Path, moto: Server, tmp_path: Path
) -> None:
    there = moto.new_bucket()
    elsewhere = tmp_path / "elsewhere"
    fill(hot, {"own": b"1"})
    fill(elsewhere, {"x/file": b"22", "file": b"333"})
    (hot / "to-file").symlink_to(elsewhere / "file")
    (hot / "to-folder").symlink_to(elsewhere / "x")
    (hot / "around").symlink_to("../hot")
    (elsewhere / "x" / "back").symlink_to(".")
    (hot / "nowhere").symlink_to("/no/such/file")
    appliance.configure(upload(hot, moto, there, symlinks="follow"))

    assert appliance.once() == Exit.DONE, appliance.log()
    assert contents(moto, there) == digests(
        {b"site/own": b"1", b"site/to-file": b"333", b"site/to-folder/file": b"22"}
    )
    assert [one["links"] for one in appliance.events("folder_links_skipped")] == [3]

    fill(elsewhere, {"x/file": b"another"})
    assert appliance.once() == Exit.DONE, appliance.log()
    assert contents(moto, there)[b"site/to-folder/file"] == hashlib.sha256(b"another").hexdigest()


@pytest.mark.parametrize("after", ["delete", "move"])
def test_delivered_files_leave_in_the_same_run(
    appliance: Appliance, hot: Path, moto: Server, after: str
) -> None:
    there, done = moto.new_bucket(), appliance.folder / "done"
    fill(hot, TREE)
    fill(hot, {BAD_NAME: b"no engine can name it"})
    fill(done, {"a/b": b"of an earlier day"})
    appliance.configure(
        upload(hot, moto, there, after="delete" if after == "delete" else {"move": str(done)})
    )

    assert appliance.once() == Exit.OBJECTS_FAILED, appliance.log()

    assert list(files_in(hot)) == [BAD_NAME]
    assert digests({b"site/" + name.encode(): body for name, body in TREE.items()}) == contents(moto, there)
    if after == "move":
        assert files_in(done) == {**TREE, "a/b": b"of an earlier day", "a/b.1": TREE["a/b"]}


def test_a_hot_folder_with_a_slow_writer_who_renames_and_deletes(
    appliance: Appliance, hot: Path, moto: Server
) -> None:
    """No look round comes in time: all is heard of, and leaves, by itself."""
    there = moto.new_bucket()
    moto.fill(there, {b"site/batch/007": b"7"})
    appliance.configure({**upload(hot, moto, there, settle="1s", after="delete"), "scan_every": "1d"})
    appliance.start()
    expected = {}
    with (hot / "slow").open("wb") as slow:
        for n in range(300):
            fill(hot, {f"batch/{n:03}": b"%d" % n})
            expected[b"site/batch/%03d" % n] = b"%d" % n
        fill(hot, {"upload.part": b"whole"})
        slow.write(b"first half, ")
        slow.flush()
        until(lambda: appliance.counted().get("delivered", 0) >= 300, "the small files")
        assert b"site/slow" not in contents(moto, there)
        slow.write(b"second half")
    fill(hot, {"short-lived": b"x"})
    (hot / "short-lived").unlink()
    with contextlib.suppress(FileNotFoundError):  # it may have left
        (hot / "upload.part").rename(hot / "upload")
    expected[b"site/slow"] = b"first half, second half"

    until(lambda: not files_in(hot), "all files to leave")

    found = contents(moto, there)
    assert digests(expected).items() <= found.items()
    assert {name for name in found if b"upload" not in name} == set(expected)
    assert appliance.stop() == Exit.DONE


def test_a_change_is_heard_of_at_once(appliance: Appliance, hot: Path, moto: Server) -> None:
    """Also in folders that came later, and in one that was moved; the next look round is far away."""
    there = moto.new_bucket()
    fill(hot, {"old/f": b"0"})
    appliance.configure({**upload(hot, moto, there, settle="1s"), "scan_every": "1d"})
    appliance.start()
    until(lambda: appliance.counted() == {"delivered": 1}, "the first look")

    fill(hot, {"new/and/deep": b"1", "top": b"2"})
    until(lambda: appliance.counted() == {"delivered": 3}, "what is new")
    fill(hot, {"new/and/deep": b"changed", "new/and/later": b"3"})
    (hot / "old").rename(hot / "moved")
    until(lambda: appliance.counted().get("delivered", 0) >= 5, "what changed")
    fill(hot, {"moved/g": b"4"})
    (appliance.folder / "elsewhere").write_bytes(b"5")
    (appliance.folder / "elsewhere").rename(hot / "renamed")

    expected = {b"old/f": b"0", b"moved/f": b"0", b"new/and/deep": b"changed", b"new/and/later": b"3",
                b"top": b"2", b"moved/g": b"4", b"renamed": b"5"}  # fmt: skip
    until(lambda: len(contents(moto, there)) == len(expected), "all of it")
    until(
        lambda: contents(moto, there) == digests({b"site/" + key: body for key, body in expected.items()}),
        "their last versions",
    )


def test_what_changes_between_listing_and_delivery_arrives_in_its_last_version(
    appliance: Appliance, hot: Path, moto: Server
) -> None:
    there = moto.new_bucket()
    fill(hot, {"f": b"old"})
    appliance.configure(upload(hot, moto, there, after="delete"))
    appliance.start()
    for n in range(20):
        fill(hot, {"f": b"version %d" % n})
        time.sleep(0.05)

    until(lambda: not files_in(hot), "the file to leave")

    assert digests({b"site/f": b"version 19"}) == contents(moto, there)


# A bucket to a folder

HOSTILE = [
    b"../x", b"/x", b"a/../b", b"a//b", b"./c", b"n" * 300, b".s5jtd-folder", b"d/" + b"m" * 256,
]  # fmt: skip
PLAIN = {b"con": b"1", b"ordinary/file": b"22", b"f": b"f" * 5000, "é".encode(): b"", b"..dots": b"d"}


def download(server: Server, here: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "name": "down",
        "source": side(server, here),
        "destination": {"directory": str(folder)},
        "scan_every": "1s",
        **more,
    }


def parked(appliance: Appliance) -> dict[str, str]:
    rows = appliance.ask("object.list", job="down", state="parked", limit=100)["objects"]
    return {row["key"]: row["reason"] for row in rows}


def test_no_key_leads_outside_and_none_is_lost_silently(appliance: Appliance, moto: Server) -> None:
    here, folder = moto.new_bucket(), appliance.folder / "in"
    folder.mkdir()
    moto.fill(here, PLAIN | dict.fromkeys(HOSTILE, b"evil"))
    moto.fill(here, {b"f/g": b"a file is in its way"})
    around = sorted(str(path) for path in appliance.folder.iterdir())
    appliance.configure(download(moto, here, folder))

    assert appliance.once() == Exit.OBJECTS_FAILED, appliance.log()

    in_the_way = {"f": PLAIN[b"f"]} if (folder / "f").is_file() else {"f/g": b"a file is in its way"}
    expected = {name.decode(): body for name, body in PLAIN.items() if name != b"f"} | in_the_way
    assert files_in(folder) == expected
    assert {"x", "b"}.isdisjoint(os.listdir(folder))
    assert not (appliance.folder / "x").exists()
    assert {path for path in around if path != str(appliance.config_path)} <= {
        str(path) for path in appliance.folder.iterdir()
    }
    appliance.start()
    reasons = parked(appliance)
    assert len(reasons) == len(HOSTILE) + 1
    assert all(reason.startswith(("unmovable: ", "unfit_name: ")) for reason in reasons.values()), reasons


def test_a_folder_that_holds_half_of_it_gets_the_other_half(appliance: Appliance, moto: Server) -> None:
    here, folder = moto.new_bucket(), appliance.folder / "in"
    moto.fill(here, PLAIN)
    fill(folder, {"con": b"1", "f": b"another"})
    was = os.stat(folder / "con").st_ino
    appliance.configure(download(moto, here, folder))

    assert appliance.once() == Exit.DONE, appliance.log()

    assert files_in(folder) == {name.decode(): body for name, body in PLAIN.items()}
    assert os.stat(folder / "con").st_ino == was
    assert os.listdir(folder / ".s5jtd-temporary") == []
    appliance.start()
    (folder / "f").write_bytes(b"rotten")
    found = appliance.ask("job.resync", job="down", wait=True)
    assert (found["totals"]["different"], found["rearmed"]) == (1, 1)
    until(lambda: (folder / "f").read_bytes() == PLAIN[b"f"], "the repair")


def test_a_folder_whose_disk_is_gone_gets_nothing(appliance: Appliance, moto: Server) -> None:
    """What a mount point shows when its disk is not mounted is an empty folder."""
    here, folder = moto.new_bucket(), appliance.folder / "in"
    folder.mkdir()
    moto.fill(here, {b"k": b"1"})
    appliance.configure(download(moto, here, folder))
    assert appliance.once() == Exit.DONE, appliance.log()
    folder.rename(appliance.folder / "elsewhere")
    folder.mkdir()
    moto.fill(here, {b"l": b"2"})

    assert appliance.once() != Exit.DONE

    assert files_in(folder) == {}
    os.rmdir(folder)
    (appliance.folder / "elsewhere").rename(folder)
    assert appliance.once() == Exit.DONE, appliance.log()
    assert files_in(folder) == {"k": b"1", "l": b"2"}


@pytest.mark.skipif(
    not Path("/sys/fs/ext4/features/casefold").exists(),
    reason="this kernel's ext4 tells letters' cases apart",
)
def test_names_that_differ_in_case_alone_are_not_lost_where_they_are_one(
    appliance: Appliance, moto: Server
) -> None:
    here = moto.new_bucket()
    moto.fill(here, {b"A": b"upper", b"a": b"lower", b"dir/x": b"1", b"DIR/x": b"2", b"plain": b"3"})
    with loop_volume(appliance.folder / "disk", "ext4", 64 * 2**20, "-O", "casefold") as disk:
        folder = disk.path / "in"
        folder.mkdir()
        subprocess.run(["chattr", "+F", folder], check=True)
        appliance.configure(download(moto, here, folder))

        assert appliance.once() == Exit.OBJECTS_FAILED, appliance.log()

        arrived = files_in(folder)
        appliance.start()
        lost = set(parked(appliance))
        assert len(arrived) == 3
        assert arrived.keys() | lost == {"A", "a", "dir/x", "DIR/x", "plain"}
        appliance.stop()


def test_a_link_inside_the_folder_is_not_followed(appliance: Appliance, moto: Server) -> None:
    here, folder, outside = moto.new_bucket(), appliance.folder / "in", appliance.folder / "outside"
    outside.mkdir()
    folder.mkdir()
    (folder / "away").symlink_to(outside)
    (folder / "name").symlink_to(outside / "file")
    moto.fill(here, {b"away/k": b"1", b"name": b"2"})
    appliance.configure(download(moto, here, folder))

    assert appliance.once() == Exit.OBJECTS_FAILED, appliance.log()

    assert list(outside.iterdir()) == []
    assert (folder / "name").read_bytes() == b"2"
    assert not (folder / "name").is_symlink()


# From folder to folder, with the power going


def test_a_kill_in_the_middle_loses_nothing_and_leaves_nothing_half_written(
    appliance: Appliance, hot: Path
) -> None:
    folder = appliance.folder / "in"
    folder.mkdir()
    files = {f"{n % 7}/{n:04}": os.urandom(n * 37 % 60_000) for n in range(600)}
    fill(hot, files)
    appliance.configure(
        {
            "name": "across",
            "source": {"directory": str(hot), "settle": "0s", "after": "delete"},
            "destination": {"directory": str(folder)},
            "chunk": {"objects": 50},
            "scan_every": "1s",
        }
    )
    arrived = 0
    for _ in range(3):
        appliance.start()
        more = min(arrived + 100, len(files))
        until(lambda: len(files_in(folder)) >= more, "some files to arrive")  # noqa: B023  now
        appliance.stop(signal.SIGKILL)
        there = files_in(folder)
        arrived = len(there)
        assert there.items() <= files.items()
        assert {**files_in(hot), **there}.keys() == files.keys()

    assert appliance.once() == Exit.DONE, appliance.log()
    assert files_in(folder) == files
    assert files_in(hot) == {}
    assert os.listdir(folder / ".s5jtd-temporary") == []
    assert "mismatch" not in appliance.log()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_counts_as_delivered_survives_a_power_cut_and_is_half_written_never(
    appliance: Appliance, hot: Path, kind: str
) -> None:
    need_mounts(kind)
    files = {f"d{n % 3}/{n}": os.urandom(n * 997 % 30_000) for n in range(120)}
    fill(hot, files)
    size = {"ext4": 64, "xfs": 320}[kind] * 2**20
    with loop_volume(appliance.folder / "disk", kind, size) as disk:
        appliance.configure(
            {
                "name": "across",
                "source": {"directory": str(hot), "settle": "0s", "after": "delete"},
                "destination": {"directory": str(disk.path)},
                "chunk": {"objects": 10},
                "scan_every": "1s",
            }
        )
        appliance.start()
        until(lambda: len(files_in(hot)) <= 90, "some files to leave")
        left = files_in(hot)
        disk.cut_power()
        appliance.stop(signal.SIGKILL)
        disk.restore_power()

        there = files_in(disk.path)
        assert files.keys() - left.keys() <= there.keys()
        assert there.items() <= files.items()
        assert {**files_in(hot), **there} == files


# The parts


def test_keys_come_in_the_order_of_their_bytes_and_from_any_window(hot: Path) -> None:
    fill(hot, dict.fromkeys([*TREE, "zz/1", "zz/2", "a-/x"], b""))
    client = FolderClient(hot)
    everything = [one.key for page in list_objects(client, b"") for one in page.objects]

    assert everything == sorted(everything)
    assert len(everything) == 9
    for start in everything:
        for end in everything:
            pages = list_objects(client, b"", start_after=start, end_at=end)
            assert [one.key for page in pages for one in page.objects] == [
                key for key in everything if start < key <= end
            ]
    for prefix in (b"a", b"a/", b"deep/er", b"zz/1", b"no"):
        pages = list_objects(client, prefix)
        assert [one.key for page in pages for one in page.objects] == [
            key for key in everything if key.startswith(prefix)
        ]


def test_a_file_waits_until_it_has_settled_and_nobody_writes_to_it(hot: Path) -> None:
    ignore_lease_breaks()
    fill(hot, {"f": b"1"})
    os.utime(hot / "f", (0, 0))  # a copied time says nothing
    now = time.time()

    assert listed(hot, settle_seconds=30, clock=lambda: now + 20) == []
    [one] = listed(hot, settle_seconds=30, clock=lambda: now + 40)
    with (hot / "f").open("ab"):
        assert not is_ready(hot, one)
        assert Leave(hot, None)([one], lambda: None) == []
    assert is_ready(hot, one)
    (hot / "f").unlink()
    assert is_ready(hot, one)  # where it is taken, it will be found gone


def test_that_links_are_passed_over_is_said_once(hot: Path) -> None:
    fill(hot, {"f": b"1"})
    (hot / "link").symlink_to("f")
    client = FolderClient(hot)
    with capture_logs() as logs:
        for _ in range(2):
            [page] = client.own_listing(b"", b"", None)
            assert [one.key for one in page.objects] == [b"f"]
    assert [(one["event"], one["links"], one["first"]) for one in logs] == [
        ("folder_links_skipped", 1, "link")
    ]


def test_a_watch_tells_when_what_changed_may_be_taken(hot: Path) -> None:
    now = [1000.0]
    watch = FolderWatch(30, lambda: now[0])
    listing = FolderClient(hot, settle_seconds=30, watch=watch)

    def due(at: float) -> bool:
        now[0] = at
        return watch.is_due()

    list(listing.own_listing(b"", b"", None))
    assert not due(2000)
    fill(hot, {"f": b"1"})
    assert [due(2000), due(2029), due(2031)] == [False, False, True]
    watch.begin()
    assert not due(3000)
    fill(hot, {".s5jtd-leaving.f": b"1"})
    assert not due(4000)
    (hot / "below").mkdir()
    assert due(4001)
    watch.begin()
    list(listing.own_listing(b"", b"", None))
    fill(hot, {"below/g": b"1"})
    assert [due(4002), due(4033)] == [False, True]
    now[0] = os.stat(hot / "f").st_ctime
    watch.begin()
    list(listing.own_listing(b"", b"", None))  # which meets what has not settled
    assert [due(now[0] + 29), due(now[0] + 2)] == [False, True]


def test_that_not_all_folders_can_be_watched_is_said_once(hot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(hot, {f"{n}/f": b"" for n in range(9)})
    monkeypatch.setattr("s5jtd.folders.watch.WATCHES_MAX", 4)
    client = FolderClient(hot, watch=FolderWatch(0))
    with capture_logs() as logs:
        for _ in range(2):
            pages = client.own_listing(b"", b"", None)
            assert sum(len(page.objects) for page in pages) == 9
    assert [one["event"] for one in logs] == ["folder_not_watched"]


def test_a_time_in_the_future_is_waited_out_by_watching(hot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(hot, {"f": b"1"})
    client = FolderClient(hot, settle_seconds=30, clock=lambda: 1000.0)
    seen = []
    for now in (0.0, 29.0, 31.0):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        seen.append([one.key for page in list_objects(client, b"") for one in page.objects])

    assert seen == [[], [], [b"f"]]


def test_only_the_very_file_that_was_delivered_leaves(hot: Path) -> None:
    fill(hot, {"same": b"1", "grown": b"1", "replaced": b"1", "link": b"1"})
    before = {one.key: one for one in listed(hot)}
    fill(hot, {"grown": b"12"})
    fill(hot, {"other": b"1"})
    (hot / "other").rename(hot / "replaced")
    (hot / "link").unlink()
    (hot / "link").symlink_to("same")

    left = Leave(hot, None)(list(before.values()), lambda: None)

    assert [one.key for one in left] == [b"same"]
    assert sorted(os.listdir(hot)) == ["grown", "link", "replaced"]


def test_a_file_that_a_crash_met_in_the_moment_of_leaving_has_its_name_again(hot: Path) -> None:
    fill(hot, {"d/.s5jtd-leaving.f": b"1", "d/.s5jtd-leaving.g": b"old", "d/g": b"new"})

    listed(hot)

    assert files_in(hot) == {"d/f": b"1", "d/g": b"new", "d/g.s5jtd-kept-1": b"old"}


@pytest.mark.parametrize("key", HOSTILE)
def test_a_key_that_can_be_no_path_is_told_so(key: bytes) -> None:
    assert unfit(key)


def test_a_head_tells_version_and_checksum_of_what_is_there(hot: Path) -> None:
    fill(hot, {"f": b"123456789"})
    found = head(FolderClient(hot), b"f", checksums=True)

    assert found.size == 9
    assert found.etag == etag_of(os.stat(hot / "f"))
    assert found.checksums == {"crc64nvme": "rosUhgp5mIg="}
    assert len(found.etag) != 32


def test_a_marked_destination_without_its_marker_is_refused(hot: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    client = FolderClient(hot, is_destination=True, begun_mark=mark)

    with pytest.raises(EndpointRefused, match="not the folder that was delivered to"):
        client.probe()


def test_a_full_folder_is_down_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def takes_no_more(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("s5jtd.folders.engine.copy", takes_no_more)
    found = os.statvfs(tmp_path)
    size = found.f_bavail * found.f_frsize * 2
    data, folder = tmp_path / "data", tmp_path / "folder"
    fill(data, {"1.obj": b"x"})
    folder.mkdir()
    remote = Remote("", None, None, None, directory=folder)
    said: list[Outcome] = []
    data_fd = os.open(data, os.O_RDONLY)
    batch = Batch(Direction.PUSH, remote, (Transfer("1.obj", b"key", size),), data_fd, None, 1)
    FolderEngine(cast("Any", SimpleNamespace(name="none"))).run(
        batch, Caller(said.append, lambda _: None, lambda: False)
    )
    os.close(data_fd)

    assert [outcome.failure for outcome in said] == [Failure.ENDPOINT]
    client = FolderClient(folder, is_destination=True)
    with pytest.raises(EndpointDown, match="is full"):
        client.probe()
    with pytest.raises(ObjectGone):  # it can be asked all the same
        head(client, b"key")

    room.refused(folder, 1)
    client.probe()
