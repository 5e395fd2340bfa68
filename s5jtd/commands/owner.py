"""What root's commands make is handed to the daemon's user, and what they check they check as that user."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from s5jtd.errors import S5jtError


class Owner(NamedTuple):
    """Whom the state folder belongs to: the daemon's user."""

    uid: int
    gid: int


def other_owner(state_dir: Path) -> Owner | None:
    """The daemon's user, where we are root and it is not; None where there is nothing to hand over."""
    if os.geteuid() != 0:
        return None
    try:
        status = state_dir.stat()
    except OSError:
        return None
    return Owner(status.st_uid, status.st_gid) if status.st_uid != 0 else None


def with_home(owner: Owner | None) -> None:
    """From now on `~/.aws` is that of the daemon's user, whose credentials are meant."""
    if owner is not None:
        os.environ["HOME"] = pwd.getpwuid(owner.uid).pw_dir


def hand_over(path: Path, owner: Owner | None) -> None:
    """Give a file that root made, or a folder with all that is in it, to the daemon's user."""
    if owner is None:
        return
    os.chown(path, *owner, follow_symlinks=False)
    if path.is_dir() and not path.is_symlink():
        for name in os.listdir(path):
            hand_over(path / name, owner)


def as_owner(owner: Owner | None, look: Callable[[], str]) -> str:
    """What `look` answers when the daemon's user does it: in a process of its own, which gives up root.

    Raises:
        S5jtError: it gave no answer.
    """
    if owner is None:
        return look()
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(here)
            os.initgroups(pwd.getpwuid(owner.uid).pw_name, owner.gid)
            os.setresgid(owner.gid, owner.gid, owner.gid)
            os.setresuid(owner.uid, owner.uid, owner.uid)
            with os.fdopen(there, "w") as pipe:
                pipe.write(look())
        finally:
            os._exit(0)  # nothing of the parent's may run a second time
    os.close(there)
    with os.fdopen(here) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        raise S5jtError("it could not be looked at as the daemon's user")
    return said
