"""s5cmd as our engine: the contract every engine keeps, and what only s5cmd can do to us."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s5jtd.engine.contract import End, Engine, Failure, Remote, Transfer
from s5jtd.engine.memory import oom_kills
from s5jtd.engine.s5cmd import S5cmd, find_binary
from s5jtd.errors import EngineError
from s5jtd.model import Direction
from tests.chaos import Bandwidth, Chaos, Reset, Stall, Truncate
from tests.engine_contract import MIB, EngineContract, Stand, credentials_file, remote_of
from tests.servers import Asked, Reply, Server, ToldServer

FAKE = Path(__file__).parent / "bin" / "s5cmd.py"


class TestS5cmd(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return S5cmd()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    """A stand whose engine and server are up to the test."""
    credentials = credentials_file(tmp_path, "FAKEACCESSKEY", "fake-secret-for-tests")
    chunk = tmp_path / "chunk"
    chunk.mkdir()
    stand = Stand(S5cmd(), chunk, Remote("bucket", "http://127.0.0.1:1", "us-east-1", credentials))
    yield stand
    stand.close()


@pytest.fixture
def rclone_stand(stand: Stand, rclone: Server, tmp_path: Path) -> Stand:
    stand.remote = remote_of(rclone, rclone.new_bucket(), tmp_path)
    return stand


def script(folder: Path, body: str) -> Path:
    path = folder / "s5cmd"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def faulty(stand: Stand, tmp_path: Path) -> Callable[..., Stand]:
    """A stand with a stand-in for s5cmd that has one of the faults of tests/bin/s5cmd.py."""

    def make(fault: str, **settings: Any) -> Stand:
        stand.engine = S5cmd(script(tmp_path, f'exec {sys.executable} -I {FAKE} {fault} "$@"'), **settings)
        return stand

    return make


def objects(count: int) -> list[Transfer]:
    return [Transfer(f"{number:x}.obj", b"key %d" % number, 10) for number in range(count)]


def children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return [pid for pid in found if b"--json" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]


# What it says and what it leaves out


def test_silence_is_no_outcome_and_exit_code_zero_no_proof(faulty):
    result = faulty("forgetful").pull(*objects(5))

    assert result.run.end is End.EXITED
    assert result.run.exit_code == 0
    assert set(result.outcomes) == {"0.obj", "2.obj", "4.obj"}
    assert sum(result.moved) == 30


def test_a_bad_exit_code_takes_no_outcome_back(faulty):
    result = faulty("gloomy").push(*objects(3))

    assert result.run.exit_code == 1
    assert result.failures == dict.fromkeys(["0.obj", "1.obj", "2.obj"])


def test_a_flood_on_both_pipes_neither_blocks_nor_drowns_the_answers(faulty):
    result = faulty("chatty").pull(*objects(3))

    assert result.failures == dict.fromkeys(["0.obj", "1.obj", "2.obj"])
    assert result.run.messages == ('{"message":"noise"}', "noise")


def test_garbage_between_the_answers_does_no_harm(faulty):
    result = faulty("garbled").pull(*objects(3))

    assert result.failures == dict.fromkeys(["0.obj", "1.obj", "2.obj"])
    assert 3 < len(result.run.messages) <= 20
    assert max(map(len, result.run.messages)) <= 500
    "".join(result.run.messages).encode()


def test_only_the_first_word_about_a_transfer_counts(faulty):
    result = faulty("repeating").push(*objects(3))

    assert result.failures == dict.fromkeys(["0.obj", "1.obj", "2.obj"])


def test_an_object_that_kills_s5cmd_is_among_those_nothing_is_known_of(faulty):
    poison = dataclasses.replace(objects(3)[2], key=b"poison")

    result = faulty("poisoned").pull(*objects(2), poison)

    assert result.run.end is End.KILLED
    assert result.run.exit_code == -signal.SIGKILL
    assert set(result.outcomes) == {"0.obj", "1.obj"}


@pytest.mark.slow
def test_more_answers_than_s5cmd_can_hold_back_do_not_block_it(stand):
    """It blocks for good with ten thousand lines that nobody reads."""
    missing = objects(11_000)

    result = stand.push(*missing, workers=64)

    assert set(result.failures.values()) == {Failure.LOCAL}
    assert len(result.outcomes) == len(missing)


def test_out_of_descriptors_s5cmd_gives_up_and_says_why(rclone_stand, rclone, tmp_path):
    rclone.fill(rclone_stand.remote.bucket, {transfer.key: b"0123456789" for transfer in objects(64)})
    rclone_stand.engine = S5cmd(script(tmp_path, f'ulimit -n 24\nexec {find_binary()} "$@"'))

    result = rclone_stand.pull(*objects(64), workers=64)

    assert result.run.end is End.EXITED
    assert result.run.exit_code == 1
    assert len(result.outcomes) < 64
    assert any("too many open files" in message for message in result.run.messages)


# Its end


def test_a_run_that_moves_nothing_is_ended_even_if_it_does_not_listen(faulty):
    started = time.monotonic()

    result = faulty("deaf", stall_seconds=1, grace_seconds=0.5).pull(*objects(2))

    assert result.run.end is End.STALLED
    assert result.run.exit_code == -signal.SIGKILL
    assert set(result.outcomes) == {"0.obj"}
    assert 1 < time.monotonic() - started < 30


@pytest.mark.parametrize("direction", list(Direction))
def test_a_body_that_stops_in_the_middle_is_a_stall(rclone_stand, rclone, direction):
    rclone.fill(rclone_stand.remote.bucket, {b"key": os.urandom(6 * MIB)})
    transfer = rclone_stand.write("1.obj", os.urandom(6 * MIB))
    rclone_stand.engine = S5cmd(stall_seconds=1)
    with Chaos(rclone.url) as chaos:
        chaos.add(Stall(after=MIB, side="request" if direction is Direction.PUSH else "reply"))
        result = rclone_stand.run(direction, [transfer], endpoint_url=chaos.url)

    assert result.run.end is End.STALLED
    assert result.outcomes == {}
    assert sum(result.moved) < 6 * MIB
    assert children() == []


def test_slow_is_no_stall(rclone_stand, rclone):
    rclone.fill(rclone_stand.remote.bucket, {b"key": os.urandom(2 * MIB)})
    rclone_stand.engine = S5cmd(stall_seconds=1)
    with Chaos(rclone.url) as chaos:
        chaos.add(Bandwidth(MIB))
        result = rclone_stand.pull(Transfer("1.obj", b"key", 2 * MIB), endpoint_url=chaos.url)

    assert result.failures == {"1.obj": None}
    assert result.run.end is End.EXITED


@pytest.mark.parametrize(
    ("number", "end"),
    [(signal.SIGSTOP, End.STALLED), (signal.SIGKILL, End.KILLED)],
    ids=["stopped", "killed"],
)
def test_an_s5cmd_that_others_stop_or_kill_is_noticed(rclone_stand, rclone, number, end):
    rclone.fill(rclone_stand.remote.bucket, {b"key": os.urandom(4 * MIB)})
    rclone_stand.engine = S5cmd(stall_seconds=1)
    hit: list[int] = []

    def stop() -> bool:
        if chaos.log and not hit:
            hit.extend(children())
            for pid in hit:
                os.kill(pid, number)
        return False

    with Chaos(rclone.url) as chaos:
        chaos.add(Bandwidth(MIB))
        result = rclone_stand.pull(Transfer("1.obj", b"key", 4 * MIB), endpoint_url=chaos.url, stop=stop)

    assert len(hit) == 1
    assert result.run.end is end
    assert not result.run.starved or oom_kills() is None
    assert result.outcomes == {}
    assert children() == []


def test_p11_an_s5cmd_that_gets_no_memory_is_known_for_it(stand, tmp_path):
    """Where the kernel refuses memory instead of killing, it is Go's runtime that gives up."""
    stand.engine = S5cmd(script(tmp_path, f'ulimit -v 200000; exec {find_binary()} "$@"'))

    result = stand.pull(*objects(2))

    assert result.run.starved
    assert result.outcomes == {}


@pytest.mark.parametrize(
    ("later", "starved"), [("oom_kill 4\n", True), ("oom_kill 3\n", False), ("", True)],
    ids=["the kernel says it was it", "the kernel was not it", "the kernel says nothing"],
)  # fmt: skip
def test_p11_a_kill_for_want_of_memory_is_told_from_an_operators(
    stand, tmp_path, monkeypatch, later, starved
):
    events = tmp_path / "groups" / "system.slice" / "s5jtd.service" / "memory.events"
    events.parent.mkdir(parents=True)
    events.write_text("oom 3\noom_kill 3\noom_group_kill 0\n")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/system.slice/s5jtd.service\n")
    monkeypatch.setattr(
        "s5jtd.engine.s5cmd.oom_kills", lambda: oom_kills(tmp_path / "proc", tmp_path / "groups")
    )
    stand.engine = S5cmd(script(tmp_path, f"printf '{later}' > {events}; kill -9 $$"))

    result = stand.pull(*objects(2))

    assert result.run.end is End.KILLED
    assert result.run.starved is starved


def test_a_callback_that_fails_ends_the_process_first(faulty):
    stand = faulty("deaf", grace_seconds=0.2)

    def stop() -> bool:
        if children():
            raise ZeroDivisionError
        return False

    with pytest.raises(ZeroDivisionError):
        stand.pull(*objects(2), stop=stop)

    assert children() == []


@pytest.mark.parametrize("fault", [Truncate(MIB, nth=1, method="GET"), Reset(MIB, nth=1, method="GET")])
def test_a_connection_that_breaks_once_is_mended_and_no_byte_counted_twice(rclone_stand, rclone, fault):
    body = os.urandom(3 * MIB)
    rclone.fill(rclone_stand.remote.bucket, {b"key": body})
    with Chaos(rclone.url) as chaos:
        chaos.add(fault)
        result = rclone_stand.pull(Transfer("1.obj", b"key", len(body)), endpoint_url=chaos.url)

    assert result.failures == {"1.obj": None}
    assert rclone_stand.read() == {"1.obj": body}
    assert sum(result.moved) == len(body)


# What it is told, and what it tells the server


@pytest.fixture(scope="module")
def echo() -> Iterator[ToldServer]:
    """Every object's content is the key it was asked for by."""

    def reply(asked: Asked) -> Reply:
        return Reply(200, unquote_to_bytes(asked.path)[len("/bucket/") :], {"ETag": '"x"'})

    with ToldServer(reply) as server:
        yield server


hostile_keys = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.text(alphabet="'\"\\ $`*?#;&|<>~!{}[]%+/.-\t\r\x01\x85\u2028é", min_size=1, max_size=20).map(
        str.encode
    ),
)


@settings(max_examples=8)
@given(st.lists(hostile_keys, min_size=25, max_size=40))
def test_s5cmd_itself_reads_every_key_as_it_was_meant(echo, tmp_path_factory, keys):
    folder = tmp_path_factory.mktemp("keys")
    credentials = credentials_file(folder, "FAKEACCESSKEY", "fake-secret-for-tests")
    stand = Stand(S5cmd(), folder, Remote("bucket", echo.url, "us-east-1", credentials))
    asked = {f"{n:x}.obj": key for n, key in enumerate(keys) if not stand.engine.refuses(key)}

    result = stand.pull(*(Transfer(name, key, len(key)) for name, key in asked.items()))
    stand.close()

    assert stand.read() == asked
    assert result.failures == dict.fromkeys(sorted(asked))


def test_it_signs_with_the_file_it_was_given_and_with_nothing_from_around_us(stand, echo, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FAKEOTHERKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-other-secret")
    monkeypatch.setenv("AWS_PROFILE", "other")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    echo.asked.clear()

    stand.pull(Transfer("1.obj", b"k", 1), endpoint_url=echo.url, region="snow")

    assert len(echo.asked) == 2
    for asked in echo.asked:
        assert "Credential=FAKEACCESSKEY/" in asked.headers["authorization"]
        assert "/snow/s3/aws4_request" in asked.headers["authorization"]


def test_an_anonymous_side_is_asked_without_a_signature(stand, echo):
    echo.asked.clear()

    result = stand.pull(Transfer("1.obj", b"k", 1), endpoint_url=echo.url, credentials_file=None)

    assert result.failures == {"1.obj": None}
    assert not any("authorization" in asked.headers for asked in echo.asked)


def test_no_secret_stands_in_its_arguments_or_its_environment(faulty, tmp_path):
    stand = faulty("deaf", grace_seconds=0.1)
    seen: list[bytes] = []

    def stop() -> bool:
        for name in ("cmdline", "environ"):
            seen.extend(Path(f"/proc/{pid}/{name}").read_bytes() for pid in children())
        return bool(seen)

    stand.pull(*objects(1), stop=stop)

    everything = b"".join(seen)
    assert b"AWS_SHARED_CREDENTIALS_FILE=" in everything
    assert b"fake-secret-for-tests" not in everything
    assert b"FAKEACCESSKEY\0" not in everything
    assert (tmp_path / "chunk" / "pull.batch").stat().st_mode & 0o777 == 0o600


def test_a_small_object_costs_a_head_and_one_get_that_cannot_mix_versions(stand, echo):
    echo.asked.clear()

    stand.pull(Transfer("1.obj", b"k", 1), endpoint_url=echo.url)

    assert [(asked.method, asked.headers.get("range")) for asked in echo.asked] == [
        ("HEAD", None),
        ("GET", "bytes=0-1048575"),
    ]


def test_a_private_authority_is_trusted_where_it_is_named_and_only_there(stand, rclone_tls, tmp_path):
    bucket = rclone_tls.new_bucket()
    rclone_tls.fill(bucket, {b"k": b"x"})
    stand.remote = remote_of(rclone_tls, bucket, tmp_path)
    one = Transfer("1.obj", b"k", 1)

    assert stand.pull(one).failures == {"1.obj": None}
    assert stand.pull(one, ca_bundle=None).failures == {"1.obj": Failure.ENDPOINT}
    assert stand.pull(one, ca_bundle=None, verify_tls=False).failures == {"1.obj": None}


@contextlib.contextmanager
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that notes where it should connect to, and refuses."""
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(4096).split(b" HTTP/")[0])
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://user:fake-password@127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_aws_itself_is_addressed_by_the_buckets_own_name_and_through_the_proxy(stand):
    with proxy() as (url, asked):
        result = stand.pull(Transfer("1.obj", b"k", 1), endpoint_url=None, region="eu-west-1", proxy=url)

    assert set(asked) == {b"CONNECT bucket.s3.eu-west-1.amazonaws.com:443"}
    assert result.failures == {"1.obj": Failure.ENDPOINT}
    assert "fake-password" not in repr(result)


def test_a_plain_http_endpoint_is_asked_through_the_proxy_too(stand):
    with proxy() as (url, asked):
        stand.pull(Transfer("1.obj", b"k", 1), endpoint_url="http://snow.invalid:8080", proxy=url)

    assert b"GET http://snow.invalid:8080/bucket/k" in asked


def test_a_bucket_it_cannot_name_is_refused_before_anything_runs(stand):
    arn = "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/ap"

    with pytest.raises(EngineError, match="plain bucket names"):
        stand.pull(Transfer("1.obj", b"k", 1), bucket=arn)


def test_a_batch_file_that_cannot_be_written_is_the_volumes_trouble(stand):
    (stand.folder / "pull.batch").symlink_to("/etc/passwd")

    with pytest.raises(OSError, match="symbolic links"):
        stand.pull(Transfer("1.obj", b"k", 1))


# The binary


def test_the_binary_is_the_program_and_not_the_packages_launcher():
    assert find_binary().read_bytes()[:4] == b"\x7fELF"


def test_the_installed_s5cmd_is_the_one_we_know():
    assert S5cmd().check().startswith("v2.3.0")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.chmod(0o644), "not executable"),
        (lambda path: path.chmod(0o777), "replaced by other users"),
        (lambda path: path.write_text("#!/bin/sh\necho v2.2.2-991c9fb\n"), "v2.2.2"),
        (lambda path: path.write_text("#!/bin/sh\nexit 0\n"), "is no s5cmd"),
        (lambda path: path.write_text("#!/nonexistent\n"), "not v2.3.0"),
    ],
    ids=["missing", "not executable", "writable by others", "another version", "silent", "broken"],
)
def test_a_binary_that_will_not_do_is_found_out_before_work_begins(tmp_path, spoil, message):
    path = script(tmp_path, "echo v2.3.0-991c9fb")
    engine = S5cmd(path)
    assert engine.check() == "v2.3.0-991c9fb"
    spoil(path)

    with pytest.raises(EngineError, match=message) as caught:
        engine.check()

    assert caught.value.hint


def test_a_binary_that_is_not_what_was_installed_is_found_out(tmp_path, monkeypatch):
    package = find_binary().parents[1]
    info = next(package.parent.glob("s5cmd-*.dist-info"))
    shutil.copytree(package, tmp_path / "s5cmd")
    shutil.copytree(info, tmp_path / info.name)
    monkeypatch.syspath_prepend(tmp_path)
    engine = S5cmd()
    engine.check()
    with (tmp_path / "s5cmd" / "bin" / "s5cmd").open("ab") as binary:
        binary.write(b"x")

    with pytest.raises(EngineError, match="not the file that was installed"):
        engine.check()


def test_without_the_package_the_hint_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "s5cmd", raising=False)
    sys.path_importer_cache.clear()

    with pytest.raises(EngineError, match="not installed") as caught:
        S5cmd()

    assert "s5cmd 0.3.3" in caught.value.hint


def test_a_binary_that_vanishes_later_is_an_engine_error_and_not_silence(stand, tmp_path):
    path = script(tmp_path, "exit 0")
    stand.engine = S5cmd(path)
    path.unlink()

    with pytest.raises(EngineError, match="No such file"):
        stand.pull(Transfer("1.obj", b"k", 1))
