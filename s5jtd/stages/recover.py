"""What an earlier life left on a volume, settled before any stage may see the volume."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from s5jtd.errors import Busy, VolumeError, VolumeFailed
from s5jtd.ledger.rows import Chunk, Item, Staged
from s5jtd.ledger.states import ChunkState
from s5jtd.ledger.store import Ledger
from s5jtd.problems import Problems
from s5jtd.stages import records
from s5jtd.stages.job import Job
from s5jtd.stages.pull import Pull
from s5jtd.volumes import chunks
from s5jtd.volumes.chunks import ChunkFolder, file_name
from s5jtd.volumes.probe import volume_error
from s5jtd.volumes.volume import Volume

log = structlog.get_logger(__name__)

_ALIVE = (ChunkState.SEALED, ChunkState.PUSHING, ChunkState.RESTING)
#: Also one that was put off with half of a large object, and one that is being pulled.
_KNOWN = (ChunkState.PLANNED, ChunkState.PULLING, *_ALIVE)


class Recover:
    """Brings ledger and volumes to one opinion: what is durable and proven stays, the rest goes."""

    def __init__(
        self,
        ledger: Ledger,
        problems: Problems,
        jobs: Callable[[], dict[int, Job]],
        puller: Callable[[Volume], Pull],
    ) -> None:
        """`puller` gives the puller that knows how to check a half-pulled chunk of a volume."""
        self._ledger = ledger
        self._problems = problems
        self._jobs = jobs
        self._puller = puller

    def __call__(self, volume: Volume, beat: Callable[[], None]) -> None:
        """Settle one volume; of one that can only be read, what can be without a change to it.

        Raises:
            VolumeError: it cannot be read or written.
        """
        try:
            self._half_pulled(volume, beat)
            self._of_no_chunk(volume)
            if not volume.only_read:
                self._overtaken(volume)
        except OSError as error:
            raise volume_error(error, str(volume.path)) from error

    def look_again(self, volume: Volume) -> None:
        """Decide, on a volume in use, about folders that could not be decided about when it was attached.

        Raises:
            VolumeError: it cannot be read or written.
        """
        try:
            # In this order: a folder's chunk is in the ledger before the folder is made.
            there = frozenset(chunks.chunk_names(volume.fd))
            known = {chunk.name for chunk in self._ledger.views.chunks(volume.ledger_id, *_KNOWN)}
            for name in sorted(there - known):
                with contextlib.suppress(Busy):
                    self._settle_stranger(volume, name)
            self._overtaken(volume)
        except OSError as error:
            raise volume_error(error, str(volume.path)) from error

    def _half_pulled(self, volume: Volume, beat: Callable[[], None]) -> None:
        puller = self._puller(volume)
        views = self._ledger.views
        for chunk in views.chunks(volume.ledger_id, ChunkState.PLANNED, ChunkState.PULLING):
            there = len(views.pulling(chunk.id))
            kept = puller.salvage(chunk, beat)
            log.info("chunk_salvaged", chunk=chunk.name, volume=volume.name, objects=kept, of=there)

    def _of_no_chunk(self, volume: Volume) -> None:
        """What ledger and volume do not agree on: a lost or older ledger, or simply leftovers."""
        self._problems.clear_about("chunk_", volume.name)
        alive = {chunk.name: chunk for chunk in self._ledger.views.chunks(volume.ledger_id, *_ALIVE)}
        there = frozenset(chunks.chunk_names(volume.fd))
        for chunk in alive.values():
            if chunk.name not in there and chunk.state is not ChunkState.PUSHING:
                lost = self._ledger.lose(chunk)
                log.warning("chunk_lost", chunk=chunk.name, volume=volume.name, objects=lost)
        waiting = {one.name for one in self._ledger.views.chunks(volume.ledger_id, ChunkState.PLANNED)}
        for name in sorted(there - alive.keys() - waiting):
            try:
                self._settle_stranger(volume, name)
            except Busy as error:
                raise VolumeFailed(str(error), hint=error.hint) from error

    def _overtaken(self, volume: Volume) -> None:
        """Remove what waits for nobody beside parked objects: versions that newer ones took the place of.

        Its seal still vouches for such a file, and a ledger that lost its memory would send it.
        """
        for chunk in self._ledger.views.chunks(volume.ledger_id, ChunkState.RESTING):
            keep = frozenset(file_name(id_) for id_ in self._ledger.views.files(chunk.id))
            with contextlib.suppress(Busy, FileNotFoundError), ChunkFolder(volume.fd, chunk.name) as folder:
                folder.sweep(keep)

    def _settle_stranger(self, volume: Volume, name: str) -> None:
        if self._fold_in(volume, name) and not volume.only_read:
            chunks.remove(volume.fd, name)

    def _fold_in(self, volume: Volume, name: str) -> bool:
        """Take what a sealed chunk holds back in; whether its folder holds nothing any more that counts."""
        try:
            folder = ChunkFolder(volume.fd, name)
        except FileNotFoundError:
            return True  # its making was cut
        with folder:
            try:
                header, sealed = records.read_seal(folder, volume.key)
            except FileNotFoundError:
                return True  # never sealed: what it held is pulled again
            except VolumeError as error:
                self._unreadable(volume, name, error)
                return False
            job = self._job_of(header)
            if job is None:
                self._no_job(volume, name, header)
                return False
            return self._adopt(volume, folder, job, sealed)

    def _adopt(self, volume: Volume, folder: ChunkFolder, job: Job, sealed: Sequence[Staged]) -> bool:
        here = [one for one in sealed if folder.holds(file_name(one.item.id), one.item.size)]
        stay = volume.only_read is not None
        adoption = self._ledger.adopt(job.id, volume.ledger_id, folder.name, here, stay=stay)
        if not volume.only_read:
            folder.unlink(file_name(id_) for id_ in adoption.needless)
        if adoption.kept or adoption.taken:
            log.info(
                "chunk_folded_in", chunk=folder.name, volume=volume.name,
                objects=len(adoption.taken), kept=adoption.kept,
            )  # fmt: skip
        if adoption.chunk is None:
            return not adoption.kept
        staged = [
            replace(one, item=adoption.taken[one.item.id]) for one in here if one.item.id in adoption.taken
        ]
        in_place = adoption.chunk.name == folder.name
        if in_place and not volume.only_read:
            folder.sweep(frozenset(file_name(one.item.id) for one in staged))
        elif not in_place:
            _move_over(volume, folder, job, adoption.chunk, adoption.taken, staged)
        self._ledger.settle_pull(adoption.chunk, staged, [], None)
        return not (in_place or adoption.kept)

    def _unreadable(self, volume: Volume, name: str, error: VolumeError) -> None:
        """A seal is written whole or not at all: this one was damaged since, and its bytes may be good."""
        self._problems.raise_(
            "chunk_unreadable",
            f"{volume.name} {name}",
            f"volume {volume.name} holds chunk {name}, and what it is cannot be told: {error}",
            "what the ledger lacks is pulled again; when all of it is delivered, the folder can be removed",
        )

    def _job_of(self, header: dict[str, Any]) -> Job | None:
        return next((job for job in self._jobs().values() if job.name == header.get("job")), None)

    def _no_job(self, volume: Volume, name: str, header: dict[str, Any]) -> None:
        self._problems.raise_(
            "chunk_without_job",
            f"{volume.name} {name}",
            f"volume {volume.name} holds chunk {name} of job {header.get('job')}, which is not configured",
            "configure the job again to deliver it; nothing of it is removed",
        )


def _move_over(
    volume: Volume,
    old: ChunkFolder,
    job: Job,
    chunk: Chunk,
    taken: Mapping[int, Item],
    staged: Sequence[Staged],
) -> None:
    """Give the files that were taken their new names, in a folder of their own.

    The new folder vouches for them before the first one comes: each file is at any moment in one of two
    folders whose seal names it, wherever the power is cut.
    """
    with ChunkFolder(volume.fd, chunk.name, create=True) as new:
        records.write_promise(new, job, chunk, volume, [one.item for one in staged])
        records.write_seal(new, job, chunk, volume, staged)
        for id_, item in taken.items():
            os.rename(
                file_name(id_), file_name(item.id), src_dir_fd=old.data_fd, dst_dir_fd=new.data_fd
            )  # fmt: skip
        volume.sync()
        volume.verify()
