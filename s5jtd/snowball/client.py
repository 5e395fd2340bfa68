"""The one door to AWS's `snowballEdge` client: exact surroundings, a certain end, no unlock code in it.

The client takes the unlock code as an argument, so that whoever may list this machine's processes sees
it while a command runs; only `configure` asks for it on a terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from s5jtd.errors import ConfigError, EndpointDown, SnowballError, UsageError
from s5jtd.snowball.answers import (
    Software,
    State,
    failure,
    plain,
    read_access_key_id,
    read_secret,
    read_software,
    read_state,
    stranger,
)
from s5jtd.snowball.folder import Device, Keys
from s5jtd.units import format_duration

#: A Java program on a small machine, asking over a slow network.
ANSWER_SECONDS: Final = 60.0
_GRACE_SECONDS: Final = 5.0
_TALK_BYTES_MAX: Final = 64 * 1024

_MANIFEST, _CODE, _ENDPOINT = "manifest path", "unlock code", "default endpoint"
#: What `configure` asks for; a prompt ends the last line, perhaps with a default in brackets.
_PROMPTS: Final = {
    _MANIFEST: re.compile(r"manifest[^\n]*:\s*$", re.IGNORECASE),
    _CODE: re.compile(r"unlock[ -]?code[^\n]*:\s*$", re.IGNORECASE),
    _ENDPOINT: re.compile(r"endpoint[^\n]*:\s*$", re.IGNORECASE),
}


def find_program(given: str | None, environ: Mapping[str, str]) -> Path:
    """The client: the one given, else the one on PATH.

    Raises:
        UsageError: there is none.
    """
    found = shutil.which(given or "snowballEdge", path=environ.get("PATH", os.defpath))
    if found is None:
        raise UsageError(
            f"{given} is no program" if given else "AWS's snowballEdge client is not on PATH",
            hint="unpack AWS's package for Linux, and give --client FOLDER/bin/snowballEdge",
        )
    return Path(found).absolute()


class Client:
    """AWS's client, speaking for one device.

    Every method may raise
        EndpointDown: the device does not answer; try again later.
        ConfigError: the device, or the client before it, refuses manifest or unlock code.
        SnowballError: the client cannot be run, fails otherwise, or is not the one we know.
    """

    def __init__(
        self,
        program: Path,
        device: Device,
        environ: Mapping[str, str],
        *,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """`answer_seconds`: how long a command may take."""
        self.device = device
        self._program = program
        self._answer_seconds = answer_seconds
        # Its words are read, so they must be English; the rest of our environment is none of its business.
        self._environ = {"HOME": str(Path.home()), "LANG": "C.UTF-8"} | {
            name: environ[name] for name in ("PATH", "JAVA_HOME") if name in environ
        }
        self._unlock_code = re.compile(
            "[-\\s]*".join(map(re.escape, device.unlock_code.split("-"))), re.IGNORECASE
        )

    def describe(self) -> State:
        """Where the device is, and whether it is unlocked; a locked one tells it too."""
        return read_state(self.ask("describe-device"))

    def software(self) -> Software:
        """What runs on the device, and where an update is; asks for an unlocked device."""
        return read_software(self.ask("describe-device-software"))

    def keys(self) -> Keys:
        """The device's S3 credentials."""
        access_key_id = read_access_key_id(self.ask("list-access-keys"))
        return Keys(
            access_key_id, read_secret(self.ask("get-secret-access-key", "--access-key-id", access_key_id))
        )

    def ask(self, command: str, *options: str, seconds: float | None = None) -> str:
        """What a command prints; `seconds` where it may take longer than a question."""
        device, seconds = self.device, seconds or self._answer_seconds
        argv = [str(self._program), command, *options]
        argv += ["--endpoint", device.endpoint]
        argv += ["--manifest-file", os.fspath(device.manifest)]
        argv += ["--unlock-code", device.unlock_code]
        with self._started(argv, subprocess.DEVNULL, subprocess.PIPE) as process:
            try:
                stdout, stderr = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:  # its own words would name the arguments
                raise self._silent(command, seconds) from None
        text = stdout.decode(errors="replace")
        if process.returncode:
            # What it prints where answers belong may be half a secret: it speaks of failure on stderr.
            words = stderr.decode(errors="replace").strip() or ("" if "secret" in command else text)
            raise failure(command, process.returncode, self.redact(words), endpoint=device.endpoint)
        return self.redact(text)

    def configure(self) -> None:
        """Let the client store manifest, unlock code and endpoint as its default profile, in HOME."""
        ours, its = pty.openpty()
        try:
            quiet = termios.tcgetattr(its)
            quiet[3] &= ~termios.ECHO  # or we would hear our answers, the unlock code among them
            termios.tcsetattr(its, termios.TCSANOW, quiet)
            with self._started([str(self._program), "configure"], its, its) as process:
                os.close(its)
                its = -1
                deadline = time.monotonic() + self._answer_seconds
                said, missing = self._converse(ours, deadline)
                try:
                    process.wait(max(deadline - time.monotonic(), 0.1))
                except subprocess.TimeoutExpired:
                    raise self._silent("configure", self._answer_seconds) from None
        finally:
            for fd in (ours, its):
                if fd >= 0:
                    os.close(fd)
        words = self.redact(said)
        if process.returncode:
            raise failure("configure", process.returncode, words, endpoint=self.device.endpoint)
        if missing:
            raise stranger("configure", f"it did not ask for {' and '.join(missing)}: {plain(words)}")

    def redact(self, text: str) -> str:
        """The text without the unlock code, however its hyphens and letters are written."""
        return self._unlock_code.sub("[redacted]", text)

    def _converse(self, terminal: int, deadline: float) -> tuple[str, list[str]]:
        """Answer prompts until the client leaves the terminal: what it said, and what it did not ask for."""
        answers = {
            _MANIFEST: os.fsencode(self.device.manifest),
            _CODE: self.device.unlock_code.encode(),
            _ENDPOINT: self.device.endpoint.encode(),
        }
        said, pending = "", ""
        while True:
            ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise stranger("configure", f"it waits for something else: {plain(self.redact(pending))}")
            try:
                data = os.read(terminal, 4096)
            except OSError:  # Linux's way to say that nobody is at the other end
                return said, list(answers)
            said = (said + data.decode(errors="replace"))[-_TALK_BYTES_MAX:]
            pending = (pending + data.decode(errors="replace"))[-_TALK_BYTES_MAX:]
            asked = next((name for name, prompt in _PROMPTS.items() if prompt.search(pending)), None)
            if asked is None:
                continue
            if asked not in answers:
                raise ConfigError(
                    f"snowballEdge configure asks for the {asked} again: {plain(self.redact(pending))}",
                    hint="check that unlock_key and manifest belong to this very device",
                )
            pending = ""
            with contextlib.suppress(OSError):  # it left after it asked; the next read tells
                os.write(terminal, answers.pop(asked) + b"\n")

    @contextlib.contextmanager
    def _started(self, argv: list[str], stdin: int, output: int) -> Iterator[subprocess.Popen[bytes]]:
        """Run it; on the way out it is gone, and where we leave by an error, so is all that it started."""
        terminal = stdin != subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                argv,
                env=self._environ,
                cwd="/",
                stdin=stdin,
                stdout=output,
                stderr=output,
                start_new_session=True,
                umask=0o077,  # `configure` stores the unlock code
                # Only one thread runs here.  Without this, /dev/tty would not be our terminal.
                preexec_fn=_control_terminal if terminal else None,  # noqa: PLW1509
            )
        except OSError as error:
            raise SnowballError(
                f"{self._program}: {error.strerror}", hint="--client takes the path of AWS's snowballEdge"
            ) from None
        with process:
            try:
                yield process
            except BaseException:
                _end(process)
                raise

    def _silent(self, command: str, seconds: float) -> EndpointDown:
        return EndpointDown(
            f"{self.device.endpoint} (snowballEdge {command} gave no answer in {format_duration(seconds)})",
            hint="check endpoint_url, the cable, and what the device's display says",
        )


def _control_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _end(process: subprocess.Popen[Any]) -> None:
    """Ask, wait, insist: the client is a script around a Java program, and both must go."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
        os.killpg(process.pid, signal.SIGKILL)
