"""S3 servers for tests: moto and rclone as real processes, and small ones that answer as they are told.

moto is AWS-like (multipart ETags, checksums, part numbers, versions, v1 and v2) and checks no signatures.
rclone serves a folder: it checks signatures, knows no part numbers, and a multipart ETag is the MD5 of the
whole there.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote_to_bytes
from xml.sax.saxutils import escape

import boto3
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from s5jtd.s3.client import S3Client
from s5jtd.s3.credentials import CredentialProvider, Credentials, CredentialSource

ACCESS_KEY = "FAKEACCESSKEY"
SECRET_KEY = "fake-secret-for-tests"
REGION = "us-east-1"

_START_SECONDS = 30.0
_MOTO_PROGRAM = Path(__file__).parents[1] / "s5jtd" / "demo" / "s3server.py"

#: Keys that S3 allows and that programs break on.  S5CMD.md calls them row 4; the rest are twins of each
#: other, markers of folders, and keys as long as keys may be.
ODD_KEYS: tuple[bytes, ...] = tuple(
    key.encode()
    for key in (
        " leading space", "trailing space ", "in the  middle", " ",
        "single'quote", 'double"quote', "back\\slash", "star*", "question?", "[brackets]", "hash#tag",
        "semi;colon", "dollar$HOME", "percent%20", "percent%", "plus+sign", "ampersand&", "less<than>",
        "~tilde",
        "double//slash", "/leading slash", "//two leading", "./dot", "a/./dot", "../dotdot", "a/../../dotdot",
        "trailing dot/.", "trailing dots/..", ".", "..",
        "tab\there", "carriage\rreturn", "new\nline", "\x01control", "escape\x1b[31m", "delete\x7f",
        "emoji 😀", "caf\u00e9", "cafe\u0301", "CASE", "case", "next\u0085line", "line\u2028separator",
        "folder/", "folder/object", "folder//", "k" * 1024, "/".join(["p" * 204] * 5),
    )
)  # fmt: skip

_SEGMENTS = {key: key.split(b"/") for key in ODD_KEYS}
#: A folder has no such names, so rclone answers 400 or 500; "folder/" made a file of "folder" before.
RCLONE_REFUSES: frozenset[bytes] = frozenset({b"folder/object"}) | frozenset(
    key
    for key, (*above, name) in _SEGMENTS.items()
    if (name and b"" in above) or {b".", b".."} & {*above, name} or len(name) > 255
)
#: rclone takes these and gives them other names: control characters become their pictures (U+2409 for a
#: tab), a folder's marker loses its "/".  It serves them under their own names for a moment only.
RCLONE_RENAMES: frozenset[bytes] = frozenset(
    key
    for key in ODD_KEYS
    if key not in RCLONE_REFUSES and (key.endswith(b"/") or any(byte < 0x20 or byte == 0x7F for byte in key))
)


class Request(NamedTuple):
    """One request as a server's log has it."""

    method: str
    kind: str  #: object, part, upload, tagging, acl or bucket
    status: int | None  #: None where the log does not say
    key: bytes  #: b"" where the request was for the bucket


class AccessLog:
    """What a server was asked, read from its log as it grows."""

    def __init__(self, path: Path, parse: Callable[[bytes], Request | None]) -> None:
        self._path = path
        self._parse = parse
        self._from_bytes = 0

    def clear(self) -> None:
        """Forget what was asked until now."""
        self._from_bytes = self._path.stat().st_size

    def requests(self) -> list[Request]:
        """All requests since `clear`, in order."""
        with self._path.open("rb") as file:
            file.seek(self._from_bytes)
            found = (self._parse(line) for line in file.read().split(b"\n"))
        return [request for request in found if request is not None]

    def count(self, method: str, key: bytes | None = None, *, kind: str = "object") -> int:
        """How many requests of this kind there were, for `key` or for any."""
        return sum(
            request.method == method and request.kind == kind and key in {None, request.key}
            for request in self.requests()
        )


@dataclass(frozen=True)
class Server:
    """A running S3 server."""

    name: str
    url: str
    log: AccessLog
    access_key: str = ACCESS_KEY
    secret_key: str = field(default=SECRET_KEY, repr=False)
    ca_bundle: Path | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def boto(self) -> Any:
        """A boto3 client that changes nothing by itself: no checksums of its own, no retries."""
        return _session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            verify=str(self.ca_bundle) if self.ca_bundle else None,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"max_attempts": 0},
            ),
        )

    def new_bucket(self) -> str:
        """An empty bucket that no other test has."""
        bucket = f"bucket-{os.getpid()}-{next(self._numbers)}"
        with contextlib.closing(self.boto()) as boto:
            boto.create_bucket(Bucket=bucket)
        return bucket

    def fill(self, bucket: str, objects: Mapping[bytes, bytes]) -> None:
        """Put objects into a bucket."""
        with contextlib.closing(self.boto()) as boto:
            for key, body in objects.items():
                boto.put_object(Bucket=bucket, Key=key.decode(), Body=body)

    def client(self, bucket: str, **options: Any) -> S3Client:
        """Our own client."""
        return S3Client(bucket, credentials=self.credentials(), endpoint_url=self.url, **options)

    def credentials(self) -> CredentialProvider:
        """What our own client signs with."""
        return provider(self.access_key, self.secret_key)


@functools.cache
def _session() -> Any:
    """One for all: a session reads botocore's files once, which takes longer than most tests."""
    return boto3.session.Session()


def provider(access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> CredentialProvider:
    """Credentials as from a configuration."""
    return CredentialProvider(CredentialSource(keys=Credentials(access_key, secret_key)))


@contextlib.contextmanager
def running_moto(folder: Path) -> Iterator[Server]:
    """Run moto's S3 in a process of its own, with connections that stay open (the demo's server)."""
    log = folder / "moto.log"
    log.touch()
    process = subprocess.Popen(
        [sys.executable, "-I", os.fspath(_MOTO_PROGRAM)],
        env={
            "DEMO_ACCESS_KEY": ACCESS_KEY,
            "DEMO_REQUESTS_FILE": os.fspath(log),
            "PATH": os.defpath,
            "TMPDIR": os.fspath(folder),
        },
        stdin=subprocess.PIPE,  # it ends when this does
        stdout=subprocess.PIPE,
    )
    with _ended(process):
        assert process.stdout
        readable, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        assert readable, "moto did not start"
        port = json.loads(process.stdout.readline())["port"]
        yield Server("moto", f"http://127.0.0.1:{port}", AccessLog(log, _moto_request))


@contextlib.contextmanager
def running_rclone(folder: Path, certificates: Certificates | None = None) -> Iterator[Server]:
    """`rclone serve s3` on a folder, over TLS if certificates are given."""
    data, log = folder / "data", folder / "rclone.log"
    data.mkdir()
    program = Path(sysconfig.get_path("scripts"), "rclone")
    command = [
        *_ends_with_us(), os.fspath(program), "serve", "s3", os.fspath(data),
        "--config", os.devnull, "--addr", "127.0.0.1:0", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}",
        "-vv", "--log-file", os.fspath(log),
    ]  # fmt: skip
    if certificates:
        command += ["--cert", os.fspath(certificates.chain), "--key", os.fspath(certificates.key)]
    process = subprocess.Popen(command, env={"PATH": os.defpath, "HOME": os.fspath(folder)})
    with _ended(process):
        url = _wait_for(lambda: _rclone_url(log), process, "rclone")
        ca_bundle = certificates.ca if certificates else None
        yield Server("rclone", url, AccessLog(log, _rclone_request), ca_bundle=ca_bundle)


#: Where `make test-go` puts the servers it builds.
GO_PROGRAMS = Path(__file__).parents[1] / ".venv" / "go"


def go_program(name: str) -> Path | None:
    """A server built with `go install`, if there is one."""
    found = shutil.which(name, path=f"{GO_PROGRAMS}:{os.environ.get('PATH', os.defpath)}")
    return Path(found) if found else None


@contextlib.contextmanager
def running_versitygw(folder: Path, program: Path, port: int = 0) -> Iterator[Server]:
    """Versity's gateway on a folder whose file system has extended attributes, and what it left there."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    port = port or free_port()
    command = [*_ends_with_us(), os.fspath(program), "--port", f"127.0.0.1:{port}", "--keep-alive", "--quiet"]
    with _serving(
        "versitygw", [*command, "posix", os.fspath(data)], folder, port, "ROOT_ACCESS_KEY", "ROOT_SECRET_KEY"
    ) as server:
        yield server


@contextlib.contextmanager
def running_minio(folder: Path, program: Path) -> Iterator[Server]:
    """MinIO on one folder."""
    port = free_port()
    command = [*_ends_with_us(), os.fspath(program), "server", "--quiet", "--address", f"127.0.0.1:{port}"]
    with _serving(
        "minio",
        [*command, os.fspath(folder / "data")],
        folder,
        port,
        "MINIO_ROOT_USER",
        "MINIO_ROOT_PASSWORD",
    ) as server:
        yield server


@contextlib.contextmanager
def _serving(
    name: str, command: list[str], folder: Path, port: int, access: str, secret: str
) -> Iterator[Server]:
    log = folder / f"{name}.log"
    environment = {"PATH": os.defpath, "HOME": os.fspath(folder), access: ACCESS_KEY, secret: SECRET_KEY}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    with _ended(process):
        _wait_for(lambda: _answers(port), process, name)
        yield Server(name, f"http://127.0.0.1:{port}", AccessLog(log, lambda _line: None))


def free_port() -> int:
    """A port that nobody listened on a moment ago, for servers that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> str | None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return "yes"
    return None


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _ends_with_us() -> list[str]:
    """A server must not outlive a test run that was killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []


def _wait_for(look: Callable[[], str | None], process: subprocess.Popen[bytes], name: str) -> str:
    ends = time.monotonic() + _START_SECONDS
    while time.monotonic() < ends:
        assert process.poll() is None, f"{name} ended by itself"
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{name} did not start")


def _rclone_url(log: Path) -> str | None:
    found = re.search(r"Starting s3 server on \[(https?://[^/]+)/\]", log.read_text() if log.exists() else "")
    return found[1] if found else None


def _moto_request(line: bytes) -> Request | None:
    if not line:
        return None
    method, kind, status, _moved, target = line.decode("latin-1").split("\t")
    key = unquote_to_bytes(target.partition("?")[0][1:].partition("/")[2])
    return Request(method, kind, int(status), key)


#: What rclone writes when it is asked, and the request that makes it write so.
_RCLONE_WORDS = {
    rb"HEAD OBJECT \S+ (?P<key>.*)": ("HEAD", "object"),
    rb"GET OBJECT Bucket: \S+ Object: (?P<key>.*)": ("GET", "object"),
    rb"CREATE OBJECT: \S+ (?P<key>.*)": ("PUT", "object"),
    rb"DELETE: \S+ (?P<key>.*)": ("DELETE", "object"),
    rb"initiate multipart upload \S+ (?P<key>.*)": ("POST", "upload"),
    rb"put multipart upload \S+ (?P<key>.*) \S+": ("PUT", "part"),
    rb"complete multipart upload \S+ (?P<key>.*) \S+": ("POST", "upload"),
    rb"LIST BUCKET": ("GET", "bucket"),
    rb"HEAD BUCKET \S+": ("HEAD", "bucket"),
}


def _rclone_request(line: bytes) -> Request | None:
    _, _, words = line.partition(b" : serve s3: ")
    for pattern, (method, kind) in _RCLONE_WORDS.items():
        found = re.fullmatch(pattern, words)
        if found:
            return Request(method, kind, None, found.groupdict().get("key", b""))
    return None


@dataclass(frozen=True)
class Certificates:
    """A private CA and a server's certificate from it."""

    ca: Path  #: PEM
    chain: Path  #: PEM
    key: Path  #: PEM


def make_certificates(folder: Path, *, host: str = "127.0.0.1", expired: bool = False) -> Certificates:
    """A CA of a site, and a certificate for `host`, an address or a name."""
    now = datetime.now(UTC)
    ends = now - timedelta(days=1) if expired else now + timedelta(days=1)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(name: str, public: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")]))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(ends)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(ca_key, hashes.SHA256())

    names: list[x509.GeneralName] = [x509.DNSName(host)]
    with contextlib.suppress(ValueError):
        names = [x509.IPAddress(ip_address(host))]
    found = Certificates(folder / "ca.pem", folder / "chain.pem", folder / "key.pem")
    ca = certificate("test CA", ca_key.public_key(), x509.BasicConstraints(ca=True, path_length=0))
    leaf = certificate(host, key.public_key(), x509.SubjectAlternativeName(names))
    found.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    found.chain.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    found.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return found


class Asked(NamedTuple):
    """One request as a told server received it."""

    method: str
    target: str  #: path and query, as they stood in the request line
    query: Mapping[str, bytes]
    headers: Mapping[str, str]  #: names in lower case

    @property
    def path(self) -> str:
        """The path as it was sent."""
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Reply:
    """What a told server answers."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_bytes: int | None = None  #: the connection ends after so many bytes of the body
    silence: threading.Event | None = None  #: says nothing until this is set
    hangs_up: bool = False  #: ends the connection instead of answering


class ToldServer:
    """Answers every request with what `reply` returns for it, and remembers what it was asked."""

    def __init__(self, reply: Callable[[Asked], Reply], certificates: Certificates | None = None) -> None:
        self.reply = reply
        self.asked: list[Asked] = []
        self.connections = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if certificates:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates.chain, certificates.key)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        scheme = "https" if certificates else "http"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def client(self, bucket: str = "bucket", **options: Any) -> S3Client:
        """Our own client."""
        return S3Client(bucket, **{"credentials": provider(), "endpoint_url": self.url, **options})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        told = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                told.connections += 1
                super().setup()

            def handle(self) -> None:
                with contextlib.suppress(OSError):  # whoever hung up need not be told of it
                    super().handle()

            def answer(self) -> None:
                names = (part.partition("=") for part in self.path.partition("?")[2].split("&") if part)
                asked = Asked(
                    self.command,
                    self.path,
                    {name: unquote_to_bytes(value) for name, _, value in names},
                    {name.lower(): value for name, value in self.headers.items()},
                )
                told.asked.append(asked)
                self.send(told.reply(asked))

            def send(self, reply: Reply) -> None:
                if reply.silence:
                    reply.silence.wait(_START_SECONDS)
                if reply.hangs_up:
                    self.close_connection = True
                    return
                self.send_response_only(reply.status)
                headers = {"Content-Length": str(len(reply.body)), **reply.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(reply.body[: reply.cut_bytes])
                self.close_connection = self.close_connection or reply.cut_bytes is not None

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler


def listing(
    objects: Mapping[bytes, int], elements: Mapping[str, str] | None = None, *, encoded: bool = False
) -> bytes:
    """A listing's XML: keys with sizes, then `elements` such as IsTruncated."""
    told = {"IsTruncated": "false", **({"EncodingType": "url"} if encoded else {}), **(elements or {})}
    entries = [
        f"<Contents><Key>{quote(key) if encoded else escape(key.decode())}</Key>"
        "<LastModified>2024-05-01T10:20:30.400Z</LastModified><ETag>&quot;abc&quot;</ETag>"
        f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for key, size in objects.items()
    ]
    others = [f"<{name}>{escape(text)}</{name}>" for name, text in told.items()]
    inner = "".join([*entries, *others])
    root = '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{root}{inner}</ListBucketResult>'.encode()


def refused(status: int, code: str, message: str = "", **elements: str) -> Reply:
    """An error as S3 writes it."""
    others = "".join(f"<{name}>{escape(text)}</{name}>" for name, text in elements.items())
    body = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message>{others}</Error>"
    return Reply(status, body.encode(), {"Content-Type": "application/xml"})


class SnowballLike(ToldServer):
    """Lists as the Snowball adapter does: version 1 only, all at once, in no order, without a marker."""

    def __init__(self, objects: Mapping[bytes, bytes]) -> None:
        self.objects = dict(objects)
        super().__init__(self._answer)

    def _answer(self, asked: Asked) -> Reply:
        key = unquote_to_bytes(asked.path.partition("/")[2].partition("/")[2])
        if key:
            body = self.objects.get(key)
            if body is None:
                return refused(404, "NoSuchKey") if asked.method == "GET" else Reply(404)
            return Reply(200, body, {"ETag": '"abc"', "Last-Modified": "Wed, 01 May 2024 10:20:30 GMT"})
        if asked.method == "HEAD":
            return Reply(200)
        prefix = asked.query.get("prefix", b"")
        shown = {k: len(body) for k, body in self.objects.items() if k.startswith(prefix)}
        return Reply(200, listing(shown, {"Marker": ""}))
