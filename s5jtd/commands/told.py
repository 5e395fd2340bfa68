"""How a command's failure is told: two lines and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from s5jtd.errors import Exit, S5jtError


def fail(error: S5jtError) -> NoReturn:
    """Say what went wrong and what to do, and end with its exit code."""
    click.echo(f"s5jtd: {error}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)
    sys.exit(int(error.exit))


class Told(click.Group):
    """A group whose commands' errors become two lines and an exit code."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(context)
        except S5jtError as error:
            fail(error)
        except BrokenPipeError:
            # Whoever read our output has gone; Python would complain once more while it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(Exit.FAILED)
