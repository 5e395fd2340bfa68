"""Cuts the power of file systems under the real daemon, and looks for anything that broke a promise.

State folder and volumes lie on loop devices.  A cut is FS_IOC_SHUTDOWN without flushing the log: what was
not synced is lost, as by a power cut, in milliseconds.  Then the daemon is killed, the file systems are
mounted again, which replays their journals, and what ledger and volumes say is read without any code
of the daemon, before it may start again.  What the cuts must never show:

- an object acknowledged as delivered before the cut that the ledger no longer knows as delivered;
- a ledger that says `staged` where the file is absent or holds other bytes;
- a PUT of an object whose delivery was committed before a cut;
- counters that disagree with the rows, a ledger that SQLite finds damaged;
- anything written under a mount point whose file system is not mounted;
- a daemon that ends by itself or does not start; in the end, buckets that differ, objects that are
  parked, files that were left behind.
"""

from __future__ import annotations

import base64
import contextlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from s5jtctl.client import Failure
from s5jtd.ledger.store import Ledger as Ledgers
from tests.appliance import Appliance, contents, side, until
from tests.autopsy import Ledger, claims, read_ledger, refuted, unsealed
from tests.filesystems import MIB, LoopVolume, loop_volume
from tests.nursery import KILL, Life, Nursery
from tests.servers import Server
from tests.tampering import CHANGES, delete, flip_bytes, mend

JOB = "archive"
#: So many cuts there are, however long they take.
CUTS_MIN = 3
#: A daemon in which nothing moved for so long since its first answer is struck all the same.
MOVES_SECONDS_MAX = 6.0
#: However busy the machine is, whoever was killed is gone after so long, and nobody has its files open.
GONE_SECONDS_MAX = 90.0
#: Objects under this prefix are put once and never change; only of them a second PUT is a broken promise.
ONCE = "once/"
#: Objects under this prefix are overwritten again and again.
CHANGING = "changing/"


# The surroundings


class Site:
    """Two servers, file systems that can lose their power, and the appliance on them."""

    def __init__(
        self,
        folder: Path,
        source: Server,
        destination: Server,
        nursery: Nursery,
        systems: dict[str, LoopVolume],
        **job: Any,
    ) -> None:
        self.source = source
        self.destination = destination
        self.here, self.there = source.new_bucket(), destination.new_bucket()
        self.systems = systems  #: "ledger" (where it has one of its own) and the volumes; none: plain folders
        self.nursery = nursery
        self.scratch = folder / "scratch"
        self.appliance = Appliance(folder, volumes=0 if systems else 2)
        self.appliance.volumes += [s.path for name, s in systems.items() if name != "ledger"]
        self.state_dir = systems["ledger"].path / "state" if "ledger" in systems else folder / "state"
        self.appliance.configure(
            {
                "name": JOB,
                "source": side(source, self.here),
                "destination": side(destination, self.there),
                "scan_every": "1s",
                "chunk": {"objects": 6},
                **job,
            },
            state_dir=str(self.state_dir),
        )
        self._puts_from = destination.log._path.stat().st_size
        self.put = Counter[str]()  #: PUTs that reached the destination

    def start(self, *, at: int | None = None, fate: str = KILL, on: str = "") -> Life:
        """A life from the nursery, see there; it may not have got to its first answer yet."""
        arguments = ["--config", str(self.appliance.config_path), "run"]
        life = self.nursery.start(arguments, self.appliance.log_path, at=at, fate=fate, on=on)
        self.appliance.process = cast("Any", life)
        return life

    def mounted(self, path: str) -> bool:
        return os.path.ismount(path) or path not in {str(s.path) for s in self.systems.values()}

    def new_puts(self) -> Counter[str]:
        """The objects that were sent to the destination since this was asked last."""
        log = self.destination.log
        with log._path.open("rb") as file:
            file.seek(self._puts_from)
            whole = file.read().rpartition(b"\n")[0]
        self._puts_from += len(whole)
        requests = (log._parse(line) for line in whole.split(b"\n"))
        puts = Counter(
            request.key.decode()
            for request in requests
            if request is not None
            and request.method in ("PUT", "POST")
            and request.kind in ("object", "upload")
        )
        self.put += puts
        return puts

    def ledger(self) -> Ledger:
        return read_ledger(self.state_dir / "ledger.db", self.scratch)

    def mount(self, name: str) -> list[str]:
        """Put a file system back in; what was written under its mount point meanwhile."""
        system = self.systems[name]
        found = [f"{name}: {left} was written under the mount point" for left in os.listdir(system.path)]
        system.mount()
        return found

    def left_behind(self) -> list[str]:
        """Chunks on the volumes, and whatever does not belong there."""
        folders = [volume / "s5jtd" for volume in self.appliance.volumes]
        found = [left for folder in folders if folder.is_dir() for left in folder.iterdir()]
        return [str(left) for left in found if left.name != "ledger"]  # copies of it stay there

    def settle(self, seconds: float = 180.0) -> list[str]:
        """Let it come to its end with a daemon started as users start it; what is wrong then."""
        appliance = self.appliance
        before = frozenset(key for key, _ in self.ledger().delivered if key.startswith(ONCE))
        self.new_puts()
        try:
            appliance.start()
            appliance.ask("job.scan", job=JOB, wait=True)
            counted = appliance.settled(seconds)
            until(lambda: not self.left_behind(), "the release of all volumes", seconds)
        except (AssertionError, Failure) as error:
            rows = Counter(row.state.word for row in self.ledger().rows)
            return [f"{error}: {dict(rows)}, {self.left_behind()}, {appliance.log()[-4000:]}"]
        faults = [
            f"{count} objects are {word}"
            for word, count in counted.items()
            if word not in ("delivered", "gone")
        ]
        if appliance.stop() != 0:
            faults.append(f"it ended with {appliance.process.returncode if appliance.process else None}")
        ledger = self.ledger()
        faults += ledger.faults
        faults += [f"{key} travelled twice" for key in self.new_puts() if key in before]
        return [*faults, *self.differences()]

    def holdings(self) -> list[str]:
        """The keys that the destination holds, asked by boto3."""
        pages = self.destination.boto().get_paginator("list_objects_v2").paginate(Bucket=self.there)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def differences(self) -> list[str]:
        """How the buckets differ, byte for byte, read by boto3 and nothing of ours."""
        here, there = contents(self.source, self.here), contents(self.destination, self.there)
        return [
            f"{key!r} is {'missing' if key not in there else 'different' if key in here else 'extra'}"
            for key in sorted(here.keys() | there.keys())
            if here.get(key) != there.get(key)
        ]


@contextlib.contextmanager
def site(
    folder: Path, source: Server, destination: Server, nursery: Nursery, kinds: dict[str, str], **job: Any
) -> Iterator[Site]:
    """A site whose file systems are made anew: `kinds` says which, such as {"ledger": "ext4"}.

    Without any, state folder and volumes are plain folders, and there is no power to cut.
    """
    with contextlib.ExitStack() as stack:
        systems = {
            name: stack.enter_context(loop_volume(folder / name, kind, 64 * MIB))
            for name, kind in kinds.items()
        }
        made = Site(folder, source, destination, nursery, systems, **job)
        # Last in, first out: the daemon goes before its file systems.
        yield stack.enter_context(_ending(made))


@contextlib.contextmanager
def _ending(made: Site) -> Iterator[Site]:
    with made.appliance:
        yield made


def whole_at(server: Server, bucket: str, sizes: Mapping[str, int]) -> set[str]:
    """Which of the objects under ONCE a server of ours holds to their last byte, asking its folder."""
    folder = server.log._path.parent / "data" / bucket / ONCE
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        there = {f"{ONCE}{entry.name}": entry.stat().st_size for entry in entries}
    return {key for key, size in there.items() if sizes.get(key) == size}


def when_free(act: Callable[[], None], seconds: float = GONE_SECONDS_MAX) -> None:
    """Do what the last process with a file open forbids, as soon as that process is gone."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return act()
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


# What the world keeps doing meanwhile


class Feeder(threading.Thread):
    """Puts new objects into the source, so that a transfer is always under way."""

    def __init__(self, site: Site, seed: int, *, backlog: int = 300) -> None:
        super().__init__(name="feeder", daemon=True)
        self._site = site
        self._luck = random.Random(seed)
        self._backlog = backlog
        self._over = threading.Event()
        self.sizes: dict[str, int] = {}  #: of the objects under ONCE, in bytes
        self.bytes = 0
        self.delivered = 0  #: told by whoever reads the ledger
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with contextlib.closing(self._site.source.boto()) as boto:
                while not self._over.is_set():
                    if len(self.sizes) - self.delivered >= self._backlog:
                        self._over.wait(0.02)
                        continue
                    self._put_one(boto)
        except Exception as error:  # noqa: BLE001  it is raised where somebody waits for it
            self.error = error

    def _put_one(self, boto: Any) -> None:
        luck = self._luck
        large = luck.random() < 0.01
        size = (
            luck.randrange(2 * MIB, 5 * MIB) if large else luck.choice((0, 1, 4096, luck.randrange(20_000)))
        )
        if luck.random() < 0.02:
            key = f"{CHANGING}{luck.randrange(20)}"
        else:
            key = f"{ONCE}{len(self.sizes):07d}"
            self.sizes[key] = size
        boto.put_object(Bucket=self._site.here, Key=key, Body=luck.randbytes(size))
        self.bytes += size

    def finish(self) -> None:
        self._over.set()
        self.join()
        if self.error is not None:
            raise self.error


# Cutting


@dataclass
class Result:
    """What a round of cuts came to."""

    kinds: str
    seed: int
    cuts: int = 0
    starts_cut: int = 0  #: of the cuts, those before the daemon's first answer
    acknowledged: int = 0  #: deliveries that somebody was told of before the cut that might have lost them
    copies: int = 0  #: local copies that the ledger counted on, compared after each cut
    ledgers_changed: int = 0
    away: int = 0  #: lives without one of the volumes
    objects: int = 0  #: delivered in the end
    bytes: int = 0
    sent_again: int = 0  #: objects with more than one PUT: the cut came before their delivery was committed
    folded_in: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        return asdict(self)


class Round:
    """Many cuts of one site, one after another, and the settling at the end."""

    def __init__(self, site: Site, kinds: str, seed: int, *, other_ledgers: bool = False) -> None:
        """`other_ledgers`: now and then the ledger is lost, replaced by an older one, or damaged."""
        self.site = site
        self._other_ledgers = other_ledgers
        self.result = Result(kinds, seed)
        self.luck = random.Random(seed)
        self.feeder = Feeder(site, seed)
        self._away: set[str] = set()  #: volumes that are not mounted now
        self._low = ""  #: below this key everything is known as delivered
        self._acknowledged: set[str] = set()
        self._committed: frozenset[str] = frozenset()
        self._held: set[str] = set()  #: at the destination, though the ledger does not know it yet

    def run(self, cuts: int, give_up_at: float = float("inf")) -> Result:
        """Cut so often, or, after a few that met something, until `give_up_at` (monotonic); then settle."""
        began = time.monotonic()
        self.feeder.start()
        until(lambda: len(self.feeder.sizes) > 50 or self.feeder.error, "the first objects of the source")
        while self.result.cuts < cuts and len(self.result.violations) < 5:
            enough = self.result.cuts >= CUTS_MIN and self.result.copies + self.result.acknowledged > 0
            if enough and time.monotonic() >= give_up_at:
                break
            self._cut()
        self.feeder.finish()
        for name in self._away:
            self._violated(*self.site.mount(name))
        self.result.violations += self.site.settle()
        for crash in self.site.appliance.events("worker_crashed"):
            self._violated(f"{crash['worker']} crashed: {crash['exception'][-1000:]}")
        self.result.objects = len(self.feeder.sizes)
        self.result.bytes = self.feeder.bytes
        self.result.sent_again = sum(n > 1 for key, n in self.site.put.items() if key.startswith(ONCE))
        self.result.folded_in = len(self.site.appliance.events("chunk_folded_in"))
        self.result.seconds = round(time.monotonic() - began, 1)
        return self.result

    def _cut(self) -> None:
        site, luck = self.site, self.luck
        struck = luck.choice(self._choices())
        life = site.start()
        if self._lives_until(life, early=luck.random() < 0.15):
            before_ms = self._strike(life, struck)
            self.result.cuts += 1
        else:
            self._violated(
                f"the daemon ended by itself with {life.returncode}: {site.appliance.log()[-2000:]}"
            )
            before_ms = float("inf")
        for name in struck:
            when_free(partial(site.systems[name].unmount, lazily=False))
        back = {*struck, *self._away}
        # Not before the ledger has met it: an empty folder that never was a volume may become one.
        leave = struck and self._committed and luck.random() < 0.1
        self._away = {luck.choice(struck)} - {"ledger"} if leave else set()
        for name in back - self._away:
            self._violated(*site.mount(name))
        self.result.away += len(self._away)
        if self._other_ledgers and self._committed and luck.random() < 0.5:
            self._change_ledger()
            before_ms = 0.0  # nothing can be held against it before the volumes were asked
        self._inspect(before_ms)

    def _change_ledger(self) -> None:
        site, older = self.site, self.site.scratch / "older.db"
        path = site.state_dir / "ledger.db"
        change = self.luck.choice(CHANGES if older.exists() else (delete, flip_bytes))
        Ledgers.copy(path, site.scratch / "now.db")
        change(path, older)
        mend(site.appliance, path)
        if self.luck.random() < 0.5 or not older.exists():
            (site.scratch / "now.db").replace(older)
        self._acknowledged.clear()  # the ledger may not know; that nothing travels twice still holds
        self.result.ledgers_changed += 1

    def _choices(self) -> list[tuple[str, ...]]:
        """What loses its power together: each alone, all volumes, all."""
        names = tuple(name for name in self.site.systems if name not in self._away)
        volumes = tuple(name for name in names if name != "ledger")
        return [*((name,) for name in names), volumes, names, names]

    def _lives_until(self, life: Life, *, early: bool) -> bool:
        """Watch it work until a random instant, and note what it acknowledges; False if it ended."""
        instant = time.monotonic() + self.luck.uniform(0.0, 0.5) if early else None
        limit = float("inf")
        before: dict[str, int] | None = None
        while instant is None or time.monotonic() < instant:
            if life.poll() is not None:
                return False
            try:
                self._acknowledged |= self._deliveries_told()
                counted = self.site.appliance.counted()
            except Failure as failure:
                if failure.code != "not_running":
                    raise
                time.sleep(0.02)
                continue
            if before is None:
                before, limit = counted, time.monotonic() + MOVES_SECONDS_MAX
            # On a busy machine a life is mostly its beginning: the time counts from when something moved.
            if instant is None and (counted != before or time.monotonic() > limit):
                instant = time.monotonic() + self.luck.uniform(0.0, 1.5)
            time.sleep(self.luck.uniform(0.0, 0.05))
        self.result.starts_cut += before is None
        return True

    def _deliveries_told(self) -> set[str]:
        """What the daemon says it delivered, beyond what was known when it was struck last."""
        # The cursor is a key; this one is no earlier page's, because asking for all of them takes too long.
        after = base64.urlsafe_b64encode(self._low.encode()).decode()
        page = self.site.appliance.ask("object.list", job=JOB, state="delivered", after=after, limit=1000)
        return {row["key"] for row in page["objects"] if row["key"].startswith(ONCE)}

    def _strike(self, life: Life, struck: Sequence[str]) -> float:
        """Cut and kill, or kill alone; what was staged before the returned time must have survived.

        Half of the time the processor stops first, as it does in a power cut: then there is nobody who
        could believe an answer that was given too late.  Otherwise the daemon sees its disk die.  That
        is for volumes alone: of a ledger's late answers nobody could tell later what was believed.
        """
        systems = [self.site.systems[name] for name in struck]
        if not systems:
            life.kill()
            life.wait(GONE_SECONDS_MAX)
            return float("inf")
        dying_disk = "ledger" not in struck and self.luck.random() < 0.5
        if not dying_disk:
            os.kill(life.pid, signal.SIGSTOP)
        before_ms = float(int(time.time() * 1000))  # the ledger knows no part of a millisecond
        for system in systems:
            system.cut_power()
        if dying_disk and self.luck.random() < 0.3:
            time.sleep(self.luck.uniform(0.0, 0.5))
        life.kill()
        life.wait(GONE_SECONDS_MAX)
        return before_ms if dying_disk else float("inf")

    def _inspect(self, before_ms: float) -> None:
        ledger = self.site.ledger()
        delivered = frozenset(key for key, _ in ledger.delivered if key.startswith(ONCE))
        self._violated(*ledger.faults)
        self._violated(*(f"{key} was acknowledged and is lost" for key in self._acknowledged - delivered))
        counted_on = claims(ledger.rows, self.site.mounted, before_ms)
        self._violated(*filter(None, map(refuted, counted_on)))
        self._violated(*filter(None, map(unsealed, {row.chunk: row for row in counted_on}.values())))
        puts = self.site.new_puts()
        self._violated(*(f"{key} travelled twice" for key in puts if key in self._committed))
        self._violated(*(f"{key} was sent, and it was there" for key in puts if key in self._held))
        self.result.acknowledged += len(self._acknowledged - self._committed)
        self.result.copies += len(counted_on)
        self._acknowledged.clear()
        self._committed = delivered
        # Only what is known to have been sent: what a dead daemon sent last may be stored, and logged, later.
        there = whole_at(self.site.destination, self.site.there, self.feeder.sizes)
        self._held = (there & self.site.put.keys()) - delivered
        self._low = _everything_below(delivered)
        self.feeder.delivered = len(delivered)

    def _violated(self, *what: str) -> None:
        self.result.violations += [f"cut {self.result.cuts}: {one}" for one in what]


def _everything_below(delivered: frozenset[str]) -> str:
    """The last key before the first gap."""
    number = 0
    while f"{ONCE}{number:07d}" in delivered:
        number += 1
    return f"{ONCE}{number - 1:07d}" if number else ""
