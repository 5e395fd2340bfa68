r"""Text for a terminal: harmless, aligned, within its width.

Names, messages and keys come from servers and disks.  `safe` is where they turn into something that
may be printed; whatever is put together here has been through it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # somebody waits for what is loaded
    from collections.abc import Iterable, Sequence

_COLOURS = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}

#: By state of a job, volume, endpoint, object or report; a word that is not here needs no attention.
_STATE_COLOURS = {
    **dict.fromkeys(("running", "online", "up", "delivered", "success"), "green"),
    **dict.fromkeys(("paused", "draining", "full", "degraded", "unknown", "partial", "gone"), "yellow"),
    **dict.fromkeys(("failed", "blocked", "missing", "foreign", "readonly", "down", "parked"), "red"),
}


def safe(text: object) -> str:
    r"""Escape whatever could move the cursor, colour the screen, turn the line around or be invisible.

    Control characters read `\x1b`, others `\u202e`.  A backslash stays as it is: the daemon writes
    bytes that are no UTF-8 with one, and what is shown can be pasted back into `explain`.
    """
    string = "-" if text is None else str(text)
    if string.isprintable():
        return string
    return "".join(char if char.isprintable() else _escaped(ord(char)) for char in string)


def _escaped(code: int) -> str:
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def width(text: str) -> int:
    """Columns it takes: wide characters take two, marks on the letter before none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Fill up to `columns`, on the left for what stands to the right, such as numbers."""
    fill = " " * (columns - width(text))
    return fill + text if right else text + fill


def cut(text: str, columns: int) -> str:
    """Shorten to `columns`, saying so with a `~` at the end."""
    if width(text) <= columns:
        return text
    kept = ""
    for char in text:
        if width(kept + char) > columns - 1:
            break
        kept += char
    return kept + "~"


def wrap(text: str, columns: int, indent: str = "") -> list[str]:
    """Break into lines at spaces, or anywhere where one word is longer than a line."""
    lines: list[str] = []
    line = ""
    room = max(1, columns - len(indent))
    for word in text.split(" "):
        if line and width(line) + 1 + width(word) > room:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
        while width(line) > room:
            head = _head(line, room)
            lines.append(head)
            line = line[len(head) :]
    return [indent + line for line in [*lines, line] if line]


def _head(text: str, columns: int) -> str:
    end = 1
    while end < len(text) and width(text[: end + 1]) <= columns:
        end += 1
    return text[:end]


def table(headings: str, rows: Iterable[Sequence[str]], columns_max: int | None = None) -> list[str]:
    """Align rows under `headings`, words of which a leading `>` sets to the right.

    The last column is not filled up, and where no `columns_max` is given nothing is cut: that is where
    keys stand, which people copy.
    """
    names = headings.split()
    right = [name.startswith(">") for name in names]
    body = [[name.lstrip(">") for name in names], *rows]
    columns = [max(width(row[at]) for row in body) for at in range(len(names) - 1)]
    lines = []
    for row in body:
        cells = [pad(row[at], size, right=right[at]) for at, size in enumerate(columns)]
        line = "  ".join([*cells, row[-1]]).rstrip()
        lines.append(line if columns_max is None else cut(line, columns_max))
    return lines


def paint(text: str, colour: str | None, *, on: bool) -> str:
    """Colour a piece of a line; done last, because escape sequences have no width."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if on and colour else text


def paint_state(line: str, state: str, *, on: bool) -> str:
    """Colour the state that a line begins with; where it had to be cut, nothing."""
    if not line.startswith(state):
        return line
    return paint(state, _STATE_COLOURS.get(state), on=on) + line[len(state) :]
