"""Turns events into log records: journal fields under systemd, colour on a terminal, JSON lines otherwise.

What is logged is partly hostile (keys, server messages) and partly secret (whatever a library may put
into an exception).  So every record passes the same processors, whatever the format: values become plain
text, secrets go, control characters are escaped, long values are cut.  Records are handed to a thread
(`log_sink`): a log that is full or stuck costs records, which are counted, and never a transfer.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, TextIO, cast
from urllib.parse import quote

import structlog
from structlog.typing import FilteringBoundLogger

from s5jtd import log_sink
from s5jtd.events import EVENTS, message_id
from s5jtd.log_repeats import LeftOut, Repeats
from s5jtd.model import printable

Record = MutableMapping[str, Any]

REDACTED: Final = "[redacted]"
#: A key of 1,024 bytes fits even when each byte is escaped.
VALUE_LENGTH_MAX: Final = 5_000
TRACEBACK_LENGTH_MAX: Final = 20_000
MESSAGE_LENGTH_MAX: Final = 20_000
#: Shorter values are no secrets, and to cut them out would make holes everywhere.
SECRET_LENGTH_MIN: Final = 4

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # of syslog
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_SECRET_NAME: Final = re.compile(
    r"secret|password|passwd|passphrase|authorization|(^|_)(token|unlock_code|access_key|private_key)$",
    re.IGNORECASE,
)
# C0, DEL, C1, line and paragraph separators, and what turns the reading direction.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_TOP: Final = ("at", "level", "event")
_LEFT_OUT: Final = "log_repeats_left_out"


class _State:
    """What may change while the daemon runs."""

    level: int = _LEVELS["info"]
    secrets: frozenset[str] = frozenset()
    secret_pattern: re.Pattern[str] | None = None
    writer: log_sink.Writer | None = None
    listener: Callable[[Record], None] | None = None
    repeats: Repeats = Repeats()


# --- what other rooms use -----------------------------------------------------------------------------


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Choose the format by where stderr (or `stream`) leads, and start writing there."""
    stream = stream or sys.stderr
    sink, render = _choose(stream)
    close()
    _State.writer = log_sink.Writer(sink, on_dropped=_report_dropped)
    _State.repeats = Repeats()
    set_level(level)
    structlog.configure(
        processors=[
            _drop_unwanted,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _add_time,
            clean,
            _drop_repeats,
            _tell_listener,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=lambda *_: _Outlet(),
        cache_logger_on_first_use=False,
    )
    _adopt_libraries()


def get_logger(**context: object) -> FilteringBoundLogger:
    """Return a logger whose events all carry `context`."""
    return cast(FilteringBoundLogger, structlog.get_logger(**context))


def set_level(level: str) -> None:
    """Change what is logged from now on, in every thread."""
    _State.level = _LEVELS[level]


def listen(listener: Callable[[Record], None] | None) -> None:
    """Show every record of a listed event to `listener`, whatever level is written; None: to nobody.

    It is called on the thread that logs, so it must neither wait nor log nor raise.
    """
    _State.listener = listener


def register_secret(value: str) -> None:
    """Never let `value` appear in a record again, nor in what passes through `redact`."""
    if len(value) < SECRET_LENGTH_MIN:
        return
    _State.secrets = _State.secrets | {value, quote(value, safe=""), json.dumps(value)[1:-1]}
    longest_first = sorted(_State.secrets, key=len, reverse=True)
    _State.secret_pattern = re.compile("|".join(map(re.escape, longest_first)))


def redact(text: str) -> str:
    """Return `text` without any registered secret."""
    return _State.secret_pattern.sub(REDACTED, text) if _State.secret_pattern else text


def escape(text: str) -> str:
    """Return `text` without anything that could move a cursor, end a line or turn its direction."""
    return _UNPRINTABLE.sub(_escaped, text)


def dropped_total() -> int:
    """Return how many records were lost since `configure`, because the log was full or stuck."""
    return _State.writer.dropped_total if _State.writer else 0


def close(timeout_seconds: float = 2.0) -> None:
    """Wait, not for ever, until what was logged has been written, then stop writing."""
    if _State.writer is not None:
        _tell_repeats(_State.repeats.all())
        _State.writer.close(timeout_seconds)
        _State.writer = None


# --- cleaning -----------------------------------------------------------------------------------------


def clean(_logger: object, _method: str, record: Record) -> Record:
    """Make every value plain, short, printable and free of secrets."""
    return {name: _clean_value(name, value) for name, value in record.items()}


def _clean_value(name: str, value: object) -> object:
    if _SECRET_NAME.search(name):
        return REDACTED
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {_clean_text(str(key)): _clean_value(str(key), item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean_value("", item) for item in value]
    if name == "exception":
        return "\n".join(_clean_text(line) for line in str(value)[:TRACEBACK_LENGTH_MAX].split("\n"))
    return _clean_text(printable(value) if isinstance(value, bytes) else str(value))


def _clean_text(text: str) -> str:
    text = escape(redact(text))
    return text if len(text) <= VALUE_LENGTH_MAX else text[:VALUE_LENGTH_MAX] + "..."


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


# --- rendering ----------------------------------------------------------------------------------------


def render_json(_logger: object, _method: str, record: Record) -> bytes:
    """Render one JSON object on one line."""
    ordered = {name: record[name] for name in _TOP if name in record} | dict(record)
    return json.dumps(ordered, ensure_ascii=False).encode() + b"\n"


def render_journal(_logger: object, _method: str, record: Record) -> bytes:
    """Render one datagram of the journal's native protocol."""
    fields: dict[str, object] = {
        "MESSAGE": _sentence(record)[:MESSAGE_LENGTH_MAX],
        "PRIORITY": _PRIORITIES[record["level"]],
        "SYSLOG_IDENTIFIER": "s5jtd",
        "S5JT_EVENT": record["event"],
    }
    if identity := message_id(record["event"]):
        fields["MESSAGE_ID"] = identity
    for name, value in record.items():
        if name not in _TOP:
            fields["S5JT_" + re.sub(r"[^A-Z0-9_]", "_", name.upper())[:50]] = _as_text(value)
    return log_sink.journal_datagram({name: str(value) for name, value in fields.items()})


def render_terminal(colour: bool) -> Callable[[object, str, Record], bytes]:
    """Return a renderer of lines for people."""

    def render(_logger: object, _method: str, record: Record) -> bytes:
        at = datetime.fromisoformat(record["at"]).astimezone()
        level = f"{record['level']:<7}"
        if colour:
            level = f"\x1b[{_COLOURS[record['level']]}m{level}\x1b[0m"
        lines = [f"{at:%H:%M:%S} {level} {_sentence(record)}"]
        lines += [f"    {line}" for line in record.get("exception", "").splitlines()]
        return ("\n".join(lines) + "\n").encode()

    return render


def _sentence(record: Record) -> str:
    """Return the event and all it carries, but for tracebacks, on one line."""
    told = words({k: v for k, v in record.items() if k not in _TOP and k != "exception"})
    return f"{record['event']} {told}".rstrip()


def words(data: Mapping[str, object]) -> str:
    """Return what a cleaned record carries as people read it: `name=value`, on one line."""
    return " ".join(f"{name}={_word(value)}" for name, value in data.items())


def _word(value: object) -> str:
    """Quote what holds spaces or quotes, so that no value can pretend to be another field."""
    if isinstance(value, list) and value:
        return ",".join(map(_word, value))
    if isinstance(value, Mapping) and value:
        return "{" + ", ".join(f"{name}: {_word(item)}" for name, item in value.items()) + "}"
    text = _as_text(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r'[\s"=]', text) else text


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- plumbing -----------------------------------------------------------------------------------------


class _Outlet:
    """Where structlog hands over a rendered record; one method for each level it knows."""

    def msg(self, record: bytes) -> None:
        if (writer := _State.writer) is not None:
            writer.put(record)

    debug = info = warning = error = critical = msg


class _LibraryHandler(logging.Handler):
    """Brings what libraries say through `logging` into the same log, in the same shape."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.lower() if record.levelname.lower() in _LEVELS else "warning"
        getattr(get_logger(), level)("library_message", library=record.name, message=record.getMessage())


def _adopt_libraries() -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _LibraryHandler)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryHandler(logging.WARNING))


def _choose(stream: TextIO) -> tuple[log_sink.Sink, Callable[[object, str, Record], bytes]]:
    journal_stream = os.environ.get("JOURNAL_STREAM", "")
    if journal_stream and journal_stream == log_sink.device_and_inode(stream):
        journal = log_sink.JournalSink(log_sink.JOURNAL_SOCKET)
        if journal.reachable():
            return journal, render_journal
    if stream.isatty():
        return log_sink.StreamSink(stream), render_terminal(colour="NO_COLOR" not in os.environ)
    return log_sink.StreamSink(stream), render_json


def _drop_unwanted(_logger: object, method: str, record: Record) -> Record:
    level = _LEVELS.get(method, _LEVELS["error"])
    if level < _State.level and (_State.listener is None or level < _LEVELS["info"]):
        raise structlog.DropEvent
    return record


def _drop_repeats(_logger: object, _method: str, record: Record) -> Record:
    """Debug is asked for by one who wants all of it; what changed its state says something new each time."""
    now = time.monotonic()
    if record["event"] != _LEFT_OUT:
        _tell_repeats(_State.repeats.over(now))
        if record["level"] not in ("debug", "info") and not _State.repeats.admits(record, now):
            raise structlog.DropEvent
    return record


def _tell_repeats(left_out: Sequence[LeftOut]) -> None:
    for one in left_out:
        get_logger().warning("log_repeats_left_out", of=one.event, count=one.records)


def _tell_listener(_logger: object, _method: str, record: Record) -> Record:
    level = _LEVELS[record["level"]]
    if _State.listener is not None and record["event"] in EVENTS and level >= _LEVELS["info"]:
        _State.listener(record)
    if level < _State.level:
        raise structlog.DropEvent
    return record


def _add_time(_logger: object, _method: str, record: Record) -> Record:
    record["at"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return record


def _report_dropped(count: int) -> None:
    get_logger().warning("log_records_dropped", count=count)
