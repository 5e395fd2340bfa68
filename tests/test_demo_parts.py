"""The parts of the demo: servers that hold every key, a bucket always the same, a judge not to be fooled."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from s5jtd.demo import seed
from s5jtd.demo.compare import Difference, compare
from s5jtd.demo.servers import DemoServers, DemoSide

ROOT = Path(__file__).parents[1]
ITEMS = list(seed.plan(size_bytes=2 * seed.MIB, objects=60))


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Both servers, the source filled."""
    with DemoServers(tmp_path_factory.mktemp("servers")) as (source, destination):
        seed.fill(source, ITEMS)
        yield source, destination


@pytest.fixture
def twins(sides):
    """The same objects on both sides, the destination's below a prefix of their own."""
    source, destination = sides
    client = destination.client()
    seed.fill(destination, ITEMS)
    yield source, destination, client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=destination.bucket):
        for item in page.get("Contents", ()):
            client.delete_object(Bucket=destination.bucket, Key=item["Key"])
    client.close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_the_server_holds_every_odd_key_and_gives_it_back(sides):
    source, _ = sides
    unspeakable = ("new\nline", "folder marker/")  # for s5cmd, but not for S3
    client = source.client()
    for key in unspeakable:
        client.put_object(Bucket=source.bucket, Key=key, Body=b"")

    held = {
        key: sha256(client.get_object(Bucket=source.bucket, Key=key)["Body"].read()) for key in seed.ODD_KEYS
    }
    listed = {
        item["Key"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=source.bucket)
        for item in page["Contents"]
    }
    for key in unspeakable:
        client.delete_object(Bucket=source.bucket, Key=key)
    client.close()

    assert held == {item.key: sha256(seed.content(item)) for item in ITEMS if item.key in seed.ODD_KEYS}
    assert listed == {item.key for item in ITEMS} | set(unspeakable)


def test_what_came_in_parts_has_the_etag_of_its_parts(sides):
    source, _ = sides
    item, size = next((item, item.part_size) for item in ITEMS if item.part_size)
    data = seed.content(item)
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    md5s = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)

    client = source.client()
    head = client.head_object(Bucket=source.bucket, Key=item.key)
    client.close()

    expected = hashlib.md5(md5s, usedforsecurity=False).hexdigest() + f"-{len(parts)}"
    assert head["ETag"] == f'"{expected}"'
    assert head["Metadata"] == {"sent-in": "parts"}


def test_the_servers_take_only_their_own_access_key(sides):
    source, destination = sides
    stranger = DemoSide(
        source.url, destination.access_key, "fake-secret", source.bucket, source.requests_file
    )
    client = stranger.client()

    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        client.list_objects_v2(Bucket=source.bucket)
    client.close()


def test_the_servers_listen_on_loopback_only(sides):
    for side in sides:
        assert side.url.startswith("http://127.0.0.1:")


def test_each_request_is_on_record(sides):
    source, _ = sides

    counts = Counter((request.method, request.kind) for request in source.requests() if request.status == 200)
    put = Counter(
        request.key
        for request in source.requests()
        if (request.method, request.kind, request.status) == ("PUT", "object", 200)
    )

    assert counts["PUT", "part"] == 2
    seeded = Counter(item.key.encode() for item in ITEMS if not item.part_size)
    assert seeded == Counter({key: count for key, count in put.items() if key in seeded})


def test_the_same_seed_gives_the_same_bucket():
    again = list(seed.plan(size_bytes=2 * seed.MIB, objects=60))

    assert again == ITEMS
    assert [seed.content(item) for item in again[:40]] == [seed.content(item) for item in ITEMS[:40]]
    assert list(seed.plan(size_bytes=2 * seed.MIB, objects=60, seed=6)) != ITEMS


def test_the_full_demo_moves_what_it_says():
    items = list(seed.plan(size_bytes=200 * seed.MIB, objects=2500))

    assert len(items) >= 2500
    assert len({item.key for item in items}) == len(items)
    assert sum(item.size for item in items) >= 200 * seed.MIB
    assert sum(item.size > 100 * seed.MIB for item in items) >= 2
    assert any(item.part_size and item.size > 100 * seed.MIB for item in items)
    assert sum(item.size == 0 for item in items) >= 10
    assert max(len(item.key.encode()) for item in items) >= 1000


def test_equal_buckets_compare_equal(twins):
    source, destination, _ = twins
    heard: list[int] = []

    result = compare(source, destination, metadata=True, on_progress=heard.append)

    assert result.differences == ()
    assert result.equal
    assert (result.objects, result.same) == (len(ITEMS), len(ITEMS))
    assert result.size_bytes == sum(heard) == sum(item.size for item in ITEMS)


def test_the_comparison_sees_what_is_missing_changed_stripped_and_extra(twins):
    source, destination, client = twins
    framed = {item.key: item for item in ITEMS if item.size and item.headers.get("Metadata")}
    changed, stripped, missing = list(framed)[-3:]
    flipped = bytearray(seed.content(framed[changed]))
    flipped[-1] ^= 1
    client.put_object(Bucket=destination.bucket, Key=changed, Body=bytes(flipped), **framed[changed].headers)
    client.put_object(Bucket=destination.bucket, Key=stripped, Body=seed.content(framed[stripped]))
    client.delete_object(Bucket=destination.bucket, Key=missing)
    client.put_object(Bucket=destination.bucket, Key="new\nline too", Body=b"")

    result = compare(source, destination, metadata=True)

    assert not result.equal
    assert {(difference.key, difference.kind) for difference in result.differences} == {
        (changed, "content"),
        (stripped, "metadata"),
        (missing, "missing"),
        ("new\nline too", "extra"),
    }
    assert isinstance(result.differences[0], Difference)
    assert result.same == len(ITEMS) - 3
    assert compare(source, destination).same == len(ITEMS) - 2  # bytes alone


def test_prefixes_map_onto_each_other(sides):
    source, destination = sides
    client = destination.client()
    for item in ITEMS:
        if item.key.startswith("missions/"):
            key = "site-7/" + item.key.removeprefix("missions/")
            client.put_object(Bucket=destination.bucket, Key=key, Body=seed.content(item), **item.headers)

    result = compare(source, destination, source_prefix="missions/", destination_prefix="site-7/")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=destination.bucket):
        for listed in page["Contents"]:
            client.delete_object(Bucket=destination.bucket, Key=listed["Key"])
    client.close()

    assert result.equal
    assert result.objects == sum(item.key.startswith("missions/") for item in ITEMS)


def test_the_servers_end_when_their_parent_is_killed(tmp_path):
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from s5jtd.demo.servers import DemoServers\n"
        "with DemoServers(Path(sys.argv[1])) as sides:\n"
        "    print(*[side.url for side in sides], flush=True)\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        urls = parent.stdout.readline().split()
        assert all(answers(url) for url in urls)
        os.kill(parent.pid, signal.SIGKILL)

    until = time.monotonic() + 20
    while any(answers(url) for url in urls):
        assert time.monotonic() < until, "a server outlived its parent"
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def test_the_secret_of_a_side_is_in_no_repr(sides):
    assert sides[0].secret_key not in repr(sides[0])


def test_a_session_of_ones_own_works_too(sides):
    """What a config needs is all there: no hidden state in `client`."""
    source, _ = sides
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=source.url,
        aws_access_key_id=source.access_key,
        aws_secret_access_key=source.secret_key,
        region_name="eu-central-1",
    )

    assert client.head_object(Bucket=source.bucket, Key="empty")["ContentLength"] == 0
    client.close()
