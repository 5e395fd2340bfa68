"""End to end against the bare tool: one pass of the daemon, and `s5cmd run` of the same lines down, then up.

    python benchmarks/end_to_end.py [--rounds 3] [--large 2GiB] [--small 20000] [--mounts] [--preserve]

Both move the same bucket between the same two servers on this machine, in turn.  The
daemon's time holds everything it adds: the listing, every checksum, syncfs, the ledger, the check of the
destination.  s5cmd's holds nothing but the copying: it neither lists, verifies nor syncs.  Neither
carries headers, metadata and tags; with `--preserve` s5jtd does, which costs it a HEAD for each object.

With `--mounts` (as root) both write to file systems of their own, as they would on an appliance; without,
each syncfs of a volume also waits for what the servers have written to the same disk.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from s5jtd.engine.s5cmd import find_binary
from s5jtd.units import format_bytes, parse_size
from tests.appliance import Appliance, side
from tests.filesystems import loop_volume
from tests.servers import Server, go_program, running_rclone, running_versitygw

PRESERVE = ["content", "metadata", "tags"]


def running(folder: Path) -> contextlib.AbstractContextManager[Server]:
    """Versity's gateway where `make test-go` built it; else rclone, which hashes files at each question."""
    program = go_program("versitygw")
    return running_versitygw(folder, program) if program else running_rclone(folder)


def environment(server: Server) -> dict[str, str]:
    """What a bare s5cmd needs to know."""
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_REGION": "us-east-1",
        "PATH": os.defpath,
    }


def fill(server: Server, bucket: str, sizes: list[int], folder: Path) -> None:
    """Objects whose content differs, so that nothing can cheat."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for number, size in enumerate(sizes):
            with Path(name, f"object-{number:06}").open("wb") as file:
                file.writelines(os.urandom(min(1 << 24, size - start)) for start in range(0, size, 1 << 24))
        subprocess.run(
            [find_binary(), "--log", "error", "--endpoint-url", server.url, "cp", f"{name}/", f"s3://{bucket}/"],
            env=environment(server), check=True,
        )  # fmt: skip


@contextlib.contextmanager
def disks(folder: Path, size_bytes: int | None) -> Iterator[list[Path]]:
    """Two folders to stage in; with a size, file systems of their own that hold as much each."""
    with contextlib.ExitStack() as stack:
        paths = [folder / f"disk-{number}" for number in (1, 2)]
        if size_bytes is None:
            for path in paths:
                path.mkdir()
            yield paths
        else:
            yield [stack.enter_context(loop_volume(path, "ext4", size_bytes)).path for path in paths]


def bare(server: Server, destination: Server, here: str, there: str, sizes: list[int], disk: Path) -> float:
    """Seconds of `s5cmd run` down and then up, with its own defaults."""
    names = [f"object-{number:06}" for number in range(len(sizes))]
    data = disk / "data"
    data.mkdir()
    down = disk / "down"
    up = disk / "up"
    down.write_text("".join(f"cp --raw {shlex.quote(f's3://{here}/{n}')} {data}/{n}\n" for n in names))
    up.write_text("".join(f"cp --raw {data}/{n} {shlex.quote(f's3://{there}/{n}')}\n" for n in names))
    started = time.perf_counter()
    for url, lines in ((server.url, down), (destination.url, up)):
        subprocess.run(
            [find_binary(), "--log", "error", "--endpoint-url", url, "run", lines],
            env=environment(server), check=True,
        )  # fmt: skip
    return time.perf_counter() - started


def ours(
    server: Server,
    destination: Server,
    here: str,
    there: str,
    work: Path,
    volumes: list[Path],
    preserve: list[str],
) -> float:
    """Seconds of one pass of the daemon, from start to end of the process."""
    with Appliance(work) as appliance:
        appliance.volumes = volumes
        appliance.configure(
            {
                "name": "bench",
                "source": side(server, here),
                "destination": side(destination, there),
                "preserve": preserve,
            }
        )
        started = time.perf_counter()
        code = appliance.once()
        seconds = time.perf_counter() - started
    if code:
        raise SystemExit(f"the daemon ended with {code}: {appliance.log()[-2000:]}")
    return seconds


def measure(
    sizes: list[int], rounds: int, folder: Path, mount_bytes: int | None, preserve: list[str]
) -> tuple[list[float], list[float]]:
    """Seconds of both, by turns, so that a machine that slows down slows both."""
    results: tuple[list[float], list[float]] = ([], [])
    for name in ("source", "destination"):
        (folder / name).mkdir()
    with running(folder / "source") as source, running(folder / "destination") as destination:
        here = source.new_bucket()
        fill(source, here, sizes, folder)
        for number in range(rounds):
            runs: list[tuple[list[float], Callable[[str, Path, list[Path]], float]]] = [
                (results[0], lambda there, _, on: bare(source, destination, here, there, sizes, on[0])),
                (
                    results[1],
                    lambda there, work, on: ours(source, destination, here, there, work, on, preserve),
                ),
            ]
            for found, run in runs if number % 2 else runs[::-1]:
                there = destination.new_bucket()
                work = Path(tempfile.mkdtemp(dir=folder))
                with disks(work, mount_bytes) as volumes:
                    found.append(run(there, work, volumes))
                shutil.rmtree(work)
                shutil.rmtree(folder / "destination" / "data" / there, ignore_errors=True)
    return results


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", default="2GiB", help="in objects of 128 MiB")
    parser.add_argument("--small", type=int, default=20_000, help="objects of 16 KiB")
    parser.add_argument("--mounts", action="store_true", help="stage on file systems of their own (root)")
    parser.add_argument("--preserve", action="store_true", help="carry headers, metadata and tags")
    arguments = parser.parse_args()
    large = parse_size(arguments.large)
    cases = [("128 MiB", [128 << 20] * (large >> 27)), ("16 KiB", [16 << 10] * arguments.small)]
    print(f"{'objects':>8} {'of':>8} {'in all':>8}  {'s5cmd, s':>9} {'s5jtd, s':>9}  {'s5jtd / s5cmd':>13}")
    for name, sizes in cases:
        if not sizes:
            continue
        with tempfile.TemporaryDirectory(prefix="s5jtd-bench-") as folder:
            room = 2 * sum(sizes) + (8 << 30) if arguments.mounts else None
            theirs, mine = measure(
                sizes, arguments.rounds, Path(folder), room, PRESERVE if arguments.preserve else []
            )
        ratio = statistics.median(m / t for m, t in zip(mine, theirs, strict=True))
        print(
            f"{len(sizes):>8} {name:>8} {format_bytes(sum(sizes)):>8}  {statistics.median(theirs):>9.1f}"
            f" {statistics.median(mine):>9.1f}  {ratio:>13.2f}"
        )


if __name__ == "__main__":
    main()
