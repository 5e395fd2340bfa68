"""The mark of a clean end: with it a ledger is opened at once, without it its file is read through first."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from s5jtd.ledger.files import identity, install, scratch, sync_folder

#: However orderly it was closed: so long after the last look through the whole file comes another.
CHECK_SECONDS = 7 * 86_400


def mark_of(path: Path) -> Path:
    """Where the mark of the ledger at `path` is."""
    return path.with_suffix(".clean")


def take(path: Path) -> tuple[str | None, float]:
    """Take the mark away: why the whole file is to be checked, if it is; and when it last was (Unix time).

    Gone means gone durably, before anything is written to the ledger.

    Raises:
        OSError: as the file system says.
    """
    mark = mark_of(path)
    try:
        raw = mark.read_bytes()
    except FileNotFoundError:
        return ("it was not closed in an orderly way", 0.0) if path.exists() else (None, time.time())
    mark.unlink()
    sync_folder(mark.parent)
    try:
        written = json.loads(raw)
        same, checked_at = tuple(written["file"]) == identity(path), float(written["checked_at"])
    except (ValueError, KeyError, TypeError):
        same, checked_at = False, 0.0
    if not same:
        return "it was changed or replaced since it was closed", 0.0
    if not 0 <= time.time() - checked_at < CHECK_SECONDS:
        return "it was last checked more than a week ago", checked_at
    return None, checked_at


def leave(path: Path, checked_at: float) -> None:
    """Leave the mark of a clean end; where that fails the next start checks, which is no harm."""
    mark = mark_of(path)
    with contextlib.suppress(OSError), scratch(mark) as temporary:
        temporary.touch(0o600)
        temporary.write_text(json.dumps({"file": identity(path), "checked_at": checked_at}))
        install(temporary, mark)
