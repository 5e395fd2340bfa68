"""Asks the kernel how often it killed for want of memory, so that a kill can be told from an operator's."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path


def oom_kills(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Processes that the kernel killed for want of memory, of this service or else of this machine.

    None where it does not say: then any SIGKILL that was not ours may have been one.
    """
    for file in _counters(proc, groups):
        with contextlib.suppress(OSError):
            if told := re.search(r"^oom_kill ([0-9]+)$", file.read_text(), re.MULTILINE):
                return int(told[1])
    return None


def _counters(proc: Path, groups: Path) -> Iterator[Path]:
    """Where it may stand, the nearest first; see cgroups(7)."""
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                yield groups / path.lstrip("/") / "memory.events"
            elif "memory" in controllers.split(","):
                yield groups / "memory" / path.lstrip("/") / "memory.oom_control"
    yield proc / "vmstat"
