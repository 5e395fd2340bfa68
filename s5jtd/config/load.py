"""From a path to a configuration that may be trusted, or to every reason against it at once."""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from s5jtd.config.rules import Problem, conflicts
from s5jtd.config.schema import Config, sections_at
from s5jtd.config.tree import KeyPath, Node, Unreadable, line_of, path_text, plain, read, walk
from s5jtd.errors import ConfigError
from s5jtd.units import shown

DEFAULT_PATH = Path("/etc/s5jtd/config.yaml")
MAX_BYTES = 2**20

_SECRETS = frozenset({"secret_access_key", "session_token"})

#: pydantic's kinds of error in our words; its own for the others.
_SAID = {
    "missing": "is required",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "model_type": "must hold keys of its own",
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of reasonable size",
    "int_from_float": "must be a whole number",
}
#: Kinds whose message is clearer with the value beside it.
_WITH_VALUE = frozenset(
    {"literal_error", "enum", "bool_parsing", "int_parsing", "greater_than_equal", "less_than_equal"}
)


def find(argument: str | None, environ: Mapping[str, str]) -> Path:
    """Which file to load: the one asked for, else $S5JTD_CONFIG, else the usual one."""
    chosen = argument or environ.get("S5JTD_CONFIG")
    return Path(chosen).absolute() if chosen else DEFAULT_PATH


def load(path: Path) -> Config:
    """The configuration in this file.

    Raises:
        ConfigError: it cannot be used; all reasons that were found, one a line, without any secret.
    """
    content, mode = _content(path)
    try:
        tree = read(_text(content))
    except Unreadable as error:
        raise _refusal(path, [f"{path}:{error.line}:{error.column}: {error.message}"]) from None
    problems = list(_exposed(tree, mode))
    try:
        config = Config.model_validate(plain(tree))
    except ValidationError as error:
        problems += _schema_problems(error)
    else:
        problems += conflicts(config)
        if not problems:
            return config
    # Raised out here, not in the handler: pydantic's error knows the values, and some are secret.
    raise _refusal(path, _lines(path, tree, problems))


def _content(path: Path) -> tuple[bytes, int]:
    """Bytes and permission bits of one and the same file, even if it is replaced meanwhile."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError(f"{path}: not a regular file", hint="name a file with --config")
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no path can be made of it"
        raise ConfigError(f"{path}: {reason}", hint="name the file with --config or $S5JTD_CONFIG") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than 1MiB", hint="is it the file you meant?")
    return content, mode


def _without_waiting(path: str, flags: int) -> int:
    """A pipe without a writer must not hold up the start."""
    return os.open(path, flags | os.O_NONBLOCK)


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable("not UTF-8 text; save the file as UTF-8", line) from None


def _exposed(tree: Node, mode: int) -> Iterator[Problem]:
    if not mode & stat.S_IROTH:
        return
    for path, node in walk(tree):
        if path and path[-1] in _SECRETS and node.value is not None:
            yield Problem(
                path,
                f"a secret in a file that every user may read (mode {stat.S_IMODE(mode):04o});"
                " chmod o-rwx the file and change the secret, or use credentials: {systemd: NAME}",
            )


def _schema_problems(error: ValidationError) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        *above, last = detail["loc"] or ("<file>",)
        if detail["type"] == "extra_forbidden":
            path = (*_without_tags(above), last)
            yield Problem(path, _unknown(path))
        else:
            path = _without_tags([*above, last])
            yield Problem(path, _said(detail["type"], detail["msg"], detail["input"], path))


def _without_tags(loc: Iterable[str | int]) -> KeyPath:
    """What stands in angle brackets says how a value was read; it is no key of the file."""
    return tuple(part for part in loc if not str(part).startswith("<"))


def _unknown(path: KeyPath) -> str:
    known = sorted({name for model in sections_at(path[:-1]) for name in model.model_fields})
    if path[-1] in known:  # of another form of the same thing: a folder, not a bucket
        return "does not go with the keys beside it"
    [nearest] = difflib.get_close_matches(str(path[-1])[:64], known, n=1, cutoff=0.0)
    return f"unknown key; did you mean {nearest}? Known here: {', '.join(known)}"


def _said(kind: str, message: str, value: Any, path: KeyPath) -> str:
    text = _SAID.get(kind) or message.removeprefix("Value error, ").replace("Input should be", "must be")
    if kind in _WITH_VALUE and isinstance(value, str) and "credentials" not in path:
        text += f", not {shown(value)}"
    return text


def _lines(path: Path, tree: Node, problems: Iterable[Problem]) -> list[str]:
    """One line each, in the order of the file."""
    located = sorted({(line_of(tree, where), path_text(where), message) for where, message in problems})
    return [f"{path}:{line}: {f'{key}: ' if key else ''}{message}" for line, key, message in located]


def _refusal(path: Path, lines: list[str]) -> ConfigError:
    detail = lines[0] if len(lines) == 1 else "\n".join([f"{len(lines)} problems", *lines])
    return ConfigError(detail, hint=f"correct {path}, then try: s5jtd check --offline")
