"""The long ways with a device, step by step: unlock it and wait, update its software and wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from s5jtd.errors import DeviceNotReady, EndpointDown, S5jtError, SnowballError, UsageError
from s5jtd.snowball.answers import LOCKED, UNLOCKED, UNLOCKING, Install, Software, plain
from s5jtd.snowball.client import Client
from s5jtd.snowball.folder import Keys
from s5jtd.units import format_duration

Say = Callable[[str], None]

_FIRST_REST_SECONDS: Final = 0.5
_LONGEST_REST_SECONDS: Final = 10.0
_TELL_EVERY_SECONDS: Final = 30.0
#: A device may take so long before it admits that it began what it was told.
_BEGIN_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a device, and with which clock."""

    seconds: float
    sleep: Callable[[float], None] = time.sleep
    monotonic: Callable[[], float] = time.monotonic

    def looks(self) -> Iterator[float]:
        """Say when to look again, by the seconds waited so far, until the time is over."""
        start = self.monotonic()
        rest = _FIRST_REST_SECONDS
        while True:
            yield self.monotonic() - start
            left = start + self.seconds - self.monotonic()
            if left <= 0:
                return
            self.sleep(min(rest, left))
            rest = min(rest * 1.5, _LONGEST_REST_SECONDS)


class _Ticker:
    """Tells a person what is waited for: what is new at once, what is not new now and then."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._last: tuple[str, float] | None = None

    def __call__(self, what: str, waited_seconds: float) -> None:
        if self._last and self._last[0] == what and waited_seconds < self._last[1] + _TELL_EVERY_SECONDS:
            return
        self._say(f"{what} ({format_duration(waited_seconds)})" if self._last else what)
        self._last = (what, waited_seconds)


def unlock(client: Client, patience: Patience, say: Say) -> Keys:
    """Unlock the device, wait until it says so, and ask for its keys.  Safe to call again at any time.

    Raises:
        DeviceNotReady: it did not unlock in time.
        SnowballError: it gave up unlocking.
    """
    lock = client.describe().lock
    if lock == UNLOCKED:
        say(f"{client.device.endpoint} is unlocked already")
    else:
        if lock == LOCKED:
            say(f"{client.device.endpoint} is locked: unlocking")
            client.ask("unlock-device")
        _wait_unlocked(client, patience, say)
    return client.keys()


def _wait_unlocked(client: Client, patience: Patience, say: Say) -> None:
    tell, lock = _Ticker(say), "silent"
    for waited_seconds in patience.looks():
        try:
            before, lock = lock, client.describe().lock
        except EndpointDown as error:  # its network starts anew when it is unlocked
            tell(str(error), waited_seconds)
            continue
        tell(f"{client.device.endpoint} is {lock}", waited_seconds)
        if lock == UNLOCKED:
            return
        if (before, lock) == (UNLOCKING, LOCKED):
            raise SnowballError(
                f"{client.device.endpoint} began to unlock and is locked again",
                hint="see its display; check that unlock_key and manifest belong to this very device",
            )
    raise DeviceNotReady(
        f"{client.device.endpoint} is {lock} after {format_duration(patience.seconds)}",
        hint="see the device's display; the same command goes on from here, --timeout lets it wait longer",
    )


class Step(Enum):
    """What an update needs next."""

    DOWNLOAD = auto()
    INSTALL = auto()
    REBOOT = auto()
    WAIT = auto()
    NONE = auto()


def next_step(install: Install, *, can_download: bool, taken: list[Step]) -> Step:
    """What to do with a device whose update is there, after the steps `taken` by this run.

    A step is taken once: a device that shows no effect is a matter for a person.
    """
    if install in (Install.DOWNLOADING, Install.INSTALLING):
        return Step.WAIT
    if install is Install.REBOOT:
        return Step.REBOOT
    if Step.INSTALL in taken:
        return Step.NONE
    # Some versions say NA and not Downloaded once the download has ended.
    if install is Install.DOWNLOADED or Step.DOWNLOAD in taken:
        return Step.INSTALL
    return Step.DOWNLOAD if can_download else Step.NONE


class Update:
    """One run through the documented order, from where the device is to the question before the reboot."""

    def __init__(self, client: Client, patience: Patience, say: Say) -> None:
        self._client = client
        self._patience = patience
        self._say = say

    def prepare(self, uri: str | None) -> bool:
        """Download and install; whether a reboot is what is left to do.

        `uri`: file:///..., the update that AWS gave for the job; None: only go on with what is under way.

        Raises:
            UsageError: the device is locked.
            DeviceNotReady: a step did not end in time.
            SnowballError: a step had no effect.
        """
        first = software = self.show()
        try:  # only for the record: a device without internet cannot know what AWS has
            self._say(f"check-for-updates: {plain(self._client.ask('check-for-updates'))}")
        except S5jtError as error:
            self._say(f"check-for-updates has no answer, as on a site without internet: {error.detail}")
        taken: list[Step] = []
        while True:
            step = next_step(software.install, can_download=uri is not None, taken=taken)
            if step is Step.REBOOT:
                return True
            if step is Step.NONE:
                break
            if step is Step.WAIT:  # somebody else began it, or this command in an earlier life
                step = Step.DOWNLOAD if software.install is Install.DOWNLOADING else Step.INSTALL
            elif step is Step.DOWNLOAD and uri:
                self._say(f"step: download-updates {uri}")
                self._client.ask("download-updates", "--uri", uri, seconds=self._patience.seconds)
            else:
                self._say("step: install-updates; nothing should read from or write to the device now")
                self._client.ask("install-updates")
            taken.append(step)
            self._wait(software.install)
            software = self.show()
        if Step.INSTALL not in taken:
            self._say("no update is under way; --uri file:///... names the file to begin one with")
        elif software.installed == first.installed:
            raise SnowballError(
                f"install-updates changed nothing (install state {software.install})",
                hint="is the file what AWS gave for this device's job, and newer than what it runs?",
            )
        return False

    def reboot(self) -> None:
        """Restart the device; it is locked afterwards."""
        try:
            self._client.ask("reboot-device")
        except EndpointDown:
            self._say("the device went silent before it said yes: it should be restarting")

    def show(self) -> Software:
        """Tell where the device is.

        Raises:
            UsageError: it is locked.
        """
        state = self._client.describe()
        if state.lock != UNLOCKED:
            raise UsageError(
                f"{self._client.device.endpoint} is {state.lock}, and an update needs it unlocked",
                hint=f"s5jtd snowball unlock {self._client.device.folder}",
            )
        software = self._client.software()
        versions = " -> ".join(filter(None, (software.installed, software.installing)))
        self._say(f"device {state.device_id}: {state.lock}, software {versions}, update: {software.install}")
        return software

    def _wait(self, before: Install) -> None:
        """Wait until the device is at rest elsewhere than `before`, or has not stirred for a while."""
        tell = _Ticker(self._say)
        for waited_seconds in self._patience.looks():
            try:
                install = self._client.software().install
            except EndpointDown as error:
                tell(str(error), waited_seconds)
                continue
            tell(f"update: {install}", waited_seconds)
            if install in (Install.DOWNLOADING, Install.INSTALLING):
                before = install
            elif install is not before or waited_seconds >= _BEGIN_SECONDS:
                return
        raise DeviceNotReady(
            f"the update is not ready after {format_duration(self._patience.seconds)}",
            hint="the same command goes on from where the device is, --timeout lets it wait longer",
        )
