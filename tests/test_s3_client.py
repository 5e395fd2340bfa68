"""Requests, heads and read-backs against real servers, and against servers that lie."""

import base64
import contextlib
import gzip
import hashlib
import logging
import os
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote_to_bytes

import pytest

from s5jtd.errors import EndpointDown, EndpointRefused, ObjectChanged, ObjectGone, ObjectRefused, S5jtError
from s5jtd.model import Direction
from s5jtd.s3.address import Address, locate
from s5jtd.s3.client import S3Client
from s5jtd.s3.credentials import CredentialProvider, Credentials, CredentialSource
from s5jtd.s3.heads import head, read_back
from s5jtd.s3.refusals import Answer, Place, refusal
from s5jtd.s3.transport import Link
from tests.servers import (
    ODD_KEYS,
    RCLONE_REFUSES,
    RCLONE_RENAMES,
    SECRET_KEY,
    Asked,
    Reply,
    ToldServer,
    listing,
    make_certificates,
    provider,
    refused,
)

MIB = 1 << 20
FOUND = {"ETag": '"abc"', "Last-Modified": "Wed, 01 May 2024 10:20:30 GMT"}
HASTY = Link(connect_seconds=2, read_seconds=0.2)
PLACE = Place("http://h:1", "b", b"key", "profile p", "us-east-1")


# --- Keys


def test_every_odd_key_reads_back_from_moto(moto):
    bucket = moto.new_bucket()
    moto.fill(bucket, {key: b"of " + key for key in ODD_KEYS})
    client = moto.client(bucket)

    read = {key: b"".join(read_back(client, key, if_match=None)) for key in ODD_KEYS}

    assert {key: b"of " + key for key in ODD_KEYS} == read


def test_every_odd_key_that_rclone_holds_is_signed_so_that_it_agrees(rclone):
    keys = set(ODD_KEYS) - RCLONE_REFUSES - RCLONE_RENAMES
    bucket = rclone.new_bucket()
    rclone.fill(bucket, {key: b"of " + key for key in keys})
    client = rclone.client(bucket, region="snow")

    etags = {key: head(client, key).etag for key in keys}

    assert {key: hashlib.md5(b"of " + key).hexdigest() for key in keys} == etags


@pytest.mark.parametrize("proxied", [False, True], ids=["direct", "through a forwarding proxy"])
def test_a_key_stands_in_the_request_line_byte_for_byte(proxied):
    keys = [*ODD_KEYS, b"\xff\xfe not UTF-8", b"\x00"]
    with ToldServer(lambda asked: Reply(200, b"", FOUND)) as server:
        client = server.client()
        if proxied:
            client = server.client(endpoint_url="http://s3.invalid:8080", link=Link(proxy=server.url))
        for key in keys:
            client.request("GET", key)

    start = "http://s3.invalid:8080/bucket/" if proxied else "/bucket/"
    assert [start] * len(keys) == [asked.target[: len(start)] for asked in server.asked]
    assert keys == [unquote_to_bytes(asked.target[len(start) :]) for asked in server.asked]
    assert {"s3.invalid:8080" if proxied else server.url[7:]} == {a.headers["host"] for a in server.asked}


@pytest.mark.parametrize(
    ("bucket", "options", "expected"),
    [
        ("b-1", {}, Address("https", "b-1.s3.us-east-1.amazonaws.com", 443, "", "us-east-1", "s3")),
        ("b.1", {}, Address("https", "s3.us-east-1.amazonaws.com", 443, "/b.1", "us-east-1", "s3")),
        (
            "b-1",
            {"region": "cn-north-1"},
            Address("https", "b-1.s3.cn-north-1.amazonaws.com.cn", 443, "", "cn-north-1", "s3"),
        ),
        (
            "b-1",
            {"endpoint_url": "http://10.1.2.3:8080/", "region": "snow"},
            Address("http", "10.1.2.3", 8080, "/b-1", "snow", "s3"),
        ),
        (
            "b-1",
            {"endpoint_url": "https://[::1]:8443"},
            Address("https", "::1", 8443, "/b-1", "us-east-1", "s3"),
        ),
        (
            "b-1",
            {"endpoint_url": "http://store.example", "addressing": "virtual"},
            Address("http", "b-1.store.example", 80, "", "us-east-1", "s3"),
        ),
        (
            "arn:aws:s3:us-west-2:123456789012:accesspoint/ap",
            {},
            Address(
                "https", "ap-123456789012.s3-accesspoint.us-west-2.amazonaws.com", 443, "", "us-west-2", "s3"
            ),
        ),
        (
            "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01234567890123456/accesspoint/ap",
            {"endpoint_url": "https://vpce.example"},
            Address(
                "https",
                "ap-123456789012.op-01234567890123456.vpce.example",
                443,
                "",
                "us-west-2",
                "s3-outposts",
            ),
        ),
    ],
)
def test_a_bucket_is_where_botocore_says(bucket, options, expected, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.invalid")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")

    assert expected == locate(
        bucket, **{"endpoint_url": None, "region": None, "addressing": "auto", **options}
    )


@pytest.mark.parametrize(
    ("bucket", "url"),
    [
        ("b-1", "10.1.2.3:8080"),
        ("b-1", "ftp://h"),
        ("b-1", "http://"),
        ("b-1", "http://h:99999"),
        ("b-1", "http://h/path"),
        ("b-1", "http://h?query"),
        ("b-1", "http://user:hunter2@h"),
        ("in valid", "http://h"),
        ("arn:aws:s3::123456789012:accesspoint/x.mrap", None),
        ("b--use1-az4--x-s3", None),
    ],
)
def test_what_is_no_address_is_refused_with_a_hint_and_without_its_password(bucket, url):
    with pytest.raises(EndpointRefused) as caught:
        locate(bucket, endpoint_url=url, region=None, addressing="auto")

    assert caught.value.hint
    assert "hunter2" not in str(caught.value) + caught.value.hint


# --- What answers mean


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (500, "InternalError", EndpointDown),
        (503, "SlowDown", EndpointDown),
        (429, "TooManyRequests", EndpointDown),
        (400, "RequestTimeout", EndpointDown),
        (502, "", EndpointDown),
        (501, "NotImplemented", ObjectRefused),
        (403, "InvalidAccessKeyId", EndpointRefused),
        (403, "SignatureDoesNotMatch", EndpointRefused),
        (400, "ExpiredToken", EndpointRefused),
        (403, "RequestTimeTooSkewed", EndpointRefused),
        (404, "NoSuchBucket", EndpointRefused),
        (400, "AuthorizationHeaderMalformed", EndpointRefused),
        (301, "PermanentRedirect", EndpointRefused),
        (404, "NoSuchKey", ObjectGone),
        (404, "NoSuchVersion", ObjectGone),
        (412, "PreconditionFailed", ObjectChanged),
        (403, "AccessDenied", ObjectRefused),
        (403, "InvalidObjectState", ObjectRefused),
        (416, "InvalidRange", ObjectRefused),
        (400, "KeyTooLongError", ObjectRefused),
    ],
)
def test_status_and_code_say_who_must_react(status, code, expected):
    body = refused(status, code, "words").body if code else b""

    assert type(refusal(Answer(status, {}, body), PLACE)) is expected


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidArgument", "NotImplemented", "MethodNotAllowed"])
def test_what_a_bucket_is_refused_is_the_endpoints_matter(code):
    place = Place("http://h:1", "b", None, "profile p", "us-east-1")

    error = refusal(Answer(403 if code == "AccessDenied" else 400, {}, refused(400, code).body), place)

    assert type(error) is EndpointRefused
    assert error.hint


def test_the_right_region_is_the_hint():
    by_header = refusal(Answer(301, {"x-amz-bucket-region": "eu-west-3"}), PLACE)
    body = refused(400, "AuthorizationHeaderMalformed", Region="eu-west-3").body
    by_body = refusal(Answer(400, {}, body), PLACE)

    assert [by_header.hint, by_body.hint] == ["set `region: eu-west-3`"] * 2


def test_a_skewed_clock_is_told_with_its_seconds():
    times = {"RequestTime": "20240501T100000Z", "ServerTime": "2024-05-01T10:25:00Z"}

    error = refusal(Answer(403, {}, refused(403, "RequestTimeTooSkewed", **times).body), PLACE)

    assert "by 1500 s" in str(error)
    assert "timedatectl" in error.hint


def test_an_error_is_understood_although_it_repeats_a_key_that_xml_cannot_carry():
    body = b"<Error><Code>NoSuchKey</Code><Message>no</Message><Key>&#x1;</Key></Error>"

    assert isinstance(refusal(Answer(404, {}, body), PLACE), ObjectGone)


def test_what_a_server_says_cannot_speak_to_the_terminal_or_fill_it():
    body = refused(500, "X" * 5000, "\x9b31m" + "\n" * 9 + "words " * 1000).body

    message = str(refusal(Answer(500, {}, body), PLACE))

    assert message.isprintable()
    assert len(message) < 700


def test_entities_in_an_error_are_not_expanded():
    bomb = b'<!DOCTYPE x [<!ENTITY a "NoSuchKey">]><Error><Code>&a;</Code></Error>'

    assert isinstance(refusal(Answer(404, {}, bomb), PLACE), EndpointDown)


# --- Missing, refused, changed: real servers


@pytest.mark.parametrize("name", ["moto", "rclone"])
def test_a_missing_key_is_gone_and_a_missing_bucket_is_refused(name, request):
    server = request.getfixturevalue(name)
    client, bucketless = server.client(server.new_bucket()), server.client("no-such-bucket")

    for ask in (head, lambda client, key: list(read_back(client, key, if_match=None))):
        with pytest.raises(ObjectGone):
            ask(client, b"not there")
        with pytest.raises(EndpointRefused, match="no such bucket"):
            ask(bucketless, b"not there")


@pytest.mark.parametrize(
    ("access_key", "secret_key", "hint"),
    [
        ("FAKEACCESSKEY", "another-fake-secret", "secret access key"),
        ("FAKEOTHERKEY", SECRET_KEY, "for this endpoint"),
    ],
)
def test_wrong_credentials_are_the_endpoints_refusal_also_where_head_says_nothing(
    rclone, access_key, secret_key, hint
):
    client = S3Client(
        rclone.new_bucket(), credentials=provider(access_key, secret_key), endpoint_url=rclone.url
    )

    for method in ("HEAD", "GET"):
        with pytest.raises(EndpointRefused) as caught:
            client.request(method, b"key")
        assert hint in caught.value.hint
        assert secret_key not in repr(caught.value)


def test_a_replaced_object_is_not_read_back(moto):
    bucket = moto.new_bucket()
    moto.fill(bucket, {b"key": b"old"})
    old = head(moto.client(bucket), b"key").etag
    moto.fill(bucket, {b"key": b"new"})

    with pytest.raises(ObjectChanged):
        list(read_back(moto.client(bucket), b"key", if_match=old))


def test_a_replaced_object_is_noticed_where_if_match_is_ignored():
    with ToldServer(lambda asked: Reply(200, b"new", FOUND)) as server, pytest.raises(ObjectChanged):
        list(read_back(server.client(), b"key", if_match="def"))

    assert server.asked[0].headers["if-match"] == '"def"'


@pytest.mark.parametrize("body_status", [200, 403], ids=["may list", "may not list"])
@pytest.mark.parametrize(
    ("status", "expected"), [(404, ObjectGone), (403, ObjectRefused), (400, ObjectRefused)]
)
def test_a_mute_refusal_is_the_keys_where_the_bucket_is_well(status, expected, body_status):
    def reply(asked: Asked) -> Reply:
        if asked.method == "HEAD":
            return Reply(status)
        return Reply(200, listing({})) if body_status == 200 else refused(403, "AccessDenied")

    with ToldServer(reply) as server, pytest.raises(expected):
        head(server.client(), b"key")


@pytest.mark.parametrize("status", [400, 403, 404])
@pytest.mark.parametrize(
    ("bucket_says", "expected"),
    [
        (refused(404, "NoSuchBucket"), EndpointRefused),
        (refused(403, "ExpiredToken"), EndpointRefused),
        (refused(503, "SlowDown"), EndpointDown),
        (Reply(200, b"<html><body>Please log in</body></html>"), EndpointDown),
        (Reply(200, b"anything", cut_bytes=3), EndpointDown),
    ],
)
def test_a_mute_refusal_never_makes_an_object_gone_where_the_bucket_is_not_well(
    status, bucket_says, expected
):
    def reply(asked: Asked) -> Reply:
        return Reply(status) if asked.method == "HEAD" else bucket_says

    with ToldServer(reply) as server, pytest.raises(expected):
        head(server.client(), b"key")


@pytest.mark.parametrize("status", [200, 404, 403, 302])
def test_a_captive_portal_is_an_endpoint_that_is_down(status):
    page = Reply(status, b"<html><br>Log in</html>", {"Location": "http://portal.invalid/login"})
    with ToldServer(lambda asked: page) as server:
        for method in ("HEAD", "GET"):
            if (method, status) == ("GET", 200):
                continue  # any bytes may be an object's; their checksum tells
            with pytest.raises(EndpointDown):
                head(server.client(), b"k") if method == "HEAD" else server.client().request("GET", b"k")


def test_a_redirect_is_not_followed_with_a_signature():
    with ToldServer(lambda asked: Reply(200, b"", FOUND)) as other:
        away = Reply(307, b"", {"Location": f"{other.url}/bucket/key"})
        with (
            ToldServer(lambda asked: away) as server,
            pytest.raises(EndpointDown, match=r"sends us on to 127"),
        ):
            server.client().request("GET", b"key")

    assert other.asked == []


def test_refused_credentials_are_read_again(tmp_path):
    (tmp_path / "keys").write_text("[default]\naws_access_key_id = OLD\naws_secret_access_key = fake-old\n")
    source = CredentialProvider(
        CredentialSource(systemd="keys"), environ={"CREDENTIALS_DIRECTORY": str(tmp_path)}
    )
    status = os.stat(tmp_path / "keys")

    def reply(asked: Asked) -> Reply:
        known = "Credential=NEW/" in asked.headers["authorization"]
        return Reply(200, b"", FOUND) if known else refused(403, "InvalidAccessKeyId")

    with ToldServer(reply) as server:
        client = server.client(credentials=source)
        with pytest.raises(EndpointRefused):
            client.request("GET", b"key")
        # The same name, size and time: nothing but the refusal tells that it changed.
        (tmp_path / "keys").write_text(
            "[default]\naws_access_key_id = NEW\naws_secret_access_key = fake-new\n"
        )
        os.utime(tmp_path / "keys", ns=(status.st_atime_ns, status.st_mtime_ns))

        assert client.request("GET", b"key").status == 200


# --- Connections


def test_an_anonymous_request_carries_no_signature():
    with ToldServer(lambda asked: Reply(200, b"", FOUND)) as server:
        anonymous = CredentialProvider(CredentialSource(anonymous=True))
        server.client(credentials=anonymous).request("GET", b"key")

    assert not {"authorization", "x-amz-date", "x-amz-content-sha256"} & server.asked[0].headers.keys()


def test_requests_share_a_connection_whatever_they_were_answered():
    def reply(asked: Asked) -> Reply:
        return refused(404, "NoSuchKey") if "gone" in asked.target else Reply(200, b"body", FOUND)

    with ToldServer(reply) as server:
        client = server.client()
        for method, key in [("HEAD", b"a"), ("GET", b"a"), ("GET", b"gone"), ("HEAD", b"b"), ("GET", b"b")]:
            with contextlib.suppress(ObjectGone):
                client.request(method, key)

    assert (len(server.asked), server.connections) == (5, 1)


def test_a_connection_that_the_server_closed_meanwhile_is_opened_anew():
    hanging_up = Reply(200, b"body", FOUND, cut_bytes=4)
    with ToldServer(lambda asked: hanging_up) as server:
        client = server.client()

        assert [client.request("GET", b"key").body for _ in range(5)] == [b"body"] * 5


def test_a_request_that_met_a_closing_connection_is_sent_once_more():
    replies = iter([Reply(200, b"1", FOUND), Reply(hangs_up=True), Reply(200, b"2", FOUND)])
    with ToldServer(lambda asked: next(replies)) as server:
        client = server.client()

        assert [client.request("GET", b"key").body for _ in range(2)] == [b"1", b"2"]


def test_a_server_that_always_hangs_up_is_down():
    with ToldServer(lambda asked: Reply(hangs_up=True)) as server:
        with pytest.raises(EndpointDown, match="without response"):
            server.client().request("GET", b"key")

        assert len(server.asked) == 2


def test_threads_share_a_client(moto):
    bucket = moto.new_bucket()
    moto.fill(bucket, {b"%d" % n: b"x" * n for n in range(10)})
    client = moto.client(bucket)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda n: head(client, b"%d" % (n % 10)).size, range(80)))

    assert [n % 10 for n in range(80)] == sizes


def test_the_environment_does_not_lead_elsewhere(moto, monkeypatch):
    bucket = moto.new_bucket()
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert moto.client(bucket).request("GET").status == 200


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_nobody_listens():
    client = S3Client("b-1", credentials=provider(), endpoint_url=f"http://127.0.0.1:{closed_port()}")

    with pytest.raises(EndpointDown, match="Connection refused"):
        client.request("GET", b"key")


def test_a_name_that_does_not_resolve():
    client = S3Client("b-1", credentials=provider(), endpoint_url="http://s3.invalid")

    with pytest.raises(EndpointDown, match="does not resolve"):
        client.request("GET", b"key")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_silence_ends_after_the_read_timeout(method):
    over = threading.Event()
    with ToldServer(lambda asked: Reply(silence=over)) as server:
        with pytest.raises(EndpointDown, match=r"no answer for 0\.2 s"):
            server.client(link=HASTY).request(method, b"key")
        over.set()


def test_a_body_that_breaks_off_is_an_error_and_never_a_short_object():
    short = Reply(200, b"x" * 1000, FOUND, cut_bytes=300)
    with ToldServer(lambda asked: short) as server, pytest.raises(EndpointDown):
        list(read_back(server.client(), b"key", if_match="abc"))


def test_a_stream_that_is_left_early_costs_a_connection_and_no_more():
    with ToldServer(lambda asked: Reply(200, b"x" * 10 * MIB, FOUND)) as server:
        client = server.client()
        with client.stream("GET", b"key") as stream:
            assert next(iter(stream))[:1] == b"x"

        assert len(client.request("GET", b"key").body) == 10 * MIB
    assert server.connections == 2


def test_an_answer_without_end_does_not_fill_the_memory():
    endless = Reply(200, b"x" * 17 * MIB, FOUND)
    with ToldServer(lambda asked: endless) as server, pytest.raises(EndpointDown, match="no end"):
        server.client().request("GET")


def test_a_local_address_to_leave_from():
    with ToldServer(lambda asked: Reply(200, b"", FOUND)) as server:
        assert server.client(link=Link(bind="127.0.0.2")).request("GET", b"key").status == 200

        with pytest.raises(EndpointDown) as caught:
            server.client(link=Link(bind="192.0.2.1")).request("GET", b"key")
        assert caught.value.hint == "check `bind: 192.0.2.1`"
        with pytest.raises(EndpointDown):
            server.client(link=Link(bind="no-such-device")).request("GET", b"key")


def test_debug_logs_hold_no_token(caplog):
    keys = Credentials("FAKEKEY", "fake-secret", "fake-session-token")
    caplog.set_level(logging.DEBUG)
    with ToldServer(lambda asked: Reply(200, b"", FOUND)) as server:
        server.client(credentials=CredentialProvider(CredentialSource(keys=keys))).request("GET", b"key")

    assert server.asked[0].headers["x-amz-security-token"] == "fake-session-token"
    assert "fake-session-token" not in caplog.text


def test_every_request_is_observed_once_its_answer_was_read():
    seen: list[S5jtError | None] = []
    replies = iter([Reply(200, b"x", FOUND), Reply(200, b"xyz", FOUND, cut_bytes=1), Reply(500), Reply(403)])
    with ToldServer(lambda asked: next(replies, refused(404, "NoSuchBucket"))) as server:
        client = server.client()
        client.observe = seen.append
        for _ in range(4):
            with contextlib.suppress(S5jtError):
                client.request("GET", b"key")

    assert [type(None), EndpointDown, EndpointDown, EndpointRefused] == [type(one) for one in seen]


# --- TLS and proxies


def test_a_sites_own_ca_is_trusted_where_it_is_named(rclone_tls):
    bucket = rclone_tls.new_bucket()

    assert rclone_tls.client(bucket, link=Link(ca_bundle=rclone_tls.ca_bundle)).request("GET").status == 200


def test_without_the_ca_the_hint_names_the_setting(rclone_tls):
    with pytest.raises(EndpointRefused, match="not trusted") as caught:
        rclone_tls.client("bucket").request("GET")

    assert "tls.ca_bundle" in caught.value.hint


def test_without_verification_any_certificate_will_do(rclone_tls):
    bucket = rclone_tls.new_bucket()

    assert rclone_tls.client(bucket, link=Link(verify_tls=False)).request("GET").status == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [({"host": "other.example"}, "IP address mismatch"), ({"expired": True}, "has expired")],
)
def test_a_certificate_that_is_not_the_servers_or_over_is_refused(tmp_path, options, words):
    certificates = make_certificates(tmp_path, **options)
    server = ToldServer(lambda asked: Reply(200), certificates)
    with server, pytest.raises(EndpointRefused, match=words):
        server.client(link=Link(ca_bundle=certificates.ca)).request("GET")

    assert server.asked == []


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_bundle_that_is_none_is_named(tmp_path, content):
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    client = S3Client(
        "b-1", credentials=provider(), endpoint_url="https://s3.invalid", link=Link(ca_bundle=bundle)
    )

    with pytest.raises(EndpointRefused, match=r"ca\.pem"):
        client.request("GET")


def test_https_to_a_plain_port(moto):
    client = S3Client("b-1", credentials=provider(), endpoint_url=moto.url.replace("http:", "https:"))

    with pytest.raises(EndpointDown) as caught:
        client.request("GET")
    assert "https" in caught.value.hint


class Tunnel:
    """A proxy that opens tunnels (CONNECT) and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        ours, _ = self._listener.accept()
        with self._listener, ours:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += ours.recv(4096)
            self.asked.append(request)
            host, _, port = request.split()[1].decode().rpartition(":")
            with socket.create_connection((host, int(port))) as theirs:
                ours.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                while True:
                    ready, _, _ = select.select([ours, theirs], [], [], 10)
                    for one in ready:
                        data = one.recv(65536)
                        if not data:
                            return
                        (theirs if one is ours else ours).sendall(data)


def test_https_goes_through_a_tunnel_and_only_the_proxy_sees_its_password(rclone_tls):
    bucket = rclone_tls.new_bucket()
    tunnel = Tunnel()
    link = Link(ca_bundle=rclone_tls.ca_bundle, proxy=f"http://user:p%40ss@127.0.0.1:{tunnel.port}")
    client = rclone_tls.client(bucket, link=link)

    assert client.request("GET").status == 200
    client.close()
    assert tunnel.asked[0].startswith(b"CONNECT 127.0.0.1:")
    assert base64.b64encode(b"user:p@ss") in tunnel.asked[0]
    assert "p%40ss" not in repr(link)


def test_a_forwarding_proxy_is_told_its_password():
    with ToldServer(lambda asked: Reply(200, b"", FOUND)) as server:
        link = Link(proxy=server.url.replace("http://", "http://user:pass@"))
        server.client(endpoint_url="http://s3.invalid", link=link).request("GET", b"key")

    assert (
        f"Basic {base64.b64encode(b'user:pass').decode()}" == server.asked[0].headers["proxy-authorization"]
    )


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_proxy_is_named_without_its_password(scheme):
    link = Link(proxy=f"http://user:hunter2@127.0.0.1:{closed_port()}")
    client = S3Client("b-1", credentials=provider(), endpoint_url=f"{scheme}://s3.invalid", link=link)

    with pytest.raises(EndpointDown, match="Connection refused") as caught:
        client.request("GET")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("proxy", ["socks5://h:1", "h:1", "http://", "http://h:x"])
def test_what_is_no_proxy_is_refused(proxy):
    client = S3Client("b-1", credentials=provider(), endpoint_url="http://s3.invalid", link=Link(proxy=proxy))

    with pytest.raises(EndpointRefused, match="proxy"):
        client.request("GET")


# --- Heads


def put_in_parts(server, bucket: str, key: str, parts: list[bytes], **options) -> None:
    boto = server.boto()
    upload = boto.create_multipart_upload(Bucket=bucket, Key=key, **options)["UploadId"]
    where = {"Bucket": bucket, "Key": key, "UploadId": upload}
    done = [
        {"PartNumber": n, "ETag": boto.upload_part(**where, PartNumber=n, Body=part)["ETag"]}
        for n, part in enumerate(parts, 1)
    ]
    boto.complete_multipart_upload(**where, MultipartUpload={"Parts": done})


def test_the_size_of_part_one_is_told_by_who_knows_parts(moto):
    bucket = moto.new_bucket()
    put_in_parts(moto, bucket, "parts", [b"a" * 5 * MIB, b"b" * 1000])
    moto.fill(bucket, {b"whole": b"x" * 7, b"empty": b""})
    client = moto.client(bucket)

    parts, whole, empty = (head(client, key, part_number=1) for key in (b"parts", b"whole", b"empty"))

    assert (parts.size, parts.part_size, parts.parts_count) == (5 * MIB + 1000, 5 * MIB, 2)
    assert parts.etag.endswith("-2")
    assert (whole.size, whole.part_size) == (7, 7)
    assert empty.size == 0
    assert head(client, b"parts").part_size is None


def test_a_server_that_knows_no_parts_is_recognised(rclone):
    bucket = rclone.new_bucket()
    rclone.fill(bucket, {b"key": b"x" * 7})

    found = head(rclone.client(bucket), b"key", part_number=1)

    assert (found.size, found.part_size) == (7, None)


@pytest.mark.parametrize(
    ("part_answer", "part_size"),
    [
        (Reply(206, b"x" * 60, {**FOUND, "Content-Range": "bytes 0-59/100"}), 60),
        (Reply(200, b"x" * 60, {**FOUND, "x-amz-mp-parts-count": "2"}), 60),
        (Reply(200, b"x" * 100, {**FOUND, "x-amz-mp-parts-count": "2"}), None),
        (Reply(200, b"x" * 100, FOUND), None),
        (Reply(416), None),
        (Reply(400), None),
        (Reply(501), None),
    ],
)
@pytest.mark.parametrize("checksums", [False, True])
def test_the_size_is_the_whole_objects_however_parts_are_answered(
    part_answer: Reply, part_size: int | None, checksums: bool
) -> None:
    def reply(asked: Asked) -> Reply:
        if "partNumber" in asked.query:
            return part_answer
        if asked.method == "GET":
            return Reply(200, listing({}))
        return Reply(200, b"x" * 100, {**FOUND, "x-amz-checksum-crc64nvme": "AAAA"})

    with ToldServer(reply) as server:
        found = head(server.client(), b"key", part_number=1, checksums=checksums)

    assert (100, part_size) == (found.size, found.part_size)
    if checksums:
        assert found.checksums == {"crc64nvme": "AAAA"}


def test_an_object_replaced_between_two_heads_is_changed():
    def reply(asked: Asked) -> Reply:
        etag = '"new"' if "partNumber" in asked.query else '"old"'
        return Reply(200, b"x", {**FOUND, "ETag": etag})

    with ToldServer(reply) as server, pytest.raises(ObjectChanged):
        head(server.client(), b"key", part_number=1, checksums=True)


def test_a_head_tells_what_travels_with_an_object(moto):
    bucket = moto.new_bucket()
    moto.boto().put_object(
        Bucket=bucket,
        Key="key",
        Body=b"123456789",
        ChecksumAlgorithm="CRC64NVME",
        ContentType="text/plain; charset=utf-8",
        ContentLanguage="de",
        CacheControl="max-age=60",
        StorageClass="STANDARD_IA",
        Metadata={"mission": "42", "mixed-Case": "yes"},
    )

    found = head(moto.client(bucket), b"key", checksums=True)

    assert (found.size, found.etag) == (9, "25f9e794323b453885f5181f1b624d0b")
    assert found.checksums == {"crc64nvme": "rosUhgp5mIg="}
    expected = {
        "content-type": "text/plain; charset=utf-8",
        "content-language": "de",
        "cache-control": "max-age=60",
    }
    assert expected == found.content
    assert found.metadata == {"mission": "42", "mixed-case": "yes"}
    assert found.storage_class == "STANDARD_IA"
    assert found.modified_ms > 1_700_000_000_000


def test_metadata_in_utf_8_is_text_and_checksums_are_not_asked_for_unbidden():
    headers = {**FOUND, "x-amz-meta-name": "K\u00f6ln".encode().decode("latin-1"), "ETag": 'W/"weak"'}
    with ToldServer(lambda asked: Reply(200, b"xyz", headers)) as server:
        found = head(server.client(), b"key")

    assert found.metadata == {"name": "K\u00f6ln"}
    assert (found.size, found.modified_ms) == (3, 1714558830000)
    assert "x-amz-checksum-mode" not in server.asked[0].headers


@pytest.mark.parametrize(
    "headers", [{"Content-Length": "-1"}, {"Content-Length": "1e9"}, {"Content-Length": "9" * 19}]
)
def test_a_size_that_is_none_is_no_size(headers):
    with (
        ToldServer(lambda asked: Reply(200, b"", {**FOUND, **headers})) as server,
        pytest.raises(EndpointDown),
    ):
        head(server.client(), b"key")


def test_bytes_are_read_back_as_they_are_stored(moto):
    packed = gzip.compress(b"unpacked")
    bucket = moto.new_bucket()
    moto.boto().put_object(Bucket=bucket, Key="key", Body=packed, ContentEncoding="gzip")

    assert packed == b"".join(read_back(moto.client(bucket), b"key", if_match=None))


def test_what_own_requests_move_is_counted_both_ways(snowball):
    snowball.objects = {b"k": b"x" * 300_000}
    client = snowball.client()
    spent: dict[Direction, int] = dict.fromkeys(Direction, 0)

    def spend(direction: Direction, moved: int) -> float:
        spent[direction] += moved
        return 0.0

    client.spend = spend
    assert sum(map(len, read_back(client.unobserved(), b"k", if_match=None))) == 300_000

    assert 100 < spent[Direction.PUSH] < 2_000
    assert 300_000 < spent[Direction.PULL] < 302_000
