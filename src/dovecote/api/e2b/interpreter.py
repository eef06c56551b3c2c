"""A sandbox's port 49999, as E2B's code interpreter serves it: code in contexts, results as lines of JSON."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import orjson
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from dovecote.api.e2b.call import identity
from dovecote.api.e2b.connect import code_of, read_unary, send_json
from dovecote.api.e2b.messages import Json
from dovecote.control.sandboxes import (
    Accepted,
    Context,
    Contexts,
    Ended,
    Fault,
    Happening,
    Printed,
    Result,
    Sandboxes,
    Truncated,
)
from dovecote.errors import DovecoteError, NotFound
from dovecote.model.ids import parse_id
from dovecote.model.records import Session

LONGEST = 24 * 3600.0  # seconds; clients leave earlier by themselves, which ends what they ran
CONTEXT = re.compile(r"/contexts/([^/]+)")
RESTART = re.compile(r"/contexts/([^/]+)/restart")
TABLE = "application/vnd.dovecote.table+json"
CHART = "application/vnd.dovecote.chart+json"
NAMES = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    CHART: "chart",
}
CUT = "\n[the rest of the output was dropped: there was too much]\n"


class Interpreter:
    """Serves requests whose sandbox is known and whose right to it was looked at."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._contexts: Contexts = sandboxes.contexts

    async def serve(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        place = (session.tenant_id, session.id)
        path, headers = scope["path"], Headers(scope=scope)
        method = "GET" if scope["method"] == "HEAD" else scope["method"]  # the server leaves its body out
        if (method, path) == ("GET", "/health"):
            await send_json(send, 200, "OK")
        elif (method, path) == ("POST", "/execute"):
            await self._execute(session, receive, headers, send)
        elif (method, path) == ("GET", "/contexts"):
            await send_json(send, 200, [context_body(each) for each in await self._contexts.list(*place)])
        elif (method, path) == ("POST", "/contexts"):
            asked = await read_unary(receive, headers)
            made = await self._contexts.create(
                *place,
                language=asked.text("language") or "python",
                cwd=asked.text("cwd") or None,
                env=identity(session),
            )
            await send_json(send, 200, context_body(made))
        elif method == "DELETE" and (match := CONTEXT.fullmatch(path)):
            await self._contexts.remove(*place, _context_id(match[1]))
            await _send_nothing(send)
        elif method == "POST" and (match := RESTART.fullmatch(path)):
            await self._contexts.restart(*place, _context_id(match[1]))
            await _send_nothing(send)
        else:
            raise NotFound(f"no route {method} {path[:200]}", code="no_such_route")

    async def _execute(self, session: Session, receive: Receive, headers: Headers, send: Send) -> None:
        place = (session.tenant_id, session.id)
        asked = await read_unary(receive, headers)
        name = asked.text("context_id")
        events = self._contexts.execute(
            *place,
            asked.text("code"),
            context_id=_context_id(name) if name else None,
            language=asked.text("language") or "python",
            env=asked.text_map("env_vars"),
            context_env=identity(session),
            timeout=LONGEST,
        )
        # Awaited ahead of the answer, so that a refusal has its status.
        first = await anext(events)
        assert isinstance(first, Accepted)
        telling = asyncio.ensure_future(_tell(events, send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        finally:
            leaving.cancel()
            if not telling.done():
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
                with suppress(DovecoteError):
                    await asyncio.shield(self._contexts.interrupt(*place, first.context_id, first.execution_id))


async def _tell(events: AsyncGenerator[Happening, None], send: Send) -> None:
    async with aclosing(events):
        start = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        try:
            async for event in events:
                for body in bodies_of(event):
                    line = orjson.dumps(body) + b"\n"
                    await send({"type": "http.response.body", "body": line, "more_body": True})
        except DovecoteError as error:
            if code_of(error) == "unavailable":
                raise  # the answer stays unfinished: clients then ask whether the sandbox still runs
            body = {"type": "error", "name": error.code, "value": str(error), "traceback": str(error)}
            await send({"type": "http.response.body", "body": orjson.dumps(body) + b"\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def bodies_of(event: Happening) -> list[Json]:
    """The lines that clients know."""
    if isinstance(event, Printed):
        return [{"type": event.stream, "text": event.text, "timestamp": time.time_ns()}]
    if isinstance(event, Result):
        return [{"type": "result", "is_main_result": event.is_main, **result_body(event)}]
    if isinstance(event, Fault):
        trace = "\n".join(event.traceback) or f"{event.name}: {event.value}"
        return [{"type": "error", "name": event.name, "value": event.value, "traceback": trace}]
    if isinstance(event, Truncated):
        return [{"type": "stderr", "text": CUT, "timestamp": time.time_ns()}]
    if isinstance(event, Ended):
        count = [{"type": "number_of_executions", "execution_count": event.count}] if event.count is not None else []
        return [*count, {"type": "end_of_execution"}]
    return []


def result_body(result: Result) -> Json:
    """Values by the names that clients have for them; what they have none for is `extra`."""
    body: Json = {}
    extra: Json = {}
    for mime, value in result.data.items():
        if mime == TABLE:
            body["data"] = _columns(value)
        elif mime in NAMES:
            body[NAMES[mime]] = value
        else:
            extra[mime] = value
    text = body.get("text")
    # A text that is the value of an expression is told as it is, without the quotes that show its type.
    if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        body["text"] = text[1:-1]
    return {**body, "extra": extra} if extra else body


def _columns(table: object) -> Json | None:
    """Column by column, as clients have tables. What was changed inside to be no table is none."""
    if not isinstance(table, dict) or not isinstance(table.get("rows"), list):
        return None
    names = [str(each.get("name")) for each in table.get("columns", []) if isinstance(each, dict)]
    rows = [row for row in table["rows"] if isinstance(row, list) and len(row) == len(names)]
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def context_body(context: Context) -> Json:
    return {"id": context.id, "language": context.language, "cwd": context.cwd}


def _context_id(text: str) -> str:
    try:
        return parse_id(text, "ctx")
    except DovecoteError:
        raise NotFound(f"Context {text[:60]} not found", code="no_such_context") from None


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_nothing(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
