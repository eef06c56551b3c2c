"""Cookies of sessions, as the gateway's Lua gives them out and as the API does."""

from __future__ import annotations

from typing import Any, cast

import pytest

from dovecote.api.cookies import render_cookie
from dovecote.gateway.question import Answer, Headers, parse_ask, render_note
from dovecote.model.naming import PREFIX_HEADER, PROTO_HEADER
from dovecote.model.serving import Affinity, Mode
from tests.unit.memory_gateway import SECRET, MemoryGateway
from tests.unit.memory_host import Clock
from tests.unit.memory_lua import Handle
from tests.unit.memory_servers import Response

COOKIES = Affinity(modes=(Mode.COOKIE,))


@pytest.mark.parametrize("proto", ["http", "https"])
@pytest.mark.parametrize("prefix", ["", "/fn/pages"])
def test_a_browser_is_given_the_same_cookie_whether_or_not_its_call_waits(proto: str, prefix: str) -> None:
    headers = Headers()
    for name, value in (("host", "pages.fn.localhost"), (PROTO_HEADER, proto), (PREFIX_HEADER, prefix)):
        if value:
            headers.add(name, value)
    answer = Answer("10.0.0.1:80", affinity=COOKIES, key="k", session_id="ses_1", cookie="k.1f", cookie_seconds=60)
    note = render_note(parse_ask("GET", "/wake/", headers, "localhost"), answer)

    front = MemoryGateway(cast(Any, None), Clock(), workers=1).process.front[0]
    handle = Handle(front, [])
    if prefix:
        handle.tell("dovecote.path", "prefix", prefix)
    response = Response(200, [("x-gw-wake", f"{SECRET} route {note}")])
    handle.respond(response)

    given = [value for name, value in response.fields if name == "set-cookie"]
    assert given == [render_cookie("k.1f", 60, is_secure=proto == "https", prefix=prefix)]
