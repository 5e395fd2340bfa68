"""How a command asks before it does what cannot be undone."""

from __future__ import annotations

import sys

import click

from s5jtd.errors import UsageError


def agree(yes: bool, question: str, word: str | None = None) -> None:
    """Go on only if somebody says so; `word` must be typed where more than a key should be pressed.

    Raises:
        UsageError: nobody can be asked, or the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", hint="say --yes, after a look with --dry-run")
    if word is None:
        agreed = click.confirm(question, err=True)
    else:
        agreed = (
            click.prompt(f"{question} Type `{word}` to go on", default="", show_default=False, err=True)
            == word
        )
    if not agreed:
        raise UsageError("nothing was done")
