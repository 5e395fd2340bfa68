"""Makes an object of the parts that a server holds, and waits for one that the server is still making.

Putting many parts together may take longer than the link holds.  Who then asks again is told "done" by some
servers long before it is, by others that there is no such upload; and a new one would send all of it twice.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from s5jtd.engine.contract import Failure, TransferFailed
from s5jtd.engine.native.client import is_answer

#: A server that says it is done shows the object within this.
_ASSEMBLY_SECONDS: Final = 900.0
#: One that knows no such upload is making the object of it, if at all, for no longer than this.
_UNKNOWN_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 1.0
_MD5: Final = re.compile(r"[0-9a-f]{32}")


class Asked(NamedTuple):
    """What a server said when it was asked to make the object."""

    is_known: bool  #: it says that it did, or does
    etag: str | None  #: of the object, without quotes; None: nobody can tell
    seconds: float  #: for which to wait for it; 0: it is there


def ask(
    client: Any, place: Mapping[str, str], upload_id: str, etags: Mapping[int, str], *, again: bool
) -> Asked:
    """Ask for an object of the parts `etags`; `again`: an earlier run may have asked before.

    Raises:
        ClientError, BotoCoreError: as the endpoint answers.
    """
    parts = [{"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in sorted(etags.items())]
    try:
        answer = client.complete_multipart_upload(
            **place, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )
    except Exception as error:
        if not is_answer(error, "NoSuchUpload", "404"):
            raise
        return Asked(False, _etag_of(etags), _UNKNOWN_SECONDS)
    etag = str(answer.get("ETag", "")).strip('"') or _etag_of(etags)
    was_retried = answer["ResponseMetadata"].get("RetryAttempts", 0) > 0
    return Asked(True, etag, _ASSEMBLY_SECONDS if again or was_retried else 0.0)


def awaited(asked: Asked, etag_there: Callable[[], str | None], look: Callable[[], None]) -> bool:
    """Wait for the object; False where the server knows of no upload, and nothing came of one.

    `etag_there` tells what lies under the name now; `look` is called meanwhile, and may raise to end it.

    Raises:
        TransferFailed: the server says that it made the object, and does not show it.
    """
    if not asked.seconds:
        return True
    ends_at = time.monotonic() + asked.seconds
    while asked.etag is not None:
        look()
        if etag_there() == asked.etag:
            return True
        if time.monotonic() >= ends_at:
            break
        time.sleep(_LOOK_SECONDS)
    if asked.is_known:
        raise TransferFailed(
            Failure.OTHER, "the server says that it put the parts together, and shows nothing"
        )
    return False


def etag_there(client: Any, place: Mapping[str, str]) -> str | None:
    """The ETag of what lies under a name, without quotes; None where nothing does.

    Raises:
        ClientError, BotoCoreError: as the endpoint answers.
    """
    try:
        return str(client.head_object(**place)["ETag"]).strip('"')
    except Exception as error:
        if is_answer(error, "NoSuchKey", "404"):
            return None
        raise


def _etag_of(etags: Mapping[int, str]) -> str | None:
    """As S3 makes it of parts whose ETags are their MD5s."""
    if not all(_MD5.fullmatch(etag) for etag in etags.values()):
        return None
    md5s = b"".join(bytes.fromhex(etag) for _, etag in sorted(etags.items()))
    return f"{hashlib.md5(md5s, usedforsecurity=False).hexdigest()}-{len(etags)}"
