"""The installed service on a booted machine, along its life: each test begins where the last ended."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.systemd import machine
from tests.systemd.machine import (
    CONFIG,
    SECRET,
    SECRETS,
    STATE,
    VOLUMES,
    boto,
    code,
    configure,
    delivered,
    journal,
    main_pid,
    sh,
    status,
    unpacked,
    until,
)

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def port(bundle: Path) -> Iterator[int]:
    """A server with a bucket `here` of 60 objects and an empty one, `there`."""
    sh(f"{bundle}/install.sh")
    with machine.s3_server() as port:
        boto(port, "fill", "here", 60)
        boto(port, "fill", "there")
        yield port


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_a_former_run() -> Iterator[None]:
    sh("systemctl stop s5jtd s5jtd-api", ok=False)
    sh(f"rm -rf {STATE} {CONFIG.parent} /srv/s5jtd-test /etc/systemd/system/s5jtd.service.d")
    yield
    sh("userdel --force tester", ok=False)


def this_life(unit: str) -> str:
    """What tells the journal's records of a unit since its last start from those before."""
    return f"_SYSTEMD_INVOCATION_ID={sh(f'systemctl show -P InvocationID {unit}').strip()}"


def is_delivered(count: int) -> bool:
    return delivered() == count


def equal(port: int) -> bool:
    return bool(boto(port, "contents", "here") == boto(port, "contents", "there"))


def test_the_installer_says_what_is_next_and_a_second_run_changes_nothing(bundle: Path, port: int) -> None:
    before = sh("find /opt/s5jtd /usr/local /etc/s5jtd -printf '%p %T@ %i\\n' | grep -v installed-files")

    assert "built already" in sh(f"{bundle}/install.sh")
    after = sh("find /opt/s5jtd /usr/local /etc/s5jtd -printf '%p %T@ %i\\n' | grep -v installed-files")
    changed = set(after.splitlines()) ^ set(before.splitlines())
    assert not [line for line in changed if line.split()[0] != "/opt/s5jtd"]


def test_systemd_has_nothing_to_say_against_the_units_and_finds_them_tight(port: int) -> None:
    assert sh("systemd-analyze verify s5jtd.service s5jtd-api.service") == ""
    for unit in ("s5jtd", "s5jtd-api"):
        assert code(f"systemd-analyze security --threshold=20 {unit}.service") == 0


def test_it_starts_is_ready_when_it_answers_and_moves_a_bucket(port: int) -> None:
    configure(port, "here", "there")
    assert "is written" in sh("s5jtd volumes dropin --write")
    sh("s5jtd check")

    sh("systemctl enable --now s5jtd")

    assert status()["daemon"]["state"] == "running"  # `start` came back, so it was READY
    until(lambda: delivered() == 60, "the transfer")
    assert equal(port)
    sh("s5jtd check --install")


def test_root_and_the_groups_may_ask_and_nobody_else(port: int) -> None:
    sh("id tester || useradd tester")
    asked = "setpriv --reuid=tester --regid=tester --init-groups s5jtctl"

    assert code(f"{asked} status") == 4
    sh("usermod -aG s5jt tester")
    assert code(f"{asked} status") == 0
    assert code(f"{asked} pause archive") == 4
    sh("usermod -aG s5jt-operators tester")
    assert code(f"{asked} pause archive && {asked} resume archive") == 0


def test_secrets_are_root_s_and_the_daemon_s_alone(port: int) -> None:
    other = "setpriv --reuid=nobody --regid=nogroup --clear-groups"
    pid = main_pid()

    assert code(f"{other} cat /run/credentials/s5jtd.service/test") != 0
    assert code(f"{other} cat {SECRETS}/test {CONFIG}") != 0
    assert SECRET not in sh(f"tr '\\0' '\\n' < /proc/{pid}/environ; tr '\\0' ' ' < /proc/{pid}/cmdline")
    assert SECRET not in sh("journalctl -u s5jtd --no-pager -o export; systemctl show s5jtd; s5jtctl status")


def test_the_sandbox_holds(port: int) -> None:
    """From inside: the daemon's own user, in its namespaces, with its filters off; then its own status."""
    pid = main_pid()
    inside = f"nsenter -t {pid} -m setpriv --reuid=s5jtd --regid=s5jt --clear-groups"

    for path in ("/etc/x", "/usr/x", "/opt/s5jtd/x", "/root/x", "/srv/s5jtd-test/x", f"{CONFIG}"):
        assert code(f"{inside} touch {path}") != 0, path
    # Even root could not write there in these namespaces.
    assert code(f"nsenter -t {pid} -m touch /etc/x") != 0
    assert code(f"nsenter -t {pid} -m touch /usr/x") != 0
    for folder in (STATE, *VOLUMES):
        assert code(f"{inside} touch {folder}/x && {inside} rm {folder}/x") == 0, folder
    sh(f"{inside} cp /bin/true {VOLUMES[0]}/true")
    assert code(f"{inside} {VOLUMES[0]}/true") != 0  # nothing on a volume can be run
    sh(f"rm {VOLUMES[0]}/true")
    told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert told["NoNewPrivs"].strip() == "1"
    assert told["Seccomp"].strip() == "2"
    assert {int(told[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}


def test_the_journal_can_be_read_and_searched(port: int) -> None:
    life = this_life("s5jtd")
    records = journal(life, "S5JT_JOB=archive")

    assert {"scan_finished", "chunk_staged", "chunk_pushed"} <= {one["S5JT_EVENT"] for one in records}
    assert all(len(one["MESSAGE_ID"]) == 32 for one in records)
    assert all(one["_SYSTEMD_UNIT"] == "s5jtd.service" for one in records)
    assert not journal(life, "PRIORITY=3")


def test_a_good_reload_holds_and_a_bad_one_is_refused_aloud(port: int) -> None:
    good = CONFIG.read_text()
    pid = main_pid()
    CONFIG.write_text(good.replace("scan_every: 2s", "scan_every: 3s"))
    sh("systemctl reload s5jtd")
    assert "scan_every" in journal("S5JT_EVENT=reloaded")[-1]["S5JT_CHANGED"]

    CONFIG.write_text(good + "nonsense: 1\n")
    assert code("systemctl reload s5jtd") != 0
    assert "nonsense" in journal("S5JT_EVENT=reload_refused")[-1]["S5JT_ERROR"]
    assert sh("systemctl is-active s5jtd").strip() == "active"
    assert "config_invalid" in {one["code"] for one in status()["problems"]}

    CONFIG.write_text(good)
    sh(f"kill -HUP {pid}")
    until(lambda: not status()["problems"], "the end of the problem")
    assert main_pid() == pid


def test_a_changed_secret_is_told_of_until_the_restart_that_reads_it(port: int) -> None:
    secret, good = SECRETS / "test", (SECRETS / "test").read_text()
    secret.write_text(good + "# written anew\n")

    assert "not read again before a restart: systemd credential test" in sh("s5jtctl reload")
    assert "changed since the daemon was started" in sh("s5jtd check --install --offline", ok=False)
    sh("systemctl restart s5jtd")
    assert "systemd credential test: the daemon has it" in sh("s5jtd check --install --offline")


def test_limits_and_ways_out_hold_inside_of_the_sandbox(port: int) -> None:
    """The relay, which is the only way for s5cmd to be slow or to leave from somewhere."""
    plain = CONFIG.read_text()
    endpoint = f"endpoints: [http://127.0.0.1:{port}]"
    for number, way in enumerate(("127.0.0.1", "lo"), 1):
        CONFIG.write_text(
            plain.replace(endpoint, f"{endpoint}\n      bind: {way}")
            + "limits: {bandwidth: {pull: 50MiB/s, push: 50MiB/s}}\n"
        )
        sh("systemctl reload s5jtd")
        count = 60 + 5 * number
        boto(port, "fill", "here", count)
        until(partial(is_delivered, count), f"the transfer by way of {way}")
    CONFIG.write_text(plain)
    sh("systemctl reload s5jtd")
    assert equal(port)
    assert not journal(this_life("s5jtd"), "S5JT_EVENT=library_message")


def test_the_log_api_answers_whoever_has_the_token(port: int) -> None:
    assert code("systemctl start s5jtd-api") != 0  # without a token and a certificate
    sh("s5jtd api token /etc/s5jtd/api.token; s5jtd api cert /etc/s5jtd --host localhost")
    sh("systemctl reset-failed s5jtd-api; systemctl enable --now s5jtd-api")
    ask = "curl -sS --max-time 300 --cacert /etc/s5jtd/api.crt https://localhost:8443"
    token = '-H "Authorization: Bearer $(cat /etc/s5jtd/api.token)"'

    assert json.loads(sh(f"{ask}/healthz"))
    assert json.loads(sh(f"{ask}/status"))["error"]["code"] == "unauthorized"
    assert json.loads(sh(f"{ask}/status {token}"))["jobs"][0]["name"] == "archive"
    assert json.loads(sh(f"{ask}/log/latest {token}"))["job"] == "archive"
    assert "s5jtd_up 1" in sh(f"{ask}/metrics {token}")

    assert sh("systemctl show -P User s5jtd-api").strip() == "s5jtd-api"
    sh("journalctl --sync")
    assert "library_message" not in sh(f"journalctl --no-pager {this_life('s5jtd-api')}")
    sh("systemctl stop s5jtd")  # it goes on, and says that the daemon does not
    assert json.loads(sh(f"{ask}/status {token}"))["error"]["code"] == "not_running"
    sh("systemctl start s5jtd")


def test_a_daemon_that_does_not_move_is_ended_and_started_again(port: int) -> None:
    sh("mkdir -p /run/systemd/system/s5jtd.service.d")
    drop = Path("/run/systemd/system/s5jtd.service.d/watchdog.conf")
    drop.write_text("[Service]\nWatchdogSec=20s\n")
    sh("systemctl daemon-reload; systemctl restart s5jtd")
    pid = main_pid()
    os.kill(pid, signal.SIGSTOP)

    until(lambda: main_pid() not in (0, pid) and delivered() == 70, "the restart")

    assert "watchdog" in sh("journalctl -u s5jtd --no-pager -n 200").lower()
    drop.unlink()
    sh("systemctl daemon-reload; systemctl restart s5jtd")


def test_kill_9_in_the_middle_costs_time_and_nothing_else(port: int) -> None:
    boto(port, "fill", "here", 200)
    until(lambda: delivered() > 70, "the middle")
    pid = main_pid()
    os.kill(pid, signal.SIGKILL)

    until(lambda: main_pid() not in (0, pid) and delivered() == 200, "the rest")
    assert equal(port)


def test_a_stop_in_the_middle_is_orderly_and_in_time(port: int) -> None:
    boto(port, "fill", "here", 350)
    until(lambda: delivered() > 200, "the middle")
    sh("systemctl stop s5jtd")

    assert sh("systemctl show -P Result s5jtd").strip() == "success"  # "timeout" where it had to be killed
    assert not sh("pgrep s5cmd", ok=False)
    sh("systemctl start s5jtd")
    until(lambda: delivered() == 350, "the rest")
    assert equal(port)


def test_a_missing_disk_does_not_stop_it(port: int) -> None:
    sh("systemctl stop s5jtd")
    VOLUMES[1].rename("/srv/s5jtd-test/away")
    sh("systemctl start s5jtd")
    states = {volume["name"]: volume["state"] for volume in status()["volumes"]}
    assert states == {"volume-01": "online", "volume-02": "missing"}

    Path("/srv/s5jtd-test/away").rename(VOLUMES[1])
    sh("systemctl restart s5jtd")
    until(lambda: {volume["state"] for volume in status()["volumes"]} == {"online"}, "the volume")


def test_an_upgrade_copies_the_ledger_first_and_keeps_the_rest(bundle: Path, port: int) -> None:
    config = CONFIG.read_text()
    (bundle / "README.md").write_text("another version\n")
    sh(f"cd {bundle} && find . -type f ! -name SHA256SUMS | sed 's|^./||' | xargs sha256sum > SHA256SUMS.new")
    sh(f"cd {bundle} && grep -v SHA256SUMS.new SHA256SUMS.new > SHA256SUMS; rm {bundle}/SHA256SUMS.new")
    assert "the ledger before the upgrade" in sh(f"{bundle}/install.sh")

    assert status()["daemon"]["state"] == "running"
    assert CONFIG.read_text() == config
    assert delivered() == 350
    assert sh("systemctl is-active s5jtd-api").strip() == "active"
    assert len(list((STATE / "before-upgrades").glob("*.db"))) == 1
    assert len(list(Path("/opt/s5jtd/releases").iterdir())) == 2


def test_it_is_there_again_after_the_next_boot(port: int) -> None:
    """As far as this can be told without booting, which takes somebody outside of the machine."""
    assert sh("systemctl is-enabled s5jtd").strip() == "enabled"
    assert "s5jtd.service" in sh("systemctl list-dependencies --plain multi-user.target")


def test_the_removal_leaves_what_is_not_the_program(bundle: Path, port: int) -> None:
    said = sh(f"{bundle}/install.sh --uninstall")

    assert all(path in said for path in ("/etc/s5jtd", "/var/lib/s5jtd"))
    assert (STATE / "ledger.db").exists()
    assert CONFIG.exists()
    assert not Path("/opt/s5jtd").exists()
    assert code("systemctl cat s5jtd") != 0
    assert not sh("find /usr/local -name '*s5jt*'").strip()
    assert "not installed" in sh(f"{bundle}/install.sh --uninstall")
