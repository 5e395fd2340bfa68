"""From a job's configuration to a job at work: clients, credentials, endpoints."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from s5jtd.config import Config, FolderDestination, FolderSource, JobConfig, S3Destination, S3Side
from s5jtd.config.schema import Bounds as GivenBounds
from s5jtd.config.sides import (
    AnonymousCredentials,
    EnvCredentials,
    KeyCredentials,
    Move,
    ProfileCredentials,
    SystemdCredentials,
)
from s5jtd.engine.contract import Remote
from s5jtd.errors import ConfigError
from s5jtd.folders import paths
from s5jtd.folders.client import FolderClient
from s5jtd.folders.leave import Leave, is_ready
from s5jtd.folders.watch import FolderWatch
from s5jtd.ledger.store import Ledger
from s5jtd.link.line import Timetable
from s5jtd.link.tuning import ANY, Allowed, Bounds
from s5jtd.log import register_secret
from s5jtd.model import Direction, Side
from s5jtd.s3.client import S3Client
from s5jtd.s3.credentials import CredentialProvider, Credentials, CredentialSource, write_shared_file
from s5jtd.s3.endpoints import Endpoint, Endpoints
from s5jtd.s3.transport import Link as Transport
from s5jtd.stages.job import Folder, Job, Link, Tagging


def build_job(config: JobConfig, ledger: Ledger, runtime_dir: Path, known_id: int | None = None) -> Job:
    """A job that the ledger knows, ready to be spoken to; with `known_id` the ledger is not asked.

    Raises:
        LedgerError: the ledger knows the job's name with other data.
    """
    job_id = known_id or ledger.enrol_job(
        config.name, _identity(config.source), _identity(config.destination)
    )
    marks = marks_of(ledger.database.path.parent)
    return Job(
        job_id,
        config,
        build_link(Side.SOURCE, config.source, config.name, runtime_dir),
        build_link(Side.DESTINATION, config.destination, config.name, runtime_dir, marks),
    )


def _identity(side: object) -> str:
    """What makes the data of a side: bucket and prefix, not the endpoints that lead there; or a folder."""
    if isinstance(side, FolderSource | FolderDestination):
        return f"file://{side.directory}/"
    config = s3_side(side)
    return f"s3://{config.bucket}/{config.prefix}"


def s3_side(side: object) -> S3Side:
    """A side that is a bucket.

    Raises:
        ConfigError: it is a folder.
    """
    if not isinstance(side, S3Side):
        raise ConfigError("this side of a job must be a bucket")
    return side


def marks_of(state_dir: Path) -> Path:
    """Where it is noted which folders were written to."""
    return state_dir / "folders"


def folder_link(
    side: Side, config: FolderSource | FolderDestination, job_name: str, marks: Path | None
) -> Link:
    """A side that is a folder: one endpoint, which is the folder itself."""
    directory = config.directory
    begun_mark = None
    follow = isinstance(config, FolderSource) and config.symlinks == "follow"
    if isinstance(config, FolderSource):
        to = config.after.move if isinstance(config.after, Move) else None
        watch = FolderWatch(config.settle)
        folder = Folder(
            paths.unfit,
            is_ready=partial(is_ready, directory, follow=follow),
            leave=None if config.after == "keep" else Leave(directory, to),
            settle_seconds=config.settle,
            changes=watch,
        )
        client = FolderClient(directory, settle_seconds=config.settle, follow_links=follow, watch=watch)
    else:
        begun_mark = marks / job_name if marks is not None else None
        folder = Folder(paths.unfit)
        client = FolderClient(directory, is_destination=True, begun_mark=begun_mark)
    remote = Remote(
        bucket="", endpoint_url=None, region=None, credentials_file=None, directory=directory,
        begun_mark=begun_mark, follow_links=follow,
    )  # fmt: skip
    endpoints = Endpoints([Endpoint(str(directory), client)])
    return Link(side, b"", "auto", endpoints, lambda _endpoint: remote, folder=folder)


def build_link(
    side: Side, given: object, job_name: str, runtime_dir: Path, marks: Path | None = None
) -> Link:
    """One side of a job: a client for each endpoint, and the engine's view of it.

    `marks` is where it is noted which folders were written to.
    """
    if isinstance(given, FolderSource | FolderDestination):
        return folder_link(side, given, job_name, marks)
    config = s3_side(given)
    provider = CredentialProvider(credential_source(config))
    urls: tuple[str | None, ...] = config.endpoints or (None,)
    endpoints = Endpoints(
        [Endpoint(url or "aws", _client(config, url, provider), prefix=config.key_prefix) for url in urls]
    )

    def remote(endpoint: Endpoint) -> Remote:
        found = provider.current()
        folder = runtime_dir / "credentials"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = None if found is None else write_shared_file(folder, f"{job_name}.{side}", found)
        made = _remote(config, None if endpoint.url == "aws" else endpoint.url, path)
        return replace(made, s5cmd_fits=endpoint.client.learned.s5cmd is not False)

    return Link(
        side, config.key_prefix, str(config.list_version), endpoints, remote,
        tagging=Tagging(counted=not config.endpoints),  # AWS itself tells
    )  # fmt: skip


def _client(config: S3Side, url: str | None, provider: CredentialProvider) -> S3Client:
    link = Transport(
        verify_tls=config.tls.verify, ca_bundle=config.tls.ca_bundle, proxy=config.proxy, bind=config.bind
    )
    return S3Client(
        config.bucket,
        credentials=provider,
        endpoint_url=url,
        region=config.region,
        addressing=config.addressing,
        link=link,
    )


def _remote(config: S3Side, url: str | None, credentials_file: Path | None) -> Remote:
    extra = config if isinstance(config, S3Destination) else S3Destination(bucket=config.bucket)
    return Remote(
        bucket=config.bucket,
        endpoint_url=url,
        region=config.region,
        credentials_file=credentials_file,
        verify_tls=config.tls.verify,
        ca_bundle=config.tls.ca_bundle,
        proxy=config.proxy,
        bind=config.bind,
        addressing=config.addressing,
        storage_class=extra.storage_class,
        acl=extra.acl,
        sse=extra.sse_algorithm,
        sse_kms_key_id=extra.sse_kms_key_id,
    )


def credential_source(config: S3Side) -> CredentialSource:
    """Where a side's credentials come from."""
    given = config.credentials
    match given:
        case None:
            return CredentialSource()
        case ProfileCredentials():
            return CredentialSource(profile=given.profile)
        case SystemdCredentials():
            return CredentialSource(systemd=given.systemd)
        case EnvCredentials():
            return CredentialSource(env=given.env)
        case AnonymousCredentials():
            return CredentialSource(anonymous=True)
        case KeyCredentials():
            secret = given.secret_access_key.get_secret_value()
            token = None if given.session_token is None else given.session_token.get_secret_value()
            register_secret(secret)
            if token is not None:
                register_secret(token)
            return CredentialSource(keys=Credentials(given.access_key_id, secret, token))


def given_at_start(config: Config) -> list[str]:
    """Whose credentials the service manager hands to a process only when it starts it."""
    sides = config.s3_sides()
    given = (SystemdCredentials, EnvCredentials)
    return sorted({str(credential_source(side)) for side in sides if isinstance(side.credentials, given)})


def allowed(config: Config) -> Allowed:
    """Between what is chosen how much travels at a time; a bound alone moves the other where it must."""

    def between(given: GivenBounds, usual: Bounds) -> Bounds:
        least = min(usual.least, given.max or usual.least) if given.min is None else given.min
        return Bounds(least, max(usual.most, least) if given.max is None else given.max)

    limits = config.limits
    return Allowed(between(limits.workers, ANY.workers), between(limits.parts, ANY.parts))


def timetables(config: Config) -> dict[Direction, Timetable]:
    """The limits of the link as configured."""
    bandwidth = config.limits.bandwidth
    return {Direction.PULL: bandwidth.pull, Direction.PUSH: bandwidth.push}
