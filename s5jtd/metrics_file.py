"""Writes the metrics to a file, whole or not at all, for node_exporter's textfile collector."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from s5jtd import log, metrics
from s5jtd.problems import Problems
from s5jtd.shapes import Status

NAME = "metrics.prom"
_MODE = 0o644  #: there is nothing secret in it; who may come so far is the folder's matter


class MetricsFile:
    """The one writer; its file goes with the daemon, so that nobody takes old numbers for new ones."""

    name = "metrics"
    idle_seconds = 10.0
    quiet_seconds_max = 300.0

    def __init__(self, folder: Path, status: Callable[[], Status], problems: Problems) -> None:
        """`folder` is the runtime folder."""
        self.path = folder / NAME
        self._status = status
        self._problems = problems

    def step(self, beat: Callable[[], None]) -> bool:
        """Write them once."""
        beat()
        families = [
            *metrics.of_status(self._status()),
            metrics.one(
                "s5jtd_log_records_dropped_total",
                "Records that the log was too full or too slow for.",
                log.dropped_total(),
            ),
        ]
        try:
            self._replace(metrics.text(families))
        except OSError as error:
            self._problems.raise_(
                "metrics_not_written", "metrics",
                f"{self.path}: {error.strerror}", "make room on the disk under runtime_dir",
            )  # fmt: skip
        else:
            self._problems.clear("metrics_not_written", "metrics")
        return False

    def _replace(self, text: bytes) -> None:
        # Another name than *.prom: a collector that comes now must not read half of it.
        temporary = self.path.with_name(f".{NAME}.new")
        try:
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE
            )
            with open(descriptor, "wb") as file:
                os.fchmod(descriptor, _MODE)
                file.write(text)
            temporary.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise

    def remove(self) -> None:
        """Nobody keeps them current any more."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
