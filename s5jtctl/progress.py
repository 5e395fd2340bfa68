"""One line on a terminal that tells how far something has come that is waited for."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from s5jtctl.client import Daemon, Failure
from s5jtctl.status import resync_line
from s5jtctl.terminal import columns, look
from s5jtctl.text import cut
from s5jtd.protocol import Method

EVERY_SECONDS = 1.0
_ERASE = "\r\x1b[K"


@contextlib.contextmanager
def of_resync(daemon: Daemon, job: str) -> Iterator[None]:
    """Told while the block waits, on stderr where that is a terminal, and gone after it.

    `daemon` is asked beside the one that is waited for, and gives up soon.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    over = threading.Event()

    def tell() -> None:
        while not over.wait(EVERY_SECONDS):
            with contextlib.suppress(Failure, KeyError, TypeError, IndexError, OSError):
                last = daemon.ask(Method.STATUS, {"job": job})["jobs"][0]["last_resync"]
                if last and last["finished_at"] is None and not over.is_set():
                    width = columns()
                    sys.stderr.write(_ERASE + cut(resync_line(last, look(width).now), width - 1))
                    sys.stderr.flush()

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        daemon.close()
        sys.stderr.write(_ERASE)
        sys.stderr.flush()
