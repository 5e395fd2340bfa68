"""From the volumes as written to the folders they stand for, each with a name of its own."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePath

from s5jtd.config.schema import Config, VolumeConfig, VolumeSpec

_LONGEST_NAME = 63  # characters; see values.VolumeName


def expand_volumes(config: Config) -> tuple[VolumeConfig, ...]:
    """The folders that the patterns show now, sorted by path, after those written out.

    A folder written out keeps its own reserve where a pattern finds it too.  Names depend on the
    paths alone, but where two are alike: then both are named by their whole path.
    """
    found: dict[Path, tuple[VolumeSpec, str]] = {}
    for spec in sorted(config.volumes, key=lambda spec: spec.is_pattern):
        paths = _folders(spec.path) if spec.is_pattern else [spec.path]
        for path in paths:
            found.setdefault(path, (spec, spec.name or _name(path.parts[_first_own_part(spec) :])))
    names = _settled({path: (name, spec.name is not None) for path, (spec, name) in found.items()})
    return tuple(
        VolumeConfig(path=path, name=names[path], reserve=spec.reserve) for path, (spec, _) in found.items()
    )


def _folders(pattern: Path) -> list[Path]:
    return [Path(path) for path in sorted(glob.glob(str(pattern))) if os.path.isdir(path)]


def _first_own_part(spec: VolumeSpec) -> int:
    """Where a path begins to be its own: /mnt/*/data gives disk-1-data, however many disks there are."""
    parts = spec.path.parts
    own = (number for number, part in enumerate(parts) if glob.has_magic(part))
    return next(own, len(parts) - 1)


def _name(parts: Iterable[str]) -> str:
    """A volume's name made of parts of its path; its end, where it is too long."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part.strip("/") for part in parts))
    return name[-_LONGEST_NAME:].lstrip("-._") or "volume"


def _settled(wishes: dict[Path, tuple[str, bool]]) -> dict[Path, str]:
    """One name each: a given name stands, names made from paths give way."""
    count = Counter(name for name, _ in wishes.values())
    names = {path: name for path, (name, given) in wishes.items() if given or count[name] == 1}
    for path in sorted(wishes.keys() - names.keys()):
        whole = _name(PurePath(path).parts[1:])
        number, name = 1, whole
        while name in names.values():
            number += 1
            name = f"{whole[: _LONGEST_NAME - 6]}-{number}"
        names[path] = name
    return names
