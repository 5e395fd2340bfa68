"""What a large object costs on the wire when the server is killed again and again: bytes sent, by its size.

    python benchmarks/broken_links.py [--size 1GiB] [--kills 10] [--mode staged] [--kill server|link|daemon]
    python benchmarks/broken_links.py --size 10GiB --every 60s --rate 240Mbit/s

Two servers (Versity's gateway, built by `make test-go`), each behind a proxy that counts.  Staged, the source
is killed so often while it gives and the destination while it takes; directly, where both happen at once,
source and destination in turn.  `link` cuts every connection instead, and `daemon` kills s5jtd.
With `--every` the link to both is cut whenever so much time has passed, until all has arrived.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.end_to_end import fill
from s5jtd.units import format_bytes, parse_duration, parse_size
from tests.appliance import Appliance, contents, side, until
from tests.chaos import Chaos
from tests.servers import Server, free_port, go_program, running_versitygw

AWAY_SECONDS = 1.0


class Mortal(contextlib.ExitStack):
    """A server that can be killed, and started again on what it left."""

    def __init__(self, folder: Path, program: Path) -> None:
        super().__init__()
        self._folder = folder
        self._program = program
        self.server = self.enter_context(running_versitygw(folder, program, free_port()))

    def kill(self) -> None:
        """Whatever it was about."""
        self.close()

    def start(self) -> None:
        """On the same port."""
        port = urlsplit(self.server.url).port or 0
        self.enter_context(running_versitygw(self._folder, self._program, port))


@dataclass
class Hop:
    """One server behind its proxy."""

    mortal: Mortal
    proxy: Chaos
    method: str  #: of the requests that carry the object

    def moved(self) -> int:
        """Bytes of the object that went over the wire."""
        log = self.proxy.log
        sent = [one.response_bytes if self.method == "GET" else one.request_bytes for one in log
                if one.method == self.method and one.key]  # fmt: skip
        return sum(sent)

    def cut(self) -> None:
        """End every connection for a while."""
        self.proxy.pause()
        time.sleep(AWAY_SECONDS)
        self.proxy.resume()

    def kill(self) -> None:
        """Kill the server, and start it again; nobody answers in between, the proxy neither."""
        self.proxy.pause()
        self.mortal.kill()
        time.sleep(AWAY_SECONDS)
        self.mortal.start()
        self.proxy.resume()

    @property
    def server(self) -> Server:
        """As the daemon reaches it."""
        return dataclasses.replace(self.mortal.server, url=self.proxy.url)


@contextlib.contextmanager
def hops(folder: Path) -> Iterator[list[Hop]]:
    """The source's and the destination's."""
    program = go_program("versitygw")
    if program is None:
        raise SystemExit("versitygw is not on this machine: make test-go")
    with contextlib.ExitStack() as stack:
        found = []
        for name, method in (("source", "GET"), ("destination", "PUT")):
            (folder / name).mkdir()
            mortal = stack.enter_context(Mortal(folder / name, program))
            proxy = stack.enter_context(Chaos(mortal.server.url))
            found.append(Hop(mortal, proxy, method))
        yield found


def main() -> None:
    """Move one object, kill, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=parse_size("1GiB"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--mode", choices=["staged", "direct"], default="staged")
    parser.add_argument("--kill", choices=["server", "link", "daemon"], default="server")
    parser.add_argument("--every", type=parse_duration, help="cut the link so often, not --kills times")
    parser.add_argument("--rate", help="the bandwidth limit of both directions, such as 240Mbit/s")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, hops(Path(name)) as (source, destination):
        here, there = source.mortal.server.new_bucket(), destination.mortal.server.new_bucket()
        fill(source.mortal.server, here, [given.size], Path(name))
        with Appliance(Path(name, "appliance"), volumes=1) as appliance:
            appliance.configure(
                {
                    "name": "large",
                    "source": side(source.server, here),
                    "destination": side(destination.server, there),
                    "mode": given.mode,
                    "preserve": [],
                    "evidence": {"otherwise": "accept"},
                },
                limits={"bandwidth": {"pull": given.rate, "push": given.rate}},
            )
            appliance.start()
            started = time.monotonic()

            def end(hop: Hop) -> Callable[[], None]:
                return {"server": hop.kill, "link": hop.cut, "daemon": lambda: restart(appliance)}[given.kill]

            with cut_each(given.every, [source, destination]) as cuts:
                if given.every is None:
                    for hop, goal in plan(source, destination, given.size, given.kills, given.mode):
                        until(lambda: hop.moved() >= goal, f"{format_bytes(goal)} of {hop.method}", 600)  # noqa: B023
                        end(hop)()
                print(appliance.settled(7200))
            seconds = time.monotonic() - started
            appliance.stop()
            records = [json.loads(line) for line in appliance.log().splitlines() if line.startswith("{")]
            told = Counter(one["event"] for one in records if one.get("level") == "warning")
            print(f"warnings: {dict(told)}")
        equal = contents(source.mortal.server, here) == contents(destination.mortal.server, there)
        ends = f"link cut {len(cuts)} times" if given.every else f"{given.kills} times {given.kill}"
        print(f"{format_bytes(given.size)} {given.mode}, {ends}: {seconds:.0f} s")
        for hop in (source, destination):
            print(f"  {hop.method}: {hop.moved() / given.size:.3f} times its size")
        print("  equal" if equal else "  DIFFERENT")


@contextlib.contextmanager
def cut_each(seconds: float | None, hops: list[Hop]) -> Iterator[list[float]]:
    """Cut the links whenever so much time has passed, until the block ends; yields when that was."""
    over = threading.Event()
    cuts: list[float] = []

    def work() -> None:
        while not over.wait(seconds):
            cuts.append(time.monotonic())
            for hop in hops:
                hop.cut()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield cuts
    finally:
        over.set()
        thread.join()


def plan(source: Hop, destination: Hop, size: int, kills: int, mode: str) -> list[tuple[Hop, int]]:
    """Whom to kill, and after how many bytes."""
    goals = [number * size // (kills + 1) for number in range(1, kills + 1)]
    if mode == "staged":
        return [(source, goal) for goal in goals] + [(destination, goal) for goal in goals]
    step = size // (2 * (kills + 1))
    return [pair for goal in goals for pair in ((source, goal), (destination, goal + step))]


def restart(appliance: Appliance) -> None:
    """Kill the daemon, and start it again."""
    appliance.stop(signal.SIGKILL)
    appliance.start()


if __name__ == "__main__":
    main()
