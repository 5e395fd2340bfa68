"""Copies run reports to a bucket, once they are durable here; a dead bucket holds nothing up."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from s5jtd.config import S3Destination
from s5jtd.engine.contract import Batch, Caller, Engine, Outcome, Transfer
from s5jtd.errors import EndpointDown, ObjectError, S5jtError
from s5jtd.jobs import build_link
from s5jtd.ledger.files import install, scratch
from s5jtd.model import Direction, Side
from s5jtd.problems import Problems
from s5jtd.reports.folder import ReportFolder
from s5jtd.s3.endpoints import Endpoint
from s5jtd.s3.heads import head
from s5jtd.stages.job import Link, batch_path

log = structlog.get_logger(__name__)

#: Reports, with their lists of objects, that go in one run of the engine.
AT_ONCE: Final = 200
RETRY_SECONDS: Final = 15.0
RETRY_SECONDS_MAX: Final = 900.0
#: How long a daemon that ends tries to send what it wrote last.
LAST_SECONDS: Final = 20.0
#: Which reports are there, and where that is: a line for the place, then one for each.
NOTE: Final = "shipped"
_SUBJECT = "reports"
_MD5 = re.compile(r"[0-9a-f]{32}", re.ASCII | re.IGNORECASE)


class Shipping:
    """The one sender of reports."""

    name = "report copies"
    idle_seconds = 5.0
    quiet_seconds_max = 600.0

    def __init__(
        self,
        folder: ReportFolder,
        target: Callable[[], S3Destination | None],
        runtime_dir: Path,
        engine: Engine,
        problems: Problems,
        stopped: Callable[[], bool],
    ) -> None:
        """`target` is the side that is configured now, if one is; `stopped` ends a run of the engine."""
        self._folder = folder
        self._target = target
        self._runtime_dir = runtime_dir
        self._engine = engine
        self._problems = problems
        self._stopped = stopped
        self._due = 0.0
        self._failures = 0
        self._link: tuple[S3Destination, Link] | None = None
        self._note: tuple[str, set[int]] | None = None

    def step(self, beat: Callable[[], None]) -> bool:
        """Send what is not there yet; True where there is more."""
        target = self._target()
        if target is None:
            self._problems.clear("reports_not_copied", _SUBJECT)
            return False
        if time.monotonic() < self._due:
            return False
        return self._send(target, beat, self._stopped)

    def last_try(self) -> None:
        """The daemon ends: send the last report too, if that is soon done."""
        target = self._target()
        if target is not None:
            deadline = time.monotonic() + LAST_SECONDS
            self._send(target, lambda: None, lambda: time.monotonic() > deadline)

    def _send(self, target: S3Destination, beat: Callable[[], None], stop: Callable[[], bool]) -> bool:
        try:
            there = self._there(_place(target))
            waiting = [epoch for epoch in reversed(self._folder.epochs()) if epoch not in there]
            if not waiting:
                self._problems.clear("reports_not_copied", _SUBJECT)
                return False
            some = waiting[:AT_ONCE]
            sent = self._copy(self._linked(target), some, beat, stop)
            self._remember(_place(target), sent)
            if len(sent) < len(some):
                raise EndpointDown(f"{len(some) - len(sent)} of {len(some)} reports did not arrive")
        except (S5jtError, OSError) as error:
            self._put_off(target, error)
            return False
        self._failures = 0
        self._problems.clear("reports_not_copied", _SUBJECT)
        log.info("reports_copied", to=_place(target), reports=len(sent))
        return len(waiting) > len(some)

    def _put_off(self, target: S3Destination, error: S5jtError | OSError) -> None:
        self._failures += 1
        self._due = time.monotonic() + min(
            RETRY_SECONDS_MAX, RETRY_SECONDS * 2 ** min(self._failures - 1, 10)
        )
        hint = getattr(error, "hint", "") or "they are kept here, and it is tried again by itself"
        message = f"run reports cannot be copied to {_place(target)}: {error}"
        if self._problems.raise_("reports_not_copied", _SUBJECT, message, hint):
            log.warning("reports_not_copied", to=_place(target), error=str(error), hint=hint)

    # One run of the engine

    def _linked(self, target: S3Destination) -> Link:
        if self._link is None or self._link[0] != target:
            self._link = target, build_link(Side.DESTINATION, target, "run-reports", self._runtime_dir)
        return self._link[1]

    def _copy(
        self, link: Link, epochs: Sequence[int], beat: Callable[[], None], stop: Callable[[], bool]
    ) -> list[int]:
        """Send these reports, each after its list of objects; those that are there as they are here."""
        folder_fd = os.open(self._folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with link.endpoints.lease() as endpoint:
                lists = {
                    epoch: name for epoch in epochs if self._is_here(name := f"{epoch}.objects.jsonl.gz")
                }
                self._run(link, endpoint, folder_fd, list(lists.values()), beat, stop)
                well = [e for e in epochs if e not in lists or self._arrived(link, endpoint, lists[e])]
                self._run(link, endpoint, folder_fd, [f"{epoch}.json" for epoch in well], beat, stop)
                arrived = []
                for epoch in well:
                    beat()
                    if self._arrived(link, endpoint, f"{epoch}.json"):
                        arrived.append(epoch)
                return arrived
        finally:
            os.close(folder_fd)

    def _run(
        self,
        link: Link,
        endpoint: Endpoint,
        folder_fd: int,
        names: Sequence[str],
        beat: Callable[[], None],
        stop: Callable[[], bool],
    ) -> None:
        if not names:
            return
        failures: list[Outcome] = []
        transfers = tuple(
            Transfer(name, link.prefix + name.encode(), (self._folder.path / name).stat().st_size)
            for name in names
        )

        def on_outcome(outcome: Outcome) -> None:
            if outcome.failure is not None:
                failures.append(outcome)

        batch_file = batch_path(folder_fd, "shipping.batch")
        try:
            self._engine.run(
                Batch(Direction.PUSH, link.remote(endpoint), transfers, folder_fd, batch_file, 4),
                Caller(on_outcome, lambda _moved: beat(), stop),
            )
        finally:
            batch_file.unlink(missing_ok=True)
        if failures:
            raise EndpointDown(f"{endpoint.url}: {failures[0].message}")

    def _arrived(self, link: Link, endpoint: Endpoint, name: str) -> bool:
        """Whether the bucket holds what is here; an ETag that is an MD5 must be that of the file."""
        here = (self._folder.path / name).read_bytes()
        try:
            there = head(endpoint.client, link.prefix + name.encode())
        except ObjectError:
            return False
        is_md5 = _MD5.fullmatch(there.etag) is not None and there.encrypted in {None, "", "AES256"}
        digest = hashlib.md5(here, usedforsecurity=False).hexdigest()
        return there.size == len(here) and (not is_md5 or there.etag.lower() == digest)

    def _is_here(self, name: str) -> bool:
        return (self._folder.path / name).exists()

    # What is there already

    def _there(self, place: str) -> set[int]:
        """The reports that this place is known to hold."""
        if self._note is None or self._note[0] != place:
            lines: list[str] = []
            with suppress(FileNotFoundError):
                lines = (self._folder.path / NOTE).read_text("utf-8", "replace").splitlines()
            known = {int(line) for line in lines[1:] if line.isdecimal()} if lines[:1] == [place] else set()
            self._note = place, known
        return self._note[1]

    def _remember(self, place: str, sent: Sequence[int]) -> None:
        known = (self._there(place) | set(sent)) & set(self._folder.epochs())
        path = self._folder.path / NOTE
        with scratch(path) as temporary:
            temporary.touch(0o600)
            temporary.write_text("\n".join([place, *map(str, sorted(known))]) + "\n", "utf-8")
            install(temporary, path)
        self._note = place, known


def _place(target: S3Destination) -> str:
    return f"s3://{target.bucket}/{target.prefix}"
