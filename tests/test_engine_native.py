"""The native engine: the contract every engine keeps, and what is its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from s5jtd.engine.choice import Engines
from s5jtd.engine.contract import End, Engine, Preference
from s5jtd.engine.native.engine import Native
from tests.engine_contract import EngineContract, Stand, stand_at
from tests.servers import Server


class TestNative(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return Native()


@pytest.fixture
def stand(moto: Server, tmp_path: Path) -> Iterator[Stand]:
    with stand_at(moto, moto.new_bucket(), Engines(), tmp_path) as stand:
        yield stand


def test_each_engine_gets_what_only_it_can_carry(stand: Stand, moto: Server) -> None:
    """Where both have to work they share the batch, and each object goes once."""
    moto.log.clear()
    keys = [b"plain", b"new\nline", b"folder/", b"tagged"]
    transfers = [stand.write(f"{n}.obj", key, key) for n, key in enumerate(keys)]
    transfers[3] = dataclasses.replace(transfers[3], tags={"a": "b c", "x/y": "=+@"})

    result = stand.push(*transfers)

    assert result.failures == dict.fromkeys(sorted(one.name for one in transfers))
    assert result.run.end is End.EXITED
    assert moto.log.count("PUT") == len(keys)
    boto = moto.boto()
    there = {
        key: boto.get_object(Bucket=stand.remote.bucket, Key=key.decode())["Body"].read() for key in keys
    }
    assert there == {key: key for key in keys}
    tags = boto.get_object_tagging(Bucket=stand.remote.bucket, Key="tagged")["TagSet"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == {"a": "b c", "x/y": "=+@"}


@pytest.mark.parametrize(("preference", "loaded"), [("s5cmd", False), ("auto", True), ("native", True)])
def test_the_native_engine_is_loaded_only_where_it_is_needed(
    stand: Stand, moto: Server, preference: Preference, loaded: bool
) -> None:
    engines = stand.engine
    assert isinstance(engines, Engines)

    stand.push(stand.write("1.obj", b"x"), preference=preference)

    assert loaded == ("native" in vars(engines))


def test_left_to_choose_many_objects_go_by_s5cmd(stand: Stand) -> None:
    engines = stand.engine
    assert isinstance(engines, Engines)

    stand.push(*(stand.write(f"{n}.obj", b"x", b"%d" % n) for n in range(20)), preference="auto")

    assert "native" not in vars(engines)
