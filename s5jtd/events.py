"""Every event the log may carry above debug level: its name, its level and what it tells an operator.

A leaf: imports nothing of ours.  A level asks for something: `error`, a person must come; `warning`, it
was handled, but remember it; `info`, something changed its state.  A test compares this table with the code.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

#: Never changes: the journal's MESSAGE_IDs are derived from it, and people filter by them.
_NAMESPACE: Final = uuid.UUID("5b8f5a53-2b60-4a0c-9a3d-0d6f3f4a5c15")


class Event(NamedTuple):
    """What an event's name promises."""

    level: str
    meaning: str


EVENTS: Final[Mapping[str, Event]] = MappingProxyType(
    {
        "api_certificate_expires": Event(
            "warning", "the log API's certificate ends soon; make or bring another and restart s5jtd-api"
        ),
        "api_client_limited": Event(
            "warning", "a client of the log API asks too often, or with too many wrong tokens"
        ),
        "api_out_of_resources": Event("warning", "the log API could not take a client: too few descriptors"),
        "api_request": Event("info", "the log API answered a request"),
        "api_request_failed": Event("error", "answering a request of the log API failed unexpectedly"),
        "api_started": Event("info", "the log API listens"),
        "api_stopping": Event("info", "the log API was asked to end"),
        "api_token_refused": Event("warning", "somebody showed the log API a wrong token"),
        "bandwidth_order_lost": Event(
            "warning", "what an operator ordered with `s5jtctl bandwidth` cannot be read; the config holds"
        ),
        "batch_streamed": Event(
            "info",
            "some objects of a job in direct mode came to their end; `objects` of `of` are delivered,"
            " `error` is what most others met",
        ),
        "bytes_differ": Event(
            "warning",
            "bytes that came from an endpoint, or went to one, are not those of the source; `objects` travel"
            " again",
        ),
        "chunk_folded_in": Event(
            "info",
            "a sealed chunk that the ledger did not know was taken in: `objects` are not pulled again, of"
            " `kept` it cannot be told yet whether they are needed",
        ),
        "chunk_lost": Event(
            "warning",
            "a chunk the ledger counts on is not on its volume; its `objects` not delivered travel again",
        ),
        "chunk_not_salvaged": Event(
            "info", "nothing of a chunk that was being pulled could be kept; its objects are pulled again"
        ),
        "chunk_pushed": Event(
            "info",
            "a push of a chunk came to its end; `objects` of `of` are delivered, `error` is what most others"
            " met",
        ),
        "chunk_put_off": Event(
            "info", "the transfer of a large object broke off; it goes on later from where it is"
        ),
        "chunk_salvaged": Event(
            "info",
            "what an earlier life had pulled of a chunk was checked: `objects` of `of` are kept, the others"
            " pulled again, a large one from where it was",
        ),
        "chunk_staged": Event(
            "info",
            "a chunk was pulled and checked; `objects` of `of` are durable and proven, `error` is what most"
            " others met",
        ),
        "client_failed": Event(
            "error", "serving one client of the control socket failed unexpectedly; the others go on"
        ),
        "concurrency_changed": Event(
            "info",
            "as the link is, another number of objects travels at a time in one direction; `reason` says why",
        ),
        "control_out_of_resources": Event(
            "warning", "the control socket could not take a client: too few descriptors or threads"
        ),
        "control_socket_lost": Event(
            "warning", "the control socket's file is gone and could not be made anew"
        ),
        "control_socket_recreated": Event("warning", "the control socket's file had gone and was made anew"),
        "copies_given_up": Event(
            "info",
            "a server does not copy objects inside itself, or not provably: they are streamed; see `reason`",
        ),
        "daemon_ready": Event("info", "what an earlier life left is settled, and the work goes on"),
        "daemon_started": Event(
            "info", "the daemon began to start; `version`, `pid`, `jobs` and `volumes` say as what"
        ),
        "daemon_stopping": Event("info", "the daemon was asked to end, and why"),
        "daemon_was_aborted": Event(
            "warning",
            "the life before this one was aborted, by the watchdog or a crash; `file` says where each of its"
            " threads stood",
        ),
        "endpoint_checks_kept": Event(
            "info", "what `s5jtd check` found out of `endpoints` is in the ledger, and used"
        ),
        "endpoint_checks_unreadable": Event(
            "warning", "what `s5jtd check` wrote cannot be read; all is found out on the way, as without it"
        ),
        "endpoint_down": Event(
            "warning", "an endpoint does not work any more; its side goes on with the others"
        ),
        "endpoint_up": Event("info", "an endpoint works again"),
        "engine_failed": Event("error", "s5cmd itself could not run"),
        "events_failed": Event("error", "the stream of events to one client failed unexpectedly"),
        "file_cannot_leave": Event(
            "warning", "a delivered file could not be deleted or moved; it is tried again with each look"
        ),
        "files_left": Event("info", "delivered files were deleted or moved from the folder they came from"),
        "folder_links_skipped": Event(
            "warning", "symbolic links in a source folder were passed over: `links` of them; said once"
        ),
        "folder_not_watched": Event(
            "warning", "changes in some folders are not heard of at once; each scan_every finds them"
        ),
        "ledger_ballast_dropped": Event(
            "warning", "the disk under the ledger is full: its reserve was given up, so that deliveries go on"
        ),
        "ledger_blocked": Event(
            "error", "the ledger cannot be written now; work waits, and what was done is not lost"
        ),
        "ledger_checked": Event("info", "the ledger was read through and is whole"),
        "ledger_checking": Event(
            "info", "the ledger is read through before any work begins; `reason` says why"
        ),
        "ledger_copied": Event("info", "a proven copy of the ledger was made"),
        "ledger_copy_failed": Event("error", "no copy of the ledger could be made; the former ones stay"),
        "ledger_failed": Event(
            "error", "the ledger cannot be used any more; the daemon ends and is started again"
        ),
        "ledger_has_room": Event("info", "the disk under the ledger has room again; all goes on"),
        "ledger_replaced": Event(
            "error", "the ledger's file was deleted or replaced while in use; nothing new is taken in"
        ),
        "library_message": Event("warning", "a library the daemon uses has something to say"),
        "log_repeats_left_out": Event(
            "warning", "the same was said too often: `count` more records of the event `of` were left out"
        ),
        "log_records_dropped": Event(
            "warning", "the log was full or stuck, and `count` records are missing here"
        ),
        "operator_request": Event(
            "info",
            "somebody changed something over the control socket: `method`, `parameters`, `uid` and `pid`",
        ),
        "pause_ended": Event("info", "a job rests no more, because its time is over or an operator said so"),
        "peer_refused": Event("warning", "somebody asked over the control socket for what they may not have"),
        "problem_cleared": Event("info", "a problem is no more; `code` is its word in `status`"),
        "problem_raised": Event(
            "warning", "something is wrong now; `code` is its word in `status`, `hint` says what to do"
        ),
        "pushes_were_cut": Event(
            "info",
            "an earlier life ended in the middle of pushes; the destination is asked before more is sent",
        ),
        "reload_refused": Event(
            "error", "the changed configuration cannot be used; the former one stays in force"
        ),
        "reloaded": Event(
            "info",
            "the configuration was read again; `kept` names what a restart is needed for, `given` the"
            " credentials that are still those of the start",
        ),
        "reports_copied": Event("info", "run reports were copied to the bucket of reports.upload"),
        "reports_not_copied": Event(
            "warning", "run reports cannot be copied to a bucket; they are kept, and it is tried again"
        ),
        "report_failed": Event(
            "error", "a run report cannot be written now; what it would tell is kept and told later"
        ),
        "report_written": Event("info", "a run report was written; `status` says how its pass went"),
        "reply_unspeakable": Event("error", "an answer for a client could not be put into words"),
        "resync_differences": Event(
            "warning", "the destination does not hold delivered objects as they were delivered"
        ),
        "resync_finished": Event(
            "info", "source, ledger and destination were compared; `complete` false: a listing broke off"
        ),
        "s5cmd_unfit": Event(
            "info", "a server refused s5cmd what it gave the native engine, which carries all there for a day"
        ),
        "scan_failed": Event(
            "warning",
            "a source could not be listed to its end; what it did not show counts as unknown, not as gone",
        ),
        "scan_finished": Event(
            "info", "a source was listed to its end, and showed another picture than before"
        ),
        "seal_not_believed": Event(
            "warning", "a chunk's seal is torn or not ours; the chunk's files are hashed again"
        ),
        "socket_group_refused": Event(
            "warning", "the control socket could not be given to its group; only its owner may use it"
        ),
        "verb_failed": Event("error", "answering a request failed unexpectedly; the client was told so"),
        "tags_not_readable": Event(
            "warning",
            "a source refuses to show tags, so objects travel without them: allow s3:GetObjectTagging, or"
            " leave `tags` out of the job's `preserve`",
        ),
        "uploads_aborted": Event(
            "info", "multipart uploads that s5cmd began and nobody would end were aborted"
        ),
        "volume_attached": Event("info", "a volume was found, is ours, and is in use"),
        "volume_activated": Event("info", "an operator lets a volume be used again"),
        "volume_found": Event("info", "a pattern of the configuration shows a volume that was not there"),
        "volume_gone": Event(
            "info", "a volume that held nothing went with its folder, and is no longer listed"
        ),
        "volume_drained": Event("info", "a volume was emptied and let go of: it is safe to remove"),
        "volume_draining": Event("info", "an operator wants a volume emptied: it takes no new chunks"),
        "volume_changed": Event("warning", "a volume cannot be used as before; `state` and `error` say why"),
        "volume_given_up": Event(
            "warning",
            "a volume is away for so long that the `objects` that only it held are pulled again",
        ),
        "volume_has_room": Event("info", "a volume that was full takes new chunks again"),
        "volume_writable": Event("info", "a volume that could only be read can be written again"),
        "worker_crashed": Event(
            "error", "a part of the daemon failed unexpectedly; the daemon ends and is started again"
        ),
        "worker_stuck": Event(
            "error",
            "a part of the daemon does not move; systemd's watchdog is about to end it; `where` says where"
            " it stands, the innermost call first",
        ),
    }
)


class Trouble(NamedTuple):
    """What a problem's code promises, and which events say that it began and that it is over."""

    meaning: str
    raised: str = "problem_raised"
    cleared: str = "problem_cleared"


#: Every code that may stand in the list of problems.  Where another event tells the same and more, it is that
#: which is logged; a test compares the codes with the code.
PROBLEMS: Final[Mapping[str, Trouble]] = MappingProxyType(
    {
        "chunk_unreadable": Trouble("a volume holds a chunk that cannot be told what it is"),
        "chunk_without_job": Trouble("a volume holds a chunk of a job that is not configured"),
        "clock_skew": Trouble("the clocks here and at an endpoint differ; signed requests will be refused"),
        "config_invalid": Trouble(
            "the changed configuration cannot be used; the former one stays in force",
            "reload_refused",
            "reloaded",
        ),
        "endpoint_down": Trouble("an endpoint does not work", "endpoint_down", "endpoint_up"),
        "engine_failed": Trouble("s5cmd itself cannot run", "engine_failed"),
        "events_not_kept": Trouble("events are not durable, or were too many at once"),
        "evidence_below_policy": Trouble("objects were delivered on weaker evidence than the job asks for"),
        "ledger_backup_failed": Trouble(
            "no copy of the ledger can be made", "ledger_copy_failed", "ledger_copied"
        ),
        "ledger_blocked": Trouble("the ledger cannot be written now", "ledger_blocked"),
        "ledger_checking": Trouble("the ledger is read through first", "ledger_checking", "ledger_checked"),
        "ledger_damaged": Trouble("the ledger was found damaged", "ledger_copy_failed"),
        "ledger_disk_full": Trouble(
            "the disk under the ledger is full; nothing new is taken in", "ledger_blocked", "ledger_has_room"
        ),
        "ledger_disk_low": Trouble("the disk under the ledger is nearly full"),
        "ledger_replaced": Trouble(
            "the ledger's file was deleted or replaced while in use", "ledger_replaced"
        ),
        "ledger_wal_large": Trouble("a program reads the ledger and does not end"),
        "memory_short": Trouble("s5cmd was killed as when memory runs out; less runs at a time"),
        "metrics_not_written": Trouble("the file of metrics cannot be written"),
        "objects_parked": Trouble("objects cannot travel without a person"),
        "reports_not_copied": Trouble(
            "run reports cannot be copied to a bucket", "reports_not_copied", "reports_copied"
        ),
        "report_failed": Trouble("run reports cannot be written", "report_failed", "report_written"),
        "resync_differences": Trouble(
            "a resync found delivered objects missing or different", "resync_differences", "resync_finished"
        ),
        "scan_incomplete": Trouble("a source cannot be listed to its end", "scan_failed", "scan_finished"),
        "volume_failed": Trouble("a volume does not work", "volume_changed", "volume_attached"),
        "volume_foreign": Trouble("a volume is not ours", "volume_changed", "volume_attached"),
        "volume_full": Trouble("a volume takes nothing more", "volume_changed", "volume_has_room"),
        "volume_missing": Trouble("a volume is not mounted", "volume_changed", "volume_attached"),
        "volume_not_configured": Trouble("a volume that holds objects is not in the configuration"),
        "volume_readonly": Trouble("a volume can only be read", "volume_changed", "volume_writable"),
    }
)


#: What the work itself says, hundreds of times a day: no news to somebody who looks at a screen.
ROUTINE: Final = frozenset({"api_request", "batch_streamed", "chunk_pushed", "chunk_staged", "files_left"})


def message_id(name: str) -> str | None:
    """Return the journal's MESSAGE_ID of an event in the table: 32 hex digits, the same for ever."""
    return uuid.uuid5(_NAMESPACE, name).hex if name in EVENTS else None
