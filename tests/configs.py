"""Configurations for tests: one that is good, and what comes of texts that may not be."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from s5jtd.config import Config, JobConfig, S3Destination, S3Side, load
from s5jtd.errors import ConfigError, Exit

GOOD = """\
volumes: [/mnt/a]
jobs:
  - name: archive
    source:
      bucket: archive
      endpoints: [http://10.0.0.1:8080]
    destination:
      bucket: cloud-archive
"""

KEYS = "{access_key_id: FAKEACCESSKEY, secret_access_key: fake-secret-for-tests}"
SECRET = f"{GOOD}      credentials: {KEYS}\n"

JOB = {"name": "archive", "source": {"bucket": "archive"}, "destination": {"bucket": "cloud"}}


def config_of(**given: object) -> Config:
    """What the schema makes of this, without asking what must hold between its parts or what is built."""
    return Config.model_validate({"volumes": ["/mnt/a"], "jobs": [JOB]} | given)


def job_of(**given: object) -> JobConfig:
    """What the schema makes of one job."""
    return config_of(jobs=[JOB | given]).jobs[0]


def source_of(job: JobConfig) -> S3Side:
    """The source of a job that reads a bucket."""
    assert isinstance(job.source, S3Side)
    return job.source


def destination_of(job: JobConfig) -> S3Destination:
    """The destination of a job that writes to a bucket."""
    assert isinstance(job.destination, S3Destination)
    return job.destination


def loaded(text: str | bytes, mode: int = 0o640) -> Config:
    """What is loaded from a file with this content; by default others may not read it.

    Raises:
        ConfigError: as `load` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.yaml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return load(path)


def refusal(text: str | bytes, mode: int = 0o640) -> ConfigError:
    """How this content is refused."""
    with pytest.raises(ConfigError) as caught:
        loaded(text, mode)
    assert caught.value.exit == Exit.CONFIG
    assert "s5jtd check" in caught.value.hint
    return caught.value


def refused(text: str | bytes, mode: int = 0o640) -> list[str]:
    """The lines with which this content is refused, each without the path that begins it."""
    lines = refusal(text, mode).detail.splitlines()
    if len(lines) > 1:
        assert lines.pop(0) == f"{len(lines)} problems"
    assert all("/config.yaml:" in line for line in lines)
    return [line.partition("/config.yaml:")[2] for line in lines]
