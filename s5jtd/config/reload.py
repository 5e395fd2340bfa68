"""Which differences between two configurations hold at once, and which need a restart."""

from __future__ import annotations

from collections.abc import Iterator

from s5jtd.config.schema import Config
from s5jtd.config.sides import Section

#: Objects in flight, open files and mounted volumes depend on these; all else may change live.
FROZEN = frozenset(
    ["state_dir", "runtime_dir", "volumes[]", "volumes[].name", "volumes[].reserve"]
    + [
        f"jobs[].{side}{key}"
        for side in ("source", "destination")
        for key in ("", ".bucket", ".prefix", ".region", ".endpoints", ".directory")
    ]
)

#: What a member of a list goes by, so that a new order is no change.
_IDENTITIES = {"jobs": "name", "volumes": "path"}


def changes(old: Config, new: Config) -> tuple[list[str], list[str]]:
    """The key paths that differ: those that change live, and those frozen until a restart."""
    live: list[str] = []
    frozen: list[str] = []
    for path, kind in _differences(old, new):
        (frozen if kind in FROZEN else live).append(path)
    return live, frozen


def _differences(old: object, new: object, path: str = "", kind: str = "") -> Iterator[tuple[str, str]]:
    """Pairs like `jobs[archive].scan_every`, `jobs[].scan_every`."""
    if isinstance(old, Section) and type(old) is type(new):
        dot = "." if path else ""
        for name in type(old).model_fields:
            yield from _differences(
                getattr(old, name), getattr(new, name), f"{path}{dot}{name}", f"{kind}{dot}{name}"
            )
    elif isinstance(old, tuple) and isinstance(new, tuple) and kind in _IDENTITIES:
        yield from _members(_by_identity(old, kind), _by_identity(new, kind), kind)
    elif old != new:
        yield path, kind


def _by_identity(members: tuple[object, ...], kind: str) -> dict[str, object]:
    return {str(getattr(member, _IDENTITIES[kind])): member for member in members}


def _members(old: dict[str, object], new: dict[str, object], kind: str) -> Iterator[tuple[str, str]]:
    for name in {**old, **new}:
        path = f"{kind}[{name}]"
        if name not in new:
            yield f"{path} removed", f"{kind}[]"
        elif name not in old:
            yield f"{path} added", f"{kind}[]"
        else:
            yield from _differences(old[name], new[name], path, f"{kind}[]")
