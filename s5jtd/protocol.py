"""What s5jtd and s5jtctl say to each other, but for the shapes of answers.  A leaf: plain standard library.

JSON-RPC 2.0 over a Unix stream socket, one object per line.  Readers ignore members they do not
know, so that a newer daemon can talk to an older client; requests with unknown members are refused,
so that a typo never looks like consent.

Every line is ASCII: JSON escapes what is beyond, so that a key with terminal escapes in it stays
harmless even where somebody looks at the raw line, and no half of a surrogate pair can break a writer.

Times are RFC 3339 in UTC, numbers carry their unit last in the name, unknown is null.

Whoever asks waits until this is loaded: so no `typing`, and the shapes stand in a file of their own.
"""

from __future__ import annotations

import json
import math
from enum import IntEnum, StrEnum

PROTOCOL_VERSION = 1
SOCKET = "/run/s5jtd/control.sock"
LINE_BYTES_MAX = 1024 * 1024  #: of one line in either direction, its newline not counted

INTEGER_MAX = 2**63  #: what SQLite and most JSON readers can hold; beyond it nothing is a number here


class Method(StrEnum):
    """Everything the socket may ever be asked; a daemon may know fewer."""

    PING = "ping"
    VERSION = "version"
    STATUS = "status"
    JOB_PAUSE = "job.pause"
    JOB_RESUME = "job.resume"
    JOB_SCAN = "job.scan"
    JOB_RESYNC = "job.resync"
    OBJECT_LIST = "object.list"
    OBJECT_EXPLAIN = "object.explain"
    OBJECT_RETRY = "object.retry"
    VOLUME_LIST = "volume.list"
    VOLUME_DRAIN = "volume.drain"
    VOLUME_ACTIVATE = "volume.activate"
    ENDPOINT_LIST = "endpoint.list"
    ENDPOINT_CHECK = "endpoint.check"
    BANDWIDTH_GET = "bandwidth.get"
    BANDWIDTH_SET = "bandwidth.set"
    REPORT_LIST = "report.list"
    REPORT_GET = "report.get"
    CONFIG_RELOAD = "config.reload"
    EVENT_SUBSCRIBE = "event.subscribe"


#: Notifications the daemon sends after the answer to `event.subscribe`.
EVENT = "event"
EVENT_END = "event.end"  #: nothing more will come; the connection may be used for other requests


class RpcCode(IntEnum):
    """The number of an error, for JSON-RPC libraries; people and scripts read `data.code`."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    FAILED = -32000  #: ours, whatever `data.code` says


class Exit(IntEnum):
    """The exit codes a client may end with; the same numbers as `s5jtd.errors.Exit`."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_PERMITTED = 4
    TEMPORARY = 5
    CONFIG = 6
    OBJECTS_FAILED = 10
    MISMATCH = 11
    BUSY = 12


class Malformed(ValueError):
    """A line that is not JSON as we allow it."""


def encode(message: object) -> bytes:
    """One line, its newline included.

    Raises:
        ValueError, TypeError: `message` holds what JSON cannot say, such as NaN.
    """
    return json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> object:
    """Read one line strictly: what two JSON readers could understand differently is refused.

    Raises:
        Malformed: always with a message that repeats nothing of the line.
    """
    if len(line) > LINE_BYTES_MAX + 1:
        raise Malformed(f"the line is longer than {LINE_BYTES_MAX} bytes")
    try:
        return json.loads(
            line.decode(),
            object_pairs_hook=_members,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_no_constant,
        )
    except Malformed:
        raise
    except RecursionError:
        raise Malformed("the JSON is nested too deeply") from None
    except UnicodeDecodeError:
        raise Malformed("the line is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise Malformed(f"not JSON: {error.msg}, column {error.colno}") from None


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Malformed("a member is named twice in one object")
    return members


def _integer(digits: str) -> int:
    # The length is looked at first: turning digits into an integer costs their square.
    if len(digits) > len(str(-INTEGER_MAX)) or abs(value := int(digits)) > INTEGER_MAX:
        raise Malformed("an integer is beyond 64 bits")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise Malformed("a number is too large")
    return value


def _no_constant(name: str) -> float:
    raise Malformed(f"{name} is not JSON")
