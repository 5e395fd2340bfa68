"""What of a changed configuration holds at once, and what waits for a restart."""

from __future__ import annotations

from collections.abc import Iterator

from s5jtd.config.rules import conflicts
from s5jtd.config.schema import Bounds, Config, JobConfig, VolumeSpec
from s5jtd.config.sides import Section
from s5jtd.config.tree import path_text
from s5jtd.errors import ConfigError

#: Open files depend on these.
FROZEN = ("state_dir", "runtime_dir")
#: What makes the data of a side.  Objects in flight were planned with it, so a side where one of these
#: changes is kept whole: the old bucket's name means nothing at the new endpoints.
ROAD = ("bucket", "prefix", "directory")

#: What a member of a list goes by, so that a new order is no change.
_IDENTITIES = {"jobs": "name", "volumes": "path"}


def merged(old: Config, new: Config) -> Config:
    """What holds from now on: the new configuration, but for what is kept of the old until a restart.

    Raises:
        ConfigError: what is kept and what is new do not go together.
    """
    before = {job.name: job for job in old.jobs}
    jobs = tuple(_merged_job(before[job.name], job) if job.name in before else job for job in new.jobs)
    kept = {name: getattr(old, name) for name in FROZEN}
    both = new.model_copy(update=kept | {"jobs": jobs, "volumes": _merged_volumes(old.volumes, new.volumes)})
    found = [f"{path_text(path)}: {message}" for path, message in conflicts(both)]
    if found:
        raise ConfigError(
            f"without a restart: {'; '.join(found)}", hint="the file itself is good: systemctl restart s5jtd"
        )
    return both


def _merged_volumes(old: tuple[VolumeSpec, ...], new: tuple[VolumeSpec, ...]) -> tuple[VolumeSpec, ...]:
    """New ones are taken up.  One that is in use stays as it is: what lies on it is still to be delivered."""
    known = {spec.path for spec in old}
    return (*old, *(spec for spec in new if spec.path not in known))


def _merged_job(old: JobConfig, new: JobConfig) -> JobConfig:
    sides = {"source": (old.source, new.source), "destination": (old.destination, new.destination)}
    return new.model_copy(
        update={name: before for name, (before, after) in sides.items() if not _same_road(before, after)}
    )


def _same_road(old: Section, new: Section) -> bool:
    return type(old) is type(new) and all(getattr(old, key, None) == getattr(new, key, None) for key in ROAD)


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """The key paths in which `merged` differs from the old configuration, and the new one from it.

    The first are what a reload changes live, the second what it keeps until a restart.

    Raises:
        ConfigError: as `merged` does.
    """
    both = merged(old, new)
    return list(_differences(old, both)), list(_differences(both, new))


def _differences(old: object, new: object, path: str = "", kind: str = "") -> Iterator[str]:
    """Paths like `jobs[archive].scan_every`; `kind` is one without names, `jobs[].scan_every`."""
    if isinstance(old, Section) and type(old) is type(new) and not isinstance(old, Bounds):
        dot = "." if path else ""
        for name in type(old).model_fields:
            yield from _differences(
                getattr(old, name), getattr(new, name), f"{path}{dot}{name}", f"{kind}{dot}{name}"
            )
    elif isinstance(old, tuple) and isinstance(new, tuple) and kind in _IDENTITIES:
        yield from _members(_by_identity(old, kind), _by_identity(new, kind), kind)
    elif old != new:
        yield path


def _by_identity(members: tuple[object, ...], kind: str) -> dict[str, object]:
    return {str(getattr(member, _IDENTITIES[kind])): member for member in members}


def _members(old: dict[str, object], new: dict[str, object], kind: str) -> Iterator[str]:
    for name in {**old, **new}:
        path = f"{kind}[{name}]"
        if name not in new:
            yield f"{path} removed"
        elif name not in old:
            yield f"{path} added"
        else:
            yield from _differences(old[name], new[name], path, f"{kind}[]")
