r"""The parameters of each method, checked before anything of the daemon is called.

Unknown parameters are refused and nothing is converted: `"yes"` is no boolean and `"5"` no number,
so that what was meant is never guessed.

A key in a request is text, spelled as every answer spells it: UTF-8, and `\xNN` for bytes that are
none.  `spellings` gives the byte keys such a text may mean.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s5jtd.model import Direction, Side

_YEAR_SECONDS = 366 * 24 * 3600

Name = Annotated[str, Field(min_length=1, max_length=255)]
#: An S3 key has at most 1,024 bytes; spelled out, each may take four characters.
Key = Annotated[str, Field(min_length=1, max_length=4096)]
Prefix = Annotated[str, Field(max_length=4096)]
#: Not strict, because JSON has only the strings of these words.
AnySide = Annotated[Side, Field(strict=False)]
AnyDirection = Annotated[Direction, Field(strict=False)]
ObjectState = Literal["seen", "pulling", "staged", "pushing", "delivered", "gone", "parked"]

_SPELLED = re.compile(rb"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def spellings(text: str) -> tuple[bytes, ...]:
    r"""The keys that `text` may stand for, the literal one first.

    People paste what `objects` showed them, where a byte that is no UTF-8 reads `\xff`, an escape
    character `\x1b` and a mark that turns the line around `\u202e`.
    """
    literal = text.encode()
    try:
        spelled = _SPELLED.sub(_meant, literal)
    except (ValueError, OverflowError):  # half a surrogate pair, or beyond Unicode: no key is spelled so
        return (literal,)
    return (literal,) if spelled == literal else (literal, spelled)


def _meant(spelling: re.Match[bytes]) -> bytes:
    byte, short, long = spelling.groups()
    return bytes([int(byte, 16)]) if byte else chr(int(short or long, 16)).encode()


class Request(BaseModel):
    """Parameters of one method; this one has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Ping(Request):
    pass


class Version(Request):
    pass


class Status(Request):
    job: Name | None = None
    #: So many of the latest events beside it, those of other jobs left out where one is named.
    events: Annotated[int, Field(ge=0, le=100)] = 0


class _JobOrAll(Request):
    job: Name | None = None
    all: bool = False
    side: AnySide | None = None  #: None: both

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.job is not None) == self.all:
            raise ValueError("give either job or all")
        return self


class JobPause(_JobOrAll):
    for_seconds: Annotated[int, Field(ge=1, le=10 * _YEAR_SECONDS)] | None = None  #: None: until resumed
    now: bool = False  #: also end what runs


class JobResume(_JobOrAll):
    pass


class JobScan(Request):
    job: Name
    wait: bool = False


class JobResync(Request):
    job: Name
    prefix: Prefix = ""
    deep: bool = False
    dry_run: bool = False
    wait: bool = False


class ObjectList(Request):
    job: Name
    state: ObjectState | None = None
    prefix: Prefix = ""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 100  #: an answer may hold fewer and still have a `next`
    after: Annotated[str, Field(max_length=8192)] | None = None  #: the `next` of the page before


class ObjectExplain(Request):
    job: Name
    key: Key


class ObjectRetry(Request):
    job: Name
    key: Key | None = None
    parked: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.key is not None) == self.parked:
            raise ValueError("give either key or parked")
        return self


class VolumeList(Request):
    pass


class VolumeDrain(Request):
    volume: Name  #: its name, path or UUID
    wait: bool = False


class VolumeActivate(Request):
    volume: Name


class EndpointList(Request):
    job: Name | None = None


class EndpointCheck(Request):
    job: Name | None = None


class BandwidthGet(Request):
    pass


class BandwidthSet(Request):
    direction: AnyDirection | None = None  #: None: both
    #: "configured" takes back what an operator has set.
    limit_bytes_per_second: Annotated[int, Field(ge=1, le=10**12)] | Literal["unlimited", "configured"]


class ReportList(Request):
    job: Name | None = None
    start: Annotated[int, Field(ge=0)] | None = None  #: the least id
    end: Annotated[int, Field(ge=0)] | None = None  #: the greatest id, which is still in
    limit: Annotated[int, Field(ge=1, le=1000)] = 100  #: the newest ones of these


class ReportGet(Request):
    id: Annotated[int, Field(ge=0)] | Literal["latest"]
    job: Name | None = None  #: only with "latest"
    objects: bool = False
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000  #: objects; there may be fewer and still a `next`
    after: Annotated[str, Field(max_length=8192)] | None = None  #: the `next` of the page before


class ConfigReload(Request):
    pass


class EventSubscribe(Request):
    #: An id: what came after it, so 0 is all that is still kept; a time: what came since then; null: only
    #: what is still to come.
    since: Annotated[int, Field(ge=0)] | str | None = None
    follow: bool = True  #: False: end after what is there

    @model_validator(mode="after")
    def _since_is_a_time(self) -> Self:
        if isinstance(self.since, str):
            try:
                aware = datetime.fromisoformat(self.since).tzinfo is not None
            except ValueError:
                aware = False
            if not aware:
                raise ValueError("since is neither an id nor a time such as 2026-01-31T23:59:00Z")
        return self
