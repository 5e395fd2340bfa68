"""The path of the control socket: taken over only where nobody listens, given back only while it is ours."""

from __future__ import annotations

import contextlib
import fcntl
import grp
import os
import socket
import stat
from pathlib import Path

import structlog

from s5jtd.errors import Busy, ConfigError

log = structlog.get_logger()

MODE = 0o660
BACKLOG = 128  #: connections the kernel holds for us while we are busy accepting
_SUN_PATH_BYTES_MAX = 107


class SocketFile:
    """One path, and the listening socket behind it.

    A lock file beside the path is held for as long as the path is ours.  The kernel lets go of it
    with our last breath, so a socket file whose lock is free is stale, and two daemons that start at
    once cannot both think so.
    """

    def __init__(self, path: Path, group: str) -> None:
        self._path = path
        self._group = group
        self._lock_fd: int | None = None
        self._identity: tuple[int, int] | None = None  # device and inode of what we bound

    def claim(self) -> socket.socket:
        """Lock the path and listen on it.

        Raises:
            Busy: another daemon has it.
            ConfigError: the path can hold no socket of ours.
        """
        if len(os.fsencode(self._path)) > _SUN_PATH_BYTES_MAX:
            raise ConfigError(
                f"{self._path} is longer than {_SUN_PATH_BYTES_MAX} bytes, too long for a Unix socket",
                hint="choose a shorter runtime_dir",
            )
        try:
            self._lock()
            return self.listen()
        except OSError as error:
            self.release()
            raise ConfigError(
                f"{self._path}: {error.strerror}",
                hint=f"see that {self._path.parent} is there and that the daemon's user may write to it",
            ) from None
        except BaseException:
            self.release()
            raise

    def listen(self) -> socket.socket:
        """Put our socket at the path we hold; also when somebody has removed it."""
        self._clear()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(self._path))
            # Nobody can connect before listen(), so there is no moment with wrong permissions.
            self._give_to_group()
            os.chmod(self._path, MODE)
            listener.listen(BACKLOG)
            listener.setblocking(False)
            self._identity = self._seen()
        except BaseException:
            listener.close()
            raise
        return listener

    def missing(self) -> bool:
        """Whether nothing at all is at the path any more; what else may be there is not ours to remove."""
        return not os.path.lexists(self._path)

    def release(self) -> None:
        """Remove the socket, if the path still leads to ours, and let others have the path."""
        if self._identity is not None and self._seen() == self._identity:
            with contextlib.suppress(OSError):
                self._path.unlink()
        self._identity = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _lock(self) -> None:
        path = self._path.with_name(self._path.name + ".lock")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock_fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._busy() from None

    def _clear(self) -> None:
        """Remove the socket of a daemon that is no more, and nothing else."""
        try:
            mode = os.lstat(self._path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ConfigError(
                f"{self._path} is there and is no socket",
                hint="it is left alone; move it away, or choose another runtime_dir",
            )
        if self._answers():  # a program that does not know of our lock
            raise self._busy()
        self._path.unlink(missing_ok=True)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(self._path))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except BlockingIOError:  # its backlog is full
                return True
            return True

    def _busy(self) -> Busy:
        return Busy(
            f"another daemon listens on {self._path}",
            hint="see: systemctl status s5jtd; stop that one first, or choose another runtime_dir",
        )

    def _give_to_group(self) -> None:
        try:
            group_id = grp.getgrnam(self._group).gr_gid
            # Under our unit it is that already, and chown is forbidden there.
            if os.lstat(self._path).st_gid != group_id:
                os.chown(self._path, -1, group_id, follow_symlinks=False)
        except KeyError:
            log.debug("socket_group_unknown", group=self._group)
        except PermissionError:
            log.warning("socket_group_refused", group=self._group, path=str(self._path))

    def _seen(self) -> tuple[int, int] | None:
        try:
            found = os.lstat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino
