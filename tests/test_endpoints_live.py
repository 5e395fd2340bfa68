"""Several real servers as endpoints of one bucket, killed and revived while objects travel."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance import Appliance, side, until
from tests.chaos import Chaos, Delay, Flip
from tests.servers import ACCESS_KEY, SECRET_KEY, Server, free_port


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
    """Whole files at once, as a server shows objects."""
    for number in range(40):
        made = data.parent / "made"
        made.write_bytes(os.urandom(1000 + number * 700))
        made.rename(data / "here" / f"{wave}-{number}")


def differences(data: Path) -> dict[str, tuple[int, int]]:
    """Names whose bytes did not arrive, with how many there are on either side; -1 for none.

    What a killed server left half-written under a name of its own is its own.
    """
    here, there = ({f.name: f.read_bytes() for f in (data / side).iterdir()} for side in ("here", "there"))
    return {
        name: (len(here[name]), len(there[name]) if name in there else -1)
        for name in here
        if here[name] != there.get(name)
    }


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

        assert differences(data) == {}
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
        assert differences(data) == {}


def test_a_slow_endpoint_loses_its_share(tmp_path: Path, data: Path, doors: list[Door]) -> None:
    """Once a run through it was seen to take long; its objects arrive, and no breaker opens for it."""
    slow, *quick = doors
    with Chaos(slow.url) as chaos, Appliance(tmp_path / "appliance") as appliance:
        chaos.add(Delay(seconds=6.0, method="GET", prefix="a-"))
        chaos.add(Delay(seconds=6.0, method="GET", prefix="b-"))
        fill(data, "a")
        config = job(quick)
        source = config["source"]
        assert isinstance(source, dict)
        source["endpoints"] = [chaos.url, *source["endpoints"]]
        appliance.configure(config)
        appliance.start()
        until(lambda: appliance.counted() == {"delivered": 40}, "the first wave")
        chunks = len(appliance.events("chunk_staged"))
        assert any(event["endpoint"] == chaos.url for event in appliance.events("chunk_staged"))

        fill(data, "b")
        until(lambda: appliance.counted() == {"delivered": 80}, "the second wave")

        shares = Counter(event["endpoint"] for event in appliance.events("chunk_staged")[chunks:])
        assert shares[chaos.url] == 0, shares
        assert differences(data) == {}
        assert {one["state"] for one in appliance.status()["endpoints"]} == {"up"}


@pytest.mark.parametrize("kind", ["profile", "systemd", "config"])
def test_refused_credentials_hold_up_one_side_until_others_are_there_and_cost_no_attempt(
    tmp_path: Path, rclone: Server, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pull goes on meanwhile.  Files are read without a restart, the configuration by a reload."""
    here, there = rclone.new_bucket(), rclone.new_bucket()
    keys = tmp_path / "sbe"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    appliance = Appliance(tmp_path / "appliance")

    def rotate(secret: str) -> None:
        written = {"access_key_id": rclone.access_key, "secret_access_key": secret}
        given = {"profile": {"profile": "default"}, "systemd": {"systemd": "sbe"}, "config": written}[kind]
        keys.write_text(
            f"[default]\naws_access_key_id = {rclone.access_key}\naws_secret_access_key = {secret}\n"
        )
        appliance.configure(
            {
                "name": "keys",
                "source": side(rclone, here),
                "destination": {**side(rclone, there), "credentials": given},
                "scan_every": "1s",
                "attempts": 1,
            }
        )

    with appliance:
        rotate(rclone.secret_key)
        appliance.start()
        rclone.fill(here, {b"a": b"1"})
        until(lambda: appliance.counted() == {"delivered": 1}, "the delivery with the first keys")

        rotate("no-longer-valid")
        if kind == "config":
            appliance.ask("config.reload")
        rclone.fill(here, {b"b": b"2"})
        problem = until(
            lambda: [one for one in appliance.status()["problems"] if one["code"] == "endpoint_down"],
            "the problem",
        )[0]
        assert "SignatureDoesNotMatch" in problem["message"]
        until(lambda: appliance.counted() == {"delivered": 1, "staged": 1}, "the pull, which goes on")

        rotate(rclone.secret_key)
        if kind == "config":
            appliance.ask("config.reload")
        checked = appliance.ask("endpoint.check")["endpoints"]
        assert {one["state"] for one in checked} == {"up"}
        until(lambda: appliance.counted() == {"delivered": 2}, "the delivery with the new keys")
        assert rclone.secret_key not in appliance.log()
