"""What to do when the ledger's disk is full or its file is held: nothing happened, so try the whole again."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any, TypeVar

from s5jtd.errors import LedgerBlocked

#: Asked on the thread whose transaction could not be: what stood in the way, and for how many seconds it
#: has now.  It waits a while and says whether to try again.
OnBlocked = Callable[[LedgerBlocked, float], bool]

T = TypeVar("T", bound=type)


def give_up(_error: LedgerBlocked, _seconds: float) -> bool:
    """For those who have nobody to wait for."""
    return False


def patient(door: T) -> T:
    """Each public method of the class is one transaction, and is tried again as a whole.

    A full disk rolls a transaction back, whichever statement met it: half of a method cannot be
    repeated, all of it can.  A thread that waits here has lost nothing of what it did before: with an
    error instead, a chunk whose bytes are safe on a volume would be nobody's until the next start.
    The class has `on_blocked`.
    """
    for name, method in list(vars(door).items()):
        if isinstance(method, FunctionType) and not name.startswith("_"):
            setattr(door, name, _patiently(method))
    return door


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def again(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        while True:
            try:
                return method(self, *args, **kwargs)
            except LedgerBlocked as error:
                if not self.on_blocked(error, time.monotonic() - began):
                    raise

    return again
