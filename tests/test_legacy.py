"""Old configurations become ones that load, with a word for all that has no counterpart."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from s5jtd.cli import main
from s5jtd.config import S3Destination, S3Side
from s5jtd.config.schema import WorkerBounds
from s5jtd.config.sides import FolderSource, KeyCredentials, SystemdCredentials
from s5jtd.errors import Exit
from tests.configs import loaded

OLD_YAML = """\
source:
  bucket_name: archive
  bucket_prefix: missions/
  region: snow
  access_key: FAKEACCESSKEYSOURCE
  secret_access_key: fake-secret-of-source
destination:
  bucket_name: cloud-archive
  bucket_prefix: ""
  region: us-east-1
  access_key: FAKEACCESSKEYDEST
  secret_access_key: fake-secret-of-destination
local:
  directory: /mnt/staging/
transfer_settings:
  src_endpoint_url: ["http://10.0.0.1:8080", "https://10.0.0.2"]
  dest_endpoint_url: no_endpoint
  src_use_native_s3: false
  max_size_to_transfer_src2l: 500
  max_file_size: 50 GB
  max_daily_size_gib: 2000
  email: somebody@example.com
"""

OTHER_YAML = """\
src:
  service: AWS
  bucket: archive
  endpoint_urls: 'http://10.0.0.1:8080, http://10.0.0.2:8080'
  profile: sbe-1
dest:
  bucket: cloud
  endpoint_urls: [no_endpoint]
local:
  mount_points: [/mnt/volume-01, /mnt/volume-02]
"""

ENV = """\
# made by a wizard
export AWS_PROFILE="uploads"
export AWS_REGION='eu-west-1'
BUCKET_NAME="cloud-archive"
S3_SUBDIRECTORY="/site 7/in"   # below the bucket
SOURCE_DIR="/data/hot"
S3_STORAGE_CLASS="INTELLIGENT_TIERING"
S5CMD_CONCURRENCY="64"
S5CMD_PART_SIZE="128MB"
S5CMD_NUM_WORKERS="32"
S5CMD_RETRY_COUNT="3"
S5CMD_CHECKSUM_ALGORITHM="CRC64NVME"
ALERT_EMAIL="ops@example.com"
"""


def imported(
    tmp_path: Path, text: str, name: str = "config.yaml", *options: str, code: int = 0
) -> tuple[str, str]:
    """What the command says on stdout and on stderr."""
    old = tmp_path / name
    old.write_text(text)
    result = CliRunner().invoke(main, ["import", str(old), *options])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_an_old_config_yaml_becomes_one_that_loads(tmp_path: Path) -> None:
    text, told = imported(tmp_path, OLD_YAML)

    config = loaded(text)
    [job] = config.jobs
    assert isinstance(job.source, S3Side)
    assert isinstance(job.destination, S3Destination)
    assert (job.source.bucket, job.source.prefix, job.source.region) == ("archive", "missions/", "snow")
    assert job.source.endpoints == ("http://10.0.0.1:8080", "https://10.0.0.2")
    assert (job.destination.bucket, job.destination.prefix, job.destination.endpoints) == (
        "cloud-archive",
        "",
        (),
    )
    assert job.source.credentials == SystemdCredentials(systemd="s5jtd-source")
    assert [str(volume.path) for volume in config.volumes] == ["/mnt/staging"]
    limits = config.limits
    assert (limits.bytes_per_pass, limits.largest_object, limits.bytes_per_day) == (
        500 * 2**30, 50 * 10**9, 2000 * 2**30,
    )  # fmt: skip
    for name in (
        "transfer_settings_email",
        "500 was read as 500GiB",
        "certificates are verified",
        "LoadCredential=",
    ):
        assert name in told
        assert name in text
    assert "fake-secret" not in text + told
    assert "FAKEACCESSKEY" not in text + told


def test_keys_are_copied_only_when_asked_for(tmp_path: Path) -> None:
    text, told = imported(tmp_path, OLD_YAML, "config.yaml", "--with-secrets")

    [job] = loaded(text, 0o600).jobs
    assert isinstance(job.source, S3Side)
    assert isinstance(job.source.credentials, KeyCredentials)
    assert job.source.credentials.secret_access_key.get_secret_value() == "fake-secret-of-source"
    assert "fake-secret" not in told


def test_the_other_old_form_with_lists_of_endpoints_and_volumes(tmp_path: Path) -> None:
    text, _ = imported(tmp_path, OTHER_YAML)

    config = loaded(text)
    [job] = config.jobs
    assert isinstance(job.source, S3Side)
    assert job.source.endpoints == ("http://10.0.0.1:8080", "http://10.0.0.2:8080")
    assert [str(volume.path) for volume in config.volumes] == ["/mnt/volume-01", "/mnt/volume-02"]


def test_an_old_env_file_becomes_a_job_from_a_folder(tmp_path: Path) -> None:
    text, told = imported(tmp_path, ENV, "datasync-config.env")

    config = loaded(text)
    [job] = config.jobs
    assert isinstance(job.source, FolderSource)
    assert isinstance(job.destination, S3Destination)
    assert str(job.source.directory) == "/data/hot"
    assert (job.source.after, job.source.symlinks) == ("keep", "follow")
    assert (job.destination.bucket, job.destination.prefix) == ("cloud-archive", "site 7/in/")
    assert job.destination.storage_class == "INTELLIGENT_TIERING"
    assert job.destination.part_size == 128 * 2**20
    assert (job.attempts, config.limits.workers) == (4, WorkerBounds(min=32, max=32))
    assert "ALERT_EMAIL: has no counterpart" in told
    assert "S5CMD_CONCURRENCY" in told
    assert "volumes: nothing was said" in told


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("a: [1", "config.yaml", "config.yaml:1:"),
        ("just words", "config.yaml", "it holds no settings"),
        ("jobs: []\n", "config.yaml", "configuration of s5jtd already"),
        ("source:\n  bucket: ab!\n  secret_key: fake-hidden\n", "config.yaml", "no configuration that works"),
        ("source: {bucket: one}\nmax_size: huge\n", "config.yaml", "max_size: 'huge' is no size"),
        ("if [ -f x ]; then\n", "datasync-config.env", "line 1: it is no assignment"),
        ("S3_BUCKET=abc\nSOURCE_DIR=$HOME/hot\n", "x.env", "'$HOME/hot' names a variable"),
        ("source: {bucket: no bucket}", "config.yaml", "`bucket: no bucket`: jobs[0].source.bucket: must be"),
        ("SOURCE_DIR=data\nS3_BUCKET=abc\n", "x.env", "must be an absolute path"),
    ],
)
def test_what_gives_no_configuration_is_refused_with_the_reason(
    tmp_path: Path, text: str, name: str, words: str
) -> None:
    out, told = imported(tmp_path, text, name, code=Exit.USAGE)

    assert out == ""
    assert words in told
    assert "hint:" in told or "line 1" in told or ":1:" in told or "already" in told or "size" in told
    assert "fake-hidden" not in told


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["import", str(tmp_path / "none.env")])

    assert result.exit_code == Exit.USAGE
    assert "none.env: No such file" in result.stderr


def test_an_env_file_is_read_as_a_shell_reads_it(tmp_path: Path) -> None:
    text, told = imported(
        tmp_path,
        "\ufeffset -a\r\nBASE=/data\r\nSOURCE_DIR=\"${BASE}/it's \\\"hot\\\"\"' now'\\ 7  # it's all\r\n"
        "export BUCKET_NAME=s3://cloud/in; AWS_PROFILE=x\r\nS5CMD_PART_SIZE=1GB\r\n",
        "old.env",
    )

    [job] = loaded(text).jobs
    assert isinstance(job.source, FolderSource)
    assert str(job.source.directory) == '/data/it\'s "hot" now 7'
    assert isinstance(job.destination, S3Destination)
    assert (job.destination.bucket, job.destination.prefix) == ("cloud", "in/")
    assert job.destination.part_size == 2**30
    assert "line 1: it is no assignment" in told
    assert "in was read as a folder" in told
