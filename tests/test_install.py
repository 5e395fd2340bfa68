"""What an installation consists of, as far as it can be looked at without installing it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from s5jtd.commands import installed
from s5jtd.commands.dropin import render
from s5jtd.commands.owner import Owner, as_owner, hand_over
from s5jtd.config import load
from s5jtd.errors import Exit, S5jtError
from tests.appliance import Appliance, side
from tests.configs import GOOD, loaded
from tests.servers import Server

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "systemd"


@pytest.mark.parametrize("path", sorted((ROOT / "etc/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_example_is_a_configuration_that_this_version_takes(path):
    config = load(path)

    assert render(config, path).startswith("# Made by")


def test_the_examples_are_those_that_were_promised():
    assert {path.stem for path in (ROOT / "etc/examples").glob("*")} == {"basic", "production", "hybrid"}


# The drop-in


def test_the_drop_in_names_volumes_and_credentials_and_requires_nothing():
    text = GOOD.replace("[/mnt/a]", '[/mnt/volume-01, "/mnt/my 100%", "/srv/disk-*"]')

    shown = render(loaded(text + "      credentials: {systemd: cloud}\n"), Path("/etc/s5jtd/config.yaml"))

    lines = [line for line in shown.splitlines() if line and not line.startswith("#")]
    assert lines == [
        "[Unit]",
        r"After=mnt-my\x20100\x25.mount",
        r"After=mnt-volume\x2d01.mount",
        "[Service]",
        'ReadWritePaths="-/mnt/my 100%%"',
        'NoExecPaths="-/mnt/my 100%%"',
        "ReadWritePaths=-/mnt/volume-01",
        "NoExecPaths=-/mnt/volume-01",
        "ReadWritePaths=-/srv",
        "NoExecPaths=-/srv",
        "LoadCredential=cloud:/etc/s5jtd/credentials.d/cloud",
        "SetCredential=cloud:# missing",
    ]


def test_a_pattern_at_the_root_gives_the_root_to_nobody():
    shown = render(loaded(GOOD.replace("[/mnt/a]", '["/volume-*"]')), Path("c"))

    assert "ReadWritePaths=-/\n" not in shown


@pytest.mark.parametrize("path", ["/home/me/staging", "/tmp/staging", "/root/x"])
def test_a_volume_where_the_unit_sees_nothing_is_refused(path):
    with pytest.raises(S5jtError, match="does not let the daemon see"):
        render(loaded(GOOD.replace("/mnt/a", path)), Path("c"))


def test_folders_of_its_own_that_are_elsewhere_may_be_written():
    shown = render(loaded("state_dir: /srv/state\n" + GOOD), Path("c"))

    assert "ReadWritePaths=-/srv/state\n" in shown


# The units


def setting(unit: str, name: str) -> list[str]:
    return re.findall(rf"(?m)^{name}=(.*)$", (UNITS / unit).read_text())


def test_the_unit_keeps_its_promises():
    assert setting("s5jtd.service", "Type") == ["notify"]
    assert setting("s5jtd.service", "KillMode") == ["mixed"]
    assert setting("s5jtd.service", "RestartPreventExitStatus") == [f"{Exit.USAGE:d} {Exit.CONFIG:d}"]
    assert not setting("s5jtd.service", "Requires")
    assert not setting("s5jtd.service", "PrivateUsers")  # it would hide who asks over the socket
    assert setting("s5jtd.service", "Group") == ["s5jt"]


def test_what_the_installer_makes_is_what_the_check_looks_for():
    script = (ROOT / "install.sh").read_text()
    users = (UNITS / "s5jtd.sysusers").read_text()

    assert installed.UNIT in script
    assert all(re.search(rf"(?m)^g {group} ", users) for group in installed.GROUPS)
    assert re.search(rf"(?m)^u {installed.USER} ", users)


def test_the_installer_is_a_shell_script_that_parses_and_explains_itself():
    subprocess.run(["sh", "-n", ROOT / "install.sh"], check=True)
    shown = subprocess.run(["sh", ROOT / "install.sh", "--help"], capture_output=True, text=True, check=True)

    assert "--uninstall" in shown.stdout
    assert not re.search(r"(?m)^(set|umask)", shown.stdout)


def bundle_of(folder: Path) -> Path:
    """Something that the installer takes for a bundle, as far as its sums."""
    (folder / "wheels").mkdir()
    (folder / "install.sh").write_bytes((ROOT / "install.sh").read_bytes())
    (folder / "wheels" / "a.whl").write_text("a")
    with (folder / "SHA256SUMS").open("w") as sums:
        subprocess.run(["sha256sum", "install.sh", "wheels/a.whl"], cwd=folder, stdout=sums, check=True)
    return folder


def checked(folder: Path) -> tuple[int, str]:
    done = subprocess.run(
        ["sh", folder / "install.sh", "--check"], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_bundle_that_was_changed_on_its_way_is_refused(tmp_path):
    bundle = bundle_of(tmp_path)
    assert checked(bundle) == (0, "the bundle is as it was made\n")

    (bundle / "wheels" / "a.whl").write_text("b")
    code, said = checked(bundle)
    assert (code, "damaged" in said, "a.whl" in said) == (1, True, True)

    (bundle / "wheels" / "a.whl").write_text("a")
    (bundle / "wheels" / "b.whl").write_text("a wheel that pip would take")
    code, said = checked(bundle)
    assert (code, "not in SHA256SUMS: wheels/b.whl" in said) == (1, True)


def test_in_the_source_tree_the_installer_says_how_to_make_a_bundle():
    code, said = checked(ROOT)

    assert (code, "make bundle" in said) == (1, True)


# The check


@pytest.fixture
def appliance(tmp_path: Path, moto: Server) -> Appliance:
    appliance = Appliance(tmp_path)
    job = {"source": side(moto, moto.new_bucket()), "destination": side(moto, moto.new_bucket())}
    appliance.configure({"name": "archive", **job})
    return appliance


def test_the_old_scripts_exit_codes(appliance: Appliance, moto: Server) -> None:
    def code() -> int:
        return appliance.command("check", "--legacy-exit-codes").returncode

    job = {"name": "archive", "source": side(moto, moto.new_bucket())}
    assert code() == 0
    appliance.configure({**job, "destination": side(moto, "bucket-b", url="http://127.0.0.1:9")})
    assert code() == 3
    appliance.configure(
        {**job, "destination": {**side(moto, "bucket-b"), "credentials": {"systemd": "nothing"}}}
    )
    assert code() == 2
    appliance.volumes[0].rmdir()
    assert code() == 1
    appliance.config_path.write_text("nonsense")
    assert code() == 1
    assert appliance.command("check").returncode == Exit.CONFIG


def test_the_installation_is_looked_at_where_it_is_asked_for(appliance: Appliance) -> None:
    plain = json.loads(appliance.command("check", "--json", "--offline").stdout)
    shown = json.loads(appliance.command("check", "--json", "--offline", "--install").stdout)

    new = {one["subject"] for one in shown["findings"]} - {one["subject"] for one in plain["findings"]}
    assert {"python", "command s5jtctl", "user s5jtd", "group s5jt-operators"} <= new


def test_what_root_checks_is_checked_as_the_daemon_s_user(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    nobody = Owner(65534, 65534)
    (tmp_path / "secret").touch(mode=0o600)

    def look() -> str:
        return "yes" if (tmp_path / "secret").read_text() == "" else "no"

    assert look() == "yes"
    with pytest.raises(S5jtError, match="as the daemon's user"):
        as_owner(nobody, look)
    hand_over(tmp_path / "secret", nobody)
    tmp_path.chmod(0o755)
    assert (tmp_path / "secret").stat().st_uid == nobody.uid
