"""What may be promised on a volume is never more than there is, and a full one does not flap."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s5jtd.volumes.probe import Space, open_root, probe, syncfs
from s5jtd.volumes.space import footprint, is_full, reserve_bytes, usable_bytes
from tests.filesystems import MIB, loop_volume

GIB = 1024 * MIB
DISK = Space(total_bytes=100 * GIB, free_bytes=40 * GIB, inodes_free=1_000_000)


@pytest.mark.parametrize(
    ("reserve", "kept"), [(0.05, 5 * GIB), (0.0, 0), (20 * GIB, 20 * GIB), (0, 0), (200 * GIB, 200 * GIB)]
)
def test_a_reserve_is_a_share_of_the_volume_or_so_many_bytes(reserve, kept):
    assert reserve_bytes(DISK, reserve) == kept


@pytest.mark.parametrize(
    ("space", "reserve", "outstanding", "usable"),
    [
        (DISK, 0.05, 0, 35 * GIB),
        (DISK, 10 * GIB, 5 * GIB, 25 * GIB),
        (DISK, 0.05, 36 * GIB, 0),
        (DISK, 0.50, 0, 0),
        (DISK._replace(inodes_free=2000), 0.05, 0, 0),
        (DISK._replace(inodes_free=None), 0.05, 0, 35 * GIB),
        (Space(0, 0, 0), 0.05, 0, 0),
    ],
    ids=["share", "bytes", "overpromised", "reserve_not_free", "few_inodes", "uncounted_inodes", "nothing"],
)
def test_usable_is_what_is_free_less_reserve_and_promises(space, reserve, outstanding, usable):
    assert usable_bytes(space, reserve, outstanding) == usable


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("size", [0, 1, 5000, 16 * 1024, 300_000])
def test_a_footprint_covers_what_a_file_and_its_records_really_take(tmp_path, kind, size):
    number, record = 400, b"m" * 1000  # its lines in manifest, seal and batch file
    with loop_volume(tmp_path, kind, 300 * MIB) as volume:
        fd = open_root(volume.path)
        try:
            free_before = probe(fd).free_bytes
            for name in range(number):
                (volume.path / f"{name:x}.obj").write_bytes(os.urandom(size))
            (volume.path / "manifest.jsonl").write_bytes(record * number)
            syncfs(fd)
            taken = free_before - probe(fd).free_bytes
        finally:
            os.close(fd)

    assert taken <= number * footprint(size)


@given(st.integers(0, 1 << 50))
def test_a_footprint_is_never_less_than_the_bytes_and_little_more(size):
    assert size < footprint(size) <= size + 8192


@pytest.mark.parametrize(
    ("total", "fills_at", "empties_at"),
    [(64 * MIB, 64 * MIB // 100, 64 * MIB // 50), (8000 * GIB, GIB, 4 * GIB)],
)
def test_a_volume_that_was_full_takes_work_again_only_when_well_clear(total, fills_at, empties_at):
    assert is_full(False, fills_at, total)
    assert not is_full(False, fills_at + 1, total)
    assert is_full(True, empties_at - 1, total)
    assert not is_full(True, empties_at, total)


@given(total=st.integers(0, 1 << 50), usable=st.integers(0, 1 << 50))
def test_between_the_two_bounds_nothing_changes(total, usable):
    stays_full, turns_full = is_full(True, usable, total), is_full(False, usable, total)

    assert stays_full or not turns_full or usable == 0


def test_a_volume_with_nothing_usable_is_full_whatever_its_size():
    assert is_full(False, 0, 0)
    assert is_full(False, 0, 8000 * GIB)
    assert is_full(True, 0, 8000 * GIB)
