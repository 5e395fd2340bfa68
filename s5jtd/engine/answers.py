"""What s5cmd 2.3.0 says back, line by line: which transfer it means and what went wrong.  Without I/O.

An answer is joined to its transfer by the opaque local name.  The key is no help: s5cmd repeats it
unquoted, with bad UTF-8 replaced, and a key may look like anything, an answer about another one too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from s5jtd.engine.contract import Failure, Outcome
from s5jtd.model import Direction

MESSAGE_CHARACTERS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class Success:
    """A line that vouches for one transfer."""

    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Error:
    """A line that reports a failure."""

    command: str  #: what failed, its words unquoted; "" where it does not say
    message: str


@dataclass(frozen=True, slots=True)
class Other:
    """A line that is no answer."""

    message: str


def read_line(line: bytes) -> Success | Error | Other:
    """Read one line of either stream; whatever it holds, this does not raise."""
    try:
        answer = json.loads(line.decode())
    except (ValueError, RecursionError):
        answer = None
    match answer:
        case {"operation": "cp", "success": True, "source": str(source), "destination": str(destination)}:
            return Success(source, destination)
        case {"error": str(message), "command": str(command)}:
            return Error(command, message)
        case {"error": str(message)}:
            return Other(message)
    return Other(line.decode("utf-8", "replace"))


def outcome_of(answer: Success | Error, direction: Direction, names: Collection[str]) -> Outcome | None:
    """What an answer says about one of the transfers `names`; None where it names none for certain."""
    if isinstance(answer, Success):
        name = answer.destination if direction is Direction.PULL else answer.source
        return Outcome(name) if name in names else None
    found = _name_in(answer.command, direction, names)
    return Outcome(found, classify(answer.message), presentable(answer.message)) if found else None


def _name_in(command: str, direction: Direction, names: Collection[str]) -> str | None:
    """The local name in an echoed command, whose key and header values may hold other names.

    The echo is `cp [FLAGS] SOURCE DESTINATION`, and no name holds a space: of a pull it is the last
    word.  Of a push it is the second or, where the echo repeats the flags, the one name that stands
    before an S3 address; if a hostile value made there be two, nobody knows.
    """
    words = command.split(" ")
    if direction is Direction.PULL:
        found = words[-1:]
    elif not words[1:] or not words[1].startswith("--"):
        found = words[1:2]
    else:
        found = [word for word, after in pairwise(words) if word in names and after.startswith("s3://")]
    return found[0] if len(found) == 1 and found[0] in names else None


_BY_CODE: Final = {
    **dict.fromkeys(("NoSuchKey", "NoSuchVersion"), Failure.GONE),
    **dict.fromkeys(
        (
            "AuthorizationHeaderMalformed", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId",
            "InvalidClientTokenId", "InvalidSecurity", "InvalidToken", "NoCredentialProviders",
            "NotSignedUp", "RequestExpired", "RequestTimeTooSkewed", "SharedCredsLoad",
            "SignatureDoesNotMatch", "TokenRefreshRequired", "UnrecognizedClientException",
        ),
        Failure.CREDENTIALS,
    ),
    **dict.fromkeys(
        (
            "AllAccessDisabled", "BucketRegionError", "IllegalLocationConstraintException",
            "InvalidBucketName", "MovedPermanently", "NoSuchBucket", "PermanentRedirect",
            "TemporaryRedirect",
        ),
        Failure.BUCKET,
    ),
    # `BadRequest` and `SerializationError` are the SDK's words for an answer that is not S3's.
    **dict.fromkeys(
        (
            "BadDigest", "BadRequest", "BandwidthLimitExceeded", "IncompleteBody", "InternalError",
            "KMS.ThrottlingException", "RequestError", "RequestLimitExceeded", "RequestThrottled",
            "RequestTimeout", "SerializationError", "ServiceUnavailable", "SlowDown", "Throttling",
            "ThrottlingException", "TooManyRequests", "XAmzContentSHA256Mismatch",
        ),
        Failure.ENDPOINT,
    ),
}  # fmt: skip

#: An AWS error as the SDK writes it: `Code: text status code: 404, request id: ...`.
_CODE: Final = re.compile(r"(?:MultipartUpload: .*? caused by: )?([A-Za-z][A-Za-z0-9.]*): ")
_STATUS: Final = re.compile(r" status code: ([0-9]{3}), request id: ")
#: A system call on one of our files: Go writes the call, the path, and the error's text.
_LOCAL: Final = re.compile(
    r"(?:^|: )(?:open|read|write|pread|pwrite|seek|close|chmod|rename|mkdir|stat|lstat|fstat)"
    r" (?!tcp |udp )\S+(?: \S+)?: ([A-Za-z /-]+)$"
)
_SPACE: Final = frozenset({"no space left on device", "disk quota exceeded"})
#: What a server or a proxy may echo of a signed request or of its own address.
_SECRET: Final = re.compile(r"(?i)\b((?:x-amz-)?(?:security-token|signature|credential)(?:=|: ?))[^\s,&\"]+")
_USERINFO: Final = re.compile(r"://[^/@\s]*@")
_CONNECTION: Final = re.compile(r"\bEOF$|\b(?:read|write|dial) (?:tcp|udp)\b|^(?:net/http|http2?|tls|x509): ")


def classify(message: str) -> Failure:
    """What a failure's message says.

    Where the server answered, its code and status decide, and not its text; where it did not, the
    words of the Go runtime do.
    """
    code = _CODE.match(message)
    statuses = _STATUS.findall(message)
    if not statuses:
        return _without_answer(message, code[1] if code else "")
    return of_answer(code[1] if code else "", int(statuses[-1]))


def of_answer(code: str, status: int) -> Failure:
    """What a server's own answer says: an error's code, and the status that came with it."""
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status in {400, 401, 403, 405, 409, 411, 412, 413, 501}:
        return Failure.REFUSED
    if status >= 500 or status in {408, 429}:
        return Failure.ENDPOINT
    return Failure.BUCKET if 300 <= status < 400 else Failure.OTHER


def _without_answer(message: str, code: str) -> Failure:
    local = _LOCAL.search(message)
    if local:
        return Failure.SPACE if local[1] in _SPACE else Failure.LOCAL
    if message.startswith("given object ") and message.endswith(" not found"):
        return Failure.LOCAL
    if _CONNECTION.search(message):
        return Failure.ENDPOINT
    return _BY_CODE.get(code, Failure.OTHER)


def presentable(message: str) -> str:
    """Fit for logs and ledger: short, without lone surrogates and without what must stay secret."""
    text = message[: 4 * MESSAGE_CHARACTERS_MAX].encode("utf-8", "replace").decode()
    return _SECRET.sub(r"\1***", _USERINFO.sub("://***@", text))[:MESSAGE_CHARACTERS_MAX]
