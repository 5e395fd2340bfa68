"""YAML to a tree of text that knows its line numbers; what is hostile or ambiguous in YAML ends here.

Values stay text: the schema decides what is a number or a truth value, so that `region: no` or
`bucket: 0123` never turn into something else.  Built from the parser's events, not from
`yaml.compose`, so that depth and count are checked before memory is spent, and a parser's message,
which may quote the file, never reaches anybody unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, TypeAlias

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from s5jtd.units import shown

#: Keys and list indexes from the top of the file down to a value.
KeyPath = tuple[str | int, ...]

MAX_DEPTH = 20  #: levels of nesting; the schema needs seven
MAX_NODES = 20_000  #: values, those that an alias repeats counted each time

#: What YAML does not allow in a file; found before the parser does, to say on which line.
_CONTROL = re.compile(r"[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_NO_TAGS = "a tag (!...) means nothing here; put text that begins with ! in quotes"


class Unreadable(Exception):
    """The text is no YAML that a configuration can be made of."""

    def __init__(self, message: str, line: int, column: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


#: Of a node: text, a list, a mapping, or nothing.
Value: TypeAlias = "str | tuple[Node, ...] | Mapping[str, Node] | None"


@dataclass(frozen=True, slots=True)
class Node:
    """One value of the file."""

    value: Value
    line: int  #: from 1; of the key where the value has one
    nodes: int = 1  #: itself and all below


def read(text: str) -> Node:
    """The tree of a whole file; an empty file is an empty mapping.

    Raises:
        Unreadable: not YAML, or more of YAML than a configuration needs.
    """
    control = _CONTROL.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start()) + 1
        raise Unreadable(f"a control character (U+{ord(control[0]):04X})", line)
    try:
        return _Reader(text).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise Unreadable(_problem(error), line, column) from None
    except yaml.YAMLError:
        raise Unreadable("not valid YAML", 1) from None


def plain(node: Node) -> object:
    """The tree as dicts, lists and text."""
    if isinstance(node.value, tuple):
        return [plain(item) for item in node.value]
    if isinstance(node.value, Mapping):
        return {key: plain(item) for key, item in node.value.items()}
    return node.value


def line_of(tree: Node, path: KeyPath) -> int:
    """The line of what `path` names, or of the nearest thing around it that is there."""
    node = tree
    for part in path:
        below = children(node).get(part)
        if below is None:
            break
        node = below
    return node.line


def children(node: Node) -> Mapping[str | int, Node]:
    """What is directly below, by key or number."""
    if isinstance(node.value, tuple):
        return dict(enumerate(node.value))
    return dict(node.value.items()) if isinstance(node.value, Mapping) else {}


def walk(node: Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Node]]:
    """The node and all below it, in the order of the file."""
    yield path, node
    for part, below in children(node).items():
        yield from walk(below, (*path, part))


def path_text(path: KeyPath) -> str:
    """`jobs[0].source.bucket`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_key_text(part)}" for part in path)
    return text.removeprefix(".")


def _key_text(key: str) -> str:
    return key if re.fullmatch(r"[\w-]{1,64}", key) else shown(key)


class _Reader:
    """Recursive descent over the events of one file."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._anchors: dict[str, Node] = {}
        self._nodes = 0

    def document(self) -> Node:
        root = Node({}, line=1)
        documents = 0
        for event in self._events:
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    _refuse(event, "a second document (---); one file holds one configuration")
                root = self._node(next(self._events), ())
        return root if root.value is not None else Node({}, line=1)

    def _node(self, event: Event, path: KeyPath) -> Node:
        if isinstance(event, AliasEvent):
            return self._alias(event)
        if len(path) > MAX_DEPTH:
            _refuse(event, f"nested more than {MAX_DEPTH} levels deep")
        before = self._nodes
        self._count(event, 1)
        value: Value
        if isinstance(event, MappingStartEvent):
            value = self._mapping(path)
        elif isinstance(event, SequenceStartEvent):
            value = self._sequence(path)
        elif isinstance(event, ScalarEvent):
            value = None if event.implicit[0] and event.value in _NULLS else event.value
        else:
            raise TypeError(event)  # the grammar of events has no fifth kind of node
        if event.tag is not None:
            _refuse(event, _NO_TAGS)
        node = Node(value, _line(event), self._nodes - before)
        if event.anchor is not None:  # only now: an anchor cannot be used within itself
            self._anchors[event.anchor] = node
        return node

    def _mapping(self, path: KeyPath) -> Mapping[str, Node]:
        items: dict[str, Node] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                _refuse(event, "a key must be plain text")
            key: str = event.value
            here = path_text((*path, key))
            if key == "<<":
                _refuse(event, f"{here}: keys cannot be merged in; write them out")
            line = _line(event)
            if key in items:
                _refuse(event, f"{here}: given twice; first on line {items[key].line}")
            items[key] = replace(self._node(next(self._events), (*path, key)), line=line)
        return items

    def _sequence(self, path: KeyPath) -> tuple[Node, ...]:
        items: list[Node] = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._node(event, (*path, len(items))))
        return tuple(items)

    def _alias(self, event: AliasEvent) -> Node:
        node = self._anchors.get(event.anchor or "")
        if node is None:  # its name stays unsaid: it may be an unquoted secret
            _refuse(event, "an alias (*...) without its anchor; put text that begins with * in quotes")
        self._count(event, node.nodes)
        return replace(node, line=_line(event))

    def _count(self, event: Event, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            _refuse(event, f"more than {MAX_NODES} values")


def _refuse(event: Event, message: str) -> NoReturn:
    column = event.start_mark.column + 1 if event.start_mark else 1
    raise Unreadable(message, _line(event), column)


def _line(event: Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _problem(error: yaml.MarkedYAMLError) -> str:
    """What the parser says, in our words where its own puzzle people or quote the file."""
    problem = str(error.problem or "")
    if "'\\t'" in problem:
        return "a tab; YAML indents with spaces only"
    if "tag handle" in problem:  # it quotes what may be an unquoted secret
        return _NO_TAGS
    context = f" ({error.context})" if error.context else ""
    return f"not valid YAML: {problem}{context}; look at the indentation, colons and quotes around it"
