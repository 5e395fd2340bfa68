"""What an S3 answer that is no success means for us: pure, from status, code and headers to our errors.

A server's own message is quoted where it helps.  Where a signature is refused it is not: servers like to
repeat there what was signed, session token included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit

from s5jtd.errors import EndpointDown, EndpointRefused, ObjectChanged, ObjectGone, ObjectRefused, S5jtError
from s5jtd.model import printable
from s5jtd.s3.markup import leaves

#: Of an error's body no more is read; S3's are below 2 KiB.
BODY_BYTES_MAX: Final = 64 * 1024
NOT_S3: Final = "it answered something that is not S3"
NOT_S3_HINT: Final = "a login page, a proxy or another service may stand there: look with curl"

_WORDS_LENGTH_MAX: Final = 200

#: Worth another try by themselves, whatever status they come with.
_DOWN: Final = frozenset(
    {
        "BandwidthLimitExceeded",
        "InternalError",
        "KMS.ThrottlingException",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)

_SKEWED: Final = (
    "this machine's clock and its clock differ too much",
    "check time synchronisation here (timedatectl) and at the endpoint",
)
_EXPIRED: Final = ("the session token has expired", "renew the temporary credentials")

#: Until somebody changes something everything will be refused: code -> what is wrong, what to do.
_REFUSED: Final[Mapping[str, tuple[str, str]]] = {
    "InvalidAccessKeyId": (
        "it does not know the access key id",
        "check that these credentials are for this endpoint and still exist there",
    ),
    "SignatureDoesNotMatch": (
        "it computes another signature than we do",
        "check the secret access key and the region; a proxy that rewrites requests breaks signatures too",
    ),
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidToken": (
        "it does not accept the session token",
        "renew the temporary credentials; long-lived ones have no session token",
    ),
    "RequestTimeTooSkewed": _SKEWED,
    "RequestExpired": _SKEWED,
    "AccountProblem": ("the account has a problem", "ask the account's owner"),
    "AllAccessDisabled": ("all access is disabled", "ask the bucket's owner"),
    "InvalidSecurity": ("it does not accept the credentials", "check the credentials"),
    "NotSignedUp": ("the account is not signed up for S3", "ask the account's owner"),
    "NoSuchBucket": ("there is no such bucket", "check the bucket's name, the endpoint and the region"),
    "InvalidBucketName": ("it takes this for no bucket's name", "check the bucket's name"),
    "NoSuchAccessPoint": ("there is no such access point", "check the ARN"),
}
_GONE: Final = frozenset({"NoSuchKey", "NoSuchVersion"})
_WRONG_REGION: Final = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraintException",
        "PermanentRedirect",
        "TemporaryRedirect",
    }
)


@dataclass(frozen=True)
class Answer:
    """An answer that is no success."""

    status: int
    headers: Mapping[str, str]  #: names in lower case
    body: bytes = b""  #: at most BODY_BYTES_MAX of it

    @cached_property
    def said(self) -> Mapping[str, str]:
        """The elements of S3's <Error>; empty where the body is something else."""
        root, elements = leaves(self.body)
        return elements if root == "Error" else {}

    @property
    def code(self) -> str:
        """S3's word for what is wrong; "" where none was said."""
        return self.said.get("Code", "")

    @property
    def is_doubtful(self) -> bool:
        """Whether key and bucket may both be to blame: always so after HEAD, whose answers have no body."""
        if self.status == 404 and self.code:
            return self.code not in _GONE and self.code not in _REFUSED
        return not self.body and self.status in {400, 403, 404}

    def __str__(self) -> str:
        """The status, the code and the server's own words, fit for a message."""
        words = "".join(c if c.isprintable() else "?" for c in self.said.get("Message", ""))
        parts = [f"status {self.status}", self.code[:_WORDS_LENGTH_MAX], words[:_WORDS_LENGTH_MAX]]
        return ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Place:
    """What was asked: an error names it."""

    endpoint: str  #: scheme://host:port
    bucket: str
    key: bytes | None
    credentials: str  #: whose, e.g. "profile sbe-1"
    region: str

    def __str__(self) -> str:
        return f"bucket {self.bucket} at {self.endpoint}"


def refusal(answer: Answer, place: Place) -> S5jtError:
    """The error for an answer that says what it means; for a doubtful one, once the bucket was asked."""
    error = _endpoint_error(answer, place)
    if error is not None:
        return error
    if place.key is not None:
        return key_refusal(answer, place)
    if answer.status == 403:
        return EndpointRefused(
            f"{place}: access denied ({answer}; {place.credentials})",
            hint="check that these credentials may list the bucket (s3:ListBucket)",
        )
    return EndpointRefused(f"{place}: {answer}", hint="see what the endpoint can do: s5jtd check")


def key_refusal(answer: Answer, place: Place) -> S5jtError:
    """The error for an answer that concerns the key alone, endpoint and bucket being well."""
    name = f"{printable(place.key or b'')} in {place}"
    if answer.status == 404 or answer.headers.get("x-amz-delete-marker") == "true":
        return ObjectGone(name)
    if answer.status in {409, 412}:
        return ObjectChanged(name)
    if answer.code == "InvalidObjectState":
        return ObjectRefused(f"{name} is archived", hint="restore it from its storage class, then retry it")
    if answer.status == 403:
        return ObjectRefused(
            f"{name}: {answer}",
            hint="check who may read it and its encryption key; to those who may not list the bucket "
            "a missing object looks the same",
        )
    return ObjectRefused(f"{name}: {answer}")


def _endpoint_error(answer: Answer, place: Place) -> S5jtError | None:
    """The error where the key is not to blame; None where it may be."""
    can_do = answer.status != 501 and answer.code != "NotImplemented"
    if can_do and (answer.status >= 500 or answer.status == 429 or answer.code in _DOWN):
        return EndpointDown(f"{place}: {answer}")
    region = answer.headers.get("x-amz-bucket-region") or answer.said.get("Region")
    if answer.code in _WRONG_REGION or (300 <= answer.status < 400 and region):
        return _wrong_region(region, place)
    if 300 <= answer.status < 400:
        return EndpointDown(
            f"{place}: it sends us on to {_host(answer)}, where we do not go", hint=NOT_S3_HINT
        )
    if answer.body and not answer.code:
        return EndpointDown(f"{place}: {NOT_S3} ({answer})", hint=NOT_S3_HINT)
    if answer.code in _REFUSED:
        what, hint = _REFUSED[answer.code]
        return EndpointRefused(
            f"{place}: {what}{_skew(answer)} ({answer.code}; {place.credentials})", hint=hint
        )
    return None


def _wrong_region(region: str | None, place: Place) -> EndpointRefused:
    if region is None or not region.isprintable():
        hint = "set `region` to the one the bucket is in"
    else:
        hint = f"set `region: {region[:_WORDS_LENGTH_MAX]}`"
    return EndpointRefused(f"{place}: it is not served in region {place.region}", hint=hint)


def _host(answer: Answer) -> str:
    try:
        host = urlsplit(answer.headers.get("location", "")).hostname or ""
    except ValueError:
        host = ""
    return host[:_WORDS_LENGTH_MAX] if host and host.isprintable() else "another address"


def _skew(answer: Answer) -> str:
    """By how much the clocks differ, where the answer holds both times."""
    try:
        ours = datetime.strptime(answer.said["RequestTime"], "%Y%m%dT%H%M%S%z")
        theirs = datetime.fromisoformat(answer.said["ServerTime"])
        return f", by {abs(ours - theirs).total_seconds():.0f} s"
    except (KeyError, ValueError, TypeError):
        return ""
