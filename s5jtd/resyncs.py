"""The answer to `job.resync` in the words of the protocol, and the prefix as it was asked for."""

from __future__ import annotations

from typing import Literal

from s5jtd import protocol, shapes
from s5jtd.control.requests import spellings
from s5jtd.errors import UsageError
from s5jtd.model import printable
from s5jtd.stages.findings import SHOWN, Run
from s5jtd.stages.job import Job
from s5jtd.status import resync_totals

#: For the entries of an answer; the rest of a line is for what stands around them.
_ENTRIES_BYTES = protocol.LINE_BYTES_MAX - 4096

Result = Literal["resync_started", "already_resyncing", "resynced"]


def source_prefix(job: Job, text: str) -> bytes:
    """Where the keys begin that are meant by a prefix as somebody typed it.

    Raises:
        UsageError: the job has no such keys.
    """
    wanted = spellings(text)[-1] if text else b""
    below = job.source.prefix
    if wanted.startswith(below):
        return wanted
    if below.startswith(wanted):
        return below
    raise UsageError(
        f"no key of job {job.name} begins with {text!r}",
        hint=f"all of them begin with {printable(below)!r}, the prefix of its source",
    )


def answer(job: Job, run: Run, result: Result) -> shapes.Resync:
    """What the verb says; numbers and keys only of a run that is over."""
    is_over = result == "resynced"
    entries = _entries(run) if is_over else []
    shown = sum(run.totals[mark] for mark in SHOWN)
    return {
        "name": job.name,
        "result": result,
        "dry_run": run.wish.dry_run,
        "totals": resync_totals(run) if is_over else None,
        "rearmed": run.rearmed if is_over else None,
        "entries": entries,
        "entries_omitted": shown - len(entries) if is_over else 0,
    }


def _entries(run: Run) -> list[shapes.ResyncEntry]:
    """As many as fit a line."""
    entries: list[shapes.ResyncEntry] = []
    left_bytes = _ENTRIES_BYTES
    for kept in run.entries:
        entry: shapes.ResyncEntry = {
            "mark": kept.mark.value,  # type: ignore[typeddict-item]  # of SHOWN
            "key": printable(kept.key),
            "detail": kept.detail,
        }
        left_bytes -= len(protocol.encode(entry))
        if left_bytes < 0:
            break
        entries.append(entry)
    return entries
