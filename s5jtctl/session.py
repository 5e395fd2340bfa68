"""What every command shares: the options that stand anywhere, the daemon, the way to print."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from s5jtctl import units
from s5jtctl.client import Daemon
from s5jtctl.quick import TIMEOUT_SECONDS
from s5jtctl.render import Renderer
from s5jtctl.terminal import columns, look, show_json, show_lines
from s5jtd import protocol
from s5jtd.protocol import Method

# What was typed, by the names of the options that every command has.
_SOCKET, _JSON, _TIMEOUT = "s5jtctl.socket", "s5jtctl.json", "s5jtctl.timeout"


class Typed(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions only
    """Anything a function of `units` reads."""

    def __init__(self, name: str, read: Callable[[str], Any]) -> None:
        self.name = name
        self._read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _timeout(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return units.duration_seconds(text)
    if not 0 < seconds < 1e9:
        raise ValueError("a timeout is more than 0 seconds")
    return seconds


def _limit(text: str) -> int | str:
    return text if text == "unlimited" else units.rate_bytes_per_second(text)


def _key(text: str) -> str:
    r"""An argument as the daemon spells keys: bytes that are no UTF-8 read `\xNN`."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


DURATION = Typed("duration", units.duration_seconds)
RATE = Typed("rate", _limit)
SINCE = Typed("time", lambda text: units.instant(text, datetime.now(UTC)))
KEY = Typed("key", _key)
_SECONDS = Typed("duration", _timeout)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Options that stand anywhere: the last one given counts, one that is not given takes nothing back."""
    if value is not None and value is not False:
        ctx.meta[f"s5jtctl.{param.name}"] = value


def _everywhere() -> list[click.Parameter]:
    """The options of every command."""
    return [
        click.Option(["--socket"], metavar="PATH", expose_value=False, callback=_remember,
                     help=f"The daemon's socket.  [$S5JTD_SOCKET, else {protocol.SOCKET}]"),
        click.Option(["--json"], is_flag=True, expose_value=False, callback=_remember,
                     help="Print the daemon's answer as JSON."),
        click.Option(["--timeout"], type=_SECONDS, expose_value=False, callback=_remember,
                     help=f"How long to wait for an answer. [{TIMEOUT_SECONDS:g}s; with --wait, --now none]"),
    ]  # fmt: skip


def examples(*lines: str) -> str:
    """What `--help` ends with."""
    return "\b\n" + "\n".join(("Examples:", *(f"  {line}" for line in lines)))


class _Command(click.Command):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _everywhere()


class Group(click.Group):
    """Whose commands, and theirs, all take the options of `_everywhere`."""

    command_class = _Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.no_args_is_help = False  # an error of two lines, like every other
        self.params += _everywhere()


Group.group_class = Group


def given(**params: object) -> dict[str, object]:
    """What was typed; the daemon has its own defaults for the rest."""
    return {name: value for name, value in params.items() if value is not None and value is not False}


def as_json() -> bool:
    return bool(click.get_current_context().meta.get(_JSON))


def daemon_for(timeout_seconds: float | None = TIMEOUT_SECONDS) -> Daemon:
    meta = click.get_current_context().meta
    path = meta.get(_SOCKET) or os.environ.get("S5JTD_SOCKET") or protocol.SOCKET
    return Daemon(path, meta.get(_TIMEOUT, timeout_seconds))


def show(
    method: Method, params: Mapping[str, object], renderer: Renderer, *, wait: bool = False
) -> dict[str, Any]:
    """Ask and print; the answer is returned for those whose exit code depends on it."""
    reply = daemon_for(None if wait else TIMEOUT_SECONDS).ask(method, params)
    show_reply(reply, renderer)
    return reply


def show_reply(reply: dict[str, Any], renderer: Renderer) -> None:
    if as_json():
        show_json(reply)
    else:
        show_lines(renderer(reply, look(columns())))
