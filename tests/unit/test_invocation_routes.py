"""Asynchronous calls by API, by SDK and by a header at a function's own address, as two tenants use them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from dovecote.api.app import build
from dovecote.api.rooms import Rooms
from dovecote.control.invocations import Invocations, WebhookSecrets
from dovecote.model.addresses import Addresses
from dovecote.model.invocations import MOST_BODY, InvocationState
from dovecote.model.serving import PUBLIC_USER, Affinity, Mode
from dovecote.sdk import AsyncDovecote, DovecoteError
from tests.unit.control_world import START, World, world_on
from tests.unit.fake_rooms import nothing_here
from tests.unit.memory_host import Clock, MemoryHost

pytestmark = pytest.mark.anyio


@dataclass
class Site:
    world: World
    http: httpx.AsyncClient  # sends no key
    keys: tuple[str, str]

    async def invoke(self, url: str, *, key: str = "", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(
            url, content=b"hi", headers={"x-dovecote-invoke": "async", "x-dovecote-key": key} | named
        )


@pytest.fixture
async def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    async with world_on(MemoryHost(Clock()), tmp_path, monkeypatch) as world:
        nothing = cast(Any, None)
        rooms = Rooms(
            tenancy=world.tenancy,
            sessions=world.sessions,
            sandboxes=world.sandboxes,
            apps=world.apps,
            functions=world.functions,
            chats=nothing,
            snapshots=nothing,
            addresses=Addresses("localhost", 8080),
            volumes=nothing,
            templates=world.templates,
            metering=nothing,
            contents=nothing,
            deployments=world.deployments,
            invocations=Invocations(world.store, world.functions, begun=world.routing),
            webhook_secrets=WebhookSecrets(world.store),
        )
        app = build(rooms, tools=nothing_here, is_ready=lambda: True, version="0.0.0")
        keys = [(await world.tenancy.create_key(tenant, "a key")).secret for tenant in (world.tenant, world.other)]
        await world.functions.create(world.tenant, "work", start=START)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8080") as http:
            yield Site(world, http, (keys[0], keys[1]))


@pytest.fixture
async def clients(site: Site) -> tuple[AsyncDovecote, AsyncDovecote]:
    transport = site.http._transport
    mine, theirs = (AsyncDovecote(key, "http://localhost:8080", transport=transport) for key in site.keys)
    return mine, theirs


async def test_a_call_by_the_client(clients: tuple[AsyncDovecote, AsyncDovecote]) -> None:
    mine, _ = clients
    made = await mine.invocations.create("work", b"\0hi", path="/a?b=c", session="chat7", user="anna", delay=60)
    assert (made.state, made.session, made.user, made.path, made.has_ended) == (
        *("queued", "chat7", "anna", "/a?b=c"),
        False,
    )
    assert made.due_at is not None
    assert (made.due_at - made.created_at).total_seconds() == 60
    whole = await mine.invocations.get(made.id)
    assert (whole.body_base64, whole.response, whole.response_body) == ("AGhp", None, b"")
    assert [each.id async for each in mine.invocations.each(function="work", state=["queued"])] == [made.id]
    assert [each.id async for each in mine.invocations.each(session="chat8")] == []
    assert (await mine.invocations.cancel(made.id)).state == "cancelled"
    again = await mine.invocations.replay(made.id)
    assert (again.replay_of, again.session) == (made.id, "chat7")


async def test_another_tenants_calls_are_not_there(clients: tuple[AsyncDovecote, AsyncDovecote]) -> None:
    mine, theirs = clients
    made = await mine.invocations.create("work", b"hi", idempotency_key="a")
    for act in (theirs.invocations.get, theirs.invocations.cancel, theirs.invocations.replay):
        with pytest.raises(DovecoteError) as caught:
            await act(made.id)
        assert caught.value.code == "no_such_invocation"
    with pytest.raises(DovecoteError) as caught:
        await theirs.invocations.create("work", b"hi", idempotency_key="a")
    assert caught.value.code == "no_such_function"
    assert [each async for each in theirs.invocations.each()] == []


async def test_each_tenant_has_its_own_secret(clients: tuple[AsyncDovecote, AsyncDovecote]) -> None:
    mine, theirs = clients
    secret = await mine.invocations.webhook_secret()
    assert await mine.invocations.webhook_secret() == secret
    assert await theirs.invocations.webhook_secret() != secret
    assert await mine.invocations.webhook_secret(rotate=True) != secret
    assert len(secret) > 50


@pytest.mark.parametrize("url", ["http://work.fn.localhost:8080/a/b?c=d%20e", "/fn/work/a/b?c=d%20e"])
async def test_a_request_to_the_functions_address_is_queued(site: Site, url: str) -> None:
    headers = {"x_dovecote_session": "chat7", "x_dovecote_user": "anna", "x_dovecote_invoke_delay": "5", "a": "b"}
    answer = await site.invoke(url, key=site.keys[0], **headers)
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert (answer.headers["x-dovecote-invocation-id"], answer.headers["x-dovecote-session"]) == (told["id"], "chat7")
    kept = await site.world.store.tenant(site.world.tenant).invocations.get(told["id"])
    assert (kept.method, kept.path, kept.key, kept.user, kept.body) == (
        *("POST", "/a/b?c=d%20e", "chat7", "anna", "aGk="),
    )
    assert kept.headers["a"] == "b"
    assert site.keys[0] not in str(kept)
    assert not any(name.startswith("x-dovecote") for name in kept.headers)


async def test_a_request_without_a_session_is_given_one(site: Site) -> None:
    answer = await site.invoke("/fn/work", key=site.keys[0])
    assert len(answer.headers["x-dovecote-session"]) == 26
    kept = await site.world.store.tenant(site.world.tenant).invocations.get(answer.json()["id"])
    assert (kept.path, kept.key) == ("/", answer.headers["x-dovecote-session"])


async def test_a_public_function_takes_calls_of_anybody_by_its_slug(site: Site) -> None:
    """Who has no key names no user, and no session where ids are not the client's to choose."""
    cookies = Affinity(modes=(Mode.COOKIE,))
    public = await site.world.functions.create(site.world.tenant, "open", start=START, is_public=True, affinity=cookies)
    named = {"x_dovecote_user": "anna", "x_dovecote_session": "chat7"}
    answer = await site.invoke(f"http://{public.slug}.fn.localhost/", **named)
    assert answer.status_code == 202, answer.text
    kept = await site.world.store.tenant(site.world.tenant).invocations.get(answer.json()["id"])
    assert (kept.function, kept.user, kept.is_key_ours) == ("open", PUBLIC_USER, False)
    assert kept.key != "chat7"
    chosen = await site.world.functions.create(site.world.tenant, "chosen", start=START, is_public=True)
    answer = await site.invoke(f"http://{chosen.slug}.fn.localhost/", **named)
    kept = await site.world.store.tenant(site.world.tenant).invocations.get(answer.json()["id"])
    assert (kept.user, kept.key, kept.is_key_ours) == (PUBLIC_USER, "chat7", True)  # it must be there already
    hidden = await site.world.functions.get(site.world.tenant, "work")
    assert (await site.invoke(f"http://{hidden.slug}.fn.localhost/")).status_code == 401


@pytest.mark.parametrize("url", ["http://pages.fn.localhost:8080/", "/fn/pages/"])
async def test_a_browser_is_given_the_cookie_of_the_session_that_its_call_is_made_in(site: Site, url: str) -> None:
    hour = Affinity(modes=(Mode.COOKIE,), ttl=timedelta(hours=1))
    await site.world.functions.create(site.world.tenant, "pages", start=START, affinity=hour)
    first = await site.invoke(url, key=site.keys[0], x_forwarded_proto="https")
    name, value = first.headers["set-cookie"].partition(";")[0].split("=")
    rest = first.headers["set-cookie"].partition("; Path=")[2]
    by_path = url.startswith("/")
    assert name == ("__Secure-dovecote-session" if by_path else "__Host-dovecote-session")
    assert rest == ("/fn/pages" if by_path else "/") + "; HttpOnly; SameSite=Lax; Secure"
    back = await site.invoke(url, key=site.keys[0], x_forwarded_proto="https", cookie=f"{name}={value}")
    assert (back.json()["session"], "set-cookie" in back.headers) == (first.json()["session"], False)
    planted = await site.invoke(url, key=site.keys[0], x_forwarded_proto="https", cookie=f"dovecote-session={value}")
    assert planted.json()["session"] != first.json()["session"]
    assert planted.headers["set-cookie"].partition("=")[0] == name
    kept = await site.world.store.tenant(site.world.tenant).invocations.get(first.json()["id"])
    assert kept.headers.get("x-forwarded-prefix") == ("/fn/pages" if by_path else None)


async def test_a_stranger_who_repeats_anothers_call_is_given_no_cookie_of_it(site: Site) -> None:
    cookies = Affinity(modes=(Mode.COOKIE,))
    public = await site.world.functions.create(site.world.tenant, "open", start=START, is_public=True, affinity=cookies)
    url = f"http://{public.slug}.fn.localhost/"
    for cookie in ("", "dovecote-session=made.up"):
        headers = {"cookie": cookie} if cookie else {}
        first, again = [await site.invoke(url, idempotency_key="order-1", **headers) for _ in range(2)]
        assert first.json()["id"] == again.json()["id"]
        for each in (first, again):
            assert (each.json()["session"], "set-cookie" in each.headers) == (None, False)


async def test_idempotency_keys_of_strangers_meet_nobody_elses(site: Site) -> None:
    """Such keys are often counted, like the numbers of orders: whoever guesses one learns of no call and no session."""
    public = await site.world.functions.create(site.world.tenant, "open", start=START, is_public=True)
    url, order = f"http://{public.slug}.fn.localhost/", {"idempotency_key": "order-1"}
    mine = await site.invoke(url, key=site.keys[0], x_dovecote_session="chat7", **order)
    strangers = [await site.invoke(url, **order) for _ in range(2)]
    named = [await site.invoke(url, x_dovecote_session=key, **order) for key in ("one", "one", "two")]
    ids = [each.json()["id"] for each in (mine, *strangers, *named)]
    assert [ids.index(each) for each in ids] == [0, 1, 1, 3, 3, 5]
    for each in strangers:
        assert each.json()["session"] is None
        assert "x-dovecote-session" not in each.headers
    assert [each.headers["x-dovecote-session"] for each in (mine, *named)] == ["chat7", "one", "one", "two"]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"x_dovecote_invoke": "later"}, 400, "invalid"),
        ({"x_dovecote_invoke_delay": "soon"}, 400, "invalid"),
        ({"x_dovecote_invoke_delay": "nan"}, 400, "invalid"),
        ({"x_dovecote_invoke_delay": "90000"}, 400, "invalid"),
        ({"x_dovecote_invoke_timeout": "1e999"}, 400, "invalid"),
        ({"x_dovecote_session": "a b"}, 400, "malformed_id"),
        ({"idempotency_key": "k" * 201}, 400, "invalid"),
        ({"x_dovecote_key": "dvc_wrong"}, 401, "bad_key"),
        ({"x_dovecote_key": ""}, 401, "no_key"),
    ],
)
async def test_what_is_wrong_is_said(site: Site, headers: dict[str, str], status: int, code: str) -> None:
    answer = await site.invoke("/fn/work/", **({"key": site.keys[0]} | headers))
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["x-request-id"] == answer.json()["error"]["request_id"]


async def test_another_tenants_function_is_not_there(site: Site) -> None:
    answer = await site.invoke("/fn/work/", key=site.keys[1])
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_such_function")


async def test_a_body_is_bounded(site: Site) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * (MOST_BODY // 4)

    headers = {"x-dovecote-invoke": "async", "x-dovecote-key": site.keys[0]}
    for content in (pieces(), b"x" * (MOST_BODY + 1)):
        answer = await site.http.post("/fn/work/", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert (await site.http.post("/fn/work/", content=b"x" * MOST_BODY, headers=headers)).status_code == 202


async def test_bodies_of_the_api_are_text_or_base64(site: Site) -> None:
    headers = {"x-dovecote-key": site.keys[0]}
    for body, status in (
        ({"body": "hé"}, 202),
        ({"body_base64": "AGhp"}, 202),
        ({"body": "a", "body_base64": "YQ=="}, 400),
        ({"body_base64": "?"}, 400),
        ({"body": "é" * MOST_BODY}, 413),
        ({"retries": 3}, 400),
    ):
        answer = await site.http.post("/v1/functions/work/invocations", json=body, headers=headers)
        assert answer.status_code == status, answer.text


async def test_requests_that_are_not_asynchronous_pass(site: Site) -> None:
    assert (await site.http.get("/healthz", headers={"x-dovecote-invoke": "async"})).status_code == 200


async def test_a_call_that_is_over_begins_no_session_again_for_a_cookie(site: Site) -> None:
    cookies = Affinity(modes=(Mode.COOKIE,))
    await site.world.functions.create(site.world.tenant, "pages", start=START, affinity=cookies)
    sessions = site.world.store.tenant(site.world.tenant).sessions
    invocations = site.world.store.tenant(site.world.tenant).invocations
    first = await site.invoke("/fn/pages/", key=site.keys[0], idempotency_key="one")
    assert "set-cookie" in first.headers
    (session,) = await sessions.list()
    await site.world.sessions.delete(site.world.tenant, session.id)
    made = await invocations.get(first.json()["id"])
    await invocations.swap(replace(made, state=InvocationState.CANCELLED, finished_at=made.created_at, due_at=None))
    again = await site.invoke("/fn/pages/", key=site.keys[0], idempotency_key="one")
    assert (again.status_code, again.json()["id"]) == (202, made.id)
    assert "set-cookie" not in again.headers
    assert [each.id for each in await sessions.list()] == [session.id]
