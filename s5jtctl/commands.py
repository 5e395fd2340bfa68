"""The commands of s5jtctl: what was typed becomes one question to the daemon, its answer text or JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, cast

import click

from s5jtctl import quick, render, terminal
from s5jtctl import status as plain
from s5jtctl.client import Daemon, Failure
from s5jtctl.complete import STATES, job_names, state_names, volume_names
from s5jtctl.quick import TIMEOUT_SECONDS
from s5jtctl.session import (
    DURATION,
    KEY,
    RATE,
    SINCE,
    Group,
    as_json,
    daemon_for,
    examples,
    given,
    show,
    show_reply,
)
from s5jtctl.terminal import look, show_json
from s5jtctl.text import safe, wrap
from s5jtd import __version__
from s5jtd.protocol import Exit, Method
from s5jtd.shapes import Status

_PAGE = 1000  #: rows asked for at a time


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Ask the s5jtd daemon what it does, and tell it what to do.

    \b
    Examples:
      s5jtctl status --watch           what happens, live; q quits
      s5jtctl pause --all --for 2h     before a maintenance window
      s5jtctl explain archive a/b.jpg  why is this object believed delivered?
      s5jtctl events --since 2h        what happened lately

    \b
    Exit codes: 0 done; 1 failed; 2 wrong usage; 3 daemon not running;
    4 not permitted; 5 temporary, try again; 6 config invalid; 10 objects
    failed or parked; 11 verification mismatch; 12 busy; 130, 143 by signal.
    """


@cli.command(epilog=examples("s5jtctl status archive", "s5jtctl status --watch", "s5jtctl status --check"))
@click.argument("job", required=False, shell_complete=job_names)
@click.option("--watch", is_flag=True, help="Show it live, until q is pressed.")
@click.option("--check", is_flag=True, help="One line; exit 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.")
def status(job: str | None, watch: bool, check: bool) -> None:
    """Show jobs, volumes, endpoints and problems."""
    if watch and check:
        raise click.UsageError("--watch and --check cannot be combined")
    params = given(job=job)
    if check:
        quick.check(daemon_for(), params, as_json=as_json())
    if watch and sys.stdout.isatty() and not as_json():
        _watch(params)
    elif watch:
        _follow(params)
    else:
        quick.status(daemon_for(), params, as_json=as_json())


def _watch(params: Mapping[str, object]) -> None:
    from s5jtctl.live import EVENTS_MAX, screen
    from s5jtctl.watch import watch

    daemon = daemon_for()

    def lines(columns: int, rows: int) -> list[str]:
        """A daemon that is away is shown as such: it may be just the restart one waits for."""
        try:
            reply = _with_events(daemon, params, EVENTS_MAX)
            return screen(cast("Status", reply), look(columns), rows, reply.get("events", []))
        except Failure as failure:
            return [
                part for line in terminal.failure(str(failure), failure.hint) for part in wrap(line, columns)
            ]

    watch(lines)


def _with_events(daemon: Daemon, params: Mapping[str, object], events: int) -> dict[str, Any]:
    """The status with what happened of late; of a daemon too old to be asked for that, without."""
    try:
        return daemon.ask(Method.STATUS, {**params, "events": events})
    except Failure as failure:
        if failure.code != "invalid_params":
            raise
        return daemon.ask(Method.STATUS, params)


def _follow(params: Mapping[str, object]) -> NoReturn:
    """Where there is no screen to redraw: a line every two seconds."""
    import time

    daemon = daemon_for()
    while True:
        reply = daemon.ask(Method.STATUS, params)
        if as_json():
            click.echo(json.dumps(reply))
        else:
            level, words = plain.verdict(cast("Status", reply))
            click.echo(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {plain.check(level, words)}")
        time.sleep(2)


_SIDE = click.option("--side", type=click.Choice(["source", "destination"]), help="Only this side.")


@cli.command(epilog=examples("s5jtctl pause --all --for 2h", "s5jtctl pause archive --side source --now"))
@click.argument("job", required=False, shell_complete=job_names)
@click.option("--all", "every", is_flag=True, help="Every job.")
@_SIDE
@click.option("--for", "for_seconds", type=DURATION, help="Resume by itself after this time, like 2h.")
@click.option("--now", is_flag=True, help="Also end the transfers that run.")
def pause(job: str | None, every: bool, side: str | None, for_seconds: int | None, now: bool) -> None:
    """Stop taking new work, of JOB or of --all; holds across a restart."""
    target = _job_or_all(job, every)
    params = target | given(side=side, for_seconds=for_seconds, now=now)
    show(Method.JOB_PAUSE, params, render.results, wait=now)


@cli.command(epilog=examples("s5jtctl resume archive", "s5jtctl resume --all"))
@click.argument("job", required=False, shell_complete=job_names)
@click.option("--all", "every", is_flag=True, help="Every job.")
@_SIDE
def resume(job: str | None, every: bool, side: str | None) -> None:
    """Take new work again, of JOB or of --all."""
    show(Method.JOB_RESUME, _job_or_all(job, every) | given(side=side), render.results)


@cli.command(epilog=examples("s5jtctl scan archive --wait"))
@click.argument("job", shell_complete=job_names)
@click.option("--wait", is_flag=True, help="Return when the source has been seen.")
def scan(job: str, wait: bool) -> None:
    """Look at the source now."""
    show(Method.JOB_SCAN, {"job": job, "wait": wait}, render.scan, wait=wait)


@cli.command(
    epilog=examples(
        "s5jtctl resync archive --dry-run --wait", "s5jtctl resync archive --prefix missions/7/ --deep"
    )
)
@click.argument("job", shell_complete=job_names)
@click.option("--prefix", type=KEY, help="Only keys that begin so.")
@click.option("--deep", is_flag=True, help="Compare content and not only what listings say.")
@click.option("--dry-run", is_flag=True, help="Change nothing.")
@click.option("--wait", is_flag=True, help="Return when all has been compared.")
def resync(job: str, prefix: str | None, deep: bool, dry_run: bool, wait: bool) -> None:
    """Compare source, ledger and destination; send what is missing.

    What is missing or different at the destination travels again, but for --dry-run.

    With --wait it tells on a terminal how far it is, and ends with 11 where objects differ, with 10 where
    some could not be compared.
    """
    from s5jtctl.progress import of_resync

    params = {"job": job} | given(prefix=prefix, deep=deep, dry_run=dry_run, wait=wait)
    with of_resync(daemon_for(2.0), job) if wait else contextlib.nullcontext():
        reply = daemon_for(None if wait else TIMEOUT_SECONDS).ask(Method.JOB_RESYNC, params)
    show_reply(reply, render.resync)
    totals = reply["totals"] or {}
    if totals.get("different"):
        raise SystemExit(Exit.MISMATCH)
    if totals.get("errors"):
        raise SystemExit(Exit.OBJECTS_FAILED)


@cli.command(
    epilog=examples("s5jtctl objects archive --state parked", "s5jtctl objects archive --prefix a/ --json")
)
@click.argument("job", shell_complete=job_names)
@click.option(
    "--state", metavar="STATE", shell_complete=state_names, help=f"Only these: {', '.join(STATES)}."
)
@click.option("--prefix", type=KEY, help="Only keys that begin so.")
@click.option(
    "--limit",
    metavar="N",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="At most so many.",
)
def objects(job: str, state: str | None, prefix: str | None, limit: int) -> None:
    """List the objects of JOB with their states, by key."""
    daemon = daemon_for()
    params = {"job": job} | given(state=state, prefix=prefix)
    rows: list[object] = []
    after: str | None = None
    while True:
        page = params | given(after=after) | {"limit": min(_PAGE, limit - len(rows))}
        reply = daemon.ask(Method.OBJECT_LIST, page)
        rows += reply["objects"]
        after = reply["next"]
        if after is None or len(rows) >= limit:
            break
    show_reply({"objects": rows, "next": after}, render.objects)
    if after is not None and not as_json():
        click.echo(f"there are more than these {len(rows)}; see them with --limit", err=True)


@cli.command(epilog=examples("s5jtctl explain archive missions/7/0001.jpg"))
@click.argument("job", shell_complete=job_names)
@click.argument("key", type=KEY)
def explain(job: str, key: str) -> None:
    """Tell the whole story of one object, with its evidence."""
    show(Method.OBJECT_EXPLAIN, {"job": job, "key": key}, render.explain)


@cli.command(
    epilog=examples("s5jtctl retry archive --parked", "s5jtctl retry archive --key missions/7/0001.jpg")
)
@click.argument("job", shell_complete=job_names)
@click.option("--key", type=KEY, help="Only this object.")
@click.option("--parked", is_flag=True, help="All that are parked; what is done without --key too.")
def retry(job: str, key: str | None, parked: bool) -> None:
    """Let objects travel again whose attempts are used up."""
    if key is not None and parked:
        raise click.UsageError("--key and --parked cannot be combined")
    show(Method.OBJECT_RETRY, given(job=job, key=key, parked=key is None), render.retried)


@cli.group(
    invoke_without_command=True, epilog=examples("s5jtctl volumes", "s5jtctl volumes drain vol2 --wait")
)
@click.pass_context
def volumes(ctx: click.Context) -> None:
    """Show the volumes, or empty one before it is pulled."""
    if ctx.invoked_subcommand is None:
        show(Method.VOLUME_LIST, {}, render.volumes)


@volumes.command("list", epilog=examples("s5jtctl volumes list --json"))
def volumes_list() -> None:
    """Show state, free space, staged bytes and what exists only there."""
    show(Method.VOLUME_LIST, {}, render.volumes)


@volumes.command("drain", epilog=examples("s5jtctl volumes drain vol2 --wait"))
@click.argument("volume", shell_complete=volume_names)
@click.option("--wait", is_flag=True, help="Until it is empty and safe to remove.")
def volumes_drain(volume: str, wait: bool) -> None:
    """Put nothing more on VOLUME, and deliver what it holds.

    It stays so until `activate`.

    VOLUME is a volume's name, path or UUID.  When all of it is delivered the daemon lets go of it, and
    `s5jtctl volumes` says that it is safe to unmount and remove.
    """
    show(Method.VOLUME_DRAIN, {"volume": volume} | given(wait=wait), render.volume_change, wait=wait)


@volumes.command("activate", epilog=examples("s5jtctl volumes activate vol2"))
@click.argument("volume", shell_complete=volume_names)
def volumes_activate(volume: str) -> None:
    """Use VOLUME again after `drain`."""
    show(Method.VOLUME_ACTIVATE, {"volume": volume}, render.volume_change)


@cli.group(invoke_without_command=True, epilog=examples("s5jtctl endpoints", "s5jtctl endpoints check"))
@click.pass_context
def endpoints(ctx: click.Context) -> None:
    """Show the endpoints, or try them now."""
    if ctx.invoked_subcommand is None:
        show(Method.ENDPOINT_LIST, {}, render.endpoints)


@endpoints.command("list", epilog=examples("s5jtctl endpoints list archive"))
@click.argument("job", required=False, shell_complete=job_names)
def endpoints_list(job: str | None) -> None:
    """Show state, latency and errors."""
    show(Method.ENDPOINT_LIST, given(job=job), render.endpoints)


@endpoints.command("check", epilog=examples("s5jtctl endpoints check", "s5jtctl endpoints check archive"))
@click.argument("job", required=False, shell_complete=job_names)
def endpoints_check(job: str | None) -> None:
    """Try every endpoint now; ends with 5 where one is down."""
    reply = show(Method.ENDPOINT_CHECK, given(job=job), render.endpoints, wait=True)
    if any(each["state"] == "down" for each in reply["endpoints"]):
        raise SystemExit(Exit.TEMPORARY)


@cli.group(
    invoke_without_command=True,
    epilog=examples(
        "s5jtctl bandwidth", "s5jtctl bandwidth set 20Mbit/s --direction push", "s5jtctl bandwidth clear"
    ),
)
@click.pass_context
def bandwidth(ctx: click.Context) -> None:
    """Show or change how fast data may move."""
    if ctx.invoked_subcommand is None:
        show(Method.BANDWIDTH_GET, {}, render.bandwidth)


@bandwidth.command("show", epilog=examples("s5jtctl bandwidth show"))
def bandwidth_show() -> None:
    """Show limits and rates."""
    show(Method.BANDWIDTH_GET, {}, render.bandwidth)


_DIRECTION = click.option("--direction", type=click.Choice(["pull", "push"]), help="Only this way.")


@bandwidth.command("set", epilog=examples("s5jtctl bandwidth set 20Mbit/s --direction push"))
@click.argument("rate", type=RATE)
@_DIRECTION
def bandwidth_set(rate: int | str, direction: str | None) -> None:
    """Allow RATE, like 50Mbit/s, 6MiB/s or unlimited, from now on."""
    show(
        Method.BANDWIDTH_SET, {"limit_bytes_per_second": rate} | given(direction=direction), render.bandwidth
    )


@bandwidth.command(
    "clear", epilog=examples("s5jtctl bandwidth clear", "s5jtctl bandwidth clear --direction push")
)
@_DIRECTION
def bandwidth_clear(direction: str | None) -> None:
    """Go back to what the config says."""
    params = {"limit_bytes_per_second": "configured"} | given(direction=direction)
    show(Method.BANDWIDTH_SET, params, render.bandwidth)


@cli.group(
    invoke_without_command=True,
    epilog=examples(
        "s5jtctl reports list archive",
        "s5jtctl reports latest --objects",
        "s5jtctl reports show 1769860800 --json",
    ),
)
@click.pass_context
def reports(ctx: click.Context) -> None:
    """Show the reports of passes."""
    if ctx.invoked_subcommand is None:
        show(Method.REPORT_LIST, {}, render.reports)


@reports.command("list", epilog=examples("s5jtctl reports list archive --limit 5"))
@click.argument("job", required=False, shell_complete=job_names)
@click.option(
    "--limit", metavar="N", type=click.IntRange(1, 1000), default=100, show_default=True, help="The newest."
)
def reports_list(job: str | None, limit: int) -> None:
    """List reports, the newest first."""
    show(Method.REPORT_LIST, given(job=job) | {"limit": limit}, render.reports)


_OBJECTS = click.option(
    "--objects", "with_objects", is_flag=True, help="With what came to rest, a page of it."
)
_PAGE_OBJECTS = click.option(
    "--limit", metavar="N", type=click.IntRange(1, 10_000), help="Objects in the page.  [1000]"
)


@reports.command(
    "show",
    epilog=examples("s5jtctl reports show 1769860800", "s5jtctl reports show 1769860800 --objects --json"),
)
@click.argument("report_id", metavar="ID", type=click.IntRange(min=0))
@_OBJECTS
@_PAGE_OBJECTS
@click.option("--after", metavar="NEXT", help="The page after the one that named it.")
def reports_show(report_id: int, with_objects: bool, limit: int | None, after: str | None) -> None:
    """Show one report."""
    _show_report({"id": report_id} | given(objects=with_objects, limit=limit, after=after))


@reports.command("latest", epilog=examples("s5jtctl reports latest archive --objects"))
@click.argument("job", required=False, shell_complete=job_names)
@_OBJECTS
@_PAGE_OBJECTS
def reports_latest(job: str | None, with_objects: bool, limit: int | None) -> None:
    """Show the newest report."""
    _show_report({"id": "latest"} | given(job=job, objects=with_objects, limit=limit))


def _show_report(params: dict[str, object]) -> None:
    reply = show(Method.REPORT_GET, params, render.report)
    if reply.get("next") and not as_json():
        more = f"s5jtctl reports show {reply.get('id')} --objects --after {safe(reply['next'])}"
        click.echo(f"there are more: {more}", err=True)


@cli.command(epilog=examples("s5jtctl events --since 2h", "s5jtctl events --follow --since 1042 --json"))
@click.option("--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option("--since", type=SINCE, help="A time, like 2026-01-31T23:59:00Z or 2h, or an event's id.")
def events(follow: bool, since: int | str | None) -> None:
    """Tell what happened, as far back as the daemon knows.

    With --follow it goes on with what happens from now on, and tells nothing older than --since says.
    """
    start = since if since is not None or follow else 0
    last_id = None
    try:
        for event in daemon_for().events({"since": start, "follow": follow}):
            click.echo(json.dumps(event) if as_json() else render.event(event))
            last_id = event["id"]
    except Failure as failure:
        if last_id is not None:
            failure.hint = f"go on with: s5jtctl events --follow --since {last_id}"
        raise


@cli.command("reload", epilog=examples("s5jtctl reload"))
def reload_config() -> None:
    """Read the config again; says what has to wait for a restart."""
    show(Method.CONFIG_RELOAD, {}, render.reloaded)


@cli.command(epilog=examples("s5jtctl ping", "s5jtctl ping --timeout 2s"))
def ping() -> None:
    """Ask whether the daemon answers."""
    show(Method.PING, {}, render.ping)


@cli.command(epilog=examples("s5jtctl version --json"))
def version() -> None:
    """Show the versions of both programs."""
    if not as_json():
        click.echo(f"s5jtctl {__version__}")
    reply = daemon_for().ask(Method.VERSION)
    if as_json():
        show_json({"s5jtctl": __version__, "s5jtd": reply["version"], "protocol": reply["protocol"]})
    else:
        click.echo(f"s5jtd {safe(reply['version'])}")


def _job_or_all(job: str | None, every: bool) -> dict[str, object]:
    if (job is not None) == every:
        raise click.UsageError("give either a job or --all")
    return {"all": True} if every else {"job": job}


def run() -> None:
    """Do what was typed.

    Raises:
        Failure: it cannot be understood, or the daemon says so.
    """
    try:
        cli.main(prog_name="s5jtctl", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "s5jtctl"
        raise Failure(error.format_message(), f"{where} --help", Exit.USAGE, "usage") from None
    except click.Abort:
        raise KeyboardInterrupt from None
