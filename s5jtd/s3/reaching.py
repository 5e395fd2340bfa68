"""How far one gets on the way to an endpoint: name, connection, proxy, certificate; each looked at alone."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit

from s5jtd.bind import fits, leave_from
from s5jtd.errors import EndpointRefused
from s5jtd.s3.address import Address
from s5jtd.s3.transport import Link, proxy_of

#: A certificate that ends so soon is worth a word now.
EXPIRY_DAYS_MIN: Final = 21
_CONNECT_SECONDS: Final = 10.0
_HEAD_BYTES_MAX: Final = 64 * 1024

#: One of getaddrinfo's answers.
_Found = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
StepState = Literal["ok", "warning", "failed", "skipped"]


class Step(NamedTuple):
    """One thing that was looked at."""

    name: str
    state: StepState
    detail: str
    hint: str = ""
    may_pass: bool = False  #: of a failure: it may be over by itself


def reach(address: Address, link: Link) -> Iterator[Step]:
    """Name, connection, proxy and certificate, up to the first that fails."""
    host, port = address.host, address.port
    if link.proxy is not None:
        try:
            proxy_url, _ = proxy_of(link.proxy)
        except EndpointRefused as error:
            yield Step("proxy", "failed", error.detail, error.hint)
            return
        parts = urlsplit(proxy_url)
        host, port = parts.hostname or "", parts.port or 80
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        what = "the proxy's name" if link.proxy else host
        yield Step(
            "dns", "failed", f"{what} does not resolve: {error.strerror}", f"resolvectl query {host}", True
        )
        return
    yield Step("dns", "ok", ", ".join(dict.fromkeys(str(one[4][0]) for one in found)))
    try:
        connection, milliseconds = _connect(found, link)
    except OSError as error:
        where = f"{host} port {port}"
        bound = f"; check `bind: {link.bind}`" if link.bind else ""
        words = "no answer" if isinstance(error, TimeoutError) else error.strerror
        yield Step(
            "tcp", "failed", f"{where}: {words}", f"is it up, and does a firewall let us through{bound}", True
        )
        return
    with connection:
        yield Step("tcp", "ok", f"connected in {milliseconds:.1f} ms")
        if link.proxy is not None:
            step = _through_proxy(connection, address, link)
            yield step
            if step.state == "failed":
                return
        if address.scheme == "https":
            yield _certificate(connection, address.host, link)
        else:
            yield Step("tls", "skipped", "plain http: who is on the way can read and change what travels")


def _connect(found: Sequence[_Found], link: Link) -> tuple[socket.socket, float]:
    error: OSError = OSError(0, "no address of the bound family")
    for family, kind, protocol, _, where in found:
        if not fits(family, link.bind):
            continue
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(_CONNECT_SECONDS)
            leave_from(connection, link.bind)
            started = time.monotonic()
            connection.connect(where)
        except OSError as failed:
            connection.close()
            error = failed
        else:
            return connection, (time.monotonic() - started) * 1000
    raise error


def _through_proxy(connection: socket.socket, address: Address, link: Link) -> Step:
    """Ask for a tunnel where one is needed; plain http is forwarded request by request."""
    assert link.proxy is not None  # noqa: S101  for the type checker
    if address.scheme == "http":
        return Step("proxy", "ok", "answers")
    _, headers = proxy_of(link.proxy)
    lines = [f"CONNECT {address.host}:{address.port} HTTP/1.1", f"Host: {address.host}:{address.port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    try:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < _HEAD_BYTES_MAX:
            piece = connection.recv(4096)
            if not piece:
                break
            answer += piece
    except OSError as error:
        return Step(
            "proxy", "failed", f"it does not answer: {error.strerror or error}", "check `proxy`", True
        )
    status = answer.split(b"\r\n")[0].decode("latin-1")[:200]
    if " 200" not in status[:13]:
        return Step(
            "proxy", "failed", f"it opens no way: {status or 'it hung up'}", "check `proxy`", may_pass=True
        )
    return Step("proxy", "ok", "opens a way to the endpoint")


def _certificate(connection: socket.socket, host: str, link: Link) -> Step:
    """Chain, name and expiry, by the rules that transfers go by."""
    try:
        context = ssl.create_default_context(cafile=link.ca_bundle)
    except (OSError, ValueError) as error:
        return Step(
            "tls", "failed", f"cannot use the CA bundle {link.ca_bundle}: {error}",
            "tls.ca_bundle names a readable file with certificates in PEM format",
        )  # fmt: skip
    if not link.verify_tls:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with context.wrap_socket(connection, server_hostname=host) as wrapped:
            version, found = wrapped.version(), wrapped.getpeercert()
    except ssl.SSLCertVerificationError as error:
        words = error.verify_message
        return Step("tls", "failed", f"its certificate is not trusted: {words}", _tls_hint(words))
    except (OSError, ValueError) as error:
        return Step("tls", "failed", f"the handshake failed: {error}", "does this port speak https?")
    if not found:  # nothing is told of a certificate that was not verified
        detail = f"INSECURE: {version}, but nobody looks whose certificate it is (tls.verify: false)"
        return Step("tls", "warning", detail, "name the site's CA in tls.ca_bundle and verify")
    ends = ssl.cert_time_to_seconds(str(found["notAfter"]))
    days = (ends - time.time()) / 86_400
    detail = f"{version}, certificate valid until {datetime.fromtimestamp(ends, UTC):%Y-%m-%d}"
    if days < EXPIRY_DAYS_MIN:
        return Step("tls", "warning", f"{detail}, for {days:.0f} days", "have it renewed")
    return Step("tls", "ok", detail)


def _tls_hint(words: str) -> str:
    if "expired" in words or "not yet valid" in words:
        return "have it renewed; or this machine's clock is wrong"
    if "mismatch" in words or "match" in words:
        return "use the name in the certificate as endpoint, or have one made for this name"
    return "name the site's CA in tls.ca_bundle"
