"""The configuration as frozen models: every key there is, what it may be, and the only defaults.

Durations are kept in seconds, sizes in bytes, rates in bytes per second.  A key with nothing after
it, or `null`, means its default.  What one model cannot see alone (two jobs, jobs and volumes) is
in `rules`.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_serializer, model_validator
from pydantic.fields import FieldInfo

from s5jtd.config import values as v
from s5jtd.config.sides import Destination, S3Destination, S3Side, Section, Source
from s5jtd.config.tree import KeyPath
from s5jtd.model import Evidence

MOST_WORKERS = 1024
MOST_PARTS = 128


class Chunk(Section):
    """What closes a chunk, whichever comes first."""

    bytes: Annotated[v.Size, Field(ge=1)] = 2**30
    objects: int = Field(default=1000, ge=1, le=100_000)
    #: It is chosen no smaller than this, for a slow line or a small backlog; None: by what pays.
    min_bytes: Annotated[v.Size, Field(ge=1)] | None = None
    min_objects: int | None = Field(default=None, ge=1, le=100_000)

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        for what, least, most in (
            ("bytes", self.min_bytes, self.bytes),
            ("objects", self.min_objects, self.objects),
        ):
            if least is not None and least > most:
                raise ValueError(f"min_{what} is more than {what}: no chunk could be so large")
        return self


class EvidencePolicy(Section):
    """The weakest evidence that counts, and what happens to an object that has less."""

    minimum: Evidence = Evidence.ETAG
    otherwise: Literal["accept", "readback", "park"] = "readback"


class JobConfig(Section):
    name: v.JobName
    source: Source
    destination: Destination
    mode: Literal["staged", "direct"] = "staged"
    engine: Literal["s5cmd", "native", "auto"] = "s5cmd"
    include: tuple[v.Glob, ...] = ()
    exclude: tuple[v.Glob, ...] = ()
    min_size: v.Size | None = Field(default=None, serialization_alias="min_size_bytes")
    max_size: v.Size | None = Field(default=None, serialization_alias="max_size_bytes")
    min_age: v.Duration | None = Field(default=None, serialization_alias="min_age_seconds")
    max_age: v.Duration | None = Field(default=None, serialization_alias="max_age_seconds")
    order: Literal["key", "oldest", "newest", "smallest", "largest"] = "key"
    scan_every: v.ScanInterval = Field(default=60.0, serialization_alias="scan_every_seconds")
    chunk: Chunk = Chunk()
    preserve: Annotated[tuple[Literal["content", "metadata", "tags"], ...], AfterValidator(v.unique)] = (
        "content",
        "metadata",
        "tags",
    )
    evidence: EvidencePolicy = EvidencePolicy()
    sha256: bool = False
    skip_existing: Literal["proven", "size", "never"] = "proven"
    attempts: int = Field(default=8, ge=1, le=1000)
    #: A larger object travels alone, and goes on where it broke off.
    resume_above: Annotated[v.Size, Field(ge=16 * 2**20)] = Field(
        default=256 * 2**20, serialization_alias="resume_above_bytes"
    )

    @model_validator(mode="after")
    def _limits_leave_room(self) -> Self:
        for what, least, most in (
            ("size", self.min_size, self.max_size),
            ("age", self.min_age, self.max_age),
        ):
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{what} is more than max_{what}: no object could be chosen")
        return self


class VolumeSpec(Section):
    """A volume as the file writes it: one folder, or a pattern that `expand_volumes` resolves."""

    path: v.AbsolutePath
    name: v.VolumeName | None = None  #: None: made from the path
    reserve: v.Reserve = 0.05

    @property
    def is_pattern(self) -> bool:
        return glob.has_magic(str(self.path))

    @model_validator(mode="after")
    def _one_name_one_folder(self) -> Self:
        if self.is_pattern and self.name is not None:
            raise ValueError("a pattern stands for many volumes; leave name out, each gets its own")
        return self


class VolumeConfig(Section):
    """One folder of the pool, its name settled."""

    path: v.AbsolutePath
    name: v.VolumeName
    reserve: v.Reserve


def _volume(value: object) -> object:
    """A path alone is a volume with everything else left to its default."""
    return {"path": value} if isinstance(value, str) else value


class Bandwidth(Section):
    """One budget per link; an empty timetable is no limit."""

    pull: v.Bandwidth = ()
    push: v.Bandwidth = ()


class Bounds(Section):
    """What a number is chosen between; None: as far as it pays."""

    min: int | None = Field(default=None, ge=1)
    max: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is more than max: no number lies between them")
        return self

    @model_serializer
    def _as_written(self) -> object:
        if self.min is None and self.max is None:
            return v.AUTO
        return self.min if self.min == self.max else {"min": self.min, "max": self.max}


class WorkerBounds(Bounds):
    min: int | None = Field(default=None, ge=1, le=MOST_WORKERS)
    max: int | None = Field(default=None, ge=1, le=MOST_WORKERS)


class PartBounds(Bounds):
    min: int | None = Field(default=None, ge=1, le=MOST_PARTS)
    max: int | None = Field(default=None, ge=1, le=MOST_PARTS)


class Limits(Section):
    bandwidth: Bandwidth = Bandwidth()
    workers: Annotated[WorkerBounds, v.bounds(MOST_WORKERS)] = WorkerBounds()  #: objects at a time
    parts: Annotated[PartBounds, v.bounds(MOST_PARTS)] = PartBounds()  #: of one object, at a time
    #: A larger object is parked.
    largest_object: v.Size | None = Field(default=None, serialization_alias="largest_object_bytes")
    #: What is more waits: of each job for the next look at its source, of all jobs for the next day.
    bytes_per_pass: Annotated[v.Size, Field(ge=1)] | None = None
    bytes_per_day: Annotated[v.Size, Field(ge=1)] | None = None


class Reports(Section):
    keep: v.Duration = Field(default=90 * 86_400.0, serialization_alias="keep_seconds")
    upload: S3Destination | None = None


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"


def _folder_default(variable: str, otherwise: str) -> Path:
    """The folder systemd made for the unit (the first, where it made several)."""
    return Path(os.environ.get(variable, "").split(":")[0] or otherwise)


class Config(Section):
    """The whole file."""

    state_dir: v.AbsolutePath = Field(
        default_factory=lambda: _folder_default("STATE_DIRECTORY", "/var/lib/s5jtd"), validate_default=True
    )
    runtime_dir: v.AbsolutePath = Field(
        default_factory=lambda: _folder_default("RUNTIME_DIRECTORY", "/run/s5jtd"), validate_default=True
    )
    volumes: tuple[Annotated[VolumeSpec, BeforeValidator(_volume)], ...] = ()
    jobs: Annotated[tuple[JobConfig, ...], AfterValidator(v.not_empty)]
    limits: Limits = Limits()
    reports: Reports = Reports()
    log: Log = Log()

    def public(self) -> dict[str, Any]:
        """What holds, as plain JSON values, with `***` for each secret."""
        return self.model_dump(mode="json", by_alias=True)

    def s3_sides(self) -> Iterator[S3Side]:
        """Every bucket that is named: both sides of each job, and where reports go."""
        sides = [side for job in self.jobs for side in (job.source, job.destination)]
        yield from (side for side in (*sides, self.reports.upload) if isinstance(side, S3Side))


def sections_at(path: KeyPath) -> list[type[Section]]:
    """The models that a mapping at `path` may be read as; none where the path leaves the schema."""
    here: list[type[Section]] = [Config]
    for key in path:
        if isinstance(key, str):
            here = [model for field in _fields(here, key) for model in _models_in(field.annotation)]
    return here


def _fields(models: list[type[Section]], key: str | int) -> list[FieldInfo]:
    return [field for model in models for name, field in model.model_fields.items() if name == key]


def _models_in(annotation: object) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
