"""`s5jtd api` as a process: its files, its refusals to start, its life and size, and the daemon behind it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from s5jtd.api import tls, tokens
from s5jtd.control.server import ControlServer
from s5jtd.control.verbs import verbs
from tests.appliance import WAIT_SECONDS, Appliance, until
from tests.log_api import LogApi, ReportControls
from tests.test_api import samples

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-m", "s5jtd", "api"]


def api_command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "CREDENTIALS_DIRECTORY"}
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=150, check=False, env=clean | environment,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with all that the API needs to start."""
    tokens.create(tmp_path / "api.token")
    tls.create(tmp_path, (), tls.now())
    return tmp_path


def arguments(folder: Path) -> list[str]:
    return [
        "--listen", "127.0.0.1:0", "--socket", f"{folder}/control.sock",
        "--token-file", f"{folder}/api.token", "--cert", f"{folder}/api.crt", "--key", f"{folder}/api.key",
    ]  # fmt: skip


# --- token and certificate ------------------------------------------------------------------------------


def test_a_token_has_256_bits_belongs_to_its_owner_and_is_not_shown(tmp_path):
    done = [api_command("token", tmp_path / name) for name in "ab"]

    first, second = ((tmp_path / name).read_text().strip() for name in "ab")
    assert [run.returncode for run in done] == [0, 0]
    assert len(first) == len(second) == 43  # 32 bytes in base64
    assert first != second
    assert first not in done[0].stdout + done[0].stderr
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_what_is_there_is_never_overwritten(files):
    before = {path: path.read_bytes() for path in files.iterdir()}

    for run in (api_command("token", files / "api.token"), api_command("cert", files)):
        assert run.returncode == 2
        assert "is there already" in run.stderr
        assert "hint:" in run.stderr
    (files / "api.crt").unlink()
    assert api_command("cert", files).returncode == 2
    assert not (files / "api.crt").exists()
    assert {path: path.read_bytes() for path in files.iterdir()}.items() <= before.items()


def test_a_certificate_is_made_for_the_names_clients_use_and_shown_by_its_fingerprint(tmp_path):
    run = api_command("cert", tmp_path, "--host", "appliance.example", "--host", "10.20.1.5")

    certificate = x509.load_pem_x509_certificate((tmp_path / "api.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"appliance.example", "localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"10.20.1.5", "127.0.0.1", "::1"} <= {str(ip) for ip in names.get_values_for_type(x509.IPAddress)}
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert hashlib.sha256(der).hexdigest().upper() in run.stdout.replace(":", "")
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(
        days=tls.VALID_DAYS
    )
    assert (tmp_path / "api.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("host", ["a" * 300, "..", "x" * 64 + ".example"])
def test_a_host_that_can_be_no_name_is_refused(tmp_path, host):
    run = api_command("cert", tmp_path, "--host", host)

    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said(tmp_path):
    for command in (["token", tmp_path / "no/token"], ["cert", tmp_path / "no"]):
        run = api_command(*command)
        assert run.returncode == 2
        assert "No such file" in run.stderr


# --- it does not start ------------------------------------------------------------------------------------


def break_nothing(folder: Path) -> None:
    for name in ("api.token", "api.crt", "api.key"):
        (folder / name).unlink()


def break_token(folder: Path) -> None:
    (folder / "api.token").unlink()


def short_token(folder: Path) -> None:
    (folder / "api.token").write_text("hunter2\n")


def open_token(folder: Path) -> None:
    (folder / "api.token").chmod(0o644)


def no_certificate(folder: Path) -> None:
    (folder / "api.crt").unlink()


def broken_certificate(folder: Path) -> None:
    (folder / "api.crt").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")


def ended_certificate(folder: Path) -> None:
    for name in ("api.crt", "api.key"):
        (folder / name).unlink()
    tls.create(folder, (), tls.now() - timedelta(days=tls.VALID_DAYS))


def open_key(folder: Path) -> None:
    (folder / "api.key").chmod(0o604)


def no_key(folder: Path) -> None:
    (folder / "api.key").unlink()


def foreign_key(folder: Path) -> None:
    write_key(folder, serialization.NoEncryption())


def locked_key(folder: Path) -> None:
    write_key(folder, serialization.BestAvailableEncryption(b"fake-password-for-tests"))


def write_key(folder: Path, locked: serialization.KeySerializationEncryption) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (folder / "api.key").write_bytes(key.private_bytes(*form))


@pytest.mark.parametrize(
    ("broken", "words"),
    [(break_nothing, "api.token"), (break_token, "cannot read"), (short_token, "a token is one line"),
     (open_token, "open to every user"), (no_certificate, "the certificate"),
     (broken_certificate, "no certificate in PEM"), (ended_certificate, "ended on"),
     (open_key, "open to every user"), (no_key, "the private key"),
     (foreign_key, "not the one of"), (locked_key, "no key without a password")],
)  # fmt: skip
def test_without_a_good_token_certificate_and_key_it_does_not_start_and_says_why(files, broken, words):
    broken(files)

    run = api_command(*arguments(files))

    assert run.returncode == 6  # with which systemd does not try again
    assert words in run.stderr
    assert "hint:" in run.stderr
    assert "Traceback" not in run.stderr
    assert "hunter2" not in run.stderr


def test_without_options_and_systemd_it_says_what_to_do_first():
    run = api_command()

    assert run.returncode == 6
    assert "s5jtd api token" in run.stderr
    assert "s5jtd api cert" in run.stderr


@pytest.mark.parametrize(
    "where", ["8443", "localhost", "127.0.0.1:99999", "127.0.0.1:x", "[::1]", ":8443", ""]
)
def test_what_is_no_place_to_listen_on_is_a_usage_error(files, where):
    run = api_command(*arguments(files), "--listen", where)

    assert run.returncode == 2
    assert "hint: write it like 127.0.0.1:8443" in run.stderr


def test_a_port_that_is_taken_is_said_with_how_to_find_by_whom(files):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = api_command(*arguments(files), "--listen", f"127.0.0.1:{taken.getsockname()[1]}")

    assert run.returncode == 12
    assert "hint: see who listens there: ss -ltnp" in run.stderr


def test_an_address_of_another_machine_is_said_and_may_come_later(files):
    run = api_command(*arguments(files), "--listen", "192.0.2.1:8443")

    assert run.returncode == 1
    assert "cannot listen on 192.0.2.1:8443" in run.stderr


def test_without_the_extra_it_says_what_to_install(tmp_path):
    program = "import sys; sys.modules['cryptography'] = None; from s5jtd.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", program, "api", "cert", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip

    assert run.returncode == 1
    assert "hint: install `s5jtd[api]`" in run.stderr


# --- it runs ----------------------------------------------------------------------------------------------


class Process:
    """The API as systemd runs it: credentials in a folder, a socket to say that it is ready."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "api.log"
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(folder / "notify"))
        self.told: list[bytes] = []
        self.popen: subprocess.Popen[bytes]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """As systemd: an unread socket would stop who writes to it."""
        with contextlib.suppress(OSError):
            while text := self.notify.recv(100):
                self.told.append(text)

    def start(self, **options: object) -> LogApi:
        environment = os.environ | {
            "CREDENTIALS_DIRECTORY": str(self.folder), "S5JTD_SOCKET": str(self.folder / "control.sock"),
            "NOTIFY_SOCKET": str(self.folder / "notify"), "WATCHDOG_USEC": "200000",
        }  # fmt: skip
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [*PROGRAM, "--listen", "127.0.0.1:0"], cwd=ROOT, env=environment, stderr=log, **options
            )  # type: ignore[call-overload]
        until(lambda: b"READY=1" in self.told, "READY")
        token = (self.folder / "api.token").read_text().strip()
        [started] = until(lambda: self.events("api_started"), "api_started")
        return LogApi(started["port"], token, self.folder / "api.crt", ReportControls())

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [record for record in self.records() if record["event"] == name]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return int(self.popen.wait(WAIT_SECONDS))

    def close(self) -> None:
        """End whatever still runs."""
        if hasattr(self, "popen") and self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(WAIT_SECONDS)
        self.notify.shutdown(socket.SHUT_RDWR)
        self.notify.close()

    def resident_kib(self) -> int:
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])


@pytest.fixture
def process(files: Path) -> Iterator[Process]:
    process = Process(files)
    try:
        yield process
    finally:
        process.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_when_it_is_ready_serves_feeds_the_watchdog_and_ends_when_told(process, number):
    api = process.start()

    assert api.get("/ui", token=None).status == 200
    assert api.get("/status").code == "not_running"
    until(lambda: process.told.count(b"WATCHDOG=1") > 3, "the watchdog fed")
    assert api.token not in Path(f"/proc/{process.popen.pid}/cmdline").read_text()
    assert process.stop(number) == 0
    until(lambda: process.told[-1] == b"STOPPING=1", "STOPPING")
    assert api.token not in process.log.read_text()
    assert [record["event"] for record in process.records()][-1] == "api_stopping"


def test_it_finds_the_daemon_whenever_that_comes_and_goes(process):
    api = process.start()
    path = process.folder / "control.sock"

    assert api.get("/healthz", token=None).status == 503
    with ControlServer(path, verbs(ReportControls())):
        assert api.get("/status").status == 200
        until(lambda: api.get("/healthz", token=None).status == 200, "health")
    assert api.get("/status").status == 503


def test_a_report_of_a_million_objects_is_served_in_flat_memory(process):
    controls = ReportControls()
    controls.objects = 1_000_000
    with ControlServer(process.folder / "control.sock", verbs(controls)):
        api = process.start()
        with contextlib.closing(api.connection()) as connection:
            path, seen, sizes = "/log/latest?objects=true", 0, []
            for _ in range(60):
                page = api.ask(connection, path).json
                seen, path = seen + len(page["objects"]), page["next"]
                sizes.append(process.resident_kib())

    assert seen == 60_000
    assert sizes[-1] - sizes[20] < 8 * 1024


def test_with_few_descriptors_a_flood_is_survived_and_the_next_request_served(process):
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    api = process.start(preexec_fn=few)
    with contextlib.ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(api.raw(tls=False))

        assert api.get("/ui", token=None).status == 200


def test_the_certificate_that_ends_soon_is_warned_of(process):
    for name in ("api.crt", "api.key"):
        (process.folder / name).unlink()
    tls.create(process.folder, (), tls.now() - timedelta(days=tls.VALID_DAYS - 10))

    process.start()

    until(lambda: process.events("api_certificate_expires"), "a warning")


def test_a_certificate_from_the_future_is_served_because_the_clock_may_be_wrong(files):
    for name in ("api.crt", "api.key"):
        (files / name).unlink()
    tls.create(files, (), tls.now() + timedelta(days=100))

    context, ends = tls.context(files / "api.crt", files / "api.key", tls.now())

    assert isinstance(context, ssl.SSLContext)
    assert ends > tls.now()


@pytest.mark.slow
def test_the_real_daemon_is_seen_through_it_while_both_its_sides_are_dead(tmp_path, files):
    appliance = Appliance(tmp_path / "box")
    side = {"bucket": "archive", "endpoints": ["http://127.0.0.1:9"], "credentials": {"anonymous": True}}
    appliance.configure({"name": "edge", "source": side, "destination": {**side, "bucket": "cloud"}})
    for volume in appliance.volumes:
        assert appliance.command("volumes", "stamp", str(volume)).returncode == 0
    process = Process(files)
    (files / "control.sock").symlink_to(appliance.socket)
    appliance.start()
    try:
        api = process.start()
        until(
            lambda: api.get("/status").json["jobs"][0]["state"] == "blocked", "the dead endpoints noticed", 30
        )
        found = samples(api.get("/metrics").body.decode())
        assert found["s5jtd_up"] == 1
        assert found["s5jtd_job_state['blocked', 'edge']"] == 1
        assert found["s5jtd_endpoint_state['down', 'edge', 'http://127.0.0.1:9', 'source']"] == 1
        assert api.get("/healthz", token=None).status == 200
        assert process.stop() == 0
    finally:
        process.close()
        appliance.stop()
