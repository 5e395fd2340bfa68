"""A whole road for chaos: source and destination behind hostile proxies, an impatient daemon in between."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self, cast

from tests.appliance import WAIT_SECONDS, Appliance, contents, digests, side, until
from tests.chaos import Chaos, Request
from tests.impatient import ImpatientNursery
from tests.servers import Server

JOB = "archive"


def of_objects(request: Request) -> bool:
    """For a fault's `where`: spare what is asked about the bucket, such as listings and probes."""
    return bool(request.key)


class Road:
    """One job from one server to another, each behind a proxy of its own; nothing runs yet."""

    def __init__(
        self,
        appliance: Appliance,
        nursery: ImpatientNursery,
        source: Server,
        destination: Server,
        **proxies: Chaos,
    ) -> None:
        self.appliance = appliance
        self.source, self.destination = source, destination
        self.before = proxies["before"]  #: what the daemon takes for the source
        self.behind = proxies["behind"]  #: what it takes for the destination
        self.here, self.there = source.new_bucket(), destination.new_bucket()
        self.objects: dict[bytes, bytes] = {}  #: what the source holds
        self._nursery = nursery

    # Its life

    def fill(self, objects: Mapping[bytes, bytes]) -> None:
        """Put objects into the source, behind the proxy's back."""
        self.source.fill(self.here, objects)
        self.objects |= objects

    def run(self, objects: Mapping[bytes, bytes], **job: Any) -> Self:
        """Fill the source and start the daemon.

        Unless `attempts` says more, a single failure that counts against an object parks it: what arrives
        then cost its object nothing.
        """
        self.fill(objects)
        self.configure(**job)
        self.start()
        return self

    def configure(self, *, endpoints: Mapping[str, list[str]] | None = None, **job: Any) -> None:
        links = endpoints or {}
        sides = {
            "source": side(self.source, self.here, url=self.before.url),
            "destination": side(self.destination, self.there, url=self.behind.url),
        }
        for name, urls in links.items():
            sides[name]["endpoints"] = urls
        self.appliance.configure({"name": JOB, "scan_every": "1s", "attempts": 1, **sides, **job})

    def start(self) -> None:
        arguments = ["--config", str(self.appliance.config_path), "run"]
        self.appliance.process = cast("Any", self._nursery.start(arguments, self.appliance.log_path))
        until(self.appliance.running, "the daemon's first answer")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        return self.appliance.stop(number)

    # What became of it

    def settled(self, seconds: float = WAIT_SECONDS) -> dict[str, int]:
        """Wait until nothing is left to move; objects by state then."""
        return self.appliance.settled(seconds)

    def delivers_all(self, seconds: float = WAIT_SECONDS) -> bool:
        """Wait for the end; whether all arrived, says the ledger, and says the destination itself."""
        counted = self.settled(seconds)
        assert counted == {"delivered": len(self.objects)}, (counted, self.reasons())
        assert digests(self.objects) == contents(self.destination, self.there)
        for key in list(self.rows())[:3]:
            told = [line["what"] for line in self.explain(key)["story"]]
            assert (told[0], told[-1]) == ("seen", "delivered"), told
        return True

    def arrived_but(self, *missing: bytes) -> bool:
        """Whether the destination holds all objects but these."""
        wanted = {key: body for key, body in self.objects.items() if key not in missing}
        assert digests(wanted) == contents(self.destination, self.there)
        return True

    def row(self, key: str) -> dict[str, Any]:
        return self.rows()[key]

    def rows(self, state: str | None = None) -> dict[str, dict[str, Any]]:
        """The ledger's rows by key."""
        page = self.appliance.ask("object.list", job=JOB, state=state, limit=1000)
        return {row["key"]: row for row in page["objects"]}

    def reasons(self) -> dict[str, str]:
        """Why objects are parked."""
        return {key: row["reason"] for key, row in self.rows("parked").items()}

    def explain(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = self.appliance.ask("object.explain", job=JOB, key=key)
        return found

    # What was said and asked meanwhile

    def said(self) -> Counter[str]:
        """How often each event stands in the log."""
        records = (json.loads(line) for line in self.appliance.log().splitlines() if line.startswith("{"))
        return Counter(record["event"] for record in records)

    def problems(self) -> dict[str, str]:
        """What is wrong now: code, message and hint."""
        shown = self.appliance.status()["problems"]
        return {problem["code"]: f"{problem['message']}; {problem['hint']}" for problem in shown}

    def comes_to(self, state: str, which: str = "source") -> dict[str, Any]:
        """Wait until the endpoint of a side is in a state; what `status` says of it then."""

        def look() -> dict[str, Any] | None:
            (found,) = [e for e in self.appliance.status()["endpoints"] if e["side"] == which]
            return dict(found) if found["state"] == state else None

        found: dict[str, Any] = until(look, f"{which} {state}")
        return found


@contextlib.contextmanager
def road(folder: Path, nursery: ImpatientNursery, source: Server, destination: Server) -> Iterator[Road]:
    """A road of which nothing runs yet."""
    with (
        Chaos(source.url) as before,
        Chaos(destination.url) as behind,
        Appliance(folder) as appliance,
    ):
        yield Road(appliance, nursery, source, destination, before=before, behind=behind)


def requests_in(chaos: Chaos, seconds: float) -> int:
    """How many requests come in that time."""
    before = len(chaos.log)
    time.sleep(seconds)
    return len(chaos.log) - before


def sent(chaos: Chaos) -> Counter[bytes]:
    """How often each object was sent through a proxy, as far as it was answered with success."""
    return Counter(e.key for e in chaos.log if e.method == "PUT" and e.status == 200)
