"""A changed configuration, while the daemon works: what holds at once, what is kept, what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s5jtctl.client import Failure
from s5jtd.errors import Exit
from tests.appliance import Appliance, contents, digests, side, until
from tests.servers import Server


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path) as appliance:
        yield appliance


def job(source: Server, here: str, destination: Server, there: str, **more: Any) -> dict[str, Any]:
    return {"name": "archive", "source": side(source, here), "destination": side(destination, there), **more}


def reload(appliance: Appliance) -> Any:
    return appliance.ask("config.reload")


def test_c1_a_bad_reload_leaves_the_old_configuration_in_force(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    appliance.configure(job(moto, here, moto, there, scan_every="1s"))
    appliance.start()
    good = appliance.config_path.read_text()
    appliance.config_path.write_text(good + "nonsense: true\n")

    ctl = subprocess.run(
        [sys.executable, "-m", "s5jtctl", "--socket", str(appliance.socket), "reload"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert ctl.returncode == Exit.CONFIG
    assert "nonsense" in ctl.stderr
    moto.fill(here, {b"k": b"x"})
    until(lambda: appliance.counted() == {"delivered": 1}, "the transfer under the old configuration")


def test_new_endpoints_are_used_at_once(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"k": b"x"})
    good = job(moto, here, moto, there)
    bad = {**good, "source": {**good["source"], "endpoints": ["http://127.0.0.1:9"]}}
    appliance.configure(bad)
    appliance.start()
    until(
        lambda: any(one["code"] == "endpoint_down" for one in appliance.status()["problems"]),
        "the dead endpoint's problem",
    )
    appliance.configure(good)

    assert reload(appliance) == {
        "result": "reloaded", "changed": ["jobs[archive].source.endpoints"], "kept": [], "given": [],
    }  # fmt: skip
    assert appliance.settled() == {"delivered": 1}
    until(lambda: not appliance.status()["problems"], "an end of the problems of what is no more")


def test_c7_a_job_whose_road_changed_goes_on_along_the_old_one_with_all_else_new(
    appliance: Appliance, moto: Server
) -> None:
    here, there, elsewhere = moto.new_bucket(), moto.new_bucket(), moto.new_bucket()
    appliance.configure(job(moto, here, moto, there, scan_every="1h"))
    appliance.start()
    until(lambda: appliance.events("scan_finished"), "the first look")
    appliance.configure(
        job(moto, here, moto, elsewhere, scan_every="1s"),
        {"name": "more", "source": side(moto, here), "destination": side(moto, there, "x/")},
    )

    with pytest.raises(Failure, match="could write the same names"):
        reload(appliance)  # the old road is still in use where the new job wants to write

    appliance.configure(job(moto, here, moto, elsewhere, scan_every="1s"))
    assert reload(appliance) == {
        "result": "reloaded",
        "changed": ["jobs[archive].scan_every"],
        "kept": ["jobs[archive].destination.bucket"],
        "given": [],
    }
    moto.fill(here, {b"k": b"x"})
    assert until(lambda: appliance.counted() == {"delivered": 1}, "the new interval")
    assert contents(moto, there) == digests({b"k": b"x"})
    assert contents(moto, elsewhere) == {}


def test_a_job_can_come_and_go_while_others_work(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"k": b"x"})
    first = job(moto, here, moto, there)
    second = {"name": "more", "source": side(moto, here), "destination": side(moto, moto.new_bucket())}
    appliance.configure(first)
    appliance.start()
    appliance.configure(second, first, limits={"workers": {"max": 9}}, log={"level": "debug"})

    told = reload(appliance)

    assert sorted(told["changed"]) == ["jobs[more] added", "limits.workers", "log.level"]
    assert [one["name"] for one in appliance.status()["jobs"]] == ["more", "archive"]
    appliance.settled()
    assert appliance.counted(0) == appliance.counted(1) == {"delivered": 1}
    chosen: Any = appliance.status()["jobs"][0]["concurrency"]["push"]
    assert chosen == chosen | {
        "workers": 9,
        "why": "limits.workers allows 9",
        "workers_min": 4,
        "workers_max": 9,
    }
    appliance.configure(first)
    assert "jobs[more] removed" in reload(appliance)["changed"]
    assert [one["name"] for one in appliance.status()["jobs"]] == ["archive"]


def test_new_keys_in_the_file_are_signed_with_from_the_reload_on(appliance: Appliance, moto: Server) -> None:
    here, there = moto.new_bucket(), moto.new_bucket()
    moto.fill(here, {b"k": b"x"})
    good = job(moto, here, moto, there)
    wrong = {"access_key_id": "WRONG", "secret_access_key": "wrong-secret"}
    appliance.configure({**good, "source": {**good["source"], "credentials": wrong}})
    appliance.start()
    until(lambda: appliance.events("scan_failed"), "a refusal")
    appliance.configure(good)

    told = reload(appliance)

    assert [path.rpartition(".")[2] for path in told["changed"]] == ["access_key_id", "secret_access_key"]
    assert appliance.settled() == {"delivered": 1}

    appliance.configure({**good, "source": {**good["source"], "credentials": {"systemd": "cloud"}}})
    assert reload(appliance)["given"] == ["systemd credential cloud"]  # it may have changed, but not for us
