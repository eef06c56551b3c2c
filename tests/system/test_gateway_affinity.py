"""What names a session, mode by mode, through a real Envoy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from ipaddress import IPv4Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovecote.gateway import Answer, Ask
from dovecote.model.naming import find
from dovecote.model.serving import Affinity, Mode
from tests.system.gateway_world import BOUND, Serving, World, free_port, until, world

pytestmark = [pytest.mark.system, pytest.mark.anyio]

FUNCTION = "chat.fn.localhost"
KEY = {"x_dovecote_key": "key-of-one"}


@pytest.fixture
async def w() -> AsyncIterator[World]:
    async with world() as there:
        there.report_every = 0.2
        await there.open()
        yield there


async def test_a_cookie_that_was_given_out_by_tls_comes_back_by_tls_alone() -> None:
    async with world() as w:
        w.tls_port = free_port()
        await w.open()
        Serving(w, Affinity(modes=(Mode.COOKIE,)), await w.instance("a"))
        headers, sni = {"host": FUNCTION, "x-dovecote-key": "key-of-one"}, {"sni_hostname": FUNCTION}
        async with w.secure_client() as client:
            first = await client.get("/", headers=headers, extensions=sni)
            named = {"cookie": "__Host-dovecote-session=s1; dovecote-session=s2; __Secure-dovecote-session=s3"}
            again = await client.get("/", headers=headers | named, extensions=sni)
        kept = "__Host-dovecote-session=s1; Max-Age=60; Path=/; HttpOnly; SameSite=Lax; Secure"
        assert first.headers["set-cookie"] == kept
        assert (again.json()["name"], "cookie" in again.json()["headers"], len(w.asks)) == ("a", False, 1)
        plain = await w.get(FUNCTION, **KEY)
        assert "Secure" not in plain.headers["set-cookie"]


async def test_tls_at_a_proxy_is_as_good_if_the_proxy_is_trusted() -> None:
    """Another one, or a client that says so itself, may say what it likes."""
    for network, is_secure in (("127.0.0.0/8", True), ("10.0.0.0/8", False)):
        async with world() as w:
            w.trusted = [IPv4Network(network)]
            await w.open()
            Serving(w, Affinity(modes=(Mode.COOKIE,)), await w.instance("a"), await w.instance("b"))
            first = await w.get(FUNCTION, x_forwarded_proto="https", **KEY)
            name = "__Host-dovecote-session" if is_secure else "dovecote-session"
            assert first.headers["set-cookie"].startswith(f"{name}=s1; ")
            assert first.headers["set-cookie"].endswith("; Secure") == is_secure
            assert first.json()["headers"]["x-forwarded-proto"] == ("https" if is_secure else "http")
            for _ in range(2):
                again = await w.get(FUNCTION, x_forwarded_proto="https", cookie=f"a=1; {name}=s1", **KEY)
                assert (again.json()["name"], again.json()["headers"]["cookie"]) == ("a", "a=1")
            if is_secure:
                planted = await w.get(FUNCTION, x_forwarded_proto="https", cookie="dovecote-session=s1", **KEY)
                assert planted.headers["set-cookie"].startswith("__Host-dovecote-session=s2; ")
                by_path = await w.get("localhost", "/fn/chat/", x_forwarded_proto="https", **KEY)
                given = by_path.headers["set-cookie"]
                assert given.startswith("__Secure-dovecote-session=s3; Max-Age=60; Path=/fn/chat; ")
                named = given.partition(";")[0]
                for _ in range(2):
                    back = await w.get("localhost", "/fn/chat/", x_forwarded_proto="https", cookie=named, **KEY)
                    assert (back.json()["name"], "cookie" in back.json()["headers"]) == ("a", False)
            plain = await w.get(FUNCTION, **KEY)
            assert plain.headers["set-cookie"].startswith("dovecote-session=")


async def test_a_client_without_a_cookie_is_given_one_and_stays_with_its_instance(w: World) -> None:
    Serving(w, Affinity(modes=(Mode.COOKIE,)), await w.instance("a"), await w.instance("b"))
    first = await w.get(FUNCTION, **KEY)
    assert first.headers["set-cookie"] == "dovecote-session=s1; Max-Age=60; Path=/; HttpOnly; SameSite=Lax"
    assert (await w.get(FUNCTION, **KEY)).json()["name"] == "b"
    for _ in range(3):
        again = await w.get(FUNCTION, cookie="a=1; dovecote-session=s1; b=2", **KEY)
        assert (again.json()["name"], again.json()["headers"]["cookie"]) == ("a", "a=1; b=2")
        assert "set-cookie" not in again.headers
    assert len(w.asks) == 2


async def test_no_instance_sees_our_cookie_when_it_is_the_only_one(w: World) -> None:
    serving = Serving(w, Affinity(modes=(Mode.COOKIE,), ttl=timedelta(hours=1)), await w.instance("a"))
    serving.sessions["s1"] = serving.instances[0]
    for _ in range(2):
        answer = await w.get(FUNCTION, cookie="dovecote-session=s1", **KEY)
        assert "cookie" not in answer.json()["headers"]
        assert "set-cookie" not in answer.headers
    assert len(w.asks) == 1


async def test_a_cookie_that_nobody_knows_is_replaced(w: World) -> None:
    Serving(w, Affinity(modes=(Mode.COOKIE,)), await w.instance("a"))
    answer = await w.get(FUNCTION, cookie="dovecote-session=old", **KEY)
    assert (answer.status_code, answer.headers["set-cookie"].partition(";")[0]) == (200, "dovecote-session=s1")


async def test_the_header_wins_over_the_cookie(w: World) -> None:
    Serving(w, Affinity(modes=(Mode.COOKIE, Mode.HEADER)), await w.instance("a"), await w.instance("b"))
    first = await w.get(FUNCTION, **KEY)
    assert first.headers["x-dovecote-session"] == "s1"
    assert first.headers["set-cookie"].startswith("dovecote-session=s1;")
    for _ in range(2):
        both = await w.get(FUNCTION, cookie="dovecote-session=s1; a=1", x_dovecote_session="mine", **KEY)
        assert (both.json()["name"], both.json()["headers"]["cookie"]) == ("b", "a=1")
    assert len(w.asks) == 2


async def test_a_function_without_sessions_is_learned_for_a_credential(w: World) -> None:
    Serving(w, Affinity(modes=(Mode.NONE,)), await w.instance("a"))
    for user in ("ann", "bob", "cid"):
        assert (await w.get(FUNCTION, x_dovecote_user=user, **KEY)).json()["name"] == "a"
    assert len(w.asks) == 1
    await w.get(FUNCTION, x_dovecote_key="key-of-two")
    assert len(w.asks) == 2


async def test_two_tenants_may_have_functions_of_one_name_that_find_sessions_differently(w: World) -> None:
    instance = await w.instance("a")
    of = {"key-of-one": Affinity(header="x-chat-id"), "key-of-two": Affinity(header="x-game-id")}

    async def answer(ask: Ask) -> Answer:
        affinity = of[ask.credential]
        found = ask.session(affinity)
        return Answer(instance.address, affinity=affinity, key=found.key if found else "made")

    w.answers = answer
    for _ in range(2):
        for key in of:
            both = await w.get(FUNCTION, x_dovecote_key=key, x_chat_id="c", x_game_id="g")
            assert both.status_code == 200
    assert len(w.asks) == 2


async def test_the_id_of_an_mcp_server_names_the_session_with_it(w: World) -> None:
    serving = Serving(w, Affinity(modes=(Mode.MCP_HTTP,)), await w.instance("a"), await w.instance("b"))
    first = await w.send("POST", FUNCTION, "/mcp", b"{}", x_answer="mcp-session-id: theirs.1", **KEY)
    assert first.headers["mcp-session-id"] == "s1.theirs.1"
    await w.send("POST", FUNCTION, "/mcp", b"{}", x_answer="mcp-session-id: theirs.2", **KEY)
    for _ in range(3):
        again = await w.get(FUNCTION, "/mcp", mcp_session_id="s1.theirs.1", x_answer="mcp-session-id: theirs.1", **KEY)
        assert (again.json()["name"], again.json()["headers"]["mcp-session-id"]) == ("a", "theirs.1")
        assert again.headers["mcp-session-id"] == "s1.theirs.1"
    assert (await w.get(FUNCTION, "/mcp", mcp_session_id="s2.theirs.2", **KEY)).json()["name"] == "b"
    assert set(serving.sessions) == {"s1", "s2"}


@pytest.mark.parametrize("known", ["theirs", "s9.theirs", ".", "s 1.x"])
async def test_an_mcp_client_whose_session_is_gone_is_told_to_begin_again(w: World, known: str) -> None:
    Serving(w, Affinity(modes=(Mode.MCP_HTTP,)), await w.instance("a"))
    answer = await w.send("POST", FUNCTION, "/mcp", b"{}", mcp_session_id=known, **KEY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("is_warm", [False, True])
async def test_an_mcp_client_that_is_done_ends_its_session(w: World, is_warm: bool) -> None:
    serving = Serving(w, Affinity(modes=(Mode.MCP_HTTP,)), await w.instance("a"))
    serving.sessions["s1"] = serving.instances[0]
    if is_warm:
        await w.get(FUNCTION, "/mcp", mcp_session_id="s1.x", **KEY)
    answer = await w.send("DELETE", FUNCTION, "/mcp", b"", mcp_session_id="s1.x", **KEY)
    assert answer.json()["headers"]["mcp-session-id"] == "x"

    async def is_over() -> bool:
        return w.ended == [("ses_s1", "its MCP client ended it")]

    await until(is_over)
    before = len(w.asks)
    await w.get(FUNCTION, "/mcp", mcp_session_id="s1.x", **KEY)
    assert len(w.asks) == before + 1


async def test_an_mcp_request_of_the_revision_without_sessions_begins_none(w: World) -> None:
    serving = Serving(w, Affinity(modes=(Mode.MCP_HTTP,)), await w.instance("a"))
    for _ in range(3):
        answer = await w.send("POST", FUNCTION, "/mcp", b"{}", mcp_protocol_version="2026-07-28", **KEY)
        assert answer.json()["name"] == "a"
    await w.get(FUNCTION, "/health", **KEY)
    assert list(serving.sessions) == ["stateless"]
    assert len(w.asks) == 1
    await w.send("POST", FUNCTION, "/mcp", b"{}", mcp_protocol_version="2025-06-18", **KEY)
    assert len(serving.sessions) == 2


async def test_several_modes_go_together(w: World) -> None:
    modes = (Mode.HEADER, Mode.COOKIE, Mode.MCP_HTTP, Mode.MCP_SSE)
    Serving(w, Affinity(modes=modes), await w.instance("a"), await w.instance("b"))
    first = await w.send("POST", FUNCTION, "/mcp", b"{}", x_answer="mcp-session-id: t", **KEY)
    assert first.headers["x-dovecote-session"] == "s1"
    assert first.headers["mcp-session-id"] == "s1.t"
    await w.send("POST", FUNCTION, "/mcp", b"{}", **KEY)
    names: list[dict[str, str]] = [
        {"mcp_session_id": "s1.t"},
        {"x_dovecote_session": "s1"},
        {"cookie": "dovecote-session=s1"},
    ]
    for name in names * 2:
        assert (await w.get(FUNCTION, "/mcp", **name, **KEY)).json()["name"] == "a"
    assert (await w.send("POST", FUNCTION, "/m?session_id=s1.t", b"{}", **KEY)).json()["path"] == "/m?session_id=t"


async def test_a_dotted_key_of_a_client_comes_back_whole_from_an_mcp_id(w: World) -> None:
    serving = Serving(w, Affinity(modes=(Mode.HEADER, Mode.MCP_HTTP)), await w.instance("a"), await w.instance("b"))
    first = await w.send("POST", FUNCTION, "/", b"", x_dovecote_session="a.b", x_answer="mcp-session-id: t.u", **KEY)
    assert first.headers["mcp-session-id"] == "a~b.t.u"
    again = await w.get(FUNCTION, mcp_session_id="a~b.t.u", **KEY)
    assert again.json()["headers"]["mcp-session-id"] == "t.u"
    assert list(serving.sessions) == ["a.b"]


@pytest.mark.parametrize("host", [FUNCTION, "localhost"])
@pytest.mark.parametrize(
    ("said", "given", "back"),
    [
        ("/messages/?session_id=abc", "/messages/?session_id=s1.abc", "/messages/?session_id=abc"),
        ("/m?a=b&sessionId=abc", "/m?a=b&sessionId=s1.abc", "/m?a=b&sessionId=abc"),
        ("/m", "/m?dovecote-session=s1.-", "/m"),
        ("/m?a=b", "/m?a=b&dovecote-session=s1.-", "/m?a=b"),
    ],
)
@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_the_endpoint_of_an_mcp_stream_leads_back_to_its_session(
    w: World, host: str, said: str, given: str, back: str, piece: int
) -> None:
    Serving(w, Affinity(modes=(Mode.MCP_SSE,)), await w.instance("a"), await w.instance("b"))
    text = f": hello\n\nevent: endpoint\r\ndata: {said}\r\n\r\nevent: message\ndata: ?sessionId=x\n\n"
    prefix = "/fn/chat" if host == "localhost" else ""
    headers = {"host": f"{host}:{w.port}", "x-dovecote-key": "key-of-one", "x-stream": json.dumps([text, piece])}
    async with w.client.stream("GET", f"{prefix}/sse", headers=headers) as answer:
        seen, parts = "", answer.aiter_text()
        async for part in parts:
            seen += part
            if seen.endswith("?sessionId=x\n\n"):
                break
        assert seen == text.replace(said, prefix + given)
        for _ in range(2):
            posted = await w.send("POST", host, prefix + given, b"{}", **KEY)
            assert (posted.json()["name"], posted.json()["path"]) == ("a", back)
        assert w.ended == []

        async def is_touched() -> bool:
            return "ses_s1" in w.touched

        await until(is_touched)
    for instance in w._instances:
        instance.gate.release()

    async def is_over() -> bool:
        return w.ended == [("ses_s1", "its MCP stream ended")]

    await until(is_over)


async def test_a_stream_without_an_endpoint_passes_as_it_is(w: World) -> None:
    (instance,) = Serving(w, Affinity(modes=(Mode.MCP_SSE,)), await w.instance("a")).instances
    text = "data: " + "x" * 50_000 + "\n\nevent: message\ndata: y\n\n"
    instance.gate.release()
    headers = {"host": FUNCTION, "x-dovecote-key": "key-of-one", "x-stream": json.dumps([text, 999])}
    answer = await w.client.get("/sse", headers=headers)
    assert answer.text == text


async def test_a_long_request_keeps_its_session_awake_and_a_short_one_says_nothing(w: World) -> None:
    (instance,) = Serving(w, Affinity(), await w.instance("a")).instances
    for n in range(20):
        await w.get(FUNCTION, x_dovecote_session=f"short{n}", **KEY)
        await w.get(FUNCTION, x_dovecote_session=f"short{n}", **KEY)
    for session in ("short0", "cold"):  # a warm one, and one that is asked about
        pending = asyncio.create_task(w.get(FUNCTION, "/gated", x_dovecote_session=session, **KEY))

        async def is_touched(session: str = session) -> bool:
            return f"ses_{session}" in w.touched

        await until(is_touched)
        instance.gate.release()
        assert (await pending).status_code == 200
    assert set(w.touched) == {"ses_short0", "ses_cold"}
    assert w.ended == []


async def test_a_request_that_meets_a_dead_instance_still_names_its_session(w: World) -> None:
    """Its id was taken apart already when the address turned out to be wrong."""
    serving = Serving(w, Affinity(modes=(Mode.MCP_HTTP, Mode.COOKIE)), await w.instance("a"), await w.instance("b"))
    serving.sessions["s.1"] = serving.instances[0]
    for name in ({"mcp_session_id": "s~1.x.y"}, {"cookie": "dovecote-session=s.1"}):
        serving.sessions["s.1"] = serving.instances[0]
        await w.send("POST", FUNCTION, "/mcp", b"{}", **name, **KEY)
    await serving.instances[0].die()
    for name in ({"mcp_session_id": "s~1.x.y"}, {"cookie": "dovecote-session=s.1"}):
        serving.sessions["s.1"] = serving.instances[1]
        answer = (await w.send("POST", FUNCTION, "/mcp", b"{}", **name, **KEY)).json()
        assert answer["name"] == "b"
        assert answer["headers"].get("mcp-session-id") in (None, "x.y")
        assert "cookie" not in answer["headers"]
    assert [ask.failed for ask in w.asks[-2:]] == [serving.instances[0].address] * 2


# -- Python and Lua agree

KEYS = st.sampled_from(["s1", "s.1", "a~b", "", "x y", "_", "k" * 201])
VALUES = st.one_of(KEYS, st.builds("{}.{}".format, KEYS, KEYS))
COOKIES = st.lists(
    st.one_of(
        st.sampled_from(["a=1", "dovecote-session", "dovecote-sessions=2", ""]),
        st.builds("dovecote-session={}".format, VALUES),
        st.builds(" dovecote-session={} ".format, VALUES),
        st.builds("__Host-dovecote-session={}".format, VALUES),
        st.builds("__Secure-dovecote-session={}".format, VALUES),
    ),
    max_size=3,
).map(";".join)
QUERIES = st.lists(
    st.builds(
        "{}{}={}".format,
        st.sampled_from("?&"),
        st.sampled_from(["sessionId", "session_id", "dovecote-session", "a"]),
        VALUES,
    ),
    max_size=3,
).map(lambda parts: "".join(parts).replace(" ", ""))
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "x-dovecote-session": VALUES,
        "cookie": COOKIES,
        "mcp-session-id": VALUES,
        "x-forwarded-proto": st.sampled_from(["http", "https"]),
        "mcp-protocol-version": st.sampled_from(["2025-06-18", "2026-07-28", "2027-01-01", "x", ""]),
    },
)
MODES = st.lists(st.sampled_from([mode for mode in Mode if mode is not Mode.NONE]), min_size=1, unique=True)


@pytest.fixture
async def trusting() -> AsyncIterator[World]:
    async with world() as there:
        there.trusted = [IPv4Network("127.0.0.0/8")]
        await there.open()
        yield there


async def test_lua_finds_the_same_session_as_python(trusting: World) -> None:
    """Each request is sent twice: if the second is warm, Lua found just what Python had found for the first."""
    w = trusting
    instance = await w.instance("a")
    affinity = Affinity()

    async def answer(ask: Ask) -> Answer:
        found = ask.session(affinity)
        key = found.key if found else None
        return Answer(instance.address, affinity=affinity, key=key, cookie=key)

    w.answers = answer
    tries = 0

    async def once(modes: list[Mode], method: str, path: str, headers: dict[str, str]) -> None:
        nonlocal affinity, tries
        affinity, tries = Affinity(modes=tuple(modes)), tries + 1
        caller = {"host": FUNCTION, "x-dovecote-key": f"key-{tries}"}
        # The spec is learned by a request of another session.
        await w.client.post("/", headers={**caller, "x-dovecote-session": "other"})
        before = len(w.asks)
        first, second = [
            (await w.client.request(method, path, headers={**caller, **headers, "x-request-id": "r"})).json()
            for _ in range(2)
        ]
        for seen in (first, second):
            del seen["headers"]["x-request-id"]
        asked = w.asks[before:]
        found = find(affinity, method, path, asked[0].headers) if asked else None
        is_warm = len(asked) < 2
        if asked:
            should = found is not None and bool(found.key) and " " not in found.key
            assert is_warm == should, (found, asked)
        assert (first["path"], first["headers"]) == (second["path"], second["headers"]) or not is_warm

    loop = asyncio.get_running_loop()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(MODES, st.sampled_from(["GET", "POST"]), st.sampled_from(["/", "/sse", "/m"]), QUERIES, HEADERS)
    def agree(modes: list[Mode], method: str, path: str, query: str, headers: dict[str, str]) -> None:
        task = once(modes, method, path + query, {name: value.strip() for name, value in headers.items()})
        asyncio.run_coroutine_threadsafe(task, loop).result(BOUND)

    await asyncio.to_thread(agree)
