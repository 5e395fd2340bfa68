"""`s5jtd volumes`: its commands and their options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def volumes() -> None:
    """Prepare folders and disks for staging.

    \b
    Examples:
      s5jtd volumes plan                     which blank disks there are; then: apply
      s5jtd volumes stamp /mnt/volume-01     a folder, or a mounted disk
      s5jtd volumes adopt /mnt/volume-02     a disk of another appliance
      s5jtd volumes dropin --write           then, for the service
    """


def _disk_options(command: _Command) -> _Command:
    options = [
        click.option(
            "--device", "devices", multiple=True, metavar="DISK",
            help="Only this disk, such as /dev/sdb; several are allowed.  Loop devices have to be named.",
        ),
        click.option(
            "--base", type=click.Path(path_type=Path), default="/mnt", show_default=True, metavar="FOLDER",
            help="Where the mount points are made: FOLDER/volume-01 and so on.",
        ),
        click.option(
            "--fs", "kind", type=click.Choice(["ext4", "xfs"]), default="ext4", show_default=True,
            help="The file system.",
        ),
        click.option(
            "--persist", type=click.Choice(["systemd", "fstab", "none"]), default="systemd",
            show_default=True, help="How the mounts come back after a restart.",
        ),
        click.option(
            "--etc", type=click.Path(path_type=Path), default="/etc", show_default=True, metavar="FOLDER",
            help="Where fstab and systemd/system are.",
        ),
        click.option("--removable", is_flag=True, help="Take USB and other removable disks too."),
        click.option(
            "--owner", metavar="USER",
            help="Who runs the daemon (default: whose its state folder is, else s5jtd).",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _settings(state_dir: Path | None, **given: Any) -> Any:
    from s5jtd.commands.provision import owner
    from s5jtd.provision.layout import Settings

    base, etc = given["base"].absolute(), given["etc"].absolute()
    return Settings(
        base, given["kind"], given["persist"], etc, given["removable"], owner(given["owner"], state_dir)
    )


@volumes.command("plan")
@_disk_options
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON.")
@click.pass_obj
def volumes_plan(context: Any, /, devices: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Find blank disks and show what `apply` would do; changes nothing.

    A disk is blank when it has no partition, no signature and no data, and nothing uses it.  Needs root.

    \b
    Examples:
      s5jtd volumes plan
      s5jtd volumes plan --device /dev/sdb --fs xfs
    """
    from s5jtd.commands.provision import show
    from s5jtd.errors import ConfigError

    try:
        state_dir = context.load().state_dir
    except ConfigError:  # the plan only shows whose the volumes would be
        state_dir = None
    sys.exit(show(_settings(state_dir, **given), devices, as_json=as_json))


@volumes.command("apply")
@_disk_options
@click.option("--state-dir", type=click.Path(path_type=Path), help="Of the daemon; default: as configured.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option("--yes", "assume_yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def volumes_apply(
    context: Any,
    /,
    devices: tuple[str, ...],
    state_dir: Path | None,
    dry_run: bool,
    assume_yes: bool,
    **given: Any,
) -> None:
    """Make volumes of blank disks; asks first.

    Each is partitioned, formatted, mounted, made permanent, marked and given to the daemon.

    A disk that holds anything is never touched, whatever is said.  What is a volume already stays as it
    is, so a second run changes nothing; one that was cut short goes on.  Needs root.

    \b
    Examples:
      s5jtd volumes apply --dry-run
      s5jtd volumes apply --device /dev/sdb
    """
    from s5jtd.commands.provision import apply

    folder = state_dir.absolute() if state_dir else context.load().state_dir
    sys.exit(apply(_settings(folder, **given), devices, folder, assume_yes=assume_yes, dry_run=dry_run))


@volumes.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.pass_obj
def stamp(context: Any, path: Path) -> None:
    """Mark the folder or mount PATH as a volume of this appliance.

    \b
    Examples:
      s5jtd volumes stamp /mnt/volume-01
    """
    from s5jtd.commands.volumes import stamp as perform

    sys.exit(perform(context.load(), path))


@volumes.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what is on it, and change nothing.")
@click.option("--yes", "assume_yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def adopt(context: Any, path: Path, dry_run: bool, assume_yes: bool) -> None:
    """Take in a volume of another appliance, after showing its content.

    \b
    Examples:
      s5jtd volumes adopt /mnt/volume-02 --dry-run
    """
    from s5jtd.commands.volumes import adopt as perform

    sys.exit(perform(context.load(), path, assume_yes=assume_yes, dry_run=dry_run))


@volumes.command()
@click.option("--write", is_flag=True, help="Put it in its place, as root, instead of showing it.")
@click.pass_obj
def dropin(context: Any, write: bool) -> None:
    """Tell s5jtd.service of the configured volumes and credentials.

    By a drop-in for systemd, which is shown, and put in its place with --write.

    \b
    Examples:
      s5jtd volumes dropin
      s5jtd volumes dropin --write && systemctl restart s5jtd
    """
    from s5jtd.commands.dropin import dropin as perform

    sys.exit(perform(context.load(), context.path, write=write))
