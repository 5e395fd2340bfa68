"""Measures what the one pass over the bytes costs: `python -m benchmarks.hashing [FOLDER]`.

The files are in the page cache, as they are when a chunk was just pulled.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s5jtd.integrity.hashing import Wanted, hash_file

MIB = 1 << 20
SMALL_BYTES, SMALL_FILES = 16 * 1024, 2000
LARGE_BYTES = 256 * MIB
ROUNDS = 5

WANTED = {
    "crc64nvme": Wanted(),
    "+ md5": Wanted(md5=True),
    "+ md5 + sha256": Wanted(md5=True, sha256=True),
    "+ etag of 8 MiB parts": Wanted(part_sizes=frozenset({8 * MIB})),
    "+ etags of 8 and 64 MiB parts": Wanted(part_sizes=frozenset({8 * MIB, 64 * MIB})),
}


def fastest_seconds(work: Callable[[], object]) -> float:
    """The best of a few rounds: what disturbs a measurement only ever slows it down."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        rounds.append(time.perf_counter() - began)
    return min(rounds)


def measure(folder_fd: int, small: list[str], large: str, wanted: Wanted) -> tuple[float, float, float]:
    """Microseconds for a small file, and bytes per second of a large one with one thread and with two."""

    def hash_small() -> None:
        for name in small:
            hash_file(folder_fd, name, wanted)

    def hash_large_twice() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: hash_file(folder_fd, name, wanted), (large, large)))

    return (
        fastest_seconds(hash_small) / len(small) * 1e6,
        LARGE_BYTES / fastest_seconds(lambda: hash_file(folder_fd, large, wanted)),
        2 * LARGE_BYTES / fastest_seconds(hash_large_twice),
    )


def main(parent: Path | None) -> None:
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        small = [f"{number:x}.obj" for number in range(SMALL_FILES)]
        for name in small:
            Path(folder, name).write_bytes(os.urandom(SMALL_BYTES))
        Path(folder, "large.obj").write_bytes(os.urandom(LARGE_BYTES))
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            print(f"{'wanted':32}{'us per 16 KiB file':>20}{'GB/s, 1 thread':>16}{'GB/s, 2 threads':>17}")
            for name, wanted in WANTED.items():
                small_us, one, two = measure(folder_fd, small, "large.obj", wanted)
                print(f"{name:32}{small_us:20.1f}{one / 1e9:16.2f}{two / 1e9:17.2f}")
        finally:
            os.close(folder_fd)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
