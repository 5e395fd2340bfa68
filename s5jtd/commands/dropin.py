"""`s5jtd volumes dropin`: what the unit must be told of this site's folders and credentials."""

from __future__ import annotations

import fnmatch
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePath

import click

from s5jtd.config import Config, FolderDestination, FolderSource, VolumeSpec, expand_volumes
from s5jtd.config.sides import Move, SystemdCredentials
from s5jtd.errors import Exit, NotPermitted, S5jtError
from s5jtd.s3.credentials import CREDENTIALS_FOLDER
from s5jtd.volumes.probe import fstab_points, unit_name

FILE = Path("/etc/systemd/system/s5jtd.service.d/10-site.conf")
_RIGHTS = ("ReadWritePaths", "NoExecPaths")
#: Given where there is no file; systemd takes no empty one.  A comment in the format of these files.
NONE = "# missing"
#: What the unit shows empty; nothing there can be a volume.
_HIDDEN = tuple(map(PurePath, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108
#: Made by the unit itself.
_OWN = (PurePath("/var/lib/s5jtd"), PurePath("/run/s5jtd"))


def dropin(config: Config, config_path: Path, *, write: bool) -> int:
    """Print the drop-in, or put it in its place.

    Raises:
        S5jtError: it cannot be written, or a folder is where the unit can see none.
    """
    text = render(config, config_path)
    if not write:
        click.echo(text, nl=False)
        return Exit.DONE
    if FILE.exists() and FILE.read_text() == text:
        click.echo(f"{FILE} is up to date")
        return Exit.DONE
    temporary = FILE.with_name(f".{FILE.name}.new")
    try:
        FILE.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.chmod(0o644)
        temporary.replace(FILE)
    except PermissionError:
        raise NotPermitted(f"to write {FILE}", hint="sudo s5jtd volumes dropin --write") from None
    except OSError as error:
        raise S5jtError(f"{FILE}: {error.strerror}", hint="look at the disk below /etc") from error
    click.echo(f"{FILE} is written")
    if Path("/run/systemd/system").is_dir():
        subprocess.run(["/usr/bin/env", "systemctl", "daemon-reload"], check=False)
        click.echo("it holds from the next start on: systemctl restart s5jtd")
    return Exit.DONE


def render(config: Config, config_path: Path) -> str:
    """The drop-in for `s5jtd.service`.

    Raises:
        S5jtError: a folder is where the unit can see none.
    """
    mounts = sorted({unit_name(str(path)) for path in _mount_points(config)})
    lines = [
        f"# Made by `s5jtd volumes dropin --write` from {config_path}.",
        "# Make it again when volumes, folders or names of credentials change.",
        "",
    ]
    if mounts:
        lines += [
            "[Unit]",
            "# After the mounts, but never Requires=: a disk that is lost must not stop the daemon.",
            *(f"After={name}" for name in mounts),
            "",
        ]
    lines += [
        "[Service]",
        "# Where it may write besides its own folders, and run nothing.  What is not there at the start",
        "# may come later.",
        *(f"{name}={_quoted(path)}" for path in _writable(config) for name in _RIGHTS),
    ]
    if names := sorted(set(credential_names(config))):
        lines += [
            "# Secrets, for the daemon alone.  Where a file is missing it gets the text below,",
            "# and only the jobs that need it stand still.",
        ]
    for name in names:
        lines += [f"LoadCredential={name}:{CREDENTIALS_FOLDER / name}", f"SetCredential={name}:{NONE}"]
    return "\n".join(lines) + "\n"


def _mount_points(config: Config) -> Iterator[Path]:
    """The volumes' folders, and those of a pattern that fstab will mount some day."""
    yield from (volume.path for volume in expand_volumes(config))
    patterns = [str(volume.path) for volume in config.volumes if volume.is_pattern]
    for point in fstab_points():
        if any(fnmatch.fnmatchcase(point, pattern) for pattern in patterns):
            yield Path(point)


def _writable(config: Config) -> list[PurePath]:
    found = {PurePath(config.state_dir), PurePath(config.runtime_dir)} - set(_OWN)
    for volume in config.volumes:
        found |= set(_folders(volume, config))
    for job in config.jobs:
        if isinstance(job.destination, FolderDestination):
            found.add(job.destination.directory)
        if isinstance(job.source, FolderSource) and job.source.after != "keep":
            found.add(job.source.directory)
            if isinstance(job.source.after, Move):
                found.add(job.source.after.move)
    for path in found:
        for hidden in _HIDDEN:
            if path.is_relative_to(hidden):
                raise S5jtError(
                    f"{path} is below {hidden}, which the unit does not let the daemon see",
                    hint="mount it elsewhere, such as below /mnt or /srv",
                )
    return sorted(found)


def _folders(volume: VolumeSpec, config: Config) -> Iterator[PurePath]:
    """A volume's folder; for a pattern the folder that its volumes are in, so that others may join."""
    if not volume.is_pattern:
        yield volume.path
        return
    fixed = volume.path.parts[: _first_magic(volume.path)]
    if len(fixed) > 1:
        yield PurePath(*fixed)
    else:  # the whole root is not given away: only what is there now
        yield from (one.path for one in expand_volumes(config))


def _first_magic(path: Path) -> int:
    return next(number for number, part in enumerate(path.parts) if any(sign in part for sign in "*?["))


def credential_names(config: Config) -> Iterator[str]:
    """Every NAME of a `credentials: {systemd: NAME}`."""
    for side in config.s3_sides():
        if isinstance(side.credentials, SystemdCredentials):
            yield side.credentials.systemd


def _quoted(path: PurePath) -> str:
    """A path in a unit file; the hyphen lets it be missing."""
    text = os.fspath(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"-{text}"' if text != os.fspath(path) or " " in text else f"-{text}"
