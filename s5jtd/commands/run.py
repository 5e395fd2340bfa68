"""`s5jtd run`: the daemon in the foreground, or one pass."""

from __future__ import annotations

import faulthandler
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import sdnotify

from s5jtd import aftermath, log
from s5jtd.app import App
from s5jtd.config import Config
from s5jtd.daemon import Inbox, Stop, serve
from s5jtd.ledger.states import State
from s5jtd.once import ALL_DONE
from s5jtd.reports.folder import REPORTS_KEPT
from s5jtd.units import format_bytes, format_duration

#: What every report tells once, so that they can be added up.
_ADDED_UP = ("files_synced", "bytes_transferred", "duration_seconds", "gone", "parked", "retried")


def run_daemon(config: Config, path: Path, *, once: bool, as_json: bool = False) -> int:
    """Run until told to stop, or with `once` until each source was looked at and all of it moved.

    A single pass ends with a summary on stdout, made of its run reports.

    Raises:
        S5jtError: it could not start.
    """
    log.configure(config.log.level)
    # The watchdog ends a daemon that is stuck with SIGABRT.
    faulthandler.enable()
    inbox: Inbox = Inbox()
    app = App(config, path, inbox, once=once)
    aftermath.keep(config.state_dir)  # it is ours alone by now
    try:
        told = max(app.reports.epochs(), default=0)
        stop = serve(app, inbox, sdnotify.SystemdNotifier().notify)
        problems = app.problems.now() if once and stop.exit_code else []
        left = {job.name: _left(app, job.id) for job in app.job_list()} if once else {}
    finally:
        app.close()
    for problem in problems:
        click.echo(f"s5jtd: {problem.message}", err=True)
        if problem.hint:
            click.echo(f"hint: {problem.hint}", err=True)
    if once:
        log.close()  # the summary comes last
        _sum_up(app, told, stop, left, as_json=as_json)
    # Under systemd an orderly end is a success, whichever signal asked for it.
    return 0 if not once and stop.reason in ("SIGTERM", "SIGINT") else stop.exit_code


def _left(app: App, job_id: int) -> int:
    """How many objects of a job are not at rest."""
    objects, _ = app.ledger.views.counters(job_id)
    return sum(objects[state.word] for state in (State.SEEN, State.PULLING, State.STAGED, State.PUSHING))


def _sum_up(app: App, told: int, stop: Stop, left: Mapping[str, int], *, as_json: bool) -> None:
    """Say what the pass came to: a line for each job, or one JSON object."""
    jobs = [_job_summary(app, job.name, told, stop, left[job.name]) for job in app.config.jobs]
    if as_json:
        click.echo(json.dumps({"exit_code": stop.exit_code, "reason": stop.reason, "jobs": jobs}))
        return
    for one in jobs:
        click.echo(
            f"job {one['name']}: {one['status']}, {one['files_synced']} objects,"
            f" {format_bytes(one['bytes_transferred'])} in {format_duration(one['duration_seconds'])};"
            f" {one['skipped']} skipped, {one['gone']} gone, {one['parked']} parked, {one['left']} left"
            + (f" ({one['held']})" if one["held"] else "")
            + (f", {one['settling']} files still settling" if one["settling"] else "")
        )


def _job_summary(app: App, name: str, told: int, stop: Stop, left: int) -> dict[str, Any]:
    """The reports of a job that came after the one `told`, added up; the newest one says what is left.

    There is none where a limit let nothing travel: the pass that was to move it is still under way.
    """
    rows = app.reports.rows(job=name, start=told + 1, limit=REPORTS_KEPT)
    reports: list[Any] = [
        app.reports.get(row["id"], name, objects=False, limit=0, after=None) for row in rows
    ]
    if stop.reason == ALL_DONE:  # what was interrupted is an earlier life's
        reports = [report for report in reports if report["status"] != "interrupted"]
    newest = reports[0] if reports else {}
    [job] = [job for job in app.job_list() if job.name == name]
    without = ("partial" if left else "success") if stop.reason == ALL_DONE else "interrupted"
    added_up = {key: sum(one[key] for one in reports) for key in _ADDED_UP}
    return {
        "name": name,
        "status": newest.get("status", without),
        **added_up,
        "skipped": newest.get("skipped", 0),
        "failed": newest.get("failed", 0),
        "left": newest.get("left", left),
        "held": job.held,
        "settling": job.settling,
        "error": newest.get("error"),
        "reports": [row["id"] for row in reversed(rows)],
    }
