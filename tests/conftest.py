"""Fixtures that many tests share: S3 servers, started once for a whole run, and where daemons come from."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.filesystems import need_mounts
from tests.impatient import ImpatientNursery
from tests.nursery import Nursery
from tests.powercut import Site, site
from tests.servers import (
    Certificates,
    Server,
    SnowballLike,
    make_certificates,
    running_moto,
    running_rclone,
)

# How long an example takes is the machine's matter, and a busy one proves nothing wrong.
settings.register_profile(
    "any-machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any-machine")


@pytest.fixture(autouse=True)
def _no_aws_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a developer set up for AWS may decide how a test ends."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An AWS-like server; take a `new_bucket()` for each test."""
    with running_moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on a folder; take a `new_bucket()` for each test."""
    with running_rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A site's own CA, and a certificate from it for 127.0.0.1."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def rclone_tls(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Server]:
    """The same over TLS; its `ca_bundle` is the CA to trust."""
    with running_rclone(tmp_path_factory.mktemp("rclone-tls"), certificates) as server:
        yield server


@pytest.fixture
def snowball() -> Iterator[SnowballLike]:
    """A server that lists as the Snowball adapter does; fill `objects`."""
    with SnowballLike({}) as server:
        yield server


@pytest.fixture(scope="module")
def destination(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of its own, so that its log tells what was sent to it and nothing else."""
    with running_rclone(tmp_path_factory.mktemp("destination")) as server:
        yield server


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Raises daemons."""
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def impatient() -> Iterator[ImpatientNursery]:
    """Raises daemons that wait for nothing."""
    with ImpatientNursery() as nursery:
        yield nursery


@pytest.fixture
def make(
    tmp_path: Path, rclone: Server, destination: Server, nursery: Nursery
) -> Iterator[Callable[..., Site]]:
    """Makes the test's site, on file systems as asked for or else in plain folders."""
    made: list[Any] = []

    def one(kinds: dict[str, str] | None = None, **job: Any) -> Site:
        for kind in (kinds or {}).values():
            need_mounts(kind)
        made.append(site(tmp_path, rclone, destination, nursery, kinds or {}, **job))
        opened: Site = made[-1].__enter__()
        return opened

    yield one
    for context in made:
        context.__exit__(None, None, None)
