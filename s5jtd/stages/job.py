"""A job at work: its settings, its two sides and what each needs to be spoken to."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from s5jtd.config import JobConfig
from s5jtd.engine.contract import Engine, Remote
from s5jtd.link.tuning import CONFIGURED, LEAST, Least, Portion, Tuner
from s5jtd.model import Listed, Side
from s5jtd.s3.endpoints import Endpoint, Endpoints
from s5jtd.stages.findings import Desk

BACKOFF_SECONDS_MAX = 900.0
#: S3's own limit on a key, in bytes.
KEY_BYTES_MAX = 1024


class Changes(Protocol):
    """Hears that something changed, and tells when it may be taken."""

    def is_due(self) -> bool:
        """Whether something may be taken that no look has met."""

    def begin(self) -> None:
        """A look begins, and meets whatever may be taken by now."""

    @property
    def young(self) -> int:
        """Files that the newest look passed over, because they had not settled."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A side that is a folder."""

    unfit: Callable[[bytes], str | None]  #: why a key can be no path in it
    #: Of a source: whether a file may be taken now; one that somebody writes to may not.
    is_ready: Callable[[Listed], bool] = lambda _: True
    #: Of a source: do with files what is to be done once they are delivered, and tell with which it was
    #: done; the other argument hears that it goes on.  None: they stay.
    leave: Callable[[Sequence[Listed], Callable[[], None]], Sequence[Listed]] | None = None
    settle_seconds: float = 0.0
    changes: Changes | None = None  #: of a source


@dataclass(slots=True)
class Tagging:
    """What was learned of a side's tags."""

    readable: bool = True  #: False: the server knows none, or does not let us see them
    counted: bool = False  #: whether a HEAD that says nothing of tags means that there are none


@dataclass(slots=True)
class Link:
    """One side of a job, as the stages reach it."""

    side: Side
    prefix: bytes
    list_version: str  #: "1", "2" or "auto"
    endpoints: Endpoints
    #: What an engine's process is told to reach an endpoint; writes fresh credentials first.
    remote: Callable[[Endpoint], Remote]
    #: Of a folder: what is ours to know beyond what a bucket has.
    folder: Folder | None = None
    #: Whether it was seen to answer uploads in parts with the MD5 of the whole as ETag.
    whole_md5: bool = False
    #: Of a destination: whether it does not copy what it holds itself, or not so that it can be proven.
    copies_given_up: bool = False
    tagging: Tagging = field(default_factory=Tagging)

    @property
    def insecure(self) -> bool:
        """Whether what it says comes over TLS that nobody verifies."""
        return any(endpoint.client.insecure for endpoint in self.endpoints.all())

    def settled_ms(self) -> int:
        """When what changed just now may be taken: at once from a bucket, whose objects are whole."""
        seconds = self.folder.settle_seconds if self.folder is not None else 0.0
        return int((time.time() + seconds) * 1000) if seconds else 0


@dataclass(slots=True)
class Job:
    """One job and its two links.  `config` is replaced as a whole when the operator changes it."""

    id: int
    config: JobConfig
    source: Link
    destination: Link
    scan_requested: threading.Event = field(default_factory=threading.Event)
    scanning: bool = False
    held: str | None = None  #: why what is `seen` waits although nothing is broken
    settling: int = 0  #: files of a source folder that the newest look passed over: they may not be whole
    under_way: int = 0  #: objects that are `seen` and move: of a direct job
    resync: Desk = field(default_factory=Desk)

    @property
    def name(self) -> str:
        """The job's name in the configuration."""
        return self.config.name

    def destination_key(self, key: bytes) -> bytes:
        """An object's name at the destination: its prefix, then the key without the source's prefix."""
        return self.destination.prefix + key.removeprefix(self.source.prefix)

    def source_key(self, name: bytes) -> bytes:
        """The reverse of `destination_key`."""
        return self.source.prefix + name.removeprefix(self.destination.prefix)

    def part_size(self, side: Side) -> int | None:
        """The size of parts, in bytes, that the configuration names for a side; None: none."""
        given = getattr(
            self.config.source if side is Side.SOURCE else self.config.destination, "part_size", None
        )
        return given if isinstance(given, int) else None

    def portion(self, tuner: Tuner) -> Portion:
        """How much of it should travel together now."""
        chunk = self.config.chunk
        least = Least(chunk.min_bytes or LEAST.bytes, chunk.min_objects or LEAST.objects)
        return tuner.portion(self.id, Portion(chunk.bytes, chunk.objects, CONFIGURED), least)

    def misnamed(self, key: bytes) -> str | None:
        """Why a key can have no name at the destination, or None if it can."""
        name = self.destination_key(key)
        if not name:
            return "its name at the destination would be empty: give the destination a prefix"
        if self.destination.folder is not None:
            return self.destination.folder.unfit(name)
        if len(name) > KEY_BYTES_MAX:
            return f"its name at the destination would be {len(name)} bytes long; S3 takes {KEY_BYTES_MAX}"
        return None

    def not_before_ms(self, attempts: int) -> int:
        """When an object that failed `attempts` times is due again: doubling, with jitter."""
        jitter = random.uniform(0.5, 1.0)  # noqa: S311  it only spreads retries
        delay = min(BACKOFF_SECONDS_MAX, 2.0 ** min(attempts, 20)) * jitter
        return int((time.time() + delay) * 1000)


def unmovable(job: Job, engine: Engine, key: bytes) -> str | None:
    """Why an object cannot travel, or None if it can."""
    reason = job.misnamed(key)
    if reason is None and job.source.folder is None:
        reason = engine.refuses(key)
    if reason is None and job.destination.folder is None:
        reason = engine.refuses(job.destination_key(key))
    return reason


def batch_path(folder_fd: int, name: str) -> Path:
    """A path to a file in a folder that is known only by its descriptor."""
    return Path(f"/proc/self/fd/{folder_fd}/{name}")
