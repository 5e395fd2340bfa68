"""s5jtctl as people run it: a process of its own against a real server on a real socket."""

from __future__ import annotations

import fcntl
import grp
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s5jtctl.client import Daemon, Failure
from s5jtctl.quick import understood
from s5jtd import protocol
from s5jtd.control import requests
from s5jtd.control.server import ControlServer
from s5jtd.control.verbs import Verb, verbs
from s5jtd.model import Direction, Side
from tests.appliance import WAIT_SECONDS, until
from tests.fake_controls import FakeControls, per_state

PROJECT = Path(__file__).parent.parent
NOBODY_ID = 65534


@pytest.fixture
def controls() -> FakeControls:
    return FakeControls()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def server(path: Path, controls: FakeControls) -> Iterator[ControlServer]:
    with ControlServer(path, verbs(controls)) as server:
        yield server


def environment(**changes: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "LANG": "C.UTF-8", **changes}


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(path: Path) -> Run:
    def run(*argv: str | bytes, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "s5jtctl", *argv],
            capture_output=True, text=True, timeout=150, check=False, stdin=subprocess.DEVNULL,
            env=environment(**{"S5JTD_SOCKET": str(path)} | changes),
        )  # fmt: skip

    return run


def loaded_by(program: str) -> set[str]:
    """What is loaded when this has run; without what a site adds to Python, which may load anything."""
    lines = f"import sys; sys.path[:0] = {sys.path!r}; {program}; print('LOADED', *sys.modules)"
    shown = subprocess.check_output([sys.executable, "-IS", "-c", lines], text=True)
    return set(shown.partition("LOADED ")[2].split())


def test_the_client_stays_thin():
    """Of the daemon it loads nothing but the protocol; and to ask for `status`, hardly anything."""
    all_of_it = loaded_by("import s5jtctl.commands, s5jtctl.watch, s5jtctl.live")
    status = loaded_by("import s5jtctl.__main__")

    heavy = {"sqlite3", "boto3", "botocore", "pydantic", "structlog", "yaml", "asyncio", "ssl", "awscrt"}
    assert not heavy & all_of_it
    assert {name for name in all_of_it if name.partition(".")[0] == "s5jtd"} == {
        "s5jtd", "s5jtd.protocol", "s5jtd.shapes",
    }  # fmt: skip
    assert "s5jtd.protocol" in status
    assert (
        not {
            "click",
            "s5jtd.shapes",
            "typing",
            "inspect",
            "dataclasses",
            "pathlib",
            "subprocess",
            "unicodedata",
        }
        & status
    )


@pytest.mark.parametrize(
    "command",
    [
        "status", "status archive-to-cloud", "status --json", "--json status archive-to-cloud",
        "status --check", "status --check --json", "status nowhere", "status --json nowhere",
        "status --socket nowhere/control.sock",
    ],
)  # fmt: skip
def test_the_quick_way_to_status_says_what_the_long_way_says(command, server, run):
    quick, long = run(*command.split()), run(*command.split(), "--timeout", "10s")

    assert understood(command.split()) is not None
    assert (quick.returncode, quick.stdout, quick.stderr) == (long.returncode, long.stdout, long.stderr)


@pytest.mark.parametrize(
    "command",
    [
        "", "ping", "status --watch", "status --help", "status a b", "status --jso", "--check status",
        "status --socket", "--socket status", "status -- a", "status --socket=x", "-h status",
        "objects status",
    ],
)  # fmt: skip
def test_whatever_is_not_plainly_status_goes_the_long_way(command):
    assert understood(command.split()) is None


def test_status_feels_instant(server, run):
    """By the processor's time: what a busy machine adds to it is not ours."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    took = []
    for _ in range(5):
        started = spent()
        assert run("status").returncode == 0
        took.append(spent() - started)

    assert min(took) < 0.25


# What every command does.


EVERY = [
    ("status", "running  archive-to-cloud"),
    ("status archive-to-cloud", "running  archive-to-cloud"),
    ("status --check", "s5jtd OK - 1 job, 15 objects to go"),
    ("pause archive-to-cloud --side source --for 2h --now", "archive-to-cloud: paused"),
    ("pause --all", "archive-to-cloud: paused"),
    ("resume --all", "archive-to-cloud: already running"),
    ("scan archive-to-cloud", "archive-to-cloud: scan started, pass 7"),
    ("scan archive-to-cloud --wait", "archive-to-cloud: scanned, pass 7: 1,234 objects, 12 must travel"),
    ("resync archive-to-cloud", "archive-to-cloud: resync started"),
    ("objects archive-to-cloud --prefix a/", "a/2"),
    ("explain archive-to-cloud a/1", "2026-01-31T11:00:00Z  delivered  (etag equal)"),
    ("retry archive-to-cloud", "2 will travel again"),
    ("volumes", "online  vol1"),
    ("volumes list", "online  vol1"),
    ("volumes drain vol1", "vol1: draining, state draining, 3.00 MiB staged"),
    ("volumes activate vol1", "vol1: already active, state online, - staged"),
    ("endpoints", "http://10.20.1.20:8080"),
    ("endpoints list archive-to-cloud", "http://10.20.1.20:8080"),
    ("endpoints check", "http://10.20.1.20:8080"),
    ("bandwidth", "5.96 MiB/s"),
    ("bandwidth show", "5.96 MiB/s"),
    ("bandwidth set 50Mbit/s", "5.96 MiB/s"),
    ("bandwidth clear --direction push", "5.96 MiB/s"),
    ("reports", "1769860000"),
    ("reports list --limit 5", "1769860000"),
    ("reports show 1769860000", "duration_seconds       61.5 (1m 1s)"),
    ("reports latest --objects", "EVIDENCE      SIZE  TOOK  DELIVERED             KEY"),
    ("events", "2026-01-31T11:00:03Z  archive-to-cloud  pass_ended  number 3"),
    ("reload", "not before a restart: state_dir"),
    ("ping", "pong"),
    ("version", "s5jtctl 0.1.0\ns5jtd 0.1.0"),
]


@pytest.mark.parametrize(("command", "shown"), EVERY, ids=[command for command, _ in EVERY])
def test_every_command_answers_in_text_and_in_json(command, shown, server, run):
    said = run(*command.split())
    as_json = run(*command.split(), "--json")

    assert (said.returncode, said.stderr) == (0, "")
    assert shown in said.stdout
    assert not re.search("[^\n -~]", said.stdout)
    assert (as_json.returncode, as_json.stderr) == (0, "")
    documents = as_json.stdout.splitlines() if command == "events" else [as_json.stdout]
    assert all(isinstance(json.loads(document), dict) for document in documents)


def test_what_was_typed_is_what_is_asked(server, run, controls):
    for command in (
        "pause archive-to-cloud --side source --for 2h --now",
        "pause --all",
        "bandwidth set 50Mbit/s --direction push",
        "bandwidth set unlimited",
        "bandwidth clear",
        "retry archive-to-cloud",
        "retry archive-to-cloud --key a/1",
        "objects archive-to-cloud --state parked --prefix a/ --limit 7",
    ):
        assert run(*command.split()).returncode == 0

    assert controls.asked == [
        requests.JobPause(job="archive-to-cloud", side=Side.SOURCE, for_seconds=7200, now=True),
        requests.JobPause(all=True),
        requests.BandwidthSet(limit_bytes_per_second=6_250_000, direction=Direction.PUSH),
        requests.BandwidthSet(limit_bytes_per_second="unlimited"),
        requests.BandwidthSet(limit_bytes_per_second="configured"),
        requests.ObjectRetry(job="archive-to-cloud", parked=True),
        requests.ObjectRetry(job="archive-to-cloud", key="a/1"),
        requests.ObjectList(job="archive-to-cloud", state="parked", prefix="a/", limit=7),
    ]


def test_json_is_the_answer_itself(server, run, controls):
    assert json.loads(run("status", "--json").stdout) == controls.state
    assert json.loads(run("version", "--json").stdout) == {
        "s5jtctl": "0.1.0", "s5jtd": "0.1.0", "protocol": 1,
    }  # fmt: skip


def test_options_may_stand_before_or_after_the_command(server, run, path):
    for argv in (
        ["--socket", str(path), "ping"],
        ["ping", "--socket", str(path)],
        ["volumes", "list", "--socket", str(path)],
    ):
        assert run(*argv, S5JTD_SOCKET="/nowhere").returncode == 0
    assert json.loads(run("--json", "ping").stdout) == {"result": "pong"}


def test_more_objects_than_one_answer_holds_are_fetched_page_by_page(server, run, controls):
    controls.keys = [f"{at:05}" for at in range(2500)]

    all_of_them = run("objects", "archive-to-cloud", "--limit", "5000")
    some = run("objects", "archive-to-cloud", "--limit", "1200")
    as_json = json.loads(run("objects", "archive-to-cloud", "--limit", "1200", "--json").stdout)

    assert [line.split()[-1] for line in all_of_them.stdout.splitlines()[1:]] == controls.keys
    assert all_of_them.stderr == ""
    assert len(some.stdout.splitlines()) == 1201
    assert some.stderr == "there are more than these 1200; see them with --limit\n"
    assert ([row["key"] for row in as_json["objects"]], as_json["next"]) == (controls.keys[:1200], "1200")


@pytest.mark.parametrize("typed", [b"b/raw\xff", r"b/raw\xff", "b/\x1b[31mred", r"b/\x1b[31mred"])
def test_a_key_is_found_as_it_is_and_as_it_was_shown(typed, server, run):
    said = run("explain", "archive-to-cloud", typed)

    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.splitlines()[0] in (r"b/raw\xff", r"b/\x1b[31mred")


def test_resync_says_by_its_exit_code_that_something_differs(server, run):
    assert run("resync", "archive-to-cloud", "--wait", "--dry-run").returncode == 11


def test_a_check_of_endpoints_says_by_its_exit_code_that_one_is_down(server, run, controls):
    controls.state["endpoints"][0]["state"] = "down"

    assert run("endpoints", "check").returncode == 5
    assert run("endpoints", "list").returncode == 0


# Errors.


def assert_two_lines(said: subprocess.CompletedProcess[str], code: int, what: str, hint: str) -> None:
    assert said.returncode == code
    first, second = said.stderr.splitlines()
    assert re.fullmatch(f"s5jtctl: .*{what}.*", first)
    assert re.fullmatch(f"hint: .*{hint}.*", second)


def test_without_a_daemon_it_says_how_to_look_for_one(run, path):
    assert_two_lines(run("status"), 3, f"not running: nothing listens on {path}", "systemctl status s5jtd")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))
    assert_two_lines(run("status"), 3, "not running", "systemctl status s5jtd")


def test_an_error_in_json_is_on_stdout_too(server, run):
    said = run("status", "no-such-job", "--json")

    assert_two_lines(said, 2, "there is no job 'no-such-job'", "the jobs are: archive-to-cloud")
    assert json.loads(said.stdout) == {
        "error": {
            "code": "usage",
            "message": "Cannot do that: there is no job 'no-such-job'",
            "hint": "the jobs are: archive-to-cloud",
        }
    }


@pytest.mark.parametrize(
    ("command", "what", "hint"),
    [
        ("", "Missing command", "s5jtctl --help"),
        ("frobnicate", "No such command", "s5jtctl --help"),
        ("status --frobnicate", "No such option", "s5jtctl status --help"),
        ("status --watch --check", "cannot be combined", "s5jtctl status --help"),
        ("pause", "either a job or --all", "s5jtctl pause --help"),
        ("pause x --all", "either a job or --all", "s5jtctl pause --help"),
        ("pause x --for 7", "write it like 30s", "s5jtctl pause --help"),
        ("pause x --side middle", "middle", "s5jtctl pause --help"),
        ("bandwidth set 50", "write it with its unit", "s5jtctl bandwidth set --help"),
        ("events --since yesterday", "is no time", "s5jtctl events --help"),
        ("retry x --key k --parked", "cannot be combined", "s5jtctl retry --help"),
        ("objects x --limit 0", "0", "s5jtctl objects --help"),
        ("ping --timeout nan", "more than 0 seconds", "s5jtctl ping --help"),
        ("ping --timeout soon", "write it like 30s", "s5jtctl ping --help"),
    ],
)
def test_wrong_usage_is_two_lines_and_2(command, what, hint, run):
    assert_two_lines(run(*command.split()), 2, what, hint)


def test_a_path_that_can_be_no_socket_is_wrong_usage(run):
    assert_two_lines(run("ping", "--socket", "x" * 200), 2, "cannot connect", "--socket")


def test_an_object_nobody_knows_cannot_forge_an_error(server, run):
    said = run("explain", "archive-to-cloud", "x\x1b[2J\nhint: rm -rf /")

    assert said.returncode == 2
    assert len(said.stderr.splitlines()) == 2
    assert "\x1b" not in said.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_a_user_who_may_not_is_told_what_would_help(controls):
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or os.path.realpath(sys.executable)
    folder = Path(tempfile.mkdtemp(prefix="s5jt"))
    folder.chmod(0o755)
    path = folder / "control.sock"
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from s5jtctl.client import Daemon, Failure\n"
        "for method in sys.argv[3:]:\n"
        "    try: print(Daemon(sys.argv[2], 10).ask(method))\n"
        "    except Failure as failure: print(int(failure.exit_code), failure.code, failure.hint)\n"
    )
    # A copy, because nobody may read where the project lies.
    shutil.copytree(PROJECT / "s5jtctl", folder / "s5jtctl")
    (folder / "s5jtd").mkdir()
    shutil.copy(PROJECT / "s5jtd" / "protocol.py", folder / "s5jtd")
    (folder / "s5jtd" / "__init__.py").touch()

    def ask(*methods: str) -> list[str]:
        return subprocess.check_output(
            [python, "-I", "-B", "-c", program, folder, path, *methods],
            user=NOBODY_ID, group=NOBODY_ID, extra_groups=[], cwd="/", text=True, timeout=150,
        ).splitlines()  # fmt: skip

    try:
        with ControlServer(path, verbs(controls), group="no-such-group"):
            outside = ask("ping")
        with ControlServer(path, verbs(controls), group=grp.getgrgid(NOBODY_ID).gr_name):
            inside = ask("ping", "config.reload")
    finally:
        shutil.rmtree(folder)

    assert outside == [
        "4 not_permitted use sudo, or as root: usermod -aG s5jt nobody, then log in again",
    ]
    assert inside == [
        "{'result': 'pong'}",
        "4 not_permitted use root, or as root: usermod -aG s5jt-operators nobody",
    ]


# Daemons that do not do what they should.


@pytest.fixture
def rude_daemon(path: Path) -> Iterator[Callable[[bytes | None], None]]:
    """Accepts one client, reads its line and sends what it is told; for None, nothing, with an open end."""
    with ExitStack() as stack:

        def listen(reply: bytes | None) -> None:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(os.fspath(path))
            listener.listen()

            def serve() -> None:
                client, _ = listener.accept()
                stack.callback(client.close)
                client.recv(65536)
                if reply is not None:
                    with suppress(BrokenPipeError):  # it need not listen to the end
                        client.sendall(reply)
                    client.shutdown(socket.SHUT_RDWR)

            threading.Thread(target=serve, daemon=True).start()

        yield listen


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (None, (5, "did not answer within 0.2 seconds", "--timeout")),
        (b"", (5, "closed the connection", "try again")),
        (b'{"jsonrpc":"2.0","id":1,', (5, "closed the connection", "try again")),
        (b"hello\n", (1, "cannot be understood: not JSON", "s5jtctl version")),
        (b"[]\n", (1, "cannot be understood", "s5jtctl version")),
        (b"{}\n", (1, "neither a result nor an error", "s5jtctl version")),
        (b'{"error":{"message":"x"}}\n', (1, "an error without its code", "s5jtctl version")),
        (b'{"error":7}\n', (1, "an error without its code", "s5jtctl version")),
        (b'{"result":{"jobs":[]}}\n', (1, "cannot be shown: KeyError", "s5jtctl version")),
        (b'{"result":7}\n', (1, "neither a result nor an error", "s5jtctl version")),
        (b"x" * (protocol.LINE_BYTES_MAX + 300_000), (1, "longer than 1 MiB", "s5jtctl version")),
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error_of_two_lines(reply, error, rude_daemon, run):
    rude_daemon(reply)

    assert_two_lines(run("status", "--timeout", "0.2"), *error)


def test_an_overloaded_daemon_is_a_reason_to_try_again(rude_daemon, run):
    rude_daemon(
        b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"full",'
        b'"data":{"code":"overloaded","hint":"try again in a moment","exit":5}}}\n'
    )

    assert_two_lines(run("status"), 5, "full", "try again in a moment")


def test_a_daemon_that_accepts_nobody_is_waited_for_no_longer_than_asked(path):
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        listener.bind(os.fspath(path))
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(os.fspath(path))
        started = time.monotonic()

        with pytest.raises(Failure, match="accepts no connections") as caught:
            Daemon(os.fspath(path), 0.2).ask("ping")

        assert caught.value.exit_code == 5
        assert 0.1 < time.monotonic() - started < 20


def test_after_an_error_the_next_question_is_asked_anew(server, path):
    with closing(Daemon(os.fspath(path), 10)) as daemon:
        with pytest.raises(Failure):
            daemon.ask("nonsense")

        assert daemon.ask("ping") == {"result": "pong"}


# Monitoring.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, (0, "s5jtd OK - 1 job, 15 objects to go\n")),
        ({"state": "paused"}, (1, "s5jtd WARNING - job archive-to-cloud is paused\n")),
        ({"state": "failed", "reason": "x"}, (2, "s5jtd CRITICAL - job archive-to-cloud is failed: x\n")),
        ({"objects": per_state(parked=1)}, (1, "s5jtd WARNING - 1 parked in archive-to-cloud\n")),
    ],
)
def test_monitoring_gets_one_line_and_its_own_exit_codes(change, said, server, run, controls):
    job: Any = controls.state["jobs"][0]
    job.update(change)

    check = run("status", "--check")

    assert (check.returncode, check.stdout, check.stderr) == (*said, "")


def test_for_monitoring_a_dead_daemon_is_critical_and_a_wrong_question_unknown(run, server, path):
    assert run("status", "--check", "--socket", f"{path}.none").returncode == 2
    unknown = run("status", "no-such-job", "--check", "--json")

    assert (unknown.returncode, json.loads(unknown.stdout)["level"], unknown.stderr) == (3, "UNKNOWN", "")


# Following.


class Started:
    """A process whose lines are read as they come."""

    def __init__(self, path: Path, *argv: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "s5jtctl", *argv],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
            env=environment(S5JTD_SOCKET=str(path)),
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 20)[0]
        return self.process.stdout.readline()

    def end(self, number: int | None = None) -> tuple[int, str]:
        if number is not None:
            self.process.send_signal(number)
        _, said = self.process.communicate(timeout=WAIT_SECONDS)
        return self.process.returncode, said


def test_events_are_followed_until_the_daemon_ends_and_the_way_on_is_told(path, controls):
    with ControlServer(path, verbs(controls)):
        started = Started(path, "events", "--follow", "--since", "2")
        assert started.line() == "2026-01-31T11:00:03Z  archive-to-cloud  pass_ended  number 3\n"
        controls.happen()
        assert started.line() == "2026-01-31T11:00:04Z  archive-to-cloud  pass_ended  number 4\n"

    code, said = started.end()
    assert (code, said.splitlines()) == (
        5,
        [
            "s5jtctl: the events ended: the daemon is stopping",
            "hint: go on with: s5jtctl events --follow --since 4",
        ],
    )


def test_following_without_since_tells_only_what_is_new(server, path, controls):
    started = Started(path, "events", "--follow", "--json")
    assert controls.subscribed.wait(WAIT_SECONDS)
    controls.happen()

    assert json.loads(started.line())["id"] == 4
    assert started.end(signal.SIGINT)[0] == 130


def test_status_is_followed_line_by_line_where_there_is_no_terminal(server, path):
    started = Started(path, "status", "--watch")

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ s5jtd OK - 1 job, 15 objects to go\n", started.line()
    )
    assert started.end(signal.SIGTERM)[0] == -signal.SIGTERM


def test_a_reader_that_stops_reading_sees_no_traceback(server, path, controls):
    controls.keys = ["k" * 500] * 3000
    started = Started(path, "objects", "archive-to-cloud", "--limit", "3000")
    started.line()
    assert started.process.stdout is not None
    assert started.process.stderr is not None
    started.process.stdout.close()

    with started.process.stderr as stderr:
        assert stderr.read() == ""
    assert started.process.wait(WAIT_SECONDS) == 1


def test_an_error_nobody_reads_is_no_traceback_either(path):
    read_fd, write_fd = os.pipe()
    os.close(read_fd)

    said = subprocess.run(
        [sys.executable, "-m", "s5jtctl", "status", "--json"], stdout=write_fd, stderr=subprocess.PIPE,
        text=True, env=environment(S5JTD_SOCKET=str(path)), timeout=150, check=False,
    )  # fmt: skip
    os.close(write_fd)

    assert (said.returncode, said.stderr) == (1, "")


# The live screen.


class Terminal:
    """A terminal of which we know what it shows."""

    def __init__(self, path: Path, *argv: str, rows: int = 24, columns: int = 80, **changes: str) -> None:
        self.fd, self._child_fd = pty.openpty()
        self._size(rows, columns)
        self.attributes = termios.tcgetattr(self._child_fd)
        self.received = ""
        self.rows: dict[int, str] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "s5jtctl", *argv],
            stdin=self._child_fd, stdout=self._child_fd, stderr=self._child_fd, start_new_session=True,
            env=environment(**{"S5JTD_SOCKET": str(path), "TERM": "xterm"} | changes),
        )  # fmt: skip

    def _size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, rows: int, columns: int) -> None:
        """As a terminal emulator does; the signal goes to the session the process leads."""
        self._size(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def read(self, seconds: float = 0.05) -> str:
        """Take what has come and put it on the screen."""
        piece = ""
        while select.select([self.fd], [], [], seconds)[0]:
            piece += os.read(self.fd, 65536).decode()
        self.received += piece
        if "\x1b[2J" in piece:
            self.rows.clear()
            piece = piece.rpartition("\x1b[2J")[2]
        for row, text in re.findall(
            r"\x1b\[(\d+);1H\x1b\[K(.*?)(?=\x1b\[\d+;1H|\x1b\[\?|$)", piece, re.DOTALL
        ):
            self.rows[int(row)] = text
        return piece

    def shows(self, text: str) -> None:
        deadline = time.monotonic() + 20
        while not any(text in row for row in self.rows.values()):
            assert time.monotonic() < deadline, self.received
            self.read()

    def end(self, keys: bytes = b"", number: int | None = None) -> int:
        os.write(self.fd, keys)
        if number is not None:
            self.process.send_signal(number)
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.received
            self.read()
        self.read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.fd)
        os.close(self._child_fd)

    def is_as_it_was(self) -> bool:
        return self.received.rstrip().endswith("\x1b[?7h\x1b[?25h\x1b[?1049l") and (
            termios.tcgetattr(self._child_fd) == self.attributes
        )


@pytest.fixture
def terminal(path: Path) -> Iterator[Callable[..., Terminal]]:
    with ExitStack() as stack:
        yield lambda *argv, **options: stack.enter_context(closing(Terminal(path, *argv, **options)))


def test_the_live_screen_shows_status_and_leaves_the_terminal_as_it_was(server, terminal, controls):
    live = terminal("status", "--watch")
    live.shows("q quits")

    assert live.received.startswith("\x1b[?1049h")
    assert live.rows[4] == "\x1b[32mrunning\x1b[0m  archive-to-cloud  pull 6.00 MiB/s  push -  ETA -"
    controls.state["jobs"][0]["state"] = "blocked"
    live.shows("blocked")
    assert live.end(b"q") == 0
    assert live.is_as_it_was()


def test_over_a_slow_link_only_what_changed_is_sent(server, terminal, controls):
    live = terminal("status", "--watch", NO_COLOR="1")
    live.shows("q quits")
    first = live.rows[24]
    controls.state["jobs"][0]["eta_seconds"] = 60
    sent = ""
    deadline = time.monotonic() + 20
    while live.rows[24] == first:
        assert time.monotonic() < deadline
        sent += live.read()

    assert re.fullmatch(
        r"\x1b\[4;1H\x1b\[Krunning  archive-to-cloud  pull 6.00 MiB/s  push -  ETA 1m"
        r"\x1b\[24;1H\x1b\[K[0-9:]{8}Z; q quits",
        sent,
    )


def test_a_resize_is_followed_and_what_does_not_fit_is_counted(server, terminal):
    live = terminal("status", "--watch")
    live.shows("q quits")

    live.resize(6, 100)

    live.shows("more lines; ")
    assert max(live.rows) == 6
    assert live.end(b"Q") == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was(number, code, server, terminal):
    live = terminal("status", "--watch")
    live.shows("q quits")

    assert live.end(number=number) == code
    assert live.is_as_it_was()


def test_the_live_screen_outlives_the_daemon_and_shows_an_older_one(path, terminal, controls):
    with ControlServer(path, verbs(controls)):
        live = terminal("status", "--watch")
        live.shows("archive-to-cloud")
    live.shows("the daemon is not running")
    with ControlServer(path, of_an_older_daemon(controls)):
        live.shows("archive-to-cloud")
        assert live.end(b"q") == 0


def test_who_waits_for_a_resync_sees_how_far_it_is(server, terminal, controls):
    controls.state["jobs"][0]["last_resync"] = {
        "started_at": "2026-01-31T12:00:00Z", "finished_at": None, "prefix": "", "deep": False,
        "dry_run": False, "compared": 1_234_567, "rearmed": 0, "complete": False,
        "totals": {"same": 1_234_564, "missing": 3, "different": 0, "extra": 0, "errors": 0},
    }  # fmt: skip
    controls.resync_may_end.clear()
    waiting = terminal("resync", "archive-to-cloud", "--wait")

    until(lambda: waiting.read() and "1,234,567 compared, 3 missing" in waiting.received)
    assert "= " not in waiting.received
    controls.resync_may_end.set()
    assert waiting.end() == 11
    told = waiting.received.rpartition("\r\x1b[K")[2]
    assert told.startswith("+ a/1")
    assert "compared," not in told


class OlderStatus(requests.Request):
    """What could be asked before there were events beside the status."""

    job: str | None = None


def of_an_older_daemon(controls: FakeControls) -> dict[str, Verb]:
    table = verbs(controls)
    return {**table, "status": replace(table["status"], request=OlderStatus)}


@pytest.mark.parametrize(
    ("changes", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_is_for_terminals_that_want_it(changes, coloured, server, terminal):
    shown = terminal("status", **changes)

    assert shown.end() == 0
    assert ("\x1b[32m" in shown.received) is coloured
