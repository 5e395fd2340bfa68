"""`s5jtd benchmark`: everybody moves all of it, and who fails is told so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from s5jtd.errors import Exit


@pytest.fixture
def folder() -> Iterator[Path]:
    """By a short name: a daemon's socket lies below it."""
    with tempfile.TemporaryDirectory(prefix="b") as name:
        yield Path(name)


def test_every_program_moves_each_load_and_one_that_fails_is_told_so(folder: Path) -> None:
    broken = folder / "rclone"
    broken.write_text("#!/bin/sh\necho no such remote >&2\nexit 3\n")
    broken.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "s5jtd", "benchmark", "--large", "8MiB", "--small", "20", "--json"],
        env={"PATH": f"{folder}:/bin", "HOME": os.fspath(folder), "TMPDIR": os.fspath(folder)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert done.returncode == Exit.FAILED, done.stderr
    answer = json.loads(done.stdout)
    assert answer["missing"] == ["aws"]
    found = {(one["load"], one["tool"]): one for one in answer["results"]}
    assert sorted(found) == [
        (load, tool) for load in ("large", "small") for tool in ("rclone", "s5cmd", "s5jtd")
    ]
    for (load, tool), one in found.items():
        assert (one["objects"], one["size_bytes"]) == ((1, 8 << 20) if load == "large" else (20, 20 << 14))
        if tool == "rclone":
            assert (one["median_seconds"], one["error"]) == (None, "it ended with 3: no such remote")
        else:
            assert one["error"] is None
            assert one["times_s5cmd"] > 0
    assert found["large", "s5cmd"]["times_s5cmd"] == 1
    assert [path.name for path in folder.iterdir()] == ["rclone"]
