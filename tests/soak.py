"""`make soak`: power cuts, crash points and kills, as many as one has time for, and an honest table.

    python -m tests.soak --cuts 1000 --kills 200 --pairs 100

Needs root, for it mounts file systems.  Ends with 1 if any promise was broken; every number it prints is
what was done, not what was asked for.  One line of JSON comes last.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crashpoints import FATES, Case, Strike, run_case, sweep
from tests.nursery import Nursery, why_not_watched
from tests.powercut import Result, Round, site
from tests.servers import Server, running_rclone

#: The lists of a server, and so the looks at it, grow with its objects: a round begins with empty ones.
CUTS_OF_A_ROUND = 40
KINDS = (
    {"ledger": "ext4", "volume-1": "ext4", "volume-2": "xfs"},
    {"ledger": "xfs", "volume-1": "xfs", "volume-2": "ext4"},
)
#: Durable calls in a tiny job's life; a second strike falls somewhere among so many.
CALLS = 75


@dataclass
class Soak:
    """What was done, and what broke."""

    source: Server
    destination: Server
    nursery: Nursery
    folder: Path
    seed: int
    ends_at: float  #: monotonic; nothing begins after it
    rounds: list[Result] = field(default_factory=list)
    cases: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    _rooms: int = 0

    @property
    def over(self) -> bool:
        """Whether the time is up, or so much broke that more of it tells nothing new."""
        return time.monotonic() >= self.ends_at or len(self.violations) >= 20

    def room(self) -> Path:
        """A new folder."""
        self._rooms += 1
        return self.folder / str(self._rooms)

    def cut(self, cuts: int) -> None:
        """Power cuts at random moments, in rounds."""
        self._rounds("power cuts", cuts, KINDS)

    def kill(self, kills: int) -> None:
        """SIGKILL at random moments, and nothing else lost than the process."""
        self._rounds("kills", kills, ({},))

    def lose_ledgers(self, kills: int) -> None:
        """SIGKILL at random moments, and before every second next life another ledger."""
        self._rounds("kills and other ledgers", kills, ({},), other_ledgers=True)

    def _rounds(
        self, what: str, count: int, kinds: Sequence[dict[str, str]], *, other_ledgers: bool = False
    ) -> None:
        left, number = count, 0
        while left > 0 and not self.over:
            of = kinds[number % len(kinds)]
            name = f"{what} {'/'.join(of.values()) or 'in plain folders'}"
            with site(self.room(), self.source, self.destination, self.nursery, of) as struck:
                seed = self.seed * 1000 + number
                one = Round(struck, name, seed, other_ledgers=other_ledgers)
                result = one.run(min(left, CUTS_OF_A_ROUND), self.ends_at)
            self.rounds.append(result)
            for violation in result.violations:
                self._broke(f"{name}, seed {seed}: {violation}")
            tell(f"{name}: {result.cuts} in {result.seconds:.0f} s, {len(result.violations)} violations")
            left -= max(1, result.cuts)
            number += 1

    def sweep(self, fate: str, first: int, stride: int) -> None:
        """One fate at every durable call of a tiny job, or at each so many-th."""
        for case in sweep(
            self.room(), self.source, self.destination, self.nursery, fate,
            first=first, stride=stride, until_monotonic=self.ends_at,
        ):  # fmt: skip
            self._note(f"{fate} at each call", case)
        how_far = "stopped early" if self.over else "to the last"
        tell(f"{fate}: {self.cases[f'{fate} at each call']} calls, {how_far}")

    def pairs(self, count: int) -> None:
        """Two strikes: the second one hits the recovery from the first."""
        luck = random.Random(self.seed)
        for _ in range(count):
            if self.over:
                return
            strikes = [Strike(luck.randint(1, CALLS), luck.choice(FATES)) for _ in range(2)]
            case = run_case(self.room(), self.source, self.destination, self.nursery, strikes)
            self._note("two strikes", case)

    def _note(self, what: str, case: Case) -> None:
        self.cases[what] += 1
        if case.faults:
            self._broke(f"{what}: {case.told}")

    def _broke(self, violation: str) -> None:
        self.violations.append(violation)
        tell(f"VIOLATION {violation}")

    def table(self) -> list[tuple[str, int, int, int, int, int, float]]:
        """A row for each kind: strikes, acknowledged, copies compared, objects, sent again, seconds."""
        rows: dict[str, list[Result]] = {}
        for one in self.rounds:
            rows.setdefault(one.kinds, []).append(one)
        return [
            (
                kind,
                sum(one.cuts for one in these),
                sum(one.acknowledged for one in these),
                sum(one.copies for one in these),
                sum(one.objects for one in these),
                sum(one.sent_again for one in these),
                sum(one.seconds for one in these),
            )
            for kind, these in rows.items()
        ]


def tell(line: str) -> None:
    print(line, flush=True)


def report(soak: Soak, seconds: float) -> None:
    """The table, then all that broke, then the same as one line of JSON."""
    head = ("", "strikes", "acknowledged", "copies", "objects", "sent again", "seconds")
    tell(("{:34}" + "{:>13}" * 6).format(*head))
    for row in soak.table():
        tell("{:34}{:13,}{:13,}{:13,}{:13,}{:13,}{:13,.0f}".format(*row))
    for what, count in soak.cases.items():
        tell(f"{what:34}{count:13,}")
    tell(f"violations: {len(soak.violations)}")
    for violation in soak.violations:
        tell(f"  {violation}")
    told = {
        "seconds": round(seconds, 1),
        "seed": soak.seed,
        "rounds": [one.told() for one in soak.rounds],
        "cases": soak.cases,
        "violations": len(soak.violations),
    }
    tell(json.dumps(told))


@contextlib.contextmanager
def surroundings(arguments: argparse.Namespace) -> Iterator[Soak]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s5jtd-soak-")))
        servers = []
        for name in ("source", "destination"):
            (folder / name).mkdir()
            servers.append(stack.enter_context(running_rclone(folder / name)))
        yield Soak(
            servers[0], servers[1], stack.enter_context(Nursery()), folder, arguments.seed,
            time.monotonic() + arguments.minutes * 60,
        )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cuts", type=int, default=1000, help="power cuts at random moments")
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs at random moments")
    parser.add_argument("--ledgers", type=int, default=50, help="SIGKILLs with other ledgers afterwards")
    parser.add_argument("--pairs", type=int, default=100, help="two strikes, the second into the recovery")
    parser.add_argument("--no-sweep", action="store_true", help="do not strike at every durable call")
    parser.add_argument(
        "--fates", nargs="+", choices=FATES, default=list(FATES), metavar="FATE",
        help=f"what befalls every durable call in turn: {', '.join(FATES)} (all)",
    )  # fmt: skip
    parser.add_argument("--first", type=int, default=1, help="the first durable call to strike")
    parser.add_argument("--stride", type=int, default=1, help="strike at each so many-th durable call")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing after so long")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 1_000_000)
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0:
        tell("the soak mounts file systems, which needs root")
        return 2
    began = time.monotonic()
    with surroundings(arguments) as soak:
        soak.cut(arguments.cuts)
        soak.kill(arguments.kills)
        soak.lose_ledgers(arguments.ledgers)
        if reason := why_not_watched():
            tell(f"no crash points: {reason}")
        else:
            for fate in () if arguments.no_sweep else arguments.fates:
                soak.sweep(fate, arguments.first, arguments.stride)
            soak.pairs(arguments.pairs)
        report(soak, time.monotonic() - began)
    return 1 if soak.violations else 0


if __name__ == "__main__":
    sys.exit(main())
