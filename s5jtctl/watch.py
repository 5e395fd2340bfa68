"""The status screen, live: on a terminal until `q`, sending over a slow link only what has changed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest

EVERY_SECONDS = 2.0

# The alternate screen keeps what the operator had before them; without line wrap a line that is too
# long for a narrow terminal is cut by it instead of pushing everything down.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_CLEAR = "\x1b[H\x1b[2J"


def changes(old: Sequence[str], new: Sequence[str]) -> str:
    """What to send so that a screen that shows `old` shows `new`."""
    return "".join(
        # Erased first: after a line as wide as the screen the cursor still stands on its last letter.
        f"\x1b[{row};1H\x1b[K{line}"
        for row, (before, line) in enumerate(zip_longest(old, new, fillvalue=""), start=1)
        if before != line
    )


def frame(lines: Sequence[str], rows: int, footer: str) -> list[str]:
    """As many lines as fit, and a footer in the last row that says what did not."""
    room = max(0, rows - 1)
    hidden = len(lines) - room
    if hidden > 0:
        footer = f"{hidden} more lines; {footer}"
    shown = list(lines[:room])
    return [*shown, *[""] * (room - len(shown)), footer]


def watch(look: Callable[[int, int], list[str]]) -> None:
    """Show what `look` gives for columns and rows, every two seconds and after a resize, until `q`."""
    with _terminal() as resized_fd:
        shown: list[str] = []
        size = None
        while True:
            started = time.monotonic()
            if size != (size := os.get_terminal_size(sys.stdout.fileno())):
                _write(_CLEAR)
                shown = []
            lines = look(size.columns, size.lines - 1)
            new = frame(lines, size.lines, f"{time.strftime('%H:%M:%SZ', time.gmtime())}; q quits")
            _write(changes(shown, new))
            shown = new
            if _quit_pressed(resized_fd, started + EVERY_SECONDS):
                return


def _quit_pressed(resized_fd: int, until: float) -> bool:
    """Wait for the next look; True where it is the last."""
    keys_fd = sys.stdin.fileno()
    awaited = [resized_fd, *([keys_fd] if os.isatty(keys_fd) else [])]
    while (left_seconds := until - time.monotonic()) > 0:
        ready, _, _ = select.select(awaited, [], [], left_seconds)
        if keys_fd in ready:
            keys = os.read(keys_fd, 1024)
            if not keys or b"q" in keys.lower():
                return True
        if resized_fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(resized_fd, 1024)
            return False
    return False


@contextlib.contextmanager
def _terminal() -> Iterator[int]:
    """Take the terminal, give it back as it was; yields what becomes readable when it is resized."""
    keys_fd = sys.stdin.fileno()
    before = termios.tcgetattr(keys_fd) if os.isatty(keys_fd) else None
    resized_fd, wake_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGWINCH, lambda *_: None)  # any handler: it is the wake-up byte that counts
    signal.set_wakeup_fd(wake_fd, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # it would leave the shell in our screen
    try:
        if before is not None:
            tty.setcbreak(keys_fd)
        _write(_ENTER)
        yield resized_fd
    finally:
        _write(_LEAVE)
        if before is not None:
            termios.tcsetattr(keys_fd, termios.TCSADRAIN, before)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
