"""What each way to name a session makes of one that has ended."""

from __future__ import annotations

import pytest

from dovecote.errors import Gone, NotFound
from dovecote.gateway.directory import Directory
from dovecote.gateway.question import Answer, Ask, Headers
from dovecote.model.naming import Found
from dovecote.model.records import Function
from dovecote.model.serving import Affinity, Mode, Sharing
from tests.unit.control_world import START, World

pytestmark = pytest.mark.anyio


async def public(world: World, mode: Mode, *, refuses_reuse: bool = False) -> Function:
    affinity = Affinity(modes=(mode,), refuses_reuse=refuses_reuse)
    return await world.functions.create(
        world.tenant, "open", start=START, affinity=affinity, sharing=Sharing(sessions=5), is_public=True
    )


async def resolve(world: World, function: Function, found: Found | None) -> Answer:
    directory = Directory(world.tenancy, world.routing, world.functions, world.apps)
    ask = Ask("function", "", function.slug, None, "", "", "GET", "/", Headers(), found=found)
    return await directory.resolve(ask)


async def ended(world: World, function: Function) -> str:
    """What names a session that was, and has ended."""
    answer = await resolve(world, function, None)
    assert answer.key is not None
    assert answer.session_id is not None
    await world.routing.end(answer.session_id, "its client was done")
    return answer.cookie or answer.key


async def test_a_cookie_of_an_ended_session_begins_another(world: World) -> None:
    function = await public(world, Mode.COOKIE)
    key = await ended(world, function)
    answer = await resolve(world, function, Found(Mode.COOKIE, key))
    assert answer.cookie not in (None, key)


async def test_a_cookie_of_an_ended_session_is_refused_where_reuse_is(world: World) -> None:
    function = await public(world, Mode.COOKIE, refuses_reuse=True)
    key = await ended(world, function)
    with pytest.raises(Gone):
        await resolve(world, function, Found(Mode.COOKIE, key))


async def test_an_mcp_client_of_an_ended_session_is_told_that_there_is_none(world: World) -> None:
    function = await public(world, Mode.MCP_HTTP)
    key = await ended(world, function)
    with pytest.raises(NotFound) as unknown:
        await resolve(world, function, Found(Mode.MCP_HTTP, key))
    assert unknown.value.code == "no_such_session"
