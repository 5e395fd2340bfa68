"""The states of an object and the table of moves between them; code, tests and diagram read it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Final


class State(IntEnum):
    """What has been established about an object; stored by number, spoken of by name.

    A present participle is in flight and is recovered after a crash; the others are at rest.
    """

    SEEN = 0  #: The source listed it in this version; it must travel.
    PULLING = 1  #: A chunk on a volume names it; nothing is known of the bytes.
    STAGED = 2  #: The local bytes are durable and equal the source by the recorded evidence.
    PUSHING = 3  #: A push batch names it; whether the put happened is not known.
    DELIVERED = 4  #: The destination answered with content equal to the staged bytes.
    GONE = 5  #: The source no longer had it when we came for it.
    PARKED = 6  #: Attempts are used up, or no retry can help; `reason` says at what.

    @property
    def word(self) -> str:
        """The name users see."""
        return self.name.lower()


_ALLOWED: dict[State, frozenset[State]] = {
    State.SEEN:      frozenset({State.PULLING, State.DELIVERED, State.GONE, State.PARKED}),
    State.PULLING:   frozenset({State.STAGED, State.SEEN, State.GONE, State.PARKED}),
    State.STAGED:    frozenset({State.PUSHING, State.SEEN, State.PARKED}),
    State.PUSHING:   frozenset({State.DELIVERED, State.STAGED, State.SEEN, State.PARKED}),
    State.DELIVERED: frozenset({State.SEEN}),
    State.GONE:      frozenset({State.SEEN}),
    State.PARKED:    frozenset({State.SEEN, State.STAGED}),
}  # fmt: skip

#: Every move the ledger will make.
ALLOWED: Final[Mapping[State, frozenset[State]]] = MappingProxyType(_ALLOWED)

#: Where an object in flight falls back to when nothing can be established about it.
RETREAT: Final[Mapping[State, State]] = MappingProxyType(
    {State.PULLING: State.SEEN, State.PUSHING: State.STAGED}
)


class ChunkState(StrEnum):
    """What is true of a chunk as a whole."""

    PLANNED = "planned"  #: Bytes are reserved; its folder may not exist yet.
    PULLING = "pulling"  #: A worker has it; recovered after a crash.
    SEALED = "sealed"  #: Its staged bytes are durable; some still have to be pushed.
    PUSHING = "pushing"  #: A push batch runs; recovered after a crash.
    RESTING = "resting"  #: Nothing of it is left to push; files may still lie in its folder.
    RELEASED = "released"  #: Its folder is gone and its reservation freed.


def diagram() -> str:
    """The table of moves as a Mermaid state diagram."""
    moves = [f"    {state.word} --> {to.word}" for state in State for to in sorted(ALLOWED[state])]
    return "\n".join(["stateDiagram-v2", "    [*] --> seen", *moves]) + "\n"
