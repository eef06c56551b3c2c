"""What the gateway asks, and what its cache is told."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import DovecoteError, NotFound
from dovecote.gateway.question import Answer, Ask, Headers, needs_taking, parse_ask, render_note
from dovecote.model.naming import Found
from dovecote.model.serving import Affinity, Mode

SLUG = "abcdefghijkmnpqrstuvwxyz23"
HOST = "f.fn.localhost:8080"
FIELD = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
USER = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=20).filter(
    lambda text: text != "-"
)
HEADER = Affinity()


def asked(**values: str) -> Headers:
    headers = Headers()
    for name, value in values.items():
        headers.add(name.replace("_", "-"), value)
    return headers


def asked_for(headers: Headers, method: str = "GET", path: str = "/") -> Ask:
    return parse_ask(method, "/wake" + path, headers, "localhost")


def ask_of(credential: str, session: str, user: str, host: str = HOST) -> Ask:
    """As the front listener asks when it remembers nothing."""
    headers = asked(host=host, x_gw_ask=f"{host} {credential} - - {user or '-'}")
    if session:
        headers.add("x-dovecote-session", session)
    return asked_for(headers)


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
    ask = asked_for(asked(host=host), "POST", "/a?b=c")
    assert (ask.kind, ask.name, ask.port) == (kind, name, port)
    assert (ask.method, ask.path) == ("POST", "/a?b=c")


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
        asked_for(asked(host=host))
    assert caught.value.code == "no_such_address"


@given(host=st.text(max_size=80), ask=st.text(max_size=80), path=st.text(max_size=80))
def test_no_text_in_the_headers_ends_in_anything_but_an_ask_or_an_error(host: str, ask: str, path: str) -> None:
    with contextlib.suppress(DovecoteError):
        parse_ask("GET", path, asked(host=host, x_gw_ask=ask), "localhost")


@pytest.mark.parametrize(
    "ask", ["g.fn.localhost k - - u", f"{HOST} k s u", f"{HOST} k odd s u", f"{HOST} k", f"{HOST} "]
)
def test_a_question_that_we_did_not_write_is_refused(ask: str) -> None:
    with pytest.raises(DovecoteError):
        asked_for(asked(host=HOST, x_gw_ask=ask))


def test_a_request_that_was_on_its_way_to_an_address_brings_its_session_in_the_question() -> None:
    ask = asked_for(asked(host=HOST, x_gw_ask=f"{HOST} k mcp-http s1 ann b", mcp_session_id="theirs"))
    affinity = Affinity(modes=(Mode.MCP_HTTP,))
    assert (ask.credential, ask.user, ask.session(affinity)) == ("k", "ann b", Found(Mode.MCP_HTTP, "s1"))
    assert not needs_taking(ask, affinity)
    assert needs_taking(replace(ask, found=None), affinity)
    assert not needs_taking(replace(ask, found=None), HEADER)


def test_internal_headers_are_not_shown_and_names_have_no_case() -> None:
    ask = asked_for(asked(host="f.fn.localhost", x_gw_failed="1.2.3.4:5", X_Chat_Id="c"))
    assert "x-gw-failed" not in ask.headers
    assert ask.headers["X-CHAT-ID"] == ask.headers.get("x-chat-id") == "c"


def test_a_header_that_came_twice_is_not_half_believed() -> None:
    headers = asked(host="f.fn.localhost", x_dovecote_session="one")
    headers.add("X-Dovecote-Session", "two")
    assert asked_for(headers).headers["x-dovecote-session"] == "one,two"


def note(ask: Ask, key: str | None, affinity: Affinity = HEADER, *, is_limited: bool = False) -> list[str]:
    """Address, flags and cache key."""
    answer = Answer("10.0.0.1:80", affinity=affinity, key=key, is_limited=is_limited)
    address, _, _, _, _, flags, cache_key = render_note(ask, answer).split(" ", 6)
    return [address, flags, cache_key]


def cookie_note(ask: Ask, key: str, affinity: Affinity) -> tuple[str, str]:
    """What is given out as a cookie, and the cache key, where the cookie of a session holds its key and `.p`."""
    answer = Answer("10.0.0.1:80", affinity=affinity, key=key, cookie=f"{key}.p")
    _, _, _, _, cookie, _, cache_key = render_note(ask, answer).split(" ", 6)
    return cookie, cache_key


@given(first=st.tuples(FIELD, FIELD, USER), second=st.tuples(FIELD, FIELD, USER))
def test_two_callers_never_share_a_key(first: tuple[str, str, str], second: tuple[str, str, str]) -> None:
    keys = [note(ask_of(*caller), caller[1])[2] for caller in (first, second) if caller[1]]
    if len(keys) == 2:
        assert (keys[0] == keys[1]) == (first == second)


def test_a_session_that_the_server_made_is_returned_and_learned_under_its_own_id() -> None:
    assert note(ask_of("k", "", "u"), "made") == ["10.0.0.1:80", "h", f"{HOST} k header made u"]
    assert note(ask_of("k", "s", "u"), "s") == ["10.0.0.1:80", "-", f"{HOST} k header s u"]


def test_a_function_without_sessions_is_learned_for_the_credential_whoever_the_user_is() -> None:
    affinity = Affinity(modes=(Mode.NONE,))
    assert note(ask_of("k", "s", "u"), None, affinity) == ["10.0.0.1:80", "-", f"{HOST} k none  -"]
    assert note(ask_of("k", "s", "u"), None, affinity, is_limited=True)[1] == "l"


def test_a_cookie_that_is_unknown_or_lasts_as_long_as_idleness_is_given_out() -> None:
    affinity = Affinity(modes=(Mode.COOKIE,))
    hour = replace(affinity, ttl=timedelta(hours=1))
    ask = replace(ask_of("k", "", "u"), headers={"host": HOST, "cookie": "a=b; dovecote-session=s1.p"})
    assert cookie_note(ask, "s1", affinity) == ("dovecote-session=s1.p", f"{HOST} k cookie s1.p u")
    assert cookie_note(ask, "s1", hour) == ("-", f"{HOST} k cookie s1.p u")
    assert cookie_note(ask, "s2", hour) == ("dovecote-session=s2.p", f"{HOST} k cookie s2.p u")
    by_tls = replace(ask, headers={**ask.headers, "x-forwarded-proto": "https"})
    assert cookie_note(by_tls, "s2", hour)[0] == "__Host-dovecote-session=s2.p"
    by_path = replace(by_tls, headers={**by_tls.headers, "x-forwarded-prefix": "/fn/chat"})
    assert cookie_note(by_path, "s2", hour)[0] == "__Secure-dovecote-session=s2.p"


def test_what_ends_a_session_is_told() -> None:
    affinity = Affinity(modes=(Mode.MCP_SSE, Mode.MCP_HTTP))
    stream = replace(ask_of("k", "", "u"), path="/sse?x")
    assert note(stream, "s", affinity)[1:] == ["ms", f"{HOST} k mcp-sse s u"]
    done = replace(ask_of("k", "", "u"), method="DELETE", headers={"host": HOST, "mcp-session-id": "s.t"})
    assert note(done, "s", affinity) == ["-", "md", f"{HOST} k mcp-http s u"]


def test_a_sandbox_is_learned_by_its_host() -> None:
    ask = asked_for(asked(host=f"1-{SLUG}.box.localhost"))
    assert render_note(ask, Answer("10.0.0.1:80")) == f"10.0.0.1:80 - - - - - 1-{SLUG}.box.localhost"
    assert render_note(ask, Answer("10.0.0.1:80", learn=False)) == ""


def test_what_would_not_fit_the_cache_is_not_learned() -> None:
    assert note(ask_of("k" * 2000, "s", "u"), "s")[0] == "-"
    assert note(ask_of("k", "s t", "u"), "s t")[0] == "-"


def test_an_app_is_never_learned() -> None:
    ask = asked_for(asked(host="shop.app.localhost"))
    assert render_note(ask, Answer("10.0.0.1:80", learn=True)) == ""
