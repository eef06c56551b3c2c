"""A sandbox's port 49983, as E2B's daemon serves it: commands and files by the Connect protocol, contents by HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from dovecote.api.e2b import process, watching
from dovecote.api.e2b.call import Call, check_user, parse_user
from dovecote.api.e2b.connect import (
    STREAM,
    UNARY,
    answer_fed,
    answer_stream,
    answer_unary,
    parse_pace,
    read_messages,
    read_one,
    read_unary,
    refuse,
    send_json,
)
from dovecote.api.e2b.files import Files
from dovecote.api.e2b.filesystem import Filesystem
from dovecote.api.e2b.messages import Json, Message
from dovecote.api.e2b.ports import NOT_RUNNING
from dovecote.api.e2b.process import Processes
from dovecote.api.e2b.watching import Watching
from dovecote.control.metering import Metering
from dovecote.control.sandboxes import Sandboxes
from dovecote.errors import DovecoteError, Invalid, NotFound, Unsupported
from dovecote.model.records import Session

SERVICES = ("/process.Process/", "/filesystem.Filesystem/")

Unary = Callable[[Call, Message], Awaitable[Json]]
Streamed = Callable[[Call, Message], AsyncGenerator[Json, None]]
Fed = Callable[[Call, AsyncIterator[Message]], Awaitable[Json]]


class Envd:
    """Serves requests whose sandbox is known and whose right to it was looked at."""

    def __init__(self, sandboxes: Sandboxes, metering: Metering) -> None:
        self._metering = metering
        processes = Processes(sandboxes)
        filesystem = Filesystem(sandboxes)
        watches = Watching(sandboxes, filesystem)
        self._files = Files(sandboxes, filesystem)
        self._unary: dict[str, Unary] = {
            "/process.Process/List": processes.running,
            "/process.Process/Update": processes.update,
            "/process.Process/SendInput": processes.send_input,
            "/process.Process/SendSignal": processes.send_signal,
            "/process.Process/CloseStdin": processes.close_stdin,
            "/filesystem.Filesystem/Stat": filesystem.stat,
            "/filesystem.Filesystem/MakeDir": filesystem.make_dir,
            "/filesystem.Filesystem/Move": filesystem.move,
            "/filesystem.Filesystem/ListDir": filesystem.list_dir,
            "/filesystem.Filesystem/Remove": filesystem.remove,
            "/filesystem.Filesystem/CreateWatcher": watches.create_watcher,
            "/filesystem.Filesystem/GetWatcherEvents": watches.get_watcher_events,
            "/filesystem.Filesystem/RemoveWatcher": watches.remove_watcher,
        }
        self._streamed: dict[str, tuple[Streamed, Json]] = {
            "/process.Process/Start": (processes.start, process.PING),
            "/process.Process/Connect": (processes.connect, process.PING),
            "/filesystem.Filesystem/WatchDir": (watches.watch_dir, watching.PING),
        }
        self._fed: dict[str, Fed] = {"/process.Process/StreamInput": processes.stream_input}

    async def serve(self, session: Session, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if not path.startswith(SERVICES):
            await self._plain(session, path, scope, headers, receive, send)
            return
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        try:
            await self._call(session, path, scope["method"], kind, headers, receive, send)
        except DovecoteError as error:
            if error.code in NOT_RUNNING:
                raise
            await refuse(send, error, is_stream=kind == STREAM)

    async def _call(
        self, session: Session, path: str, method: str, kind: str, headers: Headers, receive: Receive, send: Send
    ) -> None:
        if method != "POST":
            raise Unsupported("methods are called with POST", code="method_not_allowed")
        call = Call(session, parse_user(headers), parse_pace(headers))
        if path in self._unary:
            _expect(kind, UNARY)
            message = await read_unary(receive, headers)
            await answer_unary(send, self._unary[path](call, message), call.pace.timeout)
        elif path in self._streamed:
            _expect(kind, STREAM)
            method_of, ping = self._streamed[path]
            messages = method_of(call, await read_one(receive, headers))
            await answer_stream(receive, send, messages, ping=ping, every=call.pace.keepalive)
        elif path in self._fed:
            _expect(kind, STREAM)
            answer = self._fed[path](call, read_messages(receive, headers))
            await answer_fed(send, answer, call.pace.timeout)
        else:
            raise NotFound(f"no method {path[:200]}", code="no_such_method")

    async def _plain(
        self, session: Session, path: str, scope: Scope, headers: Headers, receive: Receive, send: Send
    ) -> None:
        query = QueryParams(scope["query_string"])
        is_asked_about = scope["method"] == "HEAD"  # as GET, without the body
        route = ("GET" if is_asked_about else scope["method"], path)
        if route == ("GET", "/health"):
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        elif route in (("GET", "/files"), ("POST", "/files")):
            call = Call(session, check_user(query.get("username", "")) or parse_user(headers), parse_pace(headers))
            if route[0] == "GET":
                await self._files.download(call, query, headers, send, is_asked_about=is_asked_about)
            else:
                await self._files.upload(call, query, headers, receive, send)
        elif route == ("GET", "/envs"):
            await send_json(send, 200, session.env)
        elif route == ("GET", "/metrics"):
            await send_json(send, 200, await self._metrics(session))
        else:
            raise NotFound(f"no route {path[:200]}", code="no_such_route")

    async def _metrics(self, session: Session) -> Json:
        samples = await self._metering.history(session.tenant_id, session.id)
        if not samples:
            raise NotFound("nothing was measured yet", code="no_sample", hint="ask again in a few seconds")
        last = samples[-1]
        return {
            "ts": int(last.at.timestamp()),
            "cpu_count": max(1, round(last.limits.cpus)),
            "cpu_used_pct": last.cpu_percent,
            "mem_total": last.limits.memory_bytes,
            "mem_used": last.memory_bytes,
            "disk_total": last.limits.disk_bytes,
            "disk_used": last.disk_bytes,
        }


def _expect(kind: str, wanted: str) -> None:
    if kind != wanted:
        raise Invalid(
            f"no messages of type {kind[:100]!r}", code="unsupported_media_type", hint=f"this method takes {wanted}"
        )
