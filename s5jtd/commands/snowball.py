"""`s5jtd snowball`: a Snowball Edge unlocked, its keys made a profile, its client and software set up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click

from s5jtd.commands.told import Told
from s5jtd.errors import Exit, UsageError
from s5jtd.snowball import profile as aws
from s5jtd.snowball.answers import UNLOCKED
from s5jtd.snowball.client import ANSWER_SECONDS, Client, find_program
from s5jtd.snowball.folder import CONFIG, others_may_read, read_device, read_keys, write_keys
from s5jtd.snowball.setup import Patience, Update
from s5jtd.snowball.setup import unlock as unlock_device
from s5jtd.units import parse_duration, shown


def _seconds(context: click.Context, option: click.Parameter, value: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from None


_folder = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
_program = click.option("--client", "program", metavar="PATH", help="AWS's snowballEdge, if not on PATH.")


def _timeout(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    help_text = "How long to wait."
    return click.option(
        "--timeout", metavar="DURATION", callback=_seconds, default=default, show_default=True, help=help_text
    )


@click.group(cls=Told)
def snowball() -> None:
    """Set up a Snowball Edge with AWS's snowballEdge client.

    DIR holds what belongs to one device: its manifest (a file whose name ends in manifest.bin) and
    sbe_config.yaml with unlock_key and endpoint_url.

    \b
    Examples:
      s5jtd snowball unlock /etc/s5jtd/snowball/sbe-1
      s5jtd snowball profile /etc/s5jtd/snowball/sbe-1
    """


@snowball.command()
@_folder
@_program
@_timeout("10m")
def unlock(folder: Path, program: str | None, timeout: float) -> None:
    """Unlock the device, wait, and leave its S3 keys in DIR/keys.yaml.

    \b
    Examples:
      s5jtd snowball unlock /etc/s5jtd/snowball/sbe-1 --timeout 20m
    """
    client = _client(folder, program, timeout)
    keys = unlock_device(client, Patience(timeout), _say)
    click.echo(write_keys(client.device.folder, keys))


@snowball.command()
@_folder
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
def profile(folder: Path, dry_run: bool) -> None:
    """Make the keys in DIR/keys.yaml an AWS profile.

    It is called like the folder.

    In a job's configuration it is `credentials: {profile: NAME}`; the daemon reads the files of its own user.

    \b
    Examples:
      s5jtd snowball profile /etc/s5jtd/snowball/sbe-1 --dry-run
    """
    keys = read_keys(folder)
    name = folder.resolve().name
    for change in aws.plan(name, keys, os.environ):
        if not change.what:
            click.echo(f"{change.path}: is as it should be")
            continue
        if not dry_run:
            aws.apply(change)
        click.echo(f"{change.path}: {'would ' if dry_run else ''}{', '.join(change.what)}")


@snowball.command()
@_folder
@_program
def configure(folder: Path, program: str | None) -> None:
    """Store manifest, unlock code and endpoint in AWS's client.

    \b
    Examples:
      s5jtd snowball configure /etc/s5jtd/snowball/sbe-1
    """
    client = _client(folder, program)
    client.configure()
    _say(f"snowballEdge is configured for {client.device.endpoint}; its file in ~/.aws holds the unlock code")


@snowball.command()
@_folder
@_program
@_timeout("2h")
@click.option("--uri", metavar="file:///...", help="The update file that AWS gave for the device's job.")
@click.option("--reboot", is_flag=True, help="Only reboot: AWS has an updated device restarted twice.")
@click.option("--yes", is_flag=True, help="Reboot without a question.")
def update(
    *, folder: Path, program: str | None, timeout: float, uri: str | None, reboot: bool, yes: bool
) -> None:
    """Update the device's software: download, install, wait, reboot.

    Goes on from where the device is; without --uri it begins nothing new.

    \b
    Examples:
      s5jtd snowball update /etc/s5jtd/snowball/sbe-1
      s5jtd snowball update /etc/s5jtd/snowball/sbe-1 --reboot
    """
    if not yes and not sys.stdin.isatty():
        raise UsageError(
            "a reboot needs somebody to ask", hint="use a terminal, or --yes if it may just happen"
        )
    uri = _checked(uri) if uri is not None else None
    client = _client(folder, program, timeout)
    run = Update(client, Patience(timeout), _say)
    if reboot:
        run.show()
    elif not run.prepare(uri):
        return
    question = f"Reboot {client.device.endpoint} now? It locks itself; what is being written to it is lost."
    if not yes and not click.confirm(question, err=True):
        _say(f"not rebooted; the update waits for it: s5jtd snowball update {folder}")
        sys.exit(Exit.FAILED)
    run.reboot()
    _say(
        "the device restarts, which takes about ten minutes; then\n"
        f"  s5jtd snowball unlock {folder}\n"
        f"  s5jtd snowball update {folder} --reboot    the second restart that AWS asks for, once\n"
        f"  s5jtd snowball unlock {folder}\n"
        f"  s5jtd snowball status {folder}"
    )


@snowball.command()
@_folder
@_program
@click.option("--json", "as_json", is_flag=True, help="The whole answer as JSON.")
def status(folder: Path, program: str | None, as_json: bool) -> None:
    """Show whether the device is unlocked, and what runs on it.

    A locked one does not tell the latter.

    \b
    Examples:
      s5jtd snowball status /etc/s5jtd/snowball/sbe-1
    """
    client = _client(folder, program)
    state = client.describe()
    software = client.software() if state.lock == UNLOCKED else None
    told = {"device_id": state.device_id, "endpoint": client.device.endpoint, "state": state.lock}
    versions = software and {
        "installed_version": software.installed,
        "installing_version": software.installing,
        "install_state": software.install,
        "certificate_expires": software.certificate_expires,
    }
    if as_json:
        click.echo(json.dumps({**told, "software": versions}))
        return
    for name, value in {**told, **(versions or {})}.items():
        if value:
            click.echo(f"{name.replace('_', ' '):20} {value}")


def _client(folder: Path, program: str | None, timeout_seconds: float = ANSWER_SECONDS) -> Client:
    device = read_device(folder)
    config = device.folder / CONFIG
    if others_may_read(config):
        _say(f"{config} holds the unlock code and others may read it: chmod 600 {config}")
    seconds = min(ANSWER_SECONDS, max(timeout_seconds, 1.0))
    return Client(find_program(program, os.environ), device, os.environ, answer_seconds=seconds)


def _checked(uri: str) -> str:
    """The URI of a file that is there; the client itself would read it."""
    if not uri.startswith("file:///") or not Path(unquote(uri.removeprefix("file://"))).is_file():
        raise UsageError(
            f"--uri {shown(uri)} names no file of this machine",
            hint="it is the file that AWS's GetSoftwareUpdates gives for the job, like file:///srv/update",
        )
    return uri


def _say(text: str) -> None:
    click.echo(text, err=True)
