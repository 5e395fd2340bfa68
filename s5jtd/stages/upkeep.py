"""Looks after the ledger: room on its disk, copies of it, a short WAL, bounded history.  Moves no object."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from s5jtd.errors import LedgerBlocked, LedgerDamaged, LedgerError, LedgerFull
from s5jtd.ledger import snapshots
from s5jtd.ledger.access import DAMAGED_HINT
from s5jtd.ledger.database import BACKUPS
from s5jtd.ledger.files import free_bytes
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.upkeep import (
    WAL_BYTES,
    WAL_BYTES_ALARM,
    Ballast,
    Room,
    fingerprint,
    is_empty,
    room,
    trim,
)
from s5jtd.ledger.verify import GoOn, is_broken
from s5jtd.problems import Problems
from s5jtd.stages.opening import SUBJECT
from s5jtd.worker import Bell

log = structlog.get_logger(__name__)

#: A copy comes so often, if anything moved; but copying never takes more than a sixtieth of the time,
#: for a large ledger on a small disk would do nothing else.
COPY_SECONDS = 3600.0
COPY_SHARE = 60
#: After a copy that failed, and while there is nothing worth a copy.
COPY_AGAIN_SECONDS = 300.0
TRIM_SECONDS = 600.0


class Upkeep:
    """The one keeper of the ledger.

    Nothing here writes through `Ledger`, whose methods wait while the disk is full: it is this worker
    that notices when they can go on.
    """

    name = "upkeep"
    idle_seconds = 5.0
    #: SQLite says nothing while it proves a copy of a large ledger.
    quiet_seconds_max = 7200.0

    def __init__(
        self, ledger: Ledger, ballast: Ballast, problems: Problems, bell: Bell, stop: threading.Event
    ) -> None:
        """`stop` also ends a copy that is being made."""
        self._database = ledger.database
        self._ballast = ballast
        self._problems = problems
        self._bell = bell
        self._stop = stop
        self._folder = self._database.path.parent
        self._room = Room.PLENTY
        self._astray = False
        self._commits = self._database.commits
        self._copied: tuple[object, ...] | None = None
        self._copy_at = time.monotonic() + self._seconds_to_copy()
        self._trim_at = time.monotonic()

    def step(self, beat: Callable[[], None]) -> bool:
        """Look at everything once; each thing that is due is done."""
        self._look_after_files()
        if self._astray:
            return False  # all else goes by the path, which leads elsewhere now
        self._look_after_room()
        idle = self._commits == self._database.commits
        self._commits = self._database.commits
        if not idle:
            self._problems.clear(LedgerBlocked.code, SUBJECT)
        trimmed = 0
        try:
            self._cut_wal(idle=idle)
            if self._room is not Room.FULL:
                trimmed = self._trim()
                self._copy(beat)
        except LedgerBlocked as error:
            log.debug("upkeep_put_off", error=str(error))
        return trimmed > 0

    # Files that were taken away

    def _look_after_files(self) -> None:
        """A file that was deleted or replaced under us: what is written now would be lost with our end."""
        name = self._database.astray()
        if name is None or self._astray:
            return
        self._astray = True
        database_itself = name == self._database.path.name
        hint = DAMAGED_HINT if database_itself else "restart s5jtd"
        message = f"{self._folder / name} was deleted or replaced while the daemon works with it"
        self._database.intake_stopped = LedgerBlocked(message, hint=hint)
        try:
            copy = snapshots.rescue(self._database)
            message += f"; what it held is kept in {copy}"
        except LedgerError as error:
            message += f"; what it held could not be kept: {error}"
        self._problems.raise_("ledger_replaced", SUBJECT, message, hint)
        log.error("ledger_replaced", error=message, hint=hint)

    # Room

    def _look_after_room(self) -> None:
        was_full = isinstance(self._database.intake_stopped, LedgerFull)
        try:
            self._ballast.load()
            free = free_bytes(self._folder)
        except OSError as error:
            log.debug("upkeep_put_off", error=str(error))
            return
        self._room = room(free, was=Room.FULL if was_full else self._room)
        message = f"{free} bytes are free under {self._folder}"
        hint = "make room on the disk under state_dir"
        if self._room is Room.FULL:
            full = LedgerFull(message, hint=f"{hint}; until then nothing new is taken in")
            if self._database.intake_stopped is None:
                self._database.intake_stopped = full
            if self._problems.raise_(full.code, SUBJECT, str(full), full.hint):
                log.error("ledger_blocked", error=str(full), hint=full.hint)
        elif was_full:
            self._database.intake_stopped = None
            self._bell.ring()
        if self._room is not Room.FULL and self._problems.clear(LedgerFull.code, SUBJECT):
            log.info("ledger_has_room", free_bytes=free)
        if self._room is Room.LOW:
            self._problems.raise_("ledger_disk_low", SUBJECT, f"only {message}", hint)
        else:
            self._problems.clear("ledger_disk_low", SUBJECT)

    # WAL and history

    def _cut_wal(self, *, idle: bool) -> None:
        """When nobody writes, or it has become large.  A reader may be in the way; there is a next time."""
        size = self._database.wal_bytes()
        if size and (idle or size > WAL_BYTES):
            self._database.checkpoint()
            size = self._database.wal_bytes()
        if size > WAL_BYTES_ALARM:
            self._problems.raise_(
                "ledger_wal_large", SUBJECT,
                f"{self._database.path}-wal has {size} bytes: a program reads the ledger and does not end",
                f"find and end it, which is not s5jtd itself: fuser -v {self._database.path}",
            )  # fmt: skip
        else:
            self._problems.clear("ledger_wal_large", SUBJECT)

    def _trim(self) -> int:
        if time.monotonic() < self._trim_at:
            return 0
        trimmed = trim(self._database)
        if not trimmed:
            self._trim_at = time.monotonic() + TRIM_SECONDS
        return trimmed

    # Copies

    def _seconds_to_copy(self) -> float:
        """How long an earlier life's last copy is still good for."""
        last = snapshots.snapshots(self._folder / BACKUPS)
        age = time.time() - snapshots.taken_at(last[0].name) if last else COPY_SECONDS
        return min(COPY_SECONDS, max(0.0, COPY_SECONDS - age))

    def _copy(self, beat: Callable[[], None]) -> None:
        if time.monotonic() < self._copy_at:
            return
        now = fingerprint(self._database)
        if is_empty(self._database) or now == self._copied:
            self._copy_at = time.monotonic() + COPY_AGAIN_SECONDS
            return
        began = time.monotonic()
        try:
            copy = snapshots.take(self._database.path, self._going_on(beat))
        except snapshots.ToldToEnd:
            return
        except LedgerError as error:
            self._copy_at = time.monotonic() + COPY_AGAIN_SECONDS
            self._copy_failed(error, beat)
            return
        seconds = time.monotonic() - began
        self._copied = now
        self._copy_at = time.monotonic() + max(COPY_SECONDS, COPY_SHARE * seconds)
        self._problems.clear("ledger_backup_failed", SUBJECT)
        log.info("ledger_copied", path=str(copy), bytes=copy.stat().st_size, seconds=round(seconds, 3))

    def _going_on(self, beat: Callable[[], None]) -> GoOn:
        def go_on() -> bool:
            beat()
            return not self._stop.is_set()

        return go_on

    def _copy_failed(self, error: LedgerError, beat: Callable[[], None]) -> None:
        """A copy that is not whole: is it the copy, or the ledger itself?"""
        code, hint = "ledger_backup_failed", error.hint
        if isinstance(error, LedgerDamaged) and is_broken(self._database.path, self._going_on(beat)):
            code, hint = error.code, DAMAGED_HINT
            self._database.intake_stopped = LedgerBlocked(str(error), hint=hint)
            self._database.doubt = "it was found damaged"
        if self._problems.raise_(code, SUBJECT, f"no copy of the ledger could be made: {error}", hint):
            log.error("ledger_copy_failed", error=str(error), hint=hint)
