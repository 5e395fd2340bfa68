"""Starts and ends the demo's two S3 servers: processes of their own, on loopback, on ports nobody chose."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

import boto3
from botocore.config import Config

from s5jtd.errors import S5jtError, UsageError

_PROGRAM: Final = Path(__file__).with_name("s3server.py")
_START_TIMEOUT_SECONDS: Final = 60.0
_REGION: Final = "us-east-1"


class Request(NamedTuple):
    """One request a demo server answered."""

    method: str
    kind: str  #: object, part, upload, tagging, acl or bucket
    status: int
    moved_bytes: int  #: of the body, in whichever direction it went
    key: bytes  #: b"" where the request was about the bucket


@dataclass(frozen=True, slots=True)
class DemoSide:
    """One running server and its one bucket: what a job's `source` or `destination` needs to know."""

    url: str
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    requests_file: Path

    def configured(self) -> dict[str, Any]:
        """Return the side of a job as a configuration has it; its keys open nothing else."""
        keys = {"access_key_id": self.access_key, "secret_access_key": self.secret_key}
        return {"bucket": self.bucket, "endpoints": [self.url], "credentials": keys}

    def client(self, connections: int = 10) -> Any:
        """Return a boto3 client; it shares no code with the daemon's own way to S3."""
        config = Config(
            max_pool_connections=connections,
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            retries={"max_attempts": 1},
        )
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=_REGION,
            config=config,
        )

    def requests(self) -> Iterator[Request]:
        """Return every request answered so far, in order."""
        with self.requests_file.open(encoding="latin-1") as lines:
            for line in lines:
                method, kind, status, moved, target = line.rstrip("\n").split("\t")
                key = unquote_to_bytes(target.partition("?")[0][1:].partition("/")[2])
                yield Request(method, kind, int(status), int(moved), key)


class DemoServers:
    """Two S3 servers with one empty bucket each, for as long as the `with` block lasts.

    They end with it, and also when this process dies without leaving it.  `folder` takes their
    scratch files and what they record; without one a temporary folder comes and goes with them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> tuple[DemoSide, DemoSide]:
        if importlib.util.find_spec("moto") is None:
            raise UsageError(
                "the demo's S3 servers are not installed", hint="install `s5jtd[demo]`, or run `make demo`"
            )
        with contextlib.ExitStack() as stack:
            folder = self._folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s5jtd-")))
            sides = tuple(stack.enter_context(_serving(name, folder)) for name in ("source", "destination"))
            self._stack = stack.pop_all()
        return sides[0], sides[1]

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextlib.contextmanager
def _serving(name: str, folder: Path) -> Iterator[DemoSide]:
    access_key = f"DEMO{secrets.token_hex(8).upper()}"
    requests_file = folder / f"{name}.requests"
    requests_file.touch(mode=0o600)
    messages = folder / f"{name}.messages"
    environment = {
        "DEMO_ACCESS_KEY": access_key,
        "DEMO_REQUESTS_FILE": os.fspath(requests_file),
        "MOTO_DISABLE_GLOBAL_CORS": "true",
        "PATH": os.defpath,
        "TMPDIR": os.fspath(folder),  # moto keeps large objects in unnamed files there
    }
    with messages.open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-I", os.fspath(_PROGRAM)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C ends the demo, and the demo ends its servers, in that order
        )
    with contextlib.ExitStack() as stack:
        stack.callback(_end, process)
        side = DemoSide(
            url=f"http://127.0.0.1:{_port(process, messages)}",
            access_key=access_key,
            secret_key=secrets.token_hex(20),
            bucket=f"demo-{name}",
            requests_file=requests_file,
        )
        with contextlib.closing(side.client()) as client:
            client.create_bucket(Bucket=side.bucket)
        yield side


def _port(process: subprocess.Popen[bytes], messages: Path) -> int:
    """Wait for the line that says where the server listens."""
    assert process.stdout is not None  # noqa: S101  for the type checker
    readable, _, _ = select.select([process.stdout], [], [], _START_TIMEOUT_SECONDS)
    line = process.stdout.readline() if readable else b""
    if not line:
        last = messages.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise S5jtError(f"a demo S3 server did not start: {last[0]}", hint="install `s5jtd[demo]` anew")
    return int(json.loads(line)["port"])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # it keeps nothing anybody wants
    process.communicate()
