"""Whom the gateway lets call a function, and which session is theirs, on the real rooms."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from dovecote.errors import DovecoteError, Invalid
from dovecote.gateway import Answer, Ask
from dovecote.gateway.directory import Directory
from dovecote.gateway.question import render_note
from dovecote.model.ids import random_text
from dovecote.model.serving import PUBLIC_USER, Affinity, Mode
from tests.unit.control_world import START, World

pytestmark = pytest.mark.anyio


class Calls:
    """Asks as one tenant's client, as another's, or as nobody."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.directory = Directory(world.tenancy, world.routing, world.functions, world.apps)

    async def make(self, affinity: Affinity = Affinity(), *, is_public: bool = False) -> str:
        """The slug of the function `chat`."""
        made = await self.world.functions.create(
            self.world.tenant, "chat", affinity=affinity, start=START, is_public=is_public
        )
        return made.slug

    async def key(self, tenant_id: str) -> str:
        return (await self.world.tenancy.create_key(tenant_id, "k")).secret

    async def __call__(self, name: str, credential: str = "", user: str = "", **headers: str) -> Answer:
        named = {key.replace("_", "-"): value for key, value in headers.items()}
        ask = Ask("function", f"{name}.fn.localhost", name, None, credential, user, "GET", "/", named)
        return await self.directory.resolve(ask)

    async def user_of(self, answer: Answer) -> str:
        assert answer.session_id is not None
        session = await self.world.sessions.get(self.world.tenant, answer.session_id)
        users = await self.world.store.tenant(self.world.tenant).users.list()
        return next(user.name for user in users if user.id == session.user_id)


@pytest.fixture
def calls(world: World) -> Calls:
    return Calls(world)


async def refused(calls: Calls, *args: str, **headers: str) -> str:
    with pytest.raises(DovecoteError) as caught:
        await calls(*args, **headers)
    return caught.value.code


async def test_a_function_that_is_not_public_needs_a_key_of_its_tenant(world: World, calls: Calls) -> None:
    slug = await calls.make()
    mine, others = await calls.key(world.tenant), await calls.key(world.other)
    for name in ("chat", slug):
        assert (await calls(name, mine, x_dovecote_session="s1")).key == "s1"
        assert await refused(calls, name) == "no_key"
        assert await refused(calls, name, others) == "no_such_function"
    assert await refused(calls, random_text(), mine) == "no_such_function"


async def test_everybody_may_call_a_public_function_by_its_slug_and_nobody_as_a_user(
    world: World, calls: Calls
) -> None:
    slug = await calls.make(is_public=True)
    stranger = await calls(slug, user="ann")
    assert await calls.user_of(stranger) == PUBLIC_USER
    assert stranger.is_stranger
    assert stranger.key is not None
    again = await calls(slug, x_dovecote_session=stranger.key)
    assert again.session_id == stranger.session_id
    assert await refused(calls, "chat") == "no_key"
    other = await calls(slug, await calls.key(world.other), user="ann")
    assert await calls.user_of(other) == PUBLIC_USER
    assert other.is_stranger
    mine = await calls(slug, await calls.key(world.tenant), user="ann")
    assert (await calls.user_of(mine), mine.is_stranger) == ("ann", False)


async def test_a_stranger_cannot_make_up_the_id_of_a_session(world: World, calls: Calls) -> None:
    slug = await calls.make(is_public=True)
    known = await calls(slug, await calls.key(world.tenant), user="ann", x_dovecote_session="s1")
    assert known.key == "s1"
    assert await refused(calls, slug, x_dovecote_session="s1") == "no_such_session"


async def test_a_cookie_that_nobody_knows_begins_another_session(world: World, calls: Calls) -> None:
    await calls.make(Affinity(modes=(Mode.COOKIE,), ttl=timedelta(hours=1)))
    key = await calls.key(world.tenant)
    for cookie in ("dovecote-session=unknown", "dovecote-session=un.known", "dovecote-session=a b"):
        answer = await calls("chat", key, cookie=cookie)
        assert answer.key not in (None, "unknown", "un", "a b")
        assert answer.cookie_seconds > 0
    again = await calls("chat", key, cookie=f"dovecote-session={answer.cookie}")
    assert again.session_id == answer.session_id


async def test_a_cookie_is_good_for_its_own_session_alone(world: World, calls: Calls) -> None:
    """Whoever learns or guesses a key makes no cookie of it, and one that was planted or copied leads nowhere."""
    modes = Affinity(modes=(Mode.COOKIE, Mode.HEADER))
    await calls.make(modes)
    await world.functions.create(world.tenant, "other", affinity=modes, start=START)
    await world.functions.create(world.other, "chat", affinity=modes, start=START)
    key, others = await calls.key(world.tenant), await calls.key(world.other)
    mine = await calls("chat", key, "ann", x_dovecote_session="s1")
    assert mine.cookie is not None
    same = {
        "of another function": await calls("other", key, "ann", x_dovecote_session="s1"),
        "of another user": await calls("chat", key, "bob", x_dovecote_session="s1"),
        "of another tenant": await calls("chat", others, "ann", x_dovecote_session="s1"),
    }
    planted = {what: str(answer.cookie) for what, answer in same.items()}
    planted |= {"the key alone": "s1", "a guess": "s1.0", "cut off": mine.cookie[:-1]}
    for what, cookie in planted.items():
        assert (await calls("chat", key, "ann", cookie=f"dovecote-session={cookie}")).key != "s1", what
    assert (await calls("chat", key, "ann", cookie=f"dovecote-session={mine.cookie}")).session_id == mine.session_id


async def test_a_cookie_ends_with_its_session_though_another_one_has_its_key(world: World, calls: Calls) -> None:
    await calls.make(Affinity(modes=(Mode.COOKIE, Mode.HEADER)))
    key = await calls.key(world.tenant)
    first = await calls("chat", key, x_dovecote_session="s1")
    assert first.session_id is not None
    await world.sessions.delete(world.tenant, first.session_id)
    second = await calls("chat", key, x_dovecote_session="s1")
    assert second.session_id != first.session_id
    assert (await calls("chat", key, cookie=f"dovecote-session={first.cookie}")).key != "s1"


async def test_by_tls_the_plain_cookie_says_nothing(world: World, calls: Calls) -> None:
    """A neighbour on the same domain may have planted it; it cannot plant one with the prefix."""
    await calls.make(Affinity(modes=(Mode.COOKIE,)))
    key, tls = await calls.key(world.tenant), {"x_forwarded_proto": "https"}
    first = await calls("chat", key)
    assert (await calls("chat", key, cookie=f"dovecote-session={first.cookie}", **tls)).key != first.key
    assert (await calls("chat", key, cookie=f"__Secure-dovecote-session={first.cookie}", **tls)).key != first.key
    assert (await calls("chat", key, cookie=f"__Host-dovecote-session={first.cookie}", **tls)).key == first.key


@pytest.mark.parametrize("name", ["theirs", "nobodys.theirs"])
async def test_an_mcp_id_that_is_not_ours_is_not_found(world: World, calls: Calls, name: str) -> None:
    await calls.make(Affinity(modes=(Mode.MCP_HTTP,)))
    assert await refused(calls, "chat", await calls.key(world.tenant), mcp_session_id=name) == "no_such_session"


async def test_requests_that_may_begin_no_session_share_one_of_their_user(world: World, calls: Calls) -> None:
    await calls.make(Affinity(modes=(Mode.MCP_HTTP,)))
    key = await calls.key(world.tenant)
    first, second, other = [await calls("chat", key, user) for user in ("ann", "ann", "bob")]
    assert first.session_id == second.session_id != other.session_id


@pytest.mark.parametrize("cookie", ["", "dovecote-session=unknown"])
async def test_a_request_that_asks_again_begins_no_second_session(world: World, calls: Calls, cookie: str) -> None:
    await calls.make(Affinity(modes=(Mode.COOKIE,), strict_ids=True))
    headers = {"cookie": cookie} if cookie else {}
    key = await calls.key(world.tenant)
    ask = Ask("function", "chat.fn.localhost", "chat", None, key, "", "GET", "/", headers)
    first = await calls.directory.resolve(ask)
    again = await calls.directory.resolve(replace(ask, failed=first.address, given=first.key))
    assert again.session_id == first.session_id
    assert render_note(ask, again).split(" ")[4] == f"dovecote-session={again.cookie}"


async def test_strict_ids_are_those_of_function_compute(world: World, calls: Calls) -> None:
    await calls.make(replace(Affinity(), strict_ids=True))
    key = await calls.key(world.tenant)
    assert (await calls("chat", key, x_dovecote_session="_a-B9")).key == "_a-B9"
    for odd in ("-a", "a.b", "a:b", "k" * 65):
        assert await refused(calls, "chat", key, x_dovecote_session=odd) == "malformed_id"


async def test_no_function_has_a_name_that_looks_like_a_slug(world: World) -> None:
    with pytest.raises(Invalid):
        await world.functions.create(world.tenant, "abcdefghijkmnpqrstuvwxyz23", start=START)
