"""`s5jtd benchmark`: the same objects moved by this program and by others on this machine, by turns."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import click
import yaml

from s5jtd import __version__, log
from s5jtd.demo.seed import SeedObject, fill
from s5jtd.demo.servers import DemoServers, DemoSide
from s5jtd.engine.s5cmd import VERSION, find_binary
from s5jtd.errors import Exit, S5jtError, UsageError
from s5jtd.units import format_bytes, parse_size

LARGE_BYTES: Final = 64 << 20
SMALL_BYTES: Final = 16 << 10
_WORDS: Final = 300  #: characters of what a program said before it failed


@dataclass(frozen=True, slots=True)
class Load:
    """What is moved."""

    name: str  #: and the prefix of its keys at the source
    objects: int
    size: int  #: bytes of each


@dataclass(slots=True)
class Result:
    """One program with one load."""

    tool: str
    version: str
    load: str
    objects: int
    size_bytes: int
    seconds: list[float] = field(default_factory=list)  #: of each round
    median_seconds: float | None = None
    times_s5cmd: float | None = None  #: the median, by that of bare s5cmd
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Road:
    """From where to where a program moves a load, and where it may stage."""

    load: Load
    source: DemoSide
    destination: DemoSide
    prefix: str  #: of the keys at the destination
    folder: Path

    @property
    def legs(self) -> tuple[tuple[DemoSide, str, str], ...]:
        """Down and up, as two-legged tools copy: server, from, to."""
        data = f"{self.folder}/data/"
        return (
            (self.source, f"{self.source.bucket}/{self.load.name}/", data),
            (self.destination, data, f"{self.destination.bucket}/{self.prefix}"),
        )


def benchmark(large: str, small: int, rounds: int, *, as_json: bool) -> int:
    """Measure, show, and say whether every program delivered all of it.

    Raises:
        S5jtError: the servers could not be started.
    """
    try:
        large_bytes = parse_size(large)
    except ValueError as error:
        raise UsageError(f"--large {large}: {error}") from error
    loads = [Load("large", max(1, large_bytes // LARGE_BYTES), min(large_bytes, LARGE_BYTES)),
             Load("small", small, SMALL_BYTES)]  # fmt: skip
    log.configure("error")
    tools, missing = _tools()
    with tempfile.TemporaryDirectory(prefix="s5jtd-benchmark-") as name:
        folder = Path(name)
        (folder / "servers").mkdir()
        with DemoServers(folder / "servers") as (source, destination):
            results = [
                one for load in loads for one in _measured(tools, load, rounds, source, destination, folder)
            ]
    if as_json:
        shown = [asdict(result) for result in results]
        click.echo(
            json.dumps({"cores": os.cpu_count(), "rounds": rounds, "results": shown, "missing": missing})
        )
    else:
        _show(results, missing)
    return Exit.FAILED if any(result.error for result in results) else Exit.DONE


Move = Callable[[Road], None]


def _tools() -> tuple[dict[str, tuple[str, Move]], list[str]]:
    """What there is: name -> version and how it moves; and what there is not."""
    tools: dict[str, tuple[str, Move]] = {
        "s5cmd": (VERSION, _by_s5cmd),
        "s5jtd": (__version__, _by_s5jtd),
    }
    others: dict[str, tuple[str, Move]] = {"aws": ("--version", _by_aws), "rclone": ("version", _by_rclone)}
    missing = [name for name in others if shutil.which(name) is None]
    for name, (ask, move) in others.items():
        if name not in missing:
            said = subprocess.run([name, ask], capture_output=True, text=True, check=False).stdout
            tools[name] = (" ".join(said.split()[:2]), move)
    return tools, missing


def _measured(
    tools: dict[str, tuple[str, Move]],
    load: Load,
    rounds: int,
    source: DemoSide,
    destination: DemoSide,
    folder: Path,
) -> list[Result]:
    _say(f"filling the source: {load.objects} objects of {format_bytes(load.size)}")
    fill(source, [SeedObject(f"{load.name}/{number:06}", load.size) for number in range(load.objects)])
    results = {
        name: Result(name, version, load.name, load.objects, load.objects * load.size)
        for name, (version, _) in tools.items()
    }
    for number in range(rounds):  # by turns: a machine that slows down slows all
        for name, (_, move) in tools.items():
            _say(f"{load.name}, round {number + 1}: {name}")
            work = Path(tempfile.mkdtemp(dir=folder))
            road = Road(load, source, destination, f"{name}-{number}/{load.name}/", work)
            started = time.perf_counter()
            try:
                move(road)
                results[name].seconds.append(round(time.perf_counter() - started, 3))
                _must_have_arrived(road)
            except S5jtError as error:
                results[name].error = error.detail
            shutil.rmtree(work)
    base = results["s5cmd"]
    for one in results.values():
        if one.error is None:
            one.median_seconds = statistics.median(one.seconds)
    for one in results.values():
        if one.median_seconds is not None and base.median_seconds:
            one.times_s5cmd = round(one.median_seconds / base.median_seconds, 2)
    return list(results.values())


def _must_have_arrived(road: Road) -> None:
    client = road.destination.client()
    pages = client.get_paginator("list_objects_v2").paginate(
        Bucket=road.destination.bucket, Prefix=road.prefix
    )
    sizes = [entry["Size"] for page in pages for entry in page.get("Contents", ())]
    client.close()
    if sizes != [road.load.size] * road.load.objects:
        raise S5jtError(f"{len(sizes)} of {road.load.objects} objects arrived, {format_bytes(sum(sizes))}")


def _by_s5jtd(road: Road) -> None:
    """A pass of the daemon: it lists, hashes, syncs, keeps its ledger, and proves what arrived."""
    (road.folder / "volume").mkdir()
    config = {
        "state_dir": str(road.folder / "state"),
        "runtime_dir": str(road.folder / "run"),
        "volumes": [str(road.folder / "volume")],
        "jobs": [{
            "name": "benchmark",
            "source": {**road.source.configured(), "prefix": f"{road.load.name}/"},
            "destination": {**road.destination.configured(), "prefix": road.prefix},
            "preserve": [],  # nor do the others carry tags and metadata
        }],
    }  # fmt: skip
    path = road.folder / "config.yaml"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    _run([sys.executable, "-m", "s5jtd", "--config", os.fspath(path), "run", "--once"], dict(os.environ))


def _by_s5cmd(road: Road) -> None:
    for side, here, there in road.legs:
        words = [_named(here, "s3://") + "*", _named(there, "s3://")]
        _run(
            [os.fspath(find_binary()), "--log", "error", "--endpoint-url", side.url, "cp", *words],
            _keys(side),
        )


def _by_aws(road: Road) -> None:
    for side, here, there in road.legs:
        words = [_named(here, "s3://"), _named(there, "s3://")]
        quiet = ["--recursive", "--only-show-errors"]
        _run(["aws", "--endpoint-url", side.url, "s3", "cp", *quiet, *words], _keys(side))


def _by_rclone(road: Road) -> None:
    for side, here, there in road.legs:
        remote = {
            "RCLONE_CONFIG": os.devnull,
            "RCLONE_CONFIG_SIDE_TYPE": "s3",
            "RCLONE_CONFIG_SIDE_PROVIDER": "Other",
            "RCLONE_CONFIG_SIDE_ENV_AUTH": "true",
            "RCLONE_CONFIG_SIDE_ENDPOINT": side.url,
        }
        words = [_named(here, "side:"), _named(there, "side:")]
        _run(["rclone", "copy", "--quiet", *words], _keys(side) | remote)


def _named(place: str, scheme: str) -> str:
    return place if place.startswith("/") else scheme + place


def _keys(side: DemoSide) -> dict[str, str]:
    """What a program needs in its environment, and nothing of this machine's own configuration."""
    return {
        "AWS_ACCESS_KEY_ID": side.access_key,
        "AWS_SECRET_ACCESS_KEY": side.secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": os.devnull,
        "PATH": os.environ.get("PATH", os.defpath),
    }


def _run(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise S5jtError(f"it ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-_WORDS:]}")


def _say(text: str) -> None:
    click.echo(text, err=True)


def _show(results: list[Result], missing: list[str]) -> None:
    click.echo(
        f"{'LOAD':<6} {'PROGRAM':<8} {'SECONDS':>8} {'MiB/s':>8} {'OBJECTS/s':>10} {'TIMES s5cmd':>12}"
    )
    for one in results:
        if one.median_seconds is None:
            click.echo(f"{one.load:<6} {one.tool:<8} failed: {one.error}")
            continue
        rate = one.size_bytes / one.median_seconds / (1 << 20)
        often = one.objects / one.median_seconds
        click.echo(
            f"{one.load:<6} {one.tool:<8} {one.median_seconds:8.1f} {rate:8.1f} {often:10.1f}"
            f" {one.times_s5cmd or 0:12.2f}"
        )
    if missing:
        click.echo(f"not on this machine: {', '.join(missing)}")
    click.echo(
        "Both servers are on this machine too, so compare the rows, not the figures with another machine's."
    )
    click.echo("s5jtd lists, hashes, syncs, keeps a ledger and proves what arrived; the others copy.")
