"""What the log promises: no forged lines, no secrets, no waiting, and fields an operator can filter by."""

import contextlib
import io
import json
import logging
import os
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog

from s5jtd import events, log, log_sink

ROOT = Path(__file__).parents[1]
HOSTILE = b"a\nb\r\x1b[2J\x07\x7f\xc2\x9b31m\xe2\x80\xae\xff level=error"


@pytest.fixture(autouse=True)
def _nothing_stays_behind(monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    root_handlers = logging.getLogger().handlers[:]
    monkeypatch.setattr(log._State, "secrets", frozenset())
    monkeypatch.setattr(log._State, "secret_pattern", None)
    yield
    log.close()
    logging.getLogger().handlers[:] = root_handlers
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()


class Pipe:
    """A log stream and what has arrived at its other end."""

    def __init__(self) -> None:
        self.read_fd, write_fd = os.pipe()
        self.stream = open(write_fd, "w", encoding="utf-8")  # noqa: SIM115

    def records(self):
        log.close()
        return [json.loads(line) for line in self.text().splitlines()]

    def text(self):
        self.stream.close()
        with open(self.read_fd, encoding="utf-8") as reader:
            return reader.read()


@pytest.fixture
def pipe():
    pipe = Pipe()
    yield pipe
    pipe.stream.close()
    with contextlib.suppress(OSError):
        os.close(pipe.read_fd)


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """A socket where the journal's would be, and stderr leading there, as systemd arranges it."""
    path = tmp_path / "journal"
    monkeypatch.setattr(log_sink, "JOURNAL_SOCKET", str(path))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
        (tmp_path / "stderr").open("w") as stream,
    ):
        server.bind(str(path))
        server.settimeout(10)
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        log.configure("info", stream)
        yield server


def fields_of(datagram: bytes) -> dict[str, str]:
    """Parse the journal's native protocol, as journald does."""
    fields = {}
    reader = io.BytesIO(datagram)
    while line := reader.readline():
        name, equals, value = line.rstrip(b"\n").partition(b"=")
        if not equals:
            value = reader.read(int.from_bytes(reader.read(8), "little"))
            assert reader.read(1) == b"\n"
        fields[name.decode()] = value.decode()
    return fields


def test_a_pipe_gets_one_json_object_per_line(pipe):
    log.configure("info", pipe.stream)

    log.get_logger(job="archive").info("chunk_sealed", chunk=7, took_seconds=1.5, volume=None)

    (record,) = pipe.records()
    at = record.pop("at")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", at)
    assert record == {
        "level": "info",
        "event": "chunk_sealed",
        "job": "archive",
        "chunk": 7,
        "took_seconds": 1.5,
        "volume": None,
    }


def test_the_journal_gets_fields_and_an_identity_to_filter_by(journal):
    log.get_logger().warning("library_message", job="archive", chunk=7, key=b"a/b c.jpg")

    fields = fields_of(journal.recv(1 << 20))
    assert fields == {
        "MESSAGE": 'library_message job=archive chunk=7 key="a/b c.jpg"',
        "MESSAGE_ID": events.message_id("library_message"),
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "s5jtd",
        "S5JT_EVENT": "library_message",
        "S5JT_JOB": "archive",
        "S5JT_CHUNK": "7",
        "S5JT_KEY": "a/b c.jpg",
    }


def test_the_identity_of_an_event_never_changes():
    assert events.message_id("library_message") == "fbb41ffbdb385c448c60b7590fce5f9b"


def test_a_journal_that_was_restarted_is_found_again(journal, tmp_path):
    log.get_logger().info("first")
    journal.recv(1 << 20)
    journal.close()
    (tmp_path / "journal").unlink()

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as successor:
        successor.bind(str(tmp_path / "journal"))
        successor.settimeout(10)
        log.get_logger().info("second")

        assert fields_of(successor.recv(1 << 20))["S5JT_EVENT"] == "second"


def test_a_list_is_readable_for_people_and_for_programs(journal):
    log.get_logger().info("operator_request", parameters={"job": "a b", "now": True, "x": 'y"='})
    asked = fields_of(journal.recv(1 << 20))
    assert asked["MESSAGE"] == r'operator_request parameters={job: "a b", now: true, x: "y\"="}'
    assert json.loads(asked["S5JT_PARAMETERS"]) == {"job": "a b", "now": True, "x": 'y"='}

    log.get_logger().info("reloaded", changed=["limits.workers", "jobs[b] added"], kept=[])

    said = fields_of(journal.recv(1 << 20))
    assert said["MESSAGE"] == 'reloaded changed=limits.workers,"jobs[b] added" kept=[]'
    assert json.loads(said["S5JT_CHANGED"]) == ["limits.workers", "jobs[b] added"]


def test_a_record_too_big_for_a_datagram_still_arrives_with_its_message(journal):
    log.get_logger().info("chunk_sealed", **{f"field{n}": "x" * 4000 for n in range(100)})

    fields = fields_of(journal.recv(1 << 20))
    assert fields["MESSAGE"].startswith("chunk_sealed field0=xxxx")
    assert fields["S5JT_FIELD0"] == "x" * 4000


def test_a_terminal_gets_colour_unless_asked_not_to(monkeypatch):
    shown = []
    for no_colour in (False, True):
        if no_colour:
            monkeypatch.setenv("NO_COLOR", "1")
        main, terminal = os.openpty()
        with open(terminal, "w", encoding="utf-8") as stream:
            log.configure("info", stream)
            log.get_logger().error("object_parked", key=b"a")
            log.close()
            shown.append(os.read(main, 4096).decode())
        os.close(main)

    assert "\x1b[31merror" in shown[0]
    assert "\x1b" not in shown[1]
    assert "object_parked key=a" in shown[1]


def test_nothing_a_key_holds_can_start_a_line_or_move_a_cursor(pipe):
    log.configure("info", pipe.stream)
    log.get_logger().info("object_parked", key=HOSTILE, nested={"k\n": [HOSTILE]})
    log.close()

    text = pipe.text()
    assert text.count("\n") == 1
    shown = json.loads(text)["key"]
    assert shown.isprintable()
    assert shown.startswith("a\\x0ab\\x0d\\x1b[2J")


def test_nothing_a_key_holds_can_pretend_to_be_another_field():
    record = {"at": "2026-01-01T00:00:00Z", "level": "info", "event": "object_parked", "key": HOSTILE}

    line = log.render_terminal(colour=False)(None, "info", log.clean(None, "info", record)).decode()

    assert line.count("\n") == 1
    assert line.count(" level=error") == line.count(' level=error"') == 1


def test_a_traceback_cannot_forge_a_line_either(monkeypatch):
    main, terminal = os.openpty()
    monkeypatch.setenv("NO_COLOR", "1")
    with open(terminal, "w", encoding="utf-8") as stream:
        log.configure("info", stream)
        try:
            raise ValueError("a\n12:00:00 error   forged")
        except ValueError:
            log.get_logger().exception("worker_crashed")
        log.close()
        lines = os.read(main, 65536).decode().splitlines()
    os.close(main)

    assert lines[0].endswith("worker_crashed")
    assert len(lines) > 3
    assert all(line.startswith("    ") for line in lines[1:])


def test_a_huge_value_is_cut(pipe):
    log.configure("info", pipe.stream)
    log.get_logger().info("object_parked", message="x" * 1_000_000)

    (record,) = pipe.records()
    assert len(record["message"]) == log.VALUE_LENGTH_MAX + 3


@pytest.mark.parametrize(
    "name", ["secret", "secret_access_key", "session_token", "db_password", "Authorization"]
)
def test_what_is_named_like_a_secret_is_not_shown(pipe, name):
    log.configure("info", pipe.stream)
    log.get_logger().info("endpoint_up", **{name: "fake-secret", "inner": {name: "fake-secret"}})

    (record,) = pipe.records()
    assert record[name] == log.REDACTED
    assert record["inner"] == {name: log.REDACTED}


def test_a_registered_secret_is_shown_nowhere(pipe):
    log.configure("info", pipe.stream)
    log.register_secret("fake/secret+for\\tests=")
    logger = log.get_logger()

    logger.info(
        "endpoint_up", url="http://u:fake%2Fsecret%2Bfor%5Ctests%3D@host", said='"fake/secret+for\\\\tests="'
    )
    logger.info("endpoint_up", body=b"... fake/secret+for\\tests= ...", many=["fake/secret+for\\tests="])
    try:
        raise RuntimeError("signing with fake/secret+for\\tests= failed")
    except RuntimeError:
        logger.exception("worker_crashed")
    logging.getLogger("somelib").error("key is %s", "fake/secret+for\\tests=")
    log.close()

    text = pipe.text()
    assert text.count("\n") == 4
    assert "for" + "\\" not in text.replace("\\\\", "\\").replace("for(", "")
    assert "secret+" not in text
    assert "fake%2Fsecret" not in text
    assert text.count(log.REDACTED) >= 6


def test_an_empty_secret_does_not_blank_the_log():
    log.register_secret("")
    log.register_secret("abc")

    assert log.redact("abcdef") == "abcdef"


def test_the_level_can_change_while_running(pipe):
    log.configure("info", pipe.stream)
    logger = log.get_logger().bind(job="archive")

    logger.debug("one")
    log.set_level("debug")
    logger.debug("two")
    log.set_level("error")
    logger.warning("three")

    assert [record["event"] for record in pipe.records()] == ["two"]


def test_context_of_the_thread_is_in_every_record(pipe):
    log.configure("info", pipe.stream)
    with structlog.contextvars.bound_contextvars(stage="pull"):
        log.get_logger().info("worker_started")

    (record,) = pipe.records()
    assert record["stage"] == "pull"


def test_libraries_speak_through_the_same_log(pipe):
    log.configure("info", pipe.stream)
    logging.getLogger("botocore.something").warning("slow %s", "down")
    logging.getLogger("botocore.something").info("chatter")

    (record,) = pipe.records()
    assert record["event"] == "library_message"
    assert record["library"] == "botocore.something"
    assert record["message"] == "slow down"


def test_a_log_nobody_reads_never_blocks_and_later_says_what_is_missing(pipe):
    log.configure("info", pipe.stream)
    logger = log.get_logger()
    count = 2 * log_sink.QUEUE_RECORDS_MAX

    started = time.monotonic()
    for number in range(count):
        logger.info("chunk_sealed", chunk=number)
    assert time.monotonic() - started < 30
    dropped = log.dropped_total()
    assert dropped > 0

    received = b""
    while b"log_records_dropped" not in received:
        assert select.select([pipe.read_fd], [], [], 10)[0]
        received += os.read(pipe.read_fd, 1 << 20)
    records = [json.loads(line) for line in received.splitlines() if line.endswith(b"}")]
    said = next(record for record in records if record["event"] == "log_records_dropped")
    assert said["count"] == dropped


def test_a_full_disk_costs_records_and_nothing_else():
    with open("/dev/full", "w", encoding="utf-8") as stream:
        log.configure("info", stream)
        for _ in range(10):
            log.get_logger().info("chunk_sealed")
        assert (writer := log._State.writer)
        log.close()

    assert writer.dropped_total == 10


def test_a_stuck_log_does_not_keep_a_program_from_ending():
    program = (
        "from s5jtd import log\n"
        "log.configure()\n"
        "for _ in range(5000): log.get_logger().info('chunk_sealed', text='x' * 100)\n"
        "print('done', flush=True)\n"
    )
    reader, stderr = os.pipe()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            timeout=30,
            check=True,
        )
    finally:
        os.close(stderr)
        os.close(reader)

    assert ended.stdout == b"done\n"  # and nobody has read a byte of its stderr


def test_what_was_logged_before_the_end_is_written():
    program = "from s5jtd import log; log.configure(); log.get_logger().error('worker_crashed')"

    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, timeout=150
    )

    assert json.loads(ended.stderr)["event"] == "worker_crashed"
