"""`s5jtd ledger rebuild`: the newest copy that is whole in the place of a ledger that is lost."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from s5jtd import log
from s5jtd.app import lock_state_dir
from s5jtd.commands.agree import agree
from s5jtd.config import Config, expand_volumes
from s5jtd.errors import Exit, VolumeError
from s5jtd.ledger import rebuild, snapshots
from s5jtd.ledger.database import BACKUPS
from s5jtd.ledger.verify import verify_all
from s5jtd.volumes import copies
from s5jtd.volumes.seals import load_key
from s5jtd.volumes.visit import visit


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy that the ledger may be rebuilt from."""

    path: Path
    where: str
    is_whole: Callable[[], bool]  #: beyond what SQLite can tell: is it the file that we wrote?


def rebuild_ledger(config: Config, *, yes: bool, dry_run: bool) -> int:
    """Put the newest copy that is whole in the ledger's place, or begin anew; says what, and asks first.

    Raises:
        Busy: the daemon runs.
        LedgerError: something could not be read or written; what was put aside is still there.
    """
    lock = lock_state_dir(config.state_dir)
    try:
        return _rebuild(config, yes=yes, dry_run=dry_run)
    finally:
        os.close(lock)


def _rebuild(config: Config, *, yes: bool, dry_run: bool) -> int:
    path = config.state_dir / "ledger.db"
    click.echo(f"{path}: {_condition(path)}")
    with contextlib.ExitStack() as stack:
        copy = _newest_whole(stack, config)
        if copy is None:
            click.echo(
                "no copy of it is whole: it begins anew, and is filled from the volumes and by the next scan"
            )
        else:
            taken = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(snapshots.taken_at(copy.path.name)))
            click.echo(f"it is restored from {copy.path} ({copy.where}, {taken})")
        click.echo("what is there now is moved aside, not deleted; chunks on the volumes are not touched")
        if dry_run:
            return Exit.DONE
        agree(yes, "Rebuild the ledger?")
        aside = rebuild.put_aside(path)
        if aside is not None:
            click.echo(f"moved aside: {aside}")
        if copy is None:
            rebuild.begin_anew(path)
            click.echo("an empty ledger is in place")
        else:
            restored = rebuild.restore(copy.path, path)
            click.echo(
                f"restored: {restored.delivered} objects delivered;"
                f" {restored.in_doubt} in doubt, shown as `gone` until the next scan has looked for them"
            )
    click.echo(
        "next: start s5jtd.  It takes in what lies sealed on the volumes, and the first scan finds what the"
        " destination holds; neither is moved again."
    )
    return Exit.DONE


def _condition(path: Path) -> str:
    if not path.exists():
        return "is not there"
    found = [check for check in verify_all(path) if check.findings]
    if not found:
        return "is whole and agrees with itself: a rebuild is not needed"
    return f"is damaged: {log.escape(found[0].findings[0])}"


def _newest_whole(stack: contextlib.ExitStack, config: Config) -> _Copy | None:
    """The newest copy that passes every check; volumes stay held while it is used."""
    candidates = [
        _Copy(path, "in the state folder", lambda: True)
        for path in snapshots.snapshots(config.state_dir / BACKUPS)
    ]
    candidates += _on_volumes(stack, config)
    # The state folder's own comes first among equals.
    for copy in sorted(candidates, key=lambda copy: copy.path.name, reverse=True):
        fault = snapshots.fault(copy.path) if copy.is_whole() else "its bytes are not those that were written"
        if fault is None:
            return copy
        click.echo(f"not usable: {copy.path} ({copy.where}): {log.escape(fault)}", err=True)
    return None


def _on_volumes(stack: contextlib.ExitStack, config: Config) -> list[_Copy]:
    found = []
    key = load_key(config.state_dir)
    for volume in expand_volumes(config):
        try:
            root_fd, _ = stack.enter_context(visit(volume.path, key))
            names = copies.copies(root_fd, key)
        except (VolumeError, OSError) as error:
            click.echo(f"volume {volume.name} is not looked at: {error}", err=True)
            continue
        found += [
            _Copy(
                copies.path_of(volume.path, name), f"on volume {volume.name}",
                lambda fd=root_fd, name=name: copies.is_whole(fd, name, key, lambda: None),  # type: ignore[misc]
            )
            for name in names
        ]  # fmt: skip
    return found
