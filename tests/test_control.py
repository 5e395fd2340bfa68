"""The control socket: who may ask what, and that no client, hostile or broken, holds up another."""

from __future__ import annotations

import array
import grp
import inspect
import json
import os
import pwd
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import typing
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from structlog.testing import capture_logs

from s5jtd import protocol, shapes
from s5jtd.control import requests
from s5jtd.control.answer import Answer, answer
from s5jtd.control.connection import Limits
from s5jtd.control.peer import Caller
from s5jtd.control.server import ControlServer
from s5jtd.control.verbs import _ALL, Access, Controls, verbs
from s5jtd.errors import Busy, ConfigError, EndpointDown
from s5jtd.protocol import Method
from tests.appliance import WAIT_SECONDS
from tests.fake_controls import FakeControls

ROOT = Caller(1, 0, 0, "s5jt-operators")
NOBODY = Caller(1, 2**31 - 7, 2**31 - 7, "s5jt-operators")
STATUS_LINE = b'{"jsonrpc":"2.0","id":1,"method":"status"}\n'

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


def line(method: str, call_id: object = 1, **params: object) -> bytes:
    return protocol.encode({"jsonrpc": "2.0", "id": call_id, "method": method, "params": params})


def until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


class Client:
    """A socket a test can be as rude with as it likes."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._received = b""
        try:
            self.sock.connect(os.fspath(path))  # before the timeout, with which a full backlog is an error
        except OSError:
            self.sock.close()
            raise
        self.sock.settimeout(WAIT_SECONDS)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def message(self) -> dict[str, Any] | None:
        """The next one, or None at the end of the stream."""
        while b"\n" not in self._received:
            try:
                piece = self.sock.recv(65536)
            except ConnectionResetError:
                piece = b""
            if not piece:
                assert not self._received
                return None
            self._received += piece
        first, _, self._received = self._received.partition(b"\n")
        message = json.loads(first)
        assert isinstance(message, dict)
        return message

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        self.send(line(method, **params))
        message = self.message()
        assert message is not None
        return message

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def controls() -> FakeControls:
    return FakeControls()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def serve(path: Path, controls: FakeControls) -> Iterator[Callable[..., ControlServer]]:
    with ExitStack() as stack:

        def start(*, limits: Limits | None = None, **options: Any) -> ControlServer:
            return stack.enter_context(ControlServer(path, verbs(controls), limits=limits, **options))

        yield start


@pytest.fixture
def connect(path: Path) -> Iterator[Callable[[], Client]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Client(path)))


def error_of(answered: Answer) -> tuple[int, str]:
    assert answered.reply is not None
    error: Any = answered.reply["error"]
    assert error["message"].isprintable()
    assert error["data"].keys() == {"code", "hint", "exit"}
    return error["code"], error["data"]["code"]


# One line in, one answer out.


@pytest.mark.parametrize(
    ("hostile", "code", "word"),
    [
        (b"hello", -32700, "parse_error"),
        (b"\xff", -32700, "parse_error"),
        (b"[" * 100_000, -32700, "parse_error"),
        (b"[" * 4000, -32700, "parse_error"),
        (b"[" + b"{}," * 300_000 + b"{}]", -32700, "parse_error"),
        (b'{"id":' + b"9" * 5000 + b"}", -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"config.reload"}', -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}', -32700, "parse_error"),
        (b'{"jsonrpc":"2.0","id":"\x00","method":"ping"}', -32700, "parse_error"),
        (b"[" + STATUS_LINE.strip() + b"]", -32600, "invalid_request"),
        (b"[]", -32600, "invalid_request"),
        (b"17", -32600, "invalid_request"),
        (b'"status"', -32600, "invalid_request"),
        (b"null", -32600, "invalid_request"),
        (b"{}", -32600, "invalid_request"),
        (b'{"jsonrpc":2.0,"id":1,"method":"ping"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":[1],"method":"ping"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":"' + b"x" * 200 + b'","method":"ping"}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[1]}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":null}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","parms":{}}', -32600, "invalid_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', -32601, "method_not_found"),
        (b'{"jsonrpc":"2.0","id":1,"method":"__class__"}', -32601, "method_not_found"),
        (line("job.pause", job=7), -32602, "invalid_params"),
        (line("job.pause"), -32602, "invalid_params"),
        (line("job.pause", job="x", all=True), -32602, "invalid_params"),
        (line("job.pause", all="yes"), -32602, "invalid_params"),
        (line("job.pause", all=True, for_seconds="7"), -32602, "invalid_params"),
        (line("job.pause", all=True, for_seconds=True), -32602, "invalid_params"),
        (line("job.pause", all=True, for_seconds=-1), -32602, "invalid_params"),
        (line("job.pause", all=True, side="middle"), -32602, "invalid_params"),
        (line("object.explain", job="x", key="\ud800"), -32602, "invalid_params"),
        (line("object.explain", job="x", key="k" * 5000), -32602, "invalid_params"),
        (line("object.list", job="x", limit=10_001), -32602, "invalid_params"),
        (line("bandwidth.set", limit_bytes_per_second=0), -32602, "invalid_params"),
        (line("event.subscribe", since="yesterday"), -32602, "invalid_params"),
    ],
)
def test_k4_a_hostile_line_gets_one_error_and_nothing_is_done(hostile, code, word, controls):
    assert error_of(answer(hostile, verbs(controls), ROOT)) == (code, word)
    assert controls.asked == []


@given(st.binary(max_size=300))
def test_k4_no_line_at_all_makes_the_answer_fail(junk):
    answered = answer(junk, verbs(FakeControls()), NOBODY)

    assert error_of(answered)[0] in (-32700, -32600)


def test_k4_half_a_surrogate_pair_in_an_id_comes_back_as_it_was(controls):
    answered = answer(b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}', verbs(controls), NOBODY)

    assert answered.reply == {"jsonrpc": "2.0", "id": "\ud800", "result": {"result": "pong"}}


def test_a_notification_is_done_and_not_answered(controls):
    done = answer(b'{"jsonrpc":"2.0","method":"job.pause","params":{"all":true}}', verbs(controls), ROOT)
    wrong = answer(b'{"jsonrpc":"2.0","method":"job.pause"}', verbs(controls), ROOT)
    stream = answer(b'{"jsonrpc":"2.0","method":"event.subscribe"}', verbs(controls), ROOT)

    assert (done.reply, wrong.reply, stream.reply, stream.events) == (None, None, None, None)
    assert controls.paused


def test_a_misspelled_parameter_is_named_with_what_was_meant(controls):
    reply: Any = answer(line("job.pause", jbo="x"), verbs(controls), ROOT).reply

    assert "unknown parameter 'jbo', did you mean job?" in reply["error"]["message"]
    assert reply["error"]["data"]["hint"] == "parameters: job all side for_seconds now"


def test_an_error_of_ours_keeps_its_code_hint_and_exit_code():
    class Broken:
        def ping(self, request: requests.Ping) -> shapes.Pong:
            raise EndpointDown("http://10.20.1.20", hint="look at the cable")

    reply: Any = answer(line("ping", call_id="a"), verbs(Broken()), NOBODY).reply

    assert reply == {
        "jsonrpc": "2.0",
        "id": "a",
        "error": {
            "code": -32000,
            "message": "Cannot reach the endpoint: http://10.20.1.20",
            "data": {"code": "endpoint_down", "hint": "look at the cable", "exit": 5},
        },
    }


def test_a_bug_in_a_verb_is_logged_and_shows_nobody_a_traceback():
    class Buggy:
        def ping(self, request: requests.Ping) -> shapes.Pong:
            raise ZeroDivisionError("secret detail")

    with capture_logs() as logs:
        answered = answer(line("ping"), verbs(Buggy()), NOBODY)

    assert error_of(answered) == (-32603, "internal")
    assert "secret" not in json.dumps(answered.reply)
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("verb_failed", "error")]


def test_a_verb_that_is_not_built_is_not_found_and_the_others_are_named():
    class OnlyPing:
        def ping(self, request: requests.Ping) -> shapes.Pong:
            return {"result": "pong"}

    reply: Any = answer(line("job.resync", job="x"), verbs(OnlyPing()), ROOT).reply

    assert reply["error"]["data"] == {"code": "method_not_found", "hint": "it knows: ping", "exit": 2}


# The table.


def test_every_method_is_in_the_table_with_the_request_and_access_it_says():
    assert set(_ALL) == set(Method)
    for method, (_, request) in _ALL.items():
        bound = getattr(Controls, method.replace(".", "_"))
        assert typing.get_type_hints(bound)["request"] is request
        assert list(inspect.signature(bound).parameters) == ["self", "request"]


def test_only_what_changes_nothing_is_open_to_anyone():
    open_to_anyone = {str(method) for method, (access, _) in _ALL.items() if access is Access.ANYONE}

    assert open_to_anyone == {
        "ping", "version", "status", "object.list", "object.explain", "volume.list", "endpoint.list",
        "bandwidth.get", "report.list", "report.get", "event.subscribe",
    }  # fmt: skip


@pytest.mark.parametrize(
    "method", [method for method, (access, _) in _ALL.items() if access is Access.OPERATOR]
)
def test_whoever_is_no_operator_is_refused_before_the_parameters_are_looked_at(method, controls):
    answered = answer(line(method, anything=1), verbs(controls), NOBODY)

    assert error_of(answered) == (-32000, "not_permitted")
    assert answered.refused


def test_requests_cannot_be_changed_after_they_were_checked():
    request = requests.JobScan(job="x")

    with pytest.raises(ValidationError):
        request.job = "y"


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("plain", [b"plain"]),
        ("é", ["é".encode()]),
        (r"raw\xff", [rb"raw\xff", b"raw\xff"]),
        (r"\x1b[31m", [rb"\x1b[31m", b"\x1b[31m"]),
        (r"a\u202eb", [rb"a\u202eb", "a\u202eb".encode()]),
        (r"\U0001f600", [rb"\U0001f600", "\U0001f600".encode()]),
        (r"\ud800", [rb"\ud800"]),
        (r"\Uffffffff", [rb"\Uffffffff"]),
        (r"back\slash", [rb"back\slash"]),
    ],
)
def test_a_key_that_is_pasted_as_it_was_shown_is_found(text, keys):
    assert list(requests.spellings(text)) == keys


# Who asks.


def test_members_of_the_group_may_change_and_others_not(monkeypatch):
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", 900, [])))
    monkeypatch.setattr(
        pwd, "getpwuid", lambda uid: pwd.struct_passwd((f"u{uid}", "x", uid, 100, "", "/", ""))
    )
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, 900] if name == "u5001" else [gid])

    assert Caller(1, 5001, 100, "ops").may_change()
    assert Caller(1, 5002, 900, "ops").may_change()
    assert not Caller(1, 5003, 100, "ops").may_change()


@pytest.mark.parametrize("broken", ["getgrnam", "getpwuid", "getgrouplist"])
@pytest.mark.parametrize("error", [KeyError("nobody"), OSError("the directory is down")])
def test_where_nobody_can_say_who_is_a_member_nobody_is(broken, error, monkeypatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", 900, [])))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("u", "x", uid, 100, "", "/", "")))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [900])
    monkeypatch.setattr({"getgrnam": grp, "getpwuid": pwd}.get(broken, os), broken, fail)

    assert not Caller(1, 5001, 900, "ops").may_change()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder other users can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="s5jt"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


NOBODY_ID = 65534
_ASK = """
import socket, sys
peer = socket.socket(socket.AF_UNIX)
try:
    peer.connect(sys.argv[1])
except PermissionError:
    sys.exit("cannot open")
for request in sys.argv[2:]:
    peer.sendall(request.encode() + b"\\n")
    print(peer.makefile().readline(), end="")
"""


def as_nobody(*argv: str, groups: list[int], program: str = _ASK) -> subprocess.CompletedProcess[str]:
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or os.path.realpath(sys.executable)
    return subprocess.run(
        [python, "-I", "-S", "-c", program, *argv],
        user=NOBODY_ID, group=NOBODY_ID, extra_groups=groups,
        capture_output=True, text=True, timeout=150, check=False, cwd="/",
    )  # fmt: skip


@needs_root
def test_another_user_may_look_but_not_touch(open_folder, controls):
    path = open_folder / "control.sock"
    group = grp.getgrgid(NOBODY_ID).gr_name

    with capture_logs() as logs, ControlServer(path, verbs(controls), group=group, operators="no-such-group"):
        peer = as_nobody(
            str(path), line("ping").decode().strip(), line("config.reload").decode().strip(), groups=[]
        )

    assert (path.exists(), peer.stderr) == (False, "")
    looked, touched = map(json.loads, peer.stdout.splitlines())
    assert looked["result"] == {"result": "pong"}
    assert touched["error"]["data"]["code"] == "not_permitted"
    assert f"uid {NOBODY_ID}" in touched["error"]["message"]
    assert controls.asked == []
    refused = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [(entry["event"], entry["method"], entry["uid"]) for entry in refused] == [
        ("peer_refused", "config.reload", NOBODY_ID)
    ]


@needs_root
def test_another_user_who_is_an_operator_may_touch(open_folder, controls):
    path = open_folder / "control.sock"
    group = grp.getgrgid(NOBODY_ID).gr_name

    with ControlServer(path, verbs(controls), group=group, operators=group):
        peer = as_nobody(str(path), line("config.reload").decode().strip(), groups=[])

    assert json.loads(peer.stdout)["result"]["result"] == "reloaded"


@needs_root
def test_a_user_outside_the_group_cannot_open_the_socket(open_folder, controls):
    path = open_folder / "control.sock"

    with ControlServer(path, verbs(controls), group="no-such-group"):
        found = path.stat()
        peer = as_nobody(str(path), line("ping").decode().strip(), groups=[])

    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o660, 0, 0)
    assert peer.stderr.strip() == "cannot open"


@needs_root
def test_a_flood_of_one_user_evicts_none_of_another(open_folder, controls):
    path = open_folder / "control.sock"
    group = grp.getgrgid(NOBODY_ID).gr_name
    flood = (
        "import socket, sys\nheld = [socket.socket(socket.AF_UNIX) for _ in range(200)]\n"
        "for each in held: each.connect(sys.argv[1])\nheld[-1].sendall(sys.argv[2].encode() + b'\\n')\n"
        "print(held[-1].makefile().readline(), end='')"
    )

    with ControlServer(path, verbs(controls), group=group), closing(Client(path)) as mine:
        assert "result" in mine.ask("ping")
        peer = as_nobody(str(path), line("ping").decode().strip(), groups=[], program=flood)
        assert "result" in json.loads(peer.stdout)
        assert "result" in mine.ask("ping")


# The socket.


def test_status_typed_by_hand_is_answered(serve, connect, controls):
    serve()
    client = connect()
    client.send(STATUS_LINE)

    assert client.message() == {"jsonrpc": "2.0", "id": 1, "result": controls.state}


def test_one_connection_serves_many_requests_and_survives_the_broken_ones(serve, connect):
    serve()
    client = connect()
    client.send(b"\n\r\n" + line("ping", call_id=1) + b"garbage\n" + line("ping", call_id=2))

    answers = [client.message() for _ in range(3)]

    assert [message and message["id"] for message in answers] == [1, None, 2]


def test_a_request_cut_anywhere_is_put_together(serve, connect):
    serve()
    for cut in range(1, len(STATUS_LINE), 7):
        client = connect()
        client.send(STATUS_LINE[:cut])
        time.sleep(0.001)
        client.send(STATUS_LINE[cut:])
        assert client.message()


def test_a_client_that_ends_its_half_is_answered_even_without_a_newline(serve, connect):
    serve()
    client = connect()
    client.send(STATUS_LINE.strip())
    client.sock.shutdown(socket.SHUT_WR)

    first = client.message()

    assert first is not None
    assert "result" in first
    assert client.message() is None


def test_a_thousand_idle_clients_do_not_lock_out_the_next_status(serve, connect):
    serve()
    for _ in range(1000):
        connect()
    started = time.monotonic()

    assert "result" in connect().ask("status")

    assert time.monotonic() - started < 20
    until(lambda: sum(thread.name == "control-client" for thread in threading.enumerate()) <= 64)


def test_many_clients_at_once_are_all_answered(serve, path):
    serve()
    answers: list[dict[str, Any]] = []

    def ask() -> None:
        for _ in range(10):
            with closing(Client(path)) as client:
                answers.append(client.ask("status"))

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 400
    assert all("result" in each for each in answers)


class Slow(FakeControls):
    """Whose scan lasts until the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()

    def job_scan(self, request: requests.JobScan) -> shapes.Scan:
        self.begun.release()
        assert self.go_on.wait(WAIT_SECONDS)
        return super().job_scan(request)


@pytest.fixture
def slow() -> Iterator[Slow]:
    slow = Slow()
    yield slow
    slow.go_on.set()


def test_with_every_place_at_work_the_next_is_told_so_and_served_when_one_ends(path, connect, slow):
    with ControlServer(path, verbs(slow), limits=Limits(connections=4)):
        working = [connect() for _ in range(4)]
        for client in working:
            client.send(line("job.scan", job="archive-to-cloud"))
            assert slow.begun.acquire(timeout=WAIT_SECONDS)

        turned_away = connect()
        refusal = turned_away.message()
        assert refusal is not None
        assert refusal["error"]["data"] == {"code": "overloaded", "hint": "try again in a moment", "exit": 5}
        assert turned_away.message() is None

        slow.go_on.set()
        assert working[0].message()
        assert "result" in connect().ask("status")


def test_who_is_served_is_not_evicted_and_who_is_idle_longest_goes_first(path, connect, slow):
    with ControlServer(path, verbs(slow), limits=Limits(connections=3)) as server:

        def settled() -> bool:
            """An answer is received a moment before the server counts its client among the idle."""
            return [connection.busy for connection in server._open].count(True) == 1

        working, oldest, youngest = connect(), connect(), connect()
        working.send(line("job.scan", job="archive-to-cloud"))
        assert slow.begun.acquire(timeout=WAIT_SECONDS)
        assert oldest.ask("ping")
        until(settled)
        assert youngest.ask("ping")
        until(settled)

        assert connect().ask("ping")

        assert oldest.message() is None
        assert youngest.ask("ping")
        slow.go_on.set()
        assert working.message()


def test_k2_a_silent_client_is_dropped_in_time(serve, connect):
    serve(limits=Limits(idle_seconds=0.1))

    assert connect().message() is None


def test_k2_a_byte_at_a_time_gives_no_more_time(serve, connect):
    serve(limits=Limits(line_seconds=0.2))
    slow, brisk = connect(), connect()

    def dropped() -> bool:
        assert brisk.ask("ping")
        try:
            slow.send(b" ")
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    until(dropped)


def test_k3_a_line_without_end_is_cut_and_said_so(serve, connect):
    serve()
    huge, other = connect(), connect()

    with suppress(BrokenPipeError, ConnectionResetError):
        for _ in range(64):
            huge.send(b"x" * 2**20)

    refusal = huge.message()
    assert refusal is not None
    assert (refusal["id"], refusal["error"]["data"]["code"]) == (None, "parse_error")
    assert huge.message() is None
    assert "result" in other.ask("status")


def test_k5_a_client_that_does_not_read_is_dropped_and_the_others_are_served(serve, connect, controls):
    controls.keys = ["k" * 500] * 1000
    serve(limits=Limits(send_seconds=0.2))
    deaf, other = connect(), connect()
    request = line("object.list", job="archive-to-cloud", limit=1000)

    def dropped() -> bool:
        assert "result" in other.ask("ping")
        try:
            deaf.send(request)
        except (BrokenPipeError, ConnectionResetError):
            return True
        return False

    until(dropped)


def test_k3_a_flood_of_empty_lines_is_cheap(serve, connect):
    serve()
    client = connect()
    started = time.process_time()  # the processor's time, ours and the server's: a busy machine adds none
    client.send(b"\n" * 2**22)

    assert "result" in client.ask("ping")
    assert time.process_time() - started < 15  # looking at all that is left for each line would take hours


def test_descriptors_that_are_sent_are_not_taken(serve, connect):
    serve()
    client = connect()
    client.ask("ping")
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull, "rb") as gift:
        rights = array.array("i", [gift.fileno()] * 50)
        client.sock.sendmsg([STATUS_LINE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        assert client.message()
        assert len(os.listdir("/proc/self/fd")) == before + 1


def test_without_descriptors_accepting_rests_and_recovers(serve, path):
    serve(limits=Limits(pause_seconds=0.05))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(WAIT_SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fill: list[int] = []
    with capture_logs() as logs, closing(sock):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(200, soft), hard))
        try:
            with suppress(OSError):
                while True:
                    fill.append(os.open(os.devnull, os.O_RDONLY))
            started = time.monotonic()
            sock.connect(os.fspath(path))
            sock.sendall(STATUS_LINE)
            until(lambda: len(logs) >= 4)
            took = time.monotonic() - started
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in fill:
                os.close(fd)
        assert sock.recv(65536)

    assert {entry["event"] for entry in logs if entry["log_level"] == "warning"} == {
        "control_out_of_resources"
    }
    assert took >= 3 * 0.05


def test_an_answer_that_fits_no_line_becomes_a_smaller_page(serve, connect, controls):
    controls.keys = [f"{at:05}" + "k" * 1000 for at in range(3000)]
    serve()
    client = connect()
    keys: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = client.ask("object.list", job="archive-to-cloud", limit=3000, **after)["result"]
        keys += [row["key"] for row in page["objects"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}

    assert keys == controls.keys


def test_an_answer_that_can_be_no_line_at_all_is_an_error(serve, connect, controls):
    controls.state["daemon"]["config_path"] = "x" * 2**20
    serve()
    client = connect()

    assert client.ask("status")["error"]["data"]["code"] == "answer_too_long"
    controls.state["daemon"]["uptime_seconds"] = float("nan")
    assert client.ask("status")["error"]["data"]["code"] == "internal"
    assert "result" in client.ask("ping")


# Events.


def test_events_come_in_order_without_a_gap_while_they_happen(serve, connect, controls):
    serve()
    client = connect()

    assert client.ask("event.subscribe", since=1)["result"] == {"result": "subscribed"}

    seen = [client.message(), client.message()]
    controls.happen()
    seen.append(client.message())
    assert [message and (message["method"], message["params"]["id"]) for message in seen] == [
        ("event", 2), ("event", 3), ("event", 4),
    ]  # fmt: skip


def test_events_that_are_not_followed_end_and_the_connection_goes_on(serve, connect):
    serve()
    client = connect()
    client.ask("event.subscribe", since=2, follow=False)

    assert [message and message["params"] for message in (client.message(), client.message())] == [
        {
            "id": 3, "at": "2026-01-31T11:00:03Z", "event": "pass_ended", "job": "archive-to-cloud",
            "message": "number 3",
        },
        {"reason": "complete"},
    ]  # fmt: skip
    assert "result" in client.ask("ping")


def test_events_end_when_the_client_goes(serve, connect, controls):
    serve()
    client = connect()
    client.ask("event.subscribe")
    assert controls.subscribed.wait(WAIT_SECONDS)

    client.close()

    assert controls.unsubscribed.wait(WAIT_SECONDS)


def test_a_listener_that_has_ended_its_own_half_still_listens(serve, connect, controls):
    serve()
    client = connect()
    client.send(line("event.subscribe", since=3))
    client.sock.shutdown(socket.SHUT_WR)
    assert client.message()

    controls.happen()

    message = client.message()
    assert message is not None
    assert message["params"]["id"] == 4


def test_subscribers_cannot_take_every_place(serve, connect):
    serve(limits=Limits(connections=5, subscribers=2))
    listening = [connect(), connect()]
    for client in listening:
        assert "result" in client.ask("event.subscribe")
    third = connect()

    assert third.ask("event.subscribe")["error"]["data"]["code"] == "overloaded"
    assert "result" in third.ask("status")
    listening[0].close()
    until(lambda: "result" in connect().ask("event.subscribe"))


def test_a_bug_in_the_events_ends_them_and_says_so(path, connect):
    class Buggy(FakeControls):
        def _tell(self, at: int, follow: bool) -> Iterator[shapes.Event | None]:
            yield self.events[0]
            raise ZeroDivisionError

    with ControlServer(path, verbs(Buggy())):
        client = connect()
        client.ask("event.subscribe", since=0)
        client.message()
        end = client.message()
        assert end is not None
        assert (end["method"], end["params"]) == ("event.end", {"reason": "failed"})
        assert "result" in client.ask("ping")


# The file and the life of the server.


def test_stopping_ends_idle_clients_and_lets_the_others_have_their_answer(path, connect, slow):
    server = ControlServer(path, verbs(slow))
    server.start()
    assert server.healthy()
    idle, listening, working = connect(), connect(), connect()
    idle.ask("ping")
    listening.ask("event.subscribe")
    working.send(line("job.scan", job="archive-to-cloud"))
    assert slow.begun.acquire(timeout=WAIT_SECONDS)
    stopping = threading.Thread(target=server.stop)
    stopping.start()

    assert idle.message() is None
    end = listening.message()
    slow.go_on.set()
    assert end is not None
    assert end["params"] == {"reason": "stopping"}
    assert working.message()
    stopping.join(10)
    assert not server.healthy()
    assert not path.exists()
    server.stop()


def test_stopping_does_not_wait_for_ever(path, connect, slow):
    with ControlServer(path, verbs(slow), limits=Limits(stop_seconds=0.1)):
        working = connect()
        working.send(line("job.scan", job="archive-to-cloud"))
        assert slow.begun.acquire(timeout=WAIT_SECONDS)
        started = time.monotonic()

    assert time.monotonic() - started < 20


def test_a_second_daemon_is_refused_and_the_first_goes_on(serve, connect, path, controls):
    serve()

    with pytest.raises(Busy, match="another daemon listens") as caught:
        ControlServer(path, verbs(controls)).start()

    assert caught.value.hint
    assert "result" in connect().ask("ping")


def test_of_two_daemons_that_start_at_once_one_wins(path, controls):
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(os.fspath(path))
        barrier = threading.Barrier(2)
        servers = [ControlServer(path, verbs(controls)) for _ in range(2)]
        started: list[ControlServer] = []

        def start(
            server: ControlServer,
            barrier: threading.Barrier = barrier,
            started: list[ControlServer] = started,
        ) -> None:
            barrier.wait()
            with suppress(Busy):
                server.start()
                started.append(server)

        threads = [threading.Thread(target=start, args=(server,)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(started) == 1
        with closing(Client(path)) as client:
            assert "result" in client.ask("ping")
        started[0].stop()


def test_the_socket_of_another_program_that_listens_is_left_alone(path, controls):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen()

        with pytest.raises(Busy):
            ControlServer(path, verbs(controls)).start()

        assert stat.S_ISSOCK(path.stat().st_mode)


def test_k7_the_socket_of_a_daemon_that_was_killed_is_replaced(path, serve, connect):
    program = (
        "import os, socket, sys\nsocket.socket(socket.AF_UNIX).bind(sys.argv[1])\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, path], check=False, timeout=WAIT_SECONDS)
    assert path.exists()

    serve()

    assert "result" in connect().ask("ping")


@pytest.mark.parametrize("kind", ["file", "folder", "link", "pipe"])
def test_k7_what_is_no_socket_is_never_removed(kind, path, controls):
    {
        "file": lambda: path.write_text("precious"),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to("elsewhere"),
        "pipe": lambda: os.mkfifo(path),
    }[kind]()
    before = path.lstat().st_ino

    with pytest.raises(ConfigError, match="is there and is no socket") as caught:
        ControlServer(path, verbs(controls)).start()

    assert "move it away" in caught.value.hint
    assert path.lstat().st_ino == before


def test_a_folder_that_is_not_there_is_named_with_what_to_do(tmp_path, controls):
    with pytest.raises(ConfigError, match="No such file") as caught:
        ControlServer(tmp_path / "none" / "control.sock", verbs(controls)).start()

    assert str(tmp_path / "none") in caught.value.hint


def test_a_path_too_long_for_a_socket_is_named_with_what_to_do(tmp_path, controls):
    with pytest.raises(ConfigError, match="too long for a Unix socket") as caught:
        ControlServer(tmp_path / ("x" * 100), verbs(controls)).start()

    assert "runtime_dir" in caught.value.hint


def test_k7_a_socket_file_that_was_removed_comes_back(serve, connect, path):
    serve(limits=Limits(tick_seconds=0.02))
    before = connect()
    path.unlink()

    def answered() -> bool:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return "result" in connect().ask("ping")
        return False

    until(answered)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert "result" in before.ask("ping")


def test_what_somebody_else_put_in_our_place_stays_there_when_we_stop(path, controls):
    with ControlServer(path, verbs(controls), limits=Limits(tick_seconds=60)):
        path.unlink()
        path.write_text("precious")

    assert path.read_text() == "precious"


def test_a_hundred_starts_leave_no_descriptor_and_no_thread(path, controls):
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        with ControlServer(path, verbs(controls)), closing(Client(path)) as client:
            assert client.ask("ping")

    until(lambda: threading.active_count() <= threads)
    assert len(os.listdir("/proc/self/fd")) == descriptors
