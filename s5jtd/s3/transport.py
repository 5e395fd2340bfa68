"""The connections to one endpoint: pools that keep alive, byte-exact paths, errors in our words.

urllib3 straightens paths (`a/../b`, `./c`) wherever it is given a URL, and an S3 key may be exactly that.
Its pools send a path as it is, so requests go to a pool, even those that a proxy is to forward.  Nothing is
taken from the environment: no proxy, no netrc; certificates are the system's, as s5cmd has it, or ours.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    InsecureRequestWarning,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    SSLError,
    TimeoutError,  # noqa: A004  (the library's, not Python's)
)

from s5jtd.bind import device_option, source_address
from s5jtd.errors import EndpointDown, EndpointError, EndpointRefused
from s5jtd.s3.address import Address

#: Connections kept open to one endpoint; more may be used at once, and are closed afterwards.
_KEPT_CONNECTIONS: Final = 64
E = TypeVar("E", bound=BaseException)
_PROXY_HINT: Final = "write `proxy: http://host:port`"


@dataclass(frozen=True, slots=True)
class Link:
    """How to get to an endpoint."""

    verify_tls: bool = True
    ca_bundle: Path | None = None  #: PEM; None: what the system trusts
    proxy: str | None = field(default=None, repr=False)  #: http://[user:password@]host:port
    bind: str | None = None  #: local address or interface to leave from
    connect_seconds: float = 10.0
    #: Of silence, not of a whole answer: a cold listing may take a minute to begin.
    read_seconds: float = 90.0


def open_pool(address: Address, link: Link) -> urllib3.HTTPConnectionPool:
    """A pool of connections to `address`; none is opened yet.

    Raises:
        EndpointRefused: CA bundle or proxy cannot be used as they are.
    """
    options: dict[str, Any] = {
        "maxsize": _KEPT_CONNECTIONS,
        "timeout": urllib3.Timeout(connect=link.connect_seconds, read=link.read_seconds),
        "retries": False,
        **_leaving_from(link.bind),
    }
    if address.scheme == "https":
        options |= _tls(link)
        if link.proxy is None:
            return urllib3.HTTPSConnectionPool(address.host, address.port, **options)
        proxy_url, proxy_headers = proxy_of(link.proxy)
        manager = urllib3.ProxyManager(proxy_url, proxy_headers=proxy_headers, **options)
        return manager.connection_from_host(address.host, address.port, "https")
    if link.proxy is None:
        return urllib3.HTTPConnectionPool(address.host, address.port, **options)
    proxy_url, proxy_headers = proxy_of(link.proxy)
    options |= {"origin": f"http://{address.authority}", "proxy_headers": proxy_headers}
    proxy = urlsplit(proxy_url)
    return _ForwardedPool(proxy.hostname or "", proxy.port, **options)


class _ForwardedConnection(HTTPConnection):
    """To a proxy that is told the whole URL in the request line."""

    def __init__(self, *args: Any, origin: str, proxy_headers: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._origin = origin
        self._to_proxy = proxy_headers

    def putrequest(
        self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False
    ) -> None:
        super().putrequest(method, self._origin + url, skip_host, skip_accept_encoding)
        for name, value in self._to_proxy.items():
            self.putheader(name, value)


class _ForwardedPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _ForwardedConnection


def proxy_of(url: str) -> tuple[str, dict[str, str]]:
    """The proxy's URL without user and password, and the header that carries those.

    Raises:
        EndpointRefused: it is no proxy's URL.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise EndpointRefused("the proxy's URL cannot be read", hint=_PROXY_HINT) from error
    if parts.scheme != "http" or not host:
        raise EndpointRefused("the proxy's URL is not http://host:port", hint=_PROXY_HINT)
    headers: dict[str, str] = {}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers = urllib3.make_headers(proxy_basic_auth=login)
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}", headers


def _leaving_from(bind: str | None) -> dict[str, Any]:
    if bind is None:
        return {}
    address = source_address(bind)
    if address is not None:
        return {"source_address": (address, 0)}
    return {"socket_options": [*HTTPConnection.default_socket_options, device_option(bind)]}


def _tls(link: Link) -> dict[str, Any]:
    if not link.verify_tls:
        # The operator asked for it and `status` says so; a warning per request would tell nobody.
        urllib3.disable_warnings(InsecureRequestWarning)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return {"ssl_context": context, "cert_reqs": "CERT_NONE", "assert_hostname": False}
    try:
        return {"ssl_context": ssl.create_default_context(cafile=link.ca_bundle)}
    except (OSError, ValueError) as error:
        raise EndpointRefused(
            f"cannot use the CA bundle {link.ca_bundle}: {_words(error)}",
            hint="tls.ca_bundle names a readable file with certificates in PEM format",
        ) from error


def transport_error(error: Exception, where: str, link: Link) -> EndpointError:
    """Our error for what broke on the way to or from the endpoint `where`."""
    untrusted = _cause(error, ssl.SSLCertVerificationError)
    if untrusted is not None:
        return EndpointRefused(
            f"{where}: its certificate is not trusted: {untrusted.verify_message}",
            hint="name the site's CA in tls.ca_bundle; if it is expired or not yet valid check the clock too",
        )
    if isinstance(error, NameResolutionError):
        return EndpointDown(f"{where}: its name does not resolve", hint="check DNS: resolvectl query NAME")
    if isinstance(error, TimeoutError) and not isinstance(error, NewConnectionError):
        connecting = isinstance(error, ConnectTimeoutError)
        seconds = link.connect_seconds if connecting else link.read_seconds
        return EndpointDown(f"{where}: no answer for {seconds:g} s")
    if isinstance(error, ProxyError):
        return EndpointDown(f"{where}: not through the proxy: {_words(error)}", hint="check `proxy`")
    if isinstance(error, SSLError):
        return EndpointDown(f"{where}: TLS failed: {_words(error)}", hint="does this port speak https?")
    hint = f"check `bind: {link.bind}`" if link.bind and _is_about_leaving(error) else ""
    return EndpointDown(f"{where}: {_words(error)}", hint=hint)


def _is_about_leaving(error: Exception) -> bool:
    cause = _cause(error, OSError)
    return cause is not None and cause.errno in {errno.EADDRNOTAVAIL, errno.ENODEV, errno.EPERM}


def _words(error: Exception) -> str:
    """The system's words for the cause; the library's would hold URLs, with keys in them."""
    cause = _cause(error, OSError)
    if isinstance(cause, ssl.SSLError):
        return cause.reason or "the handshake failed"
    if cause is not None:
        return cause.strerror or str(cause)[:200]
    return "the answer broke off"


def _cause(error: BaseException, kind: type[E]) -> E | None:
    """What is of `kind` in `error` or behind it: libraries hide the cause in their exceptions' arguments."""
    seen: list[BaseException] = [error]
    for one in seen:  # grows while it is walked
        if isinstance(one, kind):
            return one
        behind = [*one.args, one.__cause__, one.__context__]
        seen += [e for e in behind if isinstance(e, BaseException) and e not in seen]
    return None
