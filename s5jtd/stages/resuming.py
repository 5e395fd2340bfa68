"""Large objects go on where they broke off: half-pulled chunks wait, half-sent uploads are remembered."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from s5jtd.engine.contract import Failure, Outcome, Upload
from s5jtd.engine.language import PART_BYTES_MIN
from s5jtd.engine.parts import unfinished
from s5jtd.integrity.evidence import sane_upload_part_size
from s5jtd.ledger.rows import Chunk, Item, Returned
from s5jtd.ledger.unfinished import Begun, Part, Unfinished
from s5jtd.link.tuning import FAR_WHOLE_BYTES
from s5jtd.model import Direction, Side
from s5jtd.stages.job import Job
from s5jtd.volumes import space
from s5jtd.volumes.chunks import ChunkFolder, file_name

MIB: Final = 1 << 20
#: Parts of a resumable upload: small, because one that breaks off is sent again as a whole ...
_PART_BYTES_MIN: Final = 8 * MIB
#: ... but no more of them than this, half of what S3 takes.
_PARTS_MAX: Final = 5000
#: ... and no fewer, if they are larger than that: the two that a break cuts off are 3 % of the object then.
_PARTS_MIN: Final = 64
#: So many attempts in a row that brought not one part are no chance; the first may have brought some before.
_FAILURES_IN_VAIN: Final = 3
#: A smaller object than a large one also goes on in the middle once its transfer broke off so often ...
_BROKE_OFF_TIMES: Final = 3
#: ... if it has more than this: a line that breaks sooner than all of it is through would never take it.
_WHOLE_BYTES: Final = 16 * MIB
#: After these nothing that came so far can be built on, or there is no room for more.
_FINAL: Final = frozenset({Failure.GONE, Failure.CHANGED, Failure.SPACE, Failure.LOCAL})


def is_large(job: Job, item: Item) -> bool:
    """Whether an object is worth going on with in the middle: it travels alone then, and natively."""
    return item.size > job.config.resume_above


def lasting(books: Unfinished, job: Job, items: Sequence[Item], direction: Direction) -> frozenset[int]:
    """The ids of those that go on where they break off: large ones, and those that broke off often."""
    large = {item.id for item in items if is_large(job, item)}
    middling = [item for item in items if item.size > _WHOLE_BYTES and item.id not in large]
    if not middling or (job.source if direction is Direction.PULL else job.destination).folder is not None:
        return frozenset(large)
    step: Literal["pull", "push"] = "pull" if direction is Direction.PULL else "push"
    return books.broke_off(middling, step, _BROKE_OFF_TIMES) | large


def part_bytes(job: Job, item: Item, source_part: int | None) -> int:
    """The part size of an upload that may have to go on later, in whole MiB.

    The one that the destination's configuration names; else the source's, where it gives the same ETag.  But
    never the whole in one PUT, nor, of a large object, in so few parts that those which a break cuts off
    weigh: that counts for more than an ETag like the source's.
    """
    given = job.part_size(Side.DESTINATION)
    if given is not None:
        return sane_upload_part_size(item.size, "", None, given, single_put_max=0)
    default = max(_PART_BYTES_MIN, -(-item.size // (_PARTS_MAX * MIB)) * MIB)
    chosen = sane_upload_part_size(item.size, item.etag, source_part, default, single_put_max=0)
    most = max(default, item.size // _PARTS_MIN) if is_large(job, item) else item.size
    return chosen if chosen <= most else default


def may_be_cut(job: Job, item: Item) -> bool:
    """Whether an object that would go up in one PUT may go in parts, should that fill the line.

    Not where the configuration says what goes in parts, nor for what soon comes through in one.
    """
    in_one = item.part_size is None and item.size > FAR_WHOLE_BYTES
    return in_one and job.part_size(Side.DESTINATION) is None and job.destination.folder is None


def part_bytes_now(item: Item, usual: int, begun: Begun | None) -> int:
    """In parts of which size an upload goes on, or begins.

    On a line that holds for a minute a part that takes longer would be begun for ever: where attempts in a
    row bring no part, the parts are made smaller; later, where much would have to come again.
    """
    if begun is None:
        return usual
    is_much = len(begun.parts) * begun.part_size > item.size // 4
    if begun.failures < _FAILURES_IN_VAIN * (2 if is_much else 1):
        return begun.part_size
    smaller = max(begun.part_size // 4, PART_BYTES_MIN)
    return sane_upload_part_size(item.size, "", None, smaller, single_put_max=0)


def put_off(
    books: Unfinished,
    job: Job,
    chunk: Chunk,
    folder: ChunkFolder,
    returned: Returned,
    outcome: Outcome | None,
) -> bool:
    """Let a chunk wait with what came of its one object; False where there is nothing to build on.

    Raises:
        OSError: as the file system says.
    """
    item = returned.item
    if outcome is not None and outcome.failure in _FINAL:
        return False
    done = unfinished(folder.data_fd, file_name(item.id), item.size)
    if not done:
        return False
    os.fsync(folder.data_fd)  # the names of the part and of its record
    return books.put_off(
        chunk,
        returned,
        done_bytes=done,
        reserved_bytes=max(0, space.footprint(item.size) - done),
        attempts_max=job.config.attempts,
    )


class UploadBook:
    """The uploads of one batch, as the engine's contract wants them, in the ledger."""

    def __init__(
        self, books: Unfinished, job: Job, items: Mapping[str, Item], on_held: Callable[[int], None]
    ) -> None:
        """`items` by the names of their files; `on_held` hears of bytes that need not move again."""
        self._books = books
        self._on_held = on_held
        self._job = job
        self._items = items
        self._lock = threading.Lock()
        self._begun: dict[str, Begun] = {}
        #: The names of those of which the destination took something in.
        self.gained: set[str] = set()

    def part_size(self, name: str) -> int | None:
        """In parts of which size an object goes that goes on, if it goes in parts."""
        item = self._items[name]
        usual = item.part_size if is_large(self._job, item) else part_bytes(self._job, item, item.part_size)
        return None if usual is None else part_bytes_now(item, usual, self._books.upload(item))

    def recall(self, name: str) -> Upload | None:
        """See `Uploads.recall`."""
        found = self._books.upload(self._items[name])
        if found is None or found.key != self._job.destination_key(self._items[name].key):
            return None
        with self._lock:
            self._begun[name] = found
        return Upload(found.upload_id, found.part_size, {n: part.etag for n, part in found.parts.items()})

    def held(self, _name: str, size_bytes: int) -> None:
        """See `Uploads.held`."""
        self._on_held(size_bytes)

    def begin(self, name: str, upload_id: str, part_size: int) -> None:
        """See `Uploads.begin`."""
        item = self._items[name]
        key = self._job.destination_key(item.key)
        made = self._books.begin(self._job.id, item, key, upload_id, part_size)
        with self._lock:
            self._begun[name] = Begun(made, upload_id, key, part_size)

    def part(self, name: str, upload_id: str, number: int, etag: str) -> None:
        """See `Uploads.part`."""
        self._books.took(self._begun[name].id, number, Part(etag))
        with self._lock:
            self.gained.add(name)

    def end(self, name: str, upload_id: str) -> None:
        """See `Uploads.end`."""
        self._books.end(self._begun[name].id)
