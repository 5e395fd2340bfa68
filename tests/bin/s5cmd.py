"""A stand-in for s5cmd that misbehaves on purpose: reads the batch file, speaks its JSON, moves nothing.

Run as `s5cmd.py FAULT s5cmd-arguments`; see FAULTS.
"""

import json
import os
import shlex
import signal
import sys
import time


def say(data: bytes, stream: int = 1) -> None:
    while data:
        data = data[os.write(stream, data) :]


def vouch(source: str, destination: str) -> None:
    answer = {"operation": "cp", "success": True, "source": source, "destination": destination, "object": {}}
    say(json.dumps(answer).encode() + b"\n")


def vouch_for_all(copies: list[list[str]]) -> None:
    for copy in copies:
        vouch(*copy)


def forgetful(copies: list[list[str]]) -> None:
    """P7: exits 0 and leaves out every second line."""
    vouch_for_all(copies[::2])


def gloomy(copies: list[list[str]]) -> None:
    """P7: does everything and exits 1."""
    vouch_for_all(copies)
    sys.exit(1)


def chatty(copies: list[list[str]]) -> None:
    """P8: floods both pipes before, between and after its answers."""
    for stream in (1, 2):
        say(b'{"message":"noise"}\n' * 50_000, stream)
    vouch_for_all(copies)
    say(b"noise\n" * 50_000, 2)


def garbled(copies: list[list[str]]) -> None:
    """P8: lines that are no UTF-8, no JSON, endless, or look like several."""
    say(b"\xff\xfe\n\n\x85\n" + b"x" * 10_000_000 + b"\n" + b"[" * 50_000 + b"\n")
    say(b'{"operation":"cp","success":true,"source":"a\xc2\x85{}","destination":"stranger.obj"}\n', 2)
    say(b'{"error":"\\ud800 \xff","command":"cp"}\n{"error":' + b"1" * 6000 + b"}\n", 2)
    for source, destination in copies:
        vouch(source + "\u0085\u2028", destination)
    say(b'{"operation":"cp","success":true,"sour')


def repeating(copies: list[list[str]]) -> None:
    """Says everything twice, the second time the opposite."""
    vouch_for_all(copies)
    for source, destination in copies:
        error = {"operation": "cp", "command": f"cp {source} {destination}", "error": "NoSuchKey: never mind"}
        say(json.dumps(error).encode() + b"\n", 2)


def deaf(copies: list[list[str]]) -> None:
    """P5: does the first, then nothing at all, and does not listen either."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    vouch_for_all(copies[:1])
    time.sleep(600)


def poisoned(copies: list[list[str]]) -> None:
    """P19: dies of one object."""
    for source, destination in copies:
        if "poison" in source:
            os.kill(os.getpid(), signal.SIGKILL)
        vouch(source, destination)


FAULTS = {fault.__name__: fault for fault in (forgetful, gloomy, chatty, garbled, repeating, deaf, poisoned)}

if __name__ == "__main__":
    with open(sys.argv[-1], encoding="utf-8") as batch:
        FAULTS[sys.argv[1]]([shlex.split(line)[-2:] for line in batch])
