"""Another network for tests: a namespace behind a cable, with addresses of its own and a small MTU.

It needs root and `ip`; where they are missing a test is skipped with the reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

_CLONE_NEWNET = 0x40000000
#: The smallest that IPv6 allows; tunnels and SD-WANs come close to it.
MTU = 1280


@dataclass(frozen=True)
class Network:
    """One cable: our end has two addresses, the other end one, and its own network."""

    interface: str  #: ours
    ours: tuple[str, str]
    theirs: str
    _process: int  #: whose network it is

    def listen(self) -> socket.socket:
        """A listening socket over there, which any thread here may use."""
        made: list[socket.socket] = []

        def make() -> None:  # a thread can move to another network and leave the others where they are
            fd = os.open(f"/proc/{self._process}/ns/net", os.O_RDONLY)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
                made.append(socket.create_server((self.theirs, 0)))
            finally:
                os.close(fd)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]


@contextlib.contextmanager
def another_network() -> Iterator[Network]:
    """A namespace at the other end of a cable, gone at the end of the block."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("a network of its own needs root, ip and unshare")
    number = os.getpid() % 200 + 20
    name, net = f"s5jt{os.getpid()}"[:13], f"10.213.{number}"
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; exec sleep 600"], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()  # it is in its network now
        inside = ["nsenter", "--net", "--target", str(holder.pid)]
        try:
            _run(
                "ip", "link", "add", name, "mtu", str(MTU),
                "type", "veth", "peer", "name", "far", "mtu", str(MTU), "netns", str(holder.pid),
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no cable can be laid here: {error.stderr}")
        for address in (f"{net}.1", f"{net}.2"):
            _run("ip", "address", "add", f"{address}/24", "dev", name)
        _run("ip", "link", "set", name, "up")
        _run(*inside, "ip", "address", "add", f"{net}.9/24", "dev", "far")
        _run(*inside, "ip", "link", "set", "far", "up")
        yield Network(name, (f"{net}.1", f"{net}.2"), f"{net}.9", holder.pid)
    finally:
        holder.kill()  # its end of the cable goes with it, and so does ours
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
