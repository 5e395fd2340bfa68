"""The program of one demo S3 server: moto's S3 behind a small HTTP front that keeps connections open.

Run as a file, apart from the package: it needs moto and the standard library only.  It prints the port it
got as one JSON line, serves on loopback, and ends when its standard input does, so it never outlives its
parent, however that one dies.

Why an own front: the development server of werkzeug closes each connection and then waits up to 10 ms for
more; keeping them open more than doubles the requests per second.  It also hides nothing: moto takes keys
from RAW_URI, so `//`, `..` and the like arrive as they were sent.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import traceback
from http import HTTPStatus
from typing import Any

from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from moto.s3.models import FakeKey
from werkzeug.serving import make_server

_REFUSAL = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>InvalidAccessKeyId</Code><Message>This server does not know that key.</Message></Error>"
)
_BREAKDOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>'
    b"<Error><Code>InternalError</Code><Message>The demo server broke.</Message></Error>"
)
_OWN_HEADERS = {"connection", "transfer-encoding", "content-length"}
#: Sub-resources that tell requests apart which otherwise look like a GET or PUT of the object.
_KINDS = {"tagging": "tagging", "acl": "acl", "uploads": "upload", "partNumber": "part", "uploadId": "upload"}

Answer = tuple[str, list[tuple[str, str]], bytes]


class Handler(MotoRequestHandler):
    """One connection, any number of requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    access_key: str
    requests_fd: int | None
    app: Any

    def run_wsgi(self) -> None:
        """Answer one request; its body is read whole, so the connection is clean for the next."""
        environ = self.make_environ()
        # Only moto's routing looks at this, and its pattern ends at a newline; the key comes from RAW_URI.
        environ["PATH_INFO"] = environ["PATH_INFO"].replace("\n", "_")
        if not environ.get("wsgi.input_terminated"):
            length = int(self.headers.get("Content-Length") or 0)
            environ["wsgi.input"] = io.BytesIO(self.rfile.read(length))
        if f"Credential={self.access_key}/" not in self.headers.get("Authorization", ""):
            answer: Answer = ("403 Forbidden", [("Content-Type", "application/xml")], _REFUSAL)
        else:
            answer = self._ask_moto(environ)
        self._record(answer)
        self._send(answer)

    def _ask_moto(self, environ: dict[str, Any]) -> Answer:
        started: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], _exc_info: object = None) -> None:
            started[:] = [status, headers]

        try:
            body = b"".join(self.app(environ, start_response))
            return started[0], started[1], body
        except Exception:  # noqa: BLE001  whatever broke, the client gets an answer
            traceback.print_exc()
            return "500 Internal Server Error", [("Content-Type", "application/xml")], _BREAKDOWN

    def _send(self, answer: Answer) -> None:
        status, headers, body = answer
        is_head = self.command == "HEAD"
        lines = [f"HTTP/1.1 {status}"]
        for name, value in headers:
            if name.lower() not in _OWN_HEADERS or (is_head and name.lower() == "content-length"):
                lines.append(f"{name}: {value}")
        if not is_head and not status.startswith(str(HTTPStatus.NO_CONTENT.value)):
            lines.append(f"Content-Length: {len(body)}")
        self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        if body and not is_head:
            self.wfile.write(body)

    def _record(self, answer: Answer) -> None:
        if self.requests_fd is None:
            return
        path, _, query = self.path.partition("?")
        names = {part.partition("=")[0] for part in query.split("&")}
        plain = "object" if path[1:].partition("/")[2] else "bucket"
        kind = next((word for name, word in _KINDS.items() if name in names), plain)
        moved = len(answer[2]) if self.command == "GET" else int(self.headers.get("Content-Length") or 0)
        line = "\t".join([self.command, kind, answer[0][:3], str(moved), self.path])
        os.write(self.requests_fd, line.encode("latin-1") + b"\n")  # O_APPEND: whole lines from any thread

    def log(self, *_: object) -> None:
        """Say nothing on stderr; `_record` keeps what is wanted."""


def hash_under_lock() -> None:
    """Let moto compute an ETag, which it does at the first look, under the lock it reads objects under.

    Without it a GET of the same object moves the file's position meanwhile, and a wrong ETag stays for good.
    """
    unlocked: property = vars(FakeKey)["etag"]

    def etag(key: FakeKey) -> Any:
        with key.lock:
            return unlocked.__get__(key)

    FakeKey.etag = property(etag)  # type: ignore[method-assign,assignment]  # moto's own class is mended


def end_with_stdin() -> None:
    """End this process when whoever started it has closed its end, or died."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Serve until standard input ends."""
    Handler.access_key = os.environ["DEMO_ACCESS_KEY"]
    path = os.environ.get("DEMO_REQUESTS_FILE")
    Handler.requests_fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if path else None
    Handler.app = create_backend_app("s3")
    hash_under_lock()
    server = make_server("127.0.0.1", 0, Handler.app, threaded=True, request_handler=Handler)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    print(json.dumps({"port": server.server_address[1]}), flush=True)  # noqa: T201  read by the parent
    server.serve_forever()


if __name__ == "__main__":
    main()
