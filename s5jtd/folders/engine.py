"""Moves bytes between a chunk and a folder that is a side of a job; all else goes to another engine."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from s5jtd.engine.contract import Batch, Caller, End, Engine, Failure, Outcome, Remote, Run, Transfer
from s5jtd.errors import VolumeError
from s5jtd.folders import room
from s5jtd.folders.client import MARKER
from s5jtd.folders.copying import Stopped, copy
from s5jtd.folders.paths import Unfit, exact, opened_file, opened_parent, opened_root, unfit
from s5jtd.model import NO_BELONGINGS, Belongings, Direction
from s5jtd.volumes.probe import syncfs, syncfs_and_ask

#: Where files of a destination are written before they get their names; never listed.
TEMPORARY: Final = ".s5jtd-temporary"
_MARKER_TEXT: Final = (
    b"s5jtd delivers into this folder.  Without this file it takes the disk for not mounted, and waits.\n"
)
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO})
_FULL: Final = "no space is left in the folder"
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_IN_THE_WAY: Final = {
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.ELOOP: "a link stands where a folder is needed",
    errno.EISDIR: "a folder of that name is there",
    errno.ENAMETOOLONG: "the file system takes no name of that length",
    errno.EILSEQ: "the file system takes no such characters in a name",
    errno.EINVAL: "the file system takes no such name",
    errno.EXDEV: "another file system is mounted on the way; deliver into it by a job of its own",
}


class Unmarked(OSError):
    """The folder is not the one that was delivered to."""


class FolderEngine:
    """Copies by the kernel where it can, which on some file systems costs no space."""

    def __init__(self, other: Engine) -> None:
        """`other` takes every batch that goes to or comes from a server."""
        self.name = other.name
        self._other = other
        self._swept: set[Path | None] = set()
        self._lock = threading.Lock()
        self._spellings: dict[int, Callable[[str], str] | None] = {}

    def refuses(self, key: bytes, takes: Belongings = NO_BELONGINGS) -> str | None:
        """See `Engine.refuses`: of servers; which names a folder takes is told by `paths.unfit`."""
        return self._other.refuses(key, takes)

    def run(self, batch: Batch, caller: Caller) -> Run:
        """See `Engine.run`."""
        directory = batch.remote.directory
        if directory is None:
            return self._other.run(batch, caller)
        try:
            with opened_root(directory) as root_fd:
                if batch.direction is Direction.PULL:
                    _pull(batch, root_fd, caller)
                else:
                    self._push(batch, root_fd, caller)
        except Stopped:
            return Run(End.STOPPED, None)
        except VolumeError as error:  # the destination's file system: of what was written nothing is sure
            for transfer in batch.transfers:
                caller.on_outcome(Outcome(transfer.name, Failure.ENDPOINT, str(error)))
        except OSError as error:
            message = f"{directory}: {error.strerror}"
            for transfer in batch.transfers:
                caller.on_outcome(Outcome(transfer.name, Failure.ENDPOINT, message))
        return Run(End.EXITED, 0)

    # Into a folder

    def _push(self, batch: Batch, root_fd: int, caller: Caller) -> None:
        """Write all under other names, sync once, give them their names, sync once more, and say so."""
        with _temporary_folder(root_fd) as temporary_fd:
            self._make_ready(batch.remote, root_fd, temporary_fd)
            written: dict[str, tuple[Transfer, str]] = {}
            failed: dict[str, Outcome] = {}
            try:
                for transfer in batch.transfers:
                    try:
                        written[transfer.name] = transfer, _write(batch, transfer, temporary_fd, caller)
                    except OSError as error:
                        failed[transfer.name] = _outcome(transfer, error, Failure.ENDPOINT)
                        if error.errno == errno.ENOSPC and batch.remote.directory is not None:
                            # Of the destination, not of our volume: it is full for all of them.
                            room.refused(batch.remote.directory, transfer.size)
                            failed[transfer.name] = Outcome(transfer.name, Failure.ENDPOINT, _FULL)
                syncfs(root_fd)
                for transfer, name in written.values():
                    try:
                        self._name(root_fd, temporary_fd, name, transfer.key)
                    except (OSError, Unfit) as error:
                        failed[transfer.name] = _in_the_way(transfer, error)
                    caller.on_progress(0)
                syncfs_and_ask(root_fd)
            finally:
                for _transfer, name in written.values():
                    with contextlib.suppress(OSError):  # it has its own name by now
                        os.unlink(name, dir_fd=temporary_fd)
        for transfer in batch.transfers:
            caller.on_outcome(failed.get(transfer.name, Outcome(transfer.name)))

    def _make_ready(self, remote: Remote, root_fd: int, temporary_fd: int) -> None:
        """Look that it is the folder that was delivered to, or mark it as the one from now on.

        Once in a life also remove what an earlier one left half written.

        Raises:
            Unmarked: it was marked, and is not any more.
        """
        with self._lock:
            was_begun = remote.begun_mark is not None and remote.begun_mark.exists()
            if not _is_there(MARKER, root_fd):
                if was_begun:
                    raise Unmarked(errno.ENOENT, f"it has no {MARKER}, as if its disk were not mounted")
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with os.fdopen(os.open(MARKER, flags, 0o644, dir_fd=root_fd), "wb") as file:
                    file.write(_MARKER_TEXT)
            if remote.begun_mark is not None and not was_begun:
                syncfs(root_fd)
                remote.begun_mark.parent.mkdir(exist_ok=True)
                remote.begun_mark.touch()
            if remote.directory not in self._swept:
                for entry in os.listdir(temporary_fd):
                    os.unlink(entry, dir_fd=temporary_fd)
                self._swept.add(remote.directory)

    def _name(self, root_fd: int, temporary_fd: int, temporary: str, key: bytes) -> None:
        reason = unfit(key)
        if reason is not None:
            raise Unfit(reason)
        parts = key.split(b"/")
        keeps = self._spelling(root_fd, temporary_fd)
        if keeps is not None:
            if keeps(key.decode("utf-8", "surrogateescape")) != key.decode("utf-8", "surrogateescape"):
                raise Unfit("the file system does not keep the case of its letters")
            _meets_no_other_spelling(root_fd, parts)
        with opened_parent(root_fd, parts, create=True) as parent_fd:
            os.rename(temporary, parts[-1], src_dir_fd=temporary_fd, dst_dir_fd=parent_fd)

    def _spelling(self, root_fd: int, temporary_fd: int) -> Callable[[str], str] | None:
        """What becomes of a name where the file system takes two spellings for one; None: it does not."""
        device = os.fstat(root_fd).st_dev
        if device not in self._spellings:
            name = f"{secrets.token_hex(4)}-\u00e9aB"
            others = (name.upper(), name.lower(), name.replace("\u00e9", "e\u0301"))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o600, dir_fd=temporary_fd))
            try:
                shown = os.listdir(temporary_fd)
                self._spellings[device] = (
                    None
                    if not any(_is_there(other, temporary_fd) for other in others)
                    else next((change for change in (str, str.lower) if change(name) in shown), str.upper)
                )
            finally:
                os.unlink(name, dir_fd=temporary_fd)
        return self._spellings[device]


def _beat(caller: Caller, moved: int) -> None:
    """So many bytes more; Stopped where that was enough."""
    caller.on_progress(moved)
    if caller.stop():
        raise Stopped


def _pull(batch: Batch, root_fd: int, caller: Caller) -> None:
    follow = batch.remote.follow_links
    for transfer in batch.transfers:
        _beat(caller, 0)
        temporary = f"{transfer.name}1"  # as s5cmd's: what a crash leaves is swept with the chunk
        try:
            parts = transfer.key.split(b"/")
            with (
                opened_parent(root_fd, parts, follow=follow) as parent_fd,
                opened_file(parent_fd, parts[-1], follow=follow) as source_fd,
            ):
                if not stat.S_ISREG(os.fstat(source_fd).st_mode):
                    raise OSError(errno.ENXIO, "it is no regular file")
                with _new_file(temporary, batch.data_fd) as target_fd:
                    # One byte more tells that it grew, and a file without end fills no disk.
                    copy(source_fd, target_fd, transfer.size + 1, partial(_beat, caller))
            os.rename(temporary, transfer.name, src_dir_fd=batch.data_fd, dst_dir_fd=batch.data_fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=batch.data_fd)
            caller.on_outcome(_outcome(transfer, error, Failure.OTHER))
        else:
            caller.on_outcome(Outcome(transfer.name))


def _write(batch: Batch, transfer: Transfer, temporary_fd: int, caller: Caller) -> str:
    """Copy a file of the chunk under a name that nobody else has; that name."""
    name = secrets.token_hex(12)
    source_fd = os.open(
        transfer.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=batch.data_fd
    )
    try:
        with _new_file(name, temporary_fd) as target_fd:
            copy(source_fd, target_fd, transfer.size, partial(_beat, caller))
            _set_time(target_fd, transfer)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=temporary_fd)
        raise
    finally:
        os.close(source_fd)
    return name


def _set_time(target_fd: int, transfer: Transfer) -> None:
    """The time of last change that the object carries as rclone writes it, where it carries one."""
    seconds, _, fraction = transfer.takes.metadata.get("mtime", "").partition(".")
    try:
        changed_ns = int(seconds) * 10**9 + int(f"{fraction:0<9.9}" if fraction else 0)
        os.utime(target_fd, ns=(changed_ns, changed_ns))
    except (ValueError, OverflowError, OSError):
        return  # it carries none, or nonsense


@contextlib.contextmanager
def _new_file(name: str, folder_fd: int) -> Iterator[int]:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder_fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o666, dir_fd=folder_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary_folder(root_fd: int) -> Iterator[int]:
    with contextlib.suppress(FileExistsError):
        os.mkdir(TEMPORARY, 0o700, dir_fd=root_fd)
    descriptor = os.open(
        TEMPORARY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd
    )  # fmt: skip
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_there(name: str, folder_fd: int) -> bool:
    try:
        os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _meets_no_other_spelling(root_fd: int, parts: list[bytes]) -> None:
    """Where names are one to the file system that are two to S3, the first one keeps the place.

    Raises:
        Unfit: another one has it.
    """
    for depth in range(1, len(parts) + 1):
        try:
            with opened_parent(root_fd, parts[:depth]) as parent_fd:
                name = parts[depth - 1]
                if _is_there(os.fsdecode(name), parent_fd) and not exact(parent_fd, name):
                    raise Unfit(
                        "the file system takes it for the same name as one that is there in another spelling"
                    )
        except FileNotFoundError:
            return


def _in_the_way(transfer: Transfer, error: OSError | Unfit) -> Outcome:
    if isinstance(error, Unfit):
        return Outcome(transfer.name, Failure.UNFIT, str(error))
    if error.errno in _IN_THE_WAY:
        return Outcome(transfer.name, Failure.UNFIT, _IN_THE_WAY[error.errno])
    return _outcome(transfer, error, Failure.OTHER)


def _outcome(transfer: Transfer, error: OSError, otherwise: Failure) -> Outcome:
    failure = otherwise
    if error.errno in _NO_SPACE:
        failure = Failure.SPACE
    elif error.errno in (errno.ENOENT, errno.ENOTDIR) and otherwise is Failure.OTHER:
        failure = Failure.GONE
    elif error.errno in _REFUSED:
        failure = Failure.REFUSED
    return Outcome(transfer.name, failure, error.strerror or str(error))
