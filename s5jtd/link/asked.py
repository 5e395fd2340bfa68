"""What a program asks of the relay as of a proxy, and what the server is to hear instead.  Pure."""

from __future__ import annotations

import secrets
from typing import Final
from urllib.parse import urlsplit

_NOT_HANDED_ON: Final = (b"proxy-authorization:", b"proxy-connection:")


class Refused(Exception):
    """What is answered to a request that goes nowhere."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


def first_line(head: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and version of a request.

    Raises:
        Refused: it is none.
    """
    try:
        method, target, version = head.partition(b"\r\n")[0].split(b" ")
    except ValueError:
        raise Refused("400 Bad Request") from None
    return method, target, version


def check_word(head: bytes, word: bytes) -> None:
    """Whether a request comes with the word that was given to whom we serve.

    Raises:
        Refused: it does not.
    """
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        said = value.strip().removeprefix(b"Basic ")
        if name.lower() == b"proxy-authorization" and secrets.compare_digest(said, word):
            return
    raise Refused("407 Proxy Authentication Required")


def for_a_server(head: bytes) -> tuple[int, bytes]:
    """The length of the body that follows, and the head as the server itself expects it."""
    method, target, version = first_line(head)
    path = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    length = 0
    lines = [b" ".join((method, path, version))]
    for line in head.split(b"\r\n")[1:]:
        lower = line.lower()
        if lower.startswith(b"transfer-encoding:"):
            raise Refused("411 Length Required")
        if lower.startswith(b"content-length:"):
            length = int(line.partition(b":")[2]) if line.partition(b":")[2].strip().isdigit() else -1
        if not lower.startswith(_NOT_HANDED_ON):
            lines.append(line)
    if length < 0:
        raise Refused("400 Bad Request")
    return length, b"\r\n".join(lines)


def host_and_port(authority: bytes, default: int) -> tuple[str, int]:
    """What CONNECT names.

    Raises:
        Refused: nothing.
    """
    try:
        parts = urlsplit("//" + authority.decode("ascii"))
        if not parts.hostname:
            raise ValueError
        return parts.hostname, parts.port or default
    except ValueError:
        raise Refused("400 Bad Request") from None
