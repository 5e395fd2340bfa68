"""s5jtctl from its start to its exit code."""

from __future__ import annotations

import os
import sys

from s5jtctl import quick
from s5jtctl.client import Failure
from s5jtctl.terminal import fail
from s5jtd.protocol import Exit


def main() -> None:
    """Run one command; nobody who types it ever sees a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it was closed: there is nobody to print for
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        _run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # Nobody reads even the error; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(Exit.FAILED) from None


def _run() -> None:
    try:
        if (asked := quick.understood(sys.argv[1:])) is not None:
            quick.answer(asked)
        else:
            from s5jtctl import commands

            commands.run()
    except Failure as failure:
        fail(failure)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fail(
            Failure(
                f"the daemon's answer cannot be shown: {type(error).__name__}: {error}",
                "see that both are of one version: s5jtctl version; --json shows the answer as it is",
                Exit.FAILED,
                "protocol",
            )
        )


if __name__ == "__main__":
    main()
