"""Fills a demo bucket with what buckets in the field hold: many small objects, a few huge ones, odd names.

The same seed always gives the same keys, sizes, bytes and metadata.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from s5jtd.demo.servers import DemoSide

MIB: Final = 1024 * 1024
LARGE_BYTES: Final = 101 * MIB
LARGE_PART_BYTES: Final = 8 * MIB
SMALL_PART_BYTES: Final = 5 * MIB  # the least S3 allows
SMALL_BYTES_MAX: Final = 16 * 1024

#: Each of these has broken some tool that moves objects; all are legal, and s5cmd can name them.
ODD_KEYS: Final = (
    " leading space",
    "trailing space ",
    "two  spaces",
    "it's",
    'double"quote',
    "back\\slash",
    "star*question?[set]",
    "#hash;semi$dollar",
    "percent%20%2F",
    "plus+and&and=",
    "double//slash",
    "/leading/slash",
    "//two/leading/slashes",
    "./dot",
    "../../etc/passwd",
    "a/../b",
    "a/./b",
    "..",
    "tab\there",
    "carriage\rreturn",
    "control\x01\x1b[31mred",
    "emoji/\U0001f600",
    "composed/\u00e9",
    "decomposed/e\u0301",
    "long/" + "x" * 995,
    "-rf",
    "s3://looks/like/a/url",
    "~/home",
    "`id`$(id)",
)


@dataclass(frozen=True, slots=True)
class SeedObject:
    """One object to be, without its bytes."""

    key: str
    size: int  #: bytes
    part_size: int | None = None  #: bytes; uploaded in parts of this size
    headers: Mapping[str, Any] = field(default_factory=dict)  #: what boto3's put_object takes besides


def plan(size_bytes: int, objects: int, seed: int = 5) -> Iterator[SeedObject]:
    """Choose what the bucket will hold: at least `size_bytes` in all, and at least `objects` objects."""
    dice = random.Random(seed)  # noqa: S311  it guards nothing
    count = 0
    planned_bytes = 0
    for item in _special(size_bytes):
        yield item
        count += 1
        planned_bytes += item.size
    for number in range(max(0, objects - count)):
        size = 0 if number % 100 == 0 else int(SMALL_BYTES_MAX * dice.random() ** 2) + 1
        yield SeedObject(f"missions/{number // 500:03}/frame-{number:06}.jpg", size, None, _headers(number))
        planned_bytes += size
    number = 0
    while planned_bytes < size_bytes:
        size = dice.randrange(MIB, 4 * MIB)
        yield SeedObject(f"video/clip-{number:04}.mp4", size, None, {"ContentType": "video/mp4"})
        planned_bytes += size
        number += 1


def content(item: SeedObject, seed: int = 5) -> bytes:
    """Return the bytes of one object: the same for the same seed, different for each key."""
    return hashlib.shake_128(f"{seed} {item.key}".encode()).digest(item.size)


def fill(
    side: DemoSide,
    items: list[SeedObject],
    *,
    seed: int = 5,
    workers: int = 4,
    on_progress: Callable[[int], None] = lambda _size_bytes: None,
) -> None:
    """Upload `items` into the side's bucket; `on_progress` hears each object's bytes once it is there."""
    client = side.client(workers)

    def upload(item: SeedObject) -> int:
        if item.part_size:
            _upload_parts(client, side.bucket, item, content(item, seed))
        else:
            client.put_object(Bucket=side.bucket, Key=item.key, Body=content(item, seed), **item.headers)
        return item.size

    with ThreadPoolExecutor(workers, thread_name_prefix="seed") as pool:
        for size in pool.map(upload, items):
            on_progress(size)
    client.close()


def _special(size_bytes: int) -> Iterator[SeedObject]:
    """What must be there, however small the demo: odd names, parts, an object without bytes."""
    for key in ODD_KEYS:
        yield SeedObject(key, len(key.encode()))
    yield SeedObject("empty", 0)
    yield SeedObject(
        "parts/smallest.bin", SMALL_PART_BYTES + 1, SMALL_PART_BYTES, {"Metadata": {"sent-in": "parts"}}
    )
    for number in range(size_bytes // (100 * MIB)):
        # Sizes differ, so that no two of them have the same number of bytes in the last part.
        part_size = LARGE_PART_BYTES if number % 2 else None
        yield SeedObject(f"archive/part-{number:03}.tar", LARGE_BYTES + number * 4099, part_size)


def _headers(number: int) -> Mapping[str, Any]:
    """Vary what comes with an object, as different programs that wrote it would have."""
    headers: dict[str, Any] = {"ContentType": "image/jpeg"}
    if number % 3 == 0:
        headers["Metadata"] = {"camera": f"cam-{number % 7}", "mission": "demo"}
    if number % 5 == 0:
        headers["ChecksumAlgorithm"] = "CRC64NVME"
    if number % 50 == 0:
        headers |= {"CacheControl": "max-age=60", "ContentLanguage": "en", "Tagging": "kind=frame&keep=yes"}
    return headers


def _upload_parts(client: Any, bucket: str, item: SeedObject, data: bytes) -> None:
    assert item.part_size is not None  # noqa: S101  for the type checker
    where = {"Bucket": bucket, "Key": item.key}
    where["UploadId"] = client.create_multipart_upload(**where, **item.headers)["UploadId"]
    parts = []
    for number, start in enumerate(range(0, len(data), item.part_size), start=1):
        body = data[start : start + item.part_size]
        answer = client.upload_part(**where, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
