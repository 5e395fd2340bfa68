"""`s5jtd check`: is everything there that a transfer needs, and do the endpoints answer?"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from s5jtd import log
from s5jtd.commands import installed
from s5jtd.commands.owner import Owner, as_owner, hand_over, other_owner, with_home
from s5jtd.config import (
    Config,
    FolderDestination,
    FolderSource,
    JobConfig,
    S3Side,
    expand_volumes,
    load,
)
from s5jtd.engine import language
from s5jtd.engine.s5cmd import S5cmd
from s5jtd.engine.tryout import try_out
from s5jtd.errors import ConfigError, EndpointError, EndpointRefused, EngineError, Exit, S5jtError
from s5jtd.jobs import build_link, credential_source, marks_of
from s5jtd.ledger.endpoint_checks import FILE
from s5jtd.model import Side, printable
from s5jtd.s3.credentials import CredentialProvider
from s5jtd.s3.endpoints import Endpoint
from s5jtd.s3.reaching import Step, reach
from s5jtd.s3.trial import Capabilities, Trial
from s5jtd.stages.job import Link
from s5jtd.status import rfc3339
from s5jtd.units import format_bytes
from s5jtd.volumes import probe, space
from s5jtd.volumes.probe import volume_error


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    ok: bool
    detail: str
    hint: str = ""
    exit: int = Exit.FAILED
    about: str = "installation"  #: or "credentials" or "access"
    steps: tuple[Step, ...] = ()  #: what was looked at on the way


#: Exit codes of the scripts that s5jtd replaces, the first that applies.
LEGACY_EXITS = {"installation": 1, "credentials": 2, "access": 3}


def check(path: Path, *, as_json: bool, offline: bool, install: bool = False, legacy: bool = False) -> int:
    """Look at everything and report all of it; the exit code is that of the first thing amiss.

    `install` looks at the installation too, `legacy` ends with the codes of `LEGACY_EXITS`.

    Raises:
        ConfigError: the configuration cannot be used; without it there is nothing to look at.
    """
    log.configure("error")
    try:
        config = load(path)
    except ConfigError as error:
        if not legacy:
            raise
        _show([Finding("configuration", False, str(error), error.hint)], {})
        return LEGACY_EXITS["installation"]
    with_home(other_owner(config.state_dir))
    findings = [Finding("configuration", True, str(path)), *_local(config)]
    if install:
        findings += [Finding(*one) for one in installed.look(config, path)]
    findings += [finding for job in config.jobs for finding in _job_credentials(job)]
    endpoints: list[dict[str, Any]] = []
    if not offline:
        for job in config.jobs:
            findings += _job(job, config.state_dir, endpoints)
    if not offline:
        findings += _hand_on(config.state_dir, endpoints)
    obstacles = {job.name: _obstacles(job, findings, endpoints, offline=offline) for job in config.jobs}
    if as_json:
        shown = [{k: v for k, v in asdict(f).items() if k != "steps"} for f in findings]
        feasible = {name: None if why is None else not why for name, why in obstacles.items()}
        answer = {
            "findings": shown, "endpoints": endpoints, "feasible": feasible, "obstacles": obstacles,
        }  # fmt: skip
        click.echo(json.dumps({**answer, "config": config.public()}, indent=1))
    else:
        _show(findings, obstacles)
    bad = [finding for finding in findings if not finding.ok]
    if legacy:
        return next((code for about, code in LEGACY_EXITS.items() if about in {f.about for f in bad}), 0)
    return int(bad[0].exit) if bad else Exit.DONE


#: No larger object is fetched to see whether it can be.
_TRYOUT_BYTES_MAX: Final = 16 << 20
_MARKS = {"ok": "+", "warning": "!", "failed": "-", "skipped": " "}


def _show(findings: list[Finding], obstacles: dict[str, list[str] | None]) -> None:
    for finding in findings:
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.subject}: {finding.detail}")
        if finding.hint and not finding.ok:
            click.echo(f"      hint: {finding.hint}")
        for step in finding.steps:
            click.echo(f"      {_MARKS[step.state]} {step.name:<9} {step.detail}")
            if step.state == "warning" and step.hint:
                click.echo(f"        {'':9} hint: {step.hint}")
    for name, why_not in obstacles.items():
        if why_not is None:
            verdict = "not asked"
        elif why_not:
            verdict = f"a transfer is NOT feasible: {'; '.join(why_not)}"
        else:
            verdict = "a transfer is feasible"
        click.echo(f"job {name}: {verdict}")


def _tried(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(subject, True, look())
    except S5jtError as error:
        return Finding(subject, False, str(error), error.hint, error.exit)
    except OSError as error:
        return Finding(subject, False, f"{error.filename or subject}: {error.strerror}", "check who owns it")


def _local(config: Config) -> Iterator[Finding]:
    yield _tried("s5cmd", lambda: S5cmd().check())
    owner = other_owner(config.state_dir)
    for name in ("state_dir", "runtime_dir"):
        folder = getattr(config, name)
        if owner is None or folder.exists():  # else the unit makes it, with its owner
            yield _tried_as(owner, name, partial(_writable, folder))
    volumes = expand_volumes(config)
    for volume in volumes:
        yield _tried_as(owner, f"volume {volume.name}", partial(_volume, volume.path, volume.reserve))
    if not volumes and any(job.mode == "staged" for job in config.jobs):
        yield Finding("volumes", False, "none of the configured folders exists", "mount them")


def _tried_as(owner: Owner | None, subject: str, look: Callable[[], str]) -> Finding:
    """What root may write says nothing of the daemon, so it is tried as the daemon's user."""
    return Finding(**json.loads(as_owner(owner, lambda: json.dumps(asdict(_tried(subject, look))))))


def _job_credentials(job: JobConfig) -> Iterator[Finding]:
    for side, config in ((Side.SOURCE, job.source), (Side.DESTINATION, job.destination)):
        if isinstance(config, S3Side):
            provider = CredentialProvider(credential_source(config))
            found = _tried(f"{job.name} {side} credentials", partial(_signs, provider))
            yield replace(found, about="credentials")


def _signs(provider: CredentialProvider) -> str:
    provider.current()
    return str(provider)


def _writable(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return str(folder)


def _volume(path: Path, reserve: float) -> str:
    """Look without stamping anything: a check changes nothing."""
    try:
        fd = probe.open_root(path)
        try:
            probe.write_probe(fd)
            room = probe.probe(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise volume_error(error, str(path)) from error
    usable = space.usable_bytes(room, reserve, 0)
    return f"{path}, {format_bytes(usable)} usable of {format_bytes(room.total_bytes)}"


def _job(job: JobConfig, state_dir: Path, endpoints: list[dict[str, Any]]) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="s5jtd-check-") as folder:
        for side, config in ((Side.SOURCE, job.source), (Side.DESTINATION, job.destination)):
            link = build_link(side, config, job.name, Path(folder), marks_of(state_dir))
            for endpoint in link.endpoints.all():
                if isinstance(config, S3Side):
                    yield _endpoint(job.name, link, endpoint, endpoints)
                else:
                    owner = other_owner(state_dir)
                    yield _folder(job.name, link, endpoint, config, owner, endpoints)


def _folder(
    job: str,
    link: Link,
    endpoint: Endpoint,
    config: FolderSource | FolderDestination,
    owner: Owner | None,
    endpoints: list[dict[str, Any]],
) -> Finding:
    """Whether the daemon's user may do with a folder what the job does with it."""

    def look() -> str:
        endpoint.client.probe()
        if link.side is Side.DESTINATION:
            return "is there, and may be written to"
        leaves = isinstance(config, FolderSource) and config.after != "keep"
        if not os.access(config.directory, os.X_OK | (os.W_OK if leaves else 0)):
            raise EndpointRefused(
                f"{config.directory}: files can neither be read nor leave" if leaves else
                f"{config.directory}: its files cannot be read",
                hint=f"let the daemon's user {'write into' if leaves else 'search'} it",
            )  # fmt: skip
        return "is there, and may be read"

    found = replace(_tried_as(owner, f"{job} {link.side} {endpoint.url}", look), about="access")
    endpoints.append({
        "job": job, "side": link.side.value, "url": endpoint.url, "ok": found.ok,
        **asdict(Capabilities()), "verify_tls": True,
        "error": None if found.ok else found.detail, "hint": found.hint or None, "steps": [],
    })  # fmt: skip
    return found


def _endpoint(job: str, link: Link, endpoint: Endpoint, endpoints: list[dict[str, Any]]) -> Finding:
    """Reach it, be let in, list, ask what it can do: what a transfer needs of an endpoint."""
    client = endpoint.client
    trial = Trial(client, link.prefix, link.list_version, destination=link.side is Side.DESTINATION)
    try:
        steps = [*reach(client.address(), client.link)]
        if all(step.state != "failed" for step in steps):
            steps += trial.steps()
        if link.side is Side.SOURCE and all(step.state != "failed" for step in steps):
            steps += _by_s5cmd(link, endpoint, trial)
    except EndpointError as error:
        steps = [Step("address", "failed", error.detail, error.hint)]
    finally:
        client.close()
    bad = next((step for step in steps if step.state == "failed"), None)
    endpoints.append({
        "job": job, "side": link.side.value, "url": endpoint.url, "ok": bad is None,
        **asdict(trial.found), "verify_tls": client.link.verify_tls,
        "error": bad and f"{bad.name}: {bad.detail}", "hint": bad and bad.hint,
        "steps": [{"name": s.name, "state": s.state, "detail": s.detail, "hint": s.hint} for s in steps],
    })  # fmt: skip
    return Finding(
        f"{job} {link.side} {endpoint.url}",
        bad is None,
        f"answers in {trial.found.latency_ms} ms" if bad is None else f"{bad.name}: {bad.detail}",
        bad.hint if bad else "",
        Exit.TEMPORARY if bad and bad.may_pass else Exit.FAILED,
        "access",
        tuple(steps),
    )


def _by_s5cmd(link: Link, endpoint: Endpoint, trial: Trial) -> Iterator[Step]:
    """Whether the usual engine can read there, if it would be used and there is something small to read."""
    one, remote = trial.smallest, link.remote(endpoint)
    if remote.directory is not None or remote.addressing == "virtual":
        return
    if one is None or one.size > _TRYOUT_BYTES_MAX or language.bucket_refusal(remote.bucket):
        return
    if language.refusal(one.key) or remote.bind is not None:  # which the daemon's relay knows how to
        return
    try:
        verdict = try_out(remote, one.key, one.size)
    except EngineError as error:
        yield Step("s5cmd", "warning", str(error), error.hint)
        return
    trial.found.s5cmd = verdict.fits
    if verdict.fits:
        yield Step("s5cmd", "ok", "reads from it")
    elif verdict.fits is None:
        yield Step("s5cmd", "warning", f"{printable(one.key)} could not be read: {verdict.message}")
    else:
        yield Step("s5cmd", "ok", f"cannot read from it, so the native engine will: {verdict.message}")


def _hand_on(state_dir: Path, endpoints: list[dict[str, Any]]) -> Iterator[Finding]:
    """Write what scripts look for (the failed ones; empty when none is), and what the daemon goes by."""
    now_ms = int(time.time() * 1000)
    failed = [line for line in endpoints if not line["ok"]]
    answers = {
        "failed_endpoints.json": {"checked_at": rfc3339(now_ms), "failed_endpoints": failed},
        FILE: {"checked_at_ms": now_ms, "endpoints": endpoints},
    }
    for name, answer in answers.items():
        path = state_dir / name
        try:
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(answer, indent=1) + "\n")
            hand_over(temporary, other_owner(state_dir))
            temporary.rename(path)
        except OSError as error:
            yield Finding(name, False, f"{path}: {error.strerror}", "check who owns state_dir")


def _obstacles(
    job: JobConfig, findings: list[Finding], endpoints: list[dict[str, Any]], *, offline: bool
) -> list[str] | None:
    """What stands in the way of a transfer; None where nobody asked."""
    if offline:
        return None
    found = []
    for side in ("source", "destination"):
        lines = [line for line in endpoints if line["job"] == job.name and line["side"] == side]
        if not any(line["ok"] for line in lines):
            found.append(f"no endpoint of the {side} works")
    if not all(f.ok for f in findings if f.subject == "s5cmd"):
        found.append("s5cmd cannot be run")
    if job.mode == "staged" and not any(f.ok for f in findings if f.subject.startswith("volume ")):
        found.append("no volume can be used")
    return found
