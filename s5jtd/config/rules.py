"""What must hold between the parts of a configuration: names meet once, and no object can go in a circle.

Pure: the file system and the network are not asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from s5jtd.config.schema import Config, JobConfig
from s5jtd.config.sides import FolderDestination, FolderSource, S3Side
from s5jtd.config.tree import KeyPath

_AWS = "AWS"
_THIS_MACHINE = "this machine"


class Problem(NamedTuple):
    """One thing to correct, and where."""

    path: KeyPath
    message: str


@dataclass(frozen=True, slots=True)
class _Place:
    """Where names are written or read: all that begin with `prefix` in one bucket, or below one folder."""

    stores: frozenset[str]  #: the ways to reach it; one in common means the same store
    bucket: str
    prefix: str

    def meets(self, other: _Place) -> bool:
        """Whether one name could be in both."""
        return (
            not self.stores.isdisjoint(other.stores)
            and self.bucket == other.bucket
            and (self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix))
        )


def conflicts(config: Config) -> Iterator[Problem]:
    """Everything that is wrong between parts that are right by themselves."""
    yield from _volumes_met_twice(config)
    yield from _staging_without_volumes(config)
    yield from _streams_with_a_folder(config)
    yield from _twice([("jobs", number, "name") for number in range(len(config.jobs))], _names(config.jobs))
    yield from _same_names_written(config.jobs)
    yield from _circles(config.jobs)
    yield from _folders_of_ours(config)


def _names(jobs: Iterable[JobConfig]) -> list[str]:
    return [job.name for job in jobs]


def _twice(paths: Sequence[KeyPath], values: Sequence[object]) -> Iterator[Problem]:
    first: dict[object, KeyPath] = {}
    for path, value in zip(paths, values, strict=True):
        if value in first:
            place = "".join(f"[{part}]" if isinstance(part, int) else str(part) for part in first[value][:2])
            yield Problem(path, f"{value} is what {place} has already")
        first.setdefault(value, path)


def _volumes_met_twice(config: Config) -> Iterator[Problem]:
    numbered = list(enumerate(config.volumes))
    yield from _twice([("volumes", n, "path") for n, _ in numbered], [volume.path for _, volume in numbered])
    named = [(number, volume) for number, volume in numbered if volume.name is not None]
    yield from _twice([("volumes", n, "name") for n, _ in named], [volume.name for _, volume in named])


def _staging_without_volumes(config: Config) -> Iterator[Problem]:
    staging = [job.name for job in config.jobs if job.mode == "staged"]
    if staging and not config.volumes:
        yield Problem(
            ("volumes",), f"is required: job {staging[0]} stages its objects; name a folder or more"
        )


def _streams_with_a_folder(config: Config) -> Iterator[Problem]:
    for number, job in enumerate(config.jobs):
        both = isinstance(job.source, S3Side) and isinstance(job.destination, S3Side)
        if job.mode == "direct" and not both:
            yield Problem(
                ("jobs", number, "mode"), "direct goes from bucket to bucket; with a folder leave it out"
            )


def _same_names_written(jobs: Sequence[JobConfig]) -> Iterator[Problem]:
    for number, job in enumerate(jobs):
        for earlier in jobs[:number]:
            if _written(job).meets(_written(earlier)):
                yield Problem(
                    ("jobs", number, "destination"),
                    f"jobs {earlier.name} and {job.name} could write the same names, each over the other's"
                    f" objects: {_told(earlier.destination)} and {_told(job.destination)};"
                    " give them prefixes of which neither begins with the other",
                )


def _circles(jobs: Sequence[JobConfig]) -> Iterator[Problem]:
    """Jobs along which an object could come back to where it started; each circle once."""
    feeds = [
        [number for number, job in enumerate(jobs) if _written(feeder).meets(_read(job))] for feeder in jobs
    ]
    for start in range(len(jobs)):
        circle = _way_back(start, feeds)
        if circle and start == min(circle):
            yield Problem(("jobs", start, "destination"), _circle_told([jobs[number] for number in circle]))


def _folders_of_ours(config: Config) -> Iterator[Problem]:
    """A job's folder that holds what s5jtd itself writes, or lies in it."""
    ours = {"state_dir": config.state_dir, "runtime_dir": config.runtime_dir}
    ours |= {f"volumes[{n}]": one.path for n, one in enumerate(config.volumes) if not one.is_pattern}
    for number, job in enumerate(config.jobs):
        for name, side in (("source", job.source), ("destination", job.destination)):
            if isinstance(side, S3Side):
                continue
            for what, folder in ours.items():
                if folder.is_relative_to(side.directory) or side.directory.is_relative_to(folder):
                    yield Problem(
                        ("jobs", number, name, "directory"),
                        f"{side.directory} and {what}, which is {folder}, lie in one another; give the job a"
                        " folder of its own",
                    )


def _way_back(start: int, feeds: Sequence[Sequence[int]]) -> list[int]:
    """The shortest way along `feeds` from `start` to itself, `start` first; empty if there is none."""
    came_from: dict[int, int] = {}
    reached = [start]
    for here in reached:
        for there in feeds[here]:
            if there == start:
                way = [here]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return way[::-1]
            if there not in came_from:
                came_from[there] = here
                reached.append(there)
    return []


def _circle_told(jobs: Sequence[JobConfig]) -> str:
    if len(jobs) == 1:
        return (
            f"a loop: job {jobs[0].name} would write where it reads, and send its objects again and again:"
            f" {_told(jobs[0].source)} and {_told(jobs[0].destination)}"
        )
    names = " -> ".join([*_names(jobs), jobs[0].name])
    return f"a loop: each job reads what the one before it writes, and the last feeds the first: {names}"


def _written(job: JobConfig) -> _Place:
    return _place(job.destination)


def _read(job: JobConfig) -> _Place:
    return _place(job.source)


def _place(side: S3Side | FolderSource | FolderDestination) -> _Place:
    if isinstance(side, S3Side):
        return _Place(frozenset(map(_store, side.endpoints or [""])), side.bucket, side.prefix)
    return _Place(frozenset({_THIS_MACHINE}), "", _folder_prefix(side.directory))


def _folder_prefix(directory: Path) -> str:
    return f"{directory}/".replace("//", "/")


def _store(endpoint: str) -> str:
    """What an endpoint reaches: by whichever of its many names, AWS is one store."""
    host = urlsplit(endpoint).hostname or ""
    return _AWS if not host or host.endswith(".amazonaws.com") else endpoint


def _told(side: S3Side | FolderSource | FolderDestination) -> str:
    if isinstance(side, S3Side):
        return f"s3://{side.bucket}/{side.prefix}"
    return str(side.directory)
