"""Where every thread stood when the process was aborted: in a file, because a journal is no place for it."""

from __future__ import annotations

import faulthandler
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

#: What this life leaves if it is aborted (the watchdog's SIGABRT) or crashes; empty while it is well.
NOW: Final = "crash.txt"
#: The same of the last life that was.
BEFORE: Final = "crash.last.txt"


def keep(folder: Path) -> None:
    """Tell what an earlier life left there, and have this one's threads written down should it come to that.

    Where the file cannot be made, the place stays what it was, stderr.
    """
    now, before = folder / NOW, folder / BEFORE
    try:
        if now.exists() and now.stat().st_size:
            now.replace(before)
            log.warning("daemon_was_aborted", file=str(before))
        file = now.open("wb")  # for the life of the process: what writes to it knows only its number
        now.chmod(0o600)
    except OSError as error:
        log.debug("crash_file_refused", error=str(error))
        return
    faulthandler.enable(file)
