"""A nursery of daemons without patience: what takes minutes in the field takes seconds in a test.

Each is the real daemon, with its stall watchdog, its pauses and its time-outs cut short.  Where a program
named `s5cmd` lies beside the configuration, that is the one it runs.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, cast

from s5jtd import app, jobs, pool
from s5jtd.engine.choice import Engines
from s5jtd.engine.s5cmd import S5cmd
from s5jtd.link.line import Line
from s5jtd.s3 import endpoints
from s5jtd.s3.transport import Link
from s5jtd.stages import job, opening, pull, push, reroute, scan
from tests import nursery
from tests.appliance import Appliance, until

#: A run that moves nothing for so long is ended; so is a single request without an answer.
STALL_SECONDS: Final = 2.0
#: The longest that an object is put off.
BACKOFF_SECONDS: Final = 1.0
#: The first pause of a breaker; also the one after a refusal.
BREAKER_SECONDS: Final = 1.0
#: A worker of a volume that shows no life for so long is stuck.
QUIET_SECONDS: Final = 6.0
#: Why ever the ledger cannot be written, but for a full disk: so long it is tried.
BLOCKED_SECONDS: Final = 4.0
#: What lies on a volume that is away for so long is pulled again.
AWAY_SECONDS: Final = 6.0


class ImpatientNursery(nursery.Nursery):
    """Raises daemons that wait for nothing."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, os.fspath(Path(__file__))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.fspath(Path(__file__).parents[1])},
        )  # fmt: skip


class Impatient(Appliance):
    """An appliance whose daemon comes from such a nursery."""

    def __init__(self, folder: Path, nursery: ImpatientNursery, *, volumes: int = 2) -> None:
        super().__init__(folder, volumes=volumes)
        self._nursery = nursery

    def start(self, *arguments: str, wait: bool = True, prefix: tuple[str, ...] = ()) -> None:
        assert not prefix, "a forked daemon runs under nobody's command"
        argv = ["--config", str(self.config_path), *(arguments or ("run",))]
        self.process = cast("Any", self._nursery.start(argv, self.log_path))
        if wait:
            until(self.running, "the daemon's first answer")


def _engines(line: Line) -> Engines:
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    other = config.with_name("s5cmd")
    s5cmd = S5cmd(
        other if other.exists() else None,
        stall_seconds=STALL_SECONDS, grace_seconds=1.0, ways=line.open,
    )  # fmt: skip
    return Engines(s5cmd, line.open, lambda direction, size: line.budget(direction).draw(size))


def lose_patience() -> None:
    """Cut short whatever this process and those forked from it would wait for."""
    link = functools.partial(Link, read_seconds=STALL_SECONDS, connect_seconds=STALL_SECONDS)
    shorter: list[tuple[object, str, object]] = [
        (app, "_engines", _engines),
        (jobs, "Transport", link),
        (endpoints, "_BACKOFF_SECONDS", BREAKER_SECONDS),
        (endpoints, "_REFUSED_SECONDS_MIN", BREAKER_SECONDS),
        (scan, "RETRY_SECONDS", BREAKER_SECONDS),
        (job, "BACKOFF_SECONDS_MAX", BACKOFF_SECONDS),
        (pull.Pull, "quiet_seconds_max", QUIET_SECONDS),
        (push.Push, "quiet_seconds_max", QUIET_SECONDS),
        (pool, "QUIET_SECONDS_MAX", QUIET_SECONDS),
        (opening, "BLOCKED_SECONDS_MAX", BLOCKED_SECONDS),
        (reroute, "AWAY_SECONDS", AWAY_SECONDS),
    ]
    for owner, name, value in shorter:
        assert hasattr(owner, name), f"{owner} has no {name} any more"
        setattr(owner, name, value)


if __name__ == "__main__":
    lose_patience()
    nursery._serve()
