"""A daemon without work: answers every verb of the control socket from values a test can change."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any, cast

from s5jtd import protocol, shapes
from s5jtd.control import requests
from s5jtd.errors import UsageError


def per_state(**numbers: int) -> shapes.PerState:
    states = ("seen", "pulling", "staged", "pushing", "delivered", "gone", "parked")
    return cast("shapes.PerState", {state: numbers.get(state, 0) for state in states})


STATUS: shapes.Status = {
    "daemon": {
        "version": "0.1.0",
        "pid": 812,
        "state": "running",
        "started_at": "2026-01-31T08:00:00Z",
        "uptime_seconds": 14400,
        "config_path": "/etc/s5jtd/config.yaml",
    },
    "jobs": [
        {
            "name": "archive-to-cloud",
            "state": "running",
            "paused_until": None,
            "reason": None,
            "objects": per_state(seen=12, staged=3, delivered=85),
            "bytes": per_state(seen=12 * 2**20, staged=3 * 2**20, delivered=85 * 2**20),
            "rates": {"pull_bytes_per_second": 6 * 2**20, "push_bytes_per_second": None},
            "eta_seconds": None,
            "last_scan": {
                "started_at": "2026-01-31T11:58:00Z",
                "finished_at": "2026-01-31T11:59:00Z",
                "objects": 100,
                "complete": True,
            },
            "last_delivery_at": "2026-01-31T11:59:46Z",
        }
    ],
    "volumes": [
        {
            "name": "vol1",
            "path": "/mnt/volume-01",
            "uuid": "3b1f",
            "state": "online",
            "free_bytes": 97 * 2**30,
            "staged_bytes": 3 * 2**20,
        }
    ],
    "endpoints": [
        {
            "job": "archive-to-cloud",
            "side": "source",
            "url": "http://10.20.1.20:8080",
            "state": "up",
            "latency_ms": 1.6,
            "last_error": None,
        }
    ],
    "problems": [],
}


class FakeControls:
    """Satisfies `Controls` with one job, one volume and as many objects as a test wants."""

    def __init__(self) -> None:
        self.state: shapes.Status = copy.deepcopy(STATUS)
        self.paused = False
        self.keys: list[str] = ["a/1", "a/2", "b/\x1b[31mred", "b/raw\\xff"]
        self.events: list[shapes.Event] = [self._event(at) for at in range(1, 4)]
        self.asked: list[requests.Request] = []
        self.subscribed = threading.Event()
        self.unsubscribed = threading.Event()
        self.resync_may_end = threading.Event()
        self.resync_may_end.set()

    @staticmethod
    def _event(number: int) -> shapes.Event:
        return {
            "id": number,
            "at": f"2026-01-31T11:00:0{number % 10}Z",
            "event": "pass_ended",
            "job": "archive-to-cloud",
            "message": f"number {number}",
        }

    def happen(self) -> None:
        self.events.append(self._event(len(self.events) + 1))

    def _job(self, name: str) -> None:
        if name != "archive-to-cloud":
            raise UsageError(f"there is no job {name!r}", hint="the jobs are: archive-to-cloud")

    def ping(self, request: requests.Ping) -> shapes.Pong:
        return {"result": "pong"}

    def version(self, request: requests.Version) -> shapes.Version:
        return {"version": "0.1.0", "protocol": protocol.PROTOCOL_VERSION}

    def status(self, request: requests.Status) -> shapes.Status:
        if request.job is not None:
            self._job(request.job)
        return self.state

    def job_pause(self, request: requests.JobPause) -> shapes.Paused:
        self.asked.append(request)
        if request.job is not None:
            self._job(request.job)
        before, self.paused = self.paused, True
        return {"jobs": [{"name": "archive-to-cloud", "result": "already_paused" if before else "paused"}]}

    def job_resume(self, request: requests.JobResume) -> shapes.Resumed:
        before, self.paused = self.paused, False
        return {"jobs": [{"name": "archive-to-cloud", "result": "resumed" if before else "already_running"}]}

    def job_scan(self, request: requests.JobScan) -> shapes.Scan:
        self._job(request.job)
        if not request.wait:
            return {"name": request.job, "pass": 7, "result": "scan_started", "objects": None, "new": None}
        return {"name": request.job, "pass": 7, "result": "scanned", "objects": 1234, "new": 12}

    def job_resync(self, request: requests.JobResync) -> shapes.Resync:
        self._job(request.job)
        if not request.wait:
            return {
                "name": request.job, "result": "resync_started", "dry_run": request.dry_run,
                "totals": None, "rearmed": None, "entries": [], "entries_omitted": 0,
            }  # fmt: skip
        assert self.resync_may_end.wait(60)
        return {
            "name": request.job,
            "result": "resynced",
            "dry_run": request.dry_run,
            "totals": {"same": 1234, "missing": 2, "different": 1, "extra": 1, "errors": 0},
            "rearmed": 0 if request.dry_run else 3,
            "entries": [
                {"mark": "+", "key": "a/1", "detail": None},
                {"mark": "*", "key": "a/2", "detail": "etag differs"},
            ],
            "entries_omitted": 2,
        }

    def object_list(self, request: requests.ObjectList) -> shapes.ObjectPage:
        self._job(request.job)
        self.asked.append(request)
        keys = [key for key in self.keys if key.startswith(request.prefix)]
        begin = int(request.after or 0)
        end = begin + request.limit
        rows = [self._row(begin + at, key) for at, key in enumerate(keys[begin:end])]
        return {"objects": rows, "next": str(end) if end < len(keys) else None}

    @staticmethod
    def _row(number: int, key: str) -> shapes.ObjectRow:
        return {
            "id": number,
            "key": key,
            "size_bytes": 2**20,
            "state": "delivered",
            "etag": "d41d8cd9",
            "evidence": "etag",
            "volume": None,
            "attempts": 1,
            "reason": None,
            "since": "2026-01-31T11:00:00Z",
        }

    def object_explain(self, request: requests.ObjectExplain) -> shapes.Explanation:
        self._job(request.job)
        for key in requests.spellings(request.key):
            shown = key.decode("utf-8", "backslashreplace")
            if shown in self.keys:
                return {
                    "object": {"key": shown, "state": "delivered", "size_bytes": 2**20, "evidence": "etag"},
                    "story": [{"at": "2026-01-31T11:00:00Z", "what": "delivered", "detail": "etag equal"}],
                    "failures": [],
                }
        raise UsageError(f"the job has no object {request.key!r}", hint="list them: s5jtctl objects")

    def object_retry(self, request: requests.ObjectRetry) -> shapes.Retried:
        self.asked.append(request)
        return {"retried": 2}

    def volume_list(self, request: requests.VolumeList) -> shapes.VolumeList:
        more: Any = {"total_bytes": 100 * 2**30, "only_here_bytes": 0, "reason": None}
        return {"volumes": [cast("shapes.VolumeRow", {**volume, **more}) for volume in self.state["volumes"]]}

    def volume_drain(self, request: requests.VolumeDrain) -> shapes.VolumeChange:
        return {"name": request.volume, "state": "draining", "result": "draining", "staged_bytes": 3 * 2**20}

    def volume_activate(self, request: requests.VolumeActivate) -> shapes.VolumeChange:
        return {"name": request.volume, "state": "online", "result": "already_active", "staged_bytes": None}

    def endpoint_list(self, request: requests.EndpointList) -> shapes.EndpointList:
        more: Any = {"errors": 0, "checked_at": "2026-01-31T11:59:00Z"}
        rows = [cast("shapes.EndpointRow", {**each, **more}) for each in self.state["endpoints"]]
        return {"endpoints": rows}

    def endpoint_check(self, request: requests.EndpointCheck) -> shapes.EndpointList:
        return self.endpoint_list(requests.EndpointList())

    def bandwidth_get(self, request: requests.BandwidthGet) -> shapes.Bandwidth:
        return {
            "limits": [
                {
                    "direction": "push",
                    "limit_bytes_per_second": 6_250_000,
                    "set_by": "config",
                    "rate_bytes_per_second": 5_000_000,
                    "next_change_at": None,
                }
            ]
        }

    def bandwidth_set(self, request: requests.BandwidthSet) -> shapes.Bandwidth:
        self.asked.append(request)
        return self.bandwidth_get(requests.BandwidthGet())

    def report_list(self, request: requests.ReportList) -> shapes.ReportList:
        return {
            "reports": [
                {
                    "id": 1769860000, "timestamp": "2026-01-31T11:46:40Z", "job": "archive-to-cloud",
                    "pass": 7, "status": "success", "duration_seconds": 61.5, "files_synced": 85,
                    "bytes_transferred": 85 * 2**20, "failed": 0, "parked": 0,
                }
            ]
        }  # fmt: skip

    def report_get(self, request: requests.ReportGet) -> shapes.Report:
        if request.id not in ("latest", 1769860000):
            raise UsageError(f"there is no report {request.id}", hint="list them: s5jtctl reports")
        report: shapes.Report = {
            "timestamp": "2026-01-31T11:46:40Z", "duration_seconds": 61.5, "files_synced": 1,
            "bytes_transferred": 2**20, "source_size": "1MiB", "s3_objects": 1, "status": "success",
            "tool": "s5jtd", "engine": "s5cmd", "throughput_mbps": 0.02, "source": "s3://archive/",
            "destination": "s3://cloud/",
            "checksum_verification": {
                "enabled": True, "algorithm": "CRC64NVME", "verified": True, "errors": 0,
            },
            "job": "archive-to-cloud", "pass": 7, "skipped": 0, "failed": 0, "parked": 0, "retried": 0,
            "evidence": {"checksum": 0, "etag": 1, "readback": 0, "size": 0},
            "endpoints": ["http://10.20.1.20:8080"], "volumes": [],
        }  # fmt: skip
        if request.objects:
            report["objects"] = [
                {
                    "key": "a/1", "size_bytes": 2**20, "etag": "d41d8cd9", "evidence": "etag",
                    "pulled_at": None, "delivered_at": "2026-01-31T11:46:00Z", "seconds": 1.5,
                    "endpoint": None, "error": None,
                }
            ]  # fmt: skip
        return report

    def config_reload(self, request: requests.ConfigReload) -> shapes.Reloaded:
        self.asked.append(request)
        given = ["systemd credential cloud"]
        return {
            "result": "reloaded", "changed": ["limits.bandwidth"], "kept": ["state_dir"], "given": given,
        }  # fmt: skip

    def event_subscribe(self, request: requests.EventSubscribe) -> Iterator[shapes.Event | None]:
        at = request.since if isinstance(request.since, int) else len(self.events) if request.follow else 0
        return self._tell(at, request.follow)

    def _tell(self, at: int, follow: bool) -> Iterator[shapes.Event | None]:
        self.subscribed.set()
        try:
            while follow or at < len(self.events):
                if at < len(self.events):
                    yield self.events[at]
                    at += 1
                else:
                    threading.Event().wait(0.01)
                    yield None
        finally:
            self.unsubscribed.set()
