"""Writes completions/ as click makes them for this program: `python -m tests.completions`."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import BashComplete as _BashComplete
from click.shell_completion import FishComplete, ZshComplete

from s5jtctl.commands import cli
from s5jtd.cli import main

FOLDER = Path(__file__).parents[1] / "completions"
PROGRAMS: dict[str, click.Command] = {"s5jtd": main, "s5jtctl": cli}


class BashComplete(_BashComplete):
    """Without a look at which bash this machine has; it is another machine's."""

    @staticmethod
    def _check_version() -> None:
        """Every bash since 4.4 will do."""


FILES = {"{}.bash": BashComplete, "_{}": ZshComplete, "{}.fish": FishComplete}


def scripts() -> dict[str, str]:
    """Each file's name and text."""
    return {
        pattern.format(name): kind(program, {}, name, f"_{name.upper()}_COMPLETE").source()
        for name, program in PROGRAMS.items()
        for pattern, kind in FILES.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in scripts().items():
        (FOLDER / name).write_text(text)
