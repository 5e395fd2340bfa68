"""Stands before every route: who may come in, how often, what every answer carries, what is logged of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from email.utils import formatdate
from itertools import chain
from typing import Any, Protocol

import structlog

from s5jtd.api.limits import Buckets, Limits, client_of
from s5jtd.api.refusal import Refusal, bad_request, broken
from s5jtd.api.tokens import Token

log = structlog.get_logger()

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PIECE_BYTES = 64 * 1024  #: of an answer; between two, a slow client holds us up and not our memory
TELL_PER_SECOND = 1 / 60  #: how often the log hears of one client's excess
#: On every answer.  No Strict-Transport-Security: it would also bind whatever else runs on this host.
_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'"  # for whoever opens JSON as a page


class Visit(Protocol):
    """The connection a request came over."""

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """While this lasts, the time for an answer counts, not that for a request."""


class Guard:
    """Lets through what shows the token, and public paths; everything else is refused before it is read."""

    def __init__(self, app: App, token: Token, public: Iterable[str], limits: Limits) -> None:
        """`public`: the paths that hold nothing worth a token."""
        self._app = app
        self._token = token
        self._head_bytes = limits.head_bytes
        self._public = frozenset(public)
        self._requests = Buckets(limits.requests_per_second, limits.requests_at_once)
        self._wrong = Buckets(limits.wrong_tokens_per_second, limits.wrong_tokens_at_once)
        self._told = Buckets(TELL_PER_SECOND, 1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the server calls this with its whole head read."""
        began = time.monotonic()
        visit: Visit = scope["state"]["visit"]
        answer = _Answer(send)
        with visit.answering():
            try:
                self._judge(scope)
                await self._app(scope, receive, answer.send)
            except Refusal as refusal:
                await answer.refuse(refusal)
            except Exception:  # a bug met by one request must not be met by the others
                log.exception("api_request_failed", path=scope["path"])
                await answer.refuse(broken())
        if answer.status != 429:  # these are told of once a minute, or the log would be the victim
            log.info(
                "api_request",
                client=scope["client"][0],
                method=scope["method"],
                path=scope["path"],  # without its query, in case somebody puts a token there
                status=answer.status,
                size_bytes=answer.size_bytes,
                seconds=round(time.monotonic() - began, 3),
            )

    def _judge(self, scope: Scope) -> None:
        """Return if the request may go on.

        Raises:
            Refusal: it may not.
        """
        client = client_of(scope["client"][0])
        if wait := self._requests.wait_seconds(client):
            raise self._too_many(client, wait)
        self._requests.take(client)
        # uvicorn counts only until the head is whole, which may be at once.
        if (
            sum(map(len, (scope["raw_path"], scope["query_string"], *chain(*scope["headers"]))))
            > self._head_bytes
        ):
            raise bad_request()
        headers = [(name, value) for name, value in scope["headers"] if name in _LOOKED_AT]
        if any(name != b"authorization" and value != b"0" for name, value in headers):
            raise Refusal(
                413,
                "body_too_large",
                "No request of this API has a body",
                "send it without",
                {"connection": "close"},
            )
        if scope["path"] not in self._public:
            self._authorise(client, [value for name, value in headers if name == b"authorization"])

    def _authorise(self, client: str, given: list[bytes]) -> None:
        if given:
            # Before the comparison: a right token is refused like a wrong one, or this would tell them apart.
            if wait := self._wrong.wait_seconds(client):
                raise self._too_many(client, wait)
            scheme, _, text = given[0].partition(b" ")
            if len(given) == 1 and scheme.lower() == b"bearer" and self._token.matches(text.strip(b" ")):
                return
            self._wrong.take(client)
            log.warning("api_token_refused", client=client)
        raise Refusal(
            401,
            "unauthorized",
            "This needs a valid token",
            "send the header Authorization: Bearer TOKEN; in a browser, open /ui",
            {"www-authenticate": 'Bearer realm="s5jtd"'},
        )

    def _too_many(self, client: str, wait_seconds: int) -> Refusal:
        if not self._told.wait_seconds(client):
            self._told.take(client)
            log.warning("api_client_limited", client=client)
        return Refusal(
            429,
            "too_many_requests",
            "Too many requests, or too many wrong tokens, from your address",
            f"try again in {wait_seconds} s",
            {"retry-after": str(wait_seconds)},
        )


_LOOKED_AT = {b"authorization", b"content-length", b"transfer-encoding"}


class _Answer:
    """What goes out for one request."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.size_bytes = 0

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """What the app sends, with our headers, and in pieces the client has to keep up with."""
        if message["type"] == "http.response.start":
            await self._start(message["status"], message["headers"])
            return
        body = message.get("body", b"")
        more = message.get("more_body", False)
        self.size_bytes += len(body)
        for at in range(0, max(len(body), 1), PIECE_BYTES):
            last = at + PIECE_BYTES >= len(body)
            piece = body[at : at + PIECE_BYTES]
            await self._send({"type": message["type"], "body": piece, "more_body": more or not last})

    async def refuse(self, refusal: Refusal) -> None:
        """A refusal as an answer; too late where one was begun, and then the server ends the connection."""
        if self.status:
            return
        body = refusal.body()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        await self._start(refusal.status, _encoded(headers))
        await self.send({"type": "http.response.body", "body": body})

    async def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.status = status
        ours = {**_HEADERS, "date": formatdate(usegmt=True)}
        given = list(headers)
        if not any(name == b"content-security-policy" for name, _ in given):
            ours["content-security-policy"] = _NOTHING
        await self._send({"type": "http.response.start", "status": status, "headers": given + _encoded(ours)})


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
