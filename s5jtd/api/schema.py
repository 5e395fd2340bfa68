"""The daemon's answers, as `protocol` types them, for the API's own description."""

from __future__ import annotations

import types
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def describe(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema for a type of `protocol`; those with names go into `found`.

    New members may appear in any answer, so nothing here forbids them.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if is_typeddict(kind):
        return _named(kind, found)
    if origin is NotRequired:
        return describe(arguments[0], found)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": describe(arguments[0], found)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [describe(argument, found) for argument in arguments]}
    raise TypeError(f"{kind} has no place in an answer")


def _named(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    name = kind.__name__
    if name not in found:
        hints = get_type_hints(kind, include_extras=True)
        found[name] = {
            "type": "object",
            "properties": {member: describe(hint, found) for member, hint in hints.items()},
            # Not __required_keys__: with annotations kept as text, Python believes all of them to be.
            "required": [member for member, hint in hints.items() if get_origin(hint) is not NotRequired],
        }
    return {"$ref": f"#/components/schemas/{name}"}
