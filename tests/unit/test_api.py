"""The API: what comes in is checked, what goes out has one shape."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from dovecote import errors
from dovecote.api.errors import STATUS, render
from dovecote.errors import DovecoteError
from dovecote.model.ids import new_id
from tests.unit.api_answers import opened, problem
from tests.unit.fake_rooms import KEY, Rooms

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "api.md"


# -- errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Invalid("no"), 400),
        (errors.Invalid("no", code="malformed_id"), 400),
        (errors.Unauthenticated("no"), 401),
        (errors.Forbidden("no"), 403),
        (errors.NotFound("no"), 404),
        (errors.Gone("no"), 410),
        (errors.Gone("no", code="session_expired"), 401),
        (errors.Conflict("no"), 409),
        (errors.NoCapacity("no", code="too_many"), 429),
        (errors.Failed("no"), 500),
        (errors.Failed("no", code="instance_died"), 502),
        (errors.Failed("no", code="port_closed"), 502),
        (errors.StorageFailed("no", code="disk_full"), 507),
        (errors.StorageFailed("no", code="store_unreachable"), 503),
        (errors.StorageFailed("no", code="store_denied"), 503),
        (errors.DeadlineExceeded("no", code="start_timeout"), 504),
        (errors.Unsupported("no"), 501),
        (DovecoteError("no"), 500),
    ],
)
def test_each_error_has_its_status(error: DovecoteError, status: int) -> None:
    assert render(error, "req_x")[0] == status


def test_every_class_of_the_tree_is_in_the_table() -> None:
    def below(kind: type[DovecoteError]) -> set[type[DovecoteError]]:
        return {kind}.union(*(below(each) for each in kind.__subclasses__() if each.__module__ == "dovecote.errors"))

    assert below(DovecoteError) == set(STATUS)


def test_no_capacity_says_when_to_come_back() -> None:
    assert render(errors.NoCapacity("no"), "r")[1]["retry-after"] == "1"
    assert render(errors.NoCapacity("no", retry_after=2.2), "r")[1]["retry-after"] == "3"
    assert "retry-after" not in render(errors.Invalid("no"), "r")[1]


async def test_a_route_under_v1_needs_a_key_even_if_it_does_not_exist(rooms: Rooms) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(rooms.api()), base_url="http://localhost") as http:
        for path in ("/v1/sessions", "/v1/nothing", f"/v1/sessions/{new_id('ses')}/commands"):
            answer = await http.get(path)
            assert problem(answer) == (401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert problem(await http.get("/v1/sessions", headers={"x-dovecote-key": "wrong"}))[0] == 401
        assert (await http.get("/v1/sessions", headers={"x-dovecote-key": KEY})).status_code == 200


async def test_unknown_routes_and_wrong_methods_have_the_same_shape(http: httpx.AsyncClient) -> None:
    assert problem(await http.get("/v1/nothing")) == (404, "no_such_route")
    assert problem(await http.get("/nothing")) == (404, "no_such_route")
    assert problem(await http.put("/v1/sessions")) == (405, "method_not_allowed")


async def test_a_wrong_field_is_named(http: httpx.AsyncClient) -> None:
    for body, field in (
        ({"idle_after_seconds": "soon"}, "idle_after_seconds"),
        ({"colour": "red"}, "colour"),
        ({"env": {"A": 1}}, "env.A"),
    ):
        answer = await http.post("/v1/sessions", json=body)
        assert problem(answer) == (400, "invalid")
        assert field in answer.json()["error"]["message"]
    is_json = {"content-type": "application/json"}
    for said, headers in (("not JSON: ", is_json), ("not declared as JSON", {})):
        answer = await http.post("/v1/sessions", content=b"{", headers=headers)
        assert problem(answer) == (400, "invalid")
        assert said in answer.json()["error"]["message"]
    assert problem(await http.get("/v1/sessions?limit=0")) == (400, "invalid")


async def test_a_malformed_id_is_refused_before_any_lookup(http: httpx.AsyncClient, rooms: Rooms) -> None:
    for path in ("/v1/sessions/x", "/v1/sessions/ses_ABC", f"/v1/sessions/{new_id('app')}", "/v1/chats/1/turns"):
        assert problem(await http.get(path)) == (400, "malformed_id")
    assert problem(await http.post("/v1/sessions/x/commands", json={"command": "true"})) == (400, "malformed_id")
    assert rooms.sessions.lookups == 0
    assert rooms.sandboxes.calls == []


async def test_an_unforeseen_error_is_logged_once_with_its_request(
    http: httpx.AsyncClient, rooms: Rooms, caplog: pytest.LogCaptureFixture
) -> None:
    rooms.sessions.failure = RuntimeError("secret detail")
    with caplog.at_level(logging.ERROR):
        answer = await http.get(f"/v1/sessions/{new_id('ses')}")
    assert problem(answer) == (500, "internal")
    assert "secret" not in answer.text
    assert len(caplog.records) == 1
    assert answer.json()["error"]["request_id"] in caplog.text


async def test_a_json_body_is_bounded(http: httpx.AsyncClient) -> None:
    session = await opened(http)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 16)

    for path in ("/v1/sessions", f"/v1/sessions/{session}/commands", f"/v1/sessions/{session}/commands/1/stdin"):
        method = "PUT" if path.endswith("stdin") else "POST"
        whole = await http.request(method, path, content=b" " * (2 << 20))
        assert problem(whole) == (413, "too_large")
        # Only a session has files that may be sent instead.
        assert ("/files" in whole.json()["error"]["hint"]) == (path != "/v1/sessions")
        assert problem(await http.request(method, path, content=pieces())) == (413, "too_large")


@pytest.mark.parametrize("path", ["/v1/templates", "/v1/templates/files", "/v1/templates:upload/x", "/v1/x/files"])
async def test_only_routes_that_say_so_take_larger_bodies(http: httpx.AsyncClient, path: str) -> None:
    for method in ("POST", "PUT"):
        assert problem(await http.request(method, path, content=b" " * (2 << 20))) == (413, "too_large")


# -- what it says of itself


async def test_health_needs_no_key_and_readiness_is_told(rooms: Rooms) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(rooms.api()), base_url="http://localhost") as http:
        assert (await http.get("/healthz")).json() == {"status": "ok"}
        assert (await http.get("/readyz")).status_code == 200
        rooms.is_ready = False
        assert problem(await http.get("/readyz")) == (503, "not_ready")
        assert "dovecote_api_requests_total" in (await http.get("/metrics")).text


async def test_the_console_puts_nothing_in_as_markup(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"):
        assert way not in page.text


async def test_the_description_has_every_route_and_only_our_error(http: httpx.AsyncClient) -> None:
    document = (await http.get("/v1/openapi.json")).json()
    commands = document["paths"]["/v1/sessions/{session_id}/commands"]["post"]
    assert commands["requestBody"]["content"]["application/json"]["schema"]["required"] == ["command"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            assert operation["summary"], path
            assert ("security" in operation) == (path.startswith("/v1/") and path != "/v1/openapi.json"), path


async def test_the_reference_page_has_every_route(http: httpx.AsyncClient) -> None:
    text = DOCS.read_text("utf-8")
    document = (await http.get("/v1/openapi.json")).json()
    wanted = {f"`{m.upper()} {path}`" for path, methods in document["paths"].items() for m in methods}
    assert {line for line in wanted if line not in text} == set()
