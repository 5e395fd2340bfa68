"""What a shell offers after the Tab key: names the daemon knows now; nothing where it does not answer."""

from __future__ import annotations

import os
import re

import click

from s5jtctl.client import Daemon, Failure
from s5jtd import protocol

#: Somebody waits at a prompt.
_TIMEOUT_SECONDS = 2.0
_HARMLESS = re.compile(r"[\w.,:@%+/-]+")
STATES = ("seen", "pulling", "staged", "pushing", "delivered", "gone", "parked")


def job_names(ctx: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    return _named(ctx, "jobs", typed)


def volume_names(ctx: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    return _named(ctx, "volumes", typed)


def state_names(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    return [state for state in STATES if state.startswith(typed)]


def _named(ctx: click.Context, things: str, typed: str) -> list[str]:
    path = ctx.meta.get("s5jtctl.socket") or os.environ.get("S5JTD_SOCKET") or protocol.SOCKET
    daemon = Daemon(path, _TIMEOUT_SECONDS)
    try:
        names = [each["name"] for each in daemon.ask(protocol.Method.STATUS)[things]]
    except (Failure, KeyError, TypeError):
        return []
    finally:
        daemon.close()
    # A name that a shell could read as more than a name is typed by hand.
    return [name for name in names if name.startswith(typed) and _HARMLESS.fullmatch(name)]
