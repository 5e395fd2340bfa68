"""Every verb of the socket with who may use it, in one table.  Nothing else is reachable from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from s5jtd import protocol, shapes
from s5jtd.control import requests
from s5jtd.protocol import Method


class Access(StrEnum):
    """Who may use a verb."""

    ANYONE = "anyone"  #: Whoever may open the socket.
    OPERATOR = "operator"  #: root, the daemon's own user, members of the operators' group.


class Controls(Protocol):
    """What the daemon does for the socket.

    Called on one thread per connection, several at once, so each method does its own locking.  Each
    may raise any `S5jtError`, which becomes the client's error with its code, hint and exit code.
    Whatever is asked twice is done once and says so (`already_paused`).

    Satisfy this protocol without inheriting from it: a method that is not there is a verb that is
    answered with "method not found", and inheriting would make all of them be there.
    """

    def ping(self, request: requests.Ping) -> shapes.Pong: ...
    def version(self, request: requests.Version) -> shapes.Version: ...
    def status(self, request: requests.Status) -> shapes.Status: ...
    def job_pause(self, request: requests.JobPause) -> shapes.Paused: ...
    def job_resume(self, request: requests.JobResume) -> shapes.Resumed: ...
    def job_scan(self, request: requests.JobScan) -> shapes.Scan: ...
    def job_resync(self, request: requests.JobResync) -> shapes.Resync: ...

    def object_list(self, request: requests.ObjectList) -> shapes.ObjectPage:
        """At most `limit` rows; asked again with a smaller limit where they do not fit one line."""

    def object_explain(self, request: requests.ObjectExplain) -> shapes.Explanation: ...
    def object_retry(self, request: requests.ObjectRetry) -> shapes.Retried: ...
    def volume_list(self, request: requests.VolumeList) -> shapes.VolumeList: ...
    def volume_drain(self, request: requests.VolumeDrain) -> shapes.VolumeChange: ...
    def volume_activate(self, request: requests.VolumeActivate) -> shapes.VolumeChange: ...
    def endpoint_list(self, request: requests.EndpointList) -> shapes.EndpointList: ...
    def endpoint_check(self, request: requests.EndpointCheck) -> shapes.EndpointList: ...
    def bandwidth_get(self, request: requests.BandwidthGet) -> shapes.Bandwidth: ...
    def bandwidth_set(self, request: requests.BandwidthSet) -> shapes.Bandwidth: ...
    def report_list(self, request: requests.ReportList) -> shapes.ReportList: ...

    def report_get(self, request: requests.ReportGet) -> shapes.Report:
        """At most `limit` objects; asked again with a smaller limit where they do not fit one line."""

    def config_reload(self, request: requests.ConfigReload) -> shapes.Reloaded: ...

    def event_subscribe(self, request: requests.EventSubscribe) -> Iterator[shapes.Event | None]:
        """The events, ids without a gap.

        While there is none it yields None at least once a second: only between two values can a client
        that has gone be noticed.  It is closed, where it has `close`, as soon as nobody reads it.
        """


@dataclass(frozen=True, slots=True)
class Verb:
    """What one method needs and does."""

    access: Access
    request: type[requests.Request]
    perform: Callable[[Any], object]
    streams: bool = False  #: `perform` gives an iterator of events


_ALL: dict[Method, tuple[Access, type[requests.Request]]] = {
    Method.PING:            (Access.ANYONE,   requests.Ping),
    Method.VERSION:         (Access.ANYONE,   requests.Version),
    Method.STATUS:          (Access.ANYONE,   requests.Status),
    Method.JOB_PAUSE:       (Access.OPERATOR, requests.JobPause),
    Method.JOB_RESUME:      (Access.OPERATOR, requests.JobResume),
    Method.JOB_SCAN:        (Access.OPERATOR, requests.JobScan),
    Method.JOB_RESYNC:      (Access.OPERATOR, requests.JobResync),
    Method.OBJECT_LIST:     (Access.ANYONE,   requests.ObjectList),
    Method.OBJECT_EXPLAIN:  (Access.ANYONE,   requests.ObjectExplain),
    Method.OBJECT_RETRY:    (Access.OPERATOR, requests.ObjectRetry),
    Method.VOLUME_LIST:     (Access.ANYONE,   requests.VolumeList),
    Method.VOLUME_DRAIN:    (Access.OPERATOR, requests.VolumeDrain),
    Method.VOLUME_ACTIVATE: (Access.OPERATOR, requests.VolumeActivate),
    Method.ENDPOINT_LIST:   (Access.ANYONE,   requests.EndpointList),
    # It sends requests and may close a circuit breaker, which is more than looking.
    Method.ENDPOINT_CHECK:  (Access.OPERATOR, requests.EndpointCheck),
    Method.BANDWIDTH_GET:   (Access.ANYONE,   requests.BandwidthGet),
    Method.BANDWIDTH_SET:   (Access.OPERATOR, requests.BandwidthSet),
    Method.REPORT_LIST:     (Access.ANYONE,   requests.ReportList),
    Method.REPORT_GET:      (Access.ANYONE,   requests.ReportGet),
    Method.CONFIG_RELOAD:   (Access.OPERATOR, requests.ConfigReload),
    Method.EVENT_SUBSCRIBE: (Access.ANYONE,   requests.EventSubscribe),
}  # fmt: skip


def verbs(controls: object) -> dict[str, Verb]:
    """The table of what `controls`, some or all of `Controls`, can do."""
    table = {
        str(method): Verb(access, request, perform, streams=method is Method.EVENT_SUBSCRIBE)
        for method, (access, request) in _ALL.items()
        if (perform := getattr(controls, method.replace(".", "_"), None)) is not None
    }
    for paged in (Method.OBJECT_LIST, Method.REPORT_GET):
        if verb := table.get(paged):
            table[paged] = Verb(verb.access, verb.request, _fitting(verb.perform))
    return table


def _fitting(page_of: Callable[[Any], object]) -> Callable[[Any], object]:
    """Halve the page until it fits one line; its `next` tells the client where to go on."""

    def perform(request: Any) -> object:
        room_bytes = protocol.LINE_BYTES_MAX - 1024  # for what JSON-RPC puts around it
        while len(protocol.encode(page := page_of(request))) > room_bytes and request.limit > 1:
            request = request.model_copy(update={"limit": request.limit // 2})
        return page

    return perform
