"""What the `snowballEdge` client says, and what it means; pure, so that a captured answer makes a test.

Its documentation shows JSON for `describe-device` and the keys' list, but lines of `Name: value` for
software, so both forms are read everywhere.  How it words a failure is documented nowhere: what cannot be
told apart is passed on as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from s5jtd.errors import ConfigError, EndpointDown, S5jtError, SnowballError
from s5jtd.snowball.folder import WORD
from s5jtd.units import shown

UNLOCKED: Final = "UNLOCKED"
UNLOCKING: Final = "UNLOCKING"
LOCKED: Final = "LOCKED"

_WORDS_MAX: Final = 300  # characters of the client's own words in a message
_STRANGER: Final = re.compile(
    r"(unknown|invalid|unrecogni[sz]ed|unsupported|no such) (sub-?)?(command|option|argument|parameter)"
    r"|not a (valid|known) command|^\s*usage\b",
    re.IGNORECASE | re.MULTILINE,
)
_UNREACHABLE: Final = re.compile(
    r"connect|time[ds]?[ -]?out|unreachable|no route|unknown ?host|not known|reset by peer|\bssl|handshake",
    re.IGNORECASE,
)
_REFUSED: Final = re.compile(
    r"unlock[ -]?code|decrypt|manifest|signature|forbidden|unauthori[sz]ed|not authori[sz]ed|access ?denied",
    re.IGNORECASE,
)


class Install(StrEnum):
    """Where an update is."""

    NONE = "NA"  #: nothing is under way; a download may have ended, older software does not say
    DOWNLOADING = "Downloading"
    DOWNLOADED = "Downloaded"
    INSTALLING = "Installing"
    REBOOT = "Requires Reboot"  #: installed beside what runs; not in use before the device was restarted


@dataclass(frozen=True, slots=True)
class State:
    """What `describe-device` tells."""

    device_id: str | None
    lock: str  #: UNLOCKED, UNLOCKING, LOCKED, or what a newer device says


@dataclass(frozen=True, slots=True)
class Software:
    """What `describe-device-software` tells."""

    installed: str
    installing: str | None
    install: Install
    certificate_expires: str | None  #: in the device's own words


def read_state(text: str) -> State:
    """The device's state.

    Raises:
        SnowballError: it is not told as we know it.
    """
    answer = _json(text)
    status = answer.get("UnlockStatus")
    lock = status.get("State") if isinstance(status, Mapping) else None
    if not isinstance(lock, str):
        raise stranger("describe-device", "no UnlockStatus.State in its answer")
    name = answer.get("DeviceId")
    return State(plain(name) if isinstance(name, str) else None, plain(lock))


def read_software(text: str) -> Software:
    """The software on the device, and where an update is.

    Raises:
        SnowballError: it is not told as we know it.
    """
    fields = read_fields(text)
    said = re.sub(r"[^a-z]", "", fields.get("installstate", "").lower())
    known = {re.sub(r"[^a-z]", "", one.lower()): one for one in Install} | {"requirereboot": Install.REBOOT}
    if "installedversion" not in fields or said not in known:
        what = f"install state {shown(fields['installstate'])}" if said else "no versions or install state"
        raise stranger("describe-device-software", what)
    return Software(
        installed=fields["installedversion"],
        installing=fields.get("installingversion"),
        install=known[said],
        certificate_expires=fields.get("certificateexpiry"),
    )


def read_fields(text: str) -> dict[str, str]:
    """Fields by their names in lower-case letters alone: `Install State` and `InstallState` are one."""
    found: dict[str, Any] = _json(text)
    if not found:
        pairs = (line.partition(":") for line in text.splitlines())
        found = {name: value for name, colon, value in pairs if colon}
    named = {re.sub(r"[^a-z]", "", name.lower()): plain(str(value)) for name, value in found.items()}
    return {name: value for name, value in named.items() if name and value}


def read_access_key_id(text: str) -> str:
    """The first key of `list-access-keys`; a device has one until somebody makes more.

    Raises:
        SnowballError: there is none, or it is not told as we know it.
    """
    ids = _json(text).get("AccessKeyIds")
    if not isinstance(ids, list) or not all(isinstance(one, str) and WORD.fullmatch(one) for one in ids):
        raise stranger("list-access-keys", "no AccessKeyIds in its answer")
    if not ids:
        raise SnowballError("the device has no access key", hint="it may still be starting: try again later")
    return str(ids[0])


def read_secret(text: str) -> str:
    """The secret of `get-secret-access-key`, whose answer must never be quoted.

    Raises:
        SnowballError: it is not told as we know it.
    """
    found = re.search(r"^[ \t]*aws_secret_access_key[ \t]*=[ \t]*(\S+)[ \t\r]*$", text, re.MULTILINE)
    if found is None or not WORD.fullmatch(found[1]):
        raise stranger("get-secret-access-key", "no aws_secret_access_key in its answer")
    return found[1]


def failure(command: str, exit_code: int, words: str, *, endpoint: str) -> S5jtError:
    """Why a command failed, from what the client said with the unlock code already taken out."""
    said = plain(next((line for line in reversed(words.splitlines()) if line[:1].strip()), ""))
    how = f"snowballEdge {command} ended with {exit_code}: {said or 'it says nothing'}"
    if _STRANGER.search(words):
        return stranger(command, said)
    if _UNREACHABLE.search(words):
        return EndpointDown(
            f"{endpoint} ({how})", hint="check endpoint_url, the cable, and what the device's display says"
        )
    if _REFUSED.search(words):
        return ConfigError(how, hint="check that unlock_key and manifest belong to this very device")
    return SnowballError(how, hint="the device's display may say more; `snowballEdge help` lists commands")


def stranger(command: str, what: str) -> SnowballError:
    """The client is of another version than those whose documentation we know."""
    return SnowballError(
        f"snowballEdge {command} does not answer as we know it ({what})",
        hint="compare `snowballEdge help` with docs/snowball.md; --client takes another version",
    )


def plain(text: str) -> str:
    """A foreign program's words as they may stand on a terminal: one line, short, no control characters."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= _WORDS_MAX else f"{line[: _WORDS_MAX - 1]}…"


def _json(text: str) -> dict[str, Any]:
    """The JSON object in an answer, also after a line of warning; empty where there is none."""
    try:
        found = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
