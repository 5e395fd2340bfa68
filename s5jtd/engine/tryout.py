"""Whether s5cmd gets from a server what the native engine gets: each fetches one object, and keeps none."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from s5jtd.engine.contract import Batch, Caller, Engine, Failure, Outcome, Remote, Transfer
from s5jtd.engine.native.engine import Native
from s5jtd.engine.s5cmd import S5cmd
from s5jtd.model import Direction

_NAME = "1.obj"


class Verdict(NamedTuple):
    """What came of it."""

    fits: bool | None  #: None: neither of them got it, or the server could not be reached
    message: str  #: what s5cmd said where it failed


def try_out(remote: Remote, key: bytes, size: int) -> Verdict:
    """Fetch an object of `size` bytes.

    Raises:
        EngineError: s5cmd could not be started.
    """
    by_s5cmd = _fetched(S5cmd(), remote, key, size)
    if by_s5cmd.failure is None:
        return Verdict(True, "")
    if by_s5cmd.failure in (Failure.ENDPOINT, Failure.GONE, Failure.CHANGED):
        return Verdict(None, by_s5cmd.message)
    by_native = _fetched(Native(), remote, key, size)
    return Verdict(False if by_native.failure is None else None, by_s5cmd.message)


def _fetched(engine: Engine, remote: Remote, key: bytes, size: int) -> Outcome:
    said: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="s5jtd-check-") as folder:
        data_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            batch = Batch(Direction.PULL, remote, (Transfer(_NAME, key, size),), data_fd, None, workers=1)
            engine.run(batch, Caller(said.append, lambda _count: None, lambda: False))
        finally:
            os.close(data_fd)
        path = Path(folder, _NAME)
        got = path.stat().st_size if path.exists() else -1
    if not said:
        return Outcome(_NAME, Failure.OTHER, "it said nothing")
    if said[0].failure is None and got != size:
        return Outcome(_NAME, Failure.OTHER, f"{got} bytes instead of {size}")
    return said[0]
