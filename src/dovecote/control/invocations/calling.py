"""One attempt at an asynchronous call: the session's instance found or woken, one request, its answer kept."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import httpx

from dovecote.control.invocations.deciding import Broken, Reply
from dovecote.control.sessions import Routed
from dovecote.errors import DeadlineExceeded, DovecoteError, Failed, NoCapacity
from dovecote.model.invocations import MOST_BODY, MOST_HEADERS, Invocation
from dovecote.model.naming import MCP_HEADER, STATELESS_KEY, marked
from dovecote.model.records import Function
from dovecote.model.serving import Mode

CONNECT_SECONDS = 5.0
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts nobody
REFUSALS = 5  # in a row, each at an address that routing had just given
ID_HEADER = "x-dovecote-invocation-id"
ATTEMPT_HEADER = "x-dovecote-attempt"


class Route(Protocol):
    """Where a caller's session is served; see `Routing.function`."""

    async def __call__(
        self, function: Function, *, user: str, key: str | None, is_made_here: bool = False, failed: str | None = None
    ) -> Routed: ...


class Calling:
    """`authority` gives the host that a function is called by. `start_timeout` bounds how long an instance may take."""

    def __init__(
        self,
        route: Route,
        *,
        authority: Callable[[str], str],
        touch: Callable[[str], Awaitable[None]],
        start_timeout: float,
        touch_every: float = 5.0,
    ) -> None:
        self._route = route
        self._authority = authority
        self._touch = touch
        self._start_timeout = start_timeout
        self._touch_every = touch_every

    async def call(
        self, function: Function, invocation: Invocation, placed: Callable[[str], Awaitable[None]]
    ) -> Reply | Broken:
        """`placed` is told the session that it goes to. A refused connection was no attempt: it goes where it can."""
        failed = None
        for _ in range(REFUSALS):
            try:
                async with asyncio.timeout(self._start_timeout):
                    routed = await self._route(
                        function,
                        user=invocation.user,
                        key=invocation.key,
                        is_made_here=invocation.is_key_ours,
                        failed=failed,
                    )
            except TimeoutError:
                late = DeadlineExceeded(f"it did not start within {self._start_timeout:g} s", code="start_timeout")
                return Broken(late, was_sent=False)
            except DovecoteError as error:
                return Broken(error, was_sent=False)
            if routed.session is not None and routed.session.id != invocation.session_id:
                await placed(routed.session.id)
            outcome = await self._send(function, invocation, routed)
            if not isinstance(outcome, Broken):
                return _given_out(function, invocation, outcome)
            if outcome.was_sent:
                return outcome
            failed = routed.address
        return Broken(NoCapacity("its instance takes no more connections now", code="busy"), was_sent=False)

    async def _send(self, function: Function, invocation: Invocation, routed: Routed) -> Reply | Broken:
        touching = asyncio.ensure_future(self._keep_awake(routed))
        try:
            async with asyncio.timeout(invocation.timeout.total_seconds()):
                return await exchange(routed.address, self._headers(function, invocation), invocation)
        except TimeoutError:
            seconds = invocation.timeout.total_seconds()
            late = DeadlineExceeded(f"the function took longer than {seconds:g} s", code="function_timeout")
            return Broken(late, was_sent=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Broken(Failed(f"no connection to the instance: {error}", code="unreachable"), was_sent=False)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            died = Failed(f"the instance gave no whole answer: {error}", code="instance_died")
            return Broken(died, was_sent=True)
        finally:
            touching.cancel()
            await asyncio.gather(touching, return_exceptions=True)

    async def _keep_awake(self, routed: Routed) -> None:
        """A session that serves an asynchronous call is in use, however long nothing is said."""
        while routed.session is not None:
            await self._touch(routed.session.id)
            await asyncio.sleep(self._touch_every)

    def _headers(self, function: Function, invocation: Invocation) -> dict[str, str]:
        headers = {
            **invocation.headers,
            "host": self._authority(function.name),
            "connection": "close",
            ID_HEADER: invocation.id,
            ATTEMPT_HEADER: str(invocation.attempts),
        }
        if invocation.key is not None:
            headers[function.affinity.header] = invocation.key
        return headers


async def exchange(address: str, headers: dict[str, str], invocation: Invocation) -> Reply:
    """One request on a connection of its own. What is over the limit of a response is read and left out."""
    # An instance is not asked by TLS; a context for it takes the loop many milliseconds to make.
    transport = httpx.AsyncHTTPTransport(verify=NO_TLS, retries=0, limits=httpx.Limits(max_keepalive_connections=0))
    timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
    async with httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client:
        client.headers.clear()
        request = client.build_request(
            invocation.method,
            httpx.URL(f"http://{address}", raw_path=invocation.path.encode("ascii")),
            headers=headers,
            content=base64.b64decode(invocation.body),
        )
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            body, is_truncated = bytearray(), False
            async for chunk in response.aiter_raw():
                is_truncated |= len(body) + len(chunk) > MOST_BODY
                body += chunk[: MOST_BODY - len(body)]
        finally:
            await response.aclose()
    return Reply(
        response.status_code,
        _kept(response.headers),
        base64.b64encode(body).decode(),
        is_truncated,
        _retry_after(response.headers.get("retry-after", "")),
    )


def _given_out(function: Function, invocation: Invocation, reply: Reply) -> Reply:
    """An id that an MCP server gives out leads its client back to this session."""
    theirs = reply.headers.get(MCP_HEADER)
    if theirs is None or invocation.key in (None, STATELESS_KEY) or not function.affinity.has(Mode.MCP_HTTP):
        return reply
    return replace(reply, headers={**reply.headers, MCP_HEADER: marked(invocation.key, theirs)})


def _kept(headers: httpx.Headers) -> dict[str, str]:
    """As far as they fit. A guest wrote them: what no column can hold is replaced."""
    kept: dict[str, str] = {}
    size = 0
    for name, value in headers.items():
        size += len(name) + len(value)
        if size > MOST_HEADERS:
            break
        kept[name] = value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    return kept


def _retry_after(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
