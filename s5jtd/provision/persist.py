"""Makes mounts permanent, by the UUID of the file system: systemd mount units, or lines of fstab."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from s5jtd.errors import DeviceError
from s5jtd.provision.tools import run
from s5jtd.volumes.probe import unit_name

_DEVICE_TIMEOUT: Final = "10s"
_MARK: Final = "Written by `s5jtd volumes apply`."


@dataclass(frozen=True, slots=True)
class Mount:
    """What is to be mounted where, at every start."""

    name: str
    uuid: str
    point: Path
    kind: str
    options: Sequence[str]


def unit_folder(etc: Path) -> Path:
    """Where the administrator's units are."""
    return etc / "systemd" / "system"


def is_known(point: Path, etc: Path) -> bool:
    """Whether something says already what belongs at a mount point."""
    return (unit_folder(etc) / unit_name(str(point))).exists() or bool(_fstab_lines(etc / "fstab", point))


def is_kept(mount: Mount, how: str, etc: Path) -> bool:
    """Whether the mount is permanent, in whichever way."""
    unit = unit_folder(etc) / unit_name(str(mount.point))
    in_unit = unit.exists() and mount.uuid in unit.read_text("utf-8", "replace")
    in_fstab = any(mount.uuid in line for line in _fstab_lines(etc / "fstab", mount.point))
    return how == "none" or in_unit or in_fstab


def keep(mount: Mount, how: str, etc: Path) -> list[str]:
    """Make a mount permanent; the files that were written, none if it was already.

    Raises:
        DeviceError: something else is said about the mount point.
        OSError: a file cannot be written.
    """
    if is_kept(mount, how, etc):
        return []
    if is_known(mount.point, etc):
        raise DeviceError(
            f"something else belongs at {mount.point}, say fstab or systemd",
            hint=f"look for {mount.point} in {etc}/fstab and for {unit_name(str(mount.point))}",
        )
    return _keep_in_fstab(mount, etc / "fstab") if how == "fstab" else _keep_in_units(mount, etc)


def _fstab_lines(fstab: Path, point: Path) -> list[str]:
    try:
        lines = fstab.read_text("utf-8", "surrogateescape").splitlines()
    except FileNotFoundError:
        return []
    return [
        line for line in lines
        if not line.lstrip().startswith("#") and len(line.split()) > 1 and line.split()[1] == _escaped(point)
    ]  # fmt: skip


def _escaped(point: Path) -> str:
    return re.sub(r"[\s\\]", lambda blank: f"\\{ord(blank[0]):03o}", str(point))


def _keep_in_fstab(mount: Mount, fstab: Path) -> list[str]:
    options = ",".join([*mount.options, "nofail", f"x-systemd.device-timeout={_DEVICE_TIMEOUT}"])
    checked = 2 if mount.kind == "ext4" else 0
    line = f"UUID={mount.uuid} {_escaped(mount.point)} {mount.kind} {options} 0 {checked}\n"
    before = fstab.read_text("utf-8", "surrogateescape") if fstab.exists() else ""
    if before and not before.endswith("\n"):
        before += "\n"
    _write(fstab, f"{before}# {mount.name}. {_MARK}\n{line}")
    _reload()
    return [str(fstab)]


def _keep_in_units(mount: Mount, etc: Path) -> list[str]:
    """A mount unit that begins when its disk appears, and a boot that does not wait for a missing one."""
    folder = unit_folder(etc)
    unit = unit_name(str(mount.point))
    device_path = f"/dev/disk/by-uuid/{mount.uuid}"
    device = unit_name(device_path).removesuffix(".mount") + ".device"
    text = (
        f"# {_MARK}\n"
        "[Unit]\n"
        f"Description=s5jtd {mount.name}\n"
        "\n"
        "[Mount]\n"
        f"What={device_path}\n"
        f"Where={_for_systemd(mount.point)}\n"
        f"Type={mount.kind}\n"
        f"Options={','.join([*mount.options, 'nofail'])}\n"
        "\n"
        "[Install]\n"
        f"WantedBy=multi-user.target {device}\n"
    )
    wait = folder / f"{device}.d" / "50-s5jtd.conf"
    _write(wait, f"# {_MARK}\n[Unit]\nJobRunningTimeoutSec={_DEVICE_TIMEOUT}\n")
    _write(folder / unit, text)
    for target in ("multi-user.target", device):
        link = folder / f"{target}.wants" / unit
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(f"../{unit}")
        _sync(link.parent)
    _reload()
    return [str(folder / unit), str(wait)]


def _for_systemd(point: Path) -> str:
    return str(point).replace("%", "%%")


def _reload() -> None:
    if Path("/run/systemd/system").is_dir():
        run("systemctl", "daemon-reload")


def _write(path: Path, text: str) -> None:
    """Write a file of the system whole or not at all, durably; one that is there keeps its mode and owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode, owner = 0o644, (0, 0)
    if path.exists():
        old = path.stat()
        mode, owner = old.st_mode & 0o7777, (old.st_uid, old.st_gid)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            os.fchmod(file.fileno(), mode)
            os.fchown(file.fileno(), *owner)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
