"""Real file systems for tests: small ones, ones that fill up, and ones that lose their power.

Mounting needs root and loop devices.  Where they are missing a test is skipped with the reason; it
is never replaced by something that cannot fail.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance import until

MIB = 1 << 20

#: What mkfs accepts at least, in bytes; the images are sparse.
SMALLEST = {"ext4": 4 * MIB, "xfs": 300 * MIB}

#: Of the kernel's FS_IOC_SHUTDOWN: stop at once, and lose everything not yet submitted to the device.
_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSHING_THE_LOG = 2

#: FIFREEZE and FITHAW: whoever writes is held, and nothing can kill him, as by a disk that does not answer.
_FREEZE, _THAW = 0xC0045877, 0xC0045878

#: Of the first version of control groups, where what the kernel writes back later is held back too.
THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")

_MKFS_OPTIONS = {"ext4": ["-q", "-F", "-m", "0"], "xfs": ["-q", "-f"]}


class LoopVolume:
    """A file system in an image file."""

    def __init__(self, kind: str, image: Path, path: Path) -> None:
        """Nothing is done yet; see `loop_volume`."""
        self.kind = kind
        self.image = image
        self.path = path  #: where it is mounted
        self.device = ""  #: e.g. "/dev/loop0"
        self._without_power = False

    def mount(self, *options: str) -> None:
        """Mount it; after a power cut this replays the file system's journal, as a reboot would."""
        if not self.device:
            self.device = _run("losetup", "--find", "--show", str(self.image)).strip()
        if self._without_power:
            # The kernel would give back the one that has none, while another test's mount namespace has it.
            alive = Path("/sys/fs", self.kind, Path(self.device).name)
            until(lambda: not alive.exists(), f"the end of the file system on {self.device}")
            self._without_power = False
        _run("mount", "-t", self.kind, "-o", ",".join(("noatime", *options)), self.device, str(self.path))

    def remount(self, *options: str) -> None:
        """Change options while it is in use, e.g. `ro`."""
        _run("mount", "-o", ",".join(("remount", *options)), str(self.path))

    def slow_down(self, bytes_per_second: int) -> None:
        """Let the disk write no faster, whoever writes; 0: as fast as it can.

        The kernel itself holds the requests back, at the root of the control group of block devices.
        """
        device = Path("/sys/class/block", Path(self.device).name, "dev").read_text().strip()
        THROTTLE.write_text(f"{device} {bytes_per_second}")

    def unmount(self, *, lazily: bool = True) -> None:
        """Take it out of the tree: lazily at once, and who has files of it open keeps them."""
        _run("umount", *(["--lazy"] if lazily else []), str(self.path))

    def release(self) -> None:
        """Give the loop device back, once nobody has files open."""
        _run("losetup", "--detach", self.device)
        self.device = ""

    def cut_power(self) -> None:
        """Lose what was not synced, and answer everything with errors from now on.

        An acknowledgement counts only if it was given before this call: a sync that runs meanwhile
        may answer well and lose its bytes all the same.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("=I", _WITHOUT_FLUSHING_THE_LOG))
        finally:
            os.close(fd)
        self._without_power = True

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold everybody who writes or syncs, until the end of the block; reading goes on."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _FREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(fd, _THAW, 0)
        finally:
            os.close(fd)

    def restore_power(self) -> None:
        """Mount again what the power cut left; nobody may have files of it open."""
        _run("umount", str(self.path))
        self.mount()


@contextlib.contextmanager
def loop_volume(
    folder: Path, kind: str = "ext4", size_bytes: int = 64 * MIB, *mkfs: str
) -> Iterator[LoopVolume]:
    """A new file system of `kind`, its image and its mount point inside `folder`.

    `mkfs` are further options of mkfs, such as `-N`, `128` for an ext4 with few inodes.
    """
    need_mounts(kind)
    folder.mkdir(parents=True, exist_ok=True)
    volume = LoopVolume(kind, folder / f"{kind}.image", folder / kind)
    volume.path.mkdir()
    with volume.image.open("wb") as image:
        image.truncate(max(size_bytes, SMALLEST[kind]))
    _run(f"mkfs.{kind}", *_MKFS_OPTIONS[kind], *mkfs, str(volume.image))
    try:
        volume.mount()
        yield volume
    finally:
        _clean_up(volume)


@contextlib.contextmanager
def tmpfs(point: Path, size_bytes: int = 16 * MIB, *, inodes: int = 0) -> Iterator[Path]:
    """A file system in memory at `point`; 0 inodes: as many as it likes."""
    need_mounts()
    point.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},nr_inodes={inodes}", "s5jtd-test", str(point))
    try:
        yield point
    finally:
        _try("umount", "--lazy", str(point))


@contextlib.contextmanager
def failing_volume(folder: Path, kind: str = "ext4", backing_bytes: int = 24 * MIB) -> Iterator[LoopVolume]:
    """A file system that believes to be larger than what stands behind it.

    It takes more than `backing_bytes` of writes without a word; only the sync finds out.
    """
    with tmpfs(folder, backing_bytes) as backing, loop_volume(backing, kind, 4 * backing_bytes) as volume:
        yield volume


@contextlib.contextmanager
def loop_device(
    image: Path, size_bytes: int = 64 * MIB, *, sector_bytes: int = 512, read_only: bool = False
) -> Iterator[str]:
    """A block device over an image file, made of zeros if it is not there, and gone with its partitions."""
    need_mounts("ext4")
    if not image.exists():
        with image.open("wb") as file:
            file.truncate(size_bytes)
    options = ["--sector-size", str(sector_bytes), *(["--read-only"] if read_only else [])]
    device = _run("losetup", "--find", "--show", *options, str(image)).strip()
    try:
        yield device
    finally:
        _try("partx", "--delete", device)
        _try("losetup", "--detach", device)


def need_mounts(kind: str = "") -> None:
    """Skip the test, with the reason, where file systems of this kind cannot be made and mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting file systems needs root")
    if not kind:
        return
    if not Path("/dev/loop-control").exists():
        pytest.skip("there are no loop devices here")
    if shutil.which(f"mkfs.{kind}") is None:
        package = {"ext4": "e2fsprogs", "xfs": "xfsprogs"}[kind]
        pytest.skip(f"mkfs.{kind} is missing: install {package}")


def _clean_up(volume: LoopVolume) -> None:
    """Leave no mount and no loop device behind, whatever the test did to them."""
    # `ismount` would say no of a file system without power.
    while _try("umount", "--lazy", str(volume.path)):
        pass
    if volume.device:
        _try("losetup", "--detach", volume.device)


def _run(*command: str) -> str:
    """Run a tool; what it has to say about a failure is part of the failure."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _try(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
