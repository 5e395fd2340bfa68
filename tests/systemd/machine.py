"""The machine under test as an operator has it: a shell, systemctl, the journal; standard library only."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Emulated machines are slow, and nothing here is about speed.
WAIT_SECONDS = 600.0

CONFIG = Path("/etc/s5jtd/config.yaml")
SECRETS = Path("/etc/s5jtd/credentials.d")
STATE = Path("/var/lib/s5jtd")
PYTHON = Path("/opt/s5jtd/current/bin/python")
VOLUMES = [Path("/srv/s5jtd-test/volume-01"), Path("/srv/s5jtd-test/volume-02")]
KEY, SECRET = "FAKEACCESSKEY", "fake-secret-for-tests"


def sh(command: str, *, ok: bool = True) -> str:
    """What a command line says, on both streams together; unless told otherwise it must succeed."""
    done = subprocess.run(
        ["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=WAIT_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0 or not ok, f"{command}: {done.returncode}\n{done.stdout}"
    return done.stdout


def code(command: str) -> int:
    """How a command line ends."""
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, timeout=WAIT_SECONDS, check=False
    ).returncode


def until(look: Callable[[], Any], what: str) -> Any:
    """Wait until `look` answers something true, and return that."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(1)
    raise AssertionError(f"{what} did not come about\n{sh('journalctl -u s5jtd -n 40 --no-pager', ok=False)}")


def unpacked(folder: Path) -> Path:
    """The bundle for this machine, unpacked."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    bundles = Path(os.environ.get("S5JTD_BUNDLE") or "dist")
    (bundle,) = bundles.glob(f"s5jtd-*-linux-{machine}.tar.gz")
    sh(f"tar -xzf {bundle} -C {folder}")
    return next(folder.glob("s5jtd-*"))


def configure(port: int, here: str, there: str, **more: str) -> None:
    """A job between two buckets of the test's server, over two folders."""
    for volume in VOLUMES:
        volume.mkdir(parents=True, exist_ok=True)
        shutil.chown(volume, "s5jtd", "s5jtd")
    endpoint = f"endpoints: [http://127.0.0.1:{port}]\n      credentials: {{systemd: test}}"
    extra = "".join(f"{name}: {value}\n" for name, value in more.items())
    CONFIG.write_text(
        f"volumes: [{', '.join(map(str, VOLUMES))}]\njobs:\n  - name: archive\n"
        f"    scan_every: 2s\n    chunk: {{objects: 20}}\n"
        f"    source:\n      bucket: {here}\n      {endpoint}\n"
        f"    destination:\n      bucket: {there}\n      {endpoint}\n{extra}"
    )
    secret = SECRETS / "test"
    secret.touch(mode=0o600)
    secret.write_text(f"[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")


@contextmanager
def s3_server() -> Iterator[int]:
    """The demo's S3 server, of the installed program; its port."""
    program = sh(f"{PYTHON} -I -c 'import s5jtd.demo; print(s5jtd.demo.__path__[0])'").strip()
    process = subprocess.Popen(
        [PYTHON, "-I", f"{program}/s3server.py"],
        env={"DEMO_ACCESS_KEY": KEY, "PATH": os.defpath},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())["port"]
    finally:
        process.kill()
        process.wait()


#: Run by the installed Python, which has boto3: fill a bucket, or say what is in one.
_BOTO = """
import boto3, hashlib, json, sys
port, what, bucket, count = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                  aws_access_key_id="FAKEACCESSKEY", aws_secret_access_key="fake-secret-for-tests")
if what == "fill":
    if bucket not in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=bucket)
    for n in range(int(count)):
        body = hashlib.shake_128(b"%d" % n).digest(n * 977 % 20000)
        s3.put_object(Bucket=bucket, Key=f"k/{n:04d}", Body=body)
else:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    print(json.dumps({
        key: hashlib.sha256(s3.get_object(Bucket=bucket, Key=key)["Body"].read()).hexdigest() for key in keys
    }))
"""


def boto(port: int, what: str, bucket: str, count: int = 0) -> Any:
    """`fill` a bucket with so many objects, making it, or tell its `contents` by SHA-256."""
    said = subprocess.run(
        [PYTHON, "-I", "-c", _BOTO, str(port), what, bucket, str(count)],
        capture_output=True, text=True, check=True, timeout=WAIT_SECONDS,
    ).stdout  # fmt: skip
    return json.loads(said) if said else None


def status() -> dict[str, Any]:
    """What the daemon says of itself, {} while it does not answer.

    By the socket: s5jtctl would start a Python for each look, seconds long where a machine is emulated.
    """
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect("/run/s5jtd/control.sock")
            client.sendall(b'{"jsonrpc":"2.0","id":1,"method":"status"}\n')
            answer = json.loads(client.makefile("rb").readline() or "{}")
    except OSError:
        return {}
    found: dict[str, Any] = answer.get("result", {})
    return found


def delivered() -> int:
    jobs = status().get("jobs") or [{"objects": {"delivered": 0}}]
    return int(jobs[0]["objects"]["delivered"])


def main_pid() -> int:
    return int(sh("systemctl show -P MainPID s5jtd"))


def journal(*matches: str) -> list[dict[str, Any]]:
    """Records of the unit, with their fields."""
    said = sh(f"journalctl --sync; journalctl -u s5jtd -o json --no-pager {' '.join(matches)}")
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]
