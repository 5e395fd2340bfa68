"""Everything that may go wrong, in one tree, sorted by who must react.

S5jtError
├── ConfigError              the operator must edit a file
├── UsageError               the operator must type something else
├── NotPermitted             another user must do it
├── Busy                     somebody else holds it; try again later
├── LedgerError              the daemon must not go on
│   ├── LedgerNewer              written by a newer s5jtd
│   ├── LedgerDamaged            a check found it broken
│   ├── LedgerBlocked            nothing can be written to it now; the very same may work later
│   │   ├── LedgerFull               its disk is full
│   │   └── IntakeStopped            what is there goes on, and nothing new is taken in
│   └── LostRace                 a row was no longer where a move expected it
├── VolumeError              one volume is out; the others go on
│   ├── VolumeMissing
│   ├── VolumeForeign
│   ├── VolumeFull
│   ├── VolumeReadOnly
│   └── VolumeFailed
├── EndpointError            one endpoint or side is out; objects are not to blame
│   ├── EndpointDown             worth another try
│   └── EndpointRefused          not before somebody changes something
├── ObjectError              one object; the others go on
│   ├── ObjectGone               the server, otherwise well, says it has no such object
│   ├── ObjectChanged            it is no longer the version that was planned
│   └── ObjectRefused            the server will not serve or take this one
├── EngineError              s5cmd itself could not run
├── SnowballError            a Snowball Edge or its client does not do as it was asked
│   └── DeviceNotReady           worth another try
└── ProtocolError            the other end of the control socket broke the rules
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Exit(IntEnum):
    """Exit codes of both programs; a promise to scripts."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NOT_PERMITTED = 4
    TEMPORARY = 5
    CONFIG = 6
    OBJECTS_FAILED = 10
    MISMATCH = 11
    BUSY = 12


class S5jtError(Exception):
    """Cannot go on."""

    code: ClassVar[str] = "internal"
    retry: ClassVar[bool] = False
    exit: ClassVar[Exit] = Exit.FAILED

    def __init__(self, detail: str = "", *, hint: str = "") -> None:
        """The class's docstring is the first half of the message, `detail` the second."""
        summary = (type(self).__doc__ or "").strip().splitlines()[0].rstrip(".")
        super().__init__(f"{summary}: {detail}" if detail else summary)
        self.detail = detail
        self.hint = hint


class ConfigError(S5jtError):
    """Cannot use the configuration."""

    code = "config_invalid"
    exit = Exit.CONFIG


class UsageError(S5jtError):
    """Cannot do that."""

    code = "usage"
    exit = Exit.USAGE


class NotPermitted(S5jtError):
    """Not permitted."""

    code = "not_permitted"
    exit = Exit.NOT_PERMITTED


class Busy(S5jtError):
    """Cannot take what another process holds."""

    code = "busy"
    retry = True
    exit = Exit.BUSY


class LedgerError(S5jtError):
    """Cannot use the ledger."""

    code = "ledger_failed"


class LedgerNewer(LedgerError):
    """Cannot read a ledger written by a newer s5jtd."""

    code = "ledger_newer"


class LedgerDamaged(LedgerError):
    """Cannot trust the ledger."""

    code = "ledger_damaged"


class LedgerBlocked(LedgerError):
    """Cannot write to the ledger now."""

    code = "ledger_blocked"
    retry = True
    exit = Exit.TEMPORARY


class LedgerFull(LedgerBlocked):
    """Cannot write to the ledger, for its disk is full."""

    code = "ledger_disk_full"


class IntakeStopped(LedgerBlocked):
    """Cannot take anything new into the ledger now."""

    code = "ledger_intake_stopped"


class LostRace(LedgerError):
    """Cannot move what is no longer there."""

    code = "ledger_lost_race"


class VolumeError(S5jtError):
    """Cannot use the volume."""

    code = "volume_failed"


class VolumeMissing(VolumeError):
    """Cannot find the volume."""

    code = "volume_missing"
    retry = True


class VolumeForeign(VolumeError):
    """Cannot take a folder for our volume."""

    code = "volume_foreign"


class VolumeFull(VolumeError):
    """Cannot write to a full volume."""

    code = "volume_full"
    retry = True


class VolumeReadOnly(VolumeError):
    """Cannot write to a read-only volume."""

    code = "volume_readonly"


class VolumeFailed(VolumeError):
    """Cannot trust the volume."""

    code = "volume_failed"


class DeviceError(S5jtError):
    """A disk could not be made a volume."""

    code = "device_failed"


class EndpointError(S5jtError):
    """Cannot work with the endpoint."""

    code = "endpoint_failed"


class EndpointDown(EndpointError):
    """Cannot reach the endpoint."""

    code = "endpoint_down"
    retry = True
    exit = Exit.TEMPORARY


class EndpointRefused(EndpointError):
    """The endpoint refuses us."""

    code = "endpoint_refused"


class ObjectError(S5jtError):
    """Cannot move the object."""

    code = "object_failed"
    retry = True


class ObjectGone(ObjectError):
    """Cannot find the object."""

    code = "object_gone"
    retry = False


class ObjectChanged(ObjectError):
    """Cannot use another version of the object."""

    code = "object_changed"


class ObjectRefused(ObjectError):
    """The endpoint refuses the object."""

    code = "object_refused"
    retry = False


class EngineError(S5jtError):
    """Cannot run s5cmd."""

    code = "engine_failed"


class SnowballError(S5jtError):
    """Cannot set up the Snowball Edge."""

    code = "snowball_failed"


class DeviceNotReady(SnowballError):
    """Cannot wait for the Snowball Edge any longer."""

    code = "snowball_not_ready"
    retry = True
    exit = Exit.TEMPORARY


class ProtocolError(S5jtError):
    """Cannot understand the other end of the control socket."""

    code = "protocol"
