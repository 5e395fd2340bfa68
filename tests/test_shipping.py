"""Reports that are copied to a bucket: after they are durable here, until they are there, and once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s5jtd.errors import Exit
from tests.appliance import Appliance, side, some_objects, until
from tests.chaos import Chaos, Refuse
from tests.servers import Server


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path, volumes=1) as appliance:
        yield appliance


def copies(server: Server, bucket: str) -> dict[str, bytes]:
    client = server.boto()
    return {
        entry["Key"]: client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        for entry in client.list_objects_v2(Bucket=bucket).get("Contents", ())
    }


def job(server: Server) -> dict[str, Any]:
    here = server.new_bucket()
    server.fill(here, some_objects(3))
    return {"name": "archive", "source": side(server, here), "destination": side(server, server.new_bucket())}


def test_each_report_is_copied_once_and_the_last_one_before_a_single_pass_ends(
    appliance: Appliance, moto: Server
) -> None:
    there = moto.new_bucket()
    one = job(moto)
    appliance.configure(one, reports={"upload": side(moto, there, "reports/")})
    assert appliance.once() == Exit.DONE, appliance.log()
    assert appliance.once() == Exit.DONE, appliance.log()

    here = {path.name: path.read_bytes() for path in (appliance.folder / "state/reports").glob("*.json")}
    assert len(here) == 2
    assert copies(moto, there) == {f"reports/{name}": body for name, body in here.items()}
    puts = [r for r in moto.log.requests() if r.method == "PUT" and r.key.startswith(b"reports/")]
    assert len(puts) == 2
    assert json.loads(max(here.items())[1])["status"] == "success"


def test_a_bucket_that_does_not_answer_holds_nothing_up_and_gets_the_reports_later(
    appliance: Appliance, moto: Server
) -> None:
    there = moto.new_bucket()
    with Chaos(moto.url) as chaos:
        chaos.add(Refuse("InternalError"))
        appliance.configure(job(moto), reports={"upload": side(moto, there, "", chaos.url)})
        appliance.start()
        problems = until(lambda: appliance.status()["problems"], "the trouble to be told")
        assert [problem["code"] for problem in problems] == ["reports_not_copied"]
        assert appliance.counted() == {"delivered": 3}
        chaos.clear()
        until(lambda: copies(moto, there), "the report to arrive")
        until(lambda: not appliance.status()["problems"], "the trouble to be over")


def test_an_interrupted_pass_has_a_report_and_that_is_copied_too(appliance: Appliance, moto: Server) -> None:
    there = moto.new_bucket()
    one = job(moto)
    with Chaos(moto.url) as chaos:
        chaos.add(Refuse("InternalError", method="PUT"))
        destination = side(moto, one["destination"]["bucket"], "", chaos.url)
        appliance.configure(one | {"destination": destination}, reports={"upload": side(moto, there)})
        appliance.start()
        until(lambda: appliance.counted().get("staged"), "objects to wait")
        appliance.stop()

    [report] = [json.loads(body) for body in copies(moto, there).values()]
    assert (report["status"], report["left"]) == ("interrupted", 3)
