"""A log API for tests: a daemon without work on a real socket, the real server over TLS, a strict client."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from s5jtd import shapes
from s5jtd.api import run, tls, tokens
from s5jtd.api.limits import Limits
from s5jtd.api.server import Server
from s5jtd.control import requests
from s5jtd.control.server import ControlServer
from s5jtd.control.verbs import verbs
from s5jtd.errors import S5jtError, UsageError
from tests.fake_controls import FakeControls

#: So wide that only a test that narrows them meets them.
WIDE = replace(Limits(), requests_per_second=1e6, requests_at_once=10**6)


class ReportControls(FakeControls):
    """With as many reports as a test wants, and as many objects in each; none of them is in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = [1769860000]
        self.objects = 1
        self.key = "missions/{number:09}.bin"
        self.fails: S5jtError | None = None  #: what `status` fails with

    def status(self, request: requests.Status) -> shapes.Status:
        if self.fails is not None:
            raise self.fails
        return super().status(request)

    def report_list(self, request: requests.ReportList) -> shapes.ReportList:
        if request.job is not None:
            self._job(request.job)
        row = super().report_list(requests.ReportList())["reports"][0]
        inside = [
            epoch
            for epoch in sorted(self.epochs, reverse=True)
            if (request.start or 0) <= epoch <= (epoch if request.end is None else request.end)
        ]
        return {"reports": [{**row, "id": epoch} for epoch in inside[: request.limit]]}

    def report_get(self, request: requests.ReportGet) -> shapes.Report:
        if request.id not in self.epochs:
            raise UsageError(f"there is no report {request.id}", hint="list them: s5jtctl reports")
        report = super().report_get(requests.ReportGet(id=1769860000, objects=True))
        [one] = report.pop("objects")
        if request.objects:
            at = int(request.after or 0)
            end = min(self.objects, at + request.limit)
            report["objects"] = [{**one, "key": self.key.format(number=number)} for number in range(at, end)]
            report["next"] = str(end) if end < self.objects else None
        return report


@dataclass(frozen=True)
class Answer:
    """One response."""

    status: int
    headers: Mapping[str, str]  #: names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error, whose whole shape is checked on the way."""
        assert self.headers["content-type"] == "application/json"
        error = self.json["error"]
        assert list(error) == ["code", "message", "hint"]
        assert all(isinstance(text, str) and text for text in error.values())
        return str(error["code"])


@dataclass(frozen=True)
class LogApi:
    """One API that listens."""

    port: int
    token: str
    certificate: Path
    controls: ReportControls

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def context(self) -> ssl.SSLContext:
        """Of a careful client: it trusts this one certificate, by the strict rules of newer Pythons."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    def connection(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=self.context())

    def get(self, path: str, *, token: str | None = "", method: str = "GET", **headers: str) -> Answer:
        """One request on a connection of its own; a token of None is not shown."""
        with contextlib.closing(self.connection()) as connection:
            return self.ask(connection, path, token=token, method=method, **headers)

    def ask(
        self,
        connection: http.client.HTTPSConnection,
        path: str,
        *,
        token: str | None = "",
        method: str = "GET",
        **headers: str,
    ) -> Answer:
        if token is not None:
            headers["authorization"] = f"Bearer {token or self.token}"
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )

    def raw(self, *, tls: bool = True) -> socket.socket:
        """A connection on which a test says what it likes."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return self.context().wrap_socket(sock, server_hostname="127.0.0.1") if tls else sock


@contextlib.contextmanager
def running_api(
    folder: Path, controls: ReportControls | None = None, limits: Limits = WIDE, *, daemon: bool = True
) -> Iterator[LogApi]:
    """The API in this process, on a port of its own."""
    controls = controls or ReportControls()
    tokens.create(folder / "api.token")
    certificate, _ = tls.create(folder, (), tls.now())
    guard_token = tokens.read(folder / "api.token")
    context, ends = tls.context(certificate, folder / tls.KEY, tls.now())
    socket_path = folder / "control.sock"
    with contextlib.ExitStack() as stack:
        if daemon:
            stack.enter_context(ControlServer(socket_path, verbs(controls), group=""))
        listening = stack.enter_context(run.listener("127.0.0.1:0"))
        guard = run.guarded(str(socket_path), guard_token, ends, limits)
        stack.enter_context(_serving(Server(guard, listening, context, limits)))
        yield LogApi(
            listening.getsockname()[1], (folder / "api.token").read_text().strip(), certificate, controls
        )


@contextlib.contextmanager
def _serving(server: Server) -> Iterator[None]:
    """A server in a thread; whatever ends it early ends the test."""
    failed: list[Exception] = []
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    def serve() -> None:
        try:
            loop.run_until_complete(server.serve(stop))
        except Exception as error:  # noqa: BLE001  whatever it is, the test has to hear of it
            failed.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=serve, name="log-api")
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()
        assert not failed, failed
