"""`s5jtctl status` as most people type it, without loading what understands all the other commands.

That is half of what the command takes, and on a busy machine it is waited for more than once over.
"""

from __future__ import annotations

import os

from s5jtctl import status as plain
from s5jtctl.client import Daemon, Failure
from s5jtctl.status import Level
from s5jtctl.terminal import columns, look, show_json, show_lines
from s5jtd.protocol import SOCKET, Exit, Method

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, NoReturn

    from s5jtd.shapes import Status

TIMEOUT_SECONDS = 10.0  #: for what is answered at once; what waits for work waits as long as it takes


class Asked:
    """What was typed after `status`, and before it."""

    def __init__(self) -> None:
        self.job: str | None = None
        self.json = False
        self.check = False
        self.socket: str | None = None


def understood(words: Sequence[str]) -> Asked | None:
    """The plain ways to ask for the status; None: it is something else, or wrong, and not for us."""
    asked = Asked()
    rest = iter(words)
    names: list[str] = []
    for word in rest:
        if word == "--json":
            asked.json = True
        elif word == "--check" and names:
            asked.check = True
        elif word == "--socket":
            if (path := next(rest, None)) is None:
                return None
            asked.socket = path
        elif word.startswith("-"):
            return None
        else:
            names.append(word)
    if not names or names[0] != "status" or len(names) > 2:
        return None
    asked.job = names[1] if len(names) > 1 else None
    return asked


def answer(asked: Asked) -> None:
    """What `understood` has read is done."""
    daemon = Daemon(asked.socket or os.environ.get("S5JTD_SOCKET") or SOCKET, TIMEOUT_SECONDS)
    params = {} if asked.job is None else {"job": asked.job}
    (check if asked.check else status)(daemon, params, as_json=asked.json)


def _asked(daemon: Daemon, params: Mapping[str, object]) -> Status:
    reply: Any = daemon.ask(Method.STATUS, params)
    return reply  # type: ignore[no-any-return]


def status(daemon: Daemon, params: Mapping[str, object], *, as_json: bool) -> None:
    """All of it, for a person or a program."""
    reply = _asked(daemon, params)
    if as_json:
        show_json(reply)
    else:
        show_lines(plain.status(reply, look(columns())))


def check(daemon: Daemon, params: Mapping[str, object], *, as_json: bool) -> NoReturn:
    """One line for monitoring, which ends with its level.

    Not running is critical, because nothing moves; not permitted only says that we cannot know.
    """
    try:
        level, words = plain.verdict(_asked(daemon, params))
    except Failure as failure:
        stopped = failure.exit_code in (Exit.NOT_RUNNING, Exit.TEMPORARY)
        level, words = Level.CRITICAL if stopped else Level.UNKNOWN, str(failure)
    if as_json:
        show_json({"level": level.name, "message": words})
    else:
        show_lines([plain.check(level, words)])
    raise SystemExit(level)
