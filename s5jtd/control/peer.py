"""Who is at the other end of the control socket, on the kernel's word, and what that lets them do."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that connected, as it was when it did."""

    pid: int
    uid: int
    gid: int
    operators: str  #: the group whose members may change things

    def may_change(self) -> bool:
        """Asked anew for each request: who leaves the group can change nothing from then on."""
        if self.uid in (0, os.geteuid()):
            return True
        try:
            operators_gid = grp.getgrnam(self.operators).gr_gid
            # The gid comes from the kernel and so counts even where the user data base says otherwise.
            return operators_gid in os.getgrouplist(pwd.getpwuid(self.uid).pw_name, self.gid)
        except (KeyError, OSError):  # no such group, no such user, or nobody to ask: no
            return False

    def name(self) -> str:
        """What `usermod` calls the user."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except (KeyError, OSError):
            return "NAME"


def caller(connection: socket.socket, operators: str) -> Caller:
    """Read the credentials of the peer."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Caller(pid, uid, gid, operators)
