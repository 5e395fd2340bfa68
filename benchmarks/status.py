"""What `status` costs on a ledger of 10 and of 1,000,000 objects, inside the daemon and as a process.

python benchmarks/status.py [--objects 1000000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from s5jtd import log, shapes
from s5jtd.config import JobConfig
from s5jtd.control import requests
from s5jtd.control.server import ControlServer
from s5jtd.control.verbs import verbs
from s5jtd.jobs import build_job
from s5jtd.ledger.store import Ledger
from s5jtd.link.tuning import Tuner
from s5jtd.meter import Meter
from s5jtd.model import Listed
from s5jtd.pool import Pool
from s5jtd.problems import Problems
from s5jtd.stages.job import Job
from s5jtd.status import StatusDesk

PAGE = 5000


ANONYMOUS = {"anonymous": True}
CONFIG = JobConfig.model_validate(
    {
        "name": "bench",
        "source": {"bucket": "source", "endpoints": ["http://127.0.0.1:9"], "credentials": ANONYMOUS},
        "destination": {
            "bucket": "destination",
            "endpoints": ["http://127.0.0.1:9"],
            "credentials": ANONYMOUS,
        },
    }
)


class _Controls:
    """The daemon's own answer to `status`, without the rest of the daemon."""

    def __init__(self, desk: StatusDesk, job: Job) -> None:
        self._desk, self._job = desk, job

    def status(self, request: requests.Status) -> shapes.Status:
        return self._desk.status([self._job])


def filled(folder: Path, objects: int) -> tuple[Ledger, Job]:
    """A ledger with so many objects that are seen."""
    ledger = Ledger(folder / "ledger.db")
    job = build_job(CONFIG, ledger, folder)
    pass_id = ledger.begin_pass(job.id)
    for start in range(0, objects, PAGE):
        page = [
            Listed(b"missions/%09d.dat" % n, 16384, "0123456789abcdef0123456789abcdef", 1)
            for n in range(start, min(start + PAGE, objects))
        ]
        ledger.admit(job.id, pass_id, page, {}, {})
    ledger.end_pass(pass_id, listed=objects, error=None)
    return ledger, job


def measure(objects: int) -> tuple[float, float]:
    """Milliseconds of the median call, and of the median `s5jtctl status` as a process."""
    with tempfile.TemporaryDirectory(prefix="s5jtd-bench-") as name:
        folder = Path(name)
        ledger, job = filled(folder, objects)
        problems = Problems()
        desk = StatusDesk(ledger, Pool([], ledger, problems), Meter(), Tuner(), problems, "-")
        calls = []
        for _ in range(200):
            started = time.perf_counter()
            desk.status([job])
            calls.append(time.perf_counter() - started)
        processes = []
        path = folder / "control.sock"
        with ControlServer(path, verbs(_Controls(desk, job))):
            for _ in range(15):
                started = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-m", "s5jtctl", "--socket", os.fspath(path), "status"],
                    check=True, stdout=subprocess.DEVNULL,
                )  # fmt: skip
                processes.append(time.perf_counter() - started)
        ledger.close()
    return statistics.median(calls) * 1000, statistics.median(processes) * 1000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000)
    sizes = (10, parser.parse_args().objects)
    log.configure("warning")
    print(f"{'objects':>10}  {'status, ms':>10}  {'s5jtctl status as a process, ms':>32}")
    for size in sizes:
        call, process = measure(size)
        print(f"{size:>10}  {call:>10.2f}  {process:>32.0f}")


if __name__ == "__main__":
    main()
