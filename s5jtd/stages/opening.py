"""The ledger as a daemon opens it: proven before it is relied on, and waited for where that can help."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import structlog

from s5jtd.errors import IntakeStopped, LedgerBlocked, LedgerFull
from s5jtd.ledger.patience import OnBlocked
from s5jtd.ledger.store import Ledger
from s5jtd.ledger.upkeep import Ballast
from s5jtd.ledger.verify import GoOn
from s5jtd.problems import Problems
from s5jtd.worker import Worker

log = structlog.get_logger(__name__)

#: A thread that cannot write to the ledger tries again so often.
RETRY_SECONDS = 1.0
#: A disk full for a week fills up no queue and loses nothing: that wait has no end.  Any other reason gets
#: so long; then the daemon ends, for its open files would keep a dead file system from being repaired.
BLOCKED_SECONDS_MAX = 120.0

#: What problems of the ledger are about.
SUBJECT = "ledger"


class Patience:
    """What a thread does that cannot write to the ledger now: it waits, where waiting can help."""

    def __init__(
        self, ballast: Ballast, problems: Problems, stop: threading.Event, *, lasting_seconds_max: float
    ) -> None:
        """`lasting_seconds_max`: how long a full disk is waited for; a single pass has an end."""
        self._ballast = ballast
        self._problems = problems
        self._stop = stop
        self._lasting_seconds_max = lasting_seconds_max

    def __call__(self, error: LedgerBlocked, seconds: float) -> bool:
        """Whether to try again; called on the thread that was blocked, after each try."""
        if isinstance(error, LedgerFull) and self._ballast.drop():
            log.warning("ledger_ballast_dropped")
            return True
        # Why intake was stopped is told by whoever stopped it.
        if not isinstance(error, IntakeStopped) and self._problems.raise_(
            error.code, SUBJECT, str(error), error.hint
        ):
            log.error("ledger_blocked", error=str(error), hint=error.hint)
        worker = threading.current_thread()
        lasting = isinstance(error, LedgerFull | IntakeStopped)
        limit = self._lasting_seconds_max if lasting else BLOCKED_SECONDS_MAX
        # Whoever is no worker has a client that wants an answer, or a signal to hear.
        if not isinstance(worker, Worker) or seconds > limit:
            return False
        worker.beat()
        return not self._stop.wait(RETRY_SECONDS)


def open_ledger(path: Path, ballast: Ballast, on_blocked: OnBlocked) -> Ledger:
    """Open the ledger; where even that needs room that is not there, the ballast gives it.

    Raises:
        LedgerError: see `Database`.
    """
    try:
        return Ledger(path, on_blocked=on_blocked)
    except LedgerFull:
        if not ballast.drop():
            raise
        log.warning("ledger_ballast_dropped")
        return Ledger(path, on_blocked=on_blocked)


def prove(ledger: Ledger, problems: Problems, go_on: GoOn) -> bool:
    """Have a ledger in doubt read through, and say so meanwhile; False where `go_on` said no.

    Raises:
        LedgerDamaged: it is broken.
    """
    doubt = ledger.database.doubt
    if doubt is None:
        return True
    problems.raise_(
        "ledger_checking", SUBJECT, f"the ledger is read through before any work begins: {doubt}",
        "nothing to do: the work begins by itself, at some gigabytes a minute",
    )  # fmt: skip
    log.info("ledger_checking", reason=doubt)
    began = time.monotonic()
    try:
        proven = ledger.database.prove(go_on)
    finally:
        problems.clear("ledger_checking", SUBJECT)
    if proven:
        log.info("ledger_checked", seconds=round(time.monotonic() - began, 3))
    return proven
