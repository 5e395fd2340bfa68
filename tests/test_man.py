"""The manual pages: well-formed, complete, and in step with the programs; and what a shell completes."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from s5jtctl.commands import cli
from s5jtd.cli import main
from s5jtd.control.server import ControlServer
from s5jtd.control.verbs import verbs
from s5jtd.errors import Exit
from tests.appliance import until
from tests.completions import FOLDER, scripts
from tests.fake_controls import FakeControls

ROOT = Path(__file__).parents[1]
PAGES = ["s5jtctl.1", "s5jtd.8", "s5jtd.yaml.5"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, ROOT / "release" / "man.py", folder], check=True, cwd="/")
    return folder


def commands(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, one in command.commands.items():
            yield from commands(one, (*path, name))


def test_every_page_is_there(folder):
    assert sorted(os.listdir(folder)) == PAGES


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_a_page_is_well_formed(folder, name):
    done = subprocess.run(
        ["groff", "-ww", "-man", "-Tutf8", folder / name], capture_output=True, text=True, check=True
    )

    assert done.stderr == ""
    text = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    for heading in ("NAME", "DESCRIPTION", "SEE ALSO"):
        assert f"\n{heading}\n" in text
    assert not re.search(r"\\f[BIR]|<!--|\*\*", text)
    assert max(map(len, text.splitlines())) <= 120  # the example's own lines


@pytest.mark.parametrize(("name", "root"), [("s5jtd.8", main), ("s5jtctl.1", cli)])
def test_a_page_has_every_command_and_option(folder, name, root):
    text = re.sub(r"\\f[BIR]|\\&", "", (folder / name).read_text()).replace("\\-", "-")
    program = name.partition(".")[0]

    for path, command in commands(root, (program,)):
        if len(path) > 1:
            assert re.search(rf"^\.SS {' '.join(path)}\b", text, re.MULTILINE), path
        for option in command.params:
            if isinstance(option, click.Option):
                assert re.search(
                    rf"^({'|'.join(option.opts)})\b|, {option.opts[-1]}\b", text, re.MULTILINE
                ), option
                if len(path) > 1:
                    assert option.help, option
                    assert not option.show_default or f"Default: {option.default}." in text, option
    for code in Exit:
        assert re.search(rf"^\.TP\n{int(code)}$", text, re.MULTILINE)


def test_the_page_of_the_configuration_is_the_whole_example(folder):
    text = (folder / "s5jtd.yaml.5").read_text().replace("\\-", "-").replace("\\&", "")

    for line in (ROOT / "etc" / "config.yaml").read_text().splitlines():
        assert line.split("\\")[0].split("~")[0].split("`")[0].split("^")[0] in text


@pytest.mark.parametrize(("program", "root"), [("s5jtd", main), ("s5jtctl", cli)])
def test_the_help_of_each_command_ends_with_examples_that_can_be_typed(program, root):
    """A command line of a help is understood by the parser of the very command that it names."""
    for path, command in commands(root, (program,)):
        help_text = command.get_help(click.Context(command, info_name=path[-1]))
        shown = re.search(r"^ *(Examples\b.*|First steps):\n(?P<lines>(.+\n?)+)", help_text, re.MULTILINE)
        assert shown, path
        lines = [line.strip() for line in shown["lines"].splitlines()]
        typed = [re.split(r"  +| > | && systemctl", re.sub(".*&& s5jtd", "s5jtd", line))[0] for line in lines]
        assert any(line.split()[: len(path)] == list(path) for line in typed), path
        for line in typed:
            name, *words = shlex.split(line)
            named: click.Command = {"s5jtd": main, "s5jtctl": cli}[name]
            while isinstance(named, click.Group) and words and words[0] in named.commands:
                named = named.commands[words.pop(0)]
            named.make_context(name, words)


def test_the_scripts_for_shells_are_current():
    """`make man` makes them so."""
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == scripts()


def in_bash(typed: str, environ: dict[str, str], folder: Path) -> list[str]:
    """What the script itself does, with the words of a line typed so far."""
    words = typed.split(" ")
    name = words[0]
    program = (
        f"source {FOLDER}/{name}.bash; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1};"
        f" complete -p {name} >&2; _{name}_completion {name}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, env=environ)
    return [line for line in done.stdout.splitlines() if line]


def in_fish(typed: str, environ: dict[str, str], folder: Path) -> list[str]:
    program = f"source {FOLDER}/{typed.partition(' ')[0]}.fish; complete -C '{typed}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", program], capture_output=True, text=True, check=True,
        env=environ | {"HOME": str(folder)},
    )  # fmt: skip
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


def in_zsh(typed: str, environ: dict[str, str], folder: Path) -> list[str]:
    """On a terminal, found as it is when installed; what the Tab key made of a line is written to a file."""
    line = folder / "line"
    (folder / ".zshrc").write_text(
        f"fpath=({FOLDER} $fpath); autoload -Uz compinit; compinit -u -d {folder}/dump\n"
        f'tell() {{ print -r -- "$BUFFER" > {line} }}; zle -N tell; bindkey "^X" tell\n'
        f"bindkey '^I' complete-word; print READY\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        ["zsh", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=environ | {"ZDOTDIR": str(folder), "HOME": str(folder), "TERM": "dumb"},
    ) as zsh:  # fmt: skip
        os.close(theirs)
        try:
            said = b""
            while b"READY" not in said:
                said += os.read(ours, 4096)
            os.write(ours, typed.encode() + b"\t\x18")
            until(lambda: line.exists() and line.read_text().endswith("\n"), f"{typed} in zsh")
        finally:
            zsh.kill()
            os.close(ours)
    completed = line.read_text().removesuffix("\n").rstrip(" ")
    return [] if completed == typed else [completed.rpartition(" ")[2]]


SHELLS = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("s5jtctl pau", ["pause"]),
        ("s5jtctl status arch", ["archive-to-cloud"]),
        ("s5jtctl volumes drain v", ["vol1"]),
        ("s5jtctl objects archive-to-cloud --state par", ["parked"]),
        ("s5jtctl status --wa", ["--watch"]),
        ("s5jtctl status nothing-like-it", []),
        ("s5jtd list source hot", ["hot-one"]),
        ("s5jtd run --once --job co", ["cold-one"]),
    ],
)
def test_bash_completes_names_that_the_programs_know(tmp_path, typed, offered):
    assert completed("bash", typed, tmp_path) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_do_so_too(tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not on this machine; apt-get install {shell}")
    assert completed(shell, "s5jtctl status arch", tmp_path) == ["archive-to-cloud"]
    assert completed(shell, "s5jtctl status nothing-like-it", tmp_path) == []
    assert completed(shell, "s5jtd list source hot", tmp_path) == ["hot-one"]


def completed(shell: str, typed: str, folder: Path) -> list[str]:
    """What a real shell offers for a line typed so far, with a daemon and a configuration there."""
    room = folder / str(len(os.listdir(folder)))
    room.mkdir()
    jobs = [
        {"name": name, "source": {"bucket": name}, "destination": {"bucket": "there", "prefix": f"{name}/"}}
        for name in ("hot-one", "cold-one")
    ]
    config = room / "config.yaml"
    config.write_text(json.dumps({"volumes": [str(room)], "jobs": jobs}))
    path = room / "control.sock"
    environ = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "S5JTD_SOCKET": str(path), "S5JTD_CONFIG": str(config),
    }  # fmt: skip
    with ControlServer(path, verbs(FakeControls())):
        return SHELLS[shell](typed, environ, room)


def test_without_a_daemon_nothing_is_offered_and_nothing_is_said(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "s5jtctl"], capture_output=True, text=True, check=True, cwd=ROOT,
        env={
            "S5JTD_SOCKET": str(tmp_path / "none"), "_S5JTCTL_COMPLETE": "bash_complete", "COMP_CWORD": "2",
            "COMP_WORDS": "s5jtctl status ", "PATH": os.environ["PATH"],
        },
    )  # fmt: skip

    assert (done.stdout.strip(), done.stderr) == ("", "")
