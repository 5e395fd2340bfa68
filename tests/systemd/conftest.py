"""Runs only where it is asked to and can: the machine it runs on gets s5jtd installed, and removed.

How to run it in a virtual machine without network stands in docs/INSTALL.md, "Trying all of this".
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

WHY_NOT = (
    (lambda: os.geteuid() != 0, "they install a service: run them as root"),
    (
        lambda: not Path("/run/systemd/system").is_dir(),
        "systemd does not run this machine: take a virtual one",
    ),
    (
        lambda: Path("/opt/s5jtd").exists() and "S5JTD_TEST_MACHINE" not in os.environ,
        "s5jtd is installed here, and these tests remove it: set S5JTD_TEST_MACHINE=1 if that is meant",
    ),
    (
        lambda: not list(Path(os.environ.get("S5JTD_BUNDLE") or "dist").glob("s5jtd-*.tar.gz")),
        "there is no bundle: `make bundle` first, or name its folder in S5JTD_BUNDLE",
    ),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip aloud, each with what is missing."""
    here = Path(__file__).parent
    mine = [item for item in items if here in item.path.parents]
    reasons = [reason for missing, reason in WHY_NOT if missing()]
    if "S5JTD_SYSTEMD" not in os.environ:
        reasons.insert(0, "they change this machine: `make test-systemd`")
    for item in mine:
        item.add_marker(pytest.mark.systemd)
        if reasons:
            item.add_marker(pytest.mark.skip(reason=f"the installed service: {'; '.join(reasons)}"))
