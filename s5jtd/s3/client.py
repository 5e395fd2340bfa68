"""Plain signed requests to one bucket through one endpoint; every failure leaves as one of our errors.

Signed by botocore's S3 signer, sent by urllib3: a listing or a HEAD costs a fraction of what it does with
boto3, and keys reach the wire byte for byte.  Redirects are not followed: a signature is for one host.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from urllib3.exceptions import HTTPError, ProtocolError

from s5jtd import __version__
from s5jtd.errors import EndpointDown, S5jtError
from s5jtd.model import Direction, Learned
from s5jtd.s3.address import Address, Addressing, locate
from s5jtd.s3.credentials import CredentialProvider
from s5jtd.s3.moments import skew_seconds
from s5jtd.s3.refusals import (
    BODY_BYTES_MAX,
    NOT_S3,
    NOT_S3_HINT,
    Answer,
    Place,
    key_refusal,
    refusal,
)
from s5jtd.s3.transport import Link, open_pool, transport_error

if TYPE_CHECKING:
    from s5jtd.s3.listing import Page

Query = Mapping[str, str | bytes]
Headers = Mapping[str, str]
#: Hears how each request went; None is a success.
Observer = Callable[[S5jtError | None], None]
#: Counts bytes that moved; answers how many seconds to rest before more do.
Spend = Callable[[Direction, int], float]

_NOTHING: Final[Mapping[str, str]] = {}
_READ_BYTES: Final = 256 * 1024
#: What `request` takes into memory; no answer of S3's but an object is as large.
_WHOLE_BYTES_MAX: Final = 16 << 20
#: So long the quickest answer stands for the way; after twice as much it is forgotten.
_QUICKEST_SECONDS: Final = 300.0
#: Longer rests would look like death: a thread shows life with each page of a listing and each block.
_REST_SECONDS_MAX: Final = 5.0
#: Where an endpoint says this, the credentials may have been renewed behind our back.
_STALE: Final = frozenset({"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"})

# At debug level the signer logs what it signs, session token included.
logging.getLogger("botocore.auth").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer that was a success."""

    status: int
    headers: Headers  #: names in lower case
    body: bytes


class Quickest:
    """The least that an answer took of late: next to nothing but the way, however slow the server is.

    The kernel's own round trip would not do: behind a proxy, a tunnel or a relay it is that of the way there.
    Threads may share it: one that is overtaken loses a measurement.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._now = self._before = math.inf  # milliseconds; in this stretch of time, and in the one before

    def note(self, milliseconds: float) -> None:
        """An answer began so long after its question was sent."""
        self._turn()
        self._now = min(self._now, milliseconds)

    @property
    def ms(self) -> float | None:
        """Milliseconds; None: nothing answered of late."""
        self._turn()
        least = min(self._now, self._before)
        return None if math.isinf(least) else least

    def _turn(self) -> None:
        stretches = (self._clock() - self._since) / _QUICKEST_SECONDS
        if stretches >= 1.0:
            self._before = self._now if stretches < 2.0 else math.inf
            self._now, self._since = math.inf, self._clock()


class Stream:
    """The beginning of an answer that is a success so far; iterate it once for the body."""

    def __init__(
        self,
        raw: urllib3.BaseHTTPResponse,
        place: Place,
        link: Link,
        observe: Observer,
        spend: Spend,
    ) -> None:
        self.status: int = raw.status
        self.headers = _lower(raw)
        self._raw = raw
        self._place = place
        self._link = link
        self._observe = observe
        self._spend = spend

    def __iter__(self) -> Iterator[bytes]:
        """The body as it comes, as stored: no content encoding is undone.

        Raises:
            EndpointDown: it broke off; what came so far is not the body.
        """
        try:
            for data in self._raw.stream(_READ_BYTES, decode_content=False):
                if rest := self._spend(Direction.PULL, len(data)):
                    time.sleep(min(rest, _REST_SECONDS_MAX))
                yield data
        except (HTTPError, OSError) as error:
            ours = transport_error(error, str(self._place), self._link)
            self._observe(ours)
            raise ours from error
        self._observe(None)


class S3Client:
    """One bucket through one endpoint.  Threads may share it; nothing happens before the first request.

    Every request may raise EndpointDown or EndpointRefused, a request for a key also ObjectGone,
    ObjectChanged or ObjectRefused.  None says that nothing happened: a lost answer looks like a lost
    request.  `endpoint_url` None is AWS itself; `region` is signed with as given.  `observe` hears how
    every request went whose answer was read to its end: so an endpoint's health is known to whom it concerns.
    """

    def __init__(
        self,
        bucket: str,
        *,
        credentials: CredentialProvider,
        endpoint_url: str | None = None,
        region: str | None = None,
        addressing: Addressing = "auto",
        link: Link = Link(),  # noqa: B008  (frozen)
    ) -> None:
        self.observe: Observer = _unobserved
        self.spend: Spend = _free
        self.learned = Learned()  #: what need not be found out anew with each question
        self.quickest = Quickest()
        self.skew_seconds: float | None = None  #: how far the server's clock was ahead at its last answer
        self.bucket = bucket
        self.endpoint_url = endpoint_url
        self._credentials = credentials
        self._region = region
        self._addressing: Addressing = addressing
        self.link = link
        self._lock = threading.Lock()
        self._open: tuple[Address, urllib3.HTTPConnectionPool] | None = None

    def is_beside(self, other: S3Client) -> bool:
        """Whether the other's bucket is on the same server, and is reached with the same credentials."""
        return self.endpoint_url == other.endpoint_url and self._credentials.are_those_of(other._credentials)

    def request(
        self, method: str, key: bytes | None = None, query: Query = _NOTHING, headers: Headers = _NOTHING
    ) -> Response:
        """Ask, and return the whole answer; `key` None asks the bucket."""
        with self.stream(method, key, query, headers) as stream:
            body = bytearray()
            for data in stream:
                body += data
                if len(body) > _WHOLE_BYTES_MAX:
                    raise EndpointDown(f"{self._place(key)}: its answer has no end", hint=NOT_S3_HINT)
            return Response(stream.status, stream.headers, bytes(body))

    @contextmanager
    def stream(
        self, method: str, key: bytes | None = None, query: Query = _NOTHING, headers: Headers = _NOTHING
    ) -> Iterator[Stream]:
        """Ask, and give the body as it arrives; a body not read to its end costs the connection."""
        try:
            raw = self._exchange(method, key, query, headers)
            if not 200 <= raw.status < 300:
                raise self._refusal(raw, key)
        except S5jtError as error:
            self.observe(error)
            raise
        with _closing(raw):
            yield Stream(raw, self._place(key), self.link, self.observe, self.spend)

    @property
    def insecure(self) -> bool:
        """Whether it speaks TLS to whoever answers: nobody looks at the certificate."""
        return not self.link.verify_tls and not (self.endpoint_url or "").startswith("http:")

    def unobserved(self) -> S3Client:
        """The same client, for what a server need not offer: a refusal says nothing of its health."""
        twin = copy.copy(self)
        twin.observe = _unobserved
        return twin

    def own_listing(self, prefix: bytes, start_after: bytes, end_at: bytes | None) -> Iterator[Page] | None:
        """What `list_objects` is to answer, from a store that is no server; None: ask the server."""
        return None

    def probe(self, prefix: bytes = b"") -> None:
        """Find out, as cheaply as can be, whether the endpoint lets us list `prefix`; not observed.

        Raises:
            EndpointDown, EndpointRefused: it does not.
        """
        answer = self._look(prefix)
        if answer is not None:
            raise refusal(answer, self._place(None))

    def address(self) -> Address:
        """Where its requests go.

        Raises:
            EndpointRefused: no place can be made of what was configured.
        """
        return self._connected()[0]

    def close(self) -> None:
        """Let go of idle connections; the next request opens new ones."""
        with self._lock:
            if self._open is not None:
                self._open[1].close()
                self._open = None

    def _exchange(
        self, method: str, key: bytes | None, query: Query, headers: Headers
    ) -> urllib3.BaseHTTPResponse:
        address, pool = self._connected()
        target = _target(address, key, query)
        signed = self._signed(method, address, target, headers)
        return self._send(pool, method, target, signed, key)

    def _connected(self) -> tuple[Address, urllib3.HTTPConnectionPool]:
        with self._lock:
            if self._open is None:
                address = locate(
                    self.bucket,
                    endpoint_url=self.endpoint_url,
                    region=self._region,
                    addressing=self._addressing,
                )
                self._open = address, open_pool(address, self.link)
            return self._open

    def _signed(self, method: str, address: Address, target: str, headers: Headers) -> dict[str, str]:
        plain = {"Host": address.authority, "User-Agent": f"s5jtd/{__version__}", **headers}
        credentials = self._credentials.current()
        if credentials is None:
            return plain
        url = f"{address.scheme}://{address.authority}{target}"
        request: Any = AWSRequest(method=method, url=url, headers=plain)
        keys = ReadOnlyCredentials(
            credentials.access_key_id, credentials.secret_access_key, credentials.session_token
        )
        S3SigV4Auth(keys, address.service, address.region).add_auth(request)
        return dict(request.headers.items())

    def _send(
        self,
        pool: urllib3.HTTPConnectionPool,
        method: str,
        target: str,
        headers: dict[str, str],
        key: bytes | None,
    ) -> urllib3.BaseHTTPResponse:
        """Send; once more where a kept connection turns out to have been closed by the other end."""
        for is_last in (False, True):
            asked_at = time.monotonic()
            try:
                raw = pool.urlopen(
                    method,
                    target,
                    headers=headers,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                )
            except (HTTPError, OSError) as error:
                if is_last or not _was_hung_up(error):
                    raise transport_error(error, str(self._place(key)), self.link) from error
            else:
                if raw.status < 300 or raw.status == 404:  # all else may be a proxy's own word
                    self.quickest.note((time.monotonic() - asked_at) * 1000)
                self.skew_seconds = skew_seconds(raw.headers.get("date"), time.time())
                self.spend(Direction.PUSH, len(target) + _head_bytes(headers))
                self.spend(Direction.PULL, _head_bytes(raw.headers))
                return raw
        raise AssertionError  # the loop returns or raises

    def _refusal(self, raw: urllib3.BaseHTTPResponse, key: bytes | None) -> S5jtError:
        answer = self._answer(raw, key)
        if key is None or not answer.is_doubtful:
            return refusal(answer, self._place(key))
        return self._trouble_of_bucket(key) or key_refusal(answer, self._place(key))

    def _trouble_of_bucket(self, key: bytes) -> S5jtError | None:
        """What is wrong with the bucket, asked with a request whose answer has a body.

        Being forbidden to list it is nothing wrong: it is there, and answers us.
        """
        answer = self._look(key)
        if answer is None or answer.code == "AccessDenied":
            return None
        return refusal(answer, self._place(None))

    def _look(self, prefix: bytes) -> Answer | None:
        """List one key; None where that works.  A server without pages may send all: most is left unread."""
        query: dict[str, str | bytes] = {"encoding-type": "url", "max-keys": "1"}
        if prefix:
            query["prefix"] = prefix
        raw = self._exchange("GET", None, query, _NOTHING)
        if raw.status != 200:
            return self._answer(raw, None)
        place = self._place(None)
        with _closing(raw):
            beginning = next(iter(Stream(raw, place, self.link, _unobserved, self.spend)), b"")
        if b"<ListBucketResult" not in beginning:
            raise EndpointDown(f"{place}: {NOT_S3}", hint=NOT_S3_HINT)
        return None

    def _answer(self, raw: urllib3.BaseHTTPResponse, key: bytes | None) -> Answer:
        try:
            with _closing(raw):
                body = raw.read(BODY_BYTES_MAX, decode_content=False)
        except (HTTPError, OSError) as error:
            raise transport_error(error, str(self._place(key)), self.link) from error
        answer = Answer(raw.status, _lower(raw), body)
        if answer.code in _STALE:
            self._credentials.forget()
        return answer

    def _place(self, key: bytes | None) -> Place:
        address, _pool = self._connected()
        return Place(
            endpoint=f"{address.scheme}://{address.authority}",
            bucket=self.bucket,
            key=key,
            credentials=str(self._credentials),
            region=address.region,
        )


def _free(_direction: Direction, _moved: int) -> float:
    """There is no limit."""
    return 0.0


def _head_bytes(headers: Headers) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers.items())


def _unobserved(_error: S5jtError | None) -> None:
    """Nobody listens."""


def _target(address: Address, key: bytes | None, query: Query) -> str:
    """Path and query; every byte but the unreserved and "/" is percent-encoded, as S3 signs it."""
    path = (address.path or "/") if key is None else f"{address.path}/{quote(key, safe='/')}"
    if not query:
        return path
    return (
        path
        + "?"
        + "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
    )


@contextmanager
def _closing(raw: urllib3.BaseHTTPResponse) -> Iterator[None]:
    """Give the connection back; one with an unread rest is closed first."""
    try:
        yield
    finally:
        raw.close()
        raw.release_conn()


def _lower(raw: urllib3.BaseHTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in raw.headers.items()}


def _was_hung_up(error: Exception) -> bool:
    return isinstance(error, ProtocolError) and any(isinstance(one, ConnectionError) for one in error.args)
