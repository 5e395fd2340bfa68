"""The status page in a real browser: what it shows, what it keeps to itself, how it takes bad news."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from s5jtd.errors import S5jtError
from tests.appliance import WAIT_SECONDS, until
from tests.fake_controls import per_state
from tests.log_api import LogApi, ReportControls, running_api

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


pytestmark = [
    pytest.mark.skipif(
        not (DRIVER and BROWSER),
        reason="NOT TESTED: the status page, because there is no chromium with chromedriver on this machine",
    ),
    pytest.mark.slow,
]


class Browser:
    """One window of Chromium, told what to do by its driver's own protocol."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._session = ""

    def open(self) -> None:
        chrome = {
            "binary": BROWSER,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        }
        wanted = {
            "browserName": "chrome", "acceptInsecureCerts": True,
            "goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"},
        }  # fmt: skip
        answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"

    def close(self) -> None:
        if self._session:
            self._call("DELETE", self._session)

    def go(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        """The value of a function's body."""
        return self._call(
            "POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)}
        )

    def type(self, text: str) -> None:
        """Into whatever has the focus, as a keyboard would; a newline is the return key."""
        keys = [
            {"type": kind, "value": "\ue007" if key == "\n" else key}
            for key in text
            for kind in ("keyDown", "keyUp")
        ]
        source = {"type": "key", "id": "keyboard", "actions": keys}
        self._call("POST", f"{self._session}/actions", {"actions": [source]})

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def until_text(self, selector: str, text: str) -> None:
        until(lambda: text in self.text(selector), f"{text!r} in {selector}", WAIT_SECONDS)

    def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """A window of that size, for a reader who has it light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def screenshot(self) -> bytes:
        return base64.b64decode(self._call("GET", f"{self._session}/screenshot"))

    def complaints(self) -> list[str]:
        """What the browser's console says since it was asked last."""
        return [
            entry["message"] for entry in self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        ]

    def _devtools(self, command: str, parameters: Mapping[str, object]) -> None:
        self._call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._driver + path, data, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["value"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_driver(tmp_path_factory.mktemp("driver")) as url:
        yield url


@contextlib.contextmanager
def running_driver(folder: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(DRIVER), f"--port={port}"], stdout=log, stderr=log)
    try:
        until(lambda: "successfully" in (folder / "log").read_text(errors="replace"), "chromedriver")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def browser(driver: str) -> Iterator[Browser]:
    browser = Browser(driver)
    try:
        browser.open()
        browser.look(width=1100, height=1500)
        yield browser
    finally:
        browser.close()


class Busy(ReportControls):
    """A daemon with something to tell about everything the page shows."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs = [1769860000 + 600 * number for number in range(6)]
        [job], [volume], [endpoint] = self.state["jobs"], self.state["volumes"], self.state["endpoints"]
        job["rates"]["push_bytes_per_second"] = 3 * 2**20
        self.state["jobs"].append(
            {
                **job, "name": "telemetry", "state": "blocked",
                "reason": "no endpoint of the destination answers",
                "objects": per_state(seen=1, delivered=4, parked=2),
                "bytes": per_state(delivered=4096, parked=10),
                "rates": {"pull_bytes_per_second": 0, "push_bytes_per_second": None},
                "last_scan": None, "last_delivery_at": None,
            }
        )  # fmt: skip
        self.state["volumes"].append({**volume, "name": "vol2", "state": "full", "free_bytes": 2**30,
                                      "staged_bytes": 90 * 2**30, "path": "/mnt/volume-02"})  # fmt: skip
        self.state["volumes"].append({**volume, "name": "vol3", "state": "missing", "free_bytes": None,
                                      "staged_bytes": None, "path": "/mnt/volume-03"})  # fmt: skip
        self.state["endpoints"].append(
            {
                **endpoint, "job": "telemetry", "side": "destination", "url": "https://s3.eu-west-1.amazonaws.com",
                "state": "down", "latency_ms": None, "last_error": "connection refused",
            }
        )  # fmt: skip
        self.state["problems"].append(
            {
                "code": "volume_missing", "message": "Cannot find the volume vol3",
                "hint": "mount it, or if it is gone for good: s5jtctl volumes drain vol3",
                "since": "2026-01-31T11:20:00Z",
            }
        )  # fmt: skip


@pytest.fixture
def api(tmp_path: Path) -> Iterator[LogApi]:
    with running_api(tmp_path, Busy()) as api:
        yield api


def enter(browser: Browser, api: LogApi) -> None:
    browser.go(f"{api.url}/ui")
    browser.type(api.token + "\n")
    browser.until_text("#jobs", "archive-to-cloud")
    browser.until_text("#reports", "archive-to-cloud")


def test_the_page_shows_jobs_volumes_endpoints_problems_and_reports_to_who_types_the_token(browser, api):
    enter(browser, api)

    assert "85 %" in browser.text("#jobs")
    assert "no endpoint of the destination answers" in browser.text("#jobs")
    assert "Cannot find the volume vol3" in browser.text("#problems")
    assert "s5jtctl volumes drain vol3" in browser.text("#problems")
    assert browser.run("return document.querySelectorAll('#volumes .bar')[0].ariaLabel") == "98 % used"
    assert "connection refused" in browser.text("#endpoints")
    assert browser.text("#pull-rate") == "pull 6.00 MiB/s"
    assert browser.text("#push-rate") == "push 3.00 MiB/s"
    assert browser.run("return document.querySelectorAll('#reports tbody tr').length") == 6
    line = "return document.querySelector('#push path:not(.under)').getAttribute('d')"
    until(lambda: "L" in browser.run(line), "a line in the chart")
    assert browser.complaints() == []  # neither scripts nor the policy had one


def test_the_token_is_nowhere_but_in_the_memory_of_the_page(browser, api):
    enter(browser, api)

    kept = (
        "return [location.href, document.cookie, document.documentElement.outerHTML,"
        " JSON.stringify(localStorage), JSON.stringify(sessionStorage),"
        " document.querySelector('#token').value].join()"
    )
    assert api.token not in browser.run(kept)
    browser.go(f"{api.url}/ui")
    assert browser.run("return document.querySelector('#board').hidden")


def test_forgetting_the_token_empties_the_page(browser, api):
    enter(browser, api)

    browser.run("document.querySelector('#leave').click()")

    assert browser.run("return document.querySelector('#board').hidden")
    assert browser.run("return document.activeElement.id") == "token"


def test_a_wrong_token_is_asked_for_again(browser, api):
    browser.go(f"{api.url}/ui")

    browser.type("wrong\n")

    browser.until_text("#denied", "not the right one")
    assert browser.run("return document.querySelector('#board').hidden")


def test_what_the_daemon_tells_is_text_and_never_markup(browser, api):
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    api.controls.state["problems"][0].update({"message": evil, "hint": evil})
    api.controls.state["jobs"][0].update({"name": evil, "reason": evil})
    api.controls.state["endpoints"][0].update({"url": evil})
    browser.go(f"{api.url}/ui")
    browser.type(api.token + "\n")

    browser.until_text("#problems", "<img src=x")

    assert browser.run("return document.title") == "(1) s5jtd"
    assert browser.run("return document.querySelectorAll('main img, main script').length") == 0


def test_even_a_script_of_the_page_could_not_load_or_write_markup(browser, api):
    browser.go(f"{api.url}/ui")

    assert browser.run("try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true }")
    assert browser.run(
        "const s = document.createElement('style'); s.textContent = 'body{display:none}';"
        " document.head.append(s);"
        " return getComputedStyle(document.body).display"
    ) == "block"  # fmt: skip


def test_bad_news_stand_over_the_last_good_ones(browser, api):
    enter(browser, api)

    api.controls.fails = S5jtError("the ledger is busy", hint="wait a little")
    browser.until_text("#trouble", "the ledger is busy")
    assert "archive-to-cloud" in browser.text("#jobs")
    assert browser.run("return document.querySelector('#board').classList.contains('stale')")

    api.controls.fails = None
    until(lambda: browser.run("return document.querySelector('#trouble').hidden"), seconds=WAIT_SECONDS)
    assert not browser.run("return document.querySelector('#board').classList.contains('stale')")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_a_phone_and_everything_can_be_read(browser, api, dark):
    browser.look(width=360, height=800, dark=dark)
    enter(browser, api)

    assert browser.run("return document.documentElement.scrollWidth") <= 360
    faint = browser.run(CONTRAST)
    assert faint == []


#: Every text whose contrast with what lies behind it is below the 4.5 that WCAG asks for.
CONTRAST = """
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const linear = (c) => (c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
const light = (c) => .2126 * linear(c[0] / 255) + .7152 * linear(c[1] / 255) + .0722 * linear(c[2] / 255);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const c = channels(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
};
const found = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.getClientRects().length || e.closest("svg")) continue;
  const [a, b] = [light(channels(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
  const ratio = (a + .05) / (b + .05);
  if (ratio < 4.5) found.push(`${e.textContent.slice(0, 30)}: ${ratio.toFixed(2)}`);
}
return found;
"""
