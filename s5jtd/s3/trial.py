"""What an endpoint lets us do and can do, asked step by step without leaving anything behind."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import unescape
from typing import Final

from s5jtd.errors import EndpointDown, EndpointError, ObjectError, S5jtError
from s5jtd.model import Listed, printable
from s5jtd.s3.client import S3Client
from s5jtd.s3.heads import head
from s5jtd.s3.listing import list_objects
from s5jtd.s3.moments import skew_seconds
from s5jtd.s3.reaching import Step
from s5jtd.s3.uploads import Upload, abort

#: Beyond this, signed requests are soon refused (S3 takes 15 minutes).
SKEW_SECONDS_MAX: Final = 120.0
#: No object is ever written under this name: a multipart upload is begun there and aborted.
PROBE_NAME: Final = b".s5jtd-check-"
_PARTS: Final = re.compile(r"[0-9a-fA-F]{32}-([0-9]{1,5})")
_UPLOAD_ID: Final = re.compile(rb"<UploadId>([^<]{1,1024})</UploadId>")


@dataclass(slots=True)
class Capabilities:
    """What was found out; None: not asked or not told."""

    latency_ms: float | None = None
    clock_skew_seconds: float | None = None
    list_version: str | None = None  #: "2", or "1" where version 2 is not understood
    listing: str | None = None  #: "ordered" or "unordered"
    part_number: bool | None = None  #: HEAD tells the size of one part; no only of an object in parts
    checksums: list[str] | None = None  #: algorithms with which a HEAD answered
    multipart: bool | None = None
    s5cmd: bool | None = None  #: reads what the native engine reads
    objects_seen: int = 0


@dataclass
class Trial:
    """Asks one endpoint of one side."""

    client: S3Client
    prefix: bytes
    list_version: str  #: of the configuration
    destination: bool
    found: Capabilities = field(default_factory=Capabilities)
    smallest: Listed | None = field(default=None, init=False)  #: of the first page of the listing
    _first: Listed | None = field(default=None, init=False)

    def steps(self) -> Iterator[Step]:
        """One after the other; what the first fails is not asked further."""
        for name, look in (("access", self._access), ("listing", self._listing)):
            step = _tried(name, look)
            yield step
            if step.state == "failed":
                return
        yield self._clock()
        yield _tried("heads", self._heads)
        if self.destination:
            yield _tried("multipart", self._multipart)

    def _access(self) -> Step:
        """Credentials, region, bucket: whatever an answer to a signed request says."""
        started = time.monotonic()
        query: dict[str, str | bytes] = {"list-type": "2", "max-keys": "1", "encoding-type": "url"}
        if self.prefix:
            query["prefix"] = self.prefix
        # Some servers send a bucket's whole listing; its beginning is enough.
        with self.client.stream("GET", None, query) as stream:
            self.found.latency_ms = round((time.monotonic() - started) * 1000, 1)
            self.found.clock_skew_seconds = skew_seconds(stream.headers.get("date"), time.time())
            beginning = next(iter(stream), b"")
        if b"<ListBucketResult" not in beginning:
            raise EndpointDown("what answers is no S3 server", hint="a proxy or another service may answer")
        if b"<KeyCount>" in beginning:
            self.found.list_version = "2"
        elif (
            b"<Marker" in beginning
        ):  # which version 1 always names; some leave both out where there is nothing
            self.found.list_version = "1"
        return Step("access", "ok", f"may list the bucket; answers in {self.found.latency_ms} ms")

    def _listing(self) -> Step:
        page = next(
            iter(list_objects(self.client, self.prefix, version=self.list_version, page_size=100)), None
        )
        self.found.listing = "ordered" if page is None or page.sorted else "unordered"
        if page is not None and page.objects:
            # One that was uploaded in parts tells more of the server than others do.
            self._first = next((one for one in page.objects if _in_parts(one)), page.objects[0])
            self.smallest = min(page.objects, key=lambda one: one.size)
            self.found.objects_seen = len(page.objects)
        version = f"version {self.found.list_version}, " if self.found.list_version else ""
        detail = f"{version}{self.found.listing}"
        if self.found.listing == "unordered":
            return Step("listing", "ok", f"{detail}: each look at it is sorted on disk first")
        return Step(
            "listing", "ok", detail if page and page.objects else f"{detail}; nothing below the prefix"
        )

    def _clock(self) -> Step:
        skew = self.found.clock_skew_seconds
        if skew is None:
            return Step("clock", "skipped", "the endpoint does not tell its time")
        if abs(skew) > SKEW_SECONDS_MAX:
            return Step(
                "clock", "failed", f"the endpoint's clock differs by {skew:.0f} s",
                "set this machine's clock: timedatectl",
            )  # fmt: skip
        return Step("clock", "ok", f"differs by {skew:.0f} s")

    def _heads(self) -> Step:
        """Which evidence can be had of an object."""
        if self._first is None:
            return Step("heads", "skipped", "there is no object to ask for")
        answer = head(self.client, self._first.key, part_number=1, checksums=True)
        # Of an object in one piece many servers tell no part, and would of others.
        if answer.part_size is not None or _in_parts(self._first):
            self.found.part_number = answer.part_size is not None
        self.found.checksums = sorted(answer.checksums)
        evidence = [f"checksum {name}" for name in self.found.checksums]
        evidence += ["ETag"] if answer.etag else []
        evidence += ["part sizes"] if self.found.part_number else []
        if answer.size != self._first.size:
            return Step(
                "heads", "warning", f"{printable(self._first.key)} has another size than the listing says",
                "it was replaced just now, or the endpoint does not tell the truth",
            )  # fmt: skip
        return Step("heads", "ok", f"an object tells {', '.join(evidence) or 'only its size'}")

    def _multipart(self) -> Step:
        """Begin an upload under a name of ours and abort it: nothing is written that could be found."""
        key = self.prefix + PROBE_NAME + secrets.token_hex(8).encode()
        answer = self.client.request("POST", key, {"uploads": ""})
        upload_id = _UPLOAD_ID.search(answer.body)
        if upload_id is None:
            raise EndpointDown("it does not name the upload it began", hint="what answers is no S3 server")
        abort(self.client, Upload(key, unescape(upload_id[1].decode("utf-8", "replace")), 0))
        self.found.multipart = True
        return Step("multipart", "ok", "an upload may be begun and aborted")


def _tried(name: str, look: Callable[[], Step]) -> Step:
    try:
        return look()
    except (EndpointError, ObjectError) as error:
        return Step(name, "failed", str(error), error.hint or _hint(error), may_pass=error.retry)


def _in_parts(listed: Listed) -> bool:
    """Whether an object's ETag is one of several parts."""
    found = _PARTS.fullmatch(listed.etag)
    return found is not None and int(found[1]) > 1


def _hint(error: S5jtError) -> str:
    return "it may be tried again" if error.retry else "check what these credentials may do"
