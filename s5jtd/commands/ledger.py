"""`s5jtd ledger`: is it whole, a copy of it, its rows for others, and a new beginning where it is lost."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click

from s5jtd import log
from s5jtd.config import Config
from s5jtd.errors import Exit, LedgerError, UsageError
from s5jtd.ledger import export, snapshots
from s5jtd.ledger.access import DAMAGED_HINT, told_plainly
from s5jtd.ledger.database import BACKUPS
from s5jtd.ledger.files import install, scratch
from s5jtd.ledger.states import State
from s5jtd.ledger.verify import Check, verify_all
from s5jtd.units import format_bytes


def ledger_of(config: Config) -> Path:
    """Where the ledger is.

    Raises:
        LedgerError: there is none.
    """
    path = config.state_dir / "ledger.db"
    if not path.exists():
        was_there = any((config.state_dir / BACKUPS).glob("*.db"))
        hint = DAMAGED_HINT if was_there else "s5jtd makes it when it runs; check state_dir"
        raise LedgerError(f"{path} is not there", hint=hint)
    return path


# verify


def verify(config: Config, *, as_json: bool) -> int:
    """Look at everything there is to check and report it; works beside a daemon.

    Raises:
        LedgerError: there is no ledger, or it cannot be opened.
    """
    path = ledger_of(config)
    size = path.stat().st_size
    if not as_json:
        click.echo(f"{path}, {format_bytes(size)}", err=True)
    began = time.monotonic()
    checks = []
    for check in verify_all(path):
        checks.append(check)
        if not as_json:
            _show(check)
    ok = not any(check.findings for check in checks)
    if as_json:
        click.echo(
            json.dumps({
                "ledger": str(path), "ok": ok, "size_bytes": size,
                "duration_seconds": round(time.monotonic() - began, 3),
                "checks": [
                    {"name": c.name, "ok": not c.findings, "findings": list(c.findings)} for c in checks
                ],
            })
        )  # fmt: skip
    if not ok:
        click.echo(f"hint: {DAMAGED_HINT}", err=True)
    return Exit.DONE if ok else Exit.FAILED


def _show(check: Check) -> None:
    click.echo(f"{check.name:16} {'ok' if not check.findings else 'DAMAGED'}")
    for finding in check.findings:
        click.echo(f"    {log.escape(finding)}")


# backup


def backup(config: Config, target: Path | None) -> int:
    """Write a proven copy, also while a daemon works; what was there before stays unless the copy is good.

    Raises:
        LedgerError: it could not be made, or is not whole.
    """
    path = ledger_of(config)
    if target is None:
        final = snapshots.take(path)
    else:
        final = target.absolute()
        if final.name.startswith(path.name) and final.parent.resolve() == path.parent.resolve():
            raise UsageError(f"{target} is the ledger itself", hint="name another file")
        snapshots.copy_to(path, final)
    click.echo(f"{final}: {format_bytes(final.stat().st_size)}, checked and durable")
    return Exit.DONE


# export


def export_rows(config: Config, *, form: str, job: str | None, state: str | None, output: Path | None) -> int:
    """Write the rows of the objects to a file, or to stdout.

    Raises:
        UsageError: the ledger knows no such job.
        LedgerError: it cannot be read, or the file not be written.
    """
    write = export.write_csv if form == "csv" else export.write_jsonl
    with export.opened(ledger_of(config), job, State[state.upper()] if state else None) as table:
        if output is None:
            count = write(table, sys.stdout)
            sys.stdout.flush()
        else:
            with _writing(output.absolute()) as file:
                count = write(table, file)
    click.echo(f"{count} objects", err=True)
    return Exit.DONE


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[TextIO]:
    """A file that appears when all of it is written."""
    with told_plainly(output), scratch(output) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
        install(temporary, output)
