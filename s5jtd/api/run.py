"""The life of the API's process: from its files to a listening socket, to an orderly end."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import sdnotify
import structlog

from s5jtd import log as logging
from s5jtd.api import app, tls, tokens
from s5jtd.api.desk import Desk
from s5jtd.api.guard import Guard
from s5jtd.api.limits import Limits
from s5jtd.api.server import Server
from s5jtd.errors import Busy, Exit, NotPermitted, S5jtError, UsageError

log = structlog.get_logger()

_LISTEN = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([^\s:\[\]]+)):([0-9]{1,5})")
_BACKLOG = 512
_WARN_BEFORE = timedelta(days=30)
_DAY_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Where everything is."""

    listen: str
    token: Path
    certificate: Path
    key: Path
    socket_path: str


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    Raises:
        S5jtError: it could not start.
    """
    logging.configure()
    try:
        token = tokens.read(settings.token)
        context, ends = tls.context(settings.certificate, settings.key, tls.now())
        with listener(settings.listen) as listening:
            asyncio.run(
                _serve(guarded(settings.socket_path, token, ends, Limits()), listening, context, ends)
            )
    finally:
        logging.close()
    return Exit.DONE


def guarded(socket_path: str, token: tokens.Token, certificate_ends: datetime, limits: Limits) -> Guard:
    """The whole application, behind its guard."""
    return Guard(app.build(Desk(socket_path), certificate_ends), token, app.PUBLIC, limits)


def listener(where: str) -> socket.socket:
    """A listening socket on `HOST:PORT`.

    Raises:
        S5jtError: it cannot be had.
    """
    match = _LISTEN.fullmatch(where)
    if match is None or int(match[3]) > 65535:
        raise UsageError(
            f"{where!r} is no place to listen on", hint="write it like 127.0.0.1:8443 or [::]:8443"
        )
    host = match[1] or match[2]
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, int(match[3]), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, number)
    except OSError as error:
        raise S5jtError(f"{where} cannot be used: {error.strerror or error}", hint="try an address") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise _unbindable(where, error) from None
    return sock


def _unbindable(where: str, error: OSError) -> S5jtError:
    if error.errno == errno.EADDRINUSE:
        return Busy(f"{where}", hint=f"see who listens there: ss -ltnp 'sport = :{where.rpartition(':')[2]}'")
    if error.errno == errno.EACCES:
        return NotPermitted(f"to listen on {where}", hint="ports below 1024 are for root; take 8443")
    return S5jtError(
        f"cannot listen on {where}: {error.strerror}", hint="see the addresses: ip -brief address"
    )


async def _serve(guard: Guard, listening: socket.socket, context: ssl.SSLContext, ends: datetime) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tell = sdnotify.SystemdNotifier().notify
    tasks = [asyncio.create_task(_watch_certificate(ends)), asyncio.create_task(_feed_watchdog(tell))]
    host, port, *_ = listening.getsockname()
    log.info("api_started", host=host, port=port, certificate_ends=ends.isoformat())
    tell("READY=1")
    try:
        await Server(guard, listening, context, Limits()).serve(stop)
    finally:
        tell("STOPPING=1")
        log.info("api_stopping")
        for task in tasks:
            task.cancel()


async def _watch_certificate(ends: datetime) -> None:
    while True:
        if ends - tls.now() < _WARN_BEFORE:
            log.warning("api_certificate_expires", at=ends.isoformat())
        await asyncio.sleep(_DAY_SECONDS)


async def _feed_watchdog(tell: Callable[[str], None]) -> None:
    """While the loop turns, requests are answered."""
    seconds = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    while seconds:
        tell("WATCHDOG=1")
        await asyncio.sleep(seconds / 2)
