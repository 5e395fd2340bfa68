"""The bearer token: made on request, read once, compared without telling how near a guess was."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from s5jtd.errors import ConfigError, UsageError
from s5jtd.log import register_secret

TOKEN_BYTES = 32  #: 256 bits of chance
_TEXT = re.compile(rb"[A-Za-z0-9._~+/=-]{32,512}")  # what RFC 6750 calls a b64token, and long enough
_MAKE = "make one: s5jtd api token FILE"


class Token:
    """What a request must show."""

    def __init__(self, text: bytes) -> None:
        """Only the hash is kept, so that nothing here could show the token."""
        self._digest = hashlib.sha256(text).digest()

    def matches(self, given: bytes) -> bool:
        """Whether `given` is the token, in a time that depends on neither's content."""
        return hmac.compare_digest(hashlib.sha256(given).digest(), self._digest)


def create(path: Path) -> None:
    """Write a new token, which nobody but the file's owner can read.

    Raises:
        UsageError: the file is there already, or cannot be made.
    """
    write_new(path, secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n", mode=0o600)


def read(path: Path) -> Token:
    """The token in a file; from now on the log cuts it out of everything.

    Raises:
        ConfigError: there is none that could protect anything.
    """
    text = read_secret(path, "the token", _MAKE).strip()
    if not _TEXT.fullmatch(text):
        raise ConfigError(
            f"{path}: a token is one line of 32 to 512 letters, digits and . _ ~ + / = -", hint=_MAKE
        )
    register_secret(text.decode())
    return Token(text)


def read_secret(path: Path, what: str, make: str) -> bytes:
    """The beginning of a file that others must not be able to read.

    Raises:
        ConfigError: it cannot be read, or everybody can.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path}, {what}, is not a file", hint=make)
            # Not the group: systemd's credentials show an access list's mask there.
            if mode & stat.S_IRWXO:
                raise ConfigError(f"{path}, {what}, is open to every user", hint=f"chmod o= {path}")
            return file.read(64 * 1024)
    except OSError as error:
        raise ConfigError(f"cannot read {path}, {what}: {error.strerror or error}", hint=make) from None


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that was not there, and have it on the disk.

    Raises:
        UsageError: it is there, or cannot be made.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
    except FileExistsError:
        raise already_there(path) from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None


def already_there(path: Path) -> UsageError:
    """What exists may be in use, so it is never overwritten."""
    return UsageError(f"{path} is there already", hint=f"somebody may use it; if not, first: rm {path}")
