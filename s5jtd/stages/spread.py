"""Spreads work over volumes by free space and measured speed: a slow disk holds no fast one back; pure.

While there is plenty to do, every volume works, each at its own pace, and a slow one is given smaller chunks.
Towards the end a slow one is given nothing that the others would have done sooner.  One that nobody knows yet
begins with little: it may be the slow one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: A volume is slow that takes more than so many times as long as the fastest; less is chance.
SLOW: Final = 2.0
#: A chunk takes no larger part of what is free on a volume than this.
FREE_SHARE: Final = 8
#: The chunks of a volume while its speed is unknown, and the least that a slow one is given.
TASTE_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Lane:
    """A volume as it is weighed."""

    usable_bytes: int
    queued_bytes: int  #: planned and being pulled
    speed: float  #: bytes per second
    is_known: bool = True  #: False: the speed is a guess


def lanes(known: Sequence[tuple[int, int, float | None, float]]) -> list[Lane]:
    """From usable bytes, queued bytes, speed and its ceiling; an unknown speed is that of the fastest."""
    best = max((speed for _, _, speed, _ in known if speed), default=1.0)
    return [
        Lane(usable, queued, min(speed or best, ceiling), bool(speed))
        for usable, queued, speed, ceiling in known
    ]


def order(all_lanes: Sequence[Lane]) -> list[int]:
    """Who is asked first, by position: who is through soonest with what he has, then who has most room."""
    return sorted(
        range(len(all_lanes)),
        key=lambda at: (all_lanes[at].queued_bytes / all_lanes[at].speed, -all_lanes[at].usable_bytes),
    )


def share_bytes(lane: Lane, all_lanes: Sequence[Lane], limit_bytes: int, least_bytes: int) -> int:
    """How large a chunk may be on a volume: what takes about as long as on the fastest, and leaves room."""
    best = max(one.speed for one in all_lanes)
    in_time = int(limit_bytes * lane.speed / best) if lane.is_known or len(all_lanes) == 1 else 0
    in_room = max(least_bytes, lane.usable_bytes // FREE_SHARE)
    return min(limit_bytes, max(in_time, min(TASTE_BYTES, least_bytes)), in_room)


def is_worth(lane: Lane, others: Sequence[Lane], chunk_bytes: int, backlog_bytes: int) -> bool:
    """Whether a volume should be given a chunk: not if the others were through with everything before it."""
    if not others or lane.speed * SLOW >= max(other.speed for other in others):
        return True
    if sum(other.usable_bytes for other in others) < backlog_bytes:
        return True
    mine = (lane.queued_bytes + chunk_bytes) / lane.speed
    theirs = (backlog_bytes + sum(o.queued_bytes for o in others)) / sum(o.speed for o in others)
    return mine <= theirs
