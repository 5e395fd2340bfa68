"""`s5jtd demo`: a whole transfer by the real daemon between two S3 servers on this machine, watched live."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import yaml

from s5jtd import log, protocol, shapes
from s5jtd.demo.compare import Comparison, compare
from s5jtd.demo.seed import fill, plan
from s5jtd.demo.servers import DemoServers, DemoSide
from s5jtd.errors import Exit, UsageError
from s5jtd.units import format_bytes, format_rate, parse_size

OBJECTS = 2000
LOOK_SECONDS = 0.25
#: Without a terminal a line now and then is enough.
PLAIN_SECONDS = 2.0
JOB = "demo"


def demo(size: str, *, keep: bool) -> int:
    """Seed, transfer, compare; the exit code is 0 only if the buckets are the same, byte for byte.

    Raises:
        S5jtError: the servers or the daemon could not be started.
    """
    try:
        size_bytes = parse_size(size)
    except ValueError as error:
        raise UsageError(f"--size {size}: {error}") from error
    log.configure("warning")
    folder = Path(tempfile.mkdtemp(prefix="s5jtd-demo-"))
    try:
        with DemoServers(folder) as (source, destination):
            _seed(source, size_bytes)
            config = _configure(folder, source, destination)
            code, seconds = _transfer(config, folder)
            carried = _carried(source, destination)  # before the comparison fetches everything once more
            result = _compare(source, destination)
            click.echo(carried)
            _report(result, seconds)
            if keep:
                click.echo(f"ledger, volumes and logs are in {folder}")
        if code:
            click.echo((folder / "daemon.log").read_text()[-3000:], err=True)
        return code or (Exit.DONE if result.equal else Exit.MISMATCH)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


class _Line:
    """One line that is rewritten on a terminal, and printed now and then elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._shown = 0.0

    def show(self, text: str) -> None:
        """Replace what was shown."""
        if self._live:
            click.echo(f"\r\x1b[K{text}", nl=False)
        elif time.monotonic() - self._shown >= PLAIN_SECONDS:
            click.echo(text)
            self._shown = time.monotonic()

    def end(self, text: str) -> None:
        """The last word, which stays."""
        click.echo(f"\r\x1b[K{text}" if self._live else text)


def _counting(words: str, total: int) -> tuple[_Line, Callable[[int], None]]:
    line, seen = _Line(), [0, 0]

    def on_progress(size: int) -> None:
        seen[0] += 1
        seen[1] += size
        line.show(f"{words}: {seen[0]} of {total} objects, {format_bytes(seen[1])}")

    return line, on_progress


def _seed(source: DemoSide, size_bytes: int) -> None:
    items = list(plan(size_bytes, OBJECTS))
    line, on_progress = _counting("seeding the source", len(items))
    fill(source, items, on_progress=on_progress)
    total = sum(item.size for item in items)
    line.end(
        f"the source holds {len(items)} objects, {format_bytes(total)}: empty ones, odd names, large ones"
    )


def _configure(folder: Path, source: DemoSide, destination: DemoSide) -> Path:
    """A configuration like any other; the demo's keys are worth nothing outside of it."""
    volumes = [folder / "volume-1", folder / "volume-2"]
    for volume in volumes:
        volume.mkdir()
    config = {
        "state_dir": str(folder / "state"),
        "runtime_dir": str(folder / "run"),
        "volumes": [str(volume) for volume in volumes],
        "jobs": [
            {
                "name": JOB,
                "source": source.configured(),
                "destination": {**destination.configured(), "prefix": "copy/"},
            }
        ],
    }
    path = folder / "config.yaml"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _transfer(config: Path, folder: Path) -> tuple[int, float]:
    """Run the daemon for one pass, and show what its own `status` says meanwhile."""
    started = time.monotonic()
    line = _Line()
    with (folder / "daemon.log").open("wb") as messages, _running(config, messages) as daemon:
        while daemon.poll() is None:
            status = _status(folder / "run" / "control.sock")
            if status is not None:
                line.show(_progress(status["jobs"][0]))
            time.sleep(LOOK_SECONDS)
        seconds = time.monotonic() - started
        line.end(f"the daemon ended after {seconds:.1f} s with exit code {daemon.returncode}")
        return daemon.returncode, seconds


@contextlib.contextmanager
def _running(config: Path, messages: Any) -> Iterator[subprocess.Popen[bytes]]:
    daemon = subprocess.Popen(
        [sys.executable, "-m", "s5jtd", "--config", os.fspath(config), "run", "--once"],
        stdin=subprocess.DEVNULL,
        stderr=messages,
    )
    try:
        yield daemon
    finally:
        if daemon.poll() is None:
            daemon.terminate()
            daemon.wait()


def _progress(job: shapes.Job) -> str:
    objects, rates, eta = job["objects"], job["rates"], job["eta_seconds"]
    total = job_total(objects)
    moved = objects["delivered"]
    pull, push = rates["pull_bytes_per_second"], rates["push_bytes_per_second"]
    left = "-" if eta is None else f"{eta:.0f} s"
    return (
        f"delivered {moved} of {total}; on the volumes {objects['staged'] + objects['pushing']};"
        f" pull {format_rate(pull or 0)}, push {format_rate(push or 0)}; ETA {left}"
    )


def job_total(objects: shapes.PerState) -> int:
    """All objects of a job."""
    return sum(count for count in objects.values() if isinstance(count, int))


def _status(path: Path) -> shapes.Status | None:
    """Ask the daemon, as anybody may with `nc -U`; None while nobody answers."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(os.fspath(path))
            client.sendall(protocol.encode({"jsonrpc": "2.0", "id": 1, "method": "status"}))
            with client.makefile("rb") as lines:
                answer = protocol.decode(lines.readline())
    except (OSError, protocol.Malformed):
        return None
    return answer.get("result") if isinstance(answer, dict) else None


def _compare(source: DemoSide, destination: DemoSide) -> Comparison:
    line, on_progress = _counting("comparing, without the ledger's word", OBJECTS)
    result = compare(source, destination, destination_prefix="copy/", on_progress=on_progress)
    line.end(
        f"compared {result.objects} objects, {format_bytes(result.size_bytes)}, by SHA-256 of both copies"
    )
    return result


def _carried(source: DemoSide, destination: DemoSide) -> str:
    gets = sum(request.method == "GET" and request.kind == "object" for request in source.requests())
    puts = sum(
        request.method == "PUT" and request.kind in ("object", "part") for request in destination.requests()
    )
    return f"requests that carried objects: {gets} GETs at the source, {puts} PUTs at the destination"


def _report(result: Comparison, seconds: float) -> None:
    click.echo(f"end to end: {format_rate(result.size_bytes / seconds)}, verified, durable, in the ledger")
    for difference in result.differences[:20]:
        click.echo(f"  {difference.kind}: {difference.key!r} ({difference.detail})")
    click.echo("the buckets are the same" if result.equal else f"{len(result.differences)} DIFFERENCES")
