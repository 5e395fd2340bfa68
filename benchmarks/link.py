"""What the daemon makes of a line, watched from the server's side of it.

    python benchmarks/link.py limit [--direction pull] [--objects small] [--rates 30Mbit/s 5Mbit/s]
    python benchmarks/link.py dead
    python benchmarks/link.py far

`limit`: it moves a bucket under the first rate, which is changed to the next one while it runs; shown is the
least and the most that any window of ten seconds carried, as a share of the rate.  `dead`: a source with
three endpoints, each of its own narrow line; one dies and comes back, one becomes slow and quick again;
shown are the throughput and each one's share.  `far`: the same line near, and far with losses; shown is how
full it is.

The lines are relays of ours in front of the servers: so many bytes per second for all connections
together, each byte so late, so many bytes under way in one connection, and now and then, as after a loss, a
pause of two round trips.  What they note is what travels: their buffers are small.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from s5jtd.units import parse_rate, parse_size
from tests.appliance import Appliance, side, until
from tests.servers import Server, running_rclone

WINDOW_SECONDS = 10.0
SETTLE_SECONDS = 2.0
SIZES = {"large": [8 << 20] * 24, "small": [48 << 10] * 3000}
MIB = 1 << 20
PIECE_BYTES = 16 << 10


class Line:
    """A relay in front of a server that is as narrow, far and lossy as it is told."""

    def __init__(
        self, url: str, *, rate: float = 1e12, delay: float = 0.0, window: int = 1 << 30, loss: float = 0.0
    ) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname, parts.port
        self.rate, self.delay, self.window, self.loss = rate, delay, window, loss
        self.up: list[tuple[float, int]] = []
        self.down: list[tuple[float, int]] = []
        self.is_dead = False
        self.open = self.made = 0  # connections
        self._free_at = {"up": 0.0, "down": 0.0}
        self._luck = random.Random(7)
        self._listener = socket.socket()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._listener.setsockopt(socket.SOL_SOCKET, option, PIECE_BYTES)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(512)
        self._listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=lambda: asyncio.run(self._accept()), daemon=True).start()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        tasks = set()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            tasks.add(task := loop.create_task(self._serve(client)))
            task.add_done_callback(tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with client, socket.socket() as server, contextlib.suppress(OSError):
            for one in (client, server):
                one.setblocking(False)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.is_dead:
                return
            self.made += 1
            self.open += 1
            try:
                await asyncio.sleep(2 * self.delay)  # the handshake: only then can anything be asked
                await loop.sock_connect(server, self._target)
                await self._ways(client, server)
            finally:
                self.open -= 1

    async def _ways(self, client: socket.socket, server: socket.socket) -> None:
        await asyncio.gather(self._way(client, server, "up"), self._way(server, client, "down"))

    async def _way(self, source: socket.socket, target: socket.socket, name: str) -> None:
        """One direction of one connection: what is read is on its way, and arrives in order."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        room = _Window(max(1, self.window // PIECE_BYTES))
        arriving = loop.create_task(self._arrive(under_way, target, name, room))
        with contextlib.suppress(OSError):
            while not arriving.done():
                await room.acquire()
                data = await loop.sock_recv(source, PIECE_BYTES)
                if self.is_dead:
                    break
                begin = max(loop.time(), self._free_at[name])
                self._free_at[name] = begin + len(data) / self.rate
                late = 4 * self.delay if self._luck.random() < self.loss else 0.0
                under_way.put_nowait((begin + len(data) / self.rate + self.delay + late, data))
                if not data:
                    break
                await asyncio.sleep(max(0.0, begin - loop.time()))
            else:
                return
            if not self.is_dead:
                await arriving
        arriving.cancel()
        for one in (source, target):
            if self.is_dead:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    async def _arrive(
        self, under_way: asyncio.Queue[tuple[float, bytes]], target: socket.socket, name: str, room: _Window
    ) -> None:
        loop = asyncio.get_running_loop()
        noted = self.up if name == "up" else self.down
        with contextlib.suppress(OSError):
            while True:
                at, data = await under_way.get()
                await asyncio.sleep(max(0.0, at - loop.time()))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                await loop.sock_sendall(target, data)
                noted.append((time.monotonic(), len(data)))
                loop.call_later(self.delay, room.acknowledge)  # that is on the way back first


class _Window(asyncio.Semaphore):
    """How many pieces may be under way: a connection begins with one, each that arrives lets two follow."""

    def __init__(self, most: int) -> None:
        super().__init__(1)
        self._size, self._most = 1, most

    def acknowledge(self) -> None:
        self.release()
        if self._size < self._most:
            self._size += 1
            self.release()


def between(passed: Sequence[tuple[float, int]], begin: float, end: float) -> int:
    """Bytes that passed."""
    return sum(count for at, count in passed if begin <= at < end)


def windows(
    passed: Sequence[tuple[float, int]], begin: float, end: float, rate: float
) -> tuple[float, float]:
    """The least and the most of all windows, as shares of the rate."""
    shares = []
    at = begin
    while at + WINDOW_SECONDS <= end:
        shares.append(between(passed, at, at + WINDOW_SECONDS) / WINDOW_SECONDS / rate)
        at += 0.25
    return min(shares), max(shares)


@contextlib.contextmanager
def scene(sizes: Sequence[int]) -> Iterator[tuple[Server, Appliance]]:
    """A server with a filled bucket `here` and an empty one `there`, and an appliance."""
    with tempfile.TemporaryDirectory() as name, running_rclone(Path(name)) as server:
        here, there = (Path(name, "data", bucket) for bucket in ("here", "there"))
        here.mkdir()
        there.mkdir()
        for number, size in enumerate(sizes):
            Path(here, f"object-{number:05}").write_bytes(os.urandom(size))
        with Appliance(Path(name, "appliance")) as appliance:
            yield server, appliance


def limit(options: argparse.Namespace) -> None:
    with scene(SIZES[options.objects]) as (server, appliance):
        line = Line(server.url)
        passed = line.up if options.direction == "push" else line.down
        urls = {way: line.url if way == options.direction else server.url for way in ("pull", "push")}
        appliance.configure(
            {
                "name": "job", "engine": options.engine,
                "source": side(server, "here", url=urls["pull"]),
                "destination": side(server, "there", url=urls["push"]),
            },
            limits={"bandwidth": {options.direction: options.rates[0]}},
        )  # fmt: skip
        appliance.start()
        until(lambda: between(passed, 0, time.monotonic()) > 300_000, seconds=120)
        for number, text in enumerate(options.rates):
            rate = parse_rate(text)
            if number:
                appliance.ask(
                    "bandwidth.set", direction=options.direction, limit_bytes_per_second=round(rate)
                )
            begin = time.monotonic() + SETTLE_SECONDS
            time.sleep(options.seconds + SETTLE_SECONDS)
            now = time.monotonic()
            least, most = windows(passed, begin, now, rate)
            if options.seconds_shown:
                first = begin - SETTLE_SECONDS
                print(
                    *(
                        round(between(passed, first + n, first + n + 1) / rate, 2)
                        for n in range(int(now - first))
                    )
                )
            chosen = dict(appliance.status()["jobs"][0]["concurrency"])[options.direction]
            print(
                f"{options.direction} {options.objects} {text}: {least:.2f} to {most:.2f}"
                f" in windows of {WINDOW_SECONDS:.0f} s; {chosen}"
            )
        print(appliance.counted(), [problem["message"] for problem in appliance.status()["problems"]])


def dead(options: argparse.Namespace) -> None:
    each = 1.5 * MIB
    with scene([MIB] * 1400) as (server, appliance):
        lines = [Line(server.url, rate=each) for _ in range(3)]
        source = side(server, "here", endpoints=[line.url for line in lines])
        appliance.configure(
            {
                "name": "job", "source": source, "destination": side(server, "there"),
                "chunk": {"bytes": "8MiB"}, "preserve": [],
            },
        )  # fmt: skip
        appliance.start()
        until(lambda: appliance.counted().get("delivered"), seconds=120)

        def show(what: str, wait: float) -> float:
            time.sleep(wait)
            begin = time.monotonic()
            time.sleep(options.seconds)
            now = time.monotonic()
            moved = [between(line.down, begin, now) / (now - begin) for line in lines]
            shares = ", ".join(f"{one / MIB:.2f}" for one in moved)
            print(f"{what}: {sum(moved) / MIB:.2f} MiB/s of {shares}", flush=True)
            return sum(moved)

        two = three = show("three endpoints", 5)
        lines[0].is_dead = True
        two = show("the first one dead", 10)
        print(f"two of three: {two / three:.2f} of the throughput (0.67 is the lines' own)")
        lines[0].is_dead = False
        appliance.ask("endpoint.check")
        show("back again", 5)
        lines[1].rate = each / 10
        show("the second one at a tenth", 20)
        lines[1].rate = each
        begin = time.monotonic()
        until(
            lambda: between(lines[1].down, time.monotonic() - 15, time.monotonic()) > 15 * each / 2,
            seconds=300,
        )
        show(f"quick again; its share is back after {time.monotonic() - begin:.0f} s", 5)
        print(appliance.counted(), [problem["message"] for problem in appliance.status()["problems"]])


def far(options: argparse.Namespace) -> None:
    """Objects of each size, in a run of its own for each size and line."""
    rate = 40e6 / 8
    ways = {
        "near": {},
        "600 ms, 1 % of pieces late": {"delay": 0.3, "window": 64 << 10, "loss": 0.01},
    }
    for size in options.sizes:
        for name, how in ways.items():
            if options.only and options.only not in name:
                continue
            with scene([size] * max(12, (600 << 20) // size)) as (server, appliance):
                line = Line(server.url, rate=rate, **how)  # type: ignore[arg-type]
                urls = {way: line.url if way == options.direction else server.url for way in ("pull", "push")}
                passed = line.up if options.direction == "push" else line.down
                appliance.configure(
                    {
                        "name": "job", "source": side(server, "here", url=urls["pull"]),
                        "destination": side(server, "there", url=urls["push"], part_size=options.part_size),
                    },
                )  # fmt: skip
                appliance.start()
                until(lambda: between(passed, 0, time.monotonic()) > 1_000_000, seconds=120)  # noqa: B023
                time.sleep(15)
                begin = time.monotonic()
                at = begin
                while at < begin + options.seconds:
                    time.sleep(2)
                    then, at = at, time.monotonic()
                    if options.seconds_shown:
                        full = between(passed, then, at) / (at - then) / rate
                        print(f"{at - begin:4.0f} s: {full:.2f} full, {line.open} of {line.made} open")
                full = between(passed, begin, at) / (at - begin) / rate
                chosen = dict(appliance.status()["jobs"][0]["concurrency"])[options.direction]
                print(f"{options.direction} {size >> 10} KiB, {name}: {full:.2f} full; {chosen}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    modes = {"limit": limit, "dead": dead, "far": far}
    parser.add_argument("mode", choices=tuple(modes))
    parser.add_argument("--direction", choices=("pull", "push"), default="pull")
    parser.add_argument("--objects", choices=tuple(SIZES), default="large")
    parser.add_argument("--rates", nargs="+", default=["30Mbit/s", "5Mbit/s"])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--engine", default="s5cmd")
    parser.add_argument("--seconds-shown", action="store_true", help="of limit: the share of each second")
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=[256 << 10, 8 << 20, 64 << 20])
    parser.add_argument("--part-size", default="auto", help="of far: destination.part_size")
    parser.add_argument("--only", help="of far: near or late")
    options = parser.parse_args()
    modes[options.mode](options)


if __name__ == "__main__":
    main()
