"""Small files that must be whole and ours: written durably, read back only with a valid seal.

A sealed file is lines of JSON and one last line `{"lines": N, "sha256": ..., "hmac": ...}` over all
bytes before it.  The hash tells a torn file from a whole one; the HMAC, keyed from the state folder,
tells our own word from that of a volume that was elsewhere.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from s5jtd.errors import LedgerError, VolumeFailed, VolumeForeign

#: Larger ones are refused unread: a foreign volume may hold anything.
FILE_BYTES_MAX = 256 * 1024 * 1024
KEY_BYTES = 32


def load_key(state_dir: Path) -> bytes:
    """The key of this appliance's seals, made at first use.

    Raises:
        LedgerError: the state folder cannot be used, or the key's file is not ours.
    """
    path = state_dir / "seal.key"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}", hint="check state_dir and who owns it") from error
    if len(key) != KEY_BYTES:
        raise LedgerError(f"{path} has {len(key)} bytes, not {KEY_BYTES}", hint="restore it from a backup")
    return key


def _make_key(path: Path) -> None:
    if path.exists():
        return
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        _give_to(file.fileno(), os.stat(path.parent))
        file.write(os.urandom(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _give_to(descriptor: int, folder: os.stat_result) -> None:
    """What root writes for the daemon belongs to whom the folder belongs, or the daemon could not read it."""
    if os.geteuid() == 0 and folder.st_uid != 0:
        os.fchown(descriptor, folder.st_uid, folder.st_gid)


def unfinished(name: str) -> str:
    """What a sealed file is called until it is whole; a power cut may leave it behind."""
    return f"{name}.new"


def write_sealed(folder_fd: int, name: str, lines: Iterable[dict[str, Any]], key: bytes) -> None:
    """Write a sealed file and make it, and its name, durable.

    Raises:
        OSError: anything the file system says; nothing under `name` was changed then.
    """
    body = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
    trailer = {
        "lines": body.count(b"\n"),
        "sha256": hashlib.sha256(body).hexdigest(),
        "hmac": hmac.digest(key, body, "sha256").hex(),
    }
    temporary = unfinished(name)
    descriptor = os.open(
        temporary,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=folder_fd,
    )
    with os.fdopen(descriptor, "wb") as file:
        _give_to(descriptor, os.fstat(folder_fd))
        file.write(body + json.dumps(trailer, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
    os.fsync(folder_fd)


def read_sealed(folder_fd: int, name: str, key: bytes | None) -> list[dict[str, Any]]:
    """The lines of a sealed file.  Without a `key` only its wholeness is checked, not whose it is.

    Raises:
        FileNotFoundError: there is none.
        VolumeFailed: it is torn or was changed.
        VolumeForeign: it is whole, and sealed by another appliance.
    """
    raw = _read_regular(folder_fd, name)
    body, _, last = raw.rstrip(b"\n").rpartition(b"\n")
    body += b"\n" if body else b""
    with _as_damage(name):
        trailer = json.loads(last)
        whole = hmac.compare_digest(trailer["sha256"], hashlib.sha256(body).hexdigest())
        ours = key is None or hmac.compare_digest(trailer["hmac"], hmac.digest(key, body, "sha256").hex())
    if not whole:
        raise VolumeFailed(f"{name} is torn or was changed", hint="nothing it says is believed")
    if not ours:
        raise VolumeForeign(
            f"{name} was written by another appliance", hint="look at it with `s5jtd volumes adopt`"
        )
    with _as_damage(name):
        lines = [json.loads(line) for line in body.splitlines()]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError("a line is not an object")
    return lines


def _read_regular(folder_fd: int, name: str) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder_fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise VolumeFailed(f"{name}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_BYTES_MAX:
            raise VolumeFailed(f"{name} is not a plain file of sane size")
        return file.read(FILE_BYTES_MAX)


@contextlib.contextmanager
def _as_damage(name: str) -> Iterator[None]:
    """Whatever a hostile or torn file makes the parser say, it means one thing."""
    try:
        yield
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VolumeFailed(f"{name} cannot be read: it is torn or not ours") from error
