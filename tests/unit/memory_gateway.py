"""The gateway in memory: its own Lua in every worker, its configuration as rendered, Python asked as Envoy asks it.

What is Envoy's own is played here: routes are matched, attempts made, headers taken off, metadata carried.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from dovecote.gateway.bootstrap import Front, Sockets, bootstrap
from dovecote.gateway.clusters import (
    ADDRESS_HEADER,
    ASK_HEADER,
    FAILED_HEADER,
    INTERNAL_HEADERS,
    NOTE_HEADER,
    SESSION_HEADER,
    SPEC_HEADER,
    Json,
)
from dovecote.gateway.question import Headers
from dovecote.gateway.routes import ATTEMPT
from dovecote.gateway.streams import parse_line
from dovecote.gateway.wake import REMOVE_HEADER
from dovecote.model.naming import PREFIX_HEADER
from tests.unit.memory_host import Clock
from tests.unit.memory_lua import Handle, Script
from tests.unit.memory_servers import Fields, Request, Reset, Response, Servers

SECRET = "5" * 32
ROUTE_TTL = 10  # seconds
ASKED = "envoy.filters.http.ext_authz"

Ask = Callable[[str, str, Headers], Awaitable[bytes]]
Told = Callable[[str, str | None], Awaitable[None]]


@dataclass
class Workers:
    """The state of one Envoy process: a table for each of its workers."""

    front: list[Script]
    taken: Script
    is_dead: bool = False


class MemoryGateway:
    """`ask` is how Python is asked; None while nobody answers there. `told` hears of open streams and of ends."""

    def __init__(self, servers: Servers, clock: Clock, *, workers: int) -> None:
        self._servers, self._clock, self._count = servers, clock, workers
        self.ask: Ask | None = None
        self.told: Told | None = None
        self._ids = count(1)
        front = Front("127.0.0.1", 8080, "localhost", ROUTE_TTL, 20.0, SECRET)
        config = bootstrap(front, Sockets(*[Path(f"/run/{n}") for n in "abcdefg"]))
        listeners = {each["name"]: _manager(each) for each in config["static_resources"]["listeners"]}
        self._front, self._wake = listeners["front"], listeners["wake"]
        self.start()

    def start(self) -> None:
        """Also after a kill: nothing of what was learned is left."""
        fronts = [Script(_text(self._front), self._clock) for _ in range(self._count)]
        self.process = Workers(fronts, Script(_text(self._wake), self._clock))

    def die(self) -> None:
        self.process.is_dead = True
        self.start()

    async def send(self, request: Request, *, worker: int) -> Response:
        """What the client is answered. Raises Reset where Envoy dies over it."""
        process = self.process
        fields = [(":method", request.method), (":path", request.path), (":authority", request.host)]
        fields += [(n, v) for n, v in request.headers.items() if n not in (*INTERNAL_HEADERS, PREFIX_HEADER)]
        fields.append(("x-request-id", f"req_{next(self._ids)}"))
        handle = Handle(process.front[worker % self._count], fields)
        route = self._route(fields)
        handle.request(route["metadata"]["filter_metadata"]["lua"]["kind"])
        if handle.is_routed_again:
            route = self._route(handle.fields)
        response = await self._attempts(handle, route, request, process)
        if process.is_dead:
            raise Reset
        handle.respond(response)
        await self._follow(handle, response, process)
        return response

    # -- what Envoy does

    def _route(self, fields: Fields) -> Json:
        host = (first(fields, ":authority") or "").partition(":")[0]
        for named in self._front["route_config"]["virtual_hosts"]:
            if any(domain == "*" or host.endswith(domain[1:]) for domain in named["domains"]):
                route = next(route for route in named["routes"] if _matches(route["match"], fields))
                removed = [*named["request_headers_to_remove"], *route["request_headers_to_remove"]]
                return {**route, "request_headers_to_remove": removed}
        raise AssertionError(f"no route for {host}")

    async def _attempts(self, handle: Handle, route: Json, request: Request, process: Workers) -> Response:
        policy, known = route["route"]["retry_policy"], handle.told("route")
        repeats_written = "reset" in policy["retry_on"].split(",")
        again = {each["string_match"]["exact"] for each in policy["retriable_headers"]}
        sent = [each for each in handle.fields if each[0] not in route["request_headers_to_remove"]]
        address = known["address"] if known else None
        response = Response.error(503, "unreachable")
        for attempt in range(1, policy["num_retries"] + 2):
            if attempt == 1 and address:
                try:
                    found = await self._servers.serve(address, _as_request(sent, request))
                except Reset:
                    response = Response.error(502, "instance_died")
                    if not repeats_written:
                        return response
                    continue
                if found is not None:
                    return found
                continue
            if attempt > 1:
                asked = [] if first(sent, ASK_HEADER) else [(ASK_HEADER, known["ask"] if known else "-")]
                sent = [*without(sent, FAILED_HEADER), *asked, (FAILED_HEADER, address or "-")]
            response = await self._held(sent, request, process, attempt)
            if first(response.fields, NOTE_HEADER) not in again:
                return response
        return response

    async def _held(self, fields: Fields, request: Request, process: Workers, attempt: int) -> Response:
        """On the wake listener."""
        headers = Headers()
        headers.add("host", first(fields, ":authority") or "")
        for name, value in fields:
            if not name.startswith(":"):
                headers.add(name, value)
        try:
            if self.ask is None:
                raise Reset
            told = await self.ask(request.method, f"/wake{first(fields, ':path')}", headers)
        except Reset:
            return Response.error(503, "gateway_not_ready")
        answer = Response.parse(told)
        if answer.status != 200:
            return answer
        handle = Handle(process.taken, fields)
        for name, value in answer.fields:
            if name in (ADDRESS_HEADER, SPEC_HEADER, SESSION_HEADER):
                handle.tell(ASKED, name, value)
        handle.request()
        sent = without(handle.fields, *INTERNAL_HEADERS, *(answer.header(REMOVE_HEADER) or "").split(","))
        try:
            found = await self._servers.serve(answer.header(ADDRESS_HEADER) or "", _as_request(sent, request))
        except Reset:
            return self._local("instance_died", attempt)
        if found is None:
            return self._local("unreachable", attempt)
        found.fields += [each for each in answer.fields if each[0] == NOTE_HEADER]
        return found

    def _local(self, code: str, attempt: int) -> Response:
        """Of the wake listener itself, as rendered."""
        mapper = next(
            each
            for each in self._wake["local_reply_config"]["mappers"]
            if each["body_format_override"]["json_format"]["error"]["code"] == code
        )
        response = Response.error(mapper["status_code"], code)
        added = [(each["header"]["key"], each["header"]["value"]) for each in mapper["headers_to_add"]]
        response.fields += [(name, value.replace(ATTEMPT, str(attempt))) for name, value in added]
        return response

    async def _follow(self, handle: Handle, response: Response, process: Workers) -> None:
        """Tells of the end of a session, once its request is over."""
        ends, route = handle.told("ends"), handle.told("route")
        if not ends or not route or not route["session"]:
            return
        line = f"DownstreamEnd {response.status} {route['session']} {ends}"

        async def over() -> None:
            found = parse_line(line)
            if found is not None and self.told is not None and not process.is_dead:
                await self.told(*found)

        if response.stream is None:
            await over()
        else:
            response.stream.on_end = over


def _manager(listener: Json) -> Json:
    return listener["filter_chains"][0]["filters"][0]["typed_config"]  # type: ignore[no-any-return]


def _text(manager: Json) -> str:
    script = next(each for each in manager["http_filters"] if each["name"] == "lua")
    return script["typed_config"]["default_source_code"]["inline_string"]  # type: ignore[no-any-return]


def _matches(match: Json, fields: Fields) -> bool:
    for wanted in match.get("headers", ()):
        value = first(fields, wanted["name"])
        if value is None:
            return False
        pattern = wanted.get("string_match", {}).get("safe_regex")
        if pattern and not re.fullmatch(pattern["regex"], value):
            return False
    return True


def _as_request(fields: Fields, request: Request) -> Request:
    headers = {name: value for name, value in fields if not name.startswith(":")}
    return Request(
        request.method, first(fields, ":authority") or "", first(fields, ":path") or "", headers, request.hold
    )


def first(fields: Fields, name: str) -> str | None:
    return next((value for each, value in fields if each == name), None)


def without(fields: Fields, *names: str) -> Fields:
    return [each for each in fields if each[0] not in names]
