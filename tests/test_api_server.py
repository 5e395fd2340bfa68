"""The log API against clients that are slow, silent, huge, many or broken: they harm nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from s5jtd import shapes
from s5jtd.api import run
from s5jtd.control import requests
from tests.appliance import WAIT_SECONDS, until
from tests.log_api import WIDE, LogApi, ReportControls, running_api

SOON_SECONDS = 10.0  #: within which a request is answered, whatever others do


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogApi]:
    with running_api(tmp_path_factory.mktemp("api")) as api:
        yield api


def served_soon(api: LogApi) -> None:
    began = time.monotonic()
    assert api.get("/status").status == 200
    assert time.monotonic() - began < SOON_SECONDS


def plain(api: LogApi, address: str = "127.0.0.1") -> socket.socket:
    """A connection before its handshake, from an address of this machine."""
    return socket.create_connection(("127.0.0.1", api.port), timeout=10, source_address=(address, 0))


def secured(api: LogApi, address: str = "127.0.0.1") -> ssl.SSLSocket:
    return api.context().wrap_socket(plain(api, address), server_hostname="127.0.0.1")


def ended(sock: socket.socket) -> bool:
    """Whether the other end has hung up; waits for what comes."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while sock.recv(65536):
            pass
    return True


def said(sock: socket.socket, text: bytes) -> http.client.HTTPResponse:
    sock.sendall(text)
    response = http.client.HTTPResponse(sock)
    response.begin()
    return response


def head(api: LogApi, path: str = "/status", extra: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\n{extra}\r\n".encode()


# --- TLS ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken(api, version):
    context = api.context()
    context.minimum_version = context.maximum_version = version
    with context.wrap_socket(plain(api), server_hostname="127.0.0.1") as sock:
        assert sock.version() == version.name.replace("_", ".")
        assert said(sock, head(api)).status == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_is_refused(api):
    context = api.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with plain(api) as sock, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(sock, server_hostname="127.0.0.1")


def test_a_client_that_does_not_trust_the_certificate_goes_and_others_are_served(api):
    with plain(api) as sock, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(sock, server_hostname="127.0.0.1")

    served_soon(api)


def test_without_tls_not_a_word_is_answered(api):
    with plain(api) as sock:
        sock.sendall(head(api))
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(4096):
                answer += piece

    assert b"HTTP" not in answer
    served_soon(api)


# --- slow and many ------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [200, 400], ids=["within the limit", "beyond the limit"])
def test_connections_without_a_handshake_do_not_stop_the_next_request(api, connections):
    with contextlib.ExitStack() as stack:
        for _ in range(connections):
            stack.enter_context(plain(api))

        served_soon(api)


def test_half_heads_do_not_stop_the_next_request(tmp_path):
    with running_api(tmp_path, limits=replace(WIDE, connections=60)) as api, contextlib.ExitStack() as stack:
        for _ in range(80):
            sock = stack.enter_context(secured(api))
            sock.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\nX-Slow: ")

        served_soon(api)


def test_a_flood_from_one_address_ends_none_of_anothers_connections(tmp_path):
    with running_api(tmp_path, limits=replace(WIDE, connections=30)) as api, contextlib.ExitStack() as stack:
        kept = stack.enter_context(secured(api))
        assert said(kept, head(api)).read()
        for _ in range(100):
            stack.enter_context(plain(api, "127.0.0.2"))
        served_soon(api)

        assert said(kept, head(api)).status == 200


def test_a_stalled_handshake_ends_in_time(tmp_path):
    with running_api(tmp_path, limits=replace(WIDE, handshake_seconds=0.3)) as api, plain(api) as sock:
        assert ended(sock)


def test_a_head_that_comes_byte_by_byte_ends_in_time(tmp_path):
    with running_api(tmp_path, limits=replace(WIDE, wait_seconds=0.5)) as api, secured(api) as sock:
        began = time.monotonic()
        with pytest.raises((ConnectionError, ssl.SSLError)):  # noqa: PT012  which byte is one too many is not known
            for byte in head(api, extra="X-Slow: " + "z" * 2000 + "\r\n"):
                sock.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - began < 10


def test_an_idle_connection_ends_in_time_and_a_used_one_goes_on(tmp_path):
    with running_api(tmp_path, limits=replace(WIDE, wait_seconds=0.6)) as api, secured(api) as sock:
        for _ in range(4):
            assert said(sock, head(api)).read()
            time.sleep(0.3)  # a client that pauses; together longer than one may wait

        assert ended(sock)


def test_who_does_not_read_an_answer_is_dropped_and_holds_up_nobody(tmp_path, monkeypatch):
    controls = ReportControls()
    controls.objects, controls.key = 500, "k" * 1500 + "{number}"
    listen = run.listener

    def narrow(where: str) -> socket.socket:
        """The kernel would otherwise take the whole answer off our hands."""
        sock = listen(where)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return sock

    monkeypatch.setattr(run, "listener", narrow)
    with running_api(tmp_path, controls, replace(WIDE, answer_seconds=1.0)) as api, plain(api) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with api.context().wrap_socket(raw, server_hostname="127.0.0.1") as sock:
            sock.sendall(head(api, "/log/latest?objects=true"))
            served_soon(api)
            time.sleep(1.5)  # its time runs out while nothing is read
            got = 0
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while piece := sock.recv(65536):
                    got += len(piece)

    assert 0 < got < 500_000


class SlowControls(ReportControls):
    """A daemon that answers `status` when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_for = threading.Event()
        self.go = threading.Event()

    def status(self, request: requests.Status) -> shapes.Status:
        self.asked_for.set()
        self.go.wait(WAIT_SECONDS)
        return super().status(request)


def test_a_daemon_that_hangs_holds_up_neither_page_nor_health_nor_refusals(tmp_path):
    controls = SlowControls()
    with running_api(tmp_path, controls) as api:
        threads = [threading.Thread(target=api.get, args=("/status",)) for _ in range(30)]
        for thread in threads:
            thread.start()
        controls.asked_for.wait(WAIT_SECONDS)

        began = time.monotonic()
        assert api.get("/ui", token=None).status == 200
        assert api.get("/status", token=None).status == 401
        assert api.get("/healthz", token=None).status == 200
        assert time.monotonic() - began < SOON_SECONDS
        controls.go.set()
        for thread in threads:
            thread.join()


def test_what_is_being_answered_is_answered_when_the_api_stops(tmp_path):
    controls = SlowControls()
    found: list[int] = []
    with running_api(tmp_path, controls) as api:
        idle = secured(api)
        thread = threading.Thread(target=lambda: found.append(api.get("/status").status))
        thread.start()
        controls.asked_for.wait(WAIT_SECONDS)
        threading.Timer(0.3, controls.go.set).start()
    thread.join()

    assert found == [200]
    assert ended(idle)
    idle.close()


def test_when_descriptors_run_out_the_log_says_so_and_the_api_goes_on(tmp_path, monkeypatch):
    accept = asyncio.SelectorEventLoop.sock_accept
    failures = iter([errno.EMFILE, errno.ECONNABORTED, errno.ENFILE])

    async def failing(loop: asyncio.SelectorEventLoop, listener: socket.socket) -> object:
        if number := next(failures, 0):
            raise OSError(number, os.strerror(number))
        return await accept(loop, listener)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_accept", failing)
    with capture_logs() as logs, running_api(tmp_path) as api:
        served_soon(api)

    warned = [record["error"] for record in logs if record["event"] == "api_out_of_resources"]
    assert warned == [os.strerror(errno.EMFILE), os.strerror(errno.ENFILE)]  # the third is a client's own


# --- huge and broken ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /status HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 2**20,
        b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(5000)) + b"\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /status\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /status HTTP/1.1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /sta tus HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ],
    ids=["1 MB header", "1 MB path", "5,000 headers", "TLS in TLS", "no path", "HTTP/0.9", "40 KB header",
         "no host", "two hosts", "space in path", "space in name", "bare CR", "NUL", "negative length",
         "two lengths"],
)  # fmt: skip
def test_what_is_no_request_gets_a_400_in_json_and_the_end(api, request_text):
    with api.raw() as sock:
        response = said(sock, request_text)  # all of it is taken, or the answer would be lost on the way

        assert response.status == 400
        assert response.getheader("connection") == "close"
        assert response.getheader("x-content-type-options") == "nosniff"
        assert json.loads(response.read())["error"]["code"] == "bad_request"
    served_soon(api)


@pytest.mark.parametrize(
    "extra",
    ["Content-Length: 1000000000\r\n", "Transfer-Encoding: chunked\r\n",
     "Content-Length: 5\r\nExpect: 100-continue\r\n", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"],
)  # fmt: skip
def test_a_body_is_refused_unread(api, extra):
    with api.raw() as sock:
        response = said(sock, head(api, extra=extra))
        error = json.loads(response.read())["error"]

        assert (response.status, error["code"]) in {(413, "body_too_large"), (400, "bad_request")}
        assert response.getheader("connection") == "close"
        assert ended(sock)


def test_a_second_request_behind_the_first_is_answered_after_it(api):
    with api.raw() as sock:
        stream = sock.makefile("rb")
        sock.sendall(head(api, "/healthz") + head(api, "/nothing", "Connection: close\r\n"))
        answers = stream.read()
        stream.close()

    assert answers.index(b"HTTP/1.1 200") < answers.index(b"HTTP/1.1 404")


def test_rubbish_behind_a_request_cannot_disturb_its_answer(tmp_path):
    controls = SlowControls()
    with running_api(tmp_path, controls) as api, api.raw() as sock:
        sock.sendall(head(api) + b"\x00\x01\x02 rubbish\r\n\r\n")
        controls.asked_for.wait(5)
        controls.go.set()
        answer = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while piece := sock.recv(65536):
                answer += piece

        assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 400 ")) or not answer
        served_soon(api)


@pytest.mark.parametrize("upgrade", ["websocket", "h2c"])
def test_no_other_protocol_is_begun(api, upgrade):
    with api.raw() as sock:
        response = said(sock, head(api, extra=f"Connection: Upgrade\r\nUpgrade: {upgrade}\r\n"))
        assert response.status == 200


# --- too often ----------------------------------------------------------------------------------------


def test_who_asks_too_often_is_told_when_to_come_back_and_others_are_served(tmp_path):
    few = replace(WIDE, requests_per_second=2.0, requests_at_once=5)
    with running_api(tmp_path, limits=few) as api, secured(api) as sock:
        answers = []
        for number in range(10):  # a header cannot make another client of them
            response = said(sock, head(api, extra=f"X-Forwarded-For: 10.9.8.{number}\r\n"))
            answers.append((response.status, response.getheader("retry-after"), response.read()))

        assert [status for status, _, _ in answers].count(429) >= 3
        status, after, body = answers[-1]
        assert (status, after, json.loads(body)["error"]["code"]) == (429, "1", "too_many_requests")
        with secured(api, "127.0.0.3") as other:
            assert said(other, head(api)).status == 200

        def again() -> bool:
            response = said(sock, head(api))
            response.read()
            return response.status == 200

        until(again, "another chance")


def test_wrong_tokens_are_limited_and_then_the_right_one_is_refused_alike(tmp_path):
    with running_api(tmp_path, limits=replace(WIDE, wrong_tokens_per_second=0.001)) as api:
        wrong = [
            api.get("/status", token=f"guess-{number}") for number in range(WIDE.wrong_tokens_at_once + 20)
        ]
        right = api.get("/status")

        statuses = [answer.status for answer in wrong]
        assert statuses[: WIDE.wrong_tokens_at_once] == [401] * WIDE.wrong_tokens_at_once
        assert set(statuses[WIDE.wrong_tokens_at_once :]) == {429}
        assert right.status == 429
        assert right.body == wrong[-1].body
        # Whoever guesses nothing is not held back, nor is another address.
        assert api.get("/healthz", token=None).status == 200
        assert api.get("/status", token=None).status == 401
        with secured(api, "127.0.0.4") as sock:
            assert said(sock, head(api)).status == 200


def test_a_thousand_guesses_are_ten_answers_and_no_more_log(tmp_path):
    with running_api(tmp_path) as api, capture_logs() as logs, api.raw() as sock:
        guess = b"GET /status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %d\r\n\r\n"
        began, statuses = time.monotonic(), []
        for number in range(1000):
            response = said(sock, guess % number)
            response.read()
            statuses.append(response.status)
        seconds = time.monotonic() - began

    assert statuses.count(401) <= WIDE.wrong_tokens_at_once + 1 + seconds * WIDE.wrong_tokens_per_second
    assert set(statuses) == {401, 429}
    counted = [record["event"] for record in logs]
    assert counted.count("api_client_limited") == 1
    assert counted.count("api_request") == counted.count("api_token_refused") == statuses.count(401)


def test_the_server_is_the_same_size_after_a_thousand_broken_clients(tmp_path: Path):
    with running_api(tmp_path, limits=replace(WIDE, wait_seconds=0.5, handshake_seconds=0.5)) as api:
        served_soon(api)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for number in range(300):
            with plain(api) as sock:
                sock.sendall(b"\x16\x03\x01rubbish"[: number % 10])

        served_soon(api)
        until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before + 2, "descriptors given back")
