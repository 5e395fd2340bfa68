"""`s5jtd list`: a connection test that shows what the configured credentials show."""

from __future__ import annotations

import itertools
import json
import tempfile
from pathlib import Path

import click

from s5jtd import log
from s5jtd.config import JobConfig
from s5jtd.errors import Exit
from s5jtd.jobs import build_link
from s5jtd.model import Side, printable
from s5jtd.s3.listing import list_objects
from s5jtd.status import rfc3339
from s5jtd.units import format_bytes


def list_objects_of(job: JobConfig, side: Side, *, limit: int, as_json: bool) -> int:
    """Print the first objects of one side, through the first endpoint that answers.

    Raises:
        EndpointError: no endpoint answers, or it refuses us.
    """
    log.configure("warning")
    with tempfile.TemporaryDirectory(prefix="s5jtd-list-") as folder:
        link = build_link(
            side, job.source if side is Side.SOURCE else job.destination, job.name, Path(folder)
        )
        with link.endpoints.lease() as endpoint:
            pages = list_objects(endpoint.client, link.prefix, version=link.list_version)
            shown = list(itertools.islice((one for page in pages for one in page.objects), limit))
    for one in shown:
        if as_json:
            click.echo(
                json.dumps({
                    "key": printable(one.key), "size_bytes": one.size, "etag": one.etag or None,
                    "modified_at": rfc3339(one.modified_ms or None),
                })
            )  # fmt: skip
        else:
            at = rfc3339(one.modified_ms or None) or "-"
            click.echo(f"{at:24} {format_bytes(one.size):>10}  {printable(one.key)}")
    if not as_json:
        more = " (and perhaps more: --limit)" if len(shown) == limit else ""
        click.echo(f"{side} of {job.name}: {len(shown)} objects{more}", err=True)
    return Exit.DONE
