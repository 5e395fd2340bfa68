"""A limit of bandwidth, watched from the server's side of the line: its share in every window of ten seconds.

    python benchmarks/link.py [--direction pull] [--objects small] [--rates 30Mbit/s 5Mbit/s]

The daemon moves a bucket under the first rate, which is changed to the next one while it runs.  A relay of
ours stands where the server does and notes when how many bytes of the direction pass; its buffers are
small, so that what it notes is what travels.  Shown for each rate: the least and the most that any
window of ten seconds carried, as a share of the rate, from two seconds after it began to hold.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from s5jtd.units import parse_rate
from tests.appliance import Appliance, side, until
from tests.servers import running_rclone

WINDOW_SECONDS = 10.0
SETTLE_SECONDS = 2.0
SIZES = {"large": [8 << 20] * 24, "small": [48 << 10] * 3000}


class Watched:
    """A relay in front of a server that notes what passes in one direction."""

    def __init__(self, url: str, *, up: bool) -> None:
        parts = urlsplit(url)
        self._target = parts.hostname, parts.port
        self._up = up
        self.passed: list[tuple[float, int]] = []
        self._listener = socket.socket()
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._listener.setsockopt(socket.SOL_SOCKET, option, 16 << 10)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(256)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def bytes_between(self, begin: float, end: float) -> int:
        return sum(count for at, count in self.passed if begin <= at < end)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            for source, target, counts in ((client, server, self._up), (server, client, not self._up)):
                threading.Thread(target=self._pump, args=(source, target, counts), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        try:
            while data := source.recv(16 << 10):
                target.sendall(data)
                if counts:
                    self.passed.append((time.monotonic(), len(data)))
        except OSError:
            pass
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def windows(watched: Watched, begin: float, end: float, rate: float) -> tuple[float, float]:
    """The least and the most of all windows, as shares of the rate."""
    shares = []
    at = begin
    while at + WINDOW_SECONDS <= end:
        shares.append(watched.bytes_between(at, at + WINDOW_SECONDS) / WINDOW_SECONDS / rate)
        at += 0.25
    return min(shares), max(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--direction", choices=("pull", "push"), default="pull")
    parser.add_argument("--objects", choices=tuple(SIZES), default="large")
    parser.add_argument("--rates", nargs="+", default=["30Mbit/s", "5Mbit/s"])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--engine", default="s5cmd")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_rclone(Path(name)) as server:
        here, there = (Path(name, "data", bucket) for bucket in ("here", "there"))
        here.mkdir()
        there.mkdir()
        for number, size in enumerate(SIZES[options.objects]):
            Path(here, f"object-{number:05}").write_bytes(os.urandom(size))
        watched = Watched(server.url, up=options.direction == "push")
        urls = {way: watched.url if way == options.direction else server.url for way in ("pull", "push")}
        with Appliance(Path(name, "appliance")) as appliance:
            appliance.configure(
                {
                    "name": "job", "engine": options.engine,
                    "source": side(server, "here", url=urls["pull"]),
                    "destination": side(server, "there", url=urls["push"]),
                },
                limits={"bandwidth": {options.direction: options.rates[0]}},
            )  # fmt: skip
            appliance.start()
            until(lambda: watched.bytes_between(0, time.monotonic()) > 300_000, seconds=120)
            for number, text in enumerate(options.rates):
                rate = parse_rate(text)
                if number:
                    appliance.ask(
                        "bandwidth.set", direction=options.direction, limit_bytes_per_second=round(rate)
                    )
                begin = time.monotonic() + SETTLE_SECONDS
                time.sleep(options.seconds + SETTLE_SECONDS)
                least, most = windows(watched, begin, time.monotonic(), rate)
                chosen = dict(appliance.status()["jobs"][0]["concurrency"])[options.direction]
                print(
                    f"{options.direction} {options.objects} {text}: {least:.2f} to {most:.2f}"
                    f" in windows of {WINDOW_SECONDS:.0f} s; {chosen}"
                )
            print(appliance.counted(), [p["message"] for p in appliance.status()["problems"]])
            appliance.stop()


if __name__ == "__main__":
    main()
