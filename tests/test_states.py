"""The table of moves: closed, reachable, with a way back from everything in flight."""

from pathlib import Path

import pytest

from s5jtd.ledger.states import ALLOWED, RETREAT, State, diagram

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("state", sorted(RETREAT))
def test_what_is_in_flight_can_fall_back_to_where_it_came_from(state: State) -> None:
    home = RETREAT[state]

    assert home in ALLOWED[state]
    assert state in ALLOWED[home]


def test_every_state_can_be_reached_from_seen() -> None:
    reached, frontier = {State.SEEN}, [State.SEEN]
    while frontier:
        for state in ALLOWED[frontier.pop()] - reached:
            reached.add(state)
            frontier.append(state)

    assert set(State) == reached


def test_nothing_is_delivered_without_being_pushed_or_found() -> None:
    assert {State.SEEN, State.PUSHING} == {s for s in State if State.DELIVERED in ALLOWED[s]}


def test_no_state_is_a_dead_end_for_an_operator() -> None:
    assert [s for s in State if not ALLOWED[s]] == []


def test_the_diagram_in_the_documentation_is_the_table() -> None:
    assert diagram() == (ROOT / "docs" / "states.mmd").read_text()
