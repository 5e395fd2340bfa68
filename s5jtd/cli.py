"""`s5jtd`: from arguments and configuration to work that is done, and to an honest exit code."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from s5jtd import __version__, config
from s5jtd.cli_volumes import volumes
from s5jtd.commands.api import api
from s5jtd.commands.snowball import snowball
from s5jtd.commands.told import Told
from s5jtd.errors import S5jtError
from s5jtd.ledger.states import State
from s5jtd.model import Side


class Context:
    """What every command may need: where the configuration is, read when it is first asked for."""

    def __init__(self, path: str | None) -> None:
        """`path` as given on the command line."""
        self.path = config.find(path, os.environ)

    def load(self) -> config.Config:
        """The configuration.

        Raises:
            ConfigError: it cannot be used.
        """
        return config.load(self.path)


pass_context = click.make_pass_decorator(Context)


def job_names(context: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    """What a shell offers after the Tab key; nothing where the configuration cannot be used."""
    try:
        loaded = Context(context.find_root().params.get("path")).load()
    except S5jtError:
        return []
    return [job.name for job in loaded.jobs if job.name.startswith(typed)]


@click.group(cls=Told, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "path",
    metavar="FILE",
    help="Configuration (default $S5JTD_CONFIG, else /etc/s5jtd/config.yaml).",
)
@click.version_option(__version__, prog_name="s5jtd")
@click.pass_context
def main(context: click.Context, path: str | None) -> None:
    """Move S3 objects over local volumes to another bucket, and prove each hop.

    \b
    First steps:
      s5jtd demo            see a whole transfer between two servers on this machine
      s5jtd check           is the configuration good, do the endpoints answer?
      s5jtd run --once      one pass over every job
      s5jtctl status        ask the running daemon
    """
    context.obj = Context(path)


@main.command()
@click.option("--once", is_flag=True, help="One pass over every job, then end.")
@click.option("--dry-run", is_flag=True, help="Show what would travel, and change nothing.")
@click.option(
    "--job", "only", metavar="JOB", shell_complete=job_names, help="With --once or --dry-run: this job alone."
)
@click.option("--json", "as_json", is_flag=True, help="With --once or --dry-run: JSON on stdout.")
@pass_context
def run(context: Context, once: bool, dry_run: bool, only: str | None, as_json: bool) -> None:
    """Run the daemon in the foreground.

    Exit codes with --once: 0 all delivered, 5 a side was down (try again), 10 objects are parked,
    11 a checksum did not match, 130 or 143 interrupted.

    \b
    Examples:
      s5jtd run --dry-run                 what would travel, and why
      s5jtd run --once --job archive      one pass over one job, as for cron
    """
    from s5jtd.commands.dryrun import dry_run as show
    from s5jtd.commands.run import run_daemon

    if (only or as_json) and not (once or dry_run):
        raise click.UsageError(f"{'--job' if only else '--json'} goes with --once or --dry-run")
    loaded = only_job(context.load(), only)
    sys.exit(
        show(loaded, as_json=as_json)
        if dry_run
        else run_daemon(loaded, context.path, once=once, as_json=as_json)
    )


def only_job(loaded: config.Config, name: str | None) -> config.Config:
    """The configuration with one job left."""
    if name is None:
        return loaded
    jobs = tuple(job for job in loaded.jobs if job.name == name)
    if not jobs:
        known = ", ".join(job.name for job in loaded.jobs)
        raise click.UsageError(f"there is no job {name!r}; the jobs are: {known}")
    return loaded.model_copy(update={"jobs": jobs})


@main.command()
@click.option("--json", "as_json", is_flag=True, help="The whole answer as JSON.")
@click.option("--offline", is_flag=True, help="Ask no endpoint.")
@click.option("--install", is_flag=True, help="The installation too: program, units, owners, credentials.")
@click.option(
    "--legacy-exit-codes", "legacy", is_flag=True,
    help="0 all is well, else 1 installation, 2 credentials, 3 S3 access.",
)  # fmt: skip
@pass_context
def check(context: Context, as_json: bool, offline: bool, install: bool, legacy: bool) -> None:
    """Check configuration, volumes, credentials and every endpoint.

    It says of each job whether a transfer is feasible, and leaves failed_endpoints.json in the state
    folder.

    \b
    Examples:
      s5jtd check                         before the first start, and when nothing moves
      s5jtd check --offline               only what is on this machine
    """
    from s5jtd.commands.check import check as perform

    sys.exit(perform(context.path, as_json=as_json, offline=offline, install=install, legacy=legacy))


@main.command("list")
@click.argument("side", type=click.Choice([side.value for side in Side]))
@click.argument("job", shell_complete=job_names)
@click.option(
    "--limit", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="How many objects."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@pass_context
def list_side(context: Context, side: str, job: str, limit: int, as_json: bool) -> None:
    """List what the configured credentials show of SIDE of JOB.

    \b
    Examples:
      s5jtd list source archive
      s5jtd list destination archive --limit 5 --json
    """
    from s5jtd.commands.listing import list_objects_of

    loaded = only_job(context.load(), job)
    sys.exit(list_objects_of(loaded.jobs[0], Side(side), limit=limit, as_json=as_json))


@main.command()
@click.option("--size", metavar="SIZE", default="200MiB", show_default=True, help="How much to move.")
@click.option("--keep", is_flag=True, help="Leave ledger, volumes and logs where they are, and say where.")
def demo(size: str, keep: bool) -> None:
    """Move a bucket between two servers on this machine, and compare.

    It needs no configuration and no network, and leaves nothing behind but what --keep asks for.

    \b
    Examples:
      s5jtd demo
      s5jtd demo --size 2GiB --keep
    """
    from s5jtd.commands.demo import demo as perform

    sys.exit(perform(size, keep=keep))


@main.command()
@click.option("--large", metavar="SIZE", default="512MiB", show_default=True, help="In objects of 64 MiB.")
@click.option(
    "--small", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="Objects of 16 KiB."
)
@click.option("--rounds", type=click.IntRange(1, 20), default=1, show_default=True, help="The median counts.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout.")
def benchmark(large: str, small: int, rounds: int, as_json: bool) -> None:
    """Compare with s5cmd, aws and rclone on this machine.

    Each moves the same objects from one server on this machine over its disk to another, by turns; aws and
    rclone where they are installed.  It needs no configuration and no network, and leaves nothing behind.

    \b
    Examples:
      s5jtd benchmark
      s5jtd benchmark --large 4GiB --small 20000 --rounds 3 --json
    """
    from s5jtd.commands.benchmark import benchmark as perform

    sys.exit(perform(large, small, rounds, as_json=as_json))


@main.command("import")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--with-secrets", is_flag=True, help="Copy keys too, instead of naming where they go.")
def import_(file: Path, with_secrets: bool) -> None:
    """Turn an old configuration into one for s5jtd, on stdout.

    FILE is a legacy config.yaml or datasync-config.env.  What has no counterpart is named, in comments
    and on stderr.

    \b
    Examples:
      s5jtd import datasync-config.env > config.yaml
    """
    from s5jtd.commands.legacy import import_file

    sys.exit(import_file(file, with_secrets=with_secrets))


@main.group()
def ledger() -> None:
    """Check, copy, export and rebuild the ledger.

    \b
    Examples, where s5jtd does not start because of its ledger:
      s5jtd ledger verify      what is wrong with it
      s5jtd ledger rebuild     put the newest good copy in its place (asks first)
    """


@ledger.command("verify")
@click.option("--json", "as_json", is_flag=True, help="The whole answer as JSON.")
@pass_context
def ledger_verify(context: Context, as_json: bool) -> None:
    """Look whether the ledger is whole and agrees with itself.

    Works beside the daemon; ends with 1 where it is damaged.

    \b
    Examples:
      s5jtd ledger verify
    """
    from s5jtd.commands.ledger import verify

    sys.exit(verify(context.load(), as_json=as_json))


@ledger.command("backup")
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@pass_context
def ledger_backup(context: Context, file: Path | None) -> None:
    """Write a checked copy to FILE, or beside the ledger.  Works beside the daemon.

    What was there before stays unless the new copy is whole.

    \b
    Examples:
      s5jtd ledger backup
      s5jtd ledger backup /mnt/usb/ledger.db
    """
    from s5jtd.commands.ledger import backup

    sys.exit(backup(context.load(), file))


@ledger.command("export")
@click.option(
    "--format", "form", type=click.Choice(["csv", "jsonl"]), default="csv", show_default=True,
    help="A table, or one JSON object a line.",
)  # fmt: skip
@click.option("--job", metavar="JOB", shell_complete=job_names, help="Only the objects of this job.")
@click.option("--state", type=click.Choice([state.word for state in State]), help="Only those in this state.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: stdout.")
@pass_context
def ledger_export(
    context: Context, form: str, job: str | None, state: str | None, output: Path | None
) -> None:
    """Write every object's row: states, times, evidence.  Works beside the daemon.

    \b
    Examples:
      s5jtd ledger export --output objects.csv
      s5jtd ledger export --format jsonl --job archive --state parked
    """
    from s5jtd.commands.ledger import export_rows

    sys.exit(export_rows(context.load(), form=form, job=job, state=state, output=output))


@ledger.command("rebuild")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def ledger_rebuild(context: Context, dry_run: bool, yes: bool) -> None:
    """Put the newest good copy in a lost or damaged ledger's place.

    Needs the daemon stopped.

    \b
    Examples:
      s5jtd ledger rebuild --dry-run
      systemctl stop s5jtd && s5jtd ledger rebuild
    """
    from s5jtd.commands.rebuild import rebuild_ledger

    sys.exit(rebuild_ledger(context.load(), yes=yes, dry_run=dry_run))


@main.command()
@click.option("--job", metavar="JOB", shell_complete=job_names, help="Only this job (default: all of them).")
@click.option("--dry-run", is_flag=True, help="Show what would go, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_context
def reset(context: Context, job: str | None, dry_run: bool, yes: bool) -> None:
    """Forget runs and empty the staging; needs the daemon stopped.

    Nothing at the source or the destination is touched.

    \b
    Examples:
      s5jtd reset --dry-run
      systemctl stop s5jtd && s5jtd reset --job archive
    """
    from s5jtd.commands.reset import reset as perform

    sys.exit(perform(context.load(), job=job, yes=yes, dry_run=dry_run))


main.add_command(api)
main.add_command(snowball)
main.add_command(volumes)
