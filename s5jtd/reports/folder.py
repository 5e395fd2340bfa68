"""The folder of reports: each written whole or not at all, read in pages, and not kept for ever.

`<epoch>.json` is a report, one member a line and one object a line, so that the members can be read without
the objects.  A long list of objects lies beside it, in `<epoch>.objects.jsonl.gz`: a gzip member for
each thousand, so that any page of it is read without what stands before it.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, cast

from s5jtd.errors import UsageError
from s5jtd.ledger.files import install, make_folder, scratch, sync_folder
from s5jtd.shapes import Report, ReportObject, ReportRow

#: Objects in one gzip member.
MEMBER_OBJECTS: Final = 1000
#: Reports that are kept at most, the newest: 40 MB of them where none tells of many objects.
REPORTS_KEPT: Final = 10_000
#: A clock that goes back by more was wrong before.
PUT_BACK_SECONDS: Final = 3600

_NAME = re.compile(r"([0-9]{1,15})\.(json|objects\.jsonl\.gz)")
_LEFTOVER = re.compile(r"\.[0-9]+\..*\.new")
_OBJECTS = b' "objects": [\n'
#: Where a page begins: the offset of a gzip member, and the objects of it that were shown.
_CURSOR = re.compile(r"([0-9]{1,15})\.([0-9]{1,4})")
_READ_BYTES = 64 * 1024


class ReportFolder:
    """The reports of one daemon.  One thread writes; any may read."""

    def __init__(self, path: Path) -> None:
        """The folder need not be there yet."""
        self.path = path

    # Writing

    def free_epoch(self, wanted: int, claimed: Collection[int]) -> int:
        """A name for a report: the second that is wanted, or the one after those that are taken.

        The newest report has the greatest name, also where a clock was put back a little.
        """
        taken = {*self.epochs(), *claimed}
        newest = max((epoch for epoch in taken if epoch < wanted + PUT_BACK_SECONDS), default=0)
        return max(wanted, newest + 1)

    def put_objects(self, epoch: int, objects: Iterable[ReportObject]) -> str:
        """Write a long list of objects, durably; its name.

        Raises:
            OSError: as the file system says; nothing is left behind.
        """
        make_folder(self.path)
        final = self._list(epoch)
        with scratch(final) as temporary:
            temporary.touch(0o600)
            with temporary.open("wb") as file:
                for lines in _thousands(json.dumps(one).encode() + b"\n" for one in objects):
                    file.write(gzip.compress(b"".join(lines), compresslevel=6, mtime=0))
            install(temporary, final)
        return final.name

    def put(self, epoch: int, report: Report, objects: Sequence[ReportObject] | None) -> None:
        """Write a report, durably.  `objects` is None where a list of them lies beside it.

        Raises:
            OSError: as the file system says; nothing is left behind.
        """
        make_folder(self.path)
        final = self._report(epoch)
        with scratch(final) as temporary:
            temporary.touch(0o600)
            temporary.write_bytes(_text(report, objects))
            install(temporary, final)

    def has(self, epoch: int) -> bool:
        """Whether there is such a report."""
        return self._report(epoch).exists()

    def sweep(self, claimed: Collection[int]) -> None:
        """Remove what a crash left: files that were being written, and lists whose report never came.

        Raises:
            OSError: as the file system says.
        """
        for name in self._names():
            match = _NAME.fullmatch(name)
            orphan = match and match[2] != "json" and int(match[1]) not in claimed
            if _LEFTOVER.fullmatch(name) or (match and orphan and not self.has(int(match[1]))):
                (self.path / name).unlink(missing_ok=True)

    def prune(self, before: int | None) -> int:
        """Remove reports older than an epoch, if one is given, and those too many; how many went.

        Raises:
            OSError: as the file system says.
        """
        surplus = [
            epoch
            for rank, epoch in enumerate(self.epochs())
            if rank >= REPORTS_KEPT or (before is not None and epoch < before)
        ]
        for epoch in surplus:
            # The list first: a report whose list is gone says so, a list without a report says nothing.
            self._list(epoch).unlink(missing_ok=True)
            self._report(epoch).unlink(missing_ok=True)
        if surplus:
            sync_folder(self.path)
        return len(surplus)

    # Reading

    def epochs(self) -> list[int]:
        """The reports there are, the newest first."""
        matches = (_NAME.fullmatch(name) for name in self._names())
        return sorted((int(match[1]) for match in matches if match and match[2] == "json"), reverse=True)

    def rows(
        self, *, job: str | None = None, start: int | None = None, end: int | None = None, limit: int
    ) -> list[ReportRow]:
        """The newest reports that match, the newest first."""
        inside = (epoch for epoch in self.epochs() if (start or 0) <= epoch and (end is None or epoch <= end))
        return list(
            islice((row for row in map(self._row, inside) if row and job in (None, row["job"])), limit)
        )

    def get(
        self, epoch: int | None, job: str | None, *, objects: bool, limit: int, after: str | None
    ) -> Report:
        """One report, or the newest (of a job); with a page of its objects where they are asked for.

        Raises:
            UsageError: there is none, or `after` is not from here.
        """
        if epoch is None:
            newest = self.rows(job=job, limit=1)
            if not newest:
                raise UsageError("there is no report yet", hint="one is written when a pass ends")
            epoch = newest[0]["id"]
        try:
            report = self._head(epoch)
            if objects:
                report["objects"], report["next"] = self._page(epoch, report, limit, after)
        except FileNotFoundError as error:
            missing = Path(error.filename or "").name
            raise UsageError(f"there is no {missing}", hint="list the reports: s5jtctl reports") from error
        except (OSError, ValueError, TypeError, KeyError, zlib.error) as error:
            raise UsageError(f"report {epoch} cannot be read: {error}") from error
        return cast("Report", {**report, "id": epoch})

    def _row(self, epoch: int) -> ReportRow | None:
        try:
            head = self._head(epoch)
            row = {name: head[name] for name in ReportRow.__annotations__ if name != "id"}
        except (OSError, ValueError, TypeError, KeyError):
            return None  # pruned meanwhile, or somebody else's file
        return cast("ReportRow", {"id": epoch, **row})

    def _head(self, epoch: int) -> dict[str, Any]:
        """The members of a report without its objects, which are not read."""
        lines: list[bytes] = []
        with self._report(epoch).open("rb") as file:
            for line in file:
                if line == _OBJECTS:
                    lines = [*lines[:-1], lines[-1].rstrip(b",\n"), b"}"]
                    break
                lines.append(line)
        return _members(b"".join(lines))

    def _page(
        self, epoch: int, report: dict[str, Any], limit: int, after: str | None
    ) -> tuple[list[ReportObject], str | None]:
        cursor = _CURSOR.fullmatch("0.0" if after is None else after)
        if cursor is None:
            raise ValueError("`after` is not the `next` of an earlier page")
        offset, skip = int(cursor[1]), int(cursor[2])
        if "objects_file" in report:
            with self._list(epoch).open("rb") as file:
                return _page_of_list(file, offset, skip, limit)
        told = _members(self._report(epoch).read_bytes())["objects"]
        more = len(told) > skip + limit
        return told[skip : skip + limit], f"0.{skip + limit}" if more else None

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.path)
        except FileNotFoundError:
            return []

    def _report(self, epoch: int) -> Path:
        return self.path / f"{epoch}.json"

    def _list(self, epoch: int) -> Path:
        return self.path / f"{epoch}.objects.jsonl.gz"


def _text(report: Report, objects: Sequence[ReportObject] | None) -> bytes:
    members = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in report.items()]
    text = "{\n" + ",\n".join(members)
    if objects is not None:
        lines = ",\n".join(f"  {json.dumps(one)}" for one in objects)
        text += f",\n{_OBJECTS.decode()}{lines}\n ]"
    return f"{text}\n}}\n".encode()


def _members(text: bytes) -> dict[str, Any]:
    return dict(json.loads(text))


def _thousands(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    while some := list(islice(lines, MEMBER_OBJECTS)):
        yield some


def _page_of_list(
    file: IO[bytes], offset: int, skip: int, limit: int
) -> tuple[list[ReportObject], str | None]:
    size = file.seek(0, os.SEEK_END)
    if offset > size:
        raise ValueError("`after` is not the `next` of an earlier page")
    objects: list[ReportObject] = []
    while offset < size and len(objects) < limit:
        lines, end = _member_at(file, offset)
        chosen = lines[skip : skip + limit - len(objects)]
        objects += map(json.loads, chosen)
        skip += len(chosen)
        if skip >= len(lines):
            offset, skip = end, 0
    return objects, f"{offset}.{skip}" if offset < size else None


def _member_at(file: IO[bytes], offset: int) -> tuple[list[bytes], int]:
    """The lines of the gzip member at an offset, and where it ends."""
    file.seek(offset)
    member = zlib.decompressobj(31)  # as zlib says: with gzip's own header
    pieces = []
    while not member.eof:
        piece = file.read(_READ_BYTES)
        if not piece:
            raise ValueError("it ends in the middle")
        pieces.append(member.decompress(piece))
    return b"".join(pieces).split(b"\n")[:-1], file.tell() - len(member.unused_data)
