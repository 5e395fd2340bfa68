"""The composition root: every part is built here, once, in order of need; nobody below builds another."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog

from s5jtd import __version__
from s5jtd.alarms import Alarms
from s5jtd.config import Config, JobConfig, changes, load, merged
from s5jtd.control.server import ControlServer
from s5jtd.control.verbs import verbs
from s5jtd.controls import Controls
from s5jtd.crew import Crew, volume_of
from s5jtd.daemon import Inbox, Reload, Stop
from s5jtd.engine.choice import Engines
from s5jtd.engine.contract import Engine
from s5jtd.engine.s5cmd import S5cmd
from s5jtd.errors import Busy, Exit, LedgerError, S5jtError
from s5jtd.folders.engine import FolderEngine
from s5jtd.folders.paths import ignore_lease_breaks
from s5jtd.hotplug import HotPlug, volumes_now
from s5jtd.jobs import allowed, build_job, given_at_start, timetables
from s5jtd.ledger.chronicle import open_chronicle
from s5jtd.ledger.endpoint_checks import EndpointChecks
from s5jtd.ledger.passes import Passes
from s5jtd.ledger.states import ChunkState
from s5jtd.ledger.unfinished import Unfinished
from s5jtd.ledger.upkeep import Ballast
from s5jtd.link.line import Line
from s5jtd.link.tuning import Tuner
from s5jtd.log import listen as set_listener
from s5jtd.log import set_level
from s5jtd.meter import Meter
from s5jtd.metrics_file import MetricsFile
from s5jtd.model import Direction
from s5jtd.once import SinglePass
from s5jtd.pool import Pool, silent
from s5jtd.problems import Problems
from s5jtd.reports.folder import ReportFolder
from s5jtd.reports.run import Reporter
from s5jtd.shapes import Reloaded
from s5jtd.shipping import Shipping
from s5jtd.stages.budget import Budget
from s5jtd.stages.job import Job
from s5jtd.stages.lessons import Lessons
from s5jtd.stages.opening import Patience, open_ledger, prove
from s5jtd.stages.plan import Plan
from s5jtd.stages.probe import Probe
from s5jtd.stages.reroute import Reroute
from s5jtd.stages.resync import Resync
from s5jtd.stages.scan import Scan
from s5jtd.stages.sweep import Sweep
from s5jtd.stages.upkeep import Upkeep
from s5jtd.status import StatusDesk
from s5jtd.units import format_bytes
from s5jtd.volumes.seals import load_key
from s5jtd.volumes.volume import Volume
from s5jtd.worker import Bell, Stage, Worker

log = structlog.get_logger(__name__)

#: Threads that wait for servers' answers to single questions.
ASKING_THREADS = 16
#: The same for resyncs, which must not keep the road waiting.
COMPARING_THREADS = 8
#: How long a client waits for a reload that it asked for.
RELOAD_SECONDS = 30.0
#: With one pass, a state folder that stays full this long ends it.
ONCE_SECONDS = 60.0


class App:
    """The daemon's parts, and its life as `daemon.serve` wants it."""

    def __init__(self, config: Config, config_path: Path, inbox: Inbox, *, once: bool = False) -> None:
        """Build everything; nothing runs yet.

        Raises:
            S5jtError: what stands in the way, such as Busy when another daemon holds the state folder.
        """
        self.config = config
        self._config_path = config_path
        self._inbox = inbox
        self._once = once
        self._over = False  # the single pass
        self.ending = threading.Event()
        self._holds: set[int] = set()  # jobs to be interrupted at once
        self._lock = lock_state_dir(config.state_dir)
        self.chronicle = open_chronicle(config.state_dir)
        set_listener(self.chronicle.note)
        log.info(
            "daemon_started", version=__version__, pid=os.getpid(), jobs=[job.name for job in config.jobs],
            config=str(config_path),
        )  # fmt: skip
        self.bell = Bell()
        self.problems = Problems()
        self.meter = Meter()
        self.line = Line(config.state_dir, timetables(config))
        self.tuner = Tuner(lambda: allowed(self.config), self.line.rate)
        self.engines = _engines(self.line)
        self.engine: Engine = FolderEngine(self.engines)
        ignore_lease_breaks()
        self._ballast = Ballast(config.state_dir)
        lasting = ONCE_SECONDS if once else math.inf
        patience = Patience(self._ballast, self.problems, self.ending, lasting_seconds_max=lasting)
        self.ledger = open_ledger(config.state_dir / "ledger.db", self._ballast, patience)
        self.unfinished = Unfinished(self.ledger.database, on_blocked=patience)
        self._lessons = Lessons(EndpointChecks(self.ledger.database, on_blocked=patience), config.state_dir)
        key = load_key(config.state_dir)
        volumes = [volume_of(one, key) for one in volumes_now(config, self.ledger.views)]
        self.pool = Pool(volumes, self.ledger, self.problems)
        self._asking = ThreadPoolExecutor(ASKING_THREADS, "ask")
        self._comparing = ThreadPoolExecutor(COMPARING_THREADS, "compare")
        self._crew = Crew(self, self._asking, key)
        self._jobs: dict[int, Job] = {}
        self._scans: dict[int, Scan] = {}
        self._resyncs: dict[int, Resync] = {}
        self._workers: list[Worker] = []
        self._hiring = threading.Lock()
        self.desk = StatusDesk(
            self.ledger, self.pool, self.meter, self.tuner, self.problems, str(config_path)
        )
        self._metrics = MetricsFile(
            config.runtime_dir, lambda: self.desk.status(self.job_list()), self.problems
        )
        self.reports = ReportFolder(config.state_dir / "reports")
        self._reporter = Reporter(
            Passes(self.ledger.database, on_blocked=patience), self.reports, self.problems,
            engine=self.engine.name, keep_seconds=lambda: self.config.reports.keep, once=once,
        )  # fmt: skip
        self._shipping = Shipping(
            self.reports, lambda: self.config.reports.upload, config.runtime_dir, self.engine, self.problems,
            self.ending.is_set,
        )  # fmt: skip
        self._keep_orders(config)
        self._jobs |= {job.id: job for job in map(self._build, config.jobs)}
        self._alarms = Alarms(
            self.job_list, self.ledger, self.pool, self.reports, self.chronicle, self.tuner.headroom,
            self.problems,
        )  # fmt: skip
        self._hire()
        self._single_pass = SinglePass(
            self.job_list, self._scans, self.ledger, self.pool, self._plan, self.bell
        )

    # What the workers ask

    def jobs(self) -> dict[int, Job]:
        """The jobs there are now, by their id in the ledger."""
        return self._jobs

    def job_list(self) -> list[Job]:
        """The jobs in the order of the configuration."""
        return list(self._jobs.values())

    def halted(self, job: Job, direction: Direction) -> bool:
        """Whether what runs for a job must come to its end now."""
        return self.ending.is_set() or job.id in self._holds or self.line.stopped(direction)

    def hold(self, job_id: int, *, held: bool) -> None:
        """Interrupt what runs for a job, or let it run again."""
        (self._holds.add if held else self._holds.discard)(job_id)
        self.bell.ring()

    # Workers

    def _hire(self) -> None:
        for job in self._jobs.values():
            self._hire_scanner(job)
            self._hire_comparer(job)
        self.budget = Budget(lambda: self.config.limits, self.ledger.views)
        self._plan = Plan(
            self.job_list, self.ledger, self.pool, self.bell, self.budget, self.tuner, self.unfinished
        )
        self.hire_one(self._plan, critical=True)
        self.hire_one(
            Upkeep(self.ledger, self._ballast, self.problems, self.bell, self.ending), critical=False
        )
        self.hire_one(Probe(self.job_list, self._lessons, self.problems, self.bell), critical=False)
        self.hire_one(Sweep(self.job_list, self.ledger, self.unfinished), critical=False)
        self.hire_one(Reroute(self.ledger, self.pool, self.bell), critical=False)
        self.hire_one(self._reporter, critical=True)
        self.hire_one(self._metrics, critical=False)
        self.hire_one(self._shipping, critical=False)
        self.hire_one(
            HotPlug(
                lambda: self.config, self.pool, self.ledger.views, self.bell,
                add=self._crew.add, remove=self._crew.remove,
            ),
            critical=False,
        )  # fmt: skip
        self._crew.hire_movers()
        for volume in self.pool.volumes:
            self._crew.hire(volume)

    def _hire_scanner(self, job: Job) -> Worker:
        scan = Scan(job, self.ledger, self.engine, self._asking, self.problems, self.bell)
        self._scans[job.id] = scan
        return self.hire_one(scan, critical=True)

    def _hire_comparer(self, job: Job) -> Worker:
        resync = Resync(job, self.ledger, self.engine, self._comparing, self.problems, self.bell, self.ending)
        self._resyncs[job.id] = resync
        return self.hire_one(resync, critical=False)

    def hire_one(self, stage: Stage, *, critical: bool) -> Worker:
        """A worker for a stage, not started yet."""
        worker = Worker(stage, stop=self.ending, bell=self.bell, on_crash=self._on_crash, critical=critical)
        with self._hiring:
            self._workers = [*self._workers, worker]
        return worker

    def dismiss(self, stages: Iterable[Stage]) -> None:
        """Let the workers of some stages end after their present step."""
        with self._hiring:
            going = [worker for worker in self._workers if worker.stage in stages]
            self._workers = [worker for worker in self._workers if worker not in going]
        for worker in going:
            worker.retire()

    def _on_crash(self, name: str, error: Exception) -> None:
        if isinstance(error, LedgerError):
            log.error("ledger_failed", worker=name, error=str(error), hint=error.hint)
            self._inbox.put(Stop(str(error), error.exit))
            return
        log.error("worker_crashed", worker=name, exc_info=error)
        self._inbox.put(Stop(f"{name} crashed: {type(error).__name__}: {error}", Exit.FAILED))

    # The life

    def recover(self) -> None:
        """Take up the volumes that are there, with what an earlier life left on them.

        Raises:
            LedgerDamaged: nothing may be decided on its word; nothing was.
        """
        if not prove(self.ledger, self.problems, lambda: not self._asked_to_end()):
            self.ending.set()  # whoever starts now ends at once
            return
        self._reporter.recover()
        unpushed = self.ledger.unpush()
        if unpushed:
            log.info("pushes_were_cut", objects=unpushed)
        self.pool.attach_all(self._crew.recover)
        usable = {volume.ledger_id for volume in self.pool.usable()}
        for row in self.ledger.views.volumes():
            if row.id not in usable:
                self._unplan_all(row.id)

    def _asked_to_end(self) -> bool:
        """Whether a Stop waits to be heard; all messages stay where they are."""
        waiting = [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]
        for message in waiting:
            self._inbox.put(message)
        return any(isinstance(message, Stop) for message in waiting)

    def _unplan_all(self, volume_id: int) -> None:
        """A volume that is not there cannot keep what it was to receive."""
        for chunk in self.ledger.views.chunks(volume_id, ChunkState.PLANNED, ChunkState.PULLING):
            self.ledger.unplan(chunk)

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """The control socket."""
        self.config.runtime_dir.mkdir(parents=True, exist_ok=True)
        with ControlServer(self.config.runtime_dir / "control.sock", verbs(Controls(self))):
            yield

    def workers(self) -> Sequence[Worker]:
        """The workers there are now."""
        return tuple(self._workers)

    def halt(self) -> None:
        """Every worker comes to a safe point; those in a dead disk are not waited for."""
        self.ending.set()
        self.bell.ring()
        for worker in self._workers:
            if worker.ident is not None:
                worker.join(timeout=60.0 if worker.critical else 30.0)
        self._reporter.last_words(interrupted=not self._over)
        self._shipping.last_try()

    def close(self) -> None:
        """Let go of everything that is held."""
        self._asking.shutdown(wait=False, cancel_futures=True)
        self._comparing.shutdown(wait=False, cancel_futures=True)
        self._crew.close()
        self.line.close()
        self.ledger.close()
        for volume in self.pool.volumes:
            volume.detach()
        self._metrics.remove()
        set_listener(None)
        self.chronicle.close()
        os.close(self._lock)

    def enter(self, state: str) -> None:
        """How far the life has come."""
        self.desk.state = state
        if state == "running":
            log.info("daemon_ready")

    def headline(self) -> str:
        """One line for `systemctl status`."""
        parts = []
        for job in self.job_list():
            shot = self.desk.job(job)
            left = sum(shot["bytes"][word] for word in ("seen", "pulling", "staged", "pushing"))
            done = shot["objects"]["delivered"]
            parts.append(f"{job.name}: {shot['state']}, {done} delivered, {format_bytes(left)} to go")
        problems = self.problems.now()
        return "; ".join(parts) + (f"; {len(problems)} problems" if problems else "")

    def tend(self) -> None:
        """Keep the list of problems true; a worker stuck on a volume means that the volume is dead."""
        self._alarms.look()
        for worker in self._workers:
            if worker.critical or not worker.stuck():
                continue
            volume = getattr(worker.stage, "volume", None)
            if isinstance(volume, Volume) and volume.state.gives_pushes:
                self.pool.fail(volume, silent(volume))

    def reload(self, answer: Future[Reloaded] | None) -> None:
        """Read the configuration again; whoever asked hears how it went, and the log does in any case."""
        try:
            told = self._reload_config()
        except S5jtError as error:
            self.problems.raise_("config_invalid", "config", str(error), error.hint)
            log.error("reload_refused", error=str(error), hint=error.hint)
            if answer is not None:
                answer.set_exception(error)
        else:
            if answer is not None:
                answer.set_result(told)

    def ask_to_reload(self) -> Reloaded:
        """The same for a client, from its thread: the service manager hears of it as it does of a signal.

        Raises:
            S5jtError: the file is bad; the old configuration stays in force.
            Busy: the daemon is starting or ending, or has no time.
        """
        answer: Future[Reloaded] = Future()
        self._inbox.put(Reload(answer))
        try:
            return answer.result(RELOAD_SECONDS)
        except TimeoutError:
            raise Busy("the configuration was not read yet", hint="look at: s5jtctl status") from None

    def _reload_config(self) -> Reloaded:
        new = load(self._config_path)
        changed, kept = changes(self.config, new)
        self._apply(merged(self.config, new))
        self.problems.clear("config_invalid", "config")
        given = given_at_start(self.config)
        log.info("reloaded", changed=changed, kept=kept, given=given)
        return {"result": "reloaded", "changed": changed, "kept": kept, "given": given}

    def _keep_orders(self, *configs: Config) -> None:
        self.ledger.database.keep_orders({job.order for config in configs for job in config.jobs})

    def _apply(self, new: Config) -> None:
        """All of it or, where one job cannot be built, nothing."""
        self._keep_orders(self.config, new)  # the planner may still ask in the old one
        known = {job.name: job.id for job in self.job_list()}  # a ledger that is stuck holds up none of these
        fresh = {job.id: job for job in (self._build(one, known.get(one.name)) for one in new.jobs)}
        for job in [job for job in self.job_list() if job.id not in fresh]:
            self._remove_job(job)
        for job in fresh.values():
            if job.id not in self._jobs:
                self._add_job(job)
            elif self._jobs[job.id].config != job.config:
                self._change_job(self._jobs[job.id], job)
        self._jobs = {id_: self._jobs[id_] for id_ in fresh}  # in the order of the file
        self.config = new
        self.line.configure(timetables(new))
        set_level(new.log.level)
        self.bell.ring()

    def _change_job(self, job: Job, fresh: Job) -> None:
        """A side that stays as it was keeps what it knows of its endpoints."""
        if job.config.source != fresh.config.source:
            job.source = fresh.source
        if job.config.destination != fresh.config.destination:
            job.destination = fresh.destination
        job.config = fresh.config
        self.problems.clear_about("endpoint_down", job.name)  # whose is still down is noticed again
        job.scan_requested.set()

    def _build(self, config: JobConfig, known_id: int | None = None) -> Job:
        job = build_job(config, self.ledger, self.config.runtime_dir, known_id)
        self._lessons.teach(job)
        for endpoint in (*job.source.endpoints.all(), *job.destination.endpoints.all()):
            endpoint.client.spend = self.line.spend
        return job

    def _add_job(self, job: Job) -> None:
        self._jobs = {**self._jobs, job.id: job}
        self._hire_scanner(job).start()
        self._hire_comparer(job).start()

    def _remove_job(self, job: Job) -> None:
        self._jobs = {id_: one for id_, one in self._jobs.items() if id_ != job.id}
        stages: tuple[Stage, ...] = (self._scans.pop(job.id), self._resyncs.pop(job.id))
        self.dismiss(stages)
        self.problems.clear_about("", job.name)

    def finished(self) -> Stop | None:
        """With `--once`: the end, when each source was looked at and nothing is left to move."""
        end = self._single_pass.end() if self._once else None
        self._over = end is not None
        return end


def _engines(line: Line) -> Engines:
    engines = Engines(
        S5cmd(ways=line.open), line.open, lambda direction, size: line.budget(direction).draw(size)
    )
    engines.s5cmd.check()
    return engines


def lock_state_dir(state_dir: Path) -> int:
    """The lock that makes a state folder one daemon's; held while the descriptor is open.

    Raises:
        Busy: another process holds it.
        LedgerError: the folder cannot be used.
    """
    path = state_dir / "lock"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerError(
            f"{error.filename}: {error.strerror}", hint="check state_dir and who owns it"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise Busy(
            f"{state_dir} is held by process {holder or 'unknown'}",
            hint="is s5jtd running? `systemctl status s5jtd`",
        ) from error
    with contextlib.suppress(OSError):  # a courtesy to whoever is refused; a full disk must not stop us here
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor
