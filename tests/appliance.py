"""An appliance for tests: a state folder, volumes, a configuration, and the real daemon as a process."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from s5jtctl.client import Daemon, Failure
from s5jtd import shapes
from tests.servers import Server

WAIT_SECONDS = 150.0  # a hang is told from a busy machine; nobody waits as long where all is well


def until(look: Callable[[], Any], what: str = "the condition", seconds: float = WAIT_SECONDS) -> Any:
    """Wait until `look` answers something true, and return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come about within {seconds:.0f} s")


class Appliance:
    """One daemon's surroundings; everything of it lies in `folder`."""

    def __init__(self, folder: Path, *, volumes: int = 2) -> None:
        self.folder = folder
        self.volumes = [folder / f"volume-{n}" for n in range(1, volumes + 1)]
        for volume in self.volumes:
            volume.mkdir(parents=True, exist_ok=True)
        self.config_path = folder / "config.yaml"
        self.log_path = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "control.sock"

    def configure(self, *jobs: Mapping[str, Any], **top: Any) -> None:
        """Write the configuration."""
        config = {
            "state_dir": str(self.folder / "state"),
            "runtime_dir": str(self.folder / "run"),
            "volumes": [str(volume) for volume in self.volumes],
            "jobs": list(jobs),
            **top,
        }
        self.config_path.touch(mode=0o600)
        self.config_path.write_text(yaml.safe_dump(config, sort_keys=False))

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run an `s5jtd` command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "s5jtd", "--config", str(self.config_path), *arguments],
            capture_output=True, text=True, timeout=WAIT_SECONDS * 3, check=False, **options,
        )  # fmt: skip

    def once(self) -> int:
        """One pass of the daemon; its exit code.  Its log is kept."""
        self.start("run", "--once", wait=False)
        assert self.process is not None
        return self.process.wait(WAIT_SECONDS * 3)

    def start(self, *arguments: str, wait: bool = True, prefix: tuple[str, ...] = ()) -> None:
        """Start the daemon, and wait until it answers.  `prefix` may be e.g. an strace command line."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *prefix, sys.executable, "-m", "s5jtd", "--config", str(self.config_path),
                    *(arguments or ("run",)),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        if wait:
            until(self.running, "the daemon's first answer")

    def running(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon ended with {self.process.returncode}: {self.log()[-3000:]}")
        try:
            return self.status()["daemon"]["state"] == "running"
        except Failure:
            return False

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the daemon and wait for its end."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(WAIT_SECONDS)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """The records of one event in the daemon's log."""
        records = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [record for record in records if record.get("event") == name]

    def ask(self, method: str, **parameters: Any) -> Any:
        """One request to the control socket."""
        daemon = Daemon(os.fspath(self.socket), WAIT_SECONDS)
        try:
            return daemon.ask(method, parameters)
        finally:
            daemon.close()

    def status(self) -> shapes.Status:
        answer: shapes.Status = self.ask("status")
        return answer

    def counted(self, job: int = 0) -> dict[str, int]:
        """Objects by state, those that are not zero."""
        objects: Any = self.status()["jobs"][job]["objects"]
        return {word: count for word, count in objects.items() if count}

    def settled(self, seconds: float = WAIT_SECONDS) -> dict[str, int]:
        """Wait until a look at the source was complete and nothing is left to move; the counts then."""

        def look() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log()[-3000:]
            jobs = self.status()["jobs"]
            return all(
                job["last_scan"] is not None
                and job["last_scan"]["complete"]
                and not any(job["objects"][word] for word in ("seen", "pulling", "staged", "pushing"))
                for job in jobs
            )

        until(look, "the end of all movement", seconds)
        return self.counted()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def side(
    server: Server, bucket: str, prefix: str = "", url: str | None = None, **more: Any
) -> dict[str, Any]:
    """One side of a job in the configuration's words."""
    return {
        "bucket": bucket,
        "prefix": prefix,
        "endpoints": [url or server.url],
        "credentials": {"access_key_id": server.access_key, "secret_access_key": server.secret_key},
        **more,
    }


def contents(server: Server, bucket: str) -> dict[bytes, str]:
    """Every key of a bucket with the SHA-256 of its bytes, read by boto3 and nothing of ours."""
    client = server.boto()
    found: dict[bytes, str] = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", ()):
            digest = hashlib.sha256()
            for piece in client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].iter_chunks(1 << 20):
                digest.update(piece)
            found[entry["Key"].encode()] = digest.hexdigest()
    return found


def digests(objects: Mapping[bytes, bytes]) -> dict[bytes, str]:
    """What `contents` must answer for these objects."""
    return {key: hashlib.sha256(body).hexdigest() for key, body in objects.items()}


def some_objects(count: int = 200, seed: bytes = b"") -> dict[bytes, bytes]:
    """Small objects of different sizes, an empty one among them."""
    return {
        b"missions/%04d.dat" % n: hashlib.shake_128(seed + b"%d" % n).digest((n * 977) % 20_000)
        for n in range(count)
    }
