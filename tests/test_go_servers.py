"""What needs programs built with Go: the road between real servers, and Prometheus on our metrics."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from s5jtd.api.metrics import render
from s5jtd.errors import Exit
from s5jtd.metrics_file import MetricsFile
from s5jtd.problems import Problems
from tests.appliance import Appliance, contents, digests, side, some_objects
from tests.servers import Server, go_program, running_minio, running_versitygw
from tests.test_monitoring import FOLDER, full_status

Running = Callable[[Path, Path], contextlib.AbstractContextManager[Server]]
SERVERS: dict[str, Running] = {"versitygw": running_versitygw, "minio": running_minio}


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    program = go_program(request.param)
    if program is None:
        pytest.skip(f"{request.param} is not on this machine; `make test-go` builds it where Go is")
    with SERVERS[request.param](tmp_path, program) as server:
        yield server


def test_a_bucket_arrives_and_a_second_pass_moves_nothing(server: Server, tmp_path: Path) -> None:
    here, there = server.new_bucket(), server.new_bucket()
    large = hashlib.shake_128(b"large").digest(20 << 20)
    objects = some_objects(200) | {b"odd +%20 key": b"x", "é".encode(): b"y", b"large": large}
    server.fill(here, objects)
    with Appliance(tmp_path / "appliance") as appliance:
        appliance.configure(
            {"name": "archive", "source": side(server, here), "destination": side(server, there, prefix="p/")}
        )

        assert appliance.once() == Exit.DONE, appliance.log()
        assert contents(server, there) == {b"p/" + key: digest for key, digest in digests(objects).items()}
        assert len(appliance.events("chunk_staged")) > 0

        appliance.log_path.unlink()
        assert appliance.once() == Exit.DONE, appliance.log()
        assert appliance.events("chunk_staged") == []


def test_a_multipart_object_keeps_its_etag(server: Server, tmp_path: Path) -> None:
    here, there = server.new_bucket(), server.new_bucket()
    boto = server.boto()
    upload = boto.create_multipart_upload(Bucket=here, Key="parts")["UploadId"]
    parts = []
    for number, size in enumerate((6 << 20, 6 << 20, 1 << 20), 1):
        body = hashlib.shake_128(b"%d" % number).digest(size)
        answer = boto.upload_part(Bucket=here, Key="parts", UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    boto.complete_multipart_upload(
        Bucket=here, Key="parts", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    with Appliance(tmp_path / "appliance") as appliance:
        appliance.configure(
            {"name": "archive", "source": side(server, here), "destination": side(server, there)}
        )

        assert appliance.once() == Exit.DONE, appliance.log()

    etags = {boto.head_object(Bucket=bucket, Key="parts")["ETag"] for bucket in (here, there)}
    assert len(etags) == 1
    assert contents(server, here) == contents(server, there)


def test_prometheus_itself_finds_no_fault_with_our_rules_and_metrics(tmp_path: Path) -> None:
    """By the packages behind `promtool check rules`, `promtool check metrics` and `promtool test rules`."""
    promcheck = go_program("promcheck")
    if promcheck is None:
        pytest.skip("promcheck is not on this machine; `make test-go` builds it where Go is")

    def faults(*arguments: str, text: bytes = b"") -> str:
        done = subprocess.run([promcheck, *arguments], input=text, capture_output=True, check=False)
        return (done.stdout + done.stderr).decode()

    state: Any = full_status()
    written = MetricsFile(tmp_path, lambda: state, Problems())
    written.step(lambda: None)
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("groups: [{name: a, rules: [{alert: A, expr: 'sum('}]}]")

    moved = tmp_path / "alerts.test.yml"
    moved.write_text((FOLDER / moved.name).read_text())
    (tmp_path / "alerts.yml").write_text(
        (FOLDER / "alerts.yml").read_text().replace('"down"} == 1', '"up"} == 1')
    )

    assert faults("rules", str(FOLDER / "alerts.yml")) == ""
    assert faults("test", str(FOLDER / moved.name)) == ""
    assert "S5jtdEndpointDown at 16m" in faults("test", str(moved))
    assert faults("metrics", text=written.path.read_bytes()) == ""
    assert faults("metrics", text=render(state, datetime.now(UTC))) == ""
    assert "could not parse expression" in faults("rules", str(wrong))
    assert "_total" in faults("metrics", text=b"# HELP a_b A.\n# TYPE a_b counter\na_b 1\n")
