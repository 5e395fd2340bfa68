"""Which jobs delivered on weaker evidence than they ask for, for as long as that is true of an object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from s5jtd.control.requests import spellings
from s5jtd.errors import UsageError
from s5jtd.ledger.passes import Passes
from s5jtd.model import Evidence
from s5jtd.reports.folder import ReportFolder
from s5jtd.stages.job import Job

#: Of the newest reports one may have delivered something.
_REPORTS = 10
_PAGE = 1000
#: A look is taken between two beats of the daemon.
_PAGES_A_LOOK = 10


class Weak(NamedTuple):
    """What the newest report that tells of a delivery says of its evidence."""

    report: int
    objects: int
    minimum: Evidence


@dataclass
class _Known:
    found: Weak
    after: str | None = None  #: what stands in the report up to here is weak no more


class Weakness:
    """Knows the reports by their heads; of a weak one, it looks for an object that is so still."""

    def __init__(self, passes: Passes, reports: ReportFolder) -> None:
        self._passes = passes
        self._reports = reports
        self._known: dict[str, _Known] = {}

    def look(self, job: Job) -> Weak | None:
        """Whether objects that were delivered last are proven by less than the job asks for now.

        It is over with a later report that has none, and where each was replaced, proven anew or armed again.
        """
        newest = next(
            (row for row in self._reports.rows(job=job.name, limit=_REPORTS) if row["files_synced"]), None
        )
        if newest is None:
            return None
        minimum = job.config.evidence.minimum
        known = self._known.get(job.name)
        try:
            if known is None or (known.found.report, known.found.minimum) != (newest["id"], minimum):
                known = self._known[job.name] = _Known(self._told(newest["id"], job.name, minimum))
            return known.found if known.found.objects and self._still(job, known) else None
        except UsageError:  # its time was over, and it went
            return None

    def _told(self, report: int, job: str, minimum: Evidence) -> Weak:
        counts = self._reports.get(report, job, objects=False, limit=1, after=None)["evidence"]
        return Weak(report, sum(counts[one.value] for one in _below(minimum)), minimum)

    def _still(self, job: Job, known: _Known) -> bool:
        weak = _below(known.found.minimum)
        for _ in range(_PAGES_A_LOOK):
            page = self._reports.get(
                known.found.report, job.name, objects=True, limit=_PAGE, after=known.after
            )
            told = [one["key"] for one in page["objects"] if one["evidence"] in weak]
            keys = [key for text in told for key in spellings(text)]
            if keys and self._passes.any_delivered(job.id, keys, weak):
                return True
            if page["next"] is None:
                known.found = known.found._replace(objects=0)
                return False
            known.after = page["next"]
        return True


def _below(minimum: Evidence) -> list[Evidence]:
    return [one for one in Evidence if not one.satisfies(minimum)]
