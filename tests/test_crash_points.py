"""The daemon struck at its durable system calls: a few of them here, every one in `make soak`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crashpoints import CUT, Strike, run_case, sweep
from tests.filesystems import need_mounts
from tests.nursery import KILL, LOST, Nursery, why_not_watched
from tests.servers import Server

pytestmark = pytest.mark.slow

#: After so many seconds a sweep begins no further case.
SWEEP_SECONDS = 9.0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    need_mounts("ext4")
    if reason := why_not_watched():
        pytest.skip(reason)
    with Nursery() as nursery:
        yield nursery


@pytest.mark.parametrize(("fate", "first", "stride"), [(CUT, 3, 5), ("EIO", 20, 9), ("ENOSPC", 22, 11)])
def test_no_durable_call_is_one_at_which_anything_can_be_lost(
    tmp_path: Path, rclone: Server, destination: Server, nursery: Nursery, fate: str, first: int, stride: int
) -> None:
    cases = list(
        sweep(
            tmp_path, rclone, destination, nursery, fate,
            first=first, stride=stride, until_monotonic=time.monotonic() + SWEEP_SECONDS,
        )
    )  # fmt: skip

    assert cases
    assert [case.told for case in cases if case.faults] == []


@pytest.mark.parametrize(
    "strikes",
    [
        [Strike(1, CUT, r"renameat .*/\.s5jtd-volume$")],
        [Strike(1, CUT, r"syncfs")],
        [Strike(1, KILL, r"s5cmd: renameat")],
        [Strike(1, CUT, r"renameat .*sealed\.json$"), Strike(1, CUT, r"renameat .*sealed\.json$")],
        [Strike(1, KILL, r"fsync .*sealed\.json\.new"), Strike(2, "EIO", r"syncfs")],
        [Strike(1, CUT, r"unlinkat .*CHUNK/data$"), Strike(3, CUT, r"unlinkat .*CHUNK")],
        [Strike(1, "ENOSPC", r"fsync .*CHUNK/sealed\.json\.new")],
        [Strike(1, "ENOSPC", r"unlinkat .*\.s5jtd-probe-new")],
    ],
    ids=[
        "while a volume is stamped", "before the bytes are durable", "as s5cmd names a file",
        "before the seal counts, twice", "the seal, then the sync of the recovery", "in the release, twice",
        "no space for the seal", "no space when the volume is attached",
    ],
)  # fmt: skip
def test_where_it_broke_once(
    tmp_path: Path, rclone: Server, destination: Server, nursery: Nursery, strikes: list[Strike]
) -> None:
    case = run_case(tmp_path, rclone, destination, nursery, strikes)

    assert case.struck, "the daemon made no such call"
    assert case.faults == []


@pytest.mark.parametrize(
    "strike",
    [Strike(3, LOST, r"s5cmd: close .*/data/OBJECT"), Strike(1, "EIO", r"^close .*CHUNK/sealed\.json\.new")],
    ids=["of s5cmd, with bytes that are lost", "of ours"],
)
def test_d7_an_error_at_close_costs_a_chunk_and_no_byte(
    tmp_path: Path, rclone: Server, destination: Server, nursery: Nursery, strike: Strike
) -> None:
    """s5cmd takes no notice of it, so that it is up to the hash; ours is as final as one of a sync."""
    case = run_case(tmp_path, rclone, destination, nursery, [strike])

    assert case.struck, "the daemon made no such call"
    assert case.faults == []
