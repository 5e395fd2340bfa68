"""Prints docs/monitoring/events.md from the tables in s5jtd/events.py: `python -m tests.monitoring_pages`."""

from __future__ import annotations

from s5jtd.events import EVENTS, PROBLEMS, message_id


def page() -> str:
    """The whole page."""
    lines = [
        "# Events and problems",
        "",
        "Printed from `s5jtd/events.py`.  A level asks for something: `error`, a person must come;",
        "`warning`, it was handled, but remember it; `info`, something changed its state.",
        "",
        "## Events",
        "",
        "| event | level | meaning | MESSAGE_ID |",
        "|---|---|---|---|",
        *(
            f"| `{name}` | {event.level} | {event.meaning} | `{message_id(name)}` |"
            for name, event in sorted(EVENTS.items())
        ),
        "",
        "## Problems",
        "",
        "| code | what is wrong | begins with the event | ends with |",
        "|---|---|---|---|",
        *(
            f"| `{code}` | {trouble.meaning} | `{trouble.raised}` | `{trouble.cleared}` |"
            for code, trouble in sorted(PROBLEMS.items())
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
