#!/usr/bin/env python3
"""Reads run reports from s5jtd's log API.  Python 3.9 or newer, nothing to install; copy and change it.

    log_api_client.py --url https://appliance:8443 --ca api.crt --token-file api.token reports --hours 24
    log_api_client.py ... objects latest > delivered.jsonl
    log_api_client.py ... check            # exit code 0: all well; 1: somebody should look; 2: no answer

`api.crt` is the API's certificate (or that of the CA which signed it), `api.token` the file with the token.
"""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ATTEMPTS = 5


class LogApi:
    """One appliance."""

    def __init__(self, url: str, token: str, ca_file: str) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._tls = ssl.create_default_context(cafile=ca_file)

    def get(self, path: str) -> dict[str, Any]:
        """One answer; asks again, as long as the API says it should, while the appliance is busy or down."""
        request = urllib.request.Request(self._url + path, headers={"Authorization": f"Bearer {self._token}"})
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with urllib.request.urlopen(request, timeout=60, context=self._tls) as response:
                    return json.load(response)  # type: ignore[no-any-return]
            except urllib.error.HTTPError as error:
                if error.code not in (429, 503) or attempt == ATTEMPTS:
                    told = json.load(error)["error"]
                    raise NoAnswer(f"{told['message']}\nhint: {told['hint']}") from None
                time.sleep(float(error.headers.get("Retry-After", 5)))
            except OSError as error:
                if attempt == ATTEMPTS or isinstance(getattr(error, "reason", None), ssl.SSLError):
                    raise NoAnswer(f"{self._url} does not answer: {error}") from None
                time.sleep(2**attempt)
        raise AssertionError

    def pages(self, path: str | None) -> Iterator[dict[str, Any]]:
        """An answer and those that follow it: `next` is the path of the one after, or null."""
        while path:
            page = self.get(path)
            yield page
            path = page.get("next")

    def reports(self, start: int, end: int) -> Iterator[dict[str, Any]]:
        """The reports between two times in seconds since 1970, both included, the newest first."""
        for page in self.pages(f"/logs?start={start}&end={end}&limit=1000"):
            yield from page["reports"]

    def objects(self, epoch: str) -> Iterator[dict[str, Any]]:
        """What a report's pass moved; one page is in memory at a time."""
        for page in self.pages(f"/log/{epoch}?objects=true"):
            yield from page["objects"]


class NoAnswer(Exception):
    """There is no answer to work with."""


def show_reports(api: LogApi, hours: float) -> int:
    now = int(time.time())
    for one in api.reports(int(now - hours * 3600), now):
        print(
            f"{one['id']}  {one['timestamp']}  {one['job']}  {one['status']}  {one['files_synced']} objects"
            f"  {one['bytes_transferred']} bytes  failed {one['failed']}  parked {one['parked']}"
        )
    return 0


def show_objects(api: LogApi, epoch: str) -> int:
    for one in api.objects(epoch):
        print(json.dumps(one))
    return 0


def check(api: LogApi) -> int:
    """What a monitoring system wants to know, in one line."""
    status = api.get("/status")
    wrong = [problem["message"] for problem in status["problems"]]
    stopped = [job for job in status["jobs"] if job["state"] in ("blocked", "failed")]
    wrong += [f"job {job['name']} is {job['state']}" for job in stopped]
    print("; ".join(wrong) or f"{len(status['jobs'])} jobs, nothing wrong")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="https://127.0.0.1:8443")
    parser.add_argument("--ca", default="api.crt", metavar="FILE")
    parser.add_argument("--token-file", default="api.token", metavar="FILE")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("reports").add_argument("--hours", type=float, default=24)
    commands.add_parser("objects").add_argument("epoch", help="a report's number, or: latest")
    commands.add_parser("check")
    given = parser.parse_args()
    try:
        api = LogApi(given.url, Path(given.token_file).read_text().strip(), given.ca)
        if given.command == "reports":
            return show_reports(api, given.hours)
        return show_objects(api, given.epoch) if given.command == "objects" else check(api)
    except (NoAnswer, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
