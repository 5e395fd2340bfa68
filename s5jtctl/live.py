"""What the live screen shows: `status` made to fit a terminal, with bars.  Pure: a reply in, lines out."""

from __future__ import annotations

from collections.abc import Sequence

from s5jtctl import status as plain
from s5jtctl import units
from s5jtctl.terminal import Look
from s5jtctl.text import cut, pad, paint, paint_state, safe, table, width, wrap
from s5jtd.shapes import Event, Job, PerState, Problem, Status, Volume

# In the order of the road, backwards: what has arrived stands first.
_PIECES = (
    ("delivered", "#", "green"),
    ("pushing", ">", "yellow"),
    ("staged", "=", None),
    ("pulling", "<", "yellow"),
    ("seen", ".", None),
    ("parked", "!", "red"),
)
_LEGEND = "  ".join(f"{letter} {state}" for state, letter, _ in _PIECES)
_FILL_COLUMNS = 20
#: Problems with their hints take at most this part of the screen.
_PROBLEMS_SHARE = 3
_EVENTS_BEFORE_AIR = 5
#: On the tallest of screens.
EVENTS_MAX = 50


def screen(reply: Status, look: Look, rows: int, happened: Sequence[Event] = ()) -> list[str]:
    """As much as fits, what needs attention first; no line is wider than `look.width`."""
    sections = [
        [cut(plain.headline(reply["daemon"]), look.width)],
        _problems(reply["problems"], look, rows // _PROBLEMS_SHARE),
        _jobs(reply["jobs"], look),
        _volumes(reply["volumes"], look),
        plain.endpoints(reply["endpoints"], look, explained=False),  # that is among the problems
    ]
    shown = [section for section in sections if section]
    # What happened is told where there is room; a small screen has no line to spare for air.
    used = sum(map(len, shown))
    airy = used + len(shown) + min(len(happened), _EVENTS_BEFORE_AIR) <= rows
    if lately := _events(happened, look, rows - used - (len(shown) if airy else 0)):
        shown.append(lately)
    lines: list[str] = []
    for section in shown:
        lines += ["", *section] if lines and airy else section
    return lines


def _problems(problems: Sequence[Problem], look: Look, room: int) -> list[str]:
    if not problems:
        return []
    lines = [paint(f"PROBLEMS {len(problems)}", "bold", on=look.colour)]
    for at, problem in enumerate(problems):
        if len(lines) >= max(3, room) and len(problems) - at > 1:
            return [*lines, cut(f"  and {len(problems) - at} more: s5jtctl status", look.width)]
        since = f" ({units.span_since(problem['since'], look.now)})" if problem["since"] else ""
        message = cut(safe(problem["message"] or problem["code"]), look.width - 2 - width(since))
        lines.append(f"{paint('!', 'red', on=look.colour)} {message}{since}")
        if problem["hint"] and len(lines) < max(3, room):
            lines.append(cut(f"    {safe(problem['hint'])}", look.width))
    return lines


def _jobs(jobs: Sequence[Job], look: Look) -> list[str]:
    lines = [paint("JOBS", "bold", on=look.colour)]
    for job in plain.ordered_jobs(jobs):
        lines += [*plain.job_head(job, 0, look), *_bars(job, look), *_moving(job, look)]
    return [*lines, cut(f"          {_LEGEND}", look.width)] if jobs else []


def _bars(job: Job, look: Look) -> list[str]:
    lines = []
    for name, numbers in (("bytes", job["bytes"]), ("objects", job["objects"])):
        drawn = bar(numbers, look.width - 17, colour=look.colour)
        lines.append(f"  {name:<7} {drawn} {plain.percent(numbers, job['objects']):>4}")
    return lines


def bar(numbers: PerState, columns: int, *, colour: bool) -> str:
    """The states side by side, each as long as its share; what there is at all has a letter."""
    room = max(10, columns - 2)
    there = [
        (numbers[state], letter, colour_)  # type: ignore[literal-required]
        for state, letter, colour_ in _PIECES
        if numbers[state]  # type: ignore[literal-required]
    ]
    whole = sum(number for number, _, _ in there)
    lengths = [max(1, room * number // whole) for number, _, _ in there]
    while lengths and sum(lengths) != room:  # what rounding made too much or too little, the longest bears
        lengths[lengths.index(max(lengths))] += 1 if sum(lengths) < room else -1
    pieces = [
        paint(letter * length, colour_, on=colour)
        for length, (_, letter, colour_) in zip(lengths, there, strict=True)
    ]
    return f"[{''.join(pieces) or ' ' * room}]"


def _moving(job: Job, look: Look) -> list[str]:
    """What is on its way, inside of large objects too."""
    objects, sizes = job["objects"], job["bytes"]
    parts = [
        f"{units.count(objects['delivered'])} delivered ({units.amount(sizes['delivered'])})",
        f"{units.count(plain.to_go(objects))} to go ({units.amount(plain.to_go(sizes))})",
    ]
    if under_way := job.get("under_way"):
        for state, half in (("pulling", "pull"), ("pushing", "push")):
            if objects[state]:  # type: ignore[literal-required]
                moved = units.amount(under_way[f"{half}_bytes"])  # type: ignore[literal-required]
                parts.append(f"{state} {moved} of {units.amount(sizes[state])}")  # type: ignore[literal-required]
    if objects["parked"]:
        parts.append(f"{units.count(objects['parked'])} parked")
    lines = wrap(", ".join(parts), look.width, "  ")
    if (last := job.get("last_resync")) and last["finished_at"] is None:
        lines += wrap(plain.resync_line(last, look.now), look.width, "  ")
    return lines


def _volumes(volumes: Sequence[Volume], look: Look) -> list[str]:
    ordered = plain.ordered_volumes(volumes)
    rows = [
        [
            safe(volume["state"]),
            safe(volume["name"]),
            _fill_bar(volume),
            units.amount(volume["staged_bytes"]),
            units.amount(volume["free_bytes"]),
            safe(volume["path"]),
        ]
        for volume in ordered
    ]
    if not rows:
        return []
    heading, *lines = table("STATE VOLUME FILL >STAGED >FREE PATH", rows, look.width)
    painted = [paint_state(line, row[0], on=look.colour) for line, row in zip(lines, rows, strict=True)]
    return [paint(heading, "bold", on=look.colour), *painted]


def _fill_bar(volume: Volume) -> str:
    staged, free = volume["staged_bytes"], volume["free_bytes"]
    if staged is None or free is None:
        return "-"
    share = staged / (staged + free) if staged + free else 1.0
    full = round(share * _FILL_COLUMNS)
    return f"[{pad('#' * max(full, 1 if staged else 0), _FILL_COLUMNS)}] {int(100 * share):>3}%"


def _events(events: Sequence[Event], look: Look, rows: int) -> list[str]:
    """The newest first, each on one line: what went wrong stands for all that its record says."""
    lines = [paint("LATELY", "bold", on=look.colour)]
    for event in list(reversed(events))[: max(0, rows - 1)]:
        name, job = safe(event["event"]), f"  {safe(event['job'])}" if event["job"] else ""
        said = (event.get("data") or {}).get("error") or event["message"]
        line = cut(f"{safe(event['at'])[11:19]}Z{job}  {name}  {safe(said)}", look.width)
        colour = {"warning": "yellow", "error": "red"}.get(event.get("level", ""))
        lines.append(line.replace(name, paint(name, colour, on=look.colour), 1))
    return lines if len(lines) > 1 else []
