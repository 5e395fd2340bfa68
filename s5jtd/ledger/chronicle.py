"""What happened, numbered without a gap and kept across restarts: the events that clients subscribe to.

Plain lines of JSON beside the ledger and not rows in it: an event must be tellable while the ledger is
full or damaged, and must never make a move of objects wait.  A new event is told to clients only once it
is durable, so that a number they have seen never means another event after a power cut.  (Where its disk
refuses it, it is told all the same, and after a restart its number may be given again; `trouble` says so.)

Old files go as a whole: about `FILES` times `FILE_BYTES` are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from s5jtd import log
from s5jtd.errors import LedgerError
from s5jtd.events import ROUTINE
from s5jtd.ledger.files import make_folder, sync_folder

FILE_BYTES: Final = 1 << 20
FILES: Final = 16
#: Events that are numbered and known without reading a file: followers live on them.
TAIL: Final = 1000
#: Of those that are no routine, so many are at hand for a screen.
NEWS: Final = 100
#: Waiting to be numbered; beyond it the newest are left out and counted.
WAITING_MAX: Final = 10_000
#: One sync for all that happened in so long.
GATHER_SECONDS: Final = 0.2
MESSAGE_LENGTH_MAX: Final = 2000
LINE_LENGTH_MAX: Final = 16 << 10
_NOT_DATA: Final = frozenset({"at", "level", "event", "job", "exception", "stage"})

Event = dict[str, Any]


class Chronicle:
    """The events of one state folder; one process writes them."""

    def __init__(self, folder: Path) -> None:
        """Take up the numbers where an earlier life left them; a last line that was cut is no event.

        Raises:
            OSError: the folder cannot be used.
        """
        self.trouble: str | None = None  #: why new events are not durable, while they are not
        self._folder = folder
        make_folder(folder)
        self._waiting: deque[Event] = deque()
        self._left_out = 0
        self._happened = threading.Event()
        self._closing = False
        self._told = threading.Condition()  # guards what follows
        self._tail: deque[Event] = deque(maxlen=TAIL)
        self._news: deque[Event] = deque(maxlen=NEWS)
        self._newest = self._take_up()
        self._unwritten: list[bytes] = []  # the writer's own
        self._writer = threading.Thread(target=self._write_all, name="events", daemon=True)
        self._writer.start()

    def note(self, record: Mapping[str, Any]) -> None:
        """Something happened: a record of the log, plain and without secrets.  Never waits, never raises."""
        if self._closing:
            return
        if len(self._waiting) >= WAITING_MAX:
            self._left_out += 1
            return
        self._waiting.append(_event(record))
        self._happened.set()

    def close(self) -> None:
        """Make durable what there is, and end every stream."""
        self._closing = True
        self._happened.set()
        self._writer.join(timeout=10.0)
        with self._told:
            self._told.notify_all()

    @property
    def newest(self) -> int:
        """The number of the newest event that is told; 0: there is none."""
        return self._newest

    # Reading

    def news(self, count: int) -> list[Event]:
        """The newest events that are no routine, oldest first, as far as they are at hand."""
        with self._told:
            return list(self._news)[-count:] if count else []

    def since(self, since: int | str | None, *, follow: bool) -> Iterator[Event | None]:
        """The events after a number, or since a time (RFC 3339), or from now on; see `Controls`.

        What is no longer kept is left out: the first number tells.  A number that is yet to come means
        that the events were begun anew, and is answered with all there is to come.
        """
        if isinstance(since, str):
            moment = datetime.fromisoformat(since)
            return self._stream(self._first_written_since(moment), moment, follow=follow)
        first = self._newest + 1 if since is None else min(since, self._newest) + 1
        return self._stream(first, None, follow=follow)

    def _stream(self, number: int, moment: datetime | None, *, follow: bool) -> Iterator[Event | None]:
        last = None if follow else self._newest
        while True:
            events = self._from(number)
            for event in events:
                number = event["id"] + 1
                if last is not None and event["id"] > last:
                    return
                if moment is not None and datetime.fromisoformat(event["at"]) < moment:
                    continue
                moment = None  # numbers are the order: what comes later is later, whatever the clock says
                yield event
            if not events:
                if last is not None:
                    return
                with self._told:
                    self._told.wait_for(lambda: self._newest >= number or self._closing, 0.5)  # noqa: B023
                if self._closing:
                    return
                yield None

    def _from(self, number: int) -> Sequence[Event]:
        """Events from a number on, without a gap; not all there are."""
        with self._told:
            if self._tail and self._tail[0]["id"] <= number:
                return list(self._tail)[number - self._tail[0]["id"] :]
        files = self._files()
        later = [at for at, (first, _) in enumerate(files) if first > number]
        for _, path in files[max(0, (later[0] if later else len(files)) - 1) :]:
            if found := [event for event in _read(path) if event["id"] >= number]:
                return found
        with self._told:
            return [event for event in self._tail if event["id"] >= number]

    def _first_written_since(self, moment: datetime) -> int:
        files = self._files()
        for first, path in files:
            with contextlib.suppress(OSError):
                if path.stat().st_mtime >= moment.timestamp() - 1:
                    return first
        return self._newest + 1 if files else 1

    def _files(self) -> list[tuple[int, Path]]:
        """Each file with the number of its first event, the oldest first."""
        paths = (path for path in self._folder.glob("*.jsonl") if path.stem.isascii() and path.stem.isdigit())
        return sorted((int(path.stem), path) for path in paths)

    # Writing

    def _take_up(self) -> int:
        files = self._files()
        if not files:
            return 0
        first, path = files[-1]
        with path.open("r+b") as file:
            written = file.read()
            whole = written.rfind(b"\n") + 1
            if whole < len(written):
                file.truncate(whole)
                os.fsync(file.fileno())
        events = list(_read(path))
        self._remember(events)
        return events[-1]["id"] if events else first - 1

    def _remember(self, events: Sequence[Event]) -> None:
        self._tail.extend(events)
        self._news.extend(event for event in events if event.get("event") not in ROUTINE)

    def _write_all(self) -> None:
        while not (self._closing and not self._waiting):
            self._happened.wait(None if not self._unwritten else 5.0)
            self._happened.clear()
            self._write_some()
            if not self._closing:
                self._pause()

    def _pause(self) -> None:
        """Gather what comes next; one who closes is not kept waiting."""
        threading.Event().wait(GATHER_SECONDS)

    def _write_some(self) -> None:
        fresh = []
        number = self._newest
        for _ in range(len(self._waiting)):
            number += 1
            fresh.append({"id": number, **self._waiting.popleft()})
        if self._left_out:
            self.trouble = f"{self._left_out} events were too many at once and are not told"
        self._unwritten += [json.dumps(event).encode() + b"\n" for event in fresh]
        try:
            self._append(number)
            if not self._left_out:
                self.trouble = None
            self._left_out = 0
        except OSError as error:
            self.trouble = f"{self._folder}: {error.strerror}"
            del self._unwritten[:-WAITING_MAX]
        with self._told:
            self._remember(fresh)
            self._newest = number
            self._told.notify_all()

    def _append(self, newest: int) -> None:
        """Write what is not written, durably, or nothing of it."""
        if not self._unwritten:
            return
        files = self._files()
        path = files[-1][1] if files else None
        if path is None or path.stat().st_size >= FILE_BYTES:
            path = self._folder / f"{newest - len(self._unwritten) + 1:020d}.jsonl"
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            before = os.fstat(descriptor).st_size
            try:
                rest = memoryview(b"".join(self._unwritten))
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fdatasync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        if before == 0:
            sync_folder(self._folder)
            for _, old in files[: max(0, len(files) + 1 - FILES)]:
                old.unlink(missing_ok=True)
        self._unwritten.clear()


def open_chronicle(state_dir: Path) -> Chronicle:
    """The events of a state folder.

    Raises:
        LedgerError: it cannot be used.
    """
    folder = state_dir / "events"
    try:
        return Chronicle(folder)
    except OSError as error:
        raise LedgerError(
            f"{error.filename or folder}: {error.strerror}", hint="check state_dir and who owns it"
        ) from error


def _event(record: Mapping[str, Any]) -> Event:
    """A record of the log as `event.subscribe` tells it, still without its number."""
    data = {name: value for name, value in record.items() if name not in _NOT_DATA}
    job = record.get("job")
    event = {
        "at": record["at"],
        "event": record["event"],
        "job": job if isinstance(job, str) else None,
        "message": log.words(data)[:MESSAGE_LENGTH_MAX],
        "level": record["level"],
        "data": data,
    }
    if len(json.dumps(event)) > LINE_LENGTH_MAX:
        event["data"] = {}
    return event


def _read(path: Path) -> Iterator[Event]:
    """The events of a file; what a bad disk made of others is left out."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:  # it was the oldest, and went
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict) and isinstance(event.get("id"), int):
                yield event
