"""Blank disks become volumes, and what holds anything is never touched: loop devices, real mkfs and mount."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from s5jtd.errors import DeviceError, Exit
from s5jtd.provision import gpt
from s5jtd.provision.carry_out import carry_out
from s5jtd.provision.devices import exclusive
from s5jtd.provision.layout import LABEL, Fate, Settings, plan
from s5jtd.volumes.seals import load_key
from s5jtd.volumes.visit import visit
from tests.filesystems import MIB, loop_device, need_mounts


class Bench:
    """A place for mount points and one for what is made permanent."""

    def __init__(self, folder: Path) -> None:
        self.base, self.etc, self.state = folder / "mnt", folder / "etc", folder / "state"
        self.state.mkdir()
        self.etc.mkdir()

    def volumes(self, verb: str, *options: str, persist: str = "systemd") -> subprocess.CompletedProcess[str]:
        where = ["--base", str(self.base), "--etc", str(self.etc), "--persist", persist]
        if verb == "apply":
            where += ["--state-dir", str(self.state)]
        return subprocess.run(
            [sys.executable, "-m", "s5jtd", "volumes", verb, *where, *options],
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def settings(self, kind: str = "ext4") -> Settings:
        return Settings(self.base, kind, "systemd", self.etc, False, (0, 0))

    def kept(self) -> dict[str, str]:
        """What was made permanent: paths below etc and their text."""
        found = [path for path in sorted(self.etc.rglob("*")) if path.is_file() or path.is_symlink()]
        return {str(path.relative_to(self.etc)): path.read_text() for path in found}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    need_mounts("ext4")
    made = Bench(tmp_path)
    try:
        yield made
    finally:
        for point in made.base.glob("*"):
            subprocess.run(["umount", "--lazy", str(point)], check=False, capture_output=True)
            subprocess.run(["chattr", "-i", str(point)], check=False, capture_output=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mount_options(point: Path) -> set[str]:
    told = subprocess.run(
        ["findmnt", "-n", "-o", "OPTIONS", str(point)], capture_output=True, text=True, check=True
    )
    return set(told.stdout.strip().split(","))


@pytest.mark.parametrize(("kind", "persist", "sector"), [("ext4", "systemd", 512), ("xfs", "fstab", 4096)])
def test_a_blank_disk_becomes_a_volume_and_a_second_run_changes_nothing(
    tmp_path: Path, bench: Bench, kind: str, persist: str, sector: int
) -> None:
    need_mounts(kind)
    (bench.etc / "fstab").write_text("UUID=1 / ext4 defaults 0 1")  # without an end of line
    with loop_device(tmp_path / "image", 340 * MIB, sector_bytes=sector) as disk:
        shown = bench.volumes("plan", "--device", disk, "--fs", kind, persist=persist)
        assert shown.returncode == Exit.DONE, shown.stderr
        assert f"make it {bench.base}/volume-01" in shown.stdout
        assert (
            bench.volumes("apply", "--device", disk, "--fs", kind).returncode == Exit.USAGE
        )  # nobody to ask
        assert digest(tmp_path / "image") == hashlib.sha256(bytes(340 * MIB)).hexdigest()

        done = bench.volumes("apply", "--yes", "--device", disk, "--fs", kind, persist=persist)

        assert done.returncode == Exit.DONE, done.stderr
        point = bench.base / "volume-01"
        with visit(point, load_key(bench.state)) as (_, stamp):
            assert stamp.mount_root
            assert stamp.uuid in done.stdout
        assert {"nodev", "nosuid", "noexec", "noatime", "rw"} <= mount_options(point)
        (filesystem,) = [each for each in blkid(f"{disk}p1") if each.startswith("UUID=")]
        text = "\n".join(bench.kept().values())
        assert filesystem.removeprefix("UUID=") in text
        assert "nofail" in text
        assert "UUID=1 / ext4 defaults 0 1\n" in bench.kept()["fstab"] + "\n"
        kept, before = bench.kept(), subprocess.check_output(["lsblk", "-o", "NAME,PARTUUID,UUID", disk])

        again = bench.volumes("apply", "--yes", "--device", disk, "--fs", kind, persist=persist)
        assert again.returncode == Exit.DONE
        assert "nothing to do" in again.stdout
        assert (kept, before) == (
            bench.kept(), subprocess.check_output(["lsblk", "-o", "NAME,PARTUUID,UUID", disk])
        )  # fmt: skip

        subprocess.run(["umount", str(point)], check=True)
        with pytest.raises(PermissionError):  # nobody can write to the folder below, not even root
            (point / "x").write_text("x")


def blkid(path: str) -> list[str]:
    return subprocess.check_output(["blkid", "-p", "-o", "export", path], text=True).splitlines()


def test_a_disk_that_holds_anything_or_is_in_use_is_not_touched(tmp_path: Path, bench: Bench) -> None:
    names = ["ext4", "swap", "data", "end", "table", "used", "readonly", "blank"]
    images = {name: tmp_path / name for name in names}
    for image in images.values():
        with image.open("wb") as file:
            file.truncate(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(images["ext4"])], check=True)
    subprocess.run(["mkswap", "-q", str(images["swap"])], check=True, capture_output=True)
    for name, offset in (("data", 30 * MIB + 17), ("end", 64 * MIB - 1)):
        with images[name].open("r+b") as file:
            file.seek(offset)
            file.write(b"x")
    front, back = gpt.tables(64 * MIB, 512, "somebody's", uuid.uuid4(), uuid.uuid4())
    with images["table"].open("r+b") as file:
        file.write(front)
        file.seek(64 * MIB - len(back))
        file.write(back)
    before = {name: digest(image) for name, image in images.items()}
    with contextlib.ExitStack() as stack:
        disks = {
            name: stack.enter_context(loop_device(image, read_only=name == "readonly"))
            for name, image in images.items()
        }
        stack.enter_context(exclusive(disks["used"]))
        named = [word for disk in disks.values() for word in ("--device", disk)]

        shown = bench.volumes("plan", "--json", *named)
        done = bench.volumes("apply", "--yes", *named)

        rows = json.loads(shown.stdout)["disks"]
        fates = {row["device"]: (row["fate"], " ".join(row["reasons"])) for row in rows}
    told = {name: fates[disk] for name, disk in disks.items()}
    assert told.pop("blank") == ("new", "")
    assert {fate for fate, _ in told.values()} == {"refused"}
    assert ["ext4" in told["ext4"][1], "swap" in told["swap"][1], "gpt" in told["table"][1]] == [True] * 3
    assert f"byte {30 * MIB + 17}" in told["data"][1]
    assert "read-only" in told["readonly"][1]
    assert "busy" in told["used"][1]
    assert done.returncode == Exit.USAGE  # one that was named cannot be had, so none is taken
    assert {name: digest(image) for name, image in images.items()} == before


def test_data_that_comes_after_the_plan_is_not_touched(tmp_path: Path, bench: Bench) -> None:
    image = tmp_path / "image"
    with loop_device(image) as disk:
        (entry,) = plan(bench.settings(), [disk])
        assert entry.fate is Fate.NEW
        with Path(disk).open("r+b") as device:
            device.seek(5 * MIB)
            device.write(b"precious")
        before = digest(image)
        with pytest.raises(DeviceError, match="not touched"):
            carry_out(entry, bench.settings(), load_key(bench.state), lambda _: None)
    assert digest(image) == before


def test_what_was_cut_short_goes_on_or_says_why_not(tmp_path: Path, bench: Bench) -> None:
    image, key = tmp_path / "image", load_key(bench.state)
    with loop_device(image) as disk:
        with exclusive(disk, write=True) as fd:  # the power goes before the kernel knows of the partition
            gpt.write_table(fd, LABEL + "volume-07", uuid.uuid4())
        (entry,) = plan(bench.settings(), [disk])
        assert (entry.fate, entry.name) == (Fate.FORMAT, "volume-07")

        with exclusive(disk) as fd:
            gpt.tell_kernel(disk, fd, Path(disk).name)
        part = gpt.first_partition(Path(disk).name)
        with Path(part).open("r+b") as device:  # mkfs had begun
            device.seek(MIB)
            device.write(b"half of a file system")
        (entry,) = plan(bench.settings(), [disk])
        assert entry.fate is Fate.REFUSED
        assert "cut short" in entry.reasons[0]
        with Path(part).open("r+b") as device:
            device.seek(MIB)
            device.write(bytes(64))

        (entry,) = plan(bench.settings(), [disk])
        first = carry_out(entry, bench.settings(), key, lambda _: None)
        subprocess.run(["umount", str(bench.base / "volume-07")], check=True)  # the unit was never started
        (entry,) = plan(bench.settings(), [disk])
        assert entry.fate is Fate.MOUNT
        assert carry_out(entry, bench.settings(), key, lambda _: None) == first
        (entry,) = plan(bench.settings(), [disk])
        assert entry.fate is Fate.DONE
        subprocess.run(["umount", str(bench.base / "volume-07")], check=True)


def test_loop_devices_are_taken_only_by_their_name(tmp_path: Path, bench: Bench) -> None:
    with loop_device(tmp_path / "image") as disk:
        assert disk not in {entry.device.path for entry in plan(bench.settings())}
