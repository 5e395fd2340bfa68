"""What `s5jtd check --install` looks at besides: Python, commands, users, permissions, units."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from s5jtd import __version__
from s5jtd.commands import dropin
from s5jtd.config import Config
from s5jtd.errors import S5jtError
from s5jtd.s3.credentials import CREDENTIALS_FOLDER

USER = "s5jtd"
GROUPS = ("s5jt", "s5jt-operators")
UNIT = "s5jtd.service"
#: Where systemd keeps what it handed out.
_GIVEN = Path("/run/credentials") / UNIT
_AGAIN = "run install.sh of the bundle again"

#: Subject, whether it is well, what was seen, what to do.
Seen = tuple[str, bool, str, str]


def look(config: Config, config_path: Path) -> Iterator[Seen]:
    """Everything that `install.sh` and the steps after it should have left behind."""
    yield _python()
    for name in ("s5jtd", "s5jtctl"):
        yield _command(name)
    yield from _accounts()
    yield _private(config_path, 0o644, "chgrp s5jtd FILE && chmod 0640 FILE")
    if os.geteuid() == 0 and CREDENTIALS_FOLDER.exists():
        yield _private(CREDENTIALS_FOLDER, 0o700, "chmod 0700 FILE")
        for file in sorted(CREDENTIALS_FOLDER.iterdir()):
            yield _private(file, 0o600, "chmod 0600 FILE")
    yield from _units(config, config_path)


def _python() -> Seen:
    version = ".".join(map(str, sys.version_info[:3]))
    return (
        "python",
        sys.version_info >= (3, 11),
        f"{version}, {sys.executable}; s5jtd {__version__}",
        _AGAIN,
    )


def _command(name: str) -> Seen:
    found = shutil.which(name, path=f"/usr/local/bin:{os.environ.get('PATH', os.defpath)}")
    return (f"command {name}", found is not None, found or "not in /usr/local/bin", _AGAIN)


def _accounts() -> Iterator[Seen]:
    try:
        yield ("user s5jtd", True, f"uid {pwd.getpwnam(USER).pw_uid}", "")
    except KeyError:
        yield ("user s5jtd", False, "there is none", _AGAIN)
    for name in GROUPS:
        try:
            yield (f"group {name}", True, f"gid {grp.getgrnam(name).gr_gid}", "")
        except KeyError:
            yield (f"group {name}", False, "there is none", _AGAIN)


def _private(path: Path, most: int, remedy: str) -> Seen:
    """Whether a file has no more permission bits than these."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return (f"permissions of {path}", False, error.strerror or str(error), "look at the folder it is in")
    return (f"permissions of {path}", not mode & ~most, f"{mode:04o}", remedy.replace("FILE", str(path)))


def _units(config: Config, config_path: Path) -> Iterator[Seen]:
    if not Path("/run/systemd/system").is_dir():
        yield ("systemd", False, "it does not run this machine", "start `s5jtd run` by what does")
        return
    states = {
        word: subprocess.run(
            ["/usr/bin/env", "systemctl", word, UNIT], capture_output=True, text=True, check=False
        ).stdout.strip()
        for word in ("is-enabled", "is-active")
    }
    enabled, active = states["is-enabled"], states["is-active"]
    detail = f"{enabled or 'not there'}, {active}"
    yield ("unit s5jtd.service", enabled == "enabled", detail, "systemctl enable --now s5jtd")
    yield _dropin(config, config_path)
    if active == "active" and os.geteuid() == 0:
        yield from _given(config)


def _given(config: Config) -> Iterator[Seen]:
    """Whether the running daemon has the secrets of today: systemd hands them out at the start alone."""
    for name in sorted(set(dropin.credential_names(config))):
        try:
            given, here = (folder / name for folder in (_GIVEN, CREDENTIALS_FOLDER))
            same = given.read_bytes() == here.read_bytes()
        except OSError:
            continue  # it comes from elsewhere, or never came: the look at the credentials tells
        detail = (
            "the daemon has it" if same else "changed since the daemon was started, which has the former one"
        )
        yield (f"systemd credential {name}", same, detail, "systemctl restart s5jtd")


def _dropin(config: Config, config_path: Path) -> Seen:
    subject, remedy = str(dropin.FILE), "s5jtd volumes dropin --write && systemctl restart s5jtd"
    try:
        wanted = dropin.render(config, config_path)
    except S5jtError as error:
        return (subject, False, str(error), error.hint)
    try:
        there = dropin.FILE.read_text()
    except OSError:
        return (subject, False, "not there: the unit may write to no volume", remedy)
    ok = there == wanted
    return (subject, ok, "up to date" if ok else "made from another configuration", remedy)
