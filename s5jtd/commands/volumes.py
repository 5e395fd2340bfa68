"""`s5jtd volumes`: mark folders as volumes, and take in volumes from other appliances."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from s5jtd.commands.owner import hand_over, other_owner
from s5jtd.config import Config
from s5jtd.errors import Exit, ObjectError, UsageError, VolumeError
from s5jtd.integrity.hashing import Wanted, hash_file
from s5jtd.ledger.rows import Staged
from s5jtd.stages import records
from s5jtd.status import rfc3339
from s5jtd.units import format_bytes
from s5jtd.volumes import chunks, probe
from s5jtd.volumes.chunks import ChunkFolder, file_name
from s5jtd.volumes.probe import volume_error
from s5jtd.volumes.seals import load_key
from s5jtd.volumes.stamp import new_stamp, read_stamp, write_stamp


def stamp(config: Config, path: Path) -> int:
    """Mark a folder as a new volume of this appliance.

    Raises:
        UsageError: it carries a stamp already.
        VolumeError: it cannot be written to.
    """
    key = load_key(config.state_dir)
    with _opened(path) as fd:
        _refuse_stamped(fd, path)
        probe.write_probe(fd)
        fresh = new_stamp(created_at_ms=int(time.time() * 1000), mount_root=probe.is_mount_root(fd))
        write_stamp(fd, fresh, key)
    hand_over(path, other_owner(config.state_dir))
    click.echo(f"{path} is volume {fresh.uuid}")
    return Exit.DONE


@dataclass(slots=True)
class _Found:
    """One sealed chunk of another appliance, checked against its own seal."""

    name: str
    header: dict[str, Any]
    whole: list[Staged] = field(default_factory=list)
    spoiled: list[tuple[Staged, str]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of what is whole."""
        return sum(staged.digests.size for staged in self.whole)


def adopt(config: Config, path: Path, *, assume_yes: bool, dry_run: bool) -> int:
    """Show what another appliance left on a volume, ask, and make the volume ours.

    Each file is read and compared with its seal first: what the other appliance proved is believed
    only as far as the bytes still say the same.

    Raises:
        UsageError: it is no volume, it is ours already, or the answer was no.
        VolumeError: it cannot be read or written.
    """
    key = load_key(config.state_dir)
    with _opened(path) as fd:
        old = read_stamp(fd, None)
        if old is None:
            raise UsageError(f"{path} carries no stamp", hint=f"mark it as new: s5jtd volumes stamp {path}")
        if _is_ours(fd, key):
            raise UsageError(f"{path} is volume {old.uuid} of this appliance already")
        found = [_looked_at(fd, name) for name in chunks.chunk_names(fd)]
        sealed = [one for one in found if one is not None]
        click.echo(f"volume {old.uuid}, of another appliance, attached there {old.attach_epoch} times")
        origins = {job.name: records.origin(job) for job in config.jobs}
        _show(sealed, len(found) - len(sealed), origins)
        if dry_run:
            return Exit.DONE
        if not assume_yes and not click.confirm(f"take {path} in?", default=False, err=True):
            raise UsageError("nothing was changed")
        for one in sealed:
            if not _is_strange(one, origins):
                _seal_anew(fd, one, key)
        _hand_over(fd, config.state_dir)
        # Last: until the stamp is ours, a second try finds everything as it was.
        write_stamp(fd, dataclasses.replace(old, attach_epoch=old.attach_epoch + 1), key)
    hand_over(path, other_owner(config.state_dir))  # the other appliance's user had another number
    click.echo(
        f"{path} is ours now; put it under `volumes` in the configuration, and it is taken up by itself"
    )
    return Exit.MISMATCH if any(one.spoiled for one in sealed) else Exit.DONE


def _looked_at(root_fd: int, name: str) -> _Found | None:
    """One chunk, its files compared with its seal; None where it was never sealed."""
    try:
        with ChunkFolder(root_fd, name) as folder:
            header, staged = records.read_seal(folder, None)
            found = _Found(name, header)
            for one in staged:
                _compare(folder, one, found)
            return found
    except (FileNotFoundError, VolumeError):
        return None


def _compare(folder: ChunkFolder, one: Staged, found: _Found) -> None:
    try:
        there = hash_file(folder.data_fd, file_name(one.item.id), Wanted())
    except ObjectError as error:
        if file_name(one.item.id) in {entry.name for entry in folder.files()}:
            found.spoiled.append((one, error.detail))
        return  # a file that is not there was delivered, and released
    if (there.size, there.crc64nvme) == (one.digests.size, one.digests.crc64nvme):
        found.whole.append(one)
    else:
        found.spoiled.append((one, "its bytes are no longer those that were sealed"))


def _is_strange(one: _Found, origins: Mapping[str, str]) -> bool:
    """Whether a job of this name moves something else here: its chunks must not go where ours go."""
    origin = one.header.get("source")  # none in the seals of the first version
    return origin is not None and origins.get(str(one.header.get("job")), origin) != origin


def _show(sealed: list[_Found], unsealed: int, origins: Mapping[str, str]) -> None:
    for one in sealed:
        job, origin = str(one.header.get("job")), one.header.get("source")
        since = rfc3339(one.header.get("written_at_ms")) or "at an unknown time"
        came = f" from {origin}" if origin else ""
        click.echo(
            f"chunk {one.name} of job {job}{came}, sealed {since}:"
            f" {len(one.whole)} objects, {format_bytes(one.size)}"
        )
        if job not in origins:
            click.echo("  not configured here: nothing of it moves until it is")
        elif _is_strange(one, origins):
            click.echo(f"  left as it is: job {job} here moves {origins[job]}")
        for staged, why in one.spoiled:
            click.echo(f"  left out: {staged.item.key!r}: {why}")
    count, size = sum(len(one.whole) for one in sealed), sum(one.size for one in sealed)
    spoiled = sum(len(one.spoiled) for one in sealed)
    click.echo(f"in all {count} objects, {format_bytes(size)}, are as they were sealed; {spoiled} are not")
    if unsealed:
        click.echo(f"{unsealed} chunks were never sealed: their objects are pulled again from the source")


def _seal_anew(root_fd: int, one: _Found, key: bytes) -> None:
    with ChunkFolder(root_fd, one.name) as folder:
        records.reseal(folder, one.header, one.whole, key)


def _hand_over(root_fd: int, state_dir: Path) -> None:
    """What another appliance's user owned belongs to ours from now on; only root can do that, and need."""
    owner = state_dir.stat()
    if os.geteuid() != 0 or (owner.st_uid, owner.st_gid) == (0, 0):
        return
    os.fchown(root_fd, owner.st_uid, owner.st_gid)
    for _, folders, files, fd in os.fwalk(chunks.TREE, dir_fd=root_fd, follow_symlinks=False):
        os.fchown(fd, owner.st_uid, owner.st_gid)
        for name in (*folders, *files):
            os.chown(name, owner.st_uid, owner.st_gid, dir_fd=fd, follow_symlinks=False)


def _is_ours(fd: int, key: bytes) -> bool:
    try:
        return read_stamp(fd, key) is not None
    except VolumeError:
        return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        fd = probe.open_root(path)
        try:
            yield fd
        finally:
            os.close(fd)
    except OSError as error:
        raise volume_error(error, str(path)) from error


def _refuse_stamped(fd: int, path: Path) -> None:
    try:
        old = read_stamp(fd, None)
    except VolumeError as error:
        raise UsageError(
            f"{path} carries a damaged stamp: {error.detail}",
            hint=f"look at what is there; only then remove {path}/.s5jtd-volume and stamp it again",
        ) from error
    if old is not None:
        raise UsageError(
            f"{path} is volume {old.uuid} already",
            hint=f"if it comes from another appliance: s5jtd volumes adopt {path}",
        )
