"""What `s5jtd check` found out of endpoints: handed over in a file, kept in the ledger, told to the road."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from s5jtd.ledger.database import Database
from s5jtd.ledger.patience import OnBlocked, give_up, patient
from s5jtd.model import Learned

#: In the state folder, written by the check: the ledger has one writer, and that is the daemon.
FILE: Final = "endpoint_checks.json"
_FILE_BYTES_MAX: Final = 16 << 20

#: Job, side, URL.
Place = tuple[str, str, str]


@patient
class EndpointChecks:
    """The door to what was found out."""

    def __init__(self, database: Database, *, on_blocked: OnBlocked = give_up) -> None:
        """`database` is the one the `Ledger` writes to."""
        self._db = database
        self.on_blocked = on_blocked

    def keep(self, checked_at_ms: int, rows: Sequence[Mapping[str, Any]]) -> int:
        """Put the results of one check in the place of older ones of the same jobs; how many there were.

        A row is an endpoint of the check's own JSON.  Of one that failed nothing stays but that it did.

        Raises:
            KeyError, TypeError, ValueError: it is none, and nothing was changed.
        """
        values = [_values(checked_at_ms, row) for row in rows]
        with self._db.writing() as sql:
            jobs = sorted({value[0] for value in values})
            sql.executemany("DELETE FROM endpoint_checks WHERE job = ? AND at_ms <= ?", [
                (job, checked_at_ms) for job in jobs
            ])  # fmt: skip
            sql.executemany(
                "INSERT INTO endpoint_checks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                values,
            )
        return len(values)

    def newest_ms(self) -> int:
        """When the last check was that is known; 0: none is."""
        row = self._db.reading().execute("SELECT max(at_ms) FROM endpoint_checks").fetchone()
        return int(row[0] or 0)

    def learned(self, since_ms: int) -> dict[Place, Learned]:
        """What is known of each endpoint that was checked since then."""
        rows = self._db.reading().execute(
            "SELECT job, side, url, at_ms, ok, latency_ms, list_version, ordered, part_numbers,"
            " json_extract(found, '$.s5cmd')"
            " FROM endpoint_checks WHERE at_ms >= ?",
            (since_ms,),
        )
        return {
            (job, side, url): Learned(
                at_ms, bool(ok), latency, version, _flag(ordered), _flag(parts), _flag(s5cmd)
            )
            for job, side, url, at_ms, ok, latency, version, ordered, parts, s5cmd in rows
        }


def read_file(path: Path) -> tuple[int, list[Mapping[str, Any]]] | None:
    """When a check was made and what it wrote; None where there is none.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_FILE_BYTES_MAX))
    except FileNotFoundError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("endpoints"), list):
        raise ValueError("it is not what a check writes")  # noqa: TRY004  whoever reads it asks no more
    return int(found.get("checked_at_ms", 0)), found["endpoints"]


def _values(checked_at_ms: int, row: Mapping[str, Any]) -> tuple[Any, ...]:
    ok = bool(row["ok"])
    listing = row.get("listing") if ok else None
    parts = row.get("part_number") if ok else None
    version = row.get("list_version") if ok else None
    latency = row.get("latency_ms") if ok else None
    return (
        str(row["job"]), str(row["side"]), str(row["url"]), checked_at_ms, int(ok), row.get("error"),
        None if latency is None else float(latency),
        version if version in ("1", "2") else None,
        None if listing is None else int(listing == "ordered"),
        None if parts is None else int(bool(parts)),
        json.dumps({name: value for name, value in row.items() if name != "steps"}),
    )  # fmt: skip


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)
