"""The daemon's life as the service manager and a terminal see it."""

from __future__ import annotations

import itertools
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from s5jtd import daemon
from tests.appliance import WAIT_SECONDS, Appliance, side, some_objects, until
from tests.servers import Server


class Manager:
    """As much of systemd as a service talks to."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        self.said: list[str] = []

    def heard(self, words: str) -> bool:
        """Whether the service ever said this, at the beginning of a line."""
        while True:
            try:
                self.said += self._socket.recv(65536).decode().splitlines()
            except BlockingIOError:
                return any(line.startswith(words) for line in self.said)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    yield manager
    manager.close()


@pytest.fixture
def appliance(tmp_path: Path, moto: Server) -> Iterator[Appliance]:
    with Appliance(tmp_path / "a") as appliance:
        here = moto.new_bucket()
        moto.fill(here, some_objects(5))
        appliance.configure(
            {"name": "archive", "source": side(moto, here), "destination": side(moto, moto.new_bucket())}
        )
        yield appliance


def test_the_service_manager_hears_of_each_step_of_the_life(appliance: Appliance, manager: Manager) -> None:
    appliance.start()
    until(lambda: manager.heard("READY=1"), "READY")
    until(lambda: manager.heard("WATCHDOG=1"), "the watchdog's food")
    until(lambda: manager.heard("STATUS=archive: "), "a line for `systemctl status`")

    manager.said.clear()
    assert appliance.process is not None
    appliance.process.send_signal(signal.SIGHUP)
    until(lambda: manager.heard("RELOADING=1"), "RELOADING")
    until(lambda: manager.heard("READY=1"), "READY after the reload")
    assert manager.heard("MONOTONIC_USEC=")

    assert appliance.stop() == 0
    assert manager.heard("STOPPING=1")


def test_nobody_is_told_that_it_is_ready_before_the_socket_answers(
    appliance: Appliance, manager: Manager
) -> None:
    appliance.start("run", wait=False)
    until(lambda: manager.heard("READY=1"), "READY")

    assert appliance.status()["daemon"]["state"] == "running"


def test_a_start_that_moves_is_given_more_time_and_one_that_is_stuck_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading a large ledger through may take longer than any limit; a dead disk may not."""
    moving = itertools.count()
    monkeypatch.setattr(daemon, "START_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(daemon, "_work_done", lambda: float(next(moving)))
    said: list[str] = []

    def tell(message: str) -> None:
        said.append(message)

    with daemon.starting(tell):
        until(lambda: said, "a word to the service manager")
    assert said[0].startswith("EXTEND_TIMEOUT_USEC=120000000\n")

    looks: list[float] = []

    def nothing_done() -> float:
        looks.append(0.0)
        return 0.0

    monkeypatch.setattr(daemon, "_work_done", nothing_done)
    said.clear()
    with daemon.starting(tell):
        until(lambda: len(looks) > 3, "a few looks")
    assert not said


def test_an_abort_leaves_where_each_thread_was_in_a_file_and_the_next_life_says_so(
    appliance: Appliance,
) -> None:
    """What systemd's watchdog sends.

    faulthandler reads the frames of threads that may be running, and can fault over it; those of a daemon
    with nothing to do, as of one that is stuck, stand still.
    """
    appliance.start()
    appliance.settled()
    assert appliance.process is not None
    appliance.process.send_signal(signal.SIGABRT)

    assert appliance.process.wait(WAIT_SECONDS) in (-signal.SIGABRT, -signal.SIGSEGV)
    assert "Fatal Python error" not in appliance.log()

    appliance.start()
    (told,) = until(lambda: appliance.events("daemon_was_aborted"), "what the next life says of it")
    kept = Path(told["file"])
    assert "Fatal Python error: Aborted" in kept.read_text()
    assert "worker.py" in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_second_ctrl_c_ends_it_at_once(appliance: Appliance) -> None:
    appliance.start()
    assert appliance.process is not None
    appliance.process.send_signal(signal.SIGINT)
    until(lambda: appliance.events("daemon_stopping"), "the orderly end's beginning")
    if appliance.process.poll() is None:
        appliance.process.send_signal(signal.SIGINT)

    assert appliance.process.wait(WAIT_SECONDS) in (0, -signal.SIGINT)


def test_a_second_ctrl_c_at_the_very_end_is_not_an_error_either() -> None:
    """When the handlers are given back, it must not become a KeyboardInterrupt and with it exit code 1."""
    before = signal.getsignal(signal.SIGINT)
    try:
        with daemon.signals_into(inbox := daemon.Inbox()):
            signal.raise_signal(signal.SIGINT)
        assert inbox.get_nowait() == daemon.Stop("SIGINT", 128 + signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_pass_that_was_interrupted_says_by_which_signal(tmp_path: Path, moto: Server) -> None:
    here = moto.new_bucket()
    moto.fill(here, some_objects(5))
    dead = side(moto, "nowhere", url="http://127.0.0.1:9")
    with Appliance(tmp_path) as appliance:
        appliance.configure({"name": "archive", "source": side(moto, here), "destination": dead})
        appliance.start("run", "--once", wait=False)
        until(lambda: appliance.events("chunk_staged"), "the pull half")

        assert appliance.stop(signal.SIGTERM) == 128 + signal.SIGTERM
