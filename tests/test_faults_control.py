"""Rows K1 to K9 of `docs/FAULTS.md` against the daemon itself, where no test of the socket alone had them."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.appliance import Appliance, side, until
from tests.servers import Server


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory, moto: Server) -> Iterator[Appliance]:
    """A daemon with nothing to do; its folder may be entered by other users."""
    folder = tmp_path_factory.mktemp("k")
    with Appliance(folder, volumes=1) as appliance:
        appliance.configure(
            {
                "name": "a",
                "source": side(moto, moto.new_bucket()),
                "destination": side(moto, moto.new_bucket()),
            }
        )
        appliance.start()
        yield appliance


def connected(appliance: Appliance) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(30)
    client.connect(os.fspath(appliance.socket))
    return client


def test_k1_a_thousand_idle_and_hostile_clients_do_not_keep_the_next_status_waiting(
    appliance: Appliance,
) -> None:
    """Silent ones, half lines, deep JSON, endless lines, binary rubbish: all at once, and all held open."""
    rubbish = [
        b"",
        b'{"jsonrpc":',
        b"[" * 8000 + b"\n",
        b"\0" * 70_000,
        os.urandom(500) + b"\n",
        b"\n" * 5000,
    ]
    held = []
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            with contextlib.suppress(OSError):
                client = connected(appliance)
                held.append(stack.enter_context(contextlib.closing(client)))
                client.setblocking(False)
                client.send(rubbish[number % len(rubbish)])
            if number % 100 == 99:
                assert appliance.status()["daemon"]["state"] == "running"
        assert len(held) > 900
        assert appliance.status()["daemon"]["state"] == "running"
    assert appliance.events("client_failed") == []


def test_k6_another_user_may_neither_touch_nor_fill_the_log(appliance: Appliance) -> None:
    """Looking is for whoever may open the socket; a refusal is logged with its uid, and a hundred are not."""
    if os.geteuid() != 0:
        pytest.skip("needs root to be somebody else")
    program = (
        "import json, os, socket, sys\n"
        "sock = socket.socket(socket.AF_UNIX); sock.connect(sys.argv[1])\n"
        "lines = sock.makefile('rw')\n"
        "def ask(method, **params):\n"
        "    request = dict(jsonrpc='2.0', id=1, method=method, params=params)\n"
        "    print(json.dumps(request), file=lines, flush=True)\n"
        "    return json.loads(lines.readline())\n"
        "looked = ask('status')\n"
        "refused = [ask('job.pause', job='a') for _ in range(100)]\n"
        "print(json.dumps([list(looked), [one['error']['data']['code'] for one in refused]]))\n"
    )
    appliance.socket.chmod(0o666)
    for folder in (appliance.socket.parent, *appliance.folder.parents, appliance.folder):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o011)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", program, os.fspath(appliance.socket)],
        user=12345, group=12345, extra_groups=[], capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip

    assert done.stderr == ""
    looked, codes = json.loads(done.stdout)
    assert "result" in looked
    assert codes == ["not_permitted"] * 100
    assert appliance.status()["jobs"][0]["state"] != "paused"
    records = appliance.events("peer_refused")
    assert 1 <= len(records) <= 10
    assert {record["uid"] for record in records} == {12345}


def test_k8_what_many_ask_at_once_is_done_once_and_each_is_told(appliance: Appliance) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(appliance.ask("job.pause", job="a"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    results = [answer["jobs"][0]["result"] for answer in answers]
    assert len(results) == 8
    assert set(results) <= {"paused", "already_paused"}
    assert "paused" in results
    assert appliance.status()["jobs"][0]["state"] == "paused"
    assert appliance.ask("job.pause", job="a")["jobs"][0]["result"] == "already_paused"
    assert appliance.ask("job.resume", job="a")["jobs"][0]["result"] == "resumed"
    assert appliance.ask("job.resume", job="a")["jobs"][0]["result"] == "already_running"


def test_k9_descriptors_that_a_client_sends_stay_with_it(appliance: Appliance) -> None:
    """As many as one message may carry: none of them shows up in the daemon."""
    assert appliance.process is not None
    folder = Path(f"/proc/{appliance.process.pid}/fd")

    def mine() -> int:
        return sum(
            os.readlink(path) == str(appliance.config_path) for path in folder.iterdir() if path.is_symlink()
        )

    with connected(appliance) as client, appliance.config_path.open() as file:
        descriptors = array.array("i", [file.fileno()] * 200)
        line = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
        client.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
        assert b"pong" in client.recv(1000)
        with contextlib.suppress(FileNotFoundError):  # one that was closed while we looked
            assert mine() == 0
    until(appliance.running, "the daemon")
