"""Whether the client of a verb is still there: for verbs that wait, so that nobody is waited for in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_gone: ContextVar[Callable[[], bool]] = ContextVar("gone", default=lambda: False)


def client_is_gone() -> bool:
    """Whether nobody would hear the answer to the request that this thread serves."""
    return _gone.get()()


@contextmanager
def serving(gone: Callable[[], bool]) -> Iterator[None]:
    """What runs inside serves the client of whom `gone` tells."""
    token = _gone.set(gone)
    try:
        yield
    finally:
        _gone.reset(token)
