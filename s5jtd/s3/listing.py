"""A bucket's keys as pages, from any server that lists at all: complete, or an error.

Servers differ in everything: version 2 or only 1, keys url-encoded or not, sorted or not, paged or in one
piece, with a way on or without.  Two promises are made of all of them: an iteration that ends by itself has
shown every key, and each page says whether keys have only ascended so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from s5jtd.errors import EndpointDown, EndpointRefused
from s5jtd.model import Listed
from s5jtd.s3.client import Query, S3Client
from s5jtd.s3.listing_answer import Answer, NotListing, UntellableKey

#: Servers without pages send millions of keys in one answer; so many of them are held at a time.
_HELD_OBJECTS: Final = 10_000
#: A server may have to skip what was deleted; one that skips for ever leads us nowhere.
_EMPTY_PAGES_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a listing.  It may be empty, and is a sign of life then; about 10,000 objects at most."""

    objects: list[Listed]
    sorted: bool  #: whether every key so far, over all pages, was greater than the one before it


def list_objects(
    client: S3Client,
    prefix: bytes,
    *,
    start_after: bytes = b"",
    end_at: bytes | None = None,
    version: str = "auto",
    page_size: int = 1000,
) -> Iterator[Page]:
    """The objects below `prefix` with keys greater than `start_after` and up to `end_at`, that one included.

    `version` is "1", "2", or "auto": 2 where the server understands it, and 1 at once where a check found
    that it does not.  There is at least one page.  A key
    that a server repeats comes once while keys ascend; in an unsorted listing it may come again.  Without
    url-encoding a key is what XML makes of it: a server that does not know `encoding-type` cannot tell a
    carriage return from a line feed.

    Raises:
        EndpointDown: the listing broke off, leads nowhere, or is none: what was shown may be a part only.
        EndpointRefused: we may not list, or a key cannot be told.
    """
    own = client.own_listing(prefix, start_after, end_at)
    if own is not None:
        yield from own
        return
    walk = _Walk(prefix, start_after, end_at, version, page_size, client.learned.list_version)
    where = f"bucket {client.bucket} at {client.endpoint_url or 'AWS'}"
    try:
        while not walk.is_over:
            yield from _one_answer(client, walk)
    except UntellableKey as error:
        raise EndpointRefused(
            f"{where}: it lists a key that it cannot tell: {error}",
            hint="narrow the job's prefix, or rename the object; the server ignores encoding-type=url",
        ) from error
    except NotListing as error:
        raise EndpointDown(f"{where}: {error}", hint="a proxy or another service may answer there") from error


def _one_answer(client: S3Client, walk: _Walk) -> Iterator[Page]:
    """Ask once, show what comes, and decide how to go on."""
    answer = Answer()
    try:
        with client.stream("GET", None, walk.query()) as stream:
            for data in stream:
                answer.feed(data)
                if answer.held >= _HELD_OBJECTS:
                    yield walk.page(answer.take())
    except EndpointRefused:
        if not walk.fall_back():
            raise
        return
    answer.close()
    yield walk.page(answer.take())
    walk.go_on(answer)


class _Walk:
    """Where a listing stands and how it goes on; decides, and asks nobody."""

    def __init__(
        self,
        prefix: bytes,
        start_after: bytes,
        end_at: bytes | None,
        version: str,
        page_size: int,
        learned: str | None,
    ) -> None:
        self.is_over = False
        self._prefix = prefix
        self._start_after = start_after
        self._end_at = end_at
        self._is_free = version == "auto"  #: to speak version 1 where 2 is not understood
        self._version = 1 if version == "1" or (self._is_free and learned == "1") else 2
        self._page_size = page_size
        self._resume: Query = {}  #: where the next page begins; empty before the first answer
        self._last = b""  #: the key shown last, also of those left out
        self._ascends = True
        self._count = 0  #: keys since the last request
        self._first = b""  #: of them
        self._empty_pages = 0
        self._resumes, self._pages = _LoopGuard(), _LoopGuard()

    def query(self) -> Query:
        """What to ask next."""
        query: dict[str, str | bytes] = {"encoding-type": "url", "max-keys": str(self._page_size)}
        if self._version == 2:
            query["list-type"] = "2"
        if self._prefix:
            query["prefix"] = self._prefix
        if not self._resume and self._start_after:
            query["start-after" if self._version == 2 else "marker"] = self._start_after
        return {**query, **self._resume}

    def fall_back(self) -> bool:
        """Whether to ask again in version 1, the first request having been refused in version 2."""
        can = self._is_free and self._version == 2 and not self._resume
        if can:
            self._version = 1
        return can

    def page(self, objects: list[Listed]) -> Page:
        """What of `objects` was asked for: servers ignore prefix and start; repetitions go."""
        shown = []
        last, ascends = self._last, self._ascends
        prefix, start_after, end_at = self._prefix, self._start_after, self._end_at
        if objects and not self._count:
            self._first = objects[0].key
        self._count += len(objects)
        for one in objects:
            key = one.key
            if key <= last and ascends:
                if key == last:
                    continue
                ascends = False
            last = key
            if key > start_after and (end_at is None or key <= end_at) and key.startswith(prefix):
                shown.append(one)
        self._last, self._ascends = last, ascends
        return Page(shown, ascends)

    def go_on(self, answer: Answer) -> None:
        """Decide where the next page begins, if there is one.

        Raises:
            NotListing: the server says that there is more, but what it says leads nowhere.
        """
        # Not before an answer is whole: the first keys of an unsorted one may ascend by chance.
        is_past_end = self._ascends and self._end_at is not None and self._last > self._end_at
        if is_past_end or not answer.has_more(self._page_size):
            self.is_over = True
            return
        self._empty_pages = 0 if self._count else self._empty_pages + 1
        page = (self._first, self._last, self._count) if self._count else None
        self._count = 0
        self._resume = self._next(answer)
        repeats = self._resumes.met(self._resume) or (page is not None and self._pages.met(page))
        if repeats or self._empty_pages > _EMPTY_PAGES_MAX:
            raise NotListing("its listing goes round in circles")

    def _next(self, answer: Answer) -> Query:
        if self._version == 2 and answer.token:
            return {"continuation-token": answer.token}
        if self._is_free:
            self._version = 1  # one that has more and no token has not understood version 2
        if self._version == 1 and answer.next_marker:
            return {"marker": answer.next_marker}
        if not self._last:
            raise NotListing("its listing has more, but does not say where")
        if not self._ascends:
            raise NotListing("its listing is not sorted and has more, but does not say where")
        return {"marker" if self._version == 1 else "start-after": max(self._last, self._start_after)}


class _LoopGuard:
    """Notices that a sequence repeats, however long the loop, while it remembers one value (Brent)."""

    def __init__(self) -> None:
        self._remembered: object = None
        self._steps, self._steps_max = 0, 1

    def met(self, value: object) -> bool:
        """Whether `value` is the one remembered; after each power of two steps another is remembered."""
        if value == self._remembered:
            return True
        self._steps += 1
        if self._steps == self._steps_max:
            self._remembered, self._steps, self._steps_max = value, 0, self._steps_max * 2
        return False
