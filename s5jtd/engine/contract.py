"""What every engine promises to the stages.

An engine moves the objects of one chunk in one direction over one endpoint.  It proves nothing:
an outcome without an error is a hint, and silence about an object means that nothing is known of
it.  The stages look at the bytes and ask the servers themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

from s5jtd.model import NO_BELONGINGS, Belongings, Direction

#: No GET of an engine brings more than this of an object: what breaks off in it has to come again.
PULL_RANGE_BYTES: Final = 16 * 1024 * 1024

Preference = Literal["s5cmd", "native", "auto"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One object of a batch."""

    name: str  #: the opaque name in the chunk's data folder, e.g. "1f.obj"; never made from the key
    key: bytes  #: the whole key at the endpoint
    size: int  #: bytes
    #: Bytes; for a push: multipart above this size, in parts of this size.  None: one PUT, if it may be.
    part_size: int | None = None
    takes: Belongings = NO_BELONGINGS  #: for a push
    #: What of it was moved is kept where a run ends before it does, so that the next goes on from there.
    resumable: bool = False
    whole: bool = False  #: for a pull: in one GET, unless it is large: ranges may be what went wrong


@dataclass(frozen=True, slots=True)
class Remote:
    """The bucket end of a batch: all an engine's process is told about it."""

    bucket: str
    endpoint_url: str | None  #: None: AWS itself
    region: str | None
    #: An AWS shared-credentials file (0600) whose profile `s5jtd` is to be used; None: anonymous.
    credentials_file: Path | None
    verify_tls: bool = True
    ca_bundle: Path | None = None
    proxy: str | None = None
    bind: str | None = None  #: local address or interface to leave from
    addressing: Literal["auto", "path", "virtual"] = "auto"
    s5cmd_fits: bool = True  #: False: a check found that the server does not give s5cmd what it gives others
    storage_class: str | None = None
    acl: str | None = None
    sse: str | None = None
    sse_kms_key_id: str | None = None
    directory: Path | None = None  #: a folder on this machine, and no bucket
    follow_links: bool = False  #: symbolic links in that folder, which is a source
    begun_mark: Path | None = None  #: a file that is there once that folder was written to


class Original(NamedTuple):
    """An object that a server is to copy itself."""

    bucket: str
    key: bytes
    etag: str  #: without quotes: no other version of it may be copied


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was begun, as far as is known on our side."""

    upload_id: str
    part_size: int  #: bytes
    parts: Mapping[int, str]  #: number -> the ETag it was taken in with, without quotes


class Uploads(Protocol):
    """Where multipart uploads are remembered, durably; every call may come from any thread."""

    def recall(self, name: str) -> Upload | None:
        """The upload of a transfer that an earlier run began."""

    def held(self, name: str, size_bytes: int) -> None:
        """Of the upload that was recalled, the server holds so many bytes: they need not move again."""

    def begin(self, name: str, upload_id: str, part_size: int) -> None:
        """An upload was begun; whatever was before it for this transfer is nobody's any more."""

    def part(self, name: str, upload_id: str, number: int, etag: str) -> None:
        """The server took a part in."""

    def end(self, name: str, upload_id: str) -> None:
        """There is no such upload any more: it was completed, or the server does not know it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The objects of one chunk that travel in one process."""

    direction: Direction
    remote: Remote
    transfers: tuple[Transfer, ...]
    data_fd: int  #: directory descriptor of the chunk's data folder; it stays open during the run
    #: Where the engine may write its command list, such as /proc/self/fd/N/pull.batch; None: in memory.
    batch_file: Path | None
    workers: int  #: objects at a time
    parts: int = 4  #: ranges or parts of one object at a time
    upload_parts: int = 2  #: parts at a time of an upload that can go on later
    range_bytes: int = PULL_RANGE_BYTES  #: for a pull: what one GET brings at most, where it can be told
    #: Which engine is to carry what several could; what only one can carry goes with that one.
    preference: Preference = "s5cmd"
    uploads: Uploads | None = None  #: for a push; None: an upload that does not end is left to the sweep


class Failure(StrEnum):
    """What an engine's error message says, as far as it can be told apart."""

    GONE = "gone"  #: 404 for this key
    REFUSED = "refused"  #: 403 and the like for this key
    ENDPOINT = "endpoint"  #: connection, DNS, TLS, 5xx, throttling: not the object's fault
    CREDENTIALS = "credentials"  #: unknown key, bad signature, expired token, clock skew
    BUCKET = "bucket"  #: no such bucket, wrong region
    SPACE = "space"  #: ENOSPC, EDQUOT on the local side
    UNFIT = "unfit"  #: there is no place for this key in the folder, and waiting makes none
    LOCAL = "local"  #: EIO, EROFS, ENOENT and the like on the local side
    CHANGED = "changed"  #: the object is another than it was when its transfer began
    OTHER = "other"


class TransferFailed(Exception):
    """A transfer that an engine makes from memory did not succeed."""

    def __init__(self, failure: Failure, message: str) -> None:
        """`message` as in an `Outcome`."""
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the engine said about one transfer."""

    name: str  #: Transfer.name
    failure: Failure | None = None
    message: str = ""  #: the engine's own words, without secrets, at most 500 characters


class End(StrEnum):
    """How a run ended."""

    EXITED = "exited"  #: by itself, whatever its exit code
    STALLED = "stalled"  #: no bytes moved for too long; it was ended
    STOPPED = "stopped"  #: we were asked to stop; it was ended
    KILLED = "killed"  #: by a signal that was not ours


@dataclass(frozen=True, slots=True)
class Run:
    """The end of a run."""

    end: End
    exit_code: int | None
    messages: tuple[str, ...] = ()  #: what it said that names no transfer; at most 20 lines
    starved: bool = False  #: it ended as a process ends that gets no more memory


@dataclass(frozen=True, slots=True)
class Caller:
    """What a run says to the one who began it, and asks of him; all of it on the calling thread."""

    on_outcome: Callable[[Outcome], None]  #: as each transfer ends, at most once for each
    #: At least once a second, with the bytes moved since the last call; 0 too: it is the caller's heartbeat.
    on_progress: Callable[[int], None]
    stop: Callable[[], bool]  #: as often; once it answers True the run is asked, then made, to end


class Way(Protocol):
    """How a program reaches its endpoint: these in place of what `Remote` says."""

    @property
    def endpoint_url(self) -> str | None: ...
    @property
    def proxy(self) -> str | None: ...
    @property
    def holds(self) -> Callable[[], bool]:
        """Asked at least once a second; False: the run must end, to begin anew under other limits."""

    @property
    def refused(self) -> Callable[[], str]:
        """Why whoever stands on the way could not reach the server, the last time it could not."""

    @property
    def passed(self) -> Callable[[], int] | None:
        """Bytes that went by in the run's direction so far; None where nobody stands on the way to count."""


#: Of so many bytes in this direction, how many may move now; if none, after how many seconds to ask again.
Draw = Callable[[Direction, int], tuple[int, float]]


def no_limit(_direction: Direction, wanted: int) -> tuple[int, float]:
    """All of it, at once."""
    return wanted, 0.0


class Ways(Protocol):
    """Gives ways that keep to the limits of the link and leave from where they should."""

    def __call__(
        self, direction: Direction, endpoint_url: str | None, /, *, proxy: str | None, bind: str | None
    ) -> AbstractContextManager[Way]:
        """A way that is open while the block runs.

        Raises:
            OSError: the machine has no room for it.
        """


class Engine(Protocol):
    """One way to move bytes."""

    name: str

    def refuses(self, key: bytes, takes: Belongings = NO_BELONGINGS) -> str | None:
        """Why this engine cannot name `key` or carry what it takes along unchanged, or None if it can.

        A transfer that it refuses does no harm in a batch: it gets an outcome that says so.
        """

    def run(self, batch: Batch, caller: Caller) -> Run:
        """Run the batch to its end.  On return nothing of it writes any more.

        Raises:
            EngineError: the engine could not be started at all.
            OSError: the batch file could not be written.
        """
