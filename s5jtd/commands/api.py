"""`s5jtd api`: the HTTPS log API as a process of its own; makes its token and certificate on request."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from s5jtd import protocol
from s5jtd.commands.told import Told, fail
from s5jtd.errors import ConfigError, Exit, S5jtError


class _Told(Told):
    """With a word to those who have installed s5jtd without the API."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            fail(S5jtError(f"{error.name} is not installed", hint="install `s5jtd[api]`"))


def _credential(option: str, name: str, value: Path | None) -> Path:
    """The file of an option, else systemd's credential of that name."""
    if value is not None:
        return value
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigError(
            f"{option} is missing, and systemd gave no credentials",
            hint="first: s5jtd api token /etc/s5jtd/api.token && s5jtd api cert /etc/s5jtd",
        )
    return Path(folder) / name


_FILE = click.Path(path_type=Path)


@click.group(cls=_Told, invoke_without_command=True)
@click.option("--listen", metavar="HOST:PORT", default="127.0.0.1:8443", show_default=True, help="Where.")
@click.option("--token-file", type=_FILE, help="Default: systemd's credential api.token.")
@click.option("--cert", type=_FILE, help="PEM, the leaf first.  Default: systemd's credential api.crt.")
@click.option("--key", type=_FILE, help="Without a password.  Default: systemd's credential api.key.")
@click.option("--socket", "socket_path", metavar="PATH", help=f"[$S5JTD_SOCKET, else {protocol.SOCKET}]")
@click.pass_context
def api(
    context: click.Context,
    listen: str,
    token_file: Path | None,
    cert: Path | None,
    key: Path | None,
    socket_path: str | None,
) -> None:
    """Serve status, run reports and metrics over HTTPS.

    To whoever shows the token.      It only reads, and all it knows comes over the daemon's control socket.

    \b
    Examples:
      s5jtd api --listen 0.0.0.0:8443 --token-file api.token --cert api.crt --key api.key
    """
    if context.invoked_subcommand is not None:
        return
    from s5jtd.api.run import Settings, run  # noqa: PLC0415  it needs the extra

    settings = Settings(
        listen=listen,
        token=_credential("--token-file", "api.token", token_file),
        certificate=_credential("--cert", "api.crt", cert),
        key=_credential("--key", "api.key", key),
        socket_path=socket_path or os.environ.get("S5JTD_SOCKET") or protocol.SOCKET,
    )
    sys.exit(run(settings))


@api.command()
@click.argument("file", type=_FILE)
def token(file: Path) -> None:
    """Make a new token in FILE, which must not be there yet.

    \b
    Examples:
      s5jtd api token /etc/s5jtd/credentials.d/api.token
    """
    from s5jtd.api.tokens import create  # noqa: PLC0415  it needs the extra

    create(file)
    click.echo(file)
    sys.exit(Exit.DONE)


@api.command()
@click.argument("folder", metavar="DIR", type=_FILE)
@click.option(
    "--host", "hosts", multiple=True, metavar="NAME", help="By which clients will know it; several."
)
def cert(folder: Path, hosts: tuple[str, ...]) -> None:
    """Make a key and a self-signed certificate in DIR.

    They are DIR/api.key and DIR/api.crt.

    Clients trust the certificate itself (curl --cacert api.crt); compare its fingerprint where you copy it.

    \b
    Examples:
      s5jtd api cert /etc/s5jtd/credentials.d --host appliance-7
    """
    from s5jtd.api.tls import create, now  # noqa: PLC0415  it needs the extra

    path, fingerprint = create(folder, hosts, now())
    click.echo(f"{path}\nSHA-256 {fingerprint}")
    sys.exit(Exit.DONE)
