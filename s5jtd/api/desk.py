"""The API's only way to data: reading verbs of the control socket, and what their failures mean over HTTP."""

from __future__ import annotations

import threading
import time
from typing import Any

from s5jtctl.client import Daemon, Failure
from s5jtd.api.refusal import Refusal
from s5jtd.protocol import Method

AT_ONCE = 8  #: questions; the daemon's own clients need its places too
TURN_SECONDS = 5.0  #: to wait for one of these places
ANSWER_SECONDS = 10.0  #: for the daemon to answer
PING_SECONDS = 2.0  #: the same, where anybody may ask
HEALTH_SECONDS = 1.0  #: how long a ping's result holds


class Desk:
    """Asks the daemon, from any thread; nothing it can ask changes anything."""

    def __init__(self, socket_path: str) -> None:
        """The socket need not be there yet."""
        self._path = socket_path
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._pinging = threading.Lock()
        self._health: Refusal | None = None
        self._health_until = 0.0

    def status(self) -> dict[str, Any]:
        """What is true now.

        Raises:
            Refusal: the daemon did not say.
        """
        return self._ask(Method.STATUS)

    def reports(self, **params: object) -> list[dict[str, Any]]:
        """The newest reports that match, the newest first; parameters that are None ask for nothing.

        Raises:
            Refusal: the daemon did not say.
        """
        given = {name: value for name, value in params.items() if value is not None}
        return list(self._ask(Method.REPORT_LIST, **given)["reports"])

    def report(self, epoch: int, **params: object) -> dict[str, Any]:
        """One report.

        Raises:
            Refusal: there is none, or the daemon did not say.
        """
        given = {name: value for name, value in params.items() if value is not None}
        return self._ask(Method.REPORT_GET, id=epoch, **given)

    def health(self) -> Refusal | None:
        """Why the daemon cannot be reached, or None.

        As it was a moment ago: anybody may ask, so it takes at most one thread and one question a second.
        """
        if self._pinging.acquire(blocking=False):
            try:
                if time.monotonic() >= self._health_until:
                    self._health = self._ping()
                    self._health_until = time.monotonic() + HEALTH_SECONDS
            finally:
                self._pinging.release()
        return self._health

    def _ping(self) -> Refusal | None:
        daemon = Daemon(self._path, PING_SECONDS)
        try:
            daemon.ask(Method.PING)
        except Failure as failure:
            return _refusal(failure)
        finally:
            daemon.close()
        return None

    def _ask(self, method: Method, **params: object) -> dict[str, Any]:
        if not self._places.acquire(timeout=TURN_SECONDS):
            raise _later(
                "overloaded", "Too much is being asked of the daemon at once", "try again in a moment"
            )
        daemon = Daemon(self._path, ANSWER_SECONDS)
        try:
            return daemon.ask(method, params)
        except Failure as failure:
            raise _refusal(failure) from None
        finally:
            daemon.close()
            self._places.release()


def _refusal(failure: Failure) -> Refusal:
    """The words are the daemon's; the status tells a program whether to try again."""
    match failure.code:
        case "usage":  # it knows no such report, or no such job
            return Refusal(404, "not_found", str(failure), "GET /logs lists the reports")
        case "method_not_found" | "invalid_params":
            return _later("not_served", "The running daemon cannot tell this", "update s5jtd and restart it")
        case "not_permitted":
            return _later(failure.code, str(failure), "as root: add the API's user to the socket's group")
        case "not_running" | "closed" | "timeout" | "overloaded" | "busy" | "socket_unusable":
            return _later(failure.code, str(failure), failure.hint)
    return Refusal(502, failure.code, str(failure), failure.hint)


def _later(code: str, message: str, hint: str) -> Refusal:
    return Refusal(503, code, message, hint, {"retry-after": "5"})
