"""Which names and paths lead where, through a real Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dovecote.model.serving import Affinity, Mode
from tests.system.gateway_world import BOUND, SLUG, Serving, World, world

pytestmark = [pytest.mark.system, pytest.mark.anyio]

BOX = f"3000-{SLUG}.box.localhost"
FUNCTION = "chat.fn.localhost"
KEY = {"x_dovecote_key": "key-of-one"}
FOR_ITS_HOST = [
    "clear-site-data",
    "strict-transport-security",
    "nel",
    "report-to",
    "reporting-endpoints",
    "alt-svc",
    "accept-ch",
    "critical-ch",
    "public-key-pins",
    "public-key-pins-report-only",
    "expect-ct",
]


@pytest.fixture
async def w() -> AsyncIterator[World]:
    async with world() as there:
        await there.open()
        yield there


async def test_names_below_a_sandbox_are_told_to_no_other_site(w: World) -> None:
    w.points_to(await w.instance("a"))
    assert (await w.get(BOX)).headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize(
    "host", ["x.box.localhost", f"0-{SLUG}.box.localhost", "a.b.fn.localhost", "A_B.app.localhost"]
)
async def test_a_name_that_is_none_of_ours_is_not_asked_about(w: World, host: str) -> None:
    response = await w.get(host)
    assert response.json()["error"]["code"] == "no_such_address"
    assert w.asks == []


async def test_the_bare_host_is_the_api(w: World) -> None:
    """Its key goes through: there it belongs."""
    instance = await w.instance("api")
    server = await asyncio.start_unix_server(instance._serve, w.run_dir / "api.sock")
    try:
        for host in ("localhost", "127.0.0.1", "box.localhost", "anything.example"):
            seen = (await w.get(host, "/v1/sessions", x_dovecote_key="key-of-one", x_gw_ask="spoof")).json()
            assert (seen["name"], seen["headers"]["x-dovecote-key"]) == ("api", "key-of-one")
            assert "x-gw-ask" not in seen["headers"]
    finally:
        server.close()
    assert w.asks == []


async def test_the_api_answers_some_ports_of_each_sandbox_itself(w: World) -> None:
    w.points_to(await w.instance("sandbox"))
    server = await asyncio.start_unix_server((await w.instance("api"))._serve, w.run_dir / "api.sock")
    try:
        for port, name in ((49983, "api"), (49999, "api"), (49984, "sandbox"), (4998, "sandbox")):
            seen = (await w.send("POST", f"{port}-{SLUG}.box.localhost", "/files?path=a", b"content")).json()
            assert (seen["name"], seen["size"]) == (name, 7), port
            assert seen["headers"]["host"] == f"{port}-{SLUG}.box.localhost:{w.port}"
    finally:
        server.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "anything.example"])
async def test_headers_may_name_a_sandbox_and_its_port_instead_of_its_host(w: World, host: str) -> None:
    w.points_to(await w.instance("sandbox"))
    server = await asyncio.start_unix_server((await w.instance("api"))._serve, w.run_dir / "api.sock")
    try:
        for _ in range(3):
            seen = (await w.get(host, "/x", e2b_sandbox_id=SLUG, e2b_sandbox_port="3000")).json()
            assert (seen["name"], seen["headers"]["host"]) == ("sandbox", f"3000-{SLUG}.box.localhost")
        assert [(ask.kind, ask.name, ask.port) for ask in w.asks] == [("box", SLUG, 3000)]
        for odd in ({"e2b_sandbox_id": SLUG}, {"e2b_sandbox_id": SLUG, "e2b_sandbox_port": "49983"}):
            assert (await w.get(host, "/x", **odd)).json()["name"] == "api"
        for name, port in (("a.b", "80"), ("", "80"), ("a" * 65, "80"), (SLUG, "8x"), (SLUG, "123456"), ("A", "80")):
            assert (await w.get(host, "/x", e2b_sandbox_id=name, e2b_sandbox_port=port)).json()["name"] == "api"
    finally:
        server.close()
    assert len(w.asks) == 1


async def test_a_sandbox_that_is_named_by_headers_is_not_told_the_gateways_secret(w: World) -> None:
    w.points_to(await w.instance("sandbox"))
    said = {"x_dovecote_key": "key-of-one", "x_dovecote_user": "ann"}
    for _ in range(2):
        response = await w.get("localhost", e2b_sandbox_id=SLUG, e2b_sandbox_port="3000", **said)
        assert not [name for name in response.headers if name.startswith("x-gw-")]
        assert not [name for name in response.json()["headers"] if name.startswith("x-dovecote-")]


async def test_a_path_is_made_plain_before_it_is_used(w: World) -> None:
    w.points_to(await w.instance("a"))
    reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
    writer.write(f"GET /a/../b/./c HTTP/1.1\r\nhost: {BOX}\r\nconnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), BOUND)
    writer.close()
    assert b'"path": "/b/c"' in answer


async def test_callers_may_speak_http_1_0(w: World) -> None:
    """A cold and a warm request; without a host it is for the API, which is not there in this world."""
    w.points_to(await w.instance("a"))
    for name, expected in ((BOX, b'"path": "/old"'), (BOX, b'"path": "/old"'), (None, b"unreachable")):
        reader, writer = await asyncio.open_connection("127.0.0.1", w.port)
        host = f"host: {name}\r\n" if name else ""
        writer.write(f"GET /old HTTP/1.0\r\n{host}\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), BOUND)
        writer.close()
        assert expected in answer
        assert b"transfer-encoding" not in answer


async def test_a_function_can_be_called_by_path(w: World) -> None:
    Serving(w, Affinity(modes=(Mode.COOKIE,)), await w.instance("a"))
    first = await w.get("localhost", "/fn/chat/a/b?c=d", **KEY)
    assert first.json()["path"] == "/a/b?c=d"
    assert first.json()["headers"]["host"] == f"chat.fn.localhost:{w.port}"
    assert first.json()["headers"]["x-forwarded-prefix"] == "/fn/chat"
    assert "; Path=/fn/chat;" in first.headers["set-cookie"]
    for path, seen in (("/fn/chat", "/"), ("/fn/chat/", "/"), ("/fn/chat?x", "/?x")):
        answer = await w.get("127.0.0.1", path, cookie="dovecote-session=s1", x_forwarded_prefix="/other", **KEY)
        assert answer.json()["headers"]["x-forwarded-prefix"] == "/fn/chat"
        assert answer.json()["path"] == seen
        assert "x-dovecote-key" not in answer.json()["headers"]


async def test_a_prefix_that_a_client_made_up_reaches_no_instance(w: World) -> None:
    Serving(w, Affinity(), await w.instance("a"))
    for host in (FUNCTION, "shop.app.localhost", f"80-{SLUG}.box.localhost"):
        answer = await w.get(host, x_forwarded_prefix="/other", **KEY)
        assert "x-forwarded-prefix" not in answer.json()["headers"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("a=1", "a=1; Path=/fn/chat"),
        ("a=1; Path=/; Domain=localhost; HttpOnly;Max-Age=5", "a=1; HttpOnly;Max-Age=5; Path=/fn/chat"),
        ("a=b=c;path=/fn/other;  DOMAIN = .localhost ;Secure", "a=b=c;Secure; Path=/fn/chat"),
        ("dovecote-session=planted; Path=/fn/other", None),
        (" __Secure-dovecote-session =planted", None),
        ("nameless", None),
    ],
)
async def test_a_function_by_path_sets_cookies_for_its_own_path_alone(w: World, said: str, kept: str | None) -> None:
    """It shares its host name with the console and all others that are called so."""
    Serving(w, Affinity(), await w.instance("a"))
    added = " + ".join((f"set-cookie: {said}", "set-cookie: z=9", *(f"{name}: max-age=9" for name in FOR_ITS_HOST)))
    for host, prefix in (("localhost", "/fn/chat"), (FUNCTION, "")):
        for _ in range(2):
            answer = await w.get(host, f"{prefix}/", x_dovecote_session="s1", x_answer=added, **KEY)
            cookies = answer.headers.get_list("set-cookie")
            if prefix:
                assert cookies == [*([kept] if kept else []), "z=9; Path=/fn/chat"]
            else:
                assert cookies == [said.strip(), "z=9"]
            assert [name for name in FOR_ITS_HOST if name in answer.headers] == ([] if prefix else FOR_ITS_HOST)


async def test_a_page_by_path_cannot_act_as_the_console_whose_host_it_shares(w: World) -> None:
    """Browsers give it an origin of its own then. At the function's own name it has one anyway."""
    Serving(w, Affinity(), await w.instance("a"))
    own = "content-security-policy: default-src 'self'"
    for _ in range(2):
        by_path = await w.get("localhost", "/fn/chat/", x_dovecote_session="s1", x_answer=own, **KEY)
        policies = by_path.headers.get_list("content-security-policy")
        assert policies[0] == "default-src 'self'"
        assert policies[1].startswith("sandbox ")
        assert "allow-same-origin" not in policies[1]
        by_name = await w.get(FUNCTION, x_dovecote_session="s1", **KEY)
        assert "content-security-policy" not in by_name.headers
    w.answers = w._nobody
    refused = await w.get("localhost", "/fn/other/", **KEY)
    assert refused.headers["content-security-policy"].startswith("sandbox ")


@pytest.mark.parametrize("path", ["/fn", "/fn/", "/fn/A", "/fn/a_b/", "/fnord/a", "/fn/.x"])
async def test_a_path_that_names_no_function_is_the_api_s(w: World, path: str) -> None:
    server = await asyncio.start_unix_server((await w.instance("api"))._serve, w.run_dir / "api.sock")
    try:
        assert (await w.get("localhost", path)).json()["name"] == "api"
    finally:
        server.close()


@pytest.mark.parametrize(("host", "path"), [(FUNCTION, "/a?b"), ("localhost", "/fn/chat/a?b")])
async def test_a_call_that_nobody_waits_for_goes_to_the_api_as_it_came(w: World, host: str, path: str) -> None:
    server = await asyncio.start_unix_server((await w.instance("api"))._serve, w.run_dir / "api.sock")
    try:
        for said in ("async", "Async", "later"):  # the API says what is wrong with the last one
            seen = (await w.send("POST", host, path, b"content", x_dovecote_invoke=said, **KEY)).json()
            assert (seen["name"], seen["path"], seen["size"]) == ("api", path, 7)
            assert seen["headers"]["host"] == f"{host}:{w.port}"
            assert seen["headers"]["x-dovecote-key"] == "key-of-one"
    finally:
        server.close()
    assert w.asks == []
