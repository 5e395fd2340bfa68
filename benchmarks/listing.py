"""What listing costs the CPU per key: our client against boto3, on the same canned pages.

Run from the project's folder: python -m benchmarks.listing [KEYS]

A process of its own serves pages of 1,000 keys that were made before, so that only the client works.  Each
client runs in a process of its own too: CPU seconds and peak memory are the whole process's, less those of
one that did the same for a single page.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import parse_qs, urlsplit

PAGE = 1000
BUCKET = "benchmark"


def page(number: int, pages: int) -> bytes:
    """One answer of ListObjectsV2 as AWS writes it."""
    first = number * PAGE
    entries = "".join(
        f"<Contents><Key>missions/2024/07/unit-7/frame%20{n:09d}.tiff</Key>"
        f"<LastModified>2024-07-01T12:{n // 60 % 60:02d}:{n % 60:02d}.000Z</LastModified>"
        f"<ETag>&quot;{hashlib.md5(b'%d' % n).hexdigest()}&quot;</ETag>"
        "<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>"
        f"<Size>{n * 37}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for n in range(first, first + PAGE)
    )
    more = number + 1 < pages
    token = f"<NextContinuationToken>{number + 1}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix></Prefix><KeyCount>{PAGE}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
        f"<EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
        f"{entries}</ListBucketResult>"
    ).encode()


def serve(pages: int, ready: Connection) -> None:
    """Answer listings from memory, and everything else as an object of one byte."""
    made = [page(number, pages) for number in range(pages)]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            body = made[int(query.get("continuation-token", ["0"])[0])]
            self.answer({"Content-Type": "application/xml", "Content-Length": str(len(body))}, body)

        def do_HEAD(self) -> None:
            self.answer(
                {
                    "Content-Length": "1",
                    "Content-Type": "image/tiff",
                    "ETag": '"0cc175b9c0f1b6a831c399e269772661"',
                    "Last-Modified": "Mon, 01 Jul 2024 12:00:00 GMT",
                    "x-amz-checksum-crc64nvme": "AAAAAAAAAAA=",
                },
                b"",
            )

        def answer(self, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    ready.send(server.server_address[1])
    server.serve_forever()


def boto(url: str) -> Any:
    import boto3  # noqa: PLC0415  (only the process that measures it pays for it)

    return boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="FAKEACCESSKEY",
        aws_secret_access_key="fake-secret",
    )


def ours(url: str) -> Any:
    from s5jtd.s3.client import S3Client  # noqa: PLC0415  (likewise)
    from s5jtd.s3.credentials import CredentialProvider, Credentials, CredentialSource  # noqa: PLC0415

    keys = Credentials("FAKEACCESSKEY", "fake-secret")
    return S3Client(BUCKET, credentials=CredentialProvider(CredentialSource(keys=keys)), endpoint_url=url)


def list_with_boto3(url: str, count: int) -> int:
    pages = boto(url).get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    return sum(len(found["Contents"]) for _, found in zip(range(count // PAGE), pages, strict=False))


def list_with_ours(url: str, count: int) -> int:
    from s5jtd.s3.listing import list_objects  # noqa: PLC0415  (likewise)

    pages = list_objects(ours(url), b"")
    return sum(len(found.objects) for _, found in zip(range(count // PAGE), pages, strict=False))


def head_with_boto3(url: str, count: int) -> int:
    client = boto(url)
    return sum(client.head_object(Bucket=BUCKET, Key=f"key {n}")["ContentLength"] for n in range(count))


def head_with_ours(url: str, count: int) -> int:
    from s5jtd.s3.heads import head  # noqa: PLC0415  (likewise)

    client = ours(url)
    return sum(head(client, b"key %d" % n).size for n in range(count))


def cost(work: Callable[[str, int], int], url: str, count: int) -> dict[str, float]:
    """CPU seconds and peak memory of a fresh process that does `work` once."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measured, args=(work, url, count, there))
    process.start()
    found: dict[str, float] = json.loads(here.recv())
    process.join()
    return found


def measured(work: Callable[[str, int], int], url: str, count: int, result: Connection) -> None:
    started = time.monotonic()
    done = work(url, count)
    if done != count:
        raise SystemExit(f"{work.__name__}: {done} of {count}")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = usage.ru_utime + usage.ru_stime
    wall = time.monotonic() - started
    result.send(json.dumps({"cpu_seconds": seconds, "peak_mib": usage.ru_maxrss / 1024, "seconds": wall}))


def main() -> None:
    """Print the table."""
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    heads = min(keys, 2_000)
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(keys // PAGE, there), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    rows: list[tuple[str, Callable[[str, int], int], int, int]] = [
        (f"list {keys:,} keys, boto3", list_with_boto3, keys, PAGE),
        (f"list {keys:,} keys, s5jtd", list_with_ours, keys, PAGE),
        (f"HEAD {heads:,} keys, boto3", head_with_boto3, heads, 1),
        (f"HEAD {heads:,} keys, s5jtd", head_with_ours, heads, 1),
    ]
    print(f"{'':32} {'us of CPU per key':>18} {'peak MiB':>9} {'more than for the least':>24}")
    for name, work, count, least in rows:
        base, found = cost(work, url, least), cost(work, url, count)
        each = (found["cpu_seconds"] - base["cpu_seconds"]) / (count - least) * 1e6
        more = found["peak_mib"] - base["peak_mib"]
        print(f"{name:32} {each:18.1f} {found['peak_mib']:9.0f} {more:20.1f} MiB")
    server.terminate()


if __name__ == "__main__":
    main()
