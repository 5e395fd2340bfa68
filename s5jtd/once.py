"""A single pass: when it is over, and what exit code says how it went."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from s5jtd.daemon import Stop
from s5jtd.errors import Exit
from s5jtd.ledger.states import State
from s5jtd.ledger.store import Ledger
from s5jtd.pool import Pool
from s5jtd.stages.job import Job
from s5jtd.stages.plan import Plan
from s5jtd.stages.scan import Scan
from s5jtd.worker import Bell

#: A side that stays dead this long ends the pass.
DEAD_SECONDS = 15.0
#: Why it ended, where nothing else ended it.
ALL_DONE = "the pass is over"


class SinglePass:
    """Asked again and again while the road is at work."""

    def __init__(
        self,
        jobs: Callable[[], Sequence[Job]],
        scans: Mapping[int, Scan],
        ledger: Ledger,
        pool: Pool,
        plan: Plan,
        bell: Bell,
    ) -> None:
        """The parts of the daemon that know."""
        self._jobs = jobs
        self._scans = scans
        self._ledger = ledger
        self._pool = pool
        self._plan = plan
        self._bell = bell
        self._began = time.monotonic()
        self._last_looks: dict[int, int] = {}  # of a job whose files leave: how many looks it must have had

    def end(self) -> Stop | None:
        """The end, when each source was looked at and nothing is left to move."""
        if any(scan.passes_done == 0 for scan in self._scans.values()):
            return None
        left = {job.name: self._left(job) for job in self._jobs()}
        if any(left.values()) and not self._hopeless():
            return None
        if not any(left.values()) and self._one_more_look():
            return None
        return Stop(ALL_DONE, self._verdict(any(left.values())))

    def _one_more_look(self) -> bool:
        """Whether files are still to leave their folder: they do in a look after all was delivered."""
        owing = [job for job in self._jobs() if job.source.folder and job.source.folder.leave]
        waiting = False
        for job in owing:
            done = self._scans[job.id].passes_done
            last = self._last_looks.setdefault(job.id, done + 1 + job.scanning)
            if done < last:
                job.scan_requested.set()
                waiting = True
        if waiting:
            self._bell.ring()
        return waiting

    def _left(self, job: Job) -> int:
        objects, _ = self._ledger.views.counters(job.id)
        under_way = sum(objects[s.word] for s in (State.PULLING, State.STAGED, State.PUSHING))
        seen = objects[State.SEEN.word]
        return under_way + (0 if seen and not job.under_way and self._plan.held(job) else seen)

    def _hopeless(self) -> bool:
        """Nothing is in flight and nothing can be: a side is dead, or no volume can be used."""
        for job in self._jobs():
            objects, _ = self._ledger.views.counters(job.id)
            if objects["pulling"] or objects["pushing"]:
                return False
            dead_push = not job.destination.endpoints.available()
            no_way_on = dead_push if job.config.mode == "direct" else not self._pool.taking_pulls()
            dead_pull = not job.source.endpoints.available() or no_way_on
            if (objects["seen"] and not dead_pull) or (objects["staged"] and not dead_push):
                return False
        return time.monotonic() - self._began > DEAD_SECONDS

    def _verdict(self, unfinished: bool) -> int:
        errors = [scan.last_error for scan in self._scans.values() if scan.last_error is not None]
        if errors:
            return errors[0].exit
        if unfinished:
            return Exit.TEMPORARY
        reasons = [self._ledger.views.parked_reasons(job.id) for job in self._jobs()]
        codes = {code for found in reasons for code in found}
        if any(code.endswith("_mismatch") for code in codes):
            return Exit.MISMATCH
        return Exit.OBJECTS_FAILED if codes else Exit.DONE
