"""Where answers are printed: how wide it is, in which colours, and what a failure looks like there."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime

from s5jtctl.text import safe

TYPE_CHECKING = False
if TYPE_CHECKING:  # somebody waits for what is loaded
    from collections.abc import Iterable
    from typing import NoReturn, TextIO

    from s5jtctl.client import Failure


class Look:
    """How and when something is shown."""

    def __init__(self, width: int, *, colour: bool, now: datetime) -> None:
        self.width = width  #: columns
        self.colour = colour
        self.now = now  #: aware


def look(columns: int) -> Look:
    """At this terminal, now."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return Look(columns, colour=sys.stdout.isatty() and not plain, now=datetime.now(UTC))


def columns() -> int:
    """How wide the terminal is; 80 where it is none."""
    try:
        return max(40, os.get_terminal_size(sys.stdout.fileno()).columns)
    except (OSError, ValueError):
        return 80


def show_lines(lines: Iterable[str]) -> None:
    _say("\n".join(lines), sys.stdout)


def show_json(value: object) -> None:
    # ASCII, as on the socket: a key in JSON on a terminal is still a key.
    _say(json.dumps(value, indent=2), sys.stdout)


def _say(text: str, stream: TextIO | None) -> None:
    if stream is not None:  # it was closed: there is nobody to print for
        stream.write(f"{text}\n")
        stream.flush()


def failure(what: str, hint: str) -> list[str]:
    """Two lines, whatever is in them."""
    return [f"s5jtctl: {safe(what)}", *([f"hint: {safe(hint)}"] if hint else [])]


def fail(failed: Failure) -> NoReturn:
    """Say what went wrong and end."""
    if "--json" in sys.argv:
        show_json({"error": {"code": failed.code, "message": str(failed), "hint": failed.hint}})
    _say("\n".join(failure(str(failed), failed.hint)), sys.stderr)
    raise SystemExit(failed.exit_code)
