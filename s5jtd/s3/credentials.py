"""Whose keys a side signs with, read anew when their file changes, and written out only for s5cmd.

Secrets leave this file in signatures and in one 0600 file, never in a repr, a message or an argument.
A systemd credential is a file in the AWS shared-credentials format with the profile `[default]`:

    [default]
    aws_access_key_id = ...
    aws_secret_access_key = ...
    aws_session_token = ...        (only with temporary credentials)
"""

from __future__ import annotations

import configparser
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import botocore.session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004  (the library's, not Python's)
    HTTPClientError,
    PartialCredentialsError,
    ProfileNotFound,
)

from s5jtd.errors import EndpointDown, EndpointError, EndpointRefused

#: The profile in the files we write, as the engine's contract has it.
PROFILE: Final = "s5jtd"

#: Where the unit's LoadCredential= takes them from; root's commands look there themselves.
CREDENTIALS_FOLDER: Final = Path("/etc/s5jtd/credentials.d")
_FILE_BYTES_MAX: Final = 64 * 1024
#: The AWS chain may end at a metadata service that is not there; asking each time would hold up everything.
_FAILURE_KEPT_SECONDS: Final = 30.0
#: Where the reader inside s5cmd takes what follows for a comment or a quotation; found by trying it.
_MISREAD: Final = re.compile(r'^["#;]|[\s=][#;]')
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What signs a request."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CredentialSource:
    """Where a side's credentials come from: one of these; none of them means the AWS chain."""

    keys: Credentials | None = None  #: written in the configuration
    profile: str | None = None  #: of the shared AWS files
    systemd: str | None = None  #: name of a LoadCredential= file
    env: str | None = None  #: PREFIX of PREFIX_ACCESS_KEY_ID, PREFIX_SECRET_ACCESS_KEY, PREFIX_SESSION_TOKEN
    anonymous: bool = False

    def __str__(self) -> str:
        """Whose credentials, fit for a message."""
        if self.anonymous:
            return "anonymous"
        if self.keys:
            return "credentials of the configuration"
        if self.profile:
            return f"profile {self.profile}"
        if self.systemd:
            return f"systemd credential {self.systemd}"
        if self.env:
            return f"credentials in {self.env}_*"
        return "credentials of the AWS chain"


#: Answers with the credentials of this moment; temporary ones renew themselves behind it.
_Reader = Callable[[], Credentials | None]


class CredentialProvider:
    """One side's credentials, as they are now.  Threads may share it."""

    def __init__(
        self,
        source: CredentialSource,
        *,
        environ: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._environ = environ
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._reader: _Reader | None = None
        self._files_seen: tuple[object, ...] = ()
        self._failure: EndpointError | None = None
        self._failure_ends = 0.0  #: monotonic seconds

    def __str__(self) -> str:
        return str(self._source)

    def are_those_of(self, other: CredentialProvider) -> bool:
        """Whether both come from the same source."""
        return self._source == other._source

    def current(self) -> Credentials | None:
        """What to sign with now; None: do not sign.

        A file that changed is read again; a failure is remembered for half a minute.

        Raises:
            EndpointRefused: there are none, or they cannot be read.
            EndpointDown: who gives out temporary ones cannot be reached.
        """
        with self._lock:
            files = tuple(_identity(path) for path in self._files())
            if files != self._files_seen:
                self._files_seen, self._reader, self._failure = files, None, None
            if self._failure is not None and self._monotonic() < self._failure_ends:
                raise type(self._failure)(self._failure.detail, hint=self._failure.hint)
            try:
                if self._reader is None:
                    self._reader = self._open()
                return self._reader()
            except EndpointError as error:
                self._reader, self._failure = None, error
                self._failure_ends = self._monotonic() + _FAILURE_KEPT_SECONDS
                raise

    def forget(self) -> None:
        """Read anew next time: an endpoint refused what `current` gave."""
        with self._lock:
            self._reader = None

    def _files(self) -> list[Path]:
        """The files whose change means other credentials."""
        source = self._source
        if source.systemd:
            return [self._systemd_file(source.systemd)]
        if source.keys or source.anonymous or source.env:
            return []
        return [
            self._aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            self._aws_file("AWS_CONFIG_FILE", "config"),
        ]

    def _open(self) -> _Reader:
        source = self._source
        if source.anonymous:
            return lambda: None
        if source.keys:
            return lambda: source.keys
        if source.systemd:
            path = self._systemd_file(source.systemd)
            return _constant(_from_file(path, "default", hint=_fill(source.systemd)))
        if source.env:
            return _constant(_from_environment(self._environ, source.env))
        if source.profile:
            path = self._files()[0]
            if _starts_with_bom(path):  # where botocore stumbles
                return _constant(_from_file(path, source.profile, hint="see the file"))
        return _from_botocore(source)

    def _systemd_file(self, name: str) -> Path:
        if "/" in name or name in {"", ".", ".."}:
            raise EndpointRefused(f"{name!r} cannot be a systemd credential", hint="a plain name is needed")
        directory = self._environ.get("CREDENTIALS_DIRECTORY")
        if not directory and os.access(CREDENTIALS_FOLDER / name, os.R_OK):
            return CREDENTIALS_FOLDER / name
        if not directory:
            raise EndpointRefused(
                f"{self._source}: systemd gave us no credentials",
                hint=_fill(name),
            )
        return Path(directory) / name

    def _aws_file(self, variable: str, name: str) -> Path:
        return Path(self._environ.get(variable) or f"~/.aws/{name}").expanduser()


def write_shared_file(directory: Path, name: str, credentials: Credentials) -> Path:
    """Write `credentials` as the profile `s5jtd` of an AWS shared-credentials file, mode 0600, in one step.

    A process that has the old file open keeps reading the old one.

    Raises:
        EndpointRefused: a value cannot stand in such a file.
    """
    values = {
        "aws_access_key_id": credentials.access_key_id,
        "aws_secret_access_key": credentials.secret_access_key,
        "aws_session_token": credentials.session_token,
    }
    lines = [f"[{PROFILE}]"]
    for option, value in values.items():
        if value is None:
            continue
        if not value.isprintable() or value != value.strip() or _MISREAD.search(value):
            raise EndpointRefused(
                f"the {option} holds characters that a credentials file cannot carry",
                hint="check it for stray characters, or have another made, of letters and digits",
            )
        lines.append(f"{option} = {value}")
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name}.")  # 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        Path(temporary).replace(directory / name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return directory / name


def _fill(name: str) -> str:
    file = CREDENTIALS_FOLDER / name
    return f"fill {file}, then as root: s5jtd volumes dropin --write && systemctl restart s5jtd"


def _constant(credentials: Credentials) -> _Reader:
    return lambda: credentials


def _identity(path: Path) -> object:
    """Something that differs once the file was written or replaced; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _starts_with_bom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_BOM)) == _BOM
    except OSError:
        return False


def _from_environment(environ: Mapping[str, str], prefix: str) -> Credentials:
    names = {"key": f"{prefix}_ACCESS_KEY_ID", "secret": f"{prefix}_SECRET_ACCESS_KEY"}
    missing = [name for name in names.values() if not environ.get(name, "").strip()]
    if missing:
        raise EndpointRefused(
            f"not in the environment: {', '.join(missing)}", hint="set it in the unit with EnvironmentFile="
        )
    return Credentials(
        environ[names["key"]].strip(),
        environ[names["secret"]].strip(),
        environ.get(f"{prefix}_SESSION_TOKEN", "").strip() or None,
    )


def _from_file(path: Path, profile: str, *, hint: str) -> Credentials:
    """A profile's keys.  What the parser says is not repeated: it quotes lines, and lines hold secrets."""
    parser = configparser.RawConfigParser(default_section="")
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
        if len(content) > _FILE_BYTES_MAX:
            raise EndpointRefused(f"{path} is too large to hold credentials", hint=hint)
        parser.read_string(content.decode("utf-8-sig"))
    except OSError as error:
        raise EndpointRefused(f"cannot read {path}: {error.strerror}", hint=hint) from error
    except (configparser.Error, UnicodeDecodeError) as error:
        where = f", line {error.lineno}" if isinstance(error, configparser.MissingSectionHeaderError) else ""
        raise EndpointRefused(
            f"{path}{where} is not in the format of AWS credentials files",
            hint=f"it begins with [{profile}], then aws_access_key_id = and aws_secret_access_key =",
        ) from None
    if not parser.has_section(profile):
        raise EndpointRefused(f"{path} has no profile [{profile}]", hint=hint)
    found = {option: value.strip() for option, value in parser.items(profile) if value}
    missing = [name for name in ("aws_access_key_id", "aws_secret_access_key") if not found.get(name)]
    if missing:
        raise EndpointRefused(f"{path}, profile [{profile}]: no {' and no '.join(missing)}", hint=hint)
    token = found.get("aws_session_token") or None
    return Credentials(found["aws_access_key_id"], found["aws_secret_access_key"], token)


def _from_botocore(source: CredentialSource) -> _Reader:
    """A profile or the whole chain: static, assumed role, process, SSO, container, instance."""
    try:
        found: Any = botocore.session.Session(profile=source.profile).get_credentials()
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        raise _unavailable(error, source) from None
    if found is None:
        raise EndpointRefused(
            f"{source}: there are none", hint="name some under `credentials` in the configuration"
        )

    def read() -> Credentials:
        try:
            frozen = found.get_frozen_credentials()
        except (BotoCoreError, ClientError, OSError, ValueError, RuntimeError) as error:
            raise _unavailable(error, source) from None
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token or None)

    return read


def _unavailable(error: Exception, source: CredentialSource) -> EndpointError:
    """Our words for botocore's error, whose own may quote a line of a file or a program's output."""
    if isinstance(error, HTTPClientError | ConnectionError):
        return EndpointDown(f"{source}: who gives them out cannot be reached")
    if isinstance(error, ProfileNotFound):
        return EndpointRefused(
            f"{source}: not found", hint="it should be in ~/.aws/credentials of the daemon's user"
        )
    if isinstance(error, PartialCredentialsError):
        return EndpointRefused(f"{source}: incomplete", hint=f"add {error.kwargs['cred_var']}")
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        return EndpointRefused(f"{source}: refused ({code})", hint="check the role and who may assume it")
    return EndpointRefused(
        f"{source}: cannot be read ({type(error).__name__})",
        hint="check ~/.aws/credentials and ~/.aws/config",
    )
