"""What a rescan of unchanged objects costs: listing, comparison with the ledger, and nothing written.

    python -m benchmarks.rescan [--objects 1000000]

The pages come from a process of their own that made them before.  The first look fills the ledger; the
second is measured, in a process of its own: CPU seconds and peak memory are the whole process's.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.listing import BUCKET, PAGE, serve
from s5jtd import log
from s5jtd.config import JobConfig
from s5jtd.engine.s5cmd import S5cmd
from s5jtd.jobs import build_job
from s5jtd.ledger.store import Ledger
from s5jtd.problems import Problems
from s5jtd.stages.scan import Scan
from s5jtd.worker import Bell


def look(url: str, folder: Path, result: Connection) -> None:
    """One look at the source; tells objects, fresh ones, CPU seconds of the look, peak MB of the process."""
    log.configure("warning")
    anonymous = {"anonymous": True}
    config = JobConfig.model_validate(
        {
            "name": "bench",
            "source": {"bucket": BUCKET, "endpoints": [url], "credentials": anonymous},
            "destination": {
                "bucket": "nowhere",
                "endpoints": ["http://127.0.0.1:9"],
                "credentials": anonymous,
            },
            "skip_existing": "never",
        }
    )
    ledger = Ledger(folder / "ledger.db")
    job = build_job(config, ledger, folder)
    with ThreadPoolExecutor(4) as asking:
        scan = Scan(job, ledger, S5cmd(), asking, Problems(), Bell())
        before = time.process_time()
        scan.step(lambda: None)
        seconds = time.process_time() - before
    last = ledger.views.last_pass(job.id)
    ledger.close()
    if last is None or not last.complete:
        raise SystemExit(f"the look was not complete: {last}")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result.send((last.listed, last.fresh, seconds, peak_mb))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=1_000_000)
    pages = max(1, parser.parse_args().objects // PAGE)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(pages, there), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    print(f"{'look':>7}  {'objects':>9}  {'fresh':>9}  {'CPU us per object':>17}  {'peak MB':>8}")
    with tempfile.TemporaryDirectory(prefix="s5jtd-bench-") as folder:
        for name in ("first", "second"):
            mine, theirs = context.Pipe()
            process = context.Process(target=look, args=(url, Path(folder), theirs))
            process.start()
            theirs.close()  # so that its death ends the wait
            listed, fresh, seconds, peak_mb = mine.recv()
            process.join()
            print(f"{name:>7}  {listed:>9}  {fresh:>9}  {seconds / listed * 1e6:>17.2f}  {peak_mb:>8.0f}")
    server.terminate()


if __name__ == "__main__":
    main()
