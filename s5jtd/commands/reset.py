"""`s5jtd reset`: forget runs and empty the staging; it says what goes, and asks."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from s5jtd.app import lock_state_dir
from s5jtd.commands.agree import agree
from s5jtd.config import Config, expand_volumes
from s5jtd.errors import Busy, Exit, UsageError, VolumeError
from s5jtd.ledger import forget, snapshots
from s5jtd.ledger.forget import JobTally, VolumeTally
from s5jtd.units import format_bytes
from s5jtd.volumes import chunks
from s5jtd.volumes.chunks import ChunkFolder
from s5jtd.volumes.probe import volume_error
from s5jtd.volumes.seals import load_key
from s5jtd.volumes.visit import visit


@dataclass(slots=True)
class _Staging:
    """What a reset removes from one volume."""

    name: str
    path: Path
    root_fd: int
    uuid: str
    chunks: list[str] = field(default_factory=list)
    files: int = 0
    size: int = 0  #: bytes


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that a reset would do."""

    job: str | None
    jobs: Sequence[JobTally]
    staging: Sequence[_Staging]
    told: Mapping[str, VolumeTally]  #: what the ledger says of each volume, by UUID
    absent: Sequence[str]  #: why configured volumes cannot be looked at


def reset(config: Config, *, job: str | None, yes: bool, dry_run: bool) -> int:
    """Forget one job's runs, or all of them, with what they left on the volumes.

    Raises:
        Busy: the daemon runs, or an s5cmd that outlived it still writes.
        UsageError: nobody ever heard of such a job; or the answer was no.
        S5jtError: the ledger or a volume cannot be read or written.
    """
    ledger = config.state_dir / "ledger.db"
    with contextlib.ExitStack() as stack:
        if not dry_run:
            stack.callback(os.close, lock_state_dir(config.state_dir))
        plan = _look(stack, config, ledger, job)
        _tell(plan)
        if dry_run:
            return Exit.DONE
        if not (plan.jobs or any(one.chunks for one in plan.staging)):
            return Exit.DONE
        agree(yes, "This cannot be undone.", "reset")
        _forget(ledger, plan)
        for one in plan.staging:
            _empty(one)
    click.echo("done; the next scan finds what the destination holds, and that is not moved again")
    return Exit.DONE


def _look(stack: contextlib.ExitStack, config: Config, ledger: Path, job: str | None) -> _Plan:
    known = forget.jobs(ledger, job) if ledger.exists() else []
    volumes = forget.volumes(ledger, job) if ledger.exists() else []
    if job is not None and not known and job not in [one.name for one in config.jobs]:
        names = sorted({one.name for one in config.jobs} | {one.name for one in _all_jobs(ledger)})
        raise UsageError(f"there is no job {job!r}", hint=f"the jobs are: {', '.join(names)}")
    told = {one.uuid: one for one in volumes}
    staging, absent = [], []
    key = load_key(config.state_dir)
    for volume in expand_volumes(config):
        try:
            root_fd, stamp = stack.enter_context(visit(volume.path, key))
            one = _Staging(volume.name, volume.path, root_fd, stamp.uuid)
            _look_at(one, told.get(stamp.uuid), job, key)
            staging.append(one)
        except VolumeError as error:
            absent.append(f"{volume.name}: {error}")
        except OSError as error:
            absent.append(f"{volume.name}: {volume_error(error, str(volume.path))}")
    return _Plan(job, known, staging, told, absent)


def _all_jobs(ledger: Path) -> Sequence[JobTally]:
    return forget.jobs(ledger, None) if ledger.exists() else []


def _look_at(one: _Staging, told: VolumeTally | None, job: str | None, key: bytes) -> None:
    """Find the chunk folders that go: by the ledger's word, or by their own."""
    try:
        names = chunks.chunk_names(one.root_fd)
    except FileNotFoundError:
        return  # nothing was ever staged there
    for name in names:
        with contextlib.suppress(FileNotFoundError), _open(one, name) as folder:
            if job is None or (told is not None and name in told.chunks) or _job_of(folder, key) == job:
                sizes = [entry.stat(follow_symlinks=False).st_size for entry in folder.files()]
                one.chunks.append(name)
                one.files += len(sizes)
                one.size += sum(sizes)
                continue
    if job is None:
        # Folders whose making was cut have nothing inside that could be opened.
        one.chunks = list(names)


@contextlib.contextmanager
def _open(one: _Staging, name: str) -> Iterator[ChunkFolder]:
    try:
        folder = ChunkFolder(one.root_fd, name)
    except Busy as error:
        raise Busy(f"chunk {name} on {one.path}", hint=error.hint) from error
    with folder:
        yield folder


def _job_of(folder: ChunkFolder, key: bytes) -> str | None:
    """Whose chunk it is, as its own records tell."""
    for read in (chunks.read_manifest, chunks.read_seal):
        with contextlib.suppress(FileNotFoundError, VolumeError, IndexError):
            return str(read(folder, key)[0].get("job"))
    return None


def _tell(plan: _Plan) -> None:
    whose = f"job {plan.job}" if plan.job else "all jobs"
    click.echo(f"A reset of {whose} forgets and removes:")
    for job in plan.jobs:
        states = ", ".join(f"{count} {word}" for word, count in job.objects.items()) or "none"
        click.echo(f"  ledger  job {job.name}: {sum(job.objects.values())} objects ({states})")
    if not plan.jobs:
        click.echo("  ledger  nothing")
    for one in plan.staging:
        click.echo(
            f"  {one.name}  {one.path}: {len(one.chunks)} chunks with {one.files} files,"
            f" {format_bytes(one.size)}"
        )
        told = plan.told.get(one.uuid)
        if told is not None and told.undelivered:
            click.echo(
                f"      of these {told.undelivered} objects, {format_bytes(told.undelivered_size)}, were not"
                " delivered: what the source no longer has is lost"
            )
    here = {one.uuid for one in plan.staging}
    for uuid, told in plan.told.items():
        if uuid not in here and told.chunks:
            click.echo(
                f"  {told.name}  {told.path}: not here; {len(told.chunks)} chunks with {told.objects}"
                f" objects, {format_bytes(told.size)}, stay on it and are taken in again when it returns"
            )
    for why in plan.absent:
        click.echo(f"  not looked at: {why}", err=True)
    click.echo(
        "It keeps the volumes' stamps, keys, run reports, and all that is at the source and the destination."
    )


def _forget(ledger: Path, plan: _Plan) -> None:
    """Rows first: were it cut here, the chunks would only be taken in again."""
    if not plan.jobs:
        return
    if plan.job is None or len(_all_jobs(ledger)) == 1:
        forget.forget_all(ledger)
    else:
        forget.forget_job(ledger, plan.job, _show_progress)
    # The newest copy must not bring back what was forgotten.
    snapshots.take(ledger)


def _show_progress(objects: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{objects} objects forgotten", nl=False, err=True)


def _empty(one: _Staging) -> None:
    try:
        for name in one.chunks:
            chunks.remove(one.root_fd, name)
        os.fsync(one.root_fd)
    except OSError as error:
        raise volume_error(error, str(one.path)) from error
