"""How a request that gets no answer is told so: one JSON shape, whatever refused it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from s5jtd import protocol

_NONE: Mapping[str, str] = MappingProxyType({})


class Refusal(Exception):
    """What is wrong, what to do about it, and the HTTP status that says it to programs."""

    def __init__(
        self, status: int, code: str, message: str, hint: str, headers: Mapping[str, str] = _NONE
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code  #: a word that stays the same
        self.hint = hint
        self.headers = headers

    def body(self) -> bytes:
        """The answer, as one line of JSON."""
        return protocol.encode({"error": {"code": self.code, "message": str(self), "hint": self.hint}})


def bad_request() -> Refusal:
    """What came is no request, or one whose head is too long to be honest."""
    return Refusal(
        400,
        "bad_request",
        "This cannot be understood as HTTP/1.1",
        "send a request line and headers of at most 32 KiB",
        {"connection": "close"},
    )


def not_found() -> Refusal:
    """The path is none of ours; it is not repeated, because it may be anything."""
    return Refusal(404, "not_found", "There is nothing at this path", "GET / lists what there is")


def not_allowed() -> Refusal:
    """The path is ours, the method is not."""
    return Refusal(405, "method_not_allowed", "This API only reads", "use GET", {"allow": "GET"})


def broken() -> Refusal:
    """A bug of ours."""
    return Refusal(
        500,
        "internal",
        "Cannot answer because of an error in s5jtd itself",
        "look at: journalctl -u s5jtd-api -p err",
    )
