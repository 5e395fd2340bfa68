"""Copies of the ledger that were proven whole: made while the daemon works, few, and never half.

A name tells the time, so that people can choose; and names grow even where the clock jumps back.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from s5jtd.errors import LedgerDamaged, LedgerError, LedgerFull
from s5jtd.ledger import schema
from s5jtd.ledger.access import Failures, copy_database, told_plainly
from s5jtd.ledger.database import BACKUPS, Database
from s5jtd.ledger.files import free_bytes, identity, install, make_folder, scratch
from s5jtd.ledger.verify import GoOn, structure

#: How many stay in the state folder.  More would be older, and an older one only means more questions
#: to the destination.
KEPT: Final = 3
#: A copy leaves this much of the disk to the ledger itself, in bytes.
_LEFT_FREE: Final = 64 << 20
_ABANDONED_SECONDS: Final = 3600.0

_STAMP: Final = "%Y%m%dT%H%M%SZ"
_NAME: Final = re.compile(r"ledger-([0-9]{8}T[0-9]{6}Z)\.db")


def is_snapshot(name: str) -> bool:
    """Whether a file's name is one that we give."""
    return _NAME.fullmatch(name) is not None


def snapshots(folder: Path) -> list[Path]:
    """What is in a folder, the newest first."""
    found = (path for path in folder.glob("ledger-*.db") if is_snapshot(path.name))
    return sorted(found, key=lambda path: path.name, reverse=True)


def taken_at(name: str) -> float:
    """When a snapshot was taken, as its name tells; Unix time."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no snapshot's name")
    return datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC).timestamp()


def next_name(others: Sequence[Path], now: float) -> str:
    """The name of a snapshot taken now: later than all others, whatever the clock says."""
    moment = datetime.fromtimestamp(now, UTC)
    if others:
        moment = max(moment, datetime.fromtimestamp(taken_at(others[0].name), UTC) + timedelta(seconds=1))
    return f"ledger-{moment:{_STAMP}}.db"


class ToldToEnd(Exception):
    """`go_on` said no; nothing is left of what was begun."""


def take(ledger: Path, go_on: GoOn = lambda: True) -> Path:
    """Add a proven copy to the ledger's own backups, and drop what is too many then.

    Raises:
        ToldToEnd: `go_on`, which is asked now and then, said no.
        LedgerFull: there is no room for it; older ones gave way, but never the newest.
        LedgerDamaged: the copy is not whole; the others stay as they are.
        LedgerError: the ledger cannot be read, or the folder not be written.
    """
    folder = ledger.parent / BACKUPS
    with told_plainly(folder):
        make_folder(folder)
        _sweep(folder)
        _make_room(ledger, folder)
        final = folder / next_name(snapshots(folder), time.time())
        copy_to(ledger, final, go_on)
        for old in snapshots(folder)[KEPT:]:
            old.unlink(missing_ok=True)
    return final


def copy_to(ledger: Path, final: Path, go_on: GoOn = lambda: True) -> None:
    """Write a proven copy of the ledger to `final`; what was there stays unless the copy is good.

    Raises:
        ToldToEnd: `go_on`, which is asked now and then, said no.
        LedgerDamaged: the copy is not whole.
        LedgerError: the ledger cannot be read, or the copy not be written.
    """
    with told_plainly(final), scratch(final) as temporary:
        temporary.touch(0o600)
        copy_database(ledger, temporary, _ending(go_on))
        if found := _settle(temporary, go_on):
            raise LedgerDamaged(
                f"the copy of {ledger} is not whole: {found}", hint="run: s5jtd ledger verify"
            )
        install(temporary, final)


def rescue(db: Database) -> Path:
    """Keep what an open connection holds of a ledger whose file is gone.

    Raises:
        LedgerError: it could not be read or written, or is not whole.
    """
    folder = db.path.parent / BACKUPS
    with told_plainly(folder):
        make_folder(folder)
        final = folder / next_name(snapshots(folder), time.time())
        with scratch(final) as temporary:
            temporary.touch(0o600)
            db.rescue(temporary)
            if found := _settle(temporary, lambda: True):
                raise LedgerDamaged(f"what is left of {db.path} is not whole: {found}")
            install(temporary, final)
    return final


def fault(path: Path, go_on: GoOn = lambda: True) -> str | None:
    """Why a file cannot serve as the ledger; None where it can."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as sql:
            if not sql.execute("PRAGMA user_version").fetchone()[0]:
                return "it is no ledger"
            schema.missing(sql)
            found = schema.alien(sql)
        found += structure(path, "integrity_check", go_on) or []
    except LedgerError as error:
        return str(error)
    except (*Failures, OSError) as error:
        return str(error)
    return found[0] if found else None


def _settle(temporary: Path, go_on: GoOn) -> str | None:
    """Make a fresh copy one file that needs no WAL, and prove it; what is wrong with it."""
    with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as sql:
        sql.execute("PRAGMA journal_mode = DELETE").fetchone()
    found = structure(temporary, "integrity_check", go_on)
    if found is None:
        raise ToldToEnd
    return found[0] if found else None


def _sweep(folder: Path) -> None:
    """What a copy that was cut left behind; not one that another process is writing now."""
    for leftover in folder.glob(".*.new*"):
        if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
            leftover.unlink(missing_ok=True)


def _make_room(ledger: Path, folder: Path) -> None:
    told = identity(ledger)
    needed = (told.size if told else 0) + _LEFT_FREE
    for old in [*reversed(snapshots(folder)[1:])]:
        if free_bytes(folder) >= needed:
            return
        old.unlink(missing_ok=True)
    if free_bytes(folder) < needed:
        raise LedgerFull(
            f"{folder} has no room for a copy of {needed - _LEFT_FREE} bytes",
            hint="make room on the disk under state_dir; it is tried again by itself",
        )


def _ending(go_on: GoOn) -> Callable[[], None]:
    def alive() -> None:
        if not go_on():
            raise ToldToEnd

    return alive
