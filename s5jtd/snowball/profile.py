"""An AWS profile for the device, put into the two shared files without a change to anything else in them."""

from __future__ import annotations

import configparser
import io
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from s5jtd.errors import ConfigError, UsageError
from s5jtd.snowball.folder import Keys, as_error, others_may_read, write_private
from s5jtd.units import shown

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")

#: What a section shall hold; None: what it shall not, because it would spoil the rest.
Values = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Change:
    """What one file lacks."""

    path: Path
    what: tuple[str, ...]  #: fit for a person, without secrets; empty where all is as it should be
    data: bytes = field(repr=False)


def plan(name: str, keys: Keys, environ: Mapping[str, str]) -> tuple[Change, Change]:
    """What the shared credentials file and the configuration file need for a profile of this name.

    Raises:
        UsageError: no profile can be called so.
        ConfigError, NotPermitted: a file cannot be read, or is not in AWS's format.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{shown(name)} cannot be the name of an AWS profile",
            hint="the profile is called like the folder: rename it to letters, digits, dots and hyphens",
        )
    # A session token of other days would be sent along with the new keys, and they would be refused.
    credentials: Values = {
        "aws_access_key_id": keys.access_key_id,
        "aws_secret_access_key": keys.secret_access_key,
        "aws_session_token": None,
    }
    settings: Values = {"region": "snow", "output": "json"}
    header = name if name == "default" else f"profile {name}"
    return (
        _change(_aws_file("AWS_SHARED_CREDENTIALS_FILE", "credentials", environ), name, credentials),
        _change(_aws_file("AWS_CONFIG_FILE", "config", environ), header, settings),
    )


def apply(change: Change) -> None:
    """Make it so, durably and in one step.

    Raises:
        NotPermitted, SnowballError: it cannot be written.
    """
    try:
        change.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise as_error(error, str(change.path.parent), "make this folder yourself") from error
    write_private(change.path, change.data)


def edit(text: str, header: str, values: Values) -> str:
    """The text with these values in this section; every other line stays as it is.

    It reads as Python's configparser does, which is what AWS's tools for Python read with: a line that is
    indented more than the option before it belongs to that option.
    """
    lines: list[str] = []
    left = dict(values)
    newline = "\r\n" if "\r\n" in text else "\n"
    inside = dropping = False
    option_indent: int | None = None
    end, indent = -1, ""  # where our section's last option ends, and how it is indented
    for line in io.StringIO(text, newline=""):
        words = line.strip()
        margin = line[: len(line) - len(line.lstrip())]
        if not words or words[0] in "#;":
            lines.append(line)
            continue
        if option_indent is None or len(margin) <= option_indent:
            section = re.match(r"\[(.+)\]", words)
            inside = _is_meant(section[1], header) if section else inside
            option_indent = None if section else len(margin)
            indent = margin if inside else indent
            option, _, value = (part.strip() for part in re.split("([=:])", words + "=", maxsplit=1))
            dropping = inside and not section and option.lower() in values
            wanted = left.pop(option.lower(), None) if dropping else None
            if wanted is not None and value.removesuffix("=") == wanted:
                dropping = False
            elif wanted is not None:
                lines.append(f"{margin}{option} = {wanted}{newline}")
        if not dropping:
            lines.append(line)
        if inside:
            end = len(lines)
    added = [f"{indent}{option} = {value}{newline}" for option, value in left.items() if value is not None]
    if end < 0:
        end = len(lines)
        added = [newline] * bool(lines) + [f"[{header}]{newline}", *added]
    if added and end and not lines[end - 1].endswith(("\n", "\r")):
        lines[end - 1] += newline
    return "".join([*lines[:end], *added, *lines[end:]])


def _change(path: Path, header: str, values: Values) -> Change:
    """What the file lacks; the edited text was read back, and holds that and nothing else new."""
    try:
        data = path.read_bytes() if path.exists() else b""
        loose = bool(data) and others_may_read(path)
    except OSError as error:
        raise as_error(error, str(path), "make it readable for you", kind=ConfigError) from error
    text = data.decode(errors="surrogateescape")
    before = _sections(text, path)
    section = next((one for one in before if _is_meant(one, header)), header)
    had = before.get(section, {})
    wanted = {option: value for option, value in values.items() if value is not None}
    expected = {option: value for option, value in had.items() if option not in values} | wanted
    new = edit(text, header, values)
    if _sections(new, path) != before | {section: expected}:
        raise ConfigError(
            f"{path}: [{header}] cannot be changed without touching more", hint="edit it yourself"
        )
    what = [] if section in before else [f"add [{header}]"]
    what += [
        f"{'change' if option in had else 'add'} {option}"
        for option in wanted
        if had.get(option) != wanted[option]
    ]
    what += [f"remove {option}" for option in had if option in values and option not in wanted]
    what += ["make it readable for its owner alone"] if loose else []
    return Change(path, tuple(what), new.encode(errors="surrogateescape"))


def _is_meant(section: str, header: str) -> bool:
    """Whether this is the section; AWS reads `profile "x"` as `profile x`."""
    try:
        return section == header or (" " in header and shlex.split(section) == header.split())
    except ValueError:
        return False


def _sections(text: str, path: Path) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error as error:  # whose words quote the line
        numbers = [getattr(error, "lineno", None), *(number for number, _ in getattr(error, "errors", ()))]
        where = next((f", line {number}" for number in numbers if number), "")
        raise ConfigError(
            f"{path}{where} is not in the format of AWS's files", hint="mend it: AWS's own tools stumble too"
        ) from None
    return {name: dict(parser.items(name)) for name in parser.sections()}


def _aws_file(variable: str, name: str, environ: Mapping[str, str]) -> Path:
    path = Path(environ.get(variable) or f"~/.aws/{name}").expanduser()
    return Path(os.path.realpath(path))  # a link stays a link, and what it leads to is replaced
