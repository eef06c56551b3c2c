"""What in a request names its session, and what of the request is left for its server."""

from __future__ import annotations

import pytest

from dovecote.model.naming import Found, find, marked, taken
from dovecote.model.serving import Affinity, Mode

MCP = Affinity(modes=(Mode.MCP_HTTP, Mode.MCP_SSE))


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("/m?session_id=k.abc", "/m?session_id=abc"),
        ("/m?a=b&sessionId=k.a.b&c=d", "/m?a=b&sessionId=a.b&c=d"),
        ("/m?dovecote-session=k.-", "/m"),
        ("/m?dovecote-session=k.-&a=b", "/m?a=b"),
        ("/m?a=b&dovecote-session=k.-&c=d", "/m?a=b&c=d"),
        ("/m?session_id=none&sessionId=k.x", "/m?session_id=none&sessionId=x"),
    ],
)
def test_a_server_sees_its_own_address_again(path: str, left: str) -> None:
    found = find(MCP, "POST", path, {})
    assert found == Found(Mode.MCP_SSE, "k")
    assert taken(found, path, {"a": "b"}) == (left, {"a": "b"})


def test_a_server_sees_its_own_id_again() -> None:
    headers = {"mcp-session-id": marked("my.key", "theirs.1"), "a": "b"}
    found = find(MCP, "POST", "/mcp", headers)
    assert found == Found(Mode.MCP_HTTP, "my.key")
    assert taken(found, "/mcp?x=k.y", headers) == ("/mcp?x=k.y", {"mcp-session-id": "theirs.1", "a": "b"})


@pytest.mark.parametrize("found", [None, Found(Mode.HEADER, "k"), Found(Mode.COOKIE, "k"), Found(Mode.MCP_HTTP, "")])
def test_nothing_else_is_touched(found: Found | None) -> None:
    request = "/m?session_id=k.abc", {"mcp-session-id": "theirs"}
    assert taken(found, *request) == request
