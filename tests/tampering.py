"""What may become of the ledger of a dead daemon: gone, older, flipped bits; and what people do then."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from s5jtd.errors import Exit
from tests.appliance import Appliance


def delete(path: Path, _older: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def put_back_an_older_one(path: Path, older: Path) -> None:
    delete(path, older)
    shutil.copyfile(older, path)


def flip_bytes(path: Path, _older: Path) -> None:
    luck = random.Random(1)
    for suffix in ("", "-wal"):
        file = Path(f"{path}{suffix}")
        if file.exists() and file.stat().st_size:
            body = bytearray(file.read_bytes())
            for _ in range(40):
                body[luck.randrange(len(body))] ^= 1 << luck.randrange(8)
            file.write_bytes(body)


CHANGES: tuple[Callable[[Path, Path], None], ...] = (delete, put_back_an_older_one, flip_bytes)


def mend(appliance: Appliance, path: Path) -> None:
    """As an operator does: look, and rebuild what is damaged or gone."""
    if not path.exists() or appliance.command("ledger", "verify").returncode != Exit.DONE:
        rebuilt = appliance.command("ledger", "rebuild", "--yes")
        assert rebuilt.returncode == 0, rebuilt.stderr
