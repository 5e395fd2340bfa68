"""What the schema knows and this version cannot do: refused by name, never silently ignored.

When a feature arrives, delete its row; nothing else here changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from s5jtd.config.rules import Problem
from s5jtd.config.schema import field_at
from s5jtd.config.tree import KeyPath, Node, children, plain

#: Key path -> what this version does instead.  A key is refused where its value is not its
#: default; after `=` a pattern names the values that are refused.
NOT_BUILT: Mapping[str, str] = MappingProxyType({})


def not_built(tree: Node) -> Iterator[Problem]:
    """The keys of the file that ask for something this version cannot do."""
    for row, instead in NOT_BUILT.items():
        pattern, _, refused_values = row.partition("=")
        for path, node in _matching(tree, pattern.replace("[]", ".[]").split(".")):
            text = node.value if isinstance(node.value, str) else None
            if fnmatchcase(text or "", refused_values) if refused_values else _asks(path, node):
                yield Problem(path, f"{text}: {instead}" if text else instead)


def _matching(node: Node, pattern: Sequence[str], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    if not pattern:
        yield path, node
        return
    for part, below in children(node).items():
        if part == pattern[0] or (isinstance(part, int) and pattern[0] == "[]"):
            yield from _matching(below, pattern[1:], (*path, part))


def _asks(path: KeyPath, node: Node) -> bool:
    """Whether the value is another than the default; the schema reports one that is no value."""
    if node.value is None:
        return False
    field = field_at(path)
    if field.is_required():
        return True
    default: object = field.default
    try:
        value: object = TypeAdapter(field.rebuild_annotation()).validate_python(plain(node))
    except ValidationError:
        return False
    return value != default
