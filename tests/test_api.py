"""What the log API answers, to whom, and how it says no."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from s5jtd import protocol, shapes
from s5jtd.api import metrics, tokens
from s5jtd.api.app import PUBLIC
from s5jtd.api.limits import CLIENTS_MAX, Buckets, client_of
from s5jtd.api.schema import describe
from s5jtd.errors import Busy, S5jtError
from tests.appliance import until
from tests.fake_controls import STATUS
from tests.log_api import WIDE, LogApi, running_api

PROTECTED = [
    "/",
    "/logs",
    "/log/latest",
    "/log/1769860000",
    "/status",
    "/metrics",
    "/openapi.json",
    "/nothing",
]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LogApi]:
    """One for all who leave it as it is."""
    with running_api(tmp_path_factory.mktemp("api")) as api:
        yield api


@pytest.fixture
def own_api(tmp_path: Path) -> Iterator[LogApi]:
    with running_api(tmp_path) as api:
        yield api


# --- who may come in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROTECTED)
def test_without_the_token_nothing_is_told_not_even_whether_it_exists(api, path):
    answer = api.get(path, token=None)

    assert answer.status == 401
    assert answer.code == "unauthorized"
    assert answer.headers["www-authenticate"] == 'Bearer realm="s5jtd"'


@pytest.mark.parametrize("path", PROTECTED[:-1])
def test_with_the_token_everything_is_there(api, path):
    assert api.get(path).status == 200


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_the_public_paths_need_no_token(api, path):
    assert api.get(path, token=None).status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
def test_other_methods_are_refused_with_and_without_the_token(api, method):
    assert (
        api.get("/status", method=method).status,
        api.get("/status", token=None, method=method).status,
    ) == (
        405,
        401,
    )
    assert api.get("/status", method=method).headers["allow"] == "GET"
    assert api.get("/healthz", token=None, method=method).code == "method_not_allowed"


def shown(token: str) -> list[str]:
    """Headers that look like the right one."""
    return [
        "", "Bearer", "Bearer ", f"Basic {token}", f"Bearer {token}x", f"Bearer {token[:-1]}",
        f"Bearer x{token}", f"Bearer {token.swapcase()}", f"Bearer {token} {token}",
        f"Bearer {token},", f"Bearer\t{token}",
        "Bearer " + "A" * 10_000, f"Bearer {token}\xff", f"Bearer\xa0{token}",
    ]  # fmt: skip


def test_a_token_is_right_or_wrong_and_nothing_in_between_shows(tmp_path):
    tokens.create(tmp_path / "token")
    right = tokens.read(tmp_path / "token")
    text = (tmp_path / "token").read_text().strip()

    assert right.matches(text.encode())
    assert not any(right.matches(wrong.encode()) for wrong in ("", text[:-1], text + "x", text.upper()))
    assert text not in repr(vars(right))


def test_what_only_looks_like_the_token_is_refused_in_the_same_words(tmp_path):
    with running_api(tmp_path, limits=replace(WIDE, wrong_tokens_at_once=1000)) as api:
        answers = [api.get("/status", token=None, authorization=text) for text in shown(api.token)]
        right = [
            api.get("/status", token=None, authorization=f"{word} {api.token}")
            for word in ("bearer", "BEARER ")
        ]

    assert {answer.status for answer in answers} == {401}
    assert len({answer.body for answer in answers}) == 1
    assert [answer.status for answer in right] == [200, 200]


def test_two_tokens_in_one_request_are_none(api):
    with api.raw() as sock:
        sock.sendall(
            f"GET /status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.token}\r\n"
            f"Authorization: Bearer wrong\r\nConnection: close\r\n\r\n".encode()
        )
        assert sock.recv(100).startswith(b"HTTP/1.1 401 ")


# --- reports ------------------------------------------------------------------------------------------


def pages(api: LogApi, path: str | None, member: str) -> Iterator[list[Any]]:
    """As a client does it: follow `next` until there is none."""
    while path is not None:
        answer = api.get(path)
        assert answer.status == 200, answer
        assert len(answer.body) < protocol.LINE_BYTES_MAX
        yield answer.json[member]
        path = answer.json["next"]


def test_the_reports_between_two_epochs_come_newest_first_and_in_pages(own_api):
    own_api.controls.epochs = list(range(1000, 2000, 10))

    def found(query: str) -> list[int]:
        return [row["id"] for page in pages(own_api, f"/logs?{query}", "reports") for row in page]

    assert found("start=1100&end=1200&limit=3") == list(range(1200, 1099, -10))
    assert found("limit=1000") == list(range(1990, 999, -10))
    assert found("start=1990") == [1990]
    assert found("start=1991") == []
    assert found("end=999") == []
    assert found("job=archive-to-cloud&end=1000") == [1000]


def test_one_report_is_given_by_its_epoch(api):
    report = api.get("/log/1769860000").json

    assert (report["id"], report["job"], report["status"]) == (1769860000, "archive-to-cloud", "success")
    assert "objects" not in report


def test_the_latest_report_is_the_newest_and_its_pages_stay_with_it(own_api):
    own_api.controls.epochs = [1000, 3000, 2000]
    own_api.controls.objects = 5

    first = own_api.get("/log/latest?objects=true&limit=3").json
    own_api.controls.epochs.append(4000)
    rest = own_api.get(first["next"]).json

    assert (first["id"], len(first["objects"]), rest["id"], len(rest["objects"]), rest["next"]) == (
        3000, 3, 3000, 2, None,
    )  # fmt: skip


def test_a_long_list_of_objects_comes_whole_in_pages_that_fit(own_api):
    own_api.controls.objects = 2500
    own_api.controls.key = "k" * 1000 + "é\x1b" * 30 + "{number}"

    found = [row["key"] for page in pages(own_api, "/log/1769860000?objects=true", "objects") for row in page]

    assert found == [own_api.controls.key.format(number=number) for number in range(2500)]


def test_a_report_that_goes_while_it_is_read_ends_in_a_clear_answer(own_api):
    own_api.controls.objects = 10
    first = own_api.get("/log/1769860000?objects=true&limit=4").json

    own_api.controls.epochs.clear()
    answer = own_api.get(first["next"])

    assert (answer.status, answer.code) == (404, "not_found")


def test_keys_leave_as_ascii_whatever_they_hold(own_api):
    own_api.controls.key = "\x1b[31m\u202e\ud800é</script>{number}"

    answer = own_api.get("/log/1769860000?objects=true")

    assert answer.body.isascii()
    assert b"\x1b" not in answer.body
    assert answer.json["objects"][0]["key"] == own_api.controls.key.format(number=0)


@pytest.mark.parametrize(
    "path",
    ["/log/5", "/log/latest?job=other", "/logs?job=other", "/nothing", "/logs/", "/log/", "/log/1/2",
     "//logs", "/log/../../../etc/passwd", "/log/..%2f..%2fetc%2fpasswd", "/log/%2e%2e/%2e%2e",
     "/ui/../status/x", "/ui.html", "/ui.js/..", "/%00", "/log/1%0d%0aX-Evil:%201/x", "/static/app.py"],
)  # fmt: skip
def test_what_is_not_there_is_404_and_its_name_is_not_repeated(api, path):
    answer = api.get(path)

    assert (answer.status, answer.code) == (404, "not_found")
    assert "etc" not in answer.body.decode()
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize(
    ("path", "words"),
    [("/log/abc", "epoch"), ("/log/-1", "epoch"), (f"/log/{10**30}", "epoch"), ("/log/1.5", "epoch"),
     ("/log/..%00", "epoch"), ("/logs?start=yesterday", "start"),
     ("/logs?start=9&end=3", "end lies before start"), ("/logs?strat=1", "'strat': there is no such"),
     ("/logs?limit=0", "limit"), ("/logs?limit=1001", "limit"),
     ("/logs?start=1&start=x", "start"), ("/status?verbose=1", "verbose"), ("/metrics?x", "x"),
     ("/log/1?objects=maybe", "objects"), ("/log/1?after=" + "a" * 9000, "after"), ("/logs?job=", "job")],
)  # fmt: skip
def test_parameters_that_cannot_be_used_are_named_and_not_repeated(api, path, words):
    answer = api.get(path)

    assert (answer.status, answer.code) == (422, "invalid_parameters")
    assert words in answer.json["error"]["message"]
    assert "yesterday" not in answer.body.decode()
    assert "maybe" not in answer.body.decode()


# --- the daemon -----------------------------------------------------------------------------------------


def test_status_is_what_the_daemon_says(api):
    assert api.get("/status").json == STATUS


def test_without_a_daemon_each_answer_says_so_and_the_page_is_still_there(tmp_path):
    with running_api(tmp_path, daemon=False) as api:
        for path in ("/status", "/logs", "/log/latest", "/log/5", "/healthz"):
            answer = api.get(path)
            assert (path, answer.status, answer.code) == (path, 503, "not_running")
            assert answer.headers["retry-after"] == "5"
        assert api.get("/ui").status == 200
        assert b"s5jtd_up 0.0" in api.get("/metrics").body


class OldControls:
    """A daemon that knows no reports yet."""

    def ping(self, request: object) -> shapes.Pong:
        return {"result": "pong"}


def test_a_daemon_that_knows_no_reports_is_said_to_be_too_old(tmp_path):
    old: Any = OldControls()
    with running_api(tmp_path, old) as api:
        for path in ("/logs", "/log/latest", "/log/5", "/status"):
            assert (api.get(path).status, api.get(path).code) == (503, "not_served")
        assert api.get("/healthz").json == {"status": "ok"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(Busy("the ledger", hint="wait"), 503, "busy"), (S5jtError("of a bug", hint="look"), 502, "internal")],
)
def test_what_the_daemon_cannot_do_is_told_in_its_own_words(own_api, error, status, code):
    own_api.controls.fails = error

    answer = own_api.get("/status")

    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"] == {"code": code, "message": str(error), "hint": error.hint}


def test_a_bug_ends_one_request_and_no_other(own_api, monkeypatch):
    monkeypatch.setattr("s5jtd.api.metrics.render", lambda *_: 1 / 0)

    with capture_logs() as logs:
        answer = own_api.get("/metrics")
        [request] = told(logs, "api_request", 1)

    assert (answer.status, answer.code) == (500, "internal")
    assert request["status"] == 500
    assert [record["event"] for record in logs if record["log_level"] == "error"] == ["api_request_failed"]
    assert own_api.get("/status").status == 200


# --- every answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/status", "/metrics", "/nothing", "/ui", "/ui.js", "/healthz", "/log/x"]
)
def test_every_answer_forbids_guessing_keeping_framing_and_foreign_pages(api, path):
    for answer in (api.get(path), api.get(path, token=None), api.get(path, origin="https://evil.example")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["date"].endswith(" GMT")
        assert not [name for name in answer.headers if name.startswith("access-control-") or name == "server"]


def test_the_page_loads_nothing_from_elsewhere(api):
    text = "".join(api.get(path, token=None).body.decode() for path in ("/ui", "/ui.js", "/ui.css"))

    assert set(re.findall(r"https?://[^\s'\"]+", text)) == {
        "http://www.w3.org/2000/svg"
    }  # a name, not a place
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|style=|onclick", text)


def told(logs: list[Any], event: str, number: int) -> list[dict[str, Any]]:
    """The records of an event; the client has its answer a moment before it is logged."""
    return until(lambda: (found := [one for one in logs if one["event"] == event])[number - 1 :] and found)  # type: ignore[no-any-return]


def test_requests_are_logged_without_token_and_query(own_api):
    with capture_logs() as logs:
        own_api.get(f"/logs?job=x&token={own_api.token}")
        own_api.get("/status", token="wrong" * 10)
        first, second = told(logs, "api_request", 2)

    assert own_api.token not in str(logs)
    assert "wrong" not in str(logs)
    assert (first["path"], first["status"], first["client"]) == ("/logs", 422, "127.0.0.1")
    assert (second["path"], second["status"]) == ("/status", 401)
    assert [record["client"] for record in logs if record["event"] == "api_token_refused"] == ["127.0.0.1"]


def test_the_index_names_every_route(api):
    index = {row["path"]: row for row in api.get("/").json["routes"]}

    assert set(index) == {*api.get("/openapi.json").json["paths"], "/ui", "/openapi.json"}
    assert {path for path, row in index.items() if not row["token"]} == {"/healthz", "/ui"}
    assert all(row["does"].endswith(".") for row in index.values())


def test_the_description_holds_every_type_the_daemon_answers_with(api):
    document = api.get("/openapi.json").json
    schemas = document["components"]["schemas"]

    assert {"Status", "Report", "ReportList", "ReportObject", "PerState", "Error"} <= set(schemas)
    assert set(schemas["Report"]["properties"]) == set(get_type_hints(shapes.Report))
    assert set(re.findall(r"#/components/schemas/(\w+)", str(document))) <= set(schemas)


def test_a_type_is_described_as_the_protocol_has_it():
    found: dict[str, Any] = {}

    assert describe(shapes.Volume, found) == {"$ref": "#/components/schemas/Volume"}
    assert found["Volume"]["properties"]["free_bytes"] == {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    describe(shapes.Report, found)
    describe(shapes.Status, found)
    assert "last_resync" not in found["Job"]["required"]
    assert not {"objects", "objects_file", "next"} & set(found["Report"]["required"])
    with pytest.raises(TypeError):
        describe(complex, found)


# --- metrics ------------------------------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    """Each sample with its labels, as Prometheus' own parser reads them."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type == ("counter" if family.samples[0].name.endswith("_total") else "gauge")
        assert family.documentation
        for sample in family.samples:
            name = sample.name + str(sorted(sample.labels.values())) * bool(sample.labels)
            assert name not in found
            found[name] = sample.value
    return found


def test_metrics_are_what_status_says_in_base_units(api):
    answer = api.get("/metrics")

    found = samples(answer.body.decode())

    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    job = "archive-to-cloud"
    assert found["s5jtd_up"] == 1
    assert found["s5jtd_build_info['0.1.0']"] == 1
    assert found["s5jtd_start_time_seconds"] == datetime(2026, 1, 31, 8, tzinfo=UTC).timestamp()
    assert found[f"s5jtd_job_objects['{job}', 'delivered']"] == 85
    assert found[f"s5jtd_job_bytes['{job}', 'staged']"] == 3 * 2**20
    assert found[f"s5jtd_job_state['{job}', 'running']"] == 1
    assert found[f"s5jtd_job_state['{job}', 'failed']"] == 0
    assert found[f"s5jtd_job_rate_bytes_per_second['{job}', 'pull']"] == 6 * 2**20
    assert f"s5jtd_job_rate_bytes_per_second['{job}', 'push']" not in found  # unknown is not zero
    assert f"s5jtd_job_eta_seconds['{job}']" not in found
    assert found[f"s5jtd_job_last_scan_complete['{job}']"] == 1
    assert found["s5jtd_volume_free_bytes['vol1']"] == 97 * 2**30
    url = "http://10.20.1.20:8080"
    assert found[f"s5jtd_endpoint_latency_seconds['{job}', '{url}', 'source']"] == 0.0016
    assert found["s5jtd_api_certificate_expiry_timestamp_seconds"] > datetime.now(UTC).timestamp()


def test_names_of_metrics_keep_to_the_conventions_of_prometheus(api):
    for name in re.findall(r"^# TYPE (\S+)", api.get("/metrics").body.decode(), re.MULTILINE):
        assert re.fullmatch(r"s5jtd_[a-z]+(_[a-z]+)*", name)
        assert not name.endswith(("_count", "_sum", "_ms", "_percent"))


def test_labels_that_would_break_the_text_are_escaped():
    hostile = 'a"b\\c\nd{e="f"} 1'
    state: Any = {**STATUS, "volumes": [{**STATUS["volumes"][0], "name": hostile}]}

    text = metrics.render(state, datetime.now(UTC)).decode()

    names = {
        sample.labels.get("volume")
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert names == {None, hostile}


def test_a_state_that_is_not_known_yet_still_shows():
    state: Any = {**STATUS, "volumes": [{**STATUS["volumes"][0], "state": "melting"}]}

    assert (
        samples(metrics.render(state, datetime.now(UTC)).decode())["s5jtd_volume_state['melting', 'vol1']"]
        == 1
    )


def test_problems_are_counted_by_their_code():
    problem = {"code": "volume_missing", "message": "", "hint": "", "since": None}
    state: Any = {**STATUS, "problems": [problem, problem]}

    assert samples(metrics.render(state, datetime.now(UTC)).decode())["s5jtd_problems['volume_missing']"] == 2


# --- limits -------------------------------------------------------------------------------------------------


def test_a_bucket_gives_so_many_at_once_and_then_so_many_a_second():
    now = 100.0
    buckets = Buckets(0.5, 3, lambda: now)

    given = 0
    while not buckets.wait_seconds("a"):
        buckets.take("a")
        given += 1

    assert given == 3
    assert buckets.wait_seconds("a") == 2
    assert buckets.wait_seconds("b") == 0
    now += 2
    assert buckets.wait_seconds("a") == 0
    now += 1000
    for _ in range(3):
        assert buckets.wait_seconds("a") == 0
        buckets.take("a")
    assert buckets.wait_seconds("a") == 2


def test_buckets_of_many_clients_take_bounded_memory():
    buckets = Buckets(1, 1)
    for number in range(CLIENTS_MAX * 2):
        buckets.take(str(number))

    assert len(buckets._levels) == CLIENTS_MAX
    assert buckets.wait_seconds(str(CLIENTS_MAX * 2 - 1)) > 0


@pytest.mark.parametrize(
    ("address", "client"),
    [("10.1.2.3", "10.1.2.3"), ("::ffff:10.1.2.3", "10.1.2.3"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
     ("fe80::1%eth0", "fe80::/64"), ("::1", "::/64"), ("nonsense", "nonsense")],
)  # fmt: skip
def test_a_client_is_an_address_or_a_network(address, client):
    assert client_of(address) == client


def test_health_is_asked_of_the_daemon_once_a_second_at_most(own_api):
    with capture_logs() as logs:
        answers = {own_api.get("/healthz", token=None).status for _ in range(20)}

    pings = [record for record in logs if record.get("method") == "ping"]
    assert answers == {200}
    assert 1 <= len(pings) < 10


# --- the example ----------------------------------------------------------------------------------------


def example(api: LogApi, *arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    path = api.certificate.with_name("example.token")
    path.write_text(token or api.token)
    client = Path(__file__).parents[1] / "docs/examples/log_api_client.py"
    access = ["--url", api.url, "--ca", str(api.certificate), "--token-file", str(path)]
    return subprocess.run(
        [sys.executable, "-I", str(client), *access, *arguments],
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip


def test_the_example_client_lists_reports_and_all_of_their_objects(own_api):
    now = int(time.time())
    own_api.controls.epochs = [now - 100 * 60 * number for number in range(1, 41)]
    own_api.controls.objects = 2500

    assert len(example(own_api, "reports").stdout.splitlines()) == 14  # of the last 24 hours
    assert len(example(own_api, "reports", "--hours", "1000").stdout.splitlines()) == 40
    moved = [json.loads(line)["key"] for line in example(own_api, "objects", "latest").stdout.splitlines()]
    assert moved == [own_api.controls.key.format(number=number) for number in range(2500)]


def test_the_example_client_checks_and_says_why_it_cannot(own_api):
    well = example(own_api, "check")
    own_api.controls.state["jobs"][0]["state"] = "blocked"
    blocked = example(own_api, "check")
    unknown = example(own_api, "objects", "5")
    refused = example(own_api, "check", token="wrong")

    assert (well.returncode, well.stdout) == (0, "1 jobs, nothing wrong\n")
    assert (blocked.returncode, blocked.stdout) == (1, "job archive-to-cloud is blocked\n")
    assert (unknown.returncode, "hint: GET /logs lists the reports" in unknown.stderr) == (2, True)
    assert (refused.returncode, "This needs a valid token" in refused.stderr) == (2, True)
