"""One door for subprocesses: exact surroundings, nothing lost on the pipes, and nobody left behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s5jtd.engine.process import LINE_BYTES_MAX, Child, LineSplitter, spawn
from s5jtd.errors import EngineError

ROOT = Path(__file__).parents[1]


def python(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", program, *arguments]


def listen(child: Child, until: Callable[[list[bytes]], bool] = lambda _: False) -> list[bytes]:
    said: list[bytes] = []
    while not child.ended and not until(said):
        said += child.lines(10)
    return said


def run(argv: list[str], **more) -> list[bytes]:
    with spawn(argv, env=more.pop("env", {}), grace_seconds=5, **more) as child:
        return listen(child)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_c10_the_environment_is_exactly_what_was_given(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-secret-for-tests")

    assert run(["/usr/bin/env"], env={"A": "b", "PYTHONSTARTUP": "x"}) == [b"A=b", b"PYTHONSTARTUP=x"]


def test_it_has_no_input_its_own_session_and_dies_before_the_daemon():
    program = "import os, sys; print(repr(sys.stdin.read()), os.getsid(0) == os.getpid() == os.getpgrp())"
    program += "; print(open('/proc/self/oom_score_adj').read().strip())"

    assert run(python(program)) == [b"'' True", b"500"]


def test_it_works_in_the_open_folder_wherever_that_went(tmp_path):
    (tmp_path / "data").mkdir()
    folder_fd = os.open(tmp_path / "data", os.O_RDONLY)
    try:
        (tmp_path / "data").rename(tmp_path / "moved")
        (tmp_path / "data").mkdir()

        run(python("open('1.obj', 'w').close()"), folder_fd=folder_fd)
    finally:
        os.close(folder_fd)

    assert (tmp_path / "moved" / "1.obj").exists()
    assert not (tmp_path / "data" / "1.obj").exists()


def test_it_inherits_the_descriptors_it_is_given_and_no_other(tmp_path):
    secret = (tmp_path / "secret").open("w")
    os.set_inheritable(secret.fileno(), True)
    given_one = (tmp_path / "given").open("w")
    with secret, given_one:
        fds = given_one.fileno(), secret.fileno()
        said = run(
            python("import os; print(*sorted(os.listdir('/proc/self/fd'), key=int))"),
            pass_fds=fds[:1],
        )

    open_fds = {int(number) for number in said[0].split()}
    assert fds[0] in open_fds
    assert fds[1] not in open_fds


def test_lines_of_both_pipes_arrive_whole_and_are_cut_at_newlines_only():
    program = "import os; os.write(1, b'a\\x85\\xe2\\x80\\xa8b\\r\\n\\xff\\n\\nend'); os.write(2, b'err\\n')"

    assert sorted(run(python(program))) == sorted(
        ["a\x85".encode("latin-1") + b"\xe2\x80\xa8b\r", b"\xff", b"", b"end", b"err"]
    )


def test_a_line_of_ten_megabytes_is_cut_and_the_next_one_is_whole():
    said = run(python("print('x' * 10_000_000); print('next')"))

    assert said == [b"x" * LINE_BYTES_MAX, b"next"]


@given(st.lists(st.binary(max_size=30)), st.integers(1, 20))
def test_lines_do_not_depend_on_how_the_stream_was_cut(lines, piece):
    stream = b"".join(line.replace(b"\n", b"") + b"\n" for line in lines) + b"tail"
    splitter = LineSplitter()

    got = [line for at in range(0, len(stream), piece) for line in splitter.feed(stream[at : at + piece])]

    assert [*got, *splitter.end()] == stream.split(b"\n")


@pytest.mark.parametrize(
    ("piece", "lines"),
    [("b'x' * 99 + b'\\n'", 900_000), ("b'x' * 100", 1)],
    ids=["lines", "one endless line"],
)
def test_a_flood_neither_blocks_nor_fills_memory(piece, lines):
    program = f"import os\nfor _ in range(1500): os.write(1, ({piece}) * 600)"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count = 0

    with spawn(python(program), env={}, grace_seconds=5) as child:
        while not child.ended:
            count += len(child.lines(10))

    assert count == lines
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kilobytes, of 90 MB said"


def test_what_it_read_and_wrote_is_counted_to_the_last_byte(tmp_path):
    target = tmp_path / "f"

    with spawn(
        python(f"open({str(target)!r}, 'wb').write(b'x' * 1_000_000)"), env={}, grace_seconds=5
    ) as child:
        listen(child)
        counters = child.counters()

    assert counters is not None
    assert 1_000_000 <= counters.written_bytes < 1_001_000


@pytest.mark.parametrize(
    ("program", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_its_exit_code_is_known_once_it_ended(program, code):
    with spawn(python("import time; time.sleep(0.1);" + program), env={}, grace_seconds=5) as child:
        assert child.exit_code is None
        listen(child)
        assert child.exit_code == code


DEAF = (
    "import os, signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)
POLITE = DEAF.replace("signal.SIG_IGN", "lambda *_: os._exit(3)")


def test_asked_to_end_it_may_clean_up():
    with spawn(python(POLITE), env={}, grace_seconds=60) as child:
        listen(child, until=bool)
        child.ask()
        listen(child)
        assert child.exit_code == 3


def test_a_stopped_one_hears_the_question_too():
    with spawn(python(POLITE), env={}, grace_seconds=60) as child:
        listen(child, until=bool)
        os.kill(child.pid, signal.SIGSTOP)
        child.ask()
        listen(child)
        assert child.exit_code == 3


@pytest.mark.parametrize("program", [DEAF, POLITE])
def test_it_is_gone_and_reaped_after_the_block_also_when_the_block_broke(program):
    pids = []

    def block_that_breaks() -> None:
        with spawn(python(program), env={}, grace_seconds=0.2) as child:
            pids.append(child.pid)
            listen(child, until=bool)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block_that_breaks()

    assert not Path(f"/proc/{pids[0]}").exists()


def test_what_it_started_ends_with_it_and_does_not_hold_us_up():
    program = "import os, time\npid = os.fork()\nif not pid: time.sleep(600)\nprint(pid, flush=True)"

    said = run(python(program))

    wait_until(lambda: not alive(int(said[0])))


def test_who_left_the_group_and_keeps_the_pipe_does_not_hold_us_up():
    program = (
        "import os, time\npid = os.fork()\nif not pid: os.setsid(); time.sleep(600)\nprint(pid, flush=True)"
    )
    started = time.monotonic()

    said = run(python(program))
    os.kill(int(said[0]), signal.SIGKILL)

    assert time.monotonic() - started < 60


def test_it_outlives_the_thread_that_started_it_but_not_the_process(tmp_path):
    """The kernel's signal comes when the parent *thread* ends, so one thread that never ends starts all."""
    program = tmp_path / "daemon.py"
    program.write_text(
        "import sys, threading, time\n"
        "from s5jtd.engine.process import spawn\n"
        "def work():\n"
        "    block = spawn(['/bin/sleep', '600'], env={}, grace_seconds=1)\n"
        "    kept.append(block)\n"
        "    pid = block.__enter__().pid\n"
        "    while b'sleep' not in open(f'/proc/{pid}/comm', 'rb').read(): time.sleep(0.01)\n"
        "    print(pid, flush=True)\n"
        "kept = []\n"
        "thread = threading.Thread(target=work)\n"
        "thread.start(); thread.join()\n"
        "time.sleep(600)\n"
    )
    daemon = subprocess.Popen(
        [sys.executable, program], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    with daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        time.sleep(0.2)  # time for a signal that must not come
        outlived_its_thread = alive(pid)
        daemon.kill()
    try:
        assert outlived_its_thread
        wait_until(lambda: not alive(pid))
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_many_threads_may_start_processes_at_once():
    said: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda: said.append(run(["/bin/echo", "x"]))) for _ in range(8)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert said == [[b"x"]] * 8


def test_a_program_that_is_not_there_says_so_in_one_line():
    with spawn(["/nonexistent/s5cmd"], env={}, grace_seconds=1) as child:
        assert listen(child) == [b"/nonexistent/s5cmd: No such file or directory"]
        assert child.exit_code == 1


def test_what_the_kernel_refuses_is_an_engine_error(tmp_path):
    folder_fd = os.open(tmp_path, os.O_RDONLY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (folder_fd + 1, hard))
    try:
        with (
            pytest.raises(EngineError, match="Too many open files"),
            spawn(["/bin/true"], env={}, grace_seconds=1),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(folder_fd)
