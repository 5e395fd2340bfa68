"""Listings: complete or an error, from real servers and from every kind of broken one."""

import contextlib
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s5jtd.errors import EndpointDown, EndpointRefused, S5jtError
from s5jtd.model import Learned, Listed
from s5jtd.s3.listing import Page, list_objects
from s5jtd.s3.listing_answer import Answer, NotListing
from tests.servers import (
    ODD_KEYS,
    RCLONE_REFUSES,
    RCLONE_RENAMES,
    Asked,
    Reply,
    ToldServer,
    listing,
    refused,
)

ABC = {b"a": 1, b"b": 2, b"c": 3}


def keys_of(pages: Iterable[Page]) -> list[bytes]:
    return [one.key for page in pages for one in page.objects]


def list_from(reply: Callable[[Asked], Reply], prefix: bytes = b"", **options) -> list[Page]:
    with ToldServer(reply) as server:
        return list(list_objects(server.client(), prefix, **options))


def same(reply: Reply, _asked: Asked) -> Reply:
    return reply


class Paged:
    """A well-behaved server of either version; tests take its virtues away one by one."""

    def __init__(self, keys: Iterable[bytes], *, version: int = 2, page: int = 2) -> None:
        self.keys = list(keys)
        self.version = version
        self.page = page
        self.asked: list[Mapping[str, bytes]] = []

    def __call__(self, asked: Asked) -> Reply:
        self.asked.append(asked.query)
        after = asked.query.get("continuation-token", asked.query.get("start-after", b""))
        if self.version == 1:
            after = asked.query.get("marker", b"")
        found = [key for key in self.keys if key > after and key.startswith(asked.query.get("prefix", b""))]
        shown, more = found[: self.page], len(found) > self.page
        return Reply(200, listing(dict.fromkeys(shown, 1), self.says(shown, more)))

    def says(self, shown: list[bytes], more: bool) -> dict[str, str]:
        told = {"IsTruncated": str(more).lower()}
        if self.version == 2 and more:
            told["NextContinuationToken"] = shown[-1].decode()
        return told


# --- Real servers


@pytest.mark.parametrize("version", ["auto", "1", "2"])
@pytest.mark.parametrize("page_size", [7, 1000])
def test_moto_lists_every_odd_key_byte_for_byte_and_in_order(moto, version, page_size):
    bucket = moto.new_bucket()
    moto.fill(bucket, {key: b"x" * n for n, key in enumerate(ODD_KEYS)})

    pages = list(list_objects(moto.client(bucket), b"", version=version, page_size=page_size))

    assert sorted(ODD_KEYS) == keys_of(pages)
    assert all(page.sorted for page in pages)
    assert {key: n for n, key in enumerate(ODD_KEYS)} == {
        o.key: o.size for page in pages for o in page.objects
    }


@pytest.mark.parametrize("version", ["auto", "1", "2"])
def test_rclone_lists_what_it_holds_byte_for_byte(rclone, version):
    keys = set(ODD_KEYS) - RCLONE_REFUSES - RCLONE_RENAMES
    bucket = rclone.new_bucket()
    rclone.fill(bucket, dict.fromkeys(keys, b"x"))

    pages = list(list_objects(rclone.client(bucket), b"", version=version, page_size=7))

    assert sorted(keys) == keys_of(pages)
    assert len(pages) > 1


def test_what_rclone_cannot_hold_is_as_written_down(rclone):
    client = rclone.client(rclone.new_bucket())
    taken = set()
    for key in ODD_KEYS:
        with contextlib.suppress(S5jtError):
            client.request("PUT", key)
            taken.add(key)

    listed = set(keys_of(list_objects(client, b"")))

    assert set(ODD_KEYS) - taken == RCLONE_REFUSES
    assert taken - listed == RCLONE_RENAMES


@pytest.mark.parametrize("name", ["moto", "rclone"])
@pytest.mark.parametrize("version", ["1", "2"])
def test_a_range_of_keys_is_listed_from_behind_its_start_to_its_end(name, version, request):
    server = request.getfixturevalue(name)
    bucket = server.new_bucket()
    server.fill(bucket, {b"p/%02d" % n: b"" for n in range(20)} | {b"q/00": b"", b"o/99": b""})
    client = server.client(bucket)
    server.log.clear()

    found = list_objects(client, b"p/", start_after=b"p/04", end_at=b"p/11", version=version, page_size=3)

    assert [b"p/%02d" % n for n in range(5, 12)] == keys_of(found)
    assert server.log.count("GET", kind="bucket") <= 4


def test_what_an_entry_says(moto):
    bucket = moto.new_bucket()
    moto.fill(bucket, {b"key": b"123456789"})

    (page,) = list_objects(moto.client(bucket), b"")

    (one,) = page.objects
    assert one._replace(modified_ms=0) == Listed(b"key", 9, "25f9e794323b453885f5181f1b624d0b", 0)
    assert 1_700_000_000_000 < one.modified_ms < 4_000_000_000_000


@pytest.mark.parametrize("name", ["moto", "rclone"])
def test_an_empty_bucket_is_one_empty_page_and_a_missing_one_is_refused(name, request):
    server = request.getfixturevalue(name)

    assert list(list_objects(server.client(server.new_bucket()), b"")) == [Page([], True)]
    with pytest.raises(EndpointRefused, match="no such bucket"):
        list(list_objects(server.client("no-such-bucket"), b""))


# --- Version 1, no order, no pages


def test_a_server_that_ignores_version_2_is_followed_in_version_1():
    server = Paged(ABC, version=1)

    pages = list_from(server)

    assert keys_of(pages) == [b"a", b"b", b"c"]
    assert [asked.get("list-type") for asked in server.asked] == [b"2", None]
    assert server.asked[1]["marker"] == b"b"


def test_behind_a_start_that_was_ignored_version_1_takes_it_up():
    server = Paged([b"%03d" % n for n in range(100)], version=1, page=10)

    assert keys_of(list_from(server, start_after=b"089")) == [b"%03d" % n for n in range(90, 100)]
    assert len(server.asked) == 2


@pytest.mark.parametrize("answer", [refused(400, "InvalidArgument"), refused(501, "NotImplemented")])
def test_a_server_that_refuses_version_2_is_asked_in_version_1(answer):
    old = Paged(ABC, version=1)

    def reply(asked: Asked) -> Reply:
        return answer if "list-type" in asked.query else old(asked)

    assert keys_of(list_from(reply)) == [b"a", b"b", b"c"]
    with pytest.raises(EndpointRefused):
        list_from(reply, version="2")


def test_version_1_goes_on_at_the_marker_that_is_told():
    def reply(asked: Asked) -> Reply:
        if asked.query.get("marker") == b"opaque mark":
            return Reply(200, listing({b"c": 1}))
        more = {"IsTruncated": "true", "NextMarker": "opaque%20mark"}
        return Reply(200, listing({b"a": 1, b"b": 1}, more, encoded=True))

    assert keys_of(list_from(reply, version="1")) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("version", ["auto", "1", "2"])
def test_a_listing_without_order_or_pages_is_shown_whole_and_called_unsorted(snowball, version):
    keys = [b"m/%d" % (n * 7919 % 5003) for n in range(5003)]
    snowball.objects = dict.fromkeys(keys, b"") | {b"other": b""}

    pages = list(list_objects(snowball.client(), b"m/", start_after=b"m/1", end_at=b"m/5", version=version))

    assert keys_of(pages) == [key for key in keys if b"m/1" < key <= b"m/5"]
    assert not pages[-1].sorted
    assert len([asked for asked in snowball.asked if asked.method == "GET"]) == 1


def test_an_unsorted_listing_with_pages_is_not_left_at_its_end_key():
    def reply(asked: Asked) -> Reply:
        if "continuation-token" in asked.query:
            return Reply(200, listing({b"a": 1}))
        return Reply(
            200, listing({b"c": 1, b"b": 1, b"z": 1}, {"IsTruncated": "true", "NextContinuationToken": "2"})
        )

    assert keys_of(list_from(reply, end_at=b"c")) == [b"c", b"b", b"a"]


def test_order_is_judged_by_all_keys_so_far():
    pages = list_from(lambda asked: Reply(200, listing({b"%05d" % n: 1 for n in range(25_000)} | {b"0": 1})))

    assert next(page.sorted for page in pages)
    assert not pages[-1].sorted


def test_a_listing_in_one_piece_is_shown_while_it_arrives_and_its_end_is_missed():
    whole = listing({b"%06d" % n: 1 for n in range(40_000)})
    cut = Reply(200, whole, cut_bytes=len(whole) // 2)
    with ToldServer(lambda asked: cut) as server:
        pages = list_objects(server.client(), b"")

        assert next(pages).objects[0].key == b"000000"
        with pytest.raises(EndpointDown):
            list(pages)


def test_memory_does_not_grow_with_a_listing_in_one_piece():
    whole = listing({b"some/prefix/%09d" % n: 1 for n in range(60_000)})
    with ToldServer(lambda asked: Reply(200, whole)) as server:
        client = server.client()
        client.probe()
        tracemalloc.start()
        try:
            count = sum(len(page.objects) for page in list_objects(client, b""))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert count == 60_000
    assert peak_bytes < 12 << 20


# --- What servers do to keys


@pytest.mark.parametrize("where", ["before", "behind"])
@given(keys=st.sets(st.binary(min_size=1, max_size=30), min_size=1, max_size=8))
def test_any_bytes_come_through_url_encoding_wherever_it_is_announced(where, keys):
    said = "<EncodingType>url</EncodingType>"
    entries = "".join(f"<Contents><Key>{quote_plus(k)}</Key><Size>1</Size></Contents>" for k in sorted(keys))
    inner = said + entries if where == "before" else entries + said
    answer = Answer()
    answer.feed(f"<ListBucketResult>{inner}</ListBucketResult>".encode())
    answer.close()

    assert [one.key for one in answer.take()] == sorted(keys)


def test_percent_and_plus_are_themselves_where_no_encoding_is_announced():
    keys = {b"100%25+1": 1, b"a b": 1, b"x%zz": 1, b"\xf0\x9f\x98\x80": 1, b"<&>": 1}

    assert set(keys_of(list_from(lambda asked: Reply(200, listing(keys))))) == set(keys)


def test_an_encoding_announced_too_late_is_an_error_and_not_a_wrong_key():
    keys = {b"%05d " % n: 1 for n in range(20_000)}
    with pytest.raises(EndpointDown, match="too late"):
        list_from(lambda asked: Reply(200, listing(keys, encoded=True)))


@pytest.mark.parametrize("raw", [b"\x01", b"&#1;", b"\xff", b"\x00"])
def test_a_key_that_xml_cannot_carry_is_told_clearly(raw):
    body = listing({b"KEY": 1}).replace(b"KEY", b"ab" + raw)

    with pytest.raises(EndpointRefused, match="cannot tell") as caught:
        list_from(lambda asked: Reply(200, body))
    assert "encoding-type" in caught.value.hint


def test_what_was_not_asked_for_is_left_out():
    everything = listing({b"m/1": 1, b"m/2": 1, b"n/1": 1})

    assert keys_of(list_from(lambda asked: Reply(200, everything), b"m/", start_after=b"m/1")) == [b"m/2"]


@pytest.mark.parametrize(
    ("size", "modified", "etag", "expected"),
    [
        ("0", "2024-05-01T10:20:30.400Z", '"abc-2"', Listed(b"k", 0, "abc-2", 1714558830400)),
        ("999999999999999999", "2024-05-01T10:20:30", "abc", Listed(b"k", 10**18 - 1, "abc", 1714558830000)),
        ("1", "yesterday", "", Listed(b"k", 1, "", 0)),
    ],
)
def test_what_is_not_known_of_an_object_is_left_open(size, modified, etag, expected):
    entry = f"<Key>k</Key><Size>{size}</Size><LastModified>{modified}</LastModified><ETag>{etag}</ETag>"
    body = f"<ListBucketResult><Contents>{entry}</Contents></ListBucketResult>"

    (page,) = list_from(lambda asked: Reply(200, body.encode()))

    assert page.objects == [expected]


# --- Hostile and broken servers

_ROOT = "<ListBucketResult>"
_BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"not XML",
        b'{"keys": []}',
        b"<html><body>Please log in<br></body></html>",
        b"<html></html>",
        b"<Error><Code>InternalError</Code></Error>",
        f"{_BOMB}{_ROOT}<Contents><Key>&b;</Key><Size>1</Size></Contents></ListBucketResult>".encode(),
        f'<?xml version="1.0" encoding="UTF-16"?>{_BOMB}{_ROOT}</ListBucketResult>'.encode("utf-16"),
        f"{_ROOT}<Contents><Size>1</Size></Contents></ListBucketResult>".encode(),
        f"{_ROOT}<Contents><Key>k</Key></Contents></ListBucketResult>".encode(),
        f"{_ROOT}<Contents><Key>k</Key><Size>-1</Size></Contents></ListBucketResult>".encode(),
        f"{_ROOT}<Contents><Key>k</Key><Size>{'9' * 5000}</Size></Contents></ListBucketResult>".encode(),
        f"{_ROOT}<Contents><Key>k</Key><Size>\u0663</Size></Contents></ListBucketResult>".encode(),
        f"{_ROOT}<IsTruncated>perhaps</IsTruncated></ListBucketResult>".encode(),
        f"{_ROOT}<IsTruncated>true</IsTruncated></ListBucketResult>".encode(),
        f"{_ROOT}</ListBucketResult><more/>".encode(),
        _ROOT.encode() * 400_000,
        b"<ListBucketResult><Key>" + b"x" * (3 << 20),
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_what_is_no_listing_is_an_endpoint_that_is_down(body):
    with pytest.raises(EndpointDown) as caught:
        list_from(lambda asked: Reply(200, body))

    assert caught.value.hint


@pytest.mark.parametrize(
    ("start", "endless"),
    [("", "<a>"), ("", "x"), ("<!--", "x"), ("<", "x")],
    ids=["depth", "text", "comment", "name"],
)
def test_an_element_without_end_is_given_up_before_it_fills_the_memory(start, endless):
    answer = Answer()
    answer.feed(f"{_ROOT}{start}".encode())
    data = (endless * (99_999 // len(endless))).encode()
    for _ in range(10):
        answer.feed(data)

    with pytest.raises(NotListing, match="no element ends"):
        answer.feed(data)


@pytest.mark.parametrize("length_is_told", [True, False])
def test_a_listing_cut_anywhere_is_never_a_short_listing(length_is_told):
    whole = listing(ABC)
    headers = {} if length_is_told else {"Content-Length": "", "Connection": "close"}
    with ToldServer(lambda asked: Reply()) as server:
        client = server.client()
        for cut_bytes in range(0, len(whole), 7):
            cut = Reply(200, whole if length_is_told else whole[:cut_bytes], headers, cut_bytes=cut_bytes)
            server.reply = partial(same, cut)
            with pytest.raises(EndpointDown):
                list(list_objects(client, b""))


class Circling(Paged):
    """Tells ways on that never arrive."""

    def __init__(self, tokens: Callable[[int], str], pages: Callable[[int], bytes], **options) -> None:
        super().__init__([], **options)
        self.tokens, self.pages = tokens, pages

    def __call__(self, asked: Asked) -> Reply:
        n = len(self.asked)
        self.asked.append(asked.query)
        keys = {self.pages(n): 1} if self.pages(n) else {}
        return Reply(200, listing(keys, {"IsTruncated": "true", "NextContinuationToken": self.tokens(n)}))


@pytest.mark.parametrize(
    ("tokens", "pages"),
    [
        (lambda n: "same", lambda n: b"%06d" % n),
        (lambda n: str(n % 5), lambda n: b"%06d" % n),
        (str, lambda n: b"same"),
        (str, lambda n: b"%06d" % (n % 7)),
        (str, lambda n: b""),
        (lambda n: "", lambda n: b"same"),
    ],
    ids=[
        "one token",
        "a loop of tokens",
        "one page",
        "a loop of pages",
        "empty for ever",
        "ignores the marker",
    ],
)
@pytest.mark.parametrize("version", ["auto", "2"])
def test_a_listing_that_goes_round_in_circles_ends_with_an_error(tokens, pages, version):
    server = Circling(tokens, pages)

    with pytest.raises(EndpointDown, match="circles"):
        list_from(server, version=version)
    assert len(server.asked) < 1100


def test_a_token_is_not_needed_where_keys_ascend():
    class Tokenless(Paged):
        def says(self, shown: list[bytes], more: bool) -> dict[str, str]:
            return {"IsTruncated": str(more).lower()}

    server = Tokenless(ABC)

    assert keys_of(list_from(server, version="2")) == [b"a", b"b", b"c"]


def test_without_order_and_token_there_is_no_way_on():
    body = listing({b"b": 1, b"a": 1}, {"IsTruncated": "true"})

    with pytest.raises(EndpointDown, match="does not say where"):
        list_from(lambda asked: Reply(200, body))


def test_where_it_is_not_said_a_full_page_is_followed_by_another():
    class Mute(Paged):
        def __call__(self, asked: Asked) -> Reply:
            reply = super().__call__(asked)
            said = b"<IsTruncated>true</IsTruncated>"
            return Reply(200, reply.body.replace(said, b"").replace(said.replace(b"true", b"false"), b""))

    assert keys_of(list_from(Mute(ABC), page_size=2)) == [b"a", b"b", b"c"]
    assert keys_of(list_from(Mute(ABC, version=1), version="1", page_size=2)) == [b"a", b"b", b"c"]


def test_a_key_told_twice_in_a_row_is_shown_once():
    class Overlapping(Paged):
        def __call__(self, asked: Asked) -> Reply:
            after = asked.query.get("marker", b"")
            found = [key for key in self.keys if key >= after]
            told = {"IsTruncated": str(len(found) > 2).lower()}
            return Reply(200, listing(dict.fromkeys(found[:2], 1), told))

    pages = list_from(Overlapping([b"a", b"b", b"c", b"d"]), version="1")

    assert keys_of(pages) == [b"a", b"b", b"c", b"d"]
    assert pages[-1].sorted


def test_an_error_after_some_pages_is_raised_and_not_swallowed():
    good = Paged([b"a", b"b", b"c", b"d", b"e"])
    with ToldServer(lambda asked: good(asked) if len(good.asked) < 2 else refused(503, "SlowDown")) as server:
        pages = list_objects(server.client(), b"")

        assert keys_of(islice(pages, 2)) == [b"a", b"b", b"c", b"d"]
        with pytest.raises(EndpointDown, match="SlowDown"):
            next(pages)


def test_a_listing_left_early_asks_no_more():
    server = Paged([b"%03d" % n for n in range(100)])
    with ToldServer(server) as told:
        pages = list_objects(told.client(), b"", end_at=b"003")
        assert keys_of(pages) == [b"000", b"001", b"002", b"003"]

    assert len(server.asked) <= 3


class Direct:
    """A client without a network between it and a server."""

    bucket, endpoint_url = "bucket", "http://direct"
    learned = Learned()

    def __init__(self, server: Callable[[Asked], Reply]) -> None:
        self.server = server

    def own_listing(self, *_: object) -> None:
        return None

    @contextlib.contextmanager
    def stream(
        self, method: str, key: bytes | None, query: Mapping[str, str | bytes]
    ) -> Iterator[list[bytes]]:
        sent = {name: v if isinstance(v, bytes) else v.encode() for name, v in query.items()}
        yield [self.server(Asked(method, "/", sent, {})).body]


@given(
    keys=st.sets(st.text(st.sampled_from("ab/%+ \u00e9"), min_size=1, max_size=4), max_size=25),
    page=st.integers(1, 5),
    versions=st.sampled_from([(1, "1"), (1, "auto"), (2, "2"), (2, "auto")]),
    span=st.sampled_from([("", None), ("a", None), ("ab", "b"), ("b/", "b/\u00e9"), ("b", "a")]),
)
@settings(max_examples=100)
def test_any_listing_is_the_keys_asked_for_in_order(keys, page, versions, span):
    ordered = sorted(key.encode() for key in keys)
    start, end = span[0].encode(), span[1] and span[1].encode()
    client: Any = Direct(Paged(ordered, version=versions[0], page=page))

    found = list_objects(client, b"", start_after=start, end_at=end, version=versions[1])

    assert keys_of(found) == [key for key in ordered if key > start and (end is None or key <= end)]
