"""One pass gives every digest, costs no more than it must, and reads nothing but plain files."""

from __future__ import annotations

import base64
import hashlib
import os
import resource
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s5jtd.errors import ObjectChanged, ObjectError, VolumeFailed
from s5jtd.integrity import hashing
from s5jtd.integrity.hashing import BLOCK_BYTES, Wanted, drop_cache, hash_file, hash_stream
from tests.filesystems import MIB, loop_volume

EVERYTHING = Wanted(md5=True, sha256=True, part_sizes=frozenset({700_001, MIB, 5 * MIB, 64 * MIB}))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def naive_multipart_etag(content: bytes, part_size: int) -> str:
    parts = [content[at : at + part_size] for at in range(0, len(content), part_size)] or [b""]
    joined = b"".join(hashlib.md5(part).digest() for part in parts)
    return f"{hashlib.md5(joined).hexdigest()}-{len(parts)}"


def test_the_crc64nvme_is_written_as_s3_writes_it(tmp_path, folder):
    (tmp_path / "1.obj").write_bytes(b"123456789")

    digests = hash_file(folder, "1.obj", Wanted())

    assert base64.b64decode(digests.crc64nvme) == bytes.fromhex("ae8b14860a799888")
    assert digests.size == 9
    assert (digests.md5, digests.sha256, digests.multipart_etags) == (None, None, {})


@pytest.mark.parametrize(
    "size", [0, 1, 16 * 1024, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES + 77]
)
def test_a_file_of_any_length_gets_every_digest_that_was_wanted(tmp_path, folder, size):
    content = os.urandom(size)
    (tmp_path / "1.obj").write_bytes(content)
    beats: list[int] = []

    digests = hash_file(folder, "1.obj", EVERYTHING, beat=beats.append)

    assert digests.size == size == sum(beats)
    assert digests.md5 == hashlib.md5(content).hexdigest()
    assert digests.sha256 == hashlib.sha256(content).hexdigest()
    assert digests.multipart_etags == {
        part_size: naive_multipart_etag(content, part_size) for part_size in EVERYTHING.part_sizes
    }
    assert digests == hash_stream([content], EVERYTHING)


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=8),
    part_sizes=st.frozensets(st.integers(1, 60), max_size=5),
    md5=st.booleans(),
)
def test_multipart_etags_agree_with_a_naive_computation_however_the_bytes_arrive(pieces, part_sizes, md5):
    content = b"".join(pieces)

    digests = hash_stream(pieces, Wanted(md5=md5, part_sizes=part_sizes))

    assert digests.multipart_etags == {size: naive_multipart_etag(content, size) for size in part_sizes}
    assert digests.md5 == (hashlib.md5(content).hexdigest() if md5 else None)
    assert digests.crc64nvme == hash_stream([content], Wanted()).crc64nvme


@pytest.mark.parametrize(
    ("wanted", "hashed"),
    [
        (Wanted(sha256=True), 0),
        (Wanted(md5=True), 48),
        (Wanted(part_sizes=frozenset({48, 50, 100})), 48),  # one part: the whole
        (Wanted(md5=True, part_sizes=frozenset({64})), 48),
        (Wanted(part_sizes=frozenset({16})), 48),
        (Wanted(md5=True, part_sizes=frozenset({16})), 48 + 32),  # all parts but the first
        (Wanted(part_sizes=frozenset({8, 16})), 48 + 24),  # every second part of 8 begins with one of 16
    ],
)
def test_no_byte_is_hashed_twice_for_what_begins_at_the_same_offset(monkeypatch, wanted, hashed):
    fed: list[int] = []

    class Counting:
        def __init__(self) -> None:
            self._md5 = hashlib.md5()

        def update(self, block: memoryview) -> None:
            fed.append(len(block))
            self._md5.update(block)

        def digest(self) -> bytes:
            return self._md5.digest()

        def hexdigest(self) -> str:
            return self._md5.hexdigest()

    real = hashing._md5
    outer = iter([real] * len(wanted.part_sizes))  # the hashes over part MD5s are made first

    def make() -> object:
        return next(outer, Counting)()

    monkeypatch.setattr(hashing, "_md5", make)

    digests = hash_stream([os.urandom(48)], wanted)

    assert sum(fed) == hashed
    assert set(digests.multipart_etags) == wanted.part_sizes


def test_threads_do_not_share_a_buffer(tmp_path, folder):
    contents = {f"{number:x}.obj": os.urandom(2 * BLOCK_BYTES + number) for number in range(16)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)

    with ThreadPoolExecutor(4) as pool:
        found = dict(
            zip(contents, pool.map(lambda name: hash_file(folder, name, EVERYTHING), contents), strict=True)
        )

    assert found == {name: hash_stream([content], EVERYTHING) for name, content in contents.items()}


def _symlink(path: Path) -> None:
    (path.parent / "target").write_bytes(b"secret")
    path.symlink_to("target")


def _hardlink(path: Path) -> None:
    (path.parent / "target").write_bytes(b"secret")
    path.hardlink_to(path.parent / "target")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o20600, os.makedev(1, 5))  # /dev/zero: read, it would never end
    except PermissionError:
        pytest.skip("making a device needs root")


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (_symlink, "symbolic links"),
        (_hardlink, "2 names"),
        (os.mkfifo, "no regular file"),
        (_socket, "No such device"),
        (_device, "no regular file"),
        (Path.mkdir, "no regular file"),
        (lambda path: None, "No such file"),
    ],
    ids=["symlink", "hardlink", "fifo", "socket", "device", "folder", "nothing"],
)
def test_whatever_stands_where_a_file_should_be_is_refused_without_reading_it(
    tmp_path, folder, plant: Callable[[Path], None], said
):
    plant(tmp_path / "1.obj")
    open_before = len(os.listdir("/proc/self/fd"))

    for look in (lambda: hash_file(folder, "1.obj", Wanted()), lambda: drop_cache(folder, "1.obj")):
        with pytest.raises(ObjectError, match=said) as refusal:
            look()
        assert refusal.value.hint
    assert len(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize(
    "name", ["data/1.obj", "../1.obj", "/etc/passwd", ".", "..", "", "a\0b", "\ud800", "x" * 300]
)
def test_a_name_that_is_more_or_less_than_a_name_is_refused(folder, name):
    with pytest.raises(ObjectError):
        hash_file(folder, name, Wanted())


def test_a_file_that_may_not_be_read_says_who_must_be_let_in(tmp_path, folder):
    (tmp_path / "1.obj").write_bytes(b"x")
    (tmp_path / "1.obj").chmod(0)
    user = os.geteuid()
    try:
        os.seteuid(65534 if user == 0 else user)
        with pytest.raises(ObjectError) as refusal:
            hash_file(folder, "1.obj", Wanted())
    finally:
        os.seteuid(user)
    assert "daemon's user" in refusal.value.hint


@pytest.mark.parametrize("change", [3 * BLOCK_BYTES, BLOCK_BYTES + 1], ids=["grows", "shrinks"])
def test_a_file_whose_length_changes_while_it_is_read_is_not_taken_for_either_version(
    tmp_path, folder, change
):
    path = tmp_path / "1.obj"
    path.write_bytes(bytes(2 * BLOCK_BYTES))

    with pytest.raises(ObjectChanged):
        hash_file(folder, "1.obj", Wanted(), beat=lambda _: os.truncate(path, change))


def test_a_shortage_of_our_own_is_blamed_on_neither_object_nor_volume(tmp_path, folder):
    (tmp_path / "1.obj").write_bytes(b"x")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            hash_file(folder, "1.obj", Wanted())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_disk_that_fails_is_blamed_and_not_the_object(tmp_path):
    with loop_volume(tmp_path) as volume:
        (volume.path / "1.obj").write_bytes(b"x" * 100_000)
        fd = os.open(volume.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            volume.cut_power()
            with pytest.raises(VolumeFailed, match=r"1\.obj.*in .*Input/output error") as failure:
                hash_file(fd, "1.obj", Wanted())
        finally:
            os.close(fd)
    assert "journalctl" in failure.value.hint


def test_dropping_the_cache_makes_the_next_hash_see_what_the_device_holds(tmp_path):
    content = os.urandom(64 * 1024)
    with loop_volume(tmp_path) as volume:
        with (volume.path / "1.obj").open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        fd = os.open(volume.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            whole = hash_file(fd, "1.obj", Wanted())
            image = volume.image.read_bytes()
            with volume.image.open("r+b") as device:  # a bit turns between cache and device
                device.seek(image.index(content[:4096]))
                device.write(bytes([content[0] ^ 1]))

            assert hash_file(fd, "1.obj", Wanted()) == whole
            drop_cache(fd, "1.obj")
            assert hash_file(fd, "1.obj", Wanted()) != whole
        finally:
            os.close(fd)


@pytest.mark.parametrize("size", [0, -1])
def test_a_part_without_bytes_cannot_be_wanted(size):
    with pytest.raises(ValueError, match="positive"):
        Wanted(part_sizes=frozenset({size}))
