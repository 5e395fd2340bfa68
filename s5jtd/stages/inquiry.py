"""What does a bucket hold under these keys?  Asked by listing a range where that is cheaper."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from s5jtd.errors import ObjectGone
from s5jtd.model import Listed
from s5jtd.s3.client import S3Client
from s5jtd.s3.heads import head
from s5jtd.s3.listing import list_objects

#: Up to so many keys are asked for one by one: a listing would cost the server more.
FEW = 3
PAGE = 1000
#: Listing is given up when it has shown so many times more objects than were asked for.
WASTE = 8


def holdings(
    client: S3Client,
    keys: Sequence[bytes],
    *,
    version: str,
    pool: Executor,
    beat: Callable[[], None],
) -> dict[bytes, Listed]:
    """What the bucket holds under `keys`; a key that is missing in the answer is not there.

    Raises:
        EndpointError: the endpoint did not answer all of it.
        ObjectError: the endpoint will not say it of one key.
    """
    wanted = sorted(keys)
    held: dict[bytes, Listed] = {}
    left = wanted
    # One that is not sorted would be read from its beginning for each chunk, and decide nothing.
    if len(wanted) > FEW and client.learned.is_ordered is not False:
        left = _by_listing(client, wanted, version, held, beat)
    for answer in pool.map(lambda key: _by_head(client, key), left):
        beat()
        if answer is not None:
            held[answer.key] = answer
    return held


def _by_listing(
    client: S3Client,
    wanted: Sequence[bytes],
    version: str,
    held: dict[bytes, Listed],
    beat: Callable[[], None],
) -> list[bytes]:
    """Fill `held` from one range of the listing; the keys it did not come to decide on."""
    keys = set(wanted)
    shown = 0
    for page in list_objects(
        client, _common_prefix(wanted), start_after=just_before(wanted[0]), end_at=wanted[-1], version=version
    ):
        beat()
        if not page.sorted:
            return [key for key in wanted if key not in held]
        held.update((one.key, one) for one in page.objects if one.key in keys)
        shown += len(page.objects)
        if page.objects and shown > PAGE + WASTE * len(wanted):
            return [key for key in wanted if key > page.objects[-1].key]
    return []


def _by_head(client: S3Client, key: bytes) -> Listed | None:
    try:
        answer = head(client, key)
    except ObjectGone:
        return None
    return Listed(key, answer.size, answer.etag, answer.modified_ms)


def _common_prefix(ascending: Sequence[bytes]) -> bytes:
    """The longest beginning that all keys share, cut so that it is whole UTF-8."""
    first, last = ascending[0], ascending[-1]
    length = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    return first[:length].decode("utf-8", "ignore").encode()


def just_before(key: bytes) -> bytes:
    """A key below `key`, with as little between them as can be said in printable ASCII.

    Servers were seen to drop the connection over a control character in `start-after`.
    """
    plain = re.match(rb"[\x20-\x7e]*", key)
    beginning = plain[0] if plain else b""
    if beginning != key:
        return beginning
    return key[:-1] + (bytes([key[-1] - 1]) + b"~~~" if key[-1] > 0x21 else b"")
