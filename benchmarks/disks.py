"""What a slow disk costs beside a fast one: real file systems whose devices the kernel holds back.

    sudo python benchmarks/disks.py [--fast 80] [--slow 8] [--mib 1200]

Two ext4 on loop devices, one held to `--fast` MiB/s and one to `--slow`, take in the same bucket: the fast
one alone, then both, then two fast ones.  Shown are the time until all of it is staged (proven and durable),
the rate, and each volume's share.  Pushing rests meanwhile.  It needs root, loop devices and the control
group of block devices in its first version.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.appliance import Appliance, side, until
from tests.filesystems import loop_volume
from tests.servers import Server, running_rclone

MIB = 1 << 20


def measure(server: Server, folder: Path, speeds: list[int], total_bytes: int) -> float:
    """Seconds until everything is staged on volumes of these speeds, in MiB/s."""
    with (
        loop_volume(folder / "one", size_bytes=2 * total_bytes) as one,
        loop_volume(folder / "two", size_bytes=2 * total_bytes) as two,
        Appliance(folder / "appliance") as appliance,
    ):
        two.unmount()
        two.path = two.path.rename(two.path.with_name("other"))  # volumes are called by their folders
        two.mount()
        disks = [one, two][: len(speeds)]
        for disk, speed in zip(disks, speeds, strict=True):
            disk.slow_down(speed * MIB)
        try:
            appliance.volumes = [disk.path for disk in disks]
            appliance.configure(
                {
                    "name": "job", "source": side(server, "here"), "destination": side(server, "there"),
                    "preserve": [],
                },
            )  # fmt: skip
            appliance.start()
            appliance.ask("job.pause", job="job", side="destination")
            started = time.monotonic()

            def arrived() -> int:
                sizes = appliance.status()["jobs"][0]["bytes"]
                return sizes["staged"] + sizes["pushing"] + sizes["delivered"]

            until(lambda: arrived() >= total_bytes, "all of it", 3600)
            seconds = time.monotonic() - started
            shares: Counter[str] = Counter()
            for event in appliance.events("chunk_staged"):
                shares[event["volume"]] += event["bytes"]
        finally:
            for disk in disks:
                disk.slow_down(0)
            appliance.stop()
        told = ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in sorted(shares.items()))
        rate = total_bytes / MIB / seconds
        print(
            f"{' and '.join(map(str, speeds))} MiB/s: {seconds:.1f} s, {rate:.1f} MiB/s; {told}", flush=True
        )
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--fast", type=int, default=80)
    parser.add_argument("--slow", type=int, default=8)
    parser.add_argument("--mib", type=int, default=1200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_rclone(Path(name)) as server:
        for bucket in ("here", "there"):
            Path(name, "data", bucket).mkdir()
        count = options.mib // 8
        for number in range(count):
            Path(name, "data", "here", f"object-{number:05}").write_bytes(os.urandom(8 * MIB))
        runs: dict[tuple[int, ...], float] = {}
        for speeds in ([options.fast], [options.fast, options.slow], [options.fast, options.fast]):
            folder = Path(name, "-".join(map(str, speeds)) + "-" + str(len(runs)))
            runs[tuple(speeds)] = measure(server, folder, speeds, count * 8 * MIB)
        alone, both = runs[(options.fast,)], runs[(options.fast, options.slow)]
        print(f"with the slow one beside it: {alone / both:.2f} times as fast as the fast one alone")


if __name__ == "__main__":
    main()
