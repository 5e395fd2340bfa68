"""`s5jtd run`: the daemon in the foreground, or one pass."""

from __future__ import annotations

from pathlib import Path

import click
import sdnotify

from s5jtd import log
from s5jtd.app import App
from s5jtd.config import Config
from s5jtd.daemon import Inbox, serve


def run_daemon(config: Config, path: Path, *, once: bool) -> int:
    """Run until told to stop, or with `once` until each source was looked at and all of it moved.

    Raises:
        S5jtError: it could not start.
    """
    log.configure(config.log.level)
    inbox: Inbox = Inbox()
    app = App(config, path, inbox, once=once)
    try:
        stop = serve(app, inbox, sdnotify.SystemdNotifier().notify)
        problems = app.problems.now() if once and stop.exit_code else []
    finally:
        app.close()
    for problem in problems:
        click.echo(f"s5jtd: {problem.message}", err=True)
        if problem.hint:
            click.echo(f"hint: {problem.hint}", err=True)
    # Under systemd an orderly end is a success, whichever signal asked for it.
    return 0 if not once and stop.reason in ("SIGTERM", "SIGINT") else stop.exit_code
