"""What the gateway asks, and what its cache is told."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import DovecoteError, NotFound
from dovecote.gateway.wake import Answer, Ask, Headers, parse_ask, render_note

SLUG = "abcdefghijkmnpqrstuvwxyz23"
FIELD = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
USER = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=20).filter(
    lambda text: text != "-"
)


def asked(**values: str) -> Headers:
    headers = Headers()
    for name, value in values.items():
        headers.add(name.replace("_", "-"), value)
    return headers


def ask_of(credential: str, session: str, user: str, host: str = "f.fn.localhost:8080") -> Ask:
    """As the Lua cache builds it."""
    if not (credential or session or user):
        return parse_ask(asked(host=host), "localhost")
    headers = asked(host=host, x_gw_ask=f"{host} {credential} {session} {user or '-'}")
    if session:
        headers.add("x-dovecote-session", session)
    return parse_ask(headers, "localhost")


@pytest.mark.parametrize(
    ("host", "kind", "name", "port"),
    [
        (f"3000-{SLUG}.box.localhost", "box", SLUG, 3000),
        (f"65535-{SLUG.upper()}.BOX.LOCALHOST:8080", "box", SLUG, 65535),
        ("chat-agent.fn.localhost:8080", "function", "chat-agent", None),
        ("shop.app.localhost", "app", "shop", None),
    ],
)
def test_a_host_says_what_is_wanted(host: str, kind: str, name: str, port: int | None) -> None:
    ask = parse_ask(asked(host=host), "localhost")
    assert (ask.kind, ask.name, ask.port) == (kind, name, port)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        f"0-{SLUG}.box.localhost",
        f"65536-{SLUG}.box.localhost",
        f"{SLUG}.box.localhost",
        "a.b.fn.localhost",
        ".app.localhost",
        "-.app.localhost",
        "shop.app.other",
        "shop.app.localhost.evil",
    ],
)
def test_any_other_host_is_no_address(host: str) -> None:
    with pytest.raises(NotFound) as caught:
        parse_ask(asked(host=host), "localhost")
    assert caught.value.code == "no_such_address"


@given(host=st.text(max_size=80), ask=st.text(max_size=80))
def test_no_text_in_the_headers_ends_in_anything_but_an_ask_or_an_error(host: str, ask: str) -> None:
    with contextlib.suppress(DovecoteError):
        parse_ask(asked(host=host, x_gw_ask=ask), "localhost")


def test_a_question_for_another_host_is_refused() -> None:
    with pytest.raises(DovecoteError):
        parse_ask(asked(host="f.fn.localhost", x_gw_ask="g.fn.localhost k s u"), "localhost")


def test_internal_headers_are_not_shown_and_names_have_no_case() -> None:
    ask = parse_ask(asked(host="f.fn.localhost", x_gw_failed="1.2.3.4:5", X_Chat_Id="c"), "localhost")
    assert "x-gw-failed" not in ask.headers
    assert ask.headers["X-CHAT-ID"] == ask.headers.get("x-chat-id") == "c"


def test_a_header_that_came_twice_is_not_half_believed() -> None:
    headers = asked(host="f.fn.localhost", x_dovecote_session="one")
    headers.add("X-Dovecote-Session", "two")
    assert parse_ask(headers, "localhost").headers["x-dovecote-session"] == "one,two"


def note(ask: Ask, session: str | None, header: str | None = "x-dovecote-session") -> str:
    return render_note(ask, Answer("10.0.0.1:80", affinity_header=header, session=session))


@given(first=st.tuples(FIELD, FIELD, USER), second=st.tuples(FIELD, FIELD, USER))
def test_two_callers_never_share_a_key(first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
    keys = [note(ask_of(*caller), caller[1] or None).split(" ", 3)[3:] for caller in (first, second) if caller[1]]
    if len(keys) == 2:
        assert (keys[0] == keys[1]) == (first == second)


@given(caller=st.tuples(FIELD, FIELD, USER))
def test_the_key_that_is_learned_is_the_key_that_was_asked_with(caller: tuple[str, str, str]) -> None:
    credential, session, user = caller
    host = "f.fn.localhost:8080"
    if session:
        learned = note(ask_of(*caller, host=host), session).split(" ", 3)[3]
        assert learned == f"{host} {credential} {session} {user or '-'}"


def test_a_session_that_the_server_made_is_returned_and_learned_under_its_own_id() -> None:
    assert note(ask_of("k", "", "u"), "made") == ("10.0.0.1:80 x-dovecote-session made f.fn.localhost:8080 k made u")


def test_a_function_without_a_session_is_not_learned() -> None:
    assert note(ask_of("k", "", "u"), None) == ""
    assert note(ask_of("k", "s", "u"), None, header=None) == ""


def test_a_sandbox_is_learned_by_its_host() -> None:
    ask = parse_ask(asked(host=f"1-{SLUG}.box.localhost"), "localhost")
    assert render_note(ask, Answer("10.0.0.1:80")) == f"10.0.0.1:80 - - 1-{SLUG}.box.localhost"
    assert render_note(ask, Answer("10.0.0.1:80", learn=False)) == ""


def test_what_would_not_fit_the_cache_is_not_learned() -> None:
    assert note(ask_of("k" * 2000, "s", "u"), "s") == ""


def test_an_app_is_never_learned() -> None:
    ask = parse_ask(asked(host="shop.app.localhost"), "localhost")
    assert render_note(ask, Answer("10.0.0.1:80", learn=True)) == ""
