"""Runs the system's own tools, and tells plainly which one is missing or what it had to say."""

from __future__ import annotations

import os
import subprocess

from s5jtd.errors import DeviceError

#: What a root shell may lack in its PATH.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: mkfs of a large disk discards all of it first.
SECONDS_MAX = 3600.0

_PACKAGES = {
    "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "lsblk": "util-linux", "blkid": "util-linux",
    "wipefs": "util-linux", "mount": "mount", "systemctl": "systemd",
}  # fmt: skip


def run(*command: str, fine: tuple[int, ...] = (0,)) -> str:
    """What a tool prints; `fine` are the exit codes that are no failure.

    Raises:
        DeviceError: it is missing, or it failed.
    """
    environment = {"PATH": _PATH, "LC_ALL": "C", "HOME": "/nonexistent"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env=environment,
            stdin=subprocess.DEVNULL, timeout=SECONDS_MAX, cwd="/",
        )  # fmt: skip
    except FileNotFoundError:
        package = _PACKAGES.get(command[0], command[0])
        raise DeviceError(f"{command[0]} is not installed", hint=f"install the package {package}") from None
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{' '.join(command)} did not end", hint="look at `journalctl -k`") from None
    if done.returncode not in fine:
        said = done.stderr.strip() or done.stdout.strip() or "nothing"
        raise DeviceError(f"{' '.join(command)} failed and said: {said}", hint="look at `journalctl -k`")
    return done.stdout


def has(tool: str) -> bool:
    """Whether a tool is installed."""
    return any(os.access(os.path.join(folder, tool), os.X_OK) for folder in _PATH.split(":"))
