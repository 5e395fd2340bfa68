"""`s5jtctl status` beside a transfer, a ledger of 1,000,000 objects, two busy programs and 1,000 clients.

    python benchmarks/status_busy.py [--objects 1000000] [--clients 1000]

Each line adds to the ones before it.  The busy programs are niced, as a backup or an index would be; of the
clients a third says nothing, a third sends half a line, a third sends what is no request.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.status import filled
from s5jtd import log
from s5jtd.ledger.rows import FOREVER_MS
from tests.appliance import Appliance, side
from tests.servers import running_rclone

ANONYMOUS = {"anonymous": True}
#: As `benchmarks.status` enters it in the ledger; nobody is at home there.
PAUSED_JOB = {
    "name": "bench",
    "source": {"bucket": "source", "endpoints": ["http://127.0.0.1:9"], "credentials": ANONYMOUS},
    "destination": {"bucket": "destination", "endpoints": ["http://127.0.0.1:9"], "credentials": ANONYMOUS},
}
#: The transfer that goes on meanwhile.
OBJECTS, SIZE_BYTES = 400, 4 << 20
_HOSTILE = (b"", b'{"jsonrpc":', b"\x00 GET / HTTP/1.1\r\n\r\n")


def asked(path: Path, times: int = 15) -> str:
    """Median and worst of the command as a process."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        command = [sys.executable, "-m", "s5jtctl", "--socket", os.fspath(path), "status"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    return f"{statistics.median(seconds) * 1000:>10.0f} {max(seconds) * 1000:>10.0f}"


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Two programs that would have a core each."""
    programs = [subprocess.Popen(["nice", sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def clients(path: Path, count: int, stack: contextlib.ExitStack) -> int:
    """Connect and misbehave; how many were let in."""
    for number in range(count):
        client = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.connect(os.fspath(path))
            client.send(_HOSTILE[number % len(_HOSTILE)])
    return count


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=1000)
    given = parser.parse_args()
    log.configure("warning")
    with tempfile.TemporaryDirectory(prefix="s5jtd-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(running_rclone(folder))
        here, there = server.new_bucket(), server.new_bucket()
        server.fill(here, {b"%04d" % number: os.urandom(SIZE_BYTES) for number in range(OBJECTS)})
        appliance = stack.enter_context(Appliance(folder / "appliance"))
        (folder / "appliance" / "state").mkdir(exist_ok=True)
        ledger, job = filled(folder / "appliance" / "state", given.objects)
        ledger.pause(job.id, pull=True, push=True, until_ms=FOREVER_MS)
        ledger.close()
        live = {"name": "live", "source": side(server, here), "destination": side(server, there)}
        appliance.configure(live, PAUSED_JOB)
        print(f"{'status as a process, ms':<32} {'median':>10} {'worst':>10}")
        appliance.start()
        print(f"{'beside a transfer':<32} {asked(appliance.socket)}", flush=True)
        stack.enter_context(busy())
        print(f"{'and two busy programs':<32} {asked(appliance.socket)}", flush=True)
        count = clients(appliance.socket, given.clients, stack)
        print(f"{f'and {count} clients':<32} {asked(appliance.socket)}", flush=True)
        for one in appliance.status()["jobs"]:
            print(f"  {one['name']}: {one['state']}, {one['objects']}, {one['rates']}")


if __name__ == "__main__":
    main()
