"""A short run of power cuts; `make soak` does the same for as long as one likes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from s5jtd.ledger.states import State
from tests.autopsy import Row, refuted, unsealed
from tests.filesystems import need_mounts
from tests.nursery import Nursery
from tests.powercut import Round, site
from tests.servers import Server

pytestmark = pytest.mark.slow

#: Cuts of each kind, and the seconds after which no further one begins.
CUTS = 12
CUTTING_SECONDS = 10.0


@pytest.mark.parametrize("ledger", ["ext4", "xfs"])
def test_power_cuts_in_mid_transfer_break_no_promise(
    tmp_path: Path, rclone: Server, destination: Server, nursery: Nursery, ledger: str
) -> None:
    kinds = {"ledger": ledger, "volume-1": "ext4", "volume-2": "xfs"}
    for kind in kinds.values():
        need_mounts(kind)
    with site(tmp_path, rclone, destination, nursery, kinds) as struck:
        result = Round(struck, ledger, seed=len(ledger)).run(CUTS, time.monotonic() + CUTTING_SECONDS)

    assert result.violations == []
    # It was about something: there were cuts, and something that they might have lost.
    assert result.cuts >= 3
    assert result.copies + result.acknowledged > 0


def test_bytes_that_the_ledger_counts_on_and_the_disk_lost_are_noticed(tmp_path: Path) -> None:
    """The suite could be blind: a file that is absent, cut short, or whole."""
    row = Row(1, "k", 3, "900150983cd24fb0d6963f7d28e17f72", State.STAGED, True, 0, "chunk", str(tmp_path))
    file = tmp_path / "s5jtd" / "chunk" / "data" / "1.obj"
    file.parent.mkdir(parents=True)

    assert "No such file" in str(refuted(row))
    assert "No such file" in str(unsealed(row))
    file.write_bytes(b"")
    assert "other bytes (0 of 3)" in str(refuted(row))
    file.write_bytes(b"abc")
    assert refuted(row) is None
    (file.parents[1] / "sealed.json").write_bytes(b'{"format":1}\n{"sha256":"00"}\n')
    assert "torn" in str(unsealed(row))
