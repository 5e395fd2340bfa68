"""`s5jtd run --once --job J` as what cron calls: a summary, exit codes, nobody else's work touched."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s5jtd.errors import Exit
from tests.appliance import WAIT_SECONDS, Appliance, contents, digests, side
from tests.servers import Server


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    with Appliance(tmp_path, volumes=1) as appliance:
        yield appliance


def job(name: str, server: Server, here: str, there: str) -> dict[str, Any]:
    return {"name": name, "source": side(server, here), "destination": side(server, there)}


def test_one_job_is_run_and_its_summary_is_json(appliance: Appliance, moto: Server) -> None:
    here, there, elsewhere = moto.new_bucket(), moto.new_bucket(), moto.new_bucket()
    objects = {b"a": b"1", b"b": b"22"}
    moto.fill(here, objects)
    appliance.configure(job("one", moto, here, there), job("two", moto, here, elsewhere))

    ended = appliance.command("run", "--once", "--job", "one", "--json")

    assert ended.returncode == Exit.DONE, ended.stderr
    summary = json.loads(ended.stdout)
    [told] = summary["jobs"]
    assert summary["exit_code"] == 0
    assert tuple(
        told[key] for key in ("name", "status", "files_synced", "bytes_transferred", "parked", "left")
    ) == ("one", "success", 2, 3, 0, 0)
    [report] = told["reports"]
    assert (appliance.folder / "state" / "reports" / f"{report}.json").exists()
    assert digests(objects) == contents(moto, there)
    assert contents(moto, elsewhere) == {}

    again = appliance.command("run", "--once", "--job", "one")

    assert again.returncode == Exit.DONE, again.stderr
    assert again.stdout.startswith("job one: success, 0 objects, 0B in ")
    assert "; 2 skipped, 0 gone, 0 parked, 0 left\n" in again.stdout


def test_an_object_that_cannot_travel_shows_in_the_exit_code_and_in_the_summary(
    appliance: Appliance, moto: Server
) -> None:
    here = moto.new_bucket()
    moto.fill(here, {b"good": b"1", b"bad": b"22"})
    appliance.configure(job("one", moto, here, moto.new_bucket()), limits={"largest_object": 1})

    ended = appliance.command("run", "--once", "--json")

    assert ended.returncode == Exit.OBJECTS_FAILED, ended.stderr
    [told] = json.loads(ended.stdout)["jobs"]
    assert (told["status"], told["files_synced"], told["parked"]) == ("partial", 1, 1)


def test_a_run_beside_another_says_busy_and_does_nothing(appliance: Appliance, moto: Server) -> None:
    appliance.configure(job("one", moto, moto.new_bucket(), moto.new_bucket()))
    appliance.start()

    ended = appliance.command("run", "--once", "--json")

    assert ended.returncode == Exit.BUSY
    assert ended.stdout == ""


def test_a_terminal_gets_colour_and_times_and_a_file_gets_none(appliance: Appliance, moto: Server) -> None:
    appliance.configure(job("one", moto, moto.new_bucket(), moto.new_bucket()))
    command = [sys.executable, "-m", "s5jtd", "--config", str(appliance.config_path), "run", "--once"]
    environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
    controller, terminal = pty.openpty()
    running = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(controller, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(controller)

    assert running.wait(WAIT_SECONDS) == Exit.DONE, shown
    assert b"\x1b[" in shown
    assert b"scan_finished" in shown
    assert b"job one: success, 0 objects" in shown
