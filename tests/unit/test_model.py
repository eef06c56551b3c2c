"""Ids, states and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import Conflict, Invalid
from dovecote.model.ids import KINDS, new_id, parse_header_name, parse_id, parse_name, parse_session_key
from dovecote.model.sizes import TIERS
from dovecote.model.states import (
    INSTANCE_MOVES,
    SESSION_MOVES,
    InstanceState,
    SessionState,
    check_instance_move,
    check_session_move,
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_parses_as_its_own_kind_only(kind: str) -> None:
    made = new_id(kind)
    assert parse_id(made, kind) == made
    other = next(k for k in KINDS if k != kind)
    with pytest.raises(Invalid, match="not a"):
        parse_id(made, other)


@given(st.text(max_size=80))
def test_any_text_is_an_id_or_is_refused(text: str) -> None:
    try:
        parsed = parse_id(text, "ses")
    except Invalid as error:
        refused = error.code
        parsed = text if refused == "malformed_id" else ""
    assert parsed == text


@pytest.mark.parametrize("key", ["u42:c7", "a" * 200, "A.b_c@d-e:1"])
def test_session_keys_that_clients_choose(key: str) -> None:
    assert parse_session_key(key) == key


@pytest.mark.parametrize("key", ["", "a" * 201, "a b", "ä", "a/b", "a\n"])
def test_session_keys_that_are_refused(key: str) -> None:
    with pytest.raises(Invalid):
        parse_session_key(key)


@pytest.mark.parametrize("name", ["x-1", "1abcd", "a" * 41, "x_abcd"])
def test_header_names_that_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        parse_header_name(name)


@pytest.mark.parametrize("name", ["-a", "a-", "A", "a.b", "", "a" * 41, "1a"])
def test_names_that_cannot_stand_in_a_host_name_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        parse_name(name, "an app")


def test_every_state_has_its_row() -> None:
    assert set(SESSION_MOVES) == set(SessionState)
    assert set(INSTANCE_MOVES) == set(InstanceState)


def test_nothing_comes_back_from_the_end() -> None:
    for state in SessionState:
        if state is not SessionState.ENDED:
            with pytest.raises(Conflict):
                check_session_move(SessionState.ENDED, state)
    with pytest.raises(Conflict):
        check_instance_move(InstanceState.GONE, InstanceState.READY)


def test_every_session_state_but_the_end_can_end() -> None:
    for state, moves in SESSION_MOVES.items():
        assert state is SessionState.ENDED or SessionState.ENDED in moves


def test_tiers_are_those_of_the_promise() -> None:
    assert [tier.idle_after.total_seconds() for tier in TIERS.values()] == [300, 3600, 36000, 86400]
