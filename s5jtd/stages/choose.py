"""Which of a source's objects a job moves, by the filters of its configuration; pure."""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Sequence

from s5jtd.config import JobConfig
from s5jtd.model import Listed

Clock = Callable[[], float]


class Choice:
    """The filters of one job as they stand at the beginning of a look at its source.

    A glob is matched against the whole key below the prefix; `*` runs over slashes too, as S3 knows no
    folders.  What an exclude matches stays, whatever an include says.  The age of an object is told by its
    time of last change; where a server tells none, age leaves nothing out.
    """

    def __init__(self, config: JobConfig, prefix: bytes, clock: Clock = time.time) -> None:
        """`prefix` is the source's."""
        self._below = len(prefix)
        self._include = _pattern(config.include)
        self._exclude = _pattern(config.exclude)
        self._min_size, self._max_size = config.min_size, config.max_size
        self._min_age, self._max_age = config.min_age, config.max_age
        self._clock = clock
        self.takes_all = not (self._include or self._exclude) and {
            self._min_size, self._max_size, self._min_age, self._max_age
        } == {None}  # fmt: skip

    def of(self, objects: Sequence[Listed]) -> Sequence[Listed]:
        """Those of a page that the job moves, in the page's order."""
        if self.takes_all:
            return objects
        now_ms = int(self._clock() * 1000)
        return [one for one in objects if self._takes(one, now_ms)]

    def takes(self, one: Listed) -> bool:
        """Whether the job moves this object now; one that is too young it may move later."""
        return self.takes_all or self._takes(one, int(self._clock() * 1000))

    def _takes(self, one: Listed, now_ms: int) -> bool:
        if self._min_size is not None and one.size < self._min_size:
            return False
        if self._max_size is not None and one.size > self._max_size:
            return False
        if one.modified_ms:
            age = (now_ms - one.modified_ms) / 1000
            if self._min_age is not None and age < self._min_age:
                return False
            if self._max_age is not None and age > self._max_age:
                return False
        if not (self._include or self._exclude):
            return True
        name = one.key[self._below :].decode("utf-8", "surrogateescape")
        if self._exclude is not None and self._exclude.match(name):
            return False
        return self._include is None or self._include.match(name) is not None


def _pattern(globs: Sequence[str]) -> re.Pattern[str] | None:
    """All globs as one expression; None where there is none."""
    return re.compile("|".join(map(fnmatch.translate, globs))) if globs else None
