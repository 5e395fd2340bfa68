"""The folder of one device: its manifest, its `sbe_config.yaml`, and the `keys.yaml` we leave beside them."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from s5jtd.errors import ConfigError, NotPermitted, S5jtError, SnowballError, UsageError
from s5jtd.units import shown

CONFIG: Final = "sbe_config.yaml"
KEYS: Final = "keys.yaml"

_FILE_BYTES_MAX: Final = 64 * 1024
#: As AWS describes it: 25 letters and digits and four hyphens.
_UNLOCK_CODE: Final = re.compile(r"[A-Za-z0-9]{5}(-[A-Za-z0-9]{5}){4}")
_ENDPOINT: Final = re.compile(r"https://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?/?")
#: One word that no file format and no command line takes for something else.
WORD: Final = re.compile(r"[!-,.-~][!-~]{0,255}")


@dataclass(frozen=True, slots=True)
class Device:
    """What the folder says of its device."""

    folder: Path
    manifest: Path
    endpoint: str  #: https://host[:port]
    unlock_code: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Keys:
    """The device's own S3 credentials; AWS itself knows nothing of them."""

    access_key_id: str
    secret_access_key: str = field(repr=False)


def read_device(folder: Path) -> Device:
    """The device of this folder.

    Raises:
        UsageError: it is no folder.
        ConfigError: manifest or configuration cannot be used; what they hold is not repeated.
    """
    folder = _opened(folder)
    config = folder / CONFIG
    unlock_code, endpoint = _read_values(config, "unlock_key", "endpoint_url", hint="it is yours to write")
    if not _UNLOCK_CODE.fullmatch(unlock_code):
        raise ConfigError(
            f"{config}: unlock_key is not an unlock code",
            hint="it has five groups of five letters or digits with hyphens between; the console shows it",
        )
    if not _ENDPOINT.fullmatch(endpoint):
        raise ConfigError(
            f"{config}: endpoint_url is not the address of a device",
            hint="write https:// and the address on the device's display, like https://192.0.2.10",
        )
    return Device(folder, _manifest(folder), endpoint.rstrip("/"), unlock_code)


def read_keys(folder: Path) -> Keys:
    """The keys that `write_keys` left.

    Raises:
        UsageError: it is no folder.
        ConfigError: there are none, or they cannot be used.
    """
    path = _opened(folder) / KEYS
    hint = f"fetch them from the device: s5jtd snowball unlock {folder}"
    found = _read_values(path, "aws_access_key_id", "aws_secret_access_key", hint=hint)
    if not all(WORD.fullmatch(value) for value in found):
        raise ConfigError(f"{path}: the keys are not of printable characters without spaces", hint=hint)
    return Keys(*found)


def write_keys(folder: Path, keys: Keys) -> Path:
    """Leave the keys in the folder, for `profile`; the file's path.

    Raises:
        NotPermitted, SnowballError: they cannot be written.
    """
    values = {
        "aws_access_key_id": keys.access_key_id,
        "aws_secret_access_key": keys.secret_access_key,
    }
    path = folder / KEYS
    write_private(path, yaml.safe_dump(values).encode())
    return path


def others_may_read(path: Path) -> bool:
    """Whether more than its owner may read a file that holds a secret."""
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def write_private(path: Path, data: bytes) -> None:
    """Replace a file in one durable step: mode 0600, and its owner's where root replaces it.

    Raises:
        NotPermitted, SnowballError: it could not be done; what stood there still does.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)  # what a power cut left
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            if os.geteuid() == 0 and path.exists():
                os.fchown(file.fileno(), path.stat().st_uid, path.stat().st_gid)
            os.fsync(file.fileno())
        new.replace(path)
        folder_fd = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(folder_fd)
        finally:
            os.close(folder_fd)
    except OSError as error:
        raise as_error(
            error, f"writing {path}", "make room in its folder, and that writable for you"
        ) from error


def as_error(error: OSError, what: str, hint: str, *, kind: type[S5jtError] = SnowballError) -> S5jtError:
    """What the system refused, as ours."""
    return (NotPermitted if isinstance(error, PermissionError) else kind)(
        f"{what}: {error.strerror}", hint=hint
    )


def _opened(folder: Path) -> Path:
    try:
        folder = folder.resolve()
        good = folder.is_dir() and str(folder).isprintable()  # the client takes paths line by line
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL in the name
        good = False
    if not good:
        raise UsageError(
            f"{shown(str(folder))} is no folder with a printable name",
            hint="name the folder that holds the device's manifest and its sbe_config.yaml",
        )
    return folder


def _manifest(folder: Path) -> Path:
    try:
        found = sorted(path for path in folder.glob("*manifest.bin") if path.is_file())
    except OSError as error:
        raise as_error(error, str(folder), "make the folder readable for you") from error
    if len(found) != 1 or not found[0].name.isprintable():
        names = ", ".join(shown(path.name) for path in found[:5])
        raise ConfigError(
            f"{folder} holds {len(found) or 'no'} manifests{names and f': {names}'}",
            hint="each device has a folder of its own, with one file whose name ends in manifest.bin",
        )
    return found[0]


def _read_values(path: Path, *names: str, hint: str) -> tuple[str, ...]:
    """Texts under these names.  A message never quotes the file, and the parser's own would."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
        found = yaml.safe_load(data) if len(data) <= _FILE_BYTES_MAX else None
    except OSError as error:
        raise as_error(error, str(path), hint, kind=ConfigError) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where} is not YAML", hint=f"it needs lines like {names[0]}: ...") from None
    if not isinstance(found, dict):
        found = {}
    if missing := [name for name in names if not isinstance(found.get(name), str) or not found[name]]:
        raise ConfigError(f"{path}: no text under {' and '.join(missing)}", hint=hint)
    return tuple(found[name].strip() for name in names)
