"""`s5jtctl status` beside a ledger of 1,000,000 objects, a transfer, busy programs and 1,000 clients.

    python benchmarks/status_busy.py [--objects 1000000] [--clients 1000] [--times 60] [--only WORDS]

Each line is its own situation.  The busy programs are as important to the machine as the daemon is.  Of the
clients a third says nothing, a third sends half a line, a third sends what is no request, and each comes back
when it is hung up on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
#: The transfer: so many large objects, and among them so many small ones after each.
LARGE, LARGE_BYTES, SMALL, SMALL_BYTES = 400, 8 << 20, 250, 16 << 10
_HOSTILE = (b"", b'{"jsonrpc":', b"\x00 GET / HTTP/1.1\r\n\r\n")
_COME_AND_GO = """
import os, selectors, socket, sys, time
path, count, hostile = sys.argv[1], int(sys.argv[2]), {hostile!r}
waiting = selectors.DefaultSelector()
def come(number):
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    try:
        client.connect(path)
        client.send(hostile[number % len(hostile)])
    except OSError:
        client.close()
        return
    waiting.register(client, selectors.EVENT_READ, number)
for number in range(count):
    come(number)
print("here", flush=True)
while True:
    for key, _ in waiting.select(1):
        client = key.fileobj
        try:
            gone = not client.recv(65536)
        except OSError:
            gone = True
        if gone:
            waiting.unregister(client)
            client.close()
            time.sleep(0.02)
            come(key.data)
"""


def timed(command: Sequence[str], times: int) -> str:
    """Median, 95th of a hundred and worst of a command as a process, and what of it is its own work; ms."""
    seconds, worked = [], []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append((time.perf_counter() - started) * 1000)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        worked.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
        time.sleep(0.1)
    seconds.sort()
    return (
        f"{statistics.median(seconds):>8.0f} {seconds[int(len(seconds) * 0.95)]:>8.0f} {seconds[-1]:>8.0f}"
        f" {statistics.median(worked):>8.0f}"
    )


def answered(appliance: Appliance, times: int) -> str:
    """The same of the daemon's answer alone."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        appliance.status()
        seconds.append((time.perf_counter() - started) * 1000)
        time.sleep(0.1)
    seconds.sort()
    return f"{statistics.median(seconds):>8.1f} {seconds[-1]:>8.1f}"


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Programs that would have a core each."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


@contextlib.contextmanager
def clients(path: Path, count: int) -> Iterator[None]:
    """Connect, misbehave, and come back when thrown out."""
    code = _COME_AND_GO.format(hostile=_HOSTILE)
    program = subprocess.Popen(
        [sys.executable, "-c", code, os.fspath(path), str(count)], stdout=subprocess.PIPE
    )
    try:
        assert program.stdout is not None
        program.stdout.readline()
        yield
    finally:
        program.kill()
        program.wait()


def bucket_of_mixed_objects(data: Path, bucket: str) -> None:
    """As files of the server, a large object after each few hundred small ones."""
    large, small = os.urandom(LARGE_BYTES), os.urandom(SMALL_BYTES)
    for group in range(LARGE):
        folder = data / bucket / f"{group:04d}"
        folder.mkdir()
        (folder / "large").write_bytes(large)
        for number in range(SMALL):
            (folder / f"small-{number:04d}").write_bytes(small)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--times", type=int, default=60)
    parser.add_argument("--only", default="", help="lines with these words")
    parser.add_argument("--program", help="an installed s5jtctl; default: this one by `python -m`")
    given = parser.parse_args()
    client = [given.program] if given.program else [sys.executable, "-m", "s5jtctl"]
    log.configure("warning")
    with tempfile.TemporaryDirectory(prefix="s5jtd-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(running_rclone(folder))
        here, there = server.new_bucket(), server.new_bucket()
        bucket_of_mixed_objects(folder / "data", here)
        appliance = stack.enter_context(Appliance(folder / "appliance"))
        (folder / "appliance" / "state").mkdir(exist_ok=True)
        ledger, job = filled(folder / "appliance" / "state", given.objects)
        ledger.pause(job.id, pull=True, push=True, until_ms=FOREVER_MS)
        ledger.close()
        live = {"name": "live", "source": side(server, here), "destination": side(server, there)}
        appliance.configure(live, PAUSED_JOB)
        appliance.start()
        heads = ("median", "95%", "worst", "CPU") * 2 + ("daemon's", "worst")
        print(f"{'ms: status, an empty Python, the answer':<44} {' '.join(f'{head:>8}' for head in heads)}")

        def line(title: str, *around: contextlib.AbstractContextManager[None]) -> None:
            if given.only and given.only not in title:
                return
            with contextlib.ExitStack() as situation:
                for each in around:
                    situation.enter_context(each)
                time.sleep(1)
                figures = timed([*client, "--socket", os.fspath(appliance.socket), "status"], given.times)
                empty = timed([sys.executable, "-c", ""], given.times)
                print(f"{title:<44} {figures} {empty} {answered(appliance, given.times)}", flush=True)

        def crowd() -> contextlib.AbstractContextManager[None]:
            return clients(appliance.socket, given.clients)

        appliance.ask("job.pause", job="live", now=True)
        line("quiet")
        line("2 busy programs", busy(2))
        line("4 busy programs", busy(4))
        line(f"{given.clients} clients", crowd())
        appliance.ask("job.resume", job="live")
        line("a transfer")
        line("a transfer, 2 busy programs", busy(2))
        line("a transfer, 4 busy programs", busy(4))
        line(f"a transfer, {given.clients} clients", crowd())
        line(f"a transfer, 2 busy programs, {given.clients} clients", busy(2), crowd())
        for one in appliance.status()["jobs"]:
            print(f"  {one['name']}: {one['state']}, {one['objects']}, {one['rates']}")


if __name__ == "__main__":
    main()
