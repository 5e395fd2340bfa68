"""The single values of a configuration: what each may be, and the one form it is kept in.

Every check raises a ValueError for the person who wrote the value.  Values that may hide a
password (URLs, credentials) are never quoted in it.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SecretStr

from s5jtd.units import (
    TimetableEntry,
    parse_duration,
    parse_percent,
    parse_rate,
    parse_size,
    parse_timetable,
    shown,
)

AUTO: Literal["auto"] = "auto"

_LEAST_PART, _LARGEST_PART = 5 * 2**20, 5 * 2**30  # bytes; S3's own limits for a part
_MOST_KEY_BYTES = 1024  # S3's limit for a key, so for its prefix too
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_HOST_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_BUCKET_ARN = re.compile(
    r"arn:aws[a-z-]*:(s3:[a-z0-9-]*:[0-9]{12}:accesspoint[:/][A-Za-z0-9.-]+"
    r"|s3-outposts:[a-z0-9-]+:[0-9]{12}:outpost[:/][a-z0-9-]+[:/](accesspoint|bucket)[:/][A-Za-z0-9.-]+)"
)


def absolute_path(value: object) -> Path:
    """A path from the root, without `..` (which means different things through links)."""
    text = str(value) if isinstance(value, str | Path) else ""
    if not text.startswith("/"):
        raise ValueError("must be an absolute path, like /srv/data")
    if _CONTROL.search(text):
        raise ValueError("must be a path without control characters")
    parts = [part for part in text.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise ValueError("must be a path without '..'")
    return Path("/", *parts)


def url(value: object) -> str:
    """`http://host[:port]`, in one spelling, so that two spellings of one endpoint compare equal."""
    if not isinstance(value, str) or not re.fullmatch(r"(?i:https?)://[!-~]+", value):
        raise ValueError("must be a URL that begins with http:// or https://")
    if "@" in value:
        raise ValueError("must be a URL without a user name or password in it")
    if not re.fullmatch(r"[^/]+//[^/?#\\]+/?", value):
        raise ValueError("must be a URL that ends after host and port: no path, no '?', no '#'")
    try:
        parts = urlsplit(value)
        host, port = _host(parts.hostname or ""), parts.port
    except ValueError as error:
        raise ValueError(f"must be a URL with a proper host and port ({error})") from None
    if port == 0:
        raise ValueError("must be a URL with a proper host and port (0 is no port)")
    return f"{parts.scheme}://{host}" + ("" if port in {None, _DEFAULT_PORTS[parts.scheme]} else f":{port}")


def bucket(text: str) -> str:
    """A name, also of the older and freer kind that stores outside AWS still allow; or an ARN."""
    if text.startswith("arn:"):
        if not _BUCKET_ARN.fullmatch(text):
            raise ValueError("must be the ARN of an access point or of an Outposts bucket")
        return text
    if not _BUCKET_NAME.fullmatch(text) or ".." in text or re.fullmatch(r"[0-9]+(\.[0-9]+){3}", text):
        raise ValueError(
            "must be a bucket name: 3 to 63 letters, digits, '.', '-' or '_', a letter or digit at both ends"
        )
    return text


def key_prefix(text: str) -> str:
    """The beginning of a key; a control character in it is a slip of the editor, not a wish."""
    if _CONTROL.search(text):
        raise ValueError("must be a prefix without control characters")
    if len(text.encode()) > _MOST_KEY_BYTES:
        raise ValueError(f"must be at most {_MOST_KEY_BYTES} bytes, as long as a key may be")
    return text


def reserve(value: object) -> float | int:
    """`5%` as a float, a share of the volume; `20GiB` as an int, bytes."""
    if isinstance(value, str) and value.rstrip().endswith("%"):
        share = parse_percent(value)
        if share >= 1:
            raise ValueError("must leave something of the volume to fill")
        return share
    return value if isinstance(value, float) else parse_size(value)


def _reserve_told(value: float) -> dict[str, object]:
    return {"bytes": value} if isinstance(value, int) else {"share": value}


def bandwidth(value: object) -> tuple[TimetableEntry, ...]:
    """A rate is the shortest timetable: from Monday's first minute on, every day."""
    if isinstance(value, list | tuple):
        return parse_timetable(value)
    return (TimetableEntry(days=tuple(range(7)), minute=0, bytes_per_second=parse_rate(value)),)


def part_size(value: object) -> int | Literal["auto"]:
    """`auto` or a size that S3 allows for a part."""
    if value == AUTO:
        return AUTO
    size_bytes = parse_size(value)
    if not _LEAST_PART <= size_bytes <= _LARGEST_PART:
        raise ValueError("must be auto, or from 5MiB to 5GiB")
    return size_bytes


def bounds(most: int) -> BeforeValidator:
    """`auto`, one number, or the two that it is chosen between, as what a model of them is made of."""

    def read(value: object) -> object:
        if value == AUTO:
            return {}
        if isinstance(value, dict):
            return value
        text = str(value) if isinstance(value, str | int) else ""
        if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= most:
            raise ValueError(f"must be auto, a whole number from 1 to {most}, or {{min: 4, max: 64}}")
        return {"min": text, "max": text}

    return BeforeValidator(read)


def scan_interval(value: object) -> float:
    """Seconds; more often than once a second is a busy loop."""
    seconds = parse_duration(value)
    if seconds < 1:
        raise ValueError("must be at least 1s")
    return seconds


def written(pattern: str, what: str) -> AfterValidator:
    """A check that the whole text has this form."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"must be {what}")
        return text

    return AfterValidator(check)


def _host(text: str) -> str:
    """A name or address that is no back door to the machine's own metadata service."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return _host_name(text)
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if (inner or address).is_link_local:
        raise ValueError("a link-local address is never an object store")
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.scope_id:
        raise ValueError("an address with a zone is not supported")
    return f"[{address}]"


def _host_name(text: str) -> str:
    labels = text.split(".")
    if len(text) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError("that is no host name")
    # The C library reads 2852039166, 0xa9fea9fe and 169.254.43518 as addresses too.
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
        raise ValueError("an IPv4 address has four decimal numbers")
    return text


def _secret(secret: SecretStr) -> SecretStr:
    """Printable and without blanks: anything else could add a line to a credentials file."""
    if not re.fullmatch(r"[!-~]+", secret.get_secret_value()):
        raise ValueError("must be printable ASCII without blanks, and not empty")
    return secret


def not_empty(values: tuple[object, ...]) -> tuple[object, ...]:
    """Asked after the items: a bad item is not also none."""
    if not values:
        raise ValueError("must not be empty")
    return values


def unique(values: tuple[str, ...]) -> tuple[str, ...]:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{shown(value)} is there twice")
    return values


def _true(value: bool) -> bool:
    if not value:
        raise ValueError("must be true; without any credentials, leave the key credentials out")
    return value


AbsolutePath = Annotated[Path, BeforeValidator(absolute_path)]
Bandwidth = Annotated[tuple[TimetableEntry, ...], BeforeValidator(bandwidth)]
Bucket = Annotated[str, AfterValidator(bucket)]
Duration = Annotated[float, BeforeValidator(parse_duration)]  #: seconds
KeyPrefix = Annotated[str, AfterValidator(key_prefix)]
PartSize = Annotated[int | Literal["auto"], BeforeValidator(part_size)]
#: A float is a share of the volume, an int is bytes.
Reserve = Annotated[float | int, BeforeValidator(reserve), PlainSerializer(_reserve_told)]
ScanInterval = Annotated[float, BeforeValidator(scan_interval)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Size = Annotated[int, BeforeValidator(parse_size)]  #: bytes
Url = Annotated[str, BeforeValidator(url)]
Urls = Annotated[tuple[Url, ...], AfterValidator(unique)]
Yes = Annotated[bool, AfterValidator(_true)]

ProxyUrl = Annotated[Url, written(r"http:.*", "a URL that begins with http://")]
JobName = Annotated[
    str,
    written(r"[a-z0-9][a-z0-9-]{0,62}", "at most 63 lower-case letters, digits and hyphens, no hyphen first"),
]
VolumeName = Annotated[
    str, written(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "letters, digits, '.', '-' and '_', at most 63")
]
Region = Annotated[str, written(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", "the name of a region, like eu-west-1")]
ProfileName = Annotated[str, written(r"[A-Za-z0-9_][A-Za-z0-9_ .@:/+=-]{0,127}", "the name of a profile")]
AccessKeyId = Annotated[str, written(r"[!-~]{1,256}", "printable ASCII without blanks")]
CredentialName = Annotated[
    str, written(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", "the name of a systemd credential")
]
EnvPrefix = Annotated[
    str, written(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "how the names of the environment variables begin")
]
LocalAddress = Annotated[str, written(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}", "a local address or interface")]
StorageClass = Annotated[str, written(r"[A-Z][A-Z0-9_]{0,63}", "a storage class, like STANDARD_IA")]
KmsKeyId = Annotated[str, written(r"[A-Za-z0-9][A-Za-z0-9:/_-]{0,2047}", "the id, alias or ARN of a key")]
Glob = Annotated[str, written(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,1024}", "a pattern, and not empty")]
