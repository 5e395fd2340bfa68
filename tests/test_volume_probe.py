"""The kernel's answers about a volume, asked of real file systems that fill, fail and vanish."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from s5jtd.errors import VolumeError, VolumeFailed, VolumeFull, VolumeMissing, VolumeReadOnly
from s5jtd.volumes import probe
from s5jtd.volumes.volume import Volume
from tests.filesystems import MIB, failing_volume, loop_volume, need_mounts, tmpfs


@contextmanager
def root_of(path: Path) -> Iterator[int]:
    fd = probe.open_root(path)
    try:
        yield fd
    finally:
        os.close(fd)


def test_space_is_what_the_file_system_has_and_gives(tmp_path):
    with tmpfs(tmp_path / "volume", 16 * MIB, inodes=1000) as path, root_of(path) as fd:
        before = probe.probe(fd)
        (path / "1.obj").write_bytes(bytes(4 * MIB))
        after = probe.probe(fd)

    assert before.total_bytes == 16 * MIB
    assert before.free_bytes - after.free_bytes == 4 * MIB
    assert before.inodes_free is not None
    assert after.inodes_free == before.inodes_free - 1


def test_a_file_system_that_does_not_count_inodes_has_none_to_tell(tmp_path):
    with tmpfs(tmp_path / "volume", 16 * MIB, inodes=0) as path, root_of(path) as fd:
        assert probe.probe(fd).inodes_free is None


def _link(path: Path) -> None:
    path.with_name("elsewhere").mkdir()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("prepare", "advice"),
    [(lambda path: None, "mount it"), (Path.touch, "folder itself"), (_link, "folder itself")],
    ids=["nothing", "file", "link"],
)
def test_only_a_folder_can_be_pinned_as_a_volume(tmp_path, prepare, advice):
    prepare(tmp_path / "volume")

    with pytest.raises(VolumeMissing, match=str(tmp_path)) as refusal:
        probe.open_root(tmp_path / "volume")
    assert advice in refusal.value.hint


@pytest.mark.parametrize("told_by", ["statx", "devices"])
def test_a_mount_is_told_from_the_folder_that_an_absent_one_leaves(tmp_path, told_by, monkeypatch):
    if told_by == "devices":
        monkeypatch.setattr(probe, "_statx_mount_root", lambda _: None)
    point = tmp_path / "volume"
    with tmpfs(point) as path, root_of(path) as fd:
        assert probe.is_mount_root(fd)
        (path / "below").mkdir()
        with root_of(path / "below") as below:
            assert not probe.is_mount_root(below)
    with root_of(point) as fd:
        assert not probe.is_mount_root(fd)
    with root_of(Path("/")) as fd:
        assert probe.is_mount_root(fd)


def test_a_folder_bound_to_another_place_of_its_own_file_system_is_a_mount(tmp_path):
    need_mounts()
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "there", tmp_path / "here"], check=True)
    try:
        with root_of(tmp_path / "here") as fd:
            assert probe.is_mount_root(fd)
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "here"], check=True)


def test_a_folder_bound_to_itself_is_no_volume_that_came(tmp_path):
    """What ReadWritePaths= makes of a missing disk's folder when a unit starts."""
    need_mounts()
    point = tmp_path / "volume"
    point.mkdir()
    fstab = tmp_path / "fstab"
    fstab.write_text(f"UUID=1 {point} ext4 nofail 0 2\n")
    subprocess.run(["mount", "--bind", point, point], check=True)
    try:
        with root_of(point) as fd:
            assert not probe.is_mount_root(fd)
        assert probe.listed_in_fstab(point, fstab=fstab, unit_dirs=()) == str(fstab)
        with tmpfs(point), root_of(point) as fd:
            assert probe.is_mount_root(fd)
            assert probe.listed_in_fstab(point, fstab=fstab, unit_dirs=()) is None
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


@pytest.mark.parametrize("name", ["volume", "my volume\twith \\ and é\r"])
def test_the_file_system_under_a_path_is_named(tmp_path, name):
    point = tmp_path / name
    with tmpfs(point) as path:
        (path / "below").mkdir()
        found = probe.filesystem_of(path / "below")

    assert found is not None
    assert (found.point, found.kind, found.device) == (str(point), "tmpfs", "s5jtd-test")
    assert "rw" in found.options


def test_what_is_mounted_last_is_what_a_path_leads_to(tmp_path):
    point = tmp_path / "volume"
    with tmpfs(point, 8 * MIB), root_of(point) as lower, tmpfs(point, 16 * MIB), root_of(point) as upper:
        assert probe.filesystem_of(point) == probe.mount_of(upper) != probe.mount_of(lower)


def test_a_volume_unmounted_under_us_is_seen_through_its_descriptor(tmp_path):
    with loop_volume(tmp_path) as volume, root_of(volume.path) as fd:
        mounted = probe.mount_of(fd)
        assert mounted is not None
        assert (mounted.kind, mounted.device) == ("ext4", volume.device)
        volume.unmount()

        assert probe.mount_of(fd) is None
        assert probe.filesystem_of(volume.path) != mounted


def test_a_path_that_leads_nowhere_has_no_file_system(tmp_path):
    with pytest.raises(VolumeMissing):
        probe.filesystem_of(tmp_path / "nothing")


def test_the_mount_table_is_read_with_optional_fields_and_without():
    text = (
        "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext4 /dev/disk\\040one rw,data=ordered\n"
        "37 35 0:5 / /run rw - tmpfs  rw\n"
        "torn line\n"
    )

    assert probe.parse_mountinfo(text) == [
        probe.Mount(
            36, "/mnt 2", "ext4", "/dev/disk one", frozenset({"rw", "noatime", "data=ordered"}),
            parent_id=35, root="/mnt1", number="98:0",
        ),
        probe.Mount(37, "/run", "tmpfs", "", frozenset({"rw"}), parent_id=35, root="/", number="0:5"),
    ]  # fmt: skip


def test_a_write_probe_leaves_nothing_behind(tmp_path):
    for name in probe.PROBE_NAMES:  # what a power cut left
        (tmp_path / name).write_bytes(b"left over")

    with root_of(tmp_path) as fd:
        probe.write_probe(fd)

    assert os.listdir(tmp_path) == []


def test_a_write_probe_writes_through_no_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"bytes of somebody else")
    for name, plant in zip(sorted(probe.PROBE_NAMES), (Path.symlink_to, Path.hardlink_to), strict=True):
        plant(tmp_path / name, precious)

    with root_of(tmp_path) as fd:
        probe.write_probe(fd)

    assert precious.read_bytes() == b"bytes of somebody else"
    assert os.listdir(tmp_path) == ["precious"]


def test_a_link_planted_while_the_probe_runs_is_not_followed(tmp_path, monkeypatch):
    precious = tmp_path / "precious"
    precious.write_bytes(b"bytes of somebody else")
    unlink, plants = os.unlink, iter([precious])

    def unlink_and_plant(name: str, *, dir_fd: int) -> None:
        try:
            unlink(name, dir_fd=dir_fd)
        finally:
            for target in plants:
                (tmp_path / name).symlink_to(target)

    monkeypatch.setattr(os, "unlink", unlink_and_plant)

    with root_of(tmp_path) as fd:
        probe.write_probe(fd)

    assert precious.read_bytes() == b"bytes of somebody else"


def test_probes_at_the_same_time_do_not_fail_each_other(tmp_path):
    failures: list[BaseException] = []

    def prove_often() -> None:
        with root_of(tmp_path) as fd:
            for _ in range(50):
                try:
                    probe.write_probe(fd)
                except VolumeError as error:
                    failures.append(error)

    threads = [threading.Thread(target=prove_often) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []


def test_a_full_volume_is_full(tmp_path):
    with tmpfs(tmp_path / "volume", MIB) as path, root_of(path) as fd:
        (path / "1.obj").write_bytes(bytes(MIB))

        with pytest.raises(VolumeFull, match=str(path)) as failure:
            probe.write_probe(fd)
        assert os.listdir(path) == ["1.obj"]
    assert "reserve" in failure.value.hint


def test_a_volume_without_inodes_is_full(tmp_path):
    with loop_volume(tmp_path, "ext4", 8 * MIB, "-N", "16") as volume, root_of(volume.path) as fd:
        for number in range(probe.probe(fd).inodes_free or 0):
            (volume.path / f"{number:x}.obj").touch()
        assert probe.probe(fd).free_bytes > MIB

        with pytest.raises(VolumeFull):
            probe.write_probe(fd)
        assert probe.probe(fd).inodes_free == 0


def test_a_read_only_volume_is_read_only(tmp_path):
    with loop_volume(tmp_path) as volume, root_of(volume.path) as fd:
        volume.remount("ro")

        with pytest.raises(VolumeReadOnly, match="Read-only"):
            probe.write_probe(fd)


def test_a_folder_of_somebody_else_can_only_be_read_and_says_whose_it_must_be(tmp_path):
    user = os.geteuid()
    with root_of(tmp_path) as fd:
        tmp_path.chmod(0o555)
        try:
            os.seteuid(65534 if user == 0 else user)
            with pytest.raises(VolumeReadOnly) as refusal:
                probe.write_probe(fd)
        finally:
            os.seteuid(user)
            tmp_path.chmod(0o755)
    assert "daemon's user" in refusal.value.hint


def test_a_folder_that_was_removed_is_missing(tmp_path):
    (tmp_path / "volume").mkdir()
    with root_of(tmp_path / "volume") as fd:
        (tmp_path / "volume").rmdir()

        with pytest.raises(VolumeMissing):
            probe.write_probe(fd)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_was_synced_survives_a_power_cut_and_what_was_not_does_not(tmp_path, kind):
    with loop_volume(tmp_path, kind) as volume:
        with root_of(volume.path) as fd:
            (volume.path / "synced").write_bytes(b"x" * 10_000)
            probe.syncfs(fd)
            (volume.path / "unsynced").write_bytes(b"x" * 10_000)
            volume.cut_power()
            with pytest.raises(VolumeFailed, match="syncing"):
                probe.syncfs(fd)
            with pytest.raises(VolumeFailed):
                probe.write_probe(fd)
        volume.restore_power()

        assert (volume.path / "synced").read_bytes() == b"x" * 10_000
        assert not (volume.path / "unsynced").exists()


def test_a_name_is_durable_once_its_folder_was_synced(tmp_path):
    with loop_volume(tmp_path) as volume:
        with root_of(volume.path) as fd:
            (volume.path / "named").touch()
            probe.fsync_dir(fd)
            volume.cut_power()
            with pytest.raises(VolumeFailed, match="syncing"):
                probe.fsync_dir(fd)
        volume.restore_power()

        assert (volume.path / "named").exists()


def test_bytes_that_a_disk_took_but_could_not_keep_fail_the_sync_and_only_once(tmp_path):
    """Only the first sync tells: whoever asks again is told that all is well."""
    with failing_volume(tmp_path, backing_bytes=24 * MIB) as volume, root_of(volume.path) as fd:
        (volume.path / "1.obj").write_bytes(os.urandom(40 * MIB))

        with pytest.raises(VolumeFailed, match="syncing") as failure:
            probe.syncfs(fd)
        assert "journalctl" in failure.value.hint
        probe.syncfs(fd)


def test_d4_d6_a_sync_error_is_final_for_everybody_who_was_writing(tmp_path):
    """The kernel tells it to one of two pullers, and the bytes it is about may be the other one's."""
    with failing_volume(tmp_path, backing_bytes=24 * MIB) as mounted:
        volume = Volume(mounted.path, "vol1", 0, b"k" * 32)
        volume.attach(None, lambda _: 0)
        (mounted.path / "1.obj").write_bytes(os.urandom(40 * MIB))

        with pytest.raises(VolumeFailed, match="syncing"):
            volume.sync()
        with pytest.raises(VolumeFailed, match="written with this"):
            volume.sync()
        volume.detach()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.EROFS, VolumeReadOnly),
        (errno.EACCES, VolumeReadOnly),
        (errno.EPERM, VolumeReadOnly),
        (errno.ENOSPC, VolumeFull),
        (errno.EDQUOT, VolumeFull),
        (errno.ENOENT, VolumeMissing),
        (errno.ESTALE, VolumeMissing),
        (errno.EIO, VolumeFailed),
        (errno.EUCLEAN, VolumeFailed),
        (errno.ETIMEDOUT, VolumeFailed),
    ],
    ids=errno.errorcode.get,
)
def test_every_error_of_a_file_system_says_what_is_wrong_and_what_to_do(code, kind):
    told = probe.volume_error(OSError(code, os.strerror(code)), "/mnt/volume-01")

    assert type(told) is kind
    assert str(told).endswith(f"/mnt/volume-01: {os.strerror(code)}")
    assert told.hint


def test_a_bad_descriptor_is_a_bug_and_not_a_bad_volume():
    for ask in (probe.probe, probe.is_mount_root, probe.write_probe, probe.syncfs, probe.fsync_dir):
        with pytest.raises(OSError, match="Bad file descriptor"):
            ask(1_000_000)


def test_a_mount_point_in_fstab_with_nothing_mounted_is_known_for_what_it_is(tmp_path):
    point = tmp_path / "my volume"
    point.mkdir()
    fstab = tmp_path / "fstab"
    written = str(point).replace(" ", "\\040")
    fstab.write_text(
        f"# UUID=0 {tmp_path}/commented ext4\n\nUUID=1 {written}/ ext4 nofail 0 2\nUUID=2 none swap\n"
    )

    def claimant(path: Path) -> str | None:
        return probe.listed_in_fstab(path, fstab=fstab, unit_dirs=())

    assert claimant(point) == str(fstab)
    assert claimant(tmp_path / "commented") is None
    assert claimant(tmp_path) is None
    (tmp_path / "link").symlink_to(point)
    assert claimant(tmp_path / "link") == str(fstab)
    with tmpfs(point):
        assert claimant(point) is None
    fstab.unlink()
    assert claimant(point) is None


def test_a_mount_unit_claims_its_mount_point_unless_it_is_masked(tmp_path):
    point = tmp_path / "volume-01"
    unit = tmp_path / probe.unit_name(str(point))
    nothing = tmp_path / "no-fstab"

    unit.symlink_to("/dev/null")
    assert probe.listed_in_fstab(point, fstab=nothing, unit_dirs=[tmp_path]) is None
    unit.unlink()
    unit.write_text("[Mount]\n")
    assert probe.listed_in_fstab(point, fstab=nothing, unit_dirs=[tmp_path]) == str(unit)


@pytest.mark.parametrize(
    "point", ["/", "/mnt/volume-01", "/mnt//a_b.c:d/", "/.hidden/.x", "/mnt/é \\x", "/mnt/a@b+c~d"]
)
def test_mount_units_are_named_as_systemd_names_them(point):
    if shutil.which("systemd-escape") is None:
        pytest.skip("systemd-escape is missing: install systemd")
    command = ["systemd-escape", "--path", "--suffix=mount", point]

    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert probe.unit_name(point) == told
