"""What every engine must do, shown against real servers: a suite for each engine's tests to inherit.

class TestOurs(EngineContract):
    @pytest.fixture
    def engine(self) -> Engine:
        return Ours()
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from s5jtd.engine.contract import (
    Batch,
    Caller,
    End,
    Engine,
    Failure,
    Outcome,
    Preference,
    Remote,
    Run,
    Transfer,
    Uploads,
)
from s5jtd.model import Belongings, Direction
from tests.chaos import Bandwidth, Chaos, Refuse, Stall
from tests.filesystems import tmpfs
from tests.servers import ODD_KEYS, RCLONE_REFUSES, RCLONE_RENAMES, REGION, Server

MIB = 1 << 20


@dataclass
class Result:
    """What a run returned and said on the way."""

    run: Run
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    moved: list[int] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)  #: monotonic seconds of `on_progress`

    @property
    def failures(self) -> dict[str, Failure | None]:
        return {name: outcome.failure for name, outcome in sorted(self.outcomes.items())}


class Stand:
    """An engine, a chunk's folder, and a bucket to move to and from."""

    def __init__(self, engine: Engine, folder: Path, remote: Remote) -> None:
        self.engine = engine
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        self.folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.data_fd = os.open(self.data, os.O_RDONLY | os.O_DIRECTORY)
        self.remote = remote

    def close(self) -> None:
        os.close(self.data_fd)
        os.close(self.folder_fd)

    def write(self, name: str, body: bytes, key: bytes = b"key", **more) -> Transfer:
        """A local file, and the transfer that would push it."""
        (self.data / name).write_bytes(body)
        return Transfer(name, key, len(body), **more)

    def read(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.data.iterdir()}

    def run(
        self,
        direction: Direction,
        transfers: Sequence[Transfer],
        *,
        stop: Callable[[], bool] = lambda: False,
        workers: int = 4,
        preference: Preference = "s5cmd",
        uploads: Uploads | None = None,
        **remote,
    ) -> Result:
        result = Result(Run(End.EXITED, None))
        me = threading.get_ident()

        def on_outcome(outcome: Outcome) -> None:
            assert threading.get_ident() == me
            assert outcome.name not in result.outcomes
            result.outcomes[outcome.name] = outcome

        def on_progress(moved: int) -> None:
            assert threading.get_ident() == me
            assert moved >= 0
            result.moved.append(moved)
            result.beats.append(time.monotonic())

        batch = Batch(
            direction,
            dataclasses.replace(self.remote, **remote),
            tuple(transfers),
            self.data_fd,
            Path(f"/proc/self/fd/{self.folder_fd}/{direction}.batch"),
            workers,
            preference=preference,
            uploads=uploads,
        )
        result.run = self.engine.run(batch, Caller(on_outcome, on_progress, stop))
        return result

    def pull(self, *transfers: Transfer, **more) -> Result:
        return self.run(Direction.PULL, transfers, **more)

    def push(self, *transfers: Transfer, **more) -> Result:
        return self.run(Direction.PUSH, transfers, **more)


def credentials_file(folder: Path, access_key: str, secret_key: str) -> Path:
    path = folder / f"{access_key}.credentials"
    path.write_text(f"[s5jtd]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")
    path.chmod(0o600)
    return path


def remote_of(server: Server, bucket: str, folder: Path) -> Remote:
    credentials = credentials_file(folder, server.access_key, server.secret_key)
    return Remote(bucket, server.url, REGION, credentials, ca_bundle=server.ca_bundle)


@contextlib.contextmanager
def stand_at(server: Server, bucket: str, engine: Engine, folder: Path) -> Iterator[Stand]:
    chunk = folder / "chunk"
    chunk.mkdir()
    stand = Stand(engine, chunk, remote_of(server, bucket, folder))
    try:
        yield stand
    finally:
        stand.close()


def multipart_etag(body: bytes, part_size: int) -> str:
    digests = [hashlib.md5(body[at : at + part_size]).digest() for at in range(0, len(body), part_size)]
    return f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"


class EngineContract:
    """The suite.  Its tests run against moto and rclone, which differ in much."""

    @pytest.fixture(params=["moto", "rclone"])
    def server(self, request) -> Server:
        server: Server = request.getfixturevalue(request.param)
        return server

    @pytest.fixture
    def bucket(self, server: Server) -> str:
        return server.new_bucket()

    @pytest.fixture
    def stand(self, engine: Engine, server: Server, bucket: str, tmp_path: Path) -> Iterator[Stand]:
        with stand_at(server, bucket, engine, tmp_path) as stand:
            yield stand

    @pytest.fixture
    def moto_bucket(self, moto: Server) -> str:
        return moto.new_bucket()

    @pytest.fixture
    def moto_stand(self, engine: Engine, moto: Server, moto_bucket: str, tmp_path: Path) -> Iterator[Stand]:
        with stand_at(moto, moto_bucket, engine, tmp_path) as stand:
            yield stand

    def odd_keys(self, engine: Engine, server: Server, direction: Direction) -> list[bytes]:
        unknown = RCLONE_REFUSES | RCLONE_RENAMES if server.name == "rclone" else frozenset()
        return [key for key in ODD_KEYS if key not in unknown and engine.refuses(key) is None]

    def test_objects_of_the_oddest_keys_come_down_whole(self, stand, server, bucket):
        keys = self.odd_keys(stand.engine, server, Direction.PULL)
        bodies = {key: b"%d of %s" % (number, key) for number, key in enumerate(keys)}
        server.fill(bucket, bodies)
        names = {f"{number:x}.obj": key for number, key in enumerate(keys)}

        result = stand.pull(*(Transfer(name, key, len(bodies[key])) for name, key in names.items()))

        assert result.failures == dict.fromkeys(sorted(names))
        assert result.run.end is End.EXITED
        assert stand.read() == {name: bodies[key] for name, key in names.items()}

    def test_files_go_up_to_the_oddest_keys_and_nowhere_else(self, stand, server, bucket):
        keys = self.odd_keys(stand.engine, server, Direction.PUSH)
        bodies = {key: b"%d of %s" % (number, key) for number, key in enumerate(keys)}

        result = stand.push(*(stand.write(f"{n:x}.obj", bodies[key], key) for n, key in enumerate(keys)))

        assert set(result.failures.values()) == {None}
        boto = server.boto()
        listed = [entry["Key"] for entry in boto.list_objects_v2(Bucket=bucket)["Contents"]]
        assert sorted(listed) == sorted(key.decode() for key in keys)
        there = {key: boto.get_object(Bucket=bucket, Key=key.decode())["Body"].read() for key in keys}
        assert there == bodies
        boto.close()

    def test_an_object_it_cannot_carry_harms_no_other(self, stand, bucket, server):
        refused = [key for key in (b"a\nrm 's3://x/*'", b"dir/") if stand.engine.refuses(key)]
        server.fill(bucket, {b"good": b"good"})
        transfers = [Transfer(f"{number}.obj", key, 1) for number, key in enumerate(refused)]

        result = stand.pull(*transfers, Transfer("f.obj", b"good", 4))

        assert stand.read() == {"f.obj": b"good"}
        assert [result.outcomes[transfer.name].failure for transfer in transfers] == [Failure.OTHER] * len(
            refused
        )

    @pytest.mark.parametrize("size", [0, 1, 5 * MIB, 16 * MIB + 1])
    def test_every_size_survives_the_round_trip(self, stand, size):
        body = os.urandom(size)
        up = stand.push(stand.write("1.obj", body, part_size=5 * MIB))
        (stand.data / "1.obj").unlink()

        down = stand.pull(Transfer("2.obj", b"key", size))

        assert up.failures == {"1.obj": None}
        assert down.failures == {"2.obj": None}
        assert stand.read() == {"2.obj": body}
        for result in (up, down):
            assert sum(result.moved) == size

    def test_a_file_is_replaced_by_what_is_pulled_again(self, stand, server, bucket):
        server.fill(bucket, {b"key": b"new"})
        stand.write("1.obj", b"an older and longer one")

        stand.pull(Transfer("1.obj", b"key", 3))

        assert stand.read() == {"1.obj": b"new"}

    def test_a_missing_object_is_gone_and_the_others_come(self, stand, server, bucket):
        server.fill(bucket, {b"there": b"x"})

        result = stand.pull(Transfer("1.obj", b"missing", 1), Transfer("2.obj", b"there", 1))

        assert result.failures == {"1.obj": Failure.GONE, "2.obj": None}
        assert stand.read() == {"2.obj": b"x"}

    def test_a_missing_bucket_is_not_taken_for_a_missing_object(self, stand):
        assert stand.pull(Transfer("1.obj", b"k", 1), bucket="nobody-s").failures == {"1.obj": Failure.BUCKET}
        assert stand.push(stand.write("1.obj", b"x"), bucket="nobody-s").failures == {"1.obj": Failure.BUCKET}

    def test_an_unknown_key_of_ours_is_a_matter_of_credentials(self, stand, tmp_path):
        credentials = credentials_file(tmp_path, "FAKESTRANGER", "fake-secret-for-tests")

        result = stand.pull(Transfer("1.obj", b"k", 1), credentials_file=credentials)

        assert result.failures == {"1.obj": Failure.CREDENTIALS}
        assert "fake-secret-for-tests" not in repr(result)

    def test_a_missing_credentials_file_is_a_matter_of_credentials(self, stand, tmp_path):
        result = stand.pull(Transfer("1.obj", b"k", 1), credentials_file=tmp_path / "none")

        assert result.failures == {"1.obj": Failure.CREDENTIALS}

    def test_an_endpoint_that_is_not_there_is_to_blame_and_no_object(self, stand):
        nobody = "http://127.0.0.1:1"

        pull = stand.pull(Transfer("1.obj", b"k", MIB), endpoint_url=nobody)
        push = stand.push(stand.write("2.obj", b"x" * MIB), endpoint_url=nobody)

        assert sum(pull.moved + push.moved) < MIB / 10
        assert [pull.failures, push.failures] == [{"1.obj": Failure.ENDPOINT}, {"2.obj": Failure.ENDPOINT}]

    @pytest.mark.parametrize(
        ("code", "failure"),
        [
            ("AccessDenied", Failure.REFUSED),
            ("InternalError", Failure.ENDPOINT),
            ("ExpiredToken", Failure.CREDENTIALS),
            ("RequestTimeTooSkewed", Failure.CREDENTIALS),
        ],
    )
    def test_what_a_server_answers_is_sorted_by_who_must_react(self, moto_stand, moto, code, failure):
        with Chaos(moto.url) as chaos:
            chaos.add(Refuse(code))
            pull = moto_stand.pull(Transfer("1.obj", b"k", 1), endpoint_url=chaos.url)
            push = moto_stand.push(
                moto_stand.write("2.obj", b"x"),
                moto_stand.write("3.obj", b"x" * (5 * MIB + 1), part_size=5 * MIB),
                endpoint_url=chaos.url,
            )

        assert pull.failures == {"1.obj": failure}
        assert push.failures == {"2.obj": failure, "3.obj": failure}

    def test_a_file_that_is_not_there_is_a_local_matter(self, stand):
        content = {"content-type": "text/plain", "cache-control": "no-store"}
        missing = Transfer("9.obj", b"key 1.obj", 1, takes=Belongings(content, {"owner": "a b"}))

        result = stand.push(missing, stand.write("1.obj", b"x", b"other"))

        assert result.failures == {"1.obj": None, "9.obj": Failure.LOCAL}

    def test_a_full_disk_is_told_from_every_other_trouble(self, stand, server, bucket, tmp_path):
        server.fill(bucket, {b"big": os.urandom(MIB)})
        with tmpfs(tmp_path / "small", 300 * 1024) as small:
            data_fd = os.open(small, os.O_RDONLY | os.O_DIRECTORY)
            os.close(stand.data_fd)
            stand.data_fd = data_fd
            result = stand.pull(Transfer("1.obj", b"big", MIB))

        assert result.failures == {"1.obj": Failure.SPACE}

    @pytest.mark.parametrize(
        ("size", "part_size"),
        [
            (5 * MIB, 5 * MIB),
            (5 * MIB + 1, 5 * MIB),
            (10 * MIB, 5 * MIB),
            (17 * MIB, 8 * MIB),
            (17 * MIB, None),
            (3, None),
        ],
    )
    def test_the_etag_of_an_upload_can_be_predicted(self, moto_stand, moto, moto_bucket, size, part_size):
        body = os.urandom(size)

        moto_stand.push(moto_stand.write("1.obj", body, part_size=part_size))

        single = part_size is None or size <= part_size
        boto = moto.boto()
        etag = boto.head_object(Bucket=moto_bucket, Key="key")["ETag"].strip('"')
        boto.close()
        assert etag == (hashlib.md5(body).hexdigest() if single else multipart_etag(body, part_size))

    def test_headers_and_metadata_arrive_as_they_were(self, moto_stand, moto, moto_bucket):
        content = {
            "content-type": "text/html; charset=utf-8",
            "content-encoding": "gzip",
            "content-disposition": 'attachment; filename="it\'s 1.obj s3://x/y.txt"',
            "cache-control": "no-store",
            "expires": "Wed, 02 Jan 2030 03:04:05 GMT",
        }
        metadata = {"mtime": "1700000000.5", "note": "a=b; 'c' \"d\" $e `f` \\g", "empty": ""}

        moto_stand.push(
            moto_stand.write("1.obj", b"x", b"full", takes=Belongings(content, metadata)),
            moto_stand.write("2.obj", b"<html>", b"bare"),
            storage_class="STANDARD_IA",
        )

        boto = moto.boto()
        full = boto.head_object(Bucket=moto_bucket, Key="full")
        bare = boto.head_object(Bucket=moto_bucket, Key="bare")
        boto.close()
        headers = full["ResponseMetadata"]["HTTPHeaders"]
        assert {name: headers[name] for name in content} == content
        assert full["Metadata"] == metadata
        assert full["StorageClass"] == bare["StorageClass"] == "STANDARD_IA"
        assert bare["ContentType"] == "binary/octet-stream"
        assert bare["Metadata"] == {}

    def test_it_beats_and_counts_while_one_large_object_moves(self, moto_stand, moto, moto_bucket):
        size = 2 * MIB
        moto.fill(moto_bucket, {b"big": os.urandom(size)})
        with Chaos(moto.url) as chaos:
            chaos.add(Bandwidth(1.4 * MIB))
            down = moto_stand.pull(Transfer("1.obj", b"big", size), endpoint_url=chaos.url)
            up = moto_stand.push(Transfer("1.obj", b"copy", size), endpoint_url=chaos.url)

        for result in (down, up):
            gaps = [after - before for before, after in zip(result.beats, result.beats[1:], strict=False)]
            assert max(gaps) < 1
            assert sum(result.moved) == size
        assert len([moved for moved in down.moved if moved]) > 1, "not all at once"

    @pytest.mark.parametrize("direction", list(Direction))
    def test_asked_to_stop_it_ends_soon_and_says_nothing_of_the_rest(self, stand, server, bucket, direction):
        server.fill(bucket, {b"big": os.urandom(6 * MIB), b"small": b"x"})
        (stand.data / "1.obj").write_bytes(os.urandom(6 * MIB))
        small = (
            Transfer("2.obj", b"small", 1)
            if direction is Direction.PULL
            else stand.write("2.obj", b"x", b"s")
        )
        asked: list[float] = []
        with Chaos(server.url) as chaos:
            chaos.add(
                Stall(after=MIB, side="request" if direction is Direction.PUSH else "reply", key=b"big")
            )

            def stop() -> bool:
                log = {exchange.key: exchange for exchange in chaos.log if exchange.method in {"GET", "PUT"}}
                if b"big" in log and small.key in log and log[small.key].status:
                    asked.append(time.monotonic())
                return len(asked) > 4  # until then there was time to say that the small one is done

            result = stand.run(
                direction, [Transfer("1.obj", b"big", 6 * MIB), small], stop=stop, endpoint_url=chaos.url
            )

        assert result.run.end is End.STOPPED
        assert result.failures == {"2.obj": None}
        assert result.beats[-1] - asked[4] < 8

    def test_an_empty_batch_is_no_trouble(self, stand):
        assert stand.pull().run == Run(End.EXITED, 0)
