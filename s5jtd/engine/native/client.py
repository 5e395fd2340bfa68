"""A botocore client for a batch's remote end, and what its errors say.

Nothing reaches it from the environment or from `~/.aws`: the contract's `Remote` says all there is to know.
Checksums are sent and asked for only where an operation demands them: many servers that are not AWS take
the trailer that carries them for a part of the object.
"""

from __future__ import annotations

import configparser
import errno
import os
import ssl
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionError,  # noqa: A004  (the library's, not Python's)
    HTTPClientError,
    IncompleteReadError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from s5jtd.engine.answers import of_answer, presentable
from s5jtd.engine.contract import Failure, Remote

#: Enough for a dropped connection; the ledger counts and spaces the attempts that matter.
_RETRIES: Final = 2
_CONNECT_SECONDS: Final = 10.0
_CONNECTIONS_MAX: Final = 64
_CLIENTS_KEPT: Final = 8
_REGION_DEFAULT: Final = "us-east-1"
_PROFILE: Final = "s5jtd"


class Keys(NamedTuple):
    """What signs requests; all of it None: nothing does."""

    access_key_id: str | None
    secret_access_key: str | None
    session_token: str | None

    def __repr__(self) -> str:
        return "Keys(***)"


class NoKeys(Exception):
    """The credentials file is not there, or not what we write."""


class Clients:
    """Clients by remote end and keys; made once, as each reads its rules for a tenth of a second."""

    def __init__(self, read_seconds: float, prepare: Sequence[Callable[[Any], None]]) -> None:
        """`read_seconds`: how long a server may say nothing; `prepare` is done to each new client."""
        self._read_seconds = read_seconds
        self._prepare = prepare
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Remote, Keys], Any] = OrderedDict()
        self._session: Any = None

    def get(self, remote: Remote) -> Any:
        """A client; threads may share it.

        Raises:
            NoKeys: there is nothing to sign with.
            BotoCoreError, ValueError: no client can be made of what the remote says.
        """
        asked = remote, read_keys(remote)
        with self._lock:
            client = self._kept.get(asked)
            if client is None:
                client = self._kept[asked] = self._make(*asked)
                for prepare in self._prepare:
                    prepare(client)
                if len(self._kept) > _CLIENTS_KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(asked)
        return client

    def _make(self, remote: Remote, keys: Keys) -> Any:
        if self._session is None:
            nothing = (None, None, None, None)
            nowhere = (None, None, os.devnull, None)
            self._session = botocore.session.Session(
                session_vars={"profile": nothing, "config_file": nowhere, "credentials_file": nowhere}
            )
        return self._session.create_client(
            "s3",
            region_name=remote.region or _REGION_DEFAULT,
            endpoint_url=remote.endpoint_url,
            aws_access_key_id=keys.access_key_id,
            aws_secret_access_key=keys.secret_access_key,
            aws_session_token=keys.session_token,
            verify=_verify(remote),
            config=self._config(remote, signed=keys.access_key_id is not None),
        )

    def _config(self, remote: Remote, *, signed: bool) -> Config:
        return Config(
            signature_version="s3v4" if signed else UNSIGNED,
            ignore_configured_endpoint_urls=True,
            use_fips_endpoint=False,
            use_dualstack_endpoint=False,
            s3={
                "addressing_style": remote.addressing,
                "us_east_1_regional_endpoint": "regional",
                "use_arn_region": True,
            },
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1 + _RETRIES, "mode": "standard"},
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=self._read_seconds,
            max_pool_connections=_CONNECTIONS_MAX,
            proxies={"http": remote.proxy, "https": remote.proxy} if remote.proxy else {},
        )


def read_keys(remote: Remote) -> Keys:
    """What the remote's credentials file holds now.

    Raises:
        NoKeys: it is not there, or not what we write.
    """
    if remote.credentials_file is None:
        return Keys(None, None, None)
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(remote.credentials_file.read_text(encoding="utf-8"))
        section: Mapping[str, str] = parser[_PROFILE]
        return Keys(
            section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token")
        )
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError):
        raise NoKeys(f"{remote.credentials_file} holds no keys") from None  # a parser quotes secrets


def _verify(remote: Remote) -> bool | str:
    """Whom to trust: as everywhere in this program, the system's store, where none is named."""
    if not remote.verify_tls:
        return False
    bundle = remote.ca_bundle or ssl.get_default_verify_paths().cafile
    return str(bundle) if bundle else True


class LocalFault(OSError):
    """The local side failed in the midst of sending; the library wraps what is raised there."""


class Changed(Exception):
    """The object is another than it was when its transfer began."""


def failure_of(error: Exception) -> tuple[Failure, str]:
    """What an error of a transfer says, and in which words, without secrets."""
    return _kind(error), presentable(str(error) or type(error).__name__)


def _kind(error: Exception) -> Failure:
    inner = error.kwargs.get("error") if isinstance(error, HTTPClientError) else None
    match error:
        case _ if isinstance(inner, LocalFault):
            return _of_system(inner)
        case Changed():
            return Failure.CHANGED
        case NoKeys():
            return Failure.CREDENTIALS
        case ClientError():
            answer: Any = error.response
            status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
            code = str(answer.get("Error", {}).get("Code", ""))
            return Failure.CHANGED if status == 412 else of_answer(code, status)
        case (
            ConnectionError()
            | HTTPClientError()
            | IncompleteReadError()
            | ResponseParserError()
            | HTTPError()
        ):
            return Failure.ENDPOINT
        case OSError():
            return _of_system(error)
    return Failure.OTHER


def _of_system(error: OSError) -> Failure:
    return Failure.SPACE if error.errno in {errno.ENOSPC, errno.EDQUOT} else Failure.LOCAL


def is_answer(error: Exception, *codes: str) -> bool:
    """Whether an error is a server's answer with one of these codes."""
    return isinstance(error, ClientError) and error.response.get("Error", {}).get("Code") in codes
