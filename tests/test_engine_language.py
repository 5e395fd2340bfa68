"""What we write for s5cmd is read as meant, and what it writes is never read as more than it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from s5jtd.engine import language
from s5jtd.engine.answers import Error, Other, Success, outcome_of, presentable, read_line
from s5jtd.engine.contract import Failure, Outcome, Remote, Transfer
from s5jtd.engine.language import MIB
from s5jtd.model import Belongings, Direction

REMOTE = Remote("archive", "http://10.20.1.20:8080", "snow", Path("/run/s5jtd/source.credentials"))
NAMES = {"1.obj": 1, "2.obj": 1, "1f.obj": 1}

hostile_keys = st.one_of(
    st.binary(min_size=1, max_size=60),
    st.text(alphabet="'\"\\ $`*?#;&|<>~!{}[]%+/.-\t\r\x85\u2028é", min_size=1, max_size=30).map(str.encode),
    st.lists(
        st.sampled_from(
            ["1.obj", "2.obj", "1f.obj", " ", "s3://archive/", "cp ", "'", "--raw=true", "/", "\\"]
        ),
        min_size=1,
    ).map(lambda parts: "".join(parts).encode()),
)
header_values = st.from_regex(r"\A[!-~]([ -~]{0,20}[!-~])?\Z")


def shell_words(line: bytes) -> list[bytes]:
    """The words a line has by the rules of the Go library that s5cmd reads batch files with."""
    words: list[bytes] = []
    word: bytearray | None = None
    position = 0
    while position < len(line):
        byte = line[position : position + 1]
        position += 1
        if byte in b" \n\t":
            if word is not None:
                words.append(bytes(word))
            word = None
            continue
        word = bytearray() if word is None else word
        if byte == b"'":
            end = line.index(b"'", position)  # ValueError: unterminated, and s5cmd drops the file's rest
            word += line[position:end]
            position = end + 1
        elif byte == b"\\":
            if position == len(line):
                raise ValueError("unterminated escape")
            word += line[position : position + 1].replace(b"\n", b"")
            position += 1
        elif byte == b'"':
            raise NotImplementedError("we never write a double quote outside single ones")
        else:
            word += byte
    return words if word is None else [*words, bytes(word)]


def pushed(key: bytes = b"k", **changes) -> Transfer:
    return dataclasses.replace(Transfer("1f.obj", key, 5), **changes)


def flags_of(line: bytes) -> list[tuple[bytes, bytes]]:
    words = shell_words(line)[2:-2]
    return list(zip(words[::2], words[1::2], strict=True))


@given(st.binary().filter(lambda word: b"\n" not in word))
def test_every_word_without_a_newline_is_read_back_as_it_was(word):
    assert [word] == shell_words(language.quote(word))


@given(hostile_keys, st.integers(0, 1 << 45))
@example(b"' 's3://other/secret' x\n", 1)
@example(b"x'; rm 's3://archive/*", 1)
def test_a_pull_is_one_line_that_copies_one_key_to_one_opaque_name(key, size):
    assume(language.refusal(key) is None)

    line = language.pull_line("archive", Transfer("1f.obj", key, size))

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    words = shell_words(line)
    assert words[:3] == [b"cp", b"--raw", b"--concurrency"]
    assert [b"s3://archive/" + key, b"1f.obj"] == words[6:]


@given(hostile_keys, header_values, st.dictionaries(st.from_regex(r"\A[a-z0-9-]{1,9}\Z"), header_values))
def test_a_push_is_one_line_whatever_its_headers_hold(key, disposition, metadata):
    content = {"content-disposition": disposition}
    assume(language.refusal(key, Belongings(content, metadata)) is None)

    line = language.push_line(REMOTE, pushed(key, takes=Belongings(content, metadata)))

    assert line.count(b"\n") == 1
    assert shell_words(line)[:2] == [b"cp", b"--raw"]
    assert [b"1f.obj", b"s3://archive/" + key] == shell_words(line)[-2:]
    flags = flags_of(line)
    assert disposition.encode() == dict(flags)[b"--content-disposition"]
    assert sorted(f"{name}={value}".encode() for name, value in metadata.items()) == sorted(
        value for name, value in flags if name == b"--metadata"
    )


@pytest.mark.parametrize("key", [b"", b"a\nb", b"\n", b"dir/", b"/", b"a\0b"])
def test_keys_that_s5cmd_would_misread_are_refused(key):
    assert "s5cmd cannot name" in (language.refusal(key) or "")


@pytest.mark.parametrize(
    "key",
    [b" lead", b"trail ", b"a//b", b"/lead", b"../../etc/passwd", b"-rf", b"#x", b"a://b", b"*?[]",
     b"\xff\xfe", b"r\r", b"'", b"x" * 1024],
)  # fmt: skip
def test_every_other_key_is_taken(key):
    assert language.refusal(key) is None


@pytest.mark.parametrize(
    ("content", "metadata"),
    [
        ({"content-language": "de"}, {}),
        ({"content-type": "text/plain\r\nx-amz-acl: public-read"}, {}),
        ({"content-disposition": "attachment; filename=é"}, {}),
        ({"cache-control": " no-store"}, {}),
        ({"expires": "tomorrow"}, {}),
        ({}, {"a=b": "c"}),
        ({}, {"ä": "c"}),
        ({}, {"a": "two\nlines"}),
        ({}, {"Owner": "x", "owner": "y"}),
    ],
)
def test_headers_that_would_not_arrive_unchanged_are_refused(content, metadata):
    assert language.refusal(b"key", Belongings(content, metadata))


def test_a_name_that_could_be_anything_but_a_name_is_a_bug():
    for name in ("../x", "a b", "", "-x", "a/b", "s3://b/k", "x\n", "x*"):
        with pytest.raises(ValueError, match="opaque name"):
            language.pull_line("archive", Transfer(name, b"k", 1))


def test_a_newline_never_gets_into_a_line_even_where_nobody_refused_it():
    with pytest.raises(ValueError, match="one line"):
        language.pull_line("archive", Transfer("1.obj", b"a\nrm s3://archive/*", 1))


def test_only_plain_buckets_have_lines():
    assert language.bucket_refusal("archive.2026-11_x") is None
    for bucket in ("arn:aws:s3:::accesspoint/x", "a/b", "", "a b", "*", "a\n"):
        assert language.bucket_refusal(bucket)


def test_a_push_always_names_the_type_because_s5cmd_would_guess_one():
    assert dict(flags_of(language.push_line(REMOTE, pushed())))[b"--content-type"] == b"binary/octet-stream"
    line = language.push_line(REMOTE, pushed(takes=Belongings({"content-type": "text/plain"})))
    assert dict(flags_of(line))[b"--content-type"] == b"text/plain"


def test_what_the_source_had_and_the_job_wants_is_on_the_line():
    remote = dataclasses.replace(
        REMOTE,
        storage_class="STANDARD_IA",
        acl="bucket-owner-full-control",
        sse="aws:kms",
        sse_kms_key_id="k/1",
    )
    content = {
        "content-type": "text/html",
        "content-encoding": "gzip",
        "cache-control": "no-store",
        "expires": "Wed, 02 Jan 2030 03:04:05 GMT",
    }

    line = language.push_line(remote, pushed(takes=Belongings(content, {"Mtime": "1.5", "empty": ""})))

    assert flags_of(line) == [
        (b"--concurrency", b"1"),
        (b"--part-size", b"5"),
        (b"--storage-class", b"STANDARD_IA"),
        (b"--acl", b"bucket-owner-full-control"),
        (b"--sse", b"aws:kms"),
        (b"--sse-kms-key-id", b"k/1"),
        (b"--content-type", b"text/html"),
        (b"--content-encoding", b"gzip"),
        (b"--cache-control", b"no-store"),
        (b"--expires", b"2030-01-02T03:04:05Z"),
        (b"--metadata", b"mtime=1.5"),
        (b"--metadata", b"empty="),
    ]


@pytest.mark.parametrize(
    ("size", "concurrency", "part_mib"),
    [(0, 1, 1), (1, 1, 1), (MIB + 1, 1, 2), (16 * MIB, 1, 16), (16 * MIB + 1, 4, 16), (1 << 40, 4, 16)],
)
def test_a_pull_is_one_get_unless_the_object_is_large(size, concurrency, part_mib):
    line = language.pull_line("archive", Transfer("1.obj", b"k", size))

    assert f"--concurrency {concurrency} --part-size {part_mib} ".encode() in line


def test_a_pull_comes_in_smaller_ranges_where_it_is_asked_to_and_nothing_went_wrong():
    first, again = (Transfer("1.obj", b"k", 8 * MIB, whole=whole) for whole in (False, True))

    assert b"--concurrency 6 --part-size 2 " in language.pull_line("archive", first, 6, 2 * MIB - 1)
    assert b"--concurrency 1 --part-size 8 " in language.pull_line("archive", again, 6, 2 * MIB - 1)


@example(60_000 * MIB, 6 * MIB)
@example(60_000 * MIB - 1, 6 * MIB)
@given(st.integers(0, 50 << 40), st.one_of(st.none(), st.integers(1, 6 << 30)))
def test_the_part_size_is_one_that_s5cmd_keeps(size, wanted):
    part_size = language.upload_part_size(size, wanted)

    assert part_size % MIB == 0
    assert part_size >= 5 * MIB
    assert part_size >= min(wanted or 0, language.PUT_BYTES_MAX)
    assert size // part_size < 10_000
    assert part_size == language.upload_part_size(size, part_size)
    parts = language.expected_parts(size, part_size)
    assert parts is None if size <= part_size else 2 <= (parts or 0) <= 10_000


def test_without_a_part_size_an_object_is_one_put_as_long_as_s3_takes_it():
    for size in (0, 5 * MIB, 200 * MIB + 1, 5 << 30):
        assert language.expected_parts(size, language.upload_part_size(size, None)) is None
    assert language.expected_parts((5 << 30) + 1, language.upload_part_size((5 << 30) + 1, None)) == 2


def test_c10_arguments_and_environment_are_exactly_what_the_batch_needs(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-secret-for-tests")
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://elsewhere")

    assert language.argv(Path("/opt/s5cmd"), REMOTE, 7, "/proc/self/fd/5") == [
        "/opt/s5cmd", "--json", "--numworkers", "7", "--retry-count", "2",
        "--endpoint-url", "http://10.20.1.20:8080", "run", "/proc/self/fd/5",
    ]  # fmt: skip
    assert language.environment(REMOTE) == {
        "PATH": "/usr/bin:/bin",
        "HOME": "/nonexistent",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": "/run/s5jtd/source.credentials",
        "AWS_PROFILE": "s5jtd",
        "AWS_REGION": "snow",
        "GOGC": "400",
    }


def test_an_anonymous_side_behind_a_proxy_with_its_own_authority_is_told_so():
    remote = Remote(
        "open",
        None,
        None,
        None,
        verify_tls=False,
        ca_bundle=Path("/etc/s5jtd/ca.pem"),
        proxy="http://proxy:3128",
    )

    argv = language.argv(Path("/opt/s5cmd"), remote, 2, "f")
    env = language.environment(remote)

    assert {"--no-verify-ssl", "--no-sign-request"} <= set(argv)
    assert "--endpoint-url" not in argv
    assert "http://proxy:3128" == env["HTTPS_PROXY"] == env["HTTP_PROXY"]
    assert env["AWS_CA_BUNDLE"] == "/etc/s5jtd/ca.pem"
    assert not {"AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_REGION"} & env.keys()


def test_a_success_names_its_transfer_by_the_local_end():
    pull = read_line(
        b'{"operation":"cp","success":true,"source":"s3://b/1.obj","destination":"2.obj","object":{}}'
    )
    push = read_line(
        b'{"operation":"cp","success":true,"source":"1.obj","destination":"s3://b/2.obj","object":{}}'
    )

    assert isinstance(pull, Success)
    assert isinstance(push, Success)
    assert Outcome("2.obj") == outcome_of(pull, Direction.PULL, NAMES)
    assert Outcome("1.obj") == outcome_of(push, Direction.PUSH, NAMES)
    assert outcome_of(pull, Direction.PUSH, NAMES) is None


@given(hostile_keys.map(lambda key: key.decode("utf-8", "replace")))
def test_an_error_names_its_transfer_whatever_the_key_says(key):
    error = "NoSuchKey: gone status code: 404, request id: 1, host id: 2"
    gone = Outcome("1f.obj", Failure.GONE, error)

    assert gone == outcome_of(Error(f"cp s3://b/{key} 1f.obj", error), Direction.PULL, NAMES)
    assert gone == outcome_of(Error(f"cp --raw=true s3://b/{key} 1f.obj", error), Direction.PULL, NAMES)
    assert gone == outcome_of(Error(f"cp 1f.obj s3://b/{key}", error), Direction.PUSH, NAMES)


@given(hostile_keys.map(lambda key: key.decode("utf-8", "replace")), header_values)
@example("x 2.obj s3://b/y", "z")
@example("y", "a=b 2.obj s3://b/y")
def test_an_echo_with_flags_names_its_transfer_or_nobody(key, value):
    echo = f"cp --storage-class=X --metadata=a={value}  --raw=true --content-type={value} 1f.obj s3://b/{key}"

    outcome = outcome_of(Error(echo, "given object 1f.obj not found"), Direction.PUSH, NAMES)

    assert outcome is None or outcome.name == "1f.obj"
    if ".obj" not in key + value:
        assert outcome == Outcome("1f.obj", Failure.LOCAL, "given object 1f.obj not found")


def test_an_answer_about_a_stranger_is_about_nobody():
    for command in ("", "cp", "cp ", "run", "cp s3://b/k 9.obj", "cp 9.obj s3://b/1.obj"):
        for direction in Direction:
            if command.split(" ")[-1] not in NAMES:
                assert outcome_of(Error(command, "x"), direction, NAMES) is None


@given(st.binary())
@example(b"[" * 60_000)
@example(b'{"error":"\\ud800","command":"cp"}')
@example(b'{"error":1' + b"0" * 5000 + b"}")
@example(b'{"operation":"cp","success":1,"source":"1.obj","destination":"2.obj"}')
@example(b'{"error":"x","command":["cp"]}')
@example('{"error":"\x85"}'.encode())
def test_no_line_makes_the_reader_raise_or_vouches_by_accident(line):
    answer = read_line(line)

    assert not isinstance(answer, Success)
    if isinstance(answer, Error | Other):
        presentable(answer.message).encode()


def answered(text: str, status: int) -> str:
    return f"{text} status code: {status}, request id: 6D5402EA5CA6C9C6, host id: NkQ1NDA="


def unsent(text: str) -> str:
    return f'RequestError: send request failed caused by: Get "http://10.20.1.20:8080/archive/k": {text}'


# As s5cmd 2.3.0 wrote them, talking to moto, to rclone, to nobody, and to full and read-only disks; the
# texts of servers are more hostile here than any seen.
MESSAGES = [
    (Failure.GONE, answered("NoSuchKey: ", 404)),
    (Failure.GONE, answered("NoSuchKey: The specified key does not exist.", 404)),
    (Failure.BUCKET, answered("NoSuchBucket: The specified bucket does not exist", 404)),
    (Failure.BUCKET, answered("PermanentRedirect: use the other one", 301)),
    (Failure.BUCKET, answered("Found: Found", 302)),
    (Failure.CREDENTIALS, answered("SignatureDoesNotMatch: Check your key and signing method.", 403)),
    (Failure.CREDENTIALS, answered("ExpiredToken: The provided token has expired.", 400)),
    (Failure.CREDENTIALS, "NoCredentialProviders: no valid providers in chain. Deprecated. For verbose ..."),
    (Failure.REFUSED, answered("AccessDenied: Access Denied", 403)),
    (Failure.REFUSED, answered("EntityTooLarge: too large", 400)),
    (Failure.REFUSED, answered("NotImplemented: no such header", 501)),
    (Failure.ENDPOINT, unsent("dial tcp 10.20.1.20:8080: connect: connection refused")),
    (Failure.ENDPOINT, unsent("dial tcp: lookup nosuch.invalid on 10.255.255.53:53: no such host")),
    (Failure.ENDPOINT, unsent("http: server gave HTTP response to HTTPS client")),
    (Failure.ENDPOINT, unsent("read tcp 10.20.1.1:34110->10.20.1.20:8080: read: connection reset by peer")),
    (
        Failure.ENDPOINT,
        unsent("tls: failed to verify certificate: x509: certificate signed by unknown authority"),
    ),
    (Failure.ENDPOINT, answered("ServiceUnavailable: Service Unavailable", 503)),
    (Failure.ENDPOINT, answered("SlowDown: Please reduce your request rate.", 503)),
    (Failure.ENDPOINT, answered("XMinioStorageFull: Storage backend has reached its minimum", 507)),
    (Failure.ENDPOINT, answered("SerializationError: failed to unmarshal error message", 403)),
    (
        Failure.ENDPOINT,
        answered("MultipartUpload: upload multipart failed upload id: a caused by: InternalError: x", 500),
    ),
    (Failure.ENDPOINT, "unexpected EOF"),
    (Failure.ENDPOINT, "read tcp 127.0.0.1:34110->127.0.0.1:1: read: connection reset by peer"),
    (Failure.SPACE, "write 1f.obj3030718647: no space left on device"),
    (Failure.SPACE, "open 1f.obj3030718647: disk quota exceeded"),
    (Failure.LOCAL, "open 1f.obj4040629929: read-only file system"),
    (Failure.LOCAL, "rename 1f.obj2443185911 1f.obj: no such file or directory"),
    (Failure.LOCAL, "given object 1f.obj not found"),
    (Failure.LOCAL, unsent("read 1f.obj: input/output error")),
    (Failure.OTHER, "ConfigError: part size must be at least 5242880 bytes"),
    # A 404 that is not S3's own word for a missing key must never look like a missing object.
    (Failure.OTHER, answered("NotFound: Not Found", 404)),
    (Failure.OTHER, "something new"),
    (Failure.OTHER, ""),
    (
        Failure.REFUSED,
        answered(answered("AccessDenied: NoSuchKey: x", 404) + ": open x: no space left on device", 403),
    ),
    (Failure.ENDPOINT, answered("InternalError: x", 500) + ": open x: no space left on device"),
]


@pytest.mark.parametrize(("failure", "message"), MESSAGES)
def test_a_message_is_sorted_by_who_must_react(failure, message):
    for direction, command in ((Direction.PULL, "cp s3://b/k 1.obj"), (Direction.PUSH, "cp 1.obj s3://b/k")):
        outcome = outcome_of(Error(command, message), direction, NAMES)

        assert outcome == Outcome("1.obj", failure, message)


def test_a_long_message_is_cut_for_people_but_judged_whole():
    message = f"AccessDenied: {'x' * 3000} status code: 403, request id: 1, host id: 2"

    outcome = outcome_of(Error("cp s3://b/k 1.obj", message), Direction.PULL, NAMES)

    assert outcome == Outcome("1.obj", Failure.REFUSED, message[:500])


def test_messages_carry_no_secrets():
    said = presentable(
        'Get "http://user:fake-secret-for-tests@proxy:3128/": Authorization AWS4-HMAC-SHA256'
        " Credential=FAKEACCESSKEY/2026/snow/s3/aws4_request, Signature=59908ed04e"
        " X-Amz-Security-Token: FAKETOKEN"
    )

    for secret in ("fake-secret-for-tests", "FAKEACCESSKEY", "59908ed04e", "FAKETOKEN"):
        assert secret not in said
    assert 'Get "http://***@proxy:3128/"' in said
