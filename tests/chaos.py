"""A hostile network and a lying S3 server for tests: a reverse proxy that injects the faults it is given.

    with Chaos(server_url) as chaos:
        chaos.add(Truncate(1000, method="GET", key="a.bin", nth=2))
        ...  # the program under test talks to chaos.url
        assert chaos.counts()["GET", b"a.bin"] == 3

Bodies are streamed both ways, and Host reaches the server as the client sent and signed it.  A fault's
docstring begins with its rows in the catalogue of faults: N for the network, S for what S3 answers.
Connections that are refused (N1, N9, N10) or swallowed (N2) are `Chaos.pause`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import math
import posixpath
import random
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import KW_ONLY, dataclass, field
from http import HTTPStatus
from typing import ClassVar, Literal, NoReturn, Self
from urllib.parse import parse_qsl, quote_from_bytes, unquote_to_bytes, urlsplit

PIECE_BYTES = 128 * 1024
#: Of each client's connection: small, so that a stall or a thin link is soon felt at the other end.
SOCKET_BUFFER_BYTES = 128 * 1024

Body = Iterator[bytes]
Luck = random.Random


class Cut(Exception):
    """The client's connection ends here, by RST where `reset`, else by FIN."""

    def __init__(self, *, reset: bool = False) -> None:
        super().__init__()
        self.reset = reset


class Headers(list[tuple[str, str]]):
    """In the order and the spelling in which they were sent."""

    def find(self, name: str) -> str:
        """The first value of `name`, in any case; empty if there is none."""
        return next((value for known, value in self if known.lower() == name.lower()), "")

    def length(self) -> int:
        """Bytes of the body to come, as promised; 0 if nothing is."""
        return int(self.find("Content-Length") or 0)

    def put(self, name: str, value: str | None) -> None:
        """Replace all of `name`; None removes them."""
        self[:] = [pair for pair in self if pair[0].lower() != name.lower()]
        if value is not None:
            self.append((name, value))


@dataclass
class Request:
    """What a client asks; faults may change it before it goes on."""

    method: str
    target: str  #: path and query as they were sent
    headers: Headers
    body: Body
    #: Lets seconds pass, None: for ever; raises Cut as soon as the client is gone or the proxy closes.
    wait: Callable[[float | None], None]

    @property
    def key(self) -> bytes:
        """The object's key; empty for a request about the bucket."""
        return _key(self.target.partition("?")[0])


@dataclass
class Reply:
    """What the client will hear."""

    status: int
    reason: str
    headers: Headers
    body: Body


def by_s5cmd(request: Request) -> bool:
    """Whether s5cmd asks: it names the SDK that it is built on."""
    return "aws-sdk-go" in request.headers.find("User-Agent")


Forward = Callable[[Request], Reply]


@dataclass
class Exchange:
    """One line of the log: a request, and what has become of it so far."""

    method: str
    path: str  #: as it was sent
    query: str  #: as it was sent, without `?`
    status: int = 0  #: 0: nothing was answered
    request_bytes: int = 0  #: of the body the client sent
    response_bytes: int = 0  #: of the body handed to the client's connection
    fault: str = ""  #: the classes of the faults that took part, joined by `+`

    @property
    def key(self) -> bytes:
        """The object's key; empty for a request about the bucket."""
        return _key(self.path)

    @property
    def fetches(self) -> bool:
        """Whether it asks for the bytes of an object, and not for its tags or a list."""
        return self.method == "GET" and bool(self.key) and not self.query.startswith("tagging")


@dataclass
class Fault:
    """What goes wrong, and for which requests: for all that match, unless nth, every or share pick some.

    What is left to luck depends on the seed, on the request, and on how often the same one came before;
    never on the order in which different requests arrive.
    """

    _: KW_ONLY
    method: str = ""  #: one, or several with spaces between
    key: str | bytes | None = None  #: exactly; empty: requests about the bucket, such as listings
    prefix: str | bytes = b""  #: of the key
    query: str = ""  #: what must be in the query, e.g. "uploads" or "partNumber=2&uploadId"
    where: Callable[[Request], bool] | None = None  #: anything else
    nth: int | range | None = None  #: counted from 1
    every: int = 1  #: 3: the third, the sixth, ...
    share: float = 1.0

    def matches(self, request: Request) -> bool:
        """Whether this kind of request is meant."""
        there = dict(parse_qsl(request.target.partition("?")[2], keep_blank_values=True))
        wanted = (pair.partition("=") for pair in self.query.split("&") if pair)
        return (
            (not self.method or request.method in self.method.split())
            and (self.key is None or request.key == _as_bytes(self.key))
            and request.key.startswith(_as_bytes(self.prefix))
            and all(name in there and there[name] == (value or there[name]) for name, _, value in wanted)
            and (self.where is None or self.where(request))
        )

    def picks(self, count: int, luck: Luck) -> bool:
        """Whether the `count`-th match is hit."""
        nth = (self.nth,) if isinstance(self.nth, int) else self.nth
        return (nth is None or count in nth) and count % self.every == 0 and luck.random() < self.share

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        """Answer the request, with or without the help of the server behind `forward`."""
        raise NotImplementedError


@dataclass
class Silence(Fault):
    """N3, N17: the connection is accepted, a request is heard, and that was all."""

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        _stall(request)


@dataclass
class BodyFault(Fault):
    """What befalls the body of the reply, or of the request."""

    _: KW_ONLY
    side: Literal["request", "reply"] = "reply"

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        if self.side == "request":
            request.body = self.flow(request.body, request.headers.length(), request, luck)
            return forward(request)
        reply = forward(request)
        reply.body = self.flow(reply.body, reply.headers.length(), request, luck)
        return reply

    def flow(self, body: Body, size_bytes: int, request: Request, luck: Luck) -> Body:
        """The body as the other side will see it."""
        raise NotImplementedError


@dataclass
class Stall(BodyFault):
    """N4, N17, N18: after `after` bytes of the body nothing moves, and the connection stays."""

    after: int = 0  #: bytes; a shorter body, or an empty one, passes

    def flow(self, body: Body, size_bytes: int, request: Request, luck: Luck) -> Body:
        left = self.after
        for piece in body:
            if len(piece) >= left:
                yield piece[:left]
                self.end(request)
            left -= len(piece)
            yield piece

    def end(self, request: Request) -> NoReturn:
        _stall(request)


@dataclass
class Reset(Stall):
    """N5: RST after `after` bytes of the body."""

    def end(self, request: Request) -> NoReturn:
        raise Cut(reset=True)


@dataclass
class Truncate(Stall):
    """N6: an orderly close after `after` bytes of the body, short of the promised Content-Length."""

    def end(self, request: Request) -> NoReturn:
        raise Cut


@dataclass
class Flip(BodyFault):
    """N15: one byte of a body is another one; luck says which, unless `at` does."""

    at: int | None = None  #: offset in this body, which for a ranged GET is not the one in the object

    def flow(self, body: Body, size_bytes: int, request: Request, luck: Luck) -> Body:
        at = luck.randrange(max(1, size_bytes)) if self.at is None else self.at
        for piece in body:
            if 0 <= at < len(piece):
                yield piece[:at] + bytes([piece[at] ^ 0xFF]) + piece[at + 1 :]
            else:
                yield piece
            at -= len(piece)


@dataclass
class Bandwidth(Fault):
    """N8: one thin link, shared by all connections and by both directions; bursts are 0.1 s."""

    bytes_per_s: float
    _free_at: float = field(default=0.0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        request.body = self._paced(request.body, request)
        reply = forward(request)
        reply.body = self._paced(reply.body, request)
        return reply

    def _paced(self, body: Body, request: Request) -> Body:
        step = min(PIECE_BYTES, max(1, int(self.bytes_per_s / 50)))
        for piece in body:
            for start in range(0, len(piece), step):
                part = piece[start : start + step]
                request.wait(self._delay_s(len(part)))
                yield part

    def _delay_s(self, size_bytes: int) -> float:
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now - 0.1, self._free_at) + size_bytes / self.bytes_per_s
            return self._free_at - now


@dataclass
class Delay(Fault):
    """N7 latency, S18 slow first byte: the server has done it, and its answer comes late."""

    seconds: float
    jitter_s: float = 0.0

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        reply = forward(request)
        request.wait(self.seconds + luck.random() * self.jitter_s)
        return reply


@dataclass
class LostReply(Fault):
    """N5, N6 at the worst moment: the server has done it, and its answer never arrives."""

    reset: bool = True

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        _drain(forward(request).body)
        raise Cut(reset=self.reset)


@dataclass
class Portal(Fault):
    """N14: a captive portal answers everything with 200 and its page."""

    page: bytes = b"<!DOCTYPE html><html><body>Welcome aboard. Please log in.</body></html>"

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        return _reply(200, self.page, "text/html; charset=utf-8")


@dataclass
class Normalise(Fault):
    """N16: something on the way tidies paths: `//`, `..` and `%2F` arrive as something else."""

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        path, mark, query = request.target.partition("?")
        request.target = quote_from_bytes(posixpath.normpath(unquote_to_bytes(path))) + mark + query
        return forward(request)


@dataclass
class Refuse(Fault):
    """S1, S3, S4, S5, S6, S14, S15, S21: an error, by S3's own code; the server hears nothing."""

    code: str
    status: int | None = None  #: None: the one S3 itself has for this code
    retry_after_s: int | None = None

    #: As AWS has them; other servers say 403 for an expired token.
    STATUS: ClassVar[dict[str, int]] = {
        "AccessDenied": 403,
        "ExpiredToken": 400,
        "InternalError": 500,
        "InvalidAccessKeyId": 403,
        "InvalidObjectState": 403,
        "NoSuchBucket": 404,
        "NoSuchKey": 404,
        "NoSuchUpload": 404,
        "RequestTimeTooSkewed": 403,
        "SignatureDoesNotMatch": 403,
        "SlowDown": 503,
    }

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        reply = _error(self.status or self.STATUS[self.code], self.code)
        if self.retry_after_s is not None:
            reply.headers.put("Retry-After", str(self.retry_after_s))
        return reply


@dataclass
class BadComplete(Fault):
    """S2: CompleteMultipartUpload answers 200 with an error inside; `done`: and yet it was done."""

    done: bool = False
    method: str = field(default="POST", kw_only=True)
    query: str = field(default="uploadId", kw_only=True)

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        if self.done:
            _drain(forward(request).body)
        return _error(200, "InternalError")


@dataclass
class Assembling(Fault):
    """S2: putting the parts together outlives the link.

    The first `cuts` who ask for it are cut off.  Whoever asks then is told that it is done, or, unless
    `says_done`, that there is no such upload; with the third look at the object after that it is there.
    """

    cuts: int
    says_done: bool
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False)
    _asked: Request | None = field(default=None, init=False)
    _etag: str = field(default="", init=False)
    _looks: int = field(default=0, init=False)

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        is_about_upload = "uploadId=" in request.target
        with self._turn:
            if request.method == "POST" and is_about_upload:
                return self._complete(request)
            if self._etag and request.method == "GET" and is_about_upload:
                return _error(404, "NoSuchUpload")
            if self._asked is not None and self.cuts < 0 and request.method == "HEAD" and request.key:
                self._looks += 1
                if self._looks == 3:
                    _drain(forward(self._asked).body)
                    self._asked = None
        return forward(request)

    def _complete(self, request: Request) -> Reply:
        body = b"".join(request.body)
        if not self._etag:
            md5s = [bytes.fromhex(md5.decode()) for md5 in re.findall(rb"[0-9a-f]{32}", body)]
            self._etag = f"{hashlib.md5(b''.join(md5s)).hexdigest()}-{len(md5s)}"
            self._asked = request
            request.body = iter([body])
        self.cuts -= 1
        if self.cuts >= 0:
            raise Cut(reset=True)
        if not self.says_done:
            return _error(404, "NoSuchUpload")
        name = "CompleteMultipartUploadResult"
        return _reply(200, f"<{name}><ETag>{self._etag}</ETag></{name}>".encode(), "application/xml")


@dataclass
class Meanwhile(Fault):
    """S6, S7, S12, S13: `act` is what others do just before the server hears the request."""

    act: Callable[[], object]

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        self.act()
        return forward(request)


@dataclass
class Torn(Fault):
    """S7: the first request sees the old object, then `overwrite` runs, and the others see the new one."""

    overwrite: Callable[[], object]
    method: str = field(default="GET", kw_only=True)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False)
    _torn: bool = field(default=False, init=False)

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        with self._turn:
            if not self._torn:
                reply = forward(request)
                reply.body = iter([b"".join(reply.body)])  # all of it, before it changes
                self.overwrite()
                self._torn = True
                return reply
        return forward(request)


@dataclass
class Listing(Fault):
    """S8, S9: a page of a listing is not what it should be; `edit` says how, given the request too."""

    edit: Callable[[bytes, Request], bytes]
    method: str = field(default="GET", kw_only=True)
    key: str | bytes | None = field(default=b"", kw_only=True)
    query: str = field(default="list-type", kw_only=True)

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        reply = forward(request)
        page = self.edit(b"".join(reply.body), request)
        reply.headers.put("Transfer-Encoding", None)
        reply.headers.put("Content-Length", str(len(page)))
        reply.body = iter([page])
        return reply


def torn_xml(page: bytes, request: Request) -> bytes:
    """S8: half of the XML, in an answer that is whole as far as HTTP can tell."""
    return page[: len(page) // 2]


def early_end(page: bytes, request: Request) -> bytes:
    """S8: half of the entries, and the claim that no more follow."""
    return _relisted(_followed(page, b""), lambda entries: entries[: len(entries) // 2])


def unsorted(page: bytes, request: Request) -> bytes:
    """S8: the last entry of the page comes first."""
    return _relisted(page, lambda entries: entries[::-1])


def doubled(page: bytes, request: Request) -> bytes:
    """S8: each entry twice."""
    return _relisted(page, lambda entries: [entry for entry in entries for _ in range(2)])


@dataclass
class EndlessListing(Fault):
    """S8: each page names itself as the next one."""

    method: str = field(default="GET", kw_only=True)
    key: str | bytes | None = field(default=b"", kw_only=True)
    query: str = field(default="list-type", kw_only=True)
    _pages: dict[str, bytes] = field(default_factory=dict, init=False)  #: by target without our token

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        target = re.sub("&?continuation-token=again", "", request.target)
        if target == request.target or target not in self._pages:
            request.target = target
            self._pages[target] = _followed(b"".join(forward(request).body), b"again")
        return _reply(200, self._pages[target], "application/xml")


@dataclass
class Header(Fault):
    """S10, S19: a header of the reply lies, or is missing: ETag, Content-Length, a checksum.

    Without Content-Length the body ends where the connection does, and nobody can tell a cut from an end.
    """

    name: str
    value: str | None  #: None: removed

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        reply = forward(request)
        reply.headers.put(self.name, self.value)
        return reply


@dataclass
class FalseAck(Fault):
    """Worse than S11: a PUT is acknowledged with the right ETag, and nothing is stored."""

    method: str = field(default="PUT", kw_only=True)

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        md5 = hashlib.md5()
        for piece in request.body:
            md5.update(piece)
        reply = _reply(200, b"", "application/xml")
        reply.headers.put("ETag", f'"{md5.hexdigest()}"')
        return reply


@dataclass
class Redirect(Fault):
    """S14: 301 and the bucket's region; S22: 307 to another host."""

    location: str  #: scheme and host; the path stays
    status: int = 307
    region: str | None = None

    def apply(self, request: Request, forward: Forward, luck: Luck) -> Reply:
        code = "PermanentRedirect" if self.status == 301 else "TemporaryRedirect"
        reply = _error(self.status, code, f"<Endpoint>{urlsplit(self.location).netloc}</Endpoint>")
        reply.headers.put("Location", self.location + request.target)
        reply.headers.put("x-amz-bucket-region", self.region)
        return reply


class Armed:
    """A fault at work."""

    def __init__(self, fault: Fault, seed: str, remove: Callable[[Armed], None]) -> None:
        """`Chaos.add` makes these."""
        self.fault = fault
        self.hits = 0  #: requests it was applied to
        self._seed = seed
        self._remove = remove
        self._matches = 0
        self._same: Counter[str] = Counter()

    def remove(self) -> None:
        """Spare later requests; who is stalled already stays so."""
        self._remove(self)

    def luck(self, request: Request) -> Luck | None:
        """The dice of this request; None if it is spared."""
        if not self.fault.matches(request):
            return None
        self._matches += 1
        part = re.findall(r"partNumber=\d+", request.target)
        same = f"{request.method} {request.key!r} {part} {request.headers.find('Range')}"
        self._same[same] += 1
        luck = random.Random(f"{self._seed} {same} {self._same[same]}")
        if not self.fault.picks(self._matches, luck):
            return None
        self.hits += 1
        return luck


class Chaos:
    """The proxy: listens on loopback from the start, without any fault, until the `with` block ends."""

    def __init__(self, upstream_url: str, *, seed: int = 0) -> None:
        """`upstream_url` is plain http; `seed` decides what is left to luck."""
        parts = urlsplit(upstream_url)
        self.upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._seed = seed
        self._added = 0
        self._armed: list[Armed] = []
        self._log: list[Exchange] = []
        self._changed = threading.Condition()
        self._connections: set[_Connection] = set()
        self._fillers: list[socket.socket] = []
        self._listener = _bound()
        self.url = "http://{}:{}".format(*self._listener.getsockname())
        self._listening = False
        self._acceptor: threading.Thread | None = None
        self.resume()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()
        self._listener.close()

    def add(self, fault: Fault) -> Armed:
        """Put a fault to work; of several that meet in a request, the first added is nearest the client."""
        with self._changed:
            armed = Armed(fault, f"{self._seed} {self._added}", self._disarm)
            self._added += 1
            self._armed.append(armed)
        return armed

    def clear(self) -> None:
        """Spare all later requests."""
        with self._changed:
            self._armed.clear()

    @property
    def log(self) -> list[Exchange]:
        """All requests so far, in order of arrival, those under way among them; the caller's own copy."""
        with self._changed:
            return [copy.copy(exchange) for exchange in self._log]

    def counts(self) -> Counter[tuple[str, bytes]]:
        """How often each (method, key) was asked for; parts and ranges count one each."""
        return Counter((exchange.method, exchange.key) for exchange in self.log)

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
        """Return once `condition` holds; it is asked whenever an exchange begins or ends."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise TimeoutError(f"not within {timeout_s} s")

    def pause(self, *, silent: bool = False) -> None:
        """Cut all connections and refuse new ones; `silent`: new ones are not even answered (N2)."""
        self._deafen()
        with self._changed:
            connections = list(self._connections)
        for connection in connections:
            connection.cut()
        for connection in connections:
            if connection.thread is not threading.current_thread():  # a fault's own act may be to pause
                connection.thread.join(10)  # no longer: what a test does inside a fault may keep it
        if silent:
            self._listen(backlog=0)
            self._fillers.append(socket.create_connection(self._listener.getsockname()))

    def resume(self) -> None:
        """Listen again, on the same port."""
        self._deafen()
        self._listen(backlog=512)
        self._acceptor = threading.Thread(target=self._accept, name="chaos accept", daemon=True)
        self._acceptor.start()

    def begin(self, request: Request, exchange: Exchange) -> list[tuple[Fault, Luck]]:
        """Log the exchange, and say which faults it meets."""
        with self._changed:
            met = [(armed.fault, luck) for armed in self._armed if (luck := armed.luck(request))]
            exchange.fault = "+".join(type(fault).__name__ for fault, _ in met)
            self._log.append(exchange)
            self._changed.notify_all()
        return met

    def end(self, connection: _Connection | None = None) -> None:
        """Let those who wait look again; and forget the connection, if it is over."""
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def _listen(self, *, backlog: int) -> None:
        self._listener.listen(backlog)
        self._listening = True

    def _deafen(self) -> None:
        """Stop listening, whatever the way; the port stays ours."""
        if self._listening:  # Linux would remember a second shutdown, and end every connection at birth
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listening = False
        if self._acceptor:
            self._acceptor.join()
            self._acceptor = None
        while self._fillers:
            self._fillers.pop().close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # paused
            while True:
                client, _ = self._listener.accept()
                connection = _Connection(self, client)
                with self._changed:
                    self._connections.add(connection)
                connection.thread.start()

    def _disarm(self, armed: Armed) -> None:
        with self._changed, contextlib.suppress(ValueError):  # it was cleared
            self._armed.remove(armed)


class _Wire:
    """HTTP/1.1 on one connection, of either end; whatever breaks while reading is a Cut."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._file = sock.makefile("rb")

    def head(self) -> tuple[list[str], Headers] | None:
        """The three words of the first line, and the headers; None at the end of the connection."""
        try:
            first = self._line()
        except Cut:
            return None
        headers = Headers()
        while line := self._line():
            name, _, value = line.partition(":")
            headers.append((name, value.strip()))
        words = [*first.split(" ", 2), "", ""]  # a status line may lack its reason
        return words[:3], headers

    def body(self, headers: Headers, *, else_to_the_end: bool) -> Body:
        """What follows such headers, without its chunked framing; a fault may change them later."""
        if headers.find("Transfer-Encoding").lower() == "chunked":
            return self._chunks()
        if else_to_the_end and not headers.find("Content-Length"):
            return iter(functools.partial(self._read, PIECE_BYTES), b"")
        return self._exactly(headers.length())

    def close(self, *, reset: bool = False) -> None:
        """Close it for good; with `reset` by RST."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self.sock.close()

    def _line(self) -> str:
        try:
            line = self._file.readline(64 * 1024)
        except OSError as error:
            raise Cut from error
        if not line.endswith(b"\n"):
            raise Cut
        return line.rstrip(b"\r\n").decode("latin-1")

    def _chunks(self) -> Body:
        while size := int(self._line().partition(";")[0], 16):
            yield from self._exactly(size)
            self._line()
        while self._line():
            pass  # trailers

    def _exactly(self, size_bytes: int) -> Body:
        while size_bytes:
            piece = self._read(min(size_bytes, PIECE_BYTES))
            if not piece:
                raise Cut
            size_bytes -= len(piece)
            yield piece

    def _read(self, size_bytes: int) -> bytes:
        try:
            return self._file.read1(size_bytes)
        except OSError as error:
            raise Cut from error


class _Connection:
    """One client's connection, its thread, and its own connection to the server."""

    def __init__(self, chaos: Chaos, client: socket.socket) -> None:
        self.thread = threading.Thread(target=self._serve, name="chaos connection", daemon=True)
        self._chaos = chaos
        self._client = _Wire(client)
        self._hangup = select.poll()
        self._hangup.register(client, select.POLLRDHUP)
        self._server: _Wire | None = None
        self._server_idle = False

    def cut(self) -> None:
        """End it from another thread."""
        for wire in (self._client, self._server):
            if wire:
                with contextlib.suppress(OSError):  # it ended by itself
                    wire.sock.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        reset = False
        try:
            while self._exchange():
                pass
        except Cut as cut:
            reset = cut.reset
        except OSError:
            pass  # the client is gone
        finally:
            self._client.close(reset=reset)
            if self._server:
                self._server.close()
            self._chaos.end(self)

    def _exchange(self) -> bool:
        """Serve one request; False: the connection is not to be used again."""
        head = self._client.head()
        if head is None:
            return False
        (method, target, version), headers = head
        path, _, query = target.partition("?")
        exchange = Exchange(method, path, query)
        incoming = self._incoming(headers, exchange)
        request = Request(method, target, headers, incoming, self._wait)
        answer: Forward = self._forward
        for fault, luck in reversed(self._chaos.begin(request, exchange)):
            answer = functools.partial(fault.apply, forward=answer, luck=luck)
        reply = answer(request)
        # Who waits for `100 Continue` and gets an answer instead may or may not send its body.
        unsure = bool(headers.find("Expect")) and inspect.getgeneratorstate(incoming) == inspect.GEN_CREATED
        if not unsure:
            _drain(request.body)
        last = unsure or version != "HTTP/1.1" or headers.find("Connection").lower() == "close"
        whole = self._send(reply, exchange, bare=method == "HEAD" or reply.status in (204, 304), last=last)
        self._chaos.end()
        return whole and not last

    def _incoming(self, headers: Headers, exchange: Exchange) -> Generator[bytes]:
        if headers.find("Expect"):
            self._client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        for piece in self._client.body(headers, else_to_the_end=False):
            exchange.request_bytes += len(piece)
            yield piece

    def _send(self, reply: Reply, exchange: Exchange, *, bare: bool, last: bool) -> bool:
        """Send what the headers promise, true or not; False: the client cannot tell where it ends."""
        length = reply.headers.find("Content-Length")
        chunked = bool(reply.headers.find("Transfer-Encoding"))
        if last or not (bare or length or chunked):
            reply.headers.put("Connection", "close")
        exchange.status = reply.status
        self._client.sock.sendall(_head(f"HTTP/1.1 {reply.status} {reply.reason}", reply.headers))
        sent = 0
        for piece in reply.body:
            if piece and not bare:
                sent += len(piece)
                exchange.response_bytes = sent  # before it is sent: who has an answer finds it in the log
                self._client.sock.sendall(_chunk(piece) if chunked else piece)
        if chunked and not bare:
            self._client.sock.sendall(_chunk(b""))
        return bare or chunked or length == str(sent)

    def _forward(self, request: Request) -> Reply:
        """Ask the server; where it is not there or breaks off before it answers, the client gets an RST."""
        server = self._reach()
        headers = Headers(request.headers)
        headers.put("Connection", None)
        chunked = bool(headers.find("Transfer-Encoding"))
        with contextlib.suppress(OSError):  # it may refuse before it has heard all
            server.sock.sendall(_head(f"{request.method} {request.target} HTTP/1.1", headers))
            for piece in request.body:
                server.sock.sendall(_chunk(piece) if chunked else piece)
            if chunked:
                server.sock.sendall(_chunk(b""))
        head = server.head()
        while head and head[0][1].startswith("1"):
            head = server.head()
        if head is None:
            raise Cut(reset=True)
        (version, status, reason), headers = head
        stays = version == "HTTP/1.1" and headers.find("Connection").lower() != "close"
        headers.put("Connection", None)
        bare = request.method == "HEAD" or status in ("204", "304")
        body = iter(()) if bare else server.body(headers, else_to_the_end=True)
        return Reply(int(status), reason, headers, self._outgoing(body, stays=stays))

    def _outgoing(self, body: Body, *, stays: bool) -> Body:
        yield from body
        self._server_idle = stays

    def _reach(self) -> _Wire:
        """The connection to the server; a new one, unless the last answer was read to its end."""
        if self._server and self._server_idle and not _readable(self._server.sock):
            self._server_idle = False
            return self._server
        if self._server:
            self._server.close()
            self._server = None
        try:
            self._server = _Wire(socket.create_connection(self._chaos.upstream))
        except OSError as error:
            raise Cut(reset=True) from error
        self._server_idle = False
        return self._server

    def _wait(self, seconds: float | None) -> None:
        if self._hangup.poll(None if seconds is None else max(0, math.ceil(seconds * 1000))):
            raise Cut


def _bound() -> socket.socket:
    """A socket that keeps its port while it does not listen: a port the kernel chose would be given away."""
    with socket.socket() as chosen:
        chosen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        chosen.bind(("127.0.0.1", 0))
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        listener.bind(chosen.getsockname())
    return listener


def _readable(sock: socket.socket) -> bool:
    """Whether there are bytes, or the end; of a server that was asked nothing it is the end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _stall(request: Request) -> NoReturn:
    request.wait(None)
    raise Cut


def _drain(body: Body) -> None:
    for _ in body:
        pass


def _head(first_line: str, headers: Headers) -> bytes:
    lines = [first_line, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _reply(status: int, body: bytes, content_type: str) -> Reply:
    headers = Headers([("Content-Type", content_type), ("Content-Length", str(len(body)))])
    return Reply(status, HTTPStatus(status).phrase, headers, iter([body]))


def _error(status: int, code: str, more: str = "") -> Reply:
    text = f"<Error><Code>{code}</Code><Message>Injected by a test.</Message>{more}</Error>"
    return _reply(status, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode(), "application/xml")


def _key(path: str) -> bytes:
    """The key in the path of a path-style request."""
    return unquote_to_bytes(path[1:].partition("/")[2])


def _as_bytes(key: str | bytes) -> bytes:
    return key.encode() if isinstance(key, str) else key


def _relisted(page: bytes, edit: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """The page with other entries."""
    entries = re.findall(rb"<Contents>.*?</Contents>", page, re.DOTALL)
    rest = re.sub(rb"<Contents>.*</Contents>", b"", page, flags=re.DOTALL)
    return rest.replace(b"</ListBucketResult>", b"".join(edit(entries)) + b"</ListBucketResult>")


def _followed(page: bytes, token: bytes) -> bytes:
    """The page with `token` as the next one's; empty: as the last page."""
    rest = re.sub(rb"<(IsTruncated|NextContinuationToken)>.*?</\1>", b"", page)
    more = b"<IsTruncated>false</IsTruncated>"
    if token:
        more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>%b</NextContinuationToken>" % token
    return rest.replace(b"</ListBucketResult>", more + b"</ListBucketResult>")
