"""Endpoints: the decisions as tables, then the real thing with servers that fall and rise."""

import contextlib
import threading

import pytest

from s5jtd.errors import EndpointDown, EndpointError, EndpointRefused, ObjectGone, S5jtError
from s5jtd.model import Learned
from s5jtd.s3.client import Quickest, S3Client
from s5jtd.s3.endpoints import Endpoint, Endpoints, EndpointState, Health, after_error, after_success, pick
from s5jtd.s3.transport import Link
from tests.appliance import WAIT_SECONDS
from tests.servers import Asked, Reply, SnowballLike, ToldServer, listing, provider, refused

UP, DEGRADED, DOWN, UNKNOWN = (
    EndpointState.UP,
    EndpointState.DEGRADED,
    EndpointState.DOWN,
    EndpointState.UNKNOWN,
)
ERROR = EndpointDown("it hangs", hint="look")


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- Decisions


@pytest.mark.parametrize(
    ("health", "error", "expected_state", "pause_seconds"),
    [
        (Health(), ERROR, DEGRADED, 5),
        (Health(UP), ERROR, DEGRADED, 5),
        (Health(DEGRADED, failures=1), ERROR, DEGRADED, 5),
        (Health(DEGRADED, failures=2), ERROR, DOWN, 5),
        (Health(DOWN, failures=3), ERROR, DOWN, 10),
        (Health(DOWN, failures=4), ERROR, DOWN, 20),
        (Health(DOWN, failures=9), ERROR, DOWN, 300),
        (Health(DOWN, failures=10**9), ERROR, DOWN, 300),
        (Health(UP), EndpointRefused("no"), DOWN, 30),
        (Health(DOWN, failures=9), EndpointRefused("no"), DOWN, 300),
    ],
)
def test_errors_open_the_breaker_and_each_pause_is_longer(health, error, expected_state, pause_seconds):
    found = after_error(health, error, now=1000.0, jitter=1.0)

    assert (found.state, found.probe_at - 1000) == (expected_state, pause_seconds)
    assert found.last_error == str(error)


@pytest.mark.parametrize(("jitter", "pause_seconds"), [(0.0, 2.5), (0.5, 3.75), (1.0, 5.0)])
def test_probes_of_many_appliances_spread(jitter, pause_seconds):
    assert after_error(Health(), ERROR, now=0.0, jitter=jitter).probe_at == pause_seconds


def test_what_failed_because_the_breaker_was_about_to_open_doubles_no_pause():
    opened = after_error(Health(DEGRADED, failures=2), ERROR, now=1000.0, jitter=1.0)

    assert after_error(opened, ERROR, now=1001.0, jitter=1.0) == opened


@pytest.mark.parametrize(
    "health", [Health(), Health(UP), Health(DEGRADED, 2), Health(DOWN, 9, last_error="x")]
)
def test_a_success_closes_the_breaker_from_anywhere(health):
    found = after_success(health, now=1000.0, latency_ms=8.0)

    assert found == Health(UP, latency_ms=8.0, probe_at=1060.0)


def test_latency_is_a_moving_average():
    found = Health()
    for latency_ms in (10.0, 20.0, None):
        found = after_success(found, now=0.0, latency_ms=latency_ms)

    assert found.latency_ms == 12.0


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([], None),
        ([(Health(DOWN), 0)], None),
        ([(Health(DOWN), 0), (Health(DEGRADED), 9)], 1),
        ([(Health(UP), 2), (Health(UP), 1)], 1),
        ([(Health(UP), 1), (Health(UNKNOWN), 0)], 1),
        ([(Health(UP, latency_ms=9), 1), (Health(UP, latency_ms=4), 1)], 1),
        ([(Health(UP, latency_ms=9), 0), (Health(UNKNOWN), 0)], 1),
        ([(Health(DEGRADED), 0), (Health(UP), 2)], 1),
        ([(Health(DEGRADED), 0), (Health(UP), 4)], 0),
        ([(Health(UP), 0), (Health(UP), 0)], 0),
    ],
)
def test_the_least_loaded_is_picked_and_what_failed_lately_gets_a_quarter(candidates, expected):
    assert pick(candidates) == expected


# --- Endpoints


def told(*servers: ToldServer, clock: Clock | None = None) -> Endpoints:
    clock = clock or Clock()
    return Endpoints(
        [Endpoint(server.url, server.client(), prefix=b"m/") for server in servers],
        monotonic=clock,
        wall=lambda: 1_700_000_000.0 + clock.now,
        jitter=lambda: 1.0,
    )


def well(_asked: Asked) -> Reply:
    return Reply(200, listing({}))


def ill(_asked: Asked) -> Reply:
    return refused(503, "SlowDown")


def nothing() -> None:
    pass


def test_work_is_shared_by_what_is_in_flight():
    with ToldServer(well) as one, ToldServer(well) as other:
        endpoints = told(one, other)
        with endpoints.lease() as first, endpoints.lease() as second:
            assert {first.url, second.url} == {one.url, other.url}
            assert (first.in_flight, second.in_flight) == (1, 1)

        assert [endpoint.in_flight for endpoint in endpoints.all()] == [0, 0]


def test_a_lease_ends_with_its_error():
    with ToldServer(well) as server:
        endpoints = told(server)
        with pytest.raises(ZeroDivisionError), endpoints.lease():
            raise ZeroDivisionError

    assert endpoints.all()[0].in_flight == 0


def test_a_dead_endpoint_leaves_the_work_to_the_others_and_comes_back_by_itself():
    clock = Clock()
    with ToldServer(ill) as falls, ToldServer(well) as stays:
        endpoints = told(falls, stays, clock=clock)
        assert [change.state for change in endpoints.probe_due(nothing)] == [DEGRADED, UP]
        for _ in range(2):
            clock.now += 5
            endpoints.probe_due(nothing)
        assert [shot.state for shot in endpoints.snapshot()] == [DOWN, UP]
        assert endpoints.choose() is endpoints.all()[1]

        falls.reply = well
        asked = len(falls.asked)
        clock.now += 4
        assert endpoints.probe_due(nothing) == []
        assert len(falls.asked) == asked
        clock.now += 1
        (change,) = endpoints.probe_due(nothing)

    assert (change.url, change.state, change.last_error, change.hint) == (falls.url, UP, None, "")
    assert change.since == 1_700_000_000.0 + clock.now


def test_while_all_are_down_a_lease_says_why():
    with ToldServer(lambda asked: refused(403, "InvalidAccessKeyId")) as server:
        endpoints = told(server)
        endpoints.probe_due(nothing)

        with pytest.raises(EndpointDown, match="InvalidAccessKeyId") as caught, endpoints.lease():
            pass
        assert caught.value.hint
        assert not endpoints.available()
        assert endpoints.choose() is None


def test_a_refusal_opens_the_breaker_at_once_and_is_shown_with_its_hint():
    with ToldServer(lambda asked: refused(404, "NoSuchBucket")) as server:
        endpoints = told(server)
        endpoints.probe_due(nothing)
        (shot,) = endpoints.snapshot()

    assert (shot.state, shot.url) == (DOWN, server.url)
    assert "no such bucket" in (shot.last_error or "")
    assert "bucket's name" in shot.hint
    assert shot.latency_ms is None


def test_requests_report_themselves():
    with ToldServer(ill) as server:
        endpoints = told(server)
        (endpoint,) = endpoints.all()
        for expected in (DEGRADED, DEGRADED, DOWN):
            with pytest.raises(EndpointError):
                endpoint.client.request("GET", b"key")
            assert endpoint.status().state is expected
        server.reply = well
        endpoint.client.request("GET", b"key")

    assert endpoint.status().state is UP


def test_an_object_that_is_missing_speaks_for_the_endpoint():
    with ToldServer(lambda asked: refused(404, "NoSuchKey")) as server:
        endpoints = told(server)
        (endpoint,) = endpoints.all()
        with pytest.raises(ObjectGone):
            endpoint.client.request("GET", b"key")

    assert endpoint.status().state is UP


def test_what_an_engine_met_is_reported_and_a_change_returned():
    with ToldServer(well) as server:
        endpoints = told(server)
        (endpoint,) = endpoints.all()

        changes = [endpoints.report(endpoint, error) for error in (None, None, ERROR, ERROR, ERROR, None)]

    assert [change and change.state for change in changes] == [UP, None, DEGRADED, None, DOWN, UP]
    assert changes[2] is not None
    assert (changes[2].last_error, changes[2].hint) == (str(ERROR), "look")


def test_an_endpoint_in_use_is_not_probed_and_an_idle_one_is():
    clock = Clock()
    with ToldServer(well) as server:
        endpoints = told(server, clock=clock)
        (endpoint,) = endpoints.all()
        for _ in range(4):
            clock.now += 30
            endpoint.client.request("GET", b"key")
            endpoints.probe_due(nothing)
        assert len(server.asked) == 4
        clock.now += 60
        endpoints.probe_due(nothing)

    assert len(server.asked) == 5
    assert server.asked[-1].query == {"encoding-type": b"url", "max-keys": b"1", "prefix": b"m/"}
    assert endpoint.status().latency_ms is not None


def test_how_far_it_is_is_told_by_its_quickest_answer_of_late():
    now = [0.0]
    with ToldServer(lambda asked: Reply(503 if asked.path.endswith("bad") else 404)) as server:
        (endpoint,) = (endpoints := told(server)).all()
        client = endpoint.client
        client.quickest = Quickest(lambda: now[0])

        def way() -> float | None:
            return endpoint.way_ms

        assert way() is None
        endpoints.teach(endpoint, Learned(checked_at_ms=1, latency_ms=900.0))
        with contextlib.suppress(S5jtError):
            client.request("GET", b"bad")  # it may be a proxy that says so
        assert way() == 900.0
        with contextlib.suppress(S5jtError):
            client.request("GET", b"key")
        assert client.quickest.ms is not None
        client.quickest.note(0.0)
        now[0] = 599.0
        client.quickest.note(70.0)
        assert way() == 0.0
        now[0] = 900.0  # what was quick then is no more, as after a change to a line by satellite
        assert way() == 70.0
        now[0] = 1500.0
        assert way() == 900.0


def test_a_probe_reads_little_from_a_server_without_pages():
    objects = {b"m/%06d" % n: b"" for n in range(100_000)}
    with SnowballLike(objects) as server:
        endpoints = told(server)
        endpoints.probe_due(nothing)

        assert endpoints.snapshot()[0].state is UP


def test_a_captive_portal_is_down_and_not_up():
    with ToldServer(lambda asked: Reply(200, b"<html>Log in</html>")) as server:
        endpoints = told(server)
        endpoints.probe_due(nothing)

    assert "not S3" in (endpoints.snapshot()[0].last_error or "")


def test_two_threads_do_not_probe_the_same_endpoint_at_once():
    asked, go_on = threading.Event(), threading.Event()

    def slow(_asked: Asked) -> Reply:
        asked.set()
        return Reply(200, listing({}), silence=go_on)

    with ToldServer(slow) as server:
        endpoints = told(server)
        thread = threading.Thread(target=endpoints.probe_due, args=(nothing,))
        thread.start()
        assert asked.wait(WAIT_SECONDS)
        beats: list[int] = []
        assert endpoints.probe_due(lambda: beats.append(1)) == []
        go_on.set()
        thread.join()

    assert (beats, len(server.asked)) == ([], 1)


# --- Slow ones and liars


@pytest.mark.parametrize(
    ("paces", "in_flight", "expected"),
    [
        ((10.0, 100.0, 90.0), (0, 0, 0), 1),
        ((10.0, 100.0, 90.0), (0, 1, 1), 1),  # twice the load of a quick one is less than all of a slow one
        ((60.0, 100.0, 90.0), (0, 1, 1), 0),  # a little slower is no reason
        ((10.0, 100.0, 90.0), (0, 9, 9), 0),
        ((None, 100.0, 90.0), (0, 1, 1), 0),  # only use can tell
    ],
)
def test_a_slow_endpoint_carries_as_much_as_it_can(paces, in_flight, expected):
    candidates = [(Health(UP, pace=pace), load) for pace, load in zip(paces, in_flight, strict=True)]

    assert pick(candidates) == expected


def test_what_was_slow_gets_another_chance_after_a_while():
    clock = Clock()
    with ToldServer(well) as slow, ToldServer(well) as quick:
        endpoints = told(slow, quick, clock=clock)
        first, second = endpoints.all()
        endpoints.ran(first, 1.0)
        endpoints.ran(second, 100.0)
        with endpoints.lease() as one, endpoints.lease() as two:
            assert one is two is second

        clock.now += 60
        endpoints.ran(second, 100.0)
        clock.now += 61
        with endpoints.lease() as one, endpoints.lease() as two:
            assert {one, two} == {first, second}


def test_a_liar_loses_its_share_for_long_although_it_lists_well():
    clock = Clock()
    with ToldServer(well) as liar, ToldServer(well) as honest:
        endpoints = told(liar, honest, clock=clock)
        first, second = endpoints.all()
        endpoints.probe_due(nothing)
        for pause in (60, 120):
            endpoints.judge(first, wrong=3, right=2)
            assert first.health.state is DOWN
            assert "wrong bytes" in (first.health.last_error or "")
            assert endpoints.choose() is second
            clock.now += pause - 1
            endpoints.probe_due(nothing)
            assert first.health.state is DOWN
            clock.now += 1
            endpoints.probe_due(nothing)
            assert first.health.state is UP

        endpoints.judge(first, wrong=1, right=0)  # what failed before comes alone
        assert first.health.state is DOWN
        endpoints.judge(first, wrong=0, right=9)
        assert first.health.lies == 0


@pytest.mark.parametrize(("wrong", "right"), [(2, 0), (3, 3), (0, 5)])
def test_a_few_wrong_objects_are_their_own_fault(wrong, right):
    with ToldServer(well) as one, ToldServer(well) as other:
        endpoints = told(one, other)
        endpoints.judge(endpoints.all()[0], wrong=wrong, right=right)

    assert endpoints.all()[0].health.state is not DOWN


def test_without_an_honest_endpoint_wrong_bytes_take_nobody_out():
    with ToldServer(well) as one, ToldServer(well) as other:
        alone, both = told(one), told(one, other)
        alone.judge(alone.all()[0], wrong=9, right=0)
        both.judge(both.all()[0], wrong=9, right=0)
        both.judge(both.all()[1], wrong=9, right=0)

    assert alone.available()
    assert both.choose() is both.all()[1]


def test_an_endpoint_whose_certificate_nobody_looks_at_is_called_insecure():
    def shown(url: str, *, verify: bool) -> bool:
        client = S3Client("b", credentials=provider(), endpoint_url=url, link=Link(verify_tls=verify))
        return Endpoint(url, client).status().insecure

    assert shown("https://s3.invalid", verify=False)
    assert not shown("https://s3.invalid", verify=True)
    assert not shown("http://s3.invalid", verify=False)


def test_all_are_asked_at_once_and_what_they_said_is_counted():
    clock = Clock()
    with ToldServer(ill) as one, ToldServer(well) as other:
        endpoints = told(one, other, clock=clock)
        endpoints.probe_due(nothing)
        assert endpoints.probe_due(nothing) == []
        clock.now += 1
        endpoints.probe_due(nothing, at_once=True)

    assert [(shot.errors, shot.checked_at) for shot in endpoints.snapshot()] == [
        (2, 1_700_000_000.0 + clock.now), (0, 1_700_000_000.0 + clock.now),
    ]  # fmt: skip
