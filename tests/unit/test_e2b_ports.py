"""Which requests are for a sandbox's own ports, which sandbox they mean, and who may."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from dovecote.api.e2b.connect import send_json
from dovecote.api.e2b.ports import AFTER_USE, Ports
from dovecote.api.e2b.signing import signature
from dovecote.errors import Failed, Gone, NotFound
from dovecote.model.ids import new_id
from dovecote.model.records import Session
from dovecote.model.states import AtTimeout, Desired, SessionState
from tests.unit.fake_rooms import NOW

pytestmark = pytest.mark.anyio

SLUG = "abcdefghijkmnpqrstuvwxyz23"
TOKEN = "token-of-this-sandbox"
PROCESSES = "/process.Process/List"


class Tokens:
    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def find(self, proves: Callable[[str], bool]) -> Session | None:
        return next((each for each in self._sessions.all if proves(each.token)), None)


class Sessions:
    def __init__(self, *sessions: Session) -> None:
        self.all = list(sessions)
        self.tokens = Tokens(self)

    async def by_slug(self, slug: str) -> Session:
        for each in self.all:
            if each.slug == slug:
                return each
        raise NotFound("none", code="no_such_session")

    async def resume(self, tenant_id: str, session_id: str, *, at_least: timedelta) -> Session:
        (found,) = (each for each in self.all if (each.tenant_id, each.id) == (tenant_id, session_id))
        awake = replace(found, desired=Desired.LIVE, timeout_at=NOW + at_least)
        self.all = [awake if each is found else each for each in self.all]
        return awake


class Echo:
    """Answers with the session that it was given; `failure` is raised instead."""

    failure: Exception | None = None

    async def serve(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        if self.failure is not None:
            raise self.failure
        await send_json(send, 200, {"slug": session.slug})


def session(**changes: Any) -> Session:
    made = Session(
        id=new_id("ses"),
        tenant_id=new_id("ten"),
        user_id=new_id("usr"),
        function_id=new_id("fun"),
        revision_id=new_id("rev"),
        key="k",
        slug=SLUG,
        state=SessionState.READY,
        desired=Desired.LIVE,
        created_at=NOW,
        last_active_at=NOW,
        tier="default",
        token=TOKEN,
    )
    return replace(made, **changes)


class Door:
    def __init__(self) -> None:
        self.echo = Echo()
        self.sessions = Sessions(session())
        self.served = {49983: self.echo}
        rest = PlainTextResponse("the rest of the API")
        self.app = Ports(rest, cast(Any, self.sessions), "example.org", self.served)
        transport = httpx.ASGITransport(cast(Any, self.app))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://example.org:8080")

    async def ask(self, path: str = PROCESSES, method: str = "POST", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.request(method, path, headers=named)


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    door = Door()
    async with door.client:
        yield door


IDS = {"e2b_sandbox_id": SLUG, "e2b_sandbox_port": "49983"}


@pytest.mark.parametrize(
    "names",
    [
        IDS,
        {"e2b_sandbox_id": SLUG},
        {"host": f"49983-{SLUG}.box.example.org"},
        {"host": f"49983-{SLUG}.BOX.example.org:8080"},
    ],
)
async def test_a_sandbox_is_named_by_headers_or_by_the_host(door: Door, names: dict[str, str]) -> None:
    answer = await door.ask(x_access_token=TOKEN, **names)
    assert (answer.status_code, answer.json()) == (200, {"slug": SLUG})
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "host", ["example.org", f"49984-{SLUG}.box.example.org", f"49983-{SLUG}.box.example.com", f"x49983-{SLUG}.box.a.b"]
)
async def test_all_other_requests_go_on(door: Door, host: str) -> None:
    assert (await door.ask(host=host)).text == "the rest of the API"
    assert (await door.ask("/files?path=a", "GET", host=host)).text == "the rest of the API"


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN[:-1]])
async def test_without_the_sandboxes_token_nothing_is_done(door: Door, token: str | None) -> None:
    sent = {} if token is None else {"x_access_token": token}
    answer = await door.ask(**IDS, **sent)
    assert answer.status_code == 401
    assert answer.json()["code"] == 401
    assert "access token" in answer.json()["message"]


async def test_a_session_without_a_token_is_nobodys(door: Door) -> None:
    door.sessions.all = [session(token="")]
    assert (await door.ask(**IDS, x_access_token="")).status_code == 401
    signed = f"/files?path=a&signature={signature('a', 'read', '', '')}".replace("+", "%2B")
    assert (await door.ask(signed, "GET", **IDS)).status_code == 401


async def test_a_sandbox_that_was_made_open_asks_for_no_token(door: Door) -> None:
    door.sessions.all = [session(needs_token=False)]
    assert (await door.ask(**IDS)).status_code == 200


async def test_anybody_who_knows_its_name_may_ask_whether_it_runs(door: Door) -> None:
    assert (await door.ask("/health", "GET", **IDS)).status_code == 200


@pytest.mark.parametrize("changes", [{"slug": "other"}, {"desired": Desired.PARKED, "resumes_on_use": False}])
async def test_one_that_is_not_there_or_paused_was_not_found(door: Door, changes: dict[str, Any]) -> None:
    door.sessions.all = [session(**changes)]
    for path in ("/health", PROCESSES):
        answer = await door.ask(path, **IDS, x_access_token=TOKEN)
        assert answer.status_code == 502
        assert answer.json() == {"sandboxId": SLUG, "message": "The sandbox was not found", "code": 502}


async def test_a_pause_that_use_ends_does_not_matter(door: Door) -> None:
    door.sessions.all = [session(desired=Desired.PARKED)]
    assert (await door.ask(**IDS, x_access_token=TOKEN)).status_code == 200


async def test_one_that_use_has_woken_has_a_timeout_again(door: Door) -> None:
    door.sessions.all = [session(desired=Desired.PARKED, at_timeout=AtTimeout.PAUSE)]
    assert (await door.ask("/health", "GET", **IDS)).status_code == 200
    assert door.sessions.all[0].is_paused
    assert (await door.ask(**IDS, x_access_token="wrong")).status_code == 401
    assert door.sessions.all[0].is_paused
    assert (await door.ask(**IDS, x_access_token=TOKEN)).status_code == 200
    assert door.sessions.all[0].timeout_at == NOW + AFTER_USE


async def test_one_that_ended_meanwhile_was_not_found(door: Door) -> None:
    door.echo.failure = Gone("it has ended", code="session_expired")
    assert (await door.ask(**IDS, x_access_token=TOKEN)).status_code == 502


async def test_a_port_that_is_not_served_is_said_to_be_none(door: Door) -> None:
    for port in ("49999", "80", "x", "999999"):
        answer = await door.ask(e2b_sandbox_id=SLUG, e2b_sandbox_port=port, x_access_token=TOKEN)
        assert answer.status_code == 404


async def test_errors_have_the_shape_that_clients_read(door: Door) -> None:
    door.echo.failure = NotFound("no file a", code="file_not_found", hint="look")
    answer = await door.ask(**IDS, x_access_token=TOKEN)
    assert (answer.status_code, answer.json()) == (404, {"code": 404, "message": "no file a (look) [file_not_found]"})
    door.echo.failure = NotFound("no such user", code="no_such_user")
    assert (await door.ask(**IDS, x_access_token=TOKEN)).status_code == 401
    door.echo.failure = Failed("full", code="disk_full")
    assert (await door.ask(**IDS, x_access_token=TOKEN)).status_code == 507
    door.echo.failure = RuntimeError("a secret")
    answer = await door.ask(**IDS, x_access_token=TOKEN)
    assert answer.status_code == 500
    assert "secret" not in answer.text


# -- signed URLs


def signed(path: str = "a b", operation: Any = "read", token: str = TOKEN, **more: str) -> str:
    proof = signature(path, operation, more.get("username", ""), token, more.get("signature_expiration"))
    return f"/files?{httpx.QueryParams({'path': path, 'signature': proof, **more})}"


async def test_a_signed_url_needs_no_name_and_no_token(door: Door) -> None:
    door.sessions.all.insert(0, session(slug="another", token="another token"))
    for url, method in (
        (signed(), "GET"),
        (signed(operation="write"), "POST"),
        (signed(username="root"), "GET"),
        (signed(signature_expiration="99999999999"), "GET"),
    ):
        answer = await door.ask(url, method)
        assert (answer.status_code, answer.json()) == (200, {"slug": SLUG})


async def test_a_signed_url_may_come_to_the_sandboxes_own_name(door: Door) -> None:
    assert (await door.ask(signed(), "GET", **IDS)).status_code == 200
    assert (await door.ask(signed(token="another"), "GET", **IDS)).status_code == 401
    assert (await door.ask(signed(signature_expiration="1"), "GET", **IDS)).status_code == 401


async def test_a_signature_is_good_for_nothing_else(door: Door) -> None:
    other = signed().partition("?")[2]
    for path, method in (
        (signed(), "POST"),
        (signed(operation="write"), "GET"),
        (signed().replace("a+b", "c"), "GET"),
        (signed() + "&username=root", "GET"),
        (signed(signature_expiration="1"), "GET"),
        (signed(signature_expiration="1").replace("expiration=1", "expiration=99999999999"), "GET"),
        (signed(token="guess"), "GET"),
    ):
        assert (await door.ask(path, method)).status_code == 401, path
    assert (await door.ask(f"{PROCESSES}?{other}", **IDS)).status_code == 401
    assert (await door.ask(f"/health?{other}", "GET")).text == "the rest of the API"


# -- browsers


async def test_pages_of_other_sites_may_ask(door: Door) -> None:
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "x-access-token,authorization"}
    for names in ({}, {"host": f"49983-{SLUG}.box.example.org"}):
        for path in (PROCESSES, "/files"):
            answer = await door.ask(path, "OPTIONS", **asked, **names)
            assert answer.status_code == 204
            assert answer.headers["access-control-allow-headers"] == "x-access-token,authorization"
    assert (await door.ask("/v1/sessions", "OPTIONS", **asked)).text == "the rest of the API"
