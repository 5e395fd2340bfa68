"""Several real servers as endpoints of one bucket, killed and revived while objects travel."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance import Appliance, until
from tests.chaos import Chaos, Flip
from tests.servers import ACCESS_KEY, SECRET_KEY, free_port

pytestmark = pytest.mark.timeout(300)


class Door:
    """An rclone server on a folder that other servers serve too; it comes back at the same port."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._data, self._log = data, folder / f"{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        program = Path(sysconfig.get_path("scripts"), "rclone")
        self._process = subprocess.Popen(
            [
                os.fspath(program), "serve", "s3", os.fspath(self._data), "--config", os.devnull,
                "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
                "--dir-cache-time", "0s", "-vv", "--log-file", os.fspath(self._log),
            ],
            env={"PATH": os.defpath, "HOME": os.fspath(self._log.parent)},
        )  # fmt: skip

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def was_asked_for(self, name: str) -> bool:
        return name in self._log.read_text(errors="replace")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    for bucket in ("here", "there"):
        (data / bucket).mkdir(parents=True)
    return data


@pytest.fixture
def doors(data: Path, tmp_path: Path) -> Iterator[list[Door]]:
    doors = [Door(data, tmp_path) for _ in range(3)]
    for door in doors:
        door.open()
    yield doors
    for door in doors:
        door.kill()


def job(doors: list[Door]) -> dict[str, object]:
    keys = {"credentials": {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}}
    urls = [door.url for door in doors]
    return {
        "name": "three",
        "source": {"bucket": "here", "endpoints": urls, **keys},
        "destination": {"bucket": "there", "endpoints": urls, **keys},
        "scan_every": "1s",
        "chunk": {"objects": 5},
    }


def fill(data: Path, wave: str) -> None:
    for number in range(40):
        (data / "here" / f"{wave}-{number}").write_bytes(os.urandom(1000 + number * 700))


def whole(data: Path) -> bool:
    here, there = ({f.name: f.read_bytes() for f in (data / side).iterdir()} for side in ("here", "there"))
    return here == there


def states(appliance: Appliance, door: Door) -> set[str]:
    return {one["state"] for one in appliance.status()["endpoints"] if one["url"] == door.url}


def test_two_of_three_servers_die_in_turn_and_all_arrives(
    tmp_path: Path, data: Path, doors: list[Door]
) -> None:
    """No object is worse for it, and who comes back has a share again."""
    first, second, _ = doors
    with Appliance(tmp_path / "appliance") as appliance:
        fill(data, "a")
        appliance.configure(job(doors))
        appliance.start()
        until(lambda: appliance.counted().get("delivered"), "the first deliveries")

        first.kill()
        fill(data, "b")
        until(lambda: states(appliance, first) == {"down"}, "the breaker of the dead server")
        until(lambda: appliance.counted() == {"delivered": 80}, "what came after the first death")

        first.open()
        until(lambda: states(appliance, first) == {"up"}, "the return of the dead server")
        second.kill()
        fill(data, "c")
        until(lambda: appliance.counted() == {"delivered": 120}, "what came after the second death")

        assert whole(data)
        assert first.was_asked_for("c-")
        downs = [event for event in appliance.events("endpoint_down") if event["url"] == first.url]
        assert len(downs) <= 2  # once for each side, not once for each object
        parked = appliance.ask("object.list", job="three", state="parked", limit=10)["objects"]
        assert parked == []


def test_an_endpoint_with_wrong_bytes_loses_its_share(tmp_path: Path, data: Path, doors: list[Door]) -> None:
    liar, *honest = doors
    with Chaos(liar.url) as chaos, Appliance(tmp_path / "appliance") as appliance:
        chaos.add(Flip(method="GET", prefix="a"))
        fill(data, "a")
        config = job(honest)
        source = config["source"]
        assert isinstance(source, dict)
        source["endpoints"] = [chaos.url, *source["endpoints"]]
        appliance.configure(config)
        appliance.start()

        until(
            lambda: any(
                one["url"] == chaos.url and "wrong bytes" in (one["last_error"] or "")
                for one in appliance.status()["endpoints"]
            ),
            "the breaker of the liar",
        )
        until(lambda: appliance.counted() == {"delivered": 40}, "all of it, by way of the others")
        assert whole(data)
