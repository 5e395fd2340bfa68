"""Where a bucket lives: host, path, region and signing name, by the rules botocore carries.

Asking botocore keeps us, the native engine and s5cmd at one opinion about access points, Outposts,
partitions and buckets with dots, without a table of our own to grow old.  What it would read from the
environment and from `~/.aws/config` is kept out: an endpoint comes from our configuration alone.
"""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import parse_qs, urlsplit

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from s5jtd.errors import EndpointRefused

Addressing = Literal["auto", "path", "virtual"]

#: What AWS's own tools take where nothing is said; S3-compatible servers mostly accept it.
REGION_DEFAULT: Final = "us-east-1"

_SESSION_LOCK: Final = threading.Lock()
_PORTS: Final = {"http": 80, "https": 443}
_ENDPOINT_HINT: Final = "write it as scheme://host or scheme://host:port, e.g. http://10.20.1.20:8080"


@dataclass(frozen=True, slots=True)
class Address:
    """Where requests for a bucket go, and how they are signed."""

    scheme: str  #: "http" or "https"
    host: str  #: an IPv6 address without its brackets
    port: int
    path: str  #: what precedes a key's "/", percent-encoded: "" or "/bucket"
    region: str
    service: str  #: signing name: "s3" or "s3-outposts"

    @property
    def authority(self) -> str:
        """The Host header: a default port is left out, as servers expect when they check a signature."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def locate(bucket: str, *, endpoint_url: str | None, region: str | None, addressing: Addressing) -> Address:
    """Where `bucket` (a name, an alias or an ARN) is reached; `endpoint_url` None means AWS itself.

    Raises:
        EndpointRefused: no place can be made of what was given.
    """
    check_endpoint_url(endpoint_url)
    if bucket.endswith("--x-s3"):
        raise EndpointRefused(
            f"{bucket} is a directory bucket, which takes only session credentials",
            hint="name a general purpose bucket",
        )
    if bucket.startswith("arn:") and bucket.split(":")[3:4] == [""]:
        raise EndpointRefused(
            f"{bucket} is a multi-region access point, which takes only SigV4A signatures",
            hint="name the bucket or a regional access point",
        )
    return _address(_presigned(bucket, endpoint_url, region or REGION_DEFAULT, addressing))


def check_endpoint_url(endpoint_url: str | None) -> None:
    """Refuse what is not scheme://host[:port].  The URL is not repeated: it may hold a password.

    Raises:
        EndpointRefused: it is something else.
    """
    if endpoint_url is None:
        return
    try:
        parts = urlsplit(endpoint_url)
        is_address = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise EndpointRefused("the endpoint's URL cannot be read", hint=_ENDPOINT_HINT) from error
    if not is_address:
        raise EndpointRefused("the endpoint's URL lacks a scheme or a host", hint=_ENDPOINT_HINT)
    if parts.username is not None or parts.password is not None:
        raise EndpointRefused(
            "the endpoint's URL holds a user name or password",
            hint="take it out of the URL and put the keys under `credentials`",
        )
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise EndpointRefused("the endpoint's URL holds more than a host", hint=_ENDPOINT_HINT)


@functools.cache
def _session() -> Any:
    """One session for all, as reading its rules takes a tenth of a second; no settings reach it."""
    nothing = (None, None, None, None)
    nowhere = (None, None, os.devnull, None)
    return botocore.session.Session(
        session_vars={"profile": nothing, "config_file": nowhere, "credentials_file": nowhere}
    )


def _presigned(bucket: str, endpoint_url: str | None, region: str, addressing: Addressing) -> str:
    """The URL of a listing, as botocore's endpoint rules would have it."""
    config = Config(
        signature_version="s3v4",
        ignore_configured_endpoint_urls=True,
        use_fips_endpoint=False,
        use_dualstack_endpoint=False,
        s3={
            "addressing_style": addressing,
            "us_east_1_regional_endpoint": "regional",
            "use_arn_region": True,
        },
    )
    try:
        with _SESSION_LOCK:  # threads may share clients of botocore, but not sessions
            client = _session().create_client(
                "s3",
                region_name=region,
                endpoint_url=endpoint_url,
                aws_access_key_id="none",
                aws_secret_access_key="none",  # noqa: S106  (signs nothing that is sent)
                config=config,
            )
        url: str = client.generate_presigned_url("list_objects_v2", Params={"Bucket": bucket})
    except (BotoCoreError, ValueError) as error:
        raise EndpointRefused(
            f"no address can be made of bucket {bucket!r}, region {region!r}: {type(error).__name__}",
            hint="check the bucket's name or ARN, the region and the endpoint's URL",
        ) from error
    return url


def _address(url: str) -> Address:
    parts = urlsplit(url)
    _key_id, _date, region, service, _end = parse_qs(parts.query)["X-Amz-Credential"][0].split("/")
    return Address(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port or _PORTS[parts.scheme],
        path=parts.path.rstrip("/"),
        region=region,
        service=service,
    )
