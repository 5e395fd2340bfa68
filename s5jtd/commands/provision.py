"""`s5jtd volumes plan` and `apply`: shows what would become of each disk, asks, and does it."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from s5jtd.commands.agree import agree
from s5jtd.errors import Exit, NotPermitted, S5jtError, UsageError
from s5jtd.provision.carry_out import carry_out
from s5jtd.provision.layout import Entry, Fate, Settings, mount_options, plan
from s5jtd.units import format_bytes
from s5jtd.volumes.seals import load_key

#: The user of the daemon, where the state folder does not tell who that is.
USER = "s5jtd"
#: For each fate what is said of the disk.
_TODO = {Fate.NEW: "make it", Fate.FORMAT: "go on to make it", Fate.MOUNT: "mount it again as"}


def show(settings: Settings, named: Sequence[str], *, as_json: bool) -> int:
    """Show what would be done.

    Raises:
        S5jtError: the disks cannot be looked at.
    """
    _need_root()
    entries = plan(settings, named)
    if as_json:
        click.echo(json.dumps({"disks": [_row(entry) for entry in entries], **_common(settings)}, indent=2))
        return Exit.DONE
    _tell(entries, settings)
    if _todo(entries):
        click.echo("\nNothing was changed.  To do it: s5jtd volumes apply, with the same options")
    return Exit.DONE


def apply(
    settings: Settings, named: Sequence[str], state_dir: Path, *, assume_yes: bool, dry_run: bool
) -> int:
    """Show what would be done, ask, and do it; 1 if a disk could not be finished.

    Raises:
        S5jtError: the disks cannot be looked at, or the answer was no.
    """
    if dry_run:
        return show(settings, named, as_json=False)
    _need_root()
    entries = plan(settings, named)
    _tell(entries, settings)
    todo = _todo(entries)
    refused = [f"{e.device.path} {'; '.join(e.reasons)}" for e in entries if e.fate is Fate.REFUSED]
    if named and refused:
        raise UsageError(
            f"{', '.join(refused)}: a disk that was named cannot be used; nothing was changed",
            hint="name the others",
        )
    if not todo:
        click.echo("\nthere is nothing to do")
        return Exit.DONE
    click.echo("")
    disks = "1 disk" if len(todo) == 1 else f"{len(todo)} disks"
    agree(assume_yes, f"Go on with {disks}?")
    key = load_key(state_dir)
    failed = 0
    for entry in todo:
        try:
            uuid = carry_out(entry, settings, key, lambda line: click.echo(line, err=True))
        except S5jtError as error:
            failed += 1
            click.echo(f"{entry.device.path}: {error}", err=True)
            click.echo(f"hint: {error.hint or 'run the same command again'}", err=True)
            continue
        click.echo(f"{entry.point} is volume {uuid}")
    if failed < len(todo):
        click.echo(
            f"\nname them under `volumes` in the configuration, or the pattern {settings.base}/volume-*;"
            "\nthen, for the service: s5jtd volumes dropin --write"
        )
    return Exit.FAILED if failed else Exit.DONE


def _todo(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.fate in _TODO]


def _tell(entries: Sequence[Entry], settings: Settings) -> None:
    if not entries:
        click.echo("there is no disk here")
        return
    rows = [("DISK", "SIZE", "SERIAL", "WHAT BECOMES OF IT")]
    rows += [
        (e.device.path, format_bytes(e.device.size_bytes), e.device.serial or "-", _said(e)) for e in entries
    ]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    for row in rows:
        click.echo(f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]}")
    if _todo(entries):
        kept = {"systemd": "a systemd mount unit", "fstab": f"{settings.etc}/fstab", "none": "nothing"}
        click.echo(
            f"\nEach new one gets a GPT with one partition, {settings.kind}; {_owner(settings)} is its owner."
            f"\nMounted with {','.join(mount_options())},nofail"
            f"\nand kept over restarts by {kept[settings.persist]}."
        )


def _said(entry: Entry) -> str:
    if entry.fate is Fate.REFUSED:
        return f"not touched: {'; '.join(entry.reasons)}"
    if entry.fate is Fate.DONE:
        return f"nothing: it is {entry.point} already"
    return f"{_TODO[entry.fate]} {entry.point}"


def _row(entry: Entry) -> dict[str, Any]:
    device = entry.device
    return {
        "device": device.path, "size_bytes": device.size_bytes, "serial": device.serial or None,
        "model": device.model or None, "fate": entry.fate.value, "name": entry.name,
        "path": str(entry.point) if entry.point else None, "reasons": list(entry.reasons),
    }  # fmt: skip


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "filesystem": settings.kind, "options": [*mount_options(), "nofail"], "persist": settings.persist,
        "owner": _owner(settings),
    }  # fmt: skip


def _owner(settings: Settings) -> str:
    try:
        return pwd.getpwuid(settings.owner[0]).pw_name
    except KeyError:
        return str(settings.owner[0])


def owner(given: str | None, state_dir: Path | None) -> tuple[int, int]:
    """Uid and gid of whoever runs the daemon: as given, else who has its state folder, else its user.

    Raises:
        UsageError: there is no such user.
    """
    if given is None and state_dir is not None and state_dir.is_dir():
        told = state_dir.stat()
        return told.st_uid, told.st_gid
    try:
        user = pwd.getpwnam(given or USER)
    except KeyError:
        if given is None:
            return os.geteuid(), os.getegid()
        raise UsageError(f"there is no user {given}", hint="name the user that runs s5jtd") from None
    return user.pw_uid, user.pw_gid


def _need_root() -> None:
    if os.geteuid() != 0:
        raise NotPermitted("looking at disks needs root", hint="run it again with sudo")
