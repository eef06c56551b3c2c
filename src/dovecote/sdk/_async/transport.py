"""How requests get to the server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from dovecote.sdk._errors import DovecoteError, TimedOut, Unreachable, error_from
from dovecote.sdk._settings import Access

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120.0  # a request may be held while an instance starts


class AsyncVia(httpx.AsyncBaseTransport):
    """Connects to the server whatever host a URL names, and names that host in the request.

    So `http://5173-abc.box.localhost:8080` needs no resolver that knows `*.localhost`.
    """

    def __init__(self, server: httpx.URL, limits: httpx.Limits | None = None) -> None:
        self._scheme = server.scheme
        self._host = "127.0.0.1" if server.host == "localhost" or server.host.endswith(".localhost") else server.host
        self._port = server.port
        self._inner = httpx.AsyncHTTPTransport(limits=limits or httpx.Limits())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        if (url.scheme, url.host, url.port) == (self._scheme, self._host, self._port):
            return await self._inner.handle_async_request(request)
        there = url.copy_with(scheme=self._scheme, host=self._host, port=self._port)
        return await self._inner.handle_async_request(
            httpx.Request(
                request.method, there, headers=request.headers, stream=request.stream, extensions=request.extensions
            )
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class AsyncWire:
    """Sends JSON or bytes, answers JSON or bytes, raises DovecoteError."""

    def __init__(self, access: Access, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.access = access
        self.http = httpx.AsyncClient(
            base_url=access.url,
            headers={"authorization": f"Bearer {access.api_key}"},
            transport=transport or AsyncVia(httpx.URL(access.url)),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
        )

    async def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        content: Any = None,
        answer_within: float | None = None,
    ) -> Any:
        """The JSON of the answer, None where it has no body."""
        response = await self._send(method, path, json, params, content, answer_within)
        return response.json() if response.content else None

    async def read(self, path: str, params: Mapping[str, Any]) -> bytes:
        response = await self._send("GET", path, None, params, None, None)
        return response.content

    async def _send(
        self, method: str, path: str, json: Any, params: Any, content: Any, answer_within: float | None
    ) -> httpx.Response:
        timeout = httpx.Timeout(answer_within or ANSWER_SECONDS, connect=CONNECT_SECONDS)
        try:
            response = await self.http.request(
                method, path, json=json, params=_given(params), content=content, timeout=timeout
            )
        except httpx.HTTPError as error:
            raise _broken(error, self.access.url) from error
        if response.status_code >= 400:
            raise error_from(response.status_code, response.content, response.headers.get("retry-after"))
        return response

    async def plain(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes | str | None
    ) -> httpx.Response:
        """An answer of a user's own server, whatever its status. That server is not sent our authorization."""
        request = self.http.build_request(method, url, headers=headers, content=content)
        if "authorization" not in {name.lower() for name in headers}:
            request.headers.pop("authorization", None)
        try:
            return await self.http.send(request)
        except httpx.HTTPError as error:
            raise _broken(error, self.access.url) from error

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """An answer that is read piece by piece, however long it lasts."""
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        try:
            async with self.http.stream(
                method,
                path,
                json=json,
                params=_given(params),
                content=content,
                headers=headers,
                timeout=timeout,
            ) as response:
                if response.status_code >= 400:
                    body = await response.aread()
                    raise error_from(response.status_code, body, response.headers.get("retry-after"))
                yield response
        except httpx.HTTPError as error:
            raise _broken(error, self.access.url) from error

    async def aclose(self) -> None:
        await self.http.aclose()


async def json_lines(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The objects of an NDJSON answer; raises the error that it ends with. Only a line feed ends a line."""
    rest = b""
    async for piece in response.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if not line:
                continue
            fields = json.loads(line)
            if fields["type"] == "error":
                raise error_from(500, line)
            yield fields


def _given(params: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _broken(error: httpx.HTTPError, url: str) -> DovecoteError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return TimedOut(f"no answer from {url} in time", code="no_answer", hint="it may still do what was asked")
    return Unreachable(
        f"no connection to {url}: {error}", code="unreachable", hint="is it running? `dovecote up` starts it here"
    )
