"""What an object has besides its bytes arrives with it, field by field, through the disk and a restart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s5jtd.errors import Exit
from tests.appliance import Appliance, contents, digests, side, some_objects, until
from tests.servers import Server

CONTENT: dict[str, Any] = {
    "ContentType": "text/html; charset=utf-8",
    "ContentEncoding": "gzip",
    "ContentDisposition": "attachment; filename=\"it's; a 'file'.txt\"",
    "ContentLanguage": "de-CH",
    "CacheControl": "no-store, max-age=0",
    "Expires": "Wed, 02 Jan 2030 03:04:05 GMT",
}
#: 2 KB with the names, as much as S3 takes; the values are such as break a careless quoting.
METADATA = {"mtime": "1700000000.123", "quotes": "a 'b' \"c\" $d `e` \\f", "equals": "a=b;c", "empty": ""}
METADATA |= {"filler": "x" * (2048 - sum(len(name) + len(value) for name, value in METADATA.items()) - 6)}
TAGS = {f"tag {n}": f"value +-=._:/@ {n}" for n in range(10)}


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path) as appliance:
        yield appliance


def job(moto: Server, here: str, there: str, destination: dict[str, Any] | None = None, **more: Any) -> Any:
    return {
        "name": "archive",
        "source": side(moto, here),
        "destination": side(moto, there, **(destination or {})),
        **more,
    }


def described(server: Server, bucket: str, key: str) -> dict[str, Any]:
    """All that a bucket tells of an object but its bytes and times."""
    with contextlib.closing(server.boto()) as boto:
        head = boto.head_object(Bucket=bucket, Key=key)
        tags = boto.get_object_tagging(Bucket=bucket, Key=key)["TagSet"]
    raw = head["ResponseMetadata"]["HTTPHeaders"]
    return {
        **{name: head.get(name) for name in (*CONTENT, "Metadata", "StorageClass", "ServerSideEncryption")},
        "Expires": raw.get("expires"),
        "Tags": {tag["Key"]: tag["Value"] for tag in tags},
    }


def put(server: Server, bucket: str, key: str, body: bytes = b"body", **more: Any) -> None:
    with contextlib.closing(server.boto()) as boto:
        boto.put_object(Bucket=bucket, Key=key, Body=body, **more)


def tagging() -> str:
    return "&".join(
        f"{key.replace(' ', '%20')}={value.replace(' ', '%20').replace('+', '%2B')}"
        for key, value in TAGS.items()
    )


@pytest.mark.parametrize("engine", ["s5cmd", "native"])
def test_every_header_all_metadata_and_ten_tags_arrive(
    appliance: Appliance, moto: Server, engine: str
) -> None:
    """Over a restart between the two hops, so that it is the disk that remembers."""
    here, there = moto.new_bucket(), moto.new_bucket()
    put(moto, here, "full", **CONTENT, Metadata=METADATA, Tagging=tagging())
    put(moto, here, "content", **CONTENT)
    put(moto, here, "metadata", Metadata=METADATA)
    put(moto, here, "bare")
    keys = ["full", "content", "metadata", "bare"]
    appliance.configure(job(moto, here, there, engine=engine))
    appliance.start()
    appliance.ask("job.pause", job="archive", side="destination")
    until(lambda: appliance.counted() == {"staged": 4}, "all on the disk")
    appliance.stop()
    appliance.start()
    appliance.ask("job.resume", job="archive")
    assert appliance.settled() == {"delivered": 4}

    assert {key: described(moto, there, key) for key in keys} == {
        key: described(moto, here, key) for key in keys
    }
    assert described(moto, there, "full")["Tags"] == TAGS
    assert described(moto, there, "full")["Metadata"] == METADATA


def test_only_what_is_to_be_preserved_is_and_the_destinations_own_is_set(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    put(moto, here, "k", **CONTENT, Metadata={"a": "b"}, Tagging=tagging())
    own = {"storage_class": "STANDARD_IA", "sse": "AES256", "acl": "bucket-owner-full-control", "stamp": True}
    appliance.configure(job(moto, here, there, own, preserve=["metadata"]))

    assert appliance.once() == Exit.DONE, appliance.log()

    found = described(moto, there, "k")
    assert (found["StorageClass"], found["ServerSideEncryption"]) == ("STANDARD_IA", "AES256")
    assert (found["ContentType"], found["Tags"]) == ("binary/octet-stream", {})
    assert found["Metadata"].pop("synced-by").startswith("s5jtd/")
    assert found["Metadata"].pop("synced-at").endswith("Z")
    assert found["Metadata"] == {"a": "b"}


def test_what_is_preserved_costs_one_head_and_nothing_preserved_costs_none(
    appliance: Appliance, moto: Server
) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    objects = some_objects(20)
    moto.fill(here, objects)
    put(moto, here, "tagged", Tagging="a=b")
    for preserve, heads in (([], 0), (["content", "metadata", "tags"], 1)):
        appliance.configure(job(moto, here, there, preserve=preserve, engine="native", skip_existing="never"))
        moto.log.clear()
        assert appliance.once() == Exit.DONE, appliance.log()
        assert moto.log.count("HEAD", b"missions/0003.dat") == heads, preserve
        with contextlib.closing(moto.boto()) as boto:
            for key in [*objects, b"tagged"]:
                boto.delete_object(Bucket=there, Key=key.decode())
        assert appliance.command("reset", "--yes").returncode == 0
    assert contents(moto, there) == digests({})
