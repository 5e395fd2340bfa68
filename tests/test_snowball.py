"""`s5jtd snowball` against a stand-in for AWS's client: what it asks, what it leaves, what it never says."""

import configparser
import json
import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from s5jtd.commands.snowball import snowball
from s5jtd.errors import ConfigError, DeviceNotReady, EndpointDown, Exit, SnowballError
from s5jtd.s3.credentials import CredentialProvider, CredentialSource
from s5jtd.snowball import answers, profile
from s5jtd.snowball.answers import Install
from s5jtd.snowball.client import Client
from s5jtd.snowball.folder import Keys, read_device, write_keys, write_private
from s5jtd.snowball.setup import Patience, Step, Update, next_step, unlock
from tests.appliance import WAIT_SECONDS

ROOT = Path(__file__).parents[1]
CODE = "00000-FAKE0-unloc-kcode-99999"
ENDPOINT = "https://192.0.2.10"
KEYS = Keys("FAKEACCESSKEY", "fake/secret+for=tests")
PROGRAM = "from s5jtd.commands.snowball import snowball; snowball(prog_name='s5jtd snowball')"


class Site:
    """A machine with one device's folder, a home, and the stand-in on PATH."""

    def __init__(self, root: Path, capsys) -> None:
        self._capsys = capsys
        self.home, self.bin, self.folder = root / "home", root / "bin", root / "sbe 1" / "sbe-1"
        for folder in (self.home, self.bin, self.folder):
            folder.mkdir(parents=True)
        program = (ROOT / "tests/bin/snowballEdge").read_text().partition("\n")[2]
        (self.bin / "snowballEdge").write_text(f"#!{sys.executable} -IS\n{program}")
        (self.bin / "snowballEdge").chmod(0o755)
        self.manifest = self.folder / "JID-FAKE_manifest.bin"
        self.manifest.write_bytes(b"\x00\xff")
        self.config = self.folder / "sbe_config.yaml"
        self.config.write_text(f"unlock_key: {CODE}\nendpoint_url: {ENDPOINT}\n")
        self.config.chmod(0o600)
        self.device(
            code=CODE, access_key_id=KEYS.access_key_id, secret=KEYS.secret_access_key, installed="101",
            lock="LOCKED", unlocking=["LOCKED", "UNLOCKING", "UNLOCKED"], install_state="NA", installs=[],
            download=["Downloading", "Downloading", "NA"], install=["Installing", "Requires Reboot"],
            fail={}, say={}, hang=[],
        )  # fmt: skip

    @property
    def environ(self):
        return {
            "HOME": str(self.home), "PATH": f"{self.bin}:/usr/bin:/bin", "JAVA_HOME": "/opt/java",
            "AWS_SECRET_ACCESS_KEY": "not-for-the-client", "LD_PRELOAD": "", "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def device(self, **fields):
        path = self.bin / "device.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | fields))

    def run(self, command, *options):
        """Run it in this process, which is quick."""
        try:
            snowball.main([command, str(self.folder), *options], prog_name="s5jtd snowball")
        except SystemExit as ended:
            code = ended.code
        said = self._capsys.readouterr()
        return self._silent_about_secrets(subprocess.CompletedProcess([], int(code or 0), said.out, said.err))

    def spawn(self, command, *options, program=PROGRAM):
        """Run it as a process of its own, as an operator does."""
        argv = [sys.executable, "-c", program, command, str(self.folder), *options]
        return self._silent_about_secrets(
            subprocess.run(
                argv, env=self.environ, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, check=False, timeout=60,
            )
        )  # fmt: skip

    @staticmethod
    def _silent_about_secrets(done):
        assert CODE not in done.stdout + done.stderr
        assert KEYS.secret_access_key not in done.stdout + done.stderr
        return done

    def client(self, **more):
        return Client(self.bin / "snowballEdge", read_device(self.folder), self.environ, **more)

    @property
    def calls(self):
        path = self.bin / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def commands(self):
        return [call["argv"][0] for call in self.calls]


@pytest.fixture
def site(tmp_path, monkeypatch, capsys):
    site = Site(tmp_path, capsys)
    for name in ("AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in site.environ.items():
        monkeypatch.setenv(name, value)
    return site


def refused(done, code, words):
    """Two lines, the right exit code, and nothing else that a person would have to read."""
    lines = done.stderr.splitlines()[-2:]

    assert done.returncode == code, done.stderr
    assert re.match(r"s5jtd: .+", lines[0])
    assert re.match(r"hint: .+", lines[1])
    assert words in lines[0]
    assert "Traceback" not in done.stderr


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# unlock


def test_unlock_waits_for_the_device_and_leaves_its_keys_for_their_owner_alone(site):
    done = site.spawn("unlock")

    assert done.returncode == Exit.DONE, done.stderr
    assert done.stdout == f"{site.folder}/keys.yaml\n"
    assert re.search("locked: unlocking.*is UNLOCKING .*is UNLOCKED", done.stderr, re.DOTALL)
    assert (site.folder / "keys.yaml").read_text() == (
        f"aws_access_key_id: {KEYS.access_key_id}\naws_secret_access_key: {KEYS.secret_access_key}\n"
    )
    assert mode(site.folder / "keys.yaml") == 0o600
    assert sorted(path.name for path in site.folder.iterdir()) == [
        "JID-FAKE_manifest.bin", "keys.yaml", "sbe_config.yaml",
    ]  # fmt: skip


def test_the_client_gets_the_documented_arguments_and_exactly_its_own_surroundings(site):
    site.device(lock="UNLOCKED")
    done = site.spawn("unlock")

    assert done.returncode == Exit.DONE, done.stderr
    assert site.commands == ["describe-device", "list-access-keys", "get-secret-access-key"]
    device = ["--endpoint", ENDPOINT, "--manifest-file", str(site.manifest), "--unlock-code", CODE]
    assert site.calls[2]["argv"] == [
        "get-secret-access-key", "--access-key-id", KEYS.access_key_id, *device,
    ]  # fmt: skip
    path = site.environ["PATH"]
    expected = {"HOME": str(site.home), "PATH": path, "LANG": "C.UTF-8", "JAVA_HOME": "/opt/java"}
    assert [(call["env"], call["cwd"], call["terminal"], call["leads"]) for call in site.calls] == [
        (expected, "/", 0, True)
    ] * 3


def test_a_device_that_is_unlocked_already_is_not_unlocked_again(site):
    site.run("unlock")
    done = site.run("unlock")

    assert done.returncode == Exit.DONE
    assert "unlocked already" in done.stderr
    assert site.commands.count("unlock-device") == 1


def test_a_device_that_never_unlocks_is_given_up_in_time_and_can_be_tried_again(site):
    site.device(unlocking=["UNLOCKING"])
    done = site.run("unlock", "--timeout", "1s")

    refused(done, Exit.TEMPORARY, f"{ENDPOINT} is UNLOCKING after 1s")
    assert not (site.folder / "keys.yaml").exists()


def test_a_device_that_falls_back_is_not_waited_for(site):
    site.device(unlocking=["UNLOCKING", "LOCKED"])

    refused(site.run("unlock"), Exit.FAILED, "locked again")


def test_silence_while_it_unlocks_is_waited_through(site):
    """The device's network starts anew; the clock here is ours, and each rest changes the device."""
    client = site.client()
    told: list[str] = []
    clock = iter(range(1000))
    silences = [["describe-device"], []]

    def sleep(seconds):
        words = {command: [1, "Connection refused"] for command in silences.pop(0)} if silences else {}
        site.device(fail=words)

    keys = unlock(client, Patience(600, sleep, lambda: float(next(clock))), told.append)

    assert keys == KEYS
    assert any("Connection refused" in line for line in told)


def test_the_first_look_at_an_unreachable_device_says_so(site):
    site.device(fail={"describe-device": [1, "Unable to connect to the endpoint: No route to host"]})

    refused(site.run("unlock"), Exit.TEMPORARY, f"Cannot reach the endpoint: {ENDPOINT}")


def test_a_client_that_hangs_is_ended_with_all_that_it_started(site):
    site.device(hang=["describe-device"])
    done = site.spawn("unlock", "--timeout", "1s")

    refused(done, Exit.TEMPORARY, "gave no answer in 1s")
    for pid in map(int, (site.bin / "hanging").read_text().split()):
        assert gone(pid)


def gone(pid):
    """Whether it ended; a container's init may be slow to bury it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def test_a_wrong_unlock_code_sends_the_operator_to_the_file_and_is_never_shown(site):
    site.device(code="11111-other-22222-33333-44444")
    done = site.spawn("unlock")

    refused(done, Exit.CONFIG, "The unlock code [redacted] cannot decrypt the manifest")


@pytest.mark.parametrize(
    "shown", ["{code}", "0 0 0 0 0", "00000fake0unlockcode99999", "00000-fake0\nUNLOC-kcode-99999"]
)
def test_the_unlock_code_is_taken_out_however_the_client_writes_it(site, shown):
    text = site.client().redact(f"code {shown.format(code=CODE)}!")

    assert text == ("code 0 0 0 0 0!" if " " in shown else "code [redacted]!")


def test_control_characters_of_the_client_reach_no_terminal(site):
    site.device(fail={"describe-device": [1, "\x1b[2Jbroken \x07\u202e\x9b"]})
    done = site.run("status")

    refused(done, Exit.FAILED, "broken")
    assert not set(done.stderr) & set("\x1b\x07\u202e\x9b")


def test_bytes_that_are_no_text_do_not_stop_anything(site):
    script = site.bin / "odd"
    script.write_bytes(b"#!/bin/sh\nprintf '\\377\\376\\n' >&2\nexit 9\n")
    script.chmod(0o755)

    refused(site.run("status", "--client", str(script)), Exit.FAILED, "ended with 9")


@pytest.mark.parametrize("words", ["Unknown command: describe-device", "usage: snowballEdge [-h]\n  --help"])
def test_a_client_that_does_not_know_a_command_is_called_a_stranger(site, words):
    site.device(fail={"describe-device": [2, words]})

    refused(site.run("unlock"), Exit.FAILED, "does not answer as we know it")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("describe-device", '{"State": "UNLOCKED"}'),
        ("describe-device", '{"UnlockStatus": "UNLOCKED"}'),
        ("describe-device", "[" * 100_000),
        ("describe-device", "unlocked, thanks"),
        ("list-access-keys", '{"Keys": ["X"]}'),
        ("list-access-keys", '{"AccessKeyIds": ["--profile"]}'),
        ("get-secret-access-key", '{"SecretAccessKey": "fake/secret+for=tests"}'),
    ],
)
def test_other_answers_than_the_documented_ones_are_refused_without_a_word_of_theirs(site, command, words):
    site.device(lock="UNLOCKED", say={command: words})
    done = site.run("unlock")

    refused(done, Exit.FAILED, f"snowballEdge {command} does not answer as we know it")
    assert not (site.folder / "keys.yaml").exists()


def test_a_device_without_keys_is_named_as_one(site):
    site.device(lock="UNLOCKED", say={"list-access-keys": '{"AccessKeyIds": []}'})

    refused(site.run("unlock"), Exit.FAILED, "no access key")


def test_what_the_secret_command_prints_is_not_quoted_when_it_fails(site):
    """A failure on stdout could stand beside the secret; `run` looks for it in what we say."""
    script = site.bin / "half"
    script.write_text(
        f'#!/bin/sh\ncase $1 in get-*) echo "{KEYS.secret_access_key}"; exit 1;; esac\n'
        f'exec "{site.bin}/snowballEdge" "$@"\n'
    )
    script.chmod(0o755)
    site.device(lock="UNLOCKED")

    refused(site.run("unlock", "--client", str(script)), Exit.FAILED, "it says nothing")


# the folder and the program


def test_a_client_that_is_not_there_is_named_with_the_way_to_get_it(site):
    (site.bin / "snowballEdge").unlink()

    refused(site.run("unlock"), Exit.USAGE, "not on PATH")
    refused(site.run("unlock", "--client", "/nowhere/edge"), Exit.USAGE, "/nowhere/edge is no program")


def test_a_client_that_cannot_be_executed_is_named(site):
    (site.bin / "snowballEdge").write_text("#!/nowhere/java\n")

    refused(site.run("status"), Exit.FAILED, "No such file or directory")


def test_a_folder_that_is_none_is_a_typing_mistake(site):
    shutil.rmtree(site.folder)

    refused(site.run("unlock"), Exit.USAGE, "is no folder")


def test_no_manifest_and_several_manifests_are_told_apart(site):
    (site.folder / "manifest.bin").write_bytes(b"")
    refused(site.run("unlock"), Exit.CONFIG, "2 manifests: 'JID-FAKE_manifest.bin', 'manifest.bin'")

    for path in site.folder.glob("*.bin"):
        path.unlink()
    refused(site.run("unlock"), Exit.CONFIG, "no manifests")
    assert not site.commands


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("", "no text under unlock_key and endpoint_url"),
        ("- a\n- b\n", "no text under unlock_key"),
        (f"unlock_key: {CODE}\n", "no text under endpoint_url"),
        (f"endpoint_url: {ENDPOINT}\nunlock_key: [{CODE}]\n", "no text under unlock_key"),
        (f"unlock_key: '{CODE}\nendpoint_url: {ENDPOINT}\n", "is not YAML"),
        (f"unlock_key: {CODE}\nendpoint_url: [{ENDPOINT}\n", "line 3 is not YAML"),
        (f"unlock_key: {CODE}0\nendpoint_url: {ENDPOINT}\n", "unlock_key is not an unlock code"),
        (f"unlock_key: --yes\nendpoint_url: {ENDPOINT}\n", "unlock_key is not an unlock code"),
        (f"unlock_key: {CODE}\nendpoint_url: http://192.0.2.10\n", "endpoint_url is not the address"),
        (f"unlock_key: {CODE}\nendpoint_url: https://user:x@192.0.2.10\n", "endpoint_url is not the address"),
        (f"unlock_key: {CODE}\nendpoint_url: 192.0.2.10\n", "endpoint_url is not the address"),
        (f"unlock_key: 2024-99-99\nendpoint_url: {ENDPOINT}\n", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("\x00", "is not YAML"),
        (f"unlock_key: {CODE}\nendpoint_url: {ENDPOINT}\n" + "#" * 70_000, "no text under"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_without_quoting_it(site, text, words):
    site.config.unlink()
    if text is not None:
        site.config.write_text(text)
        site.config.chmod(0o600)
    done = site.run("unlock")

    refused(done, Exit.CONFIG, words)
    assert "FAKE0" not in done.stderr
    assert not site.commands


def test_a_configuration_that_others_may_read_is_pointed_out(site):
    site.config.chmod(0o644)

    assert f"chmod 600 {site.config}" in site.run("status").stderr


def test_the_unlock_code_and_the_secret_are_in_no_repr(site):
    assert CODE not in repr(read_device(site.folder))
    assert KEYS.secret_access_key not in repr(KEYS)


def test_a_private_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "keys.yaml"
    path.write_bytes(b"old")
    path.chmod(0o644)
    (tmp_path / ".keys.yaml.new").write_bytes(b"what a power cut left")

    def no_space(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(SnowballError, match="No space left"):
            write_private(path, b"new")
    assert path.read_bytes() == b"old"

    write_private(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)
    assert [path] == list(tmp_path.iterdir())


# profile

OTHERS = """\
# mine

[default]
aws_access_key_id=AKIDDEFAULT
aws_secret_access_key = x=y
  ; an indented comment
[sbe-10]
    aws_access_key_id : FAKE10
    region = eu-west-1
"""


def profiles(site, name):
    return site.home / ".aws" / name


def test_a_fresh_profile_is_what_the_daemon_finds_under_the_folders_name(site):
    site.device(lock="UNLOCKED")
    site.run("unlock")
    done = site.run("profile")

    assert done.returncode == Exit.DONE, done.stderr
    found = CredentialProvider(CredentialSource(profile="sbe-1")).current()
    assert found is not None
    assert Keys(found.access_key_id, found.secret_access_key) == KEYS
    assert profiles(site, "config").read_text() == "[profile sbe-1]\nregion = snow\noutput = json\n"
    assert [mode(profiles(site, name)) for name in ("credentials", "config")] == [0o600] * 2
    assert mode(site.home / ".aws") == 0o700


def test_a_second_run_changes_nothing_and_says_so(site):
    write_keys(site.folder, KEYS)
    site.run("profile")
    before = [(path.stat().st_ino, path.read_bytes()) for path in (site.home / ".aws").iterdir()]
    done = site.run("profile")

    assert done.stdout.count("is as it should be") == 2
    assert before == [(path.stat().st_ino, path.read_bytes()) for path in (site.home / ".aws").iterdir()]


def test_a_dry_run_says_what_would_change_and_shows_no_secret(site):
    write_keys(site.folder, KEYS)
    profiles(site, "").mkdir()
    profiles(site, "credentials").write_text(
        f"{OTHERS}[sbe-1]\naws_session_token = old\naws_secret_access_key = fake-old-secret\n"
    )
    profiles(site, "credentials").chmod(0o644)
    done = site.run("profile", "--dry-run")

    assert done.stdout == (
        f"{profiles(site, 'credentials')}: would add aws_access_key_id, change aws_secret_access_key,"
        " remove aws_session_token, make it readable for its owner alone\n"
        f"{profiles(site, 'config')}: would add [profile sbe-1], add region, add output\n"
    )
    assert not profiles(site, "config").exists()
    assert mode(profiles(site, "credentials")) == 0o644


def test_the_files_are_where_the_environment_says_and_links_stay_links(site, tmp_path, monkeypatch):
    write_keys(site.folder, KEYS)
    (tmp_path / "real").write_text(OTHERS)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "link"))
    monkeypatch.setenv("AWS_CONFIG_FILE", "~/deep/aws.ini")
    done = site.run("profile")

    assert done.returncode == Exit.DONE, done.stderr
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text().startswith(OTHERS)
    assert "[sbe-1]" in (tmp_path / "real").read_text()
    assert "[profile sbe-1]" in (site.home / "deep/aws.ini").read_text()
    assert not (site.home / ".aws").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[me]\na = 1\nb = 2\n"),
        ("[x]\na=9", "[x]\na=9\n\n[me]\na = 1\nb = 2\n"),
        ("[me]\n[x]\n", "[me]\na = 1\nb = 2\n[x]\n"),
        ("[me]\nb=2\n# mine\n\n[x]\n", "[me]\nb=2\na = 1\n# mine\n\n[x]\n"),
        ("[me]\nA = old\n  more\nz = 9\n  b = nested\n", "[me]\nA = 1\nz = 9\n  b = nested\nb = 2\n"),
        ("[me]\n  a : 1\n  z = 0\n[x]\nb = 7\n", "[me]\n  a : 1\n  z = 0\n  b = 2\n[x]\nb = 7\n"),
        ("[me]\r\na = 0\r\n[x]\r\n", "[me]\r\na = 1\r\nb = 2\r\n[x]\r\n"),
        ("[me]\na = 1\nb = 2\ntoken = t\nz = 0\n", "[me]\na = 1\nb = 2\nz = 0\n"),
        ("[me]\na = 1\nb = 2", "[me]\na = 1\nb = 2"),
        ("[xme]\na = 5\n[me2]\nb = 6\n", "[xme]\na = 5\n[me2]\nb = 6\n\n[me]\na = 1\nb = 2\n"),
        ("; a\udcff\n[me] # x\n", "; a\udcff\n[me] # x\na = 1\nb = 2\n"),
    ],
)
def test_an_edit_touches_its_own_lines_alone(before, after):
    values = {"a": "1", "b": "2", "token": None}

    assert profile.edit(before, "me", values) == after
    assert profile.edit(after, "me", values) == after
    parser = configparser.RawConfigParser()
    parser.read_string(after)
    assert (parser["me"]["a"], parser["me"]["b"]) == ("1", "2")


@pytest.mark.parametrize("header", ["profile sbe-1", 'profile "sbe-1"', "profile   sbe-1"])
def test_a_profile_is_known_in_each_of_the_ways_it_may_be_written(tmp_path, header):
    config = tmp_path / "config"
    config.write_text(
        f"[{header}]\nregion = eu-west-1\ns3 =\n  region = nested\n[profile sbe-10]\nregion = x\n"
    )
    environ = {"AWS_CONFIG_FILE": str(config), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    _, change = profile.plan("sbe-1", KEYS, environ)
    profile.apply(change)

    assert config.read_text() == (
        f"[{header}]\nregion = snow\ns3 =\n  region = nested\noutput = json\n[profile sbe-10]\nregion = x\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "aws_secret_access_key = fake-old-secret\n",
        "[sbe-1]\n[sbe-1]\n",
        "[sbe-1]\nfake-old-secret\n",
        "[DEFAULT]\naws_session_token = fake-old-secret\n",
    ],
)
def test_a_file_that_cannot_be_edited_safely_is_left_alone_and_not_quoted(site, text):
    write_keys(site.folder, KEYS)
    profiles(site, "").mkdir()
    profiles(site, "credentials").write_text(text)
    done = site.run("profile")

    refused(done, Exit.CONFIG, str(profiles(site, "credentials")))
    assert "fake-old" not in done.stderr
    assert profiles(site, "credentials").read_text() == text
    assert not profiles(site, "config").exists()


def test_without_keys_the_way_to_them_is_named(site):
    refused(site.run("profile"), Exit.CONFIG, "keys.yaml")
    (site.folder / "keys.yaml").write_text("aws_access_key_id: A\naws_secret_access_key: 'a\n\n  [x]'\n")
    refused(site.run("profile"), Exit.CONFIG, "printable characters")


def test_a_folder_whose_name_cannot_be_a_profile_is_refused(site):
    write_keys(site.folder, KEYS)
    site.folder = site.folder.rename(site.folder.with_name("sbe 1]"))

    refused(site.run("profile"), Exit.USAGE, "cannot be the name of an AWS profile")


# configure


def test_configure_answers_the_three_questions_on_a_terminal_of_its_own(site):
    done = site.spawn("configure")
    stored = site.home / ".aws/snowball/config/snowball-edge.config"

    assert done.returncode == Exit.DONE, done.stderr
    assert json.loads(stored.read_text()) == [str(site.manifest), CODE, ENDPOINT]
    assert mode(stored) == 0o600
    assert [call["argv"] for call in site.calls] == [["configure"]]
    assert site.calls[0]["terminal"] != 0


def test_questions_in_another_order_and_with_defaults_are_understood(site):
    site.device(
        questions=["Default endpoint [https://a:1]: ", "manifest path [None]:", "UNLOCK CODE [****]: "]
    )

    assert site.spawn("configure").returncode == Exit.DONE


def test_a_code_that_the_client_does_not_take_is_not_offered_for_ever(site):
    site.device(code="11111-other-22222-33333-44444")

    refused(site.spawn("configure"), Exit.CONFIG, "asks for the unlock code again: [redacted] does not fit")


def test_a_question_that_nobody_foresaw_is_shown_and_not_answered(site):
    site.device(questions=["Snowball Edge Manifest Path: ", "Favourite colour? "])
    impatient = f"from s5jtd.commands import snowball; snowball.ANSWER_SECONDS = 1; {PROGRAM}"
    done = site.spawn("configure", program=impatient)

    refused(done, Exit.FAILED, "it waits for something else: Favourite colour?")


def test_a_client_that_asks_for_less_is_called_a_stranger(site):
    site.device(questions=["Snowball Edge Manifest Path: "])

    refused(site.spawn("configure"), Exit.FAILED, "did not ask for unlock code and default endpoint")


def test_a_failure_of_configure_is_told(site):
    site.device(fail={"configure": [3, "disk full"]})

    refused(site.spawn("configure"), Exit.FAILED, "configure ended with 3: disk full")


# update


@pytest.fixture
def uri(tmp_path):
    path = tmp_path / "new software"
    path.write_bytes(b"bytes")
    return path.as_uri()


def test_an_update_goes_through_the_documented_steps_and_shows_the_device_before_each(site, uri):
    site.device(lock="UNLOCKED")
    done = site.spawn("update", "--uri", uri, "--yes")

    assert done.returncode == Exit.DONE, done.stderr
    steps = [name for name in site.commands if not name.startswith("describe-")]
    assert steps == ["check-for-updates", "download-updates", "install-updates", "reboot-device"]
    for step in steps[1:]:
        before = site.commands[: site.commands.index(step)]
        assert "describe-device" in before[-3:]
        assert "describe-device-software" in before[-3:]
    assert ["download-updates", "--uri", uri] == site.calls[site.commands.index("download-updates")]["argv"][
        :3
    ]
    assert "Latest version: 102 Installed version: 101" in done.stderr
    assert "device JID-FAKE: UNLOCKED, software 101 -> 102, update: Requires Reboot" in done.stderr
    assert f"s5jtd snowball update {site.folder} --reboot" in done.stderr


def test_without_a_terminal_nothing_begins_that_would_need_an_answer(site, uri):
    site.device(lock="UNLOCKED")

    refused(site.spawn("update", "--uri", uri), Exit.USAGE, "needs somebody to ask")
    assert not site.commands


@pytest.mark.parametrize(("answer", "code"), [("n", Exit.FAILED), ("y", Exit.DONE)])
def test_on_a_terminal_the_reboot_waits_for_a_yes(site, answer, code):
    site.device(lock="UNLOCKED", install_state="Requires Reboot")
    ours, its = pty.openpty()
    argv = [sys.executable, "-c", PROGRAM, "update", str(site.folder)]
    with subprocess.Popen(argv, env=site.environ, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        said = ""
        while "[y/N]" not in said:
            assert select.select([ours], [], [], 20)[0]
            said += os.read(ours, 4096).decode()
        assert "reboot-device" not in site.commands
        os.write(ours, f"{answer}\n".encode())
        while True:  # it must not wait for somebody to read
            try:
                said += os.read(ours, 4096).decode()
            except OSError:
                break
        assert process.wait(WAIT_SECONDS) == code
    os.close(ours)
    assert ("reboot-device" in site.commands) is (answer == "y")
    assert CODE not in said


def test_the_second_restart_is_one_option_away(site):
    site.device(lock="UNLOCKED")
    done = site.run("update", "--reboot", "--yes")

    assert done.returncode == Exit.DONE, done.stderr
    assert site.commands == ["describe-device", "describe-device-software", "reboot-device"]


def test_a_device_that_drops_the_line_as_it_restarts_has_not_failed(site):
    site.device(lock="UNLOCKED", fail={"reboot-device": [1, "Connection reset by peer"]})

    assert site.run("update", "--reboot", "--yes").returncode == Exit.DONE


def test_a_run_without_a_file_begins_nothing(site):
    site.device(lock="UNLOCKED")
    done = site.run("update", "--yes")

    assert done.returncode == Exit.DONE
    assert "no update is under way" in done.stderr
    assert site.commands[-1] == "check-for-updates"


def test_a_locked_device_is_not_updated(site, uri):
    refused(site.run("update", "--uri", uri, "--yes"), Exit.USAGE, "LOCKED, and an update needs it unlocked")
    assert site.commands == ["describe-device"]


@pytest.mark.parametrize(
    "given", ["/srv/update", "file:///nowhere/x", "file://host/x", "https://x/y", "file://["]
)
def test_what_names_no_local_file_is_refused_before_anything(site, given):
    refused(site.run("update", "--uri", given, "--yes"), Exit.USAGE, "names no file of this machine")
    assert not site.commands


class Rushed(Update):
    """An update with a clock of its own: each rest is ten seconds long and takes none."""

    def __init__(self, site, seconds=600.0):
        self.said: list[str] = []
        now = [0.0]
        super().__init__(
            site.client(),
            Patience(seconds, lambda _: now.append(now.pop() + 10), lambda: now[0]),
            self.said.append,
        )


@pytest.fixture
def unlocked(site):
    site.device(lock="UNLOCKED")
    return site


def test_a_device_without_internet_is_updated_all_the_same(unlocked, uri):
    unlocked.device(fail={"check-for-updates": [1, "Connection timed out"]})
    update = Rushed(unlocked)

    assert update.prepare(uri)
    assert "site without internet" in update.said[1]


def test_a_download_under_way_is_waited_for_and_installed(unlocked):
    unlocked.device(install_state="Downloading", installs=["Downloading", "Downloading", "NA"])

    assert Rushed(unlocked).prepare(None)
    assert [name for name in unlocked.commands if name.endswith("-updates")] == [
        "check-for-updates",
        "install-updates",
    ]


def test_a_device_that_is_slow_to_begin_is_not_taken_for_ready(unlocked, uri):
    unlocked.device(download=["NA", "NA", "Downloading", "Downloading", "Downloaded"])

    assert Rushed(unlocked).prepare(uri)
    before_install = unlocked.commands[: unlocked.commands.index("install-updates")]
    assert before_install.count("describe-device-software") == 7  # at the start, five looks, before the step


def test_an_installation_without_effect_is_an_error_and_not_a_reboot(unlocked, uri):
    unlocked.device(install=["NA"])

    with pytest.raises(SnowballError, match="install-updates changed nothing"):
        Rushed(unlocked).prepare(uri)


def test_an_installation_that_needs_no_reboot_asks_for_none(unlocked):
    unlocked.device(install_state="Downloaded", install=["Installing", "NA"], at_once=True)

    update = Rushed(unlocked)

    assert not update.prepare(None)
    assert "software 102" in update.said[-1]


def test_a_step_that_does_not_end_is_given_up(unlocked, uri):
    unlocked.device(download=["Downloading"])

    update = Rushed(unlocked, seconds=100)

    with pytest.raises(DeviceNotReady, match="not ready after 1m 40s"):
        update.prepare(uri)
    assert any(re.fullmatch(r"update: Downloading \([0-9]+s\)", line) for line in update.said)


@pytest.mark.parametrize(
    ("install", "can_download", "taken", "step"),
    [
        (Install.NONE, False, [], Step.NONE),
        (Install.NONE, True, [], Step.DOWNLOAD),
        (Install.NONE, True, [Step.DOWNLOAD], Step.INSTALL),
        (Install.DOWNLOADED, False, [], Step.INSTALL),
        (Install.DOWNLOADED, True, [Step.DOWNLOAD, Step.INSTALL], Step.NONE),
        (Install.NONE, True, [Step.DOWNLOAD, Step.INSTALL], Step.NONE),
        (Install.DOWNLOADING, True, [], Step.WAIT),
        (Install.INSTALLING, True, [], Step.WAIT),
        (Install.REBOOT, True, [Step.INSTALL], Step.REBOOT),
        (Install.REBOOT, False, [], Step.REBOOT),
    ],
)
def test_the_next_step_follows_from_where_the_update_is(install, can_download, taken, step):
    assert next_step(install, can_download=can_download, taken=taken) is step


# status and what is read from answers


def test_status_tells_device_and_software_to_people_and_to_programs(site):
    site.device(lock="UNLOCKED", install_state="Downloading")
    told = json.loads(site.spawn("status", "--json").stdout)
    text = site.spawn("status").stdout

    assert told == {
        "device_id": "JID-FAKE", "endpoint": ENDPOINT, "state": "UNLOCKED",
        "software": {
            "installed_version": "101", "installing_version": "102", "install_state": "Downloading",
            "certificate_expires": "Thur Jan 01 00:00:00 UTC 2032",
        },
    }  # fmt: skip
    assert re.search(r"^state +UNLOCKED$", text, re.MULTILINE)
    assert re.search(r"^installed version +101$", text, re.MULTILINE)


def test_a_locked_device_tells_only_that(site):
    told = json.loads(site.run("status", "--json").stdout)

    assert (told["state"], told["software"]) == ("LOCKED", None)
    assert site.commands == ["describe-device"]


@pytest.mark.parametrize("said", ["Requires Reboot", "REQUIRES_REBOOT", "RequireReboot"])
def test_software_is_read_from_lines_and_from_json(said):
    lines = f"Installed version: 101\nInstall State: {said}\n"
    answer = json.dumps({"InstalledVersion": 101, "InstallState": said})

    assert answers.read_software(lines) == answers.read_software(f"WARNING: old Java\n{answer}")
    assert answers.read_software(lines).install is Install.REBOOT


@pytest.mark.parametrize(
    "text", ["", "Installed version: 101", "Install State: NA", "Installed version: 1\nInstall State: Baking"]
)
def test_software_told_otherwise_is_not_guessed_at(text):
    with pytest.raises(SnowballError, match="does not answer as we know it"):
        answers.read_software(text)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (
            "Unable to execute HTTP request: Connect to 192.0.2.10:9091 failed: connect timed out",
            EndpointDown,
        ),
        ("java.net.UnknownHostException: sbe.example: Name or service not known", EndpointDown),
        ("Failed to decrypt the manifest", ConfigError),
        ("com.amazonaws.AccessDenied: Access Denied (403)\n\tat com.amazonaws.X(Y.java:1)", ConfigError),
        ("Unknown command: describe-everything", SnowballError),
        ("An internal error occurred", SnowballError),
        ("", SnowballError),
    ],
)
def test_a_failure_is_sorted_by_who_must_react(words, kind):
    error = answers.failure("describe-device", 1, words, endpoint=ENDPOINT)

    assert type(error) is kind
    assert error.hint
