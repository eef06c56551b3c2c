"""Code contexts: programs inside a session that keep the state of what was run in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from signal import SIGKILL
from weakref import WeakValueDictionary

import orjson

from dovecote.control.fleet import Command
from dovecote.control.sandboxes.executions import (
    Accepted,
    Happening,
    Reading,
    wait_ready,
)
from dovecote.control.sandboxes.programs import (
    NOT_THERE,
    OWNER,
    PLACE,
    context_command,
    no_kernel,
    parse_language,
    put_inside,
)
from dovecote.control.sessions import Live, Sessions
from dovecote.errors import DovecoteError, Failed, Invalid, NoCapacity, NotFound
from dovecote.host.guest import CommandStatus
from dovecote.model.ids import new_id, parse_id

MOST_CONTEXTS = 16  # of a session
MOST_CODE = 1 << 20  # bytes
MOST_OUTPUT = 16 << 20  # bytes that one execution may say
LONGEST = 24 * 3600.0  # seconds of one execution
READY_WITHIN = 90.0  # seconds
STOPPED_WITHIN = 5.0  # seconds
RING_BYTES = 4 << 20  # of output that is kept for whoever attaches again
TAG = "context"
MOST_RECORD = 1 << 20  # bytes


@dataclass(frozen=True)
class Context:
    """`number` is that of the command that it is. The default one of a language is used when none is named."""

    id: str
    language: str
    is_default: bool
    number: int
    started_at: datetime
    cwd: str = ""
    user: str = ""
    env: Mapping[str, str] | None = None


class Contexts:
    """All of it is inside the session: a restart of ours changes nothing, and parking ends it like any process."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # -- coming and going

    async def create(
        self,
        tenant_id: str,
        session_id: str,
        *,
        language: str = "python",
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Context:
        """Raises NotFound (no_kernel, no_such_directory), NoCapacity (too_many), DeadlineExceeded (context_silent)."""
        language = parse_language(language)
        async with self._sessions.use(tenant_id, session_id) as live, self._lock(session_id):
            return await self._start(live, self._plan(live, language, cwd=cwd, user=user, env=env))

    async def list(self, tenant_id: str, session_id: str) -> list[Context]:
        """Those that run, oldest first."""
        async with self._sessions.use(tenant_id, session_id) as live:
            return [await self._read(live, context) for context, _ in await _running(live)]

    async def get(self, tenant_id: str, session_id: str, context_id: str) -> Context:
        """Raises NotFound (no_such_context)."""
        async with self._sessions.use(tenant_id, session_id) as live:
            return await self._read(live, (await _find(live, context_id))[0])

    async def remove(self, tenant_id: str, session_id: str, context_id: str) -> None:
        async with self._sessions.use(tenant_id, session_id) as live, self._lock(session_id):
            await _stop(live, (await _find(live, context_id))[0])
            with suppress(NotFound):
                await live.guest.remove(_record(context_id), user=OWNER)

    async def restart(self, tenant_id: str, session_id: str, context_id: str) -> Context:
        """The same context without its state; what runs in it ends."""
        async with self._sessions.use(tenant_id, session_id) as live, self._lock(session_id):
            context = await self._read(live, (await _find(live, context_id))[0])
            await _stop(live, context)
            return await self._start(live, context)

    async def interrupt(
        self, tenant_id: str, session_id: str, context_id: str, execution_id: str | None = None
    ) -> None:
        """Ends what it runs, or one execution, running or waiting. It keeps its state. May be repeated."""
        async with self._sessions.use(tenant_id, session_id) as live:
            context, _ = await _find(live, context_id)
            await self._tell(live, context, {"op": "interrupt", "id": new_id("req"), "execution": execution_id})

    # -- code

    async def execute(
        self,
        tenant_id: str,
        session_id: str,
        code: str,
        *,
        context_id: str | None = None,
        language: str = "python",
        env: Mapping[str, str] | None = None,
        context_env: Mapping[str, str] | None = None,
        timeout: float = 300,
        max_output: int = 8 << 20,
    ) -> AsyncGenerator[Happening, None]:
        """In a context, or in the default one of a language, made when it is missing. `Accepted` comes first.

        `env` is of this execution, `context_env` of the default context if it is made for it.
        After `timeout` seconds of running it is interrupted. Leaving early changes nothing for it.
        """
        if not 0 < timeout <= LONGEST:
            raise Invalid(f"timeout is more than 0 and at most {LONGEST:.0f} seconds")
        if not 0 < max_output <= MOST_OUTPUT:
            raise Invalid(f"max_output is from 1 to {MOST_OUTPUT} bytes")
        request = {"op": "execute", "code": code, "timeout": timeout, "max_output": max_output, "env": dict(env or {})}
        if len(_line(request)) > MOST_CODE:
            raise Invalid(f"the code is over {MOST_CODE} bytes", code="too_large", hint="write it to a file and run it")
        execution_id = new_id("exe")
        async with self._sessions.use(tenant_id, session_id) as live:
            if context_id is None:
                context, offset = await self._default(live, parse_language(language), context_env)
            else:
                context, offset = await _find(live, context_id)
            reading = Reading(execution_id, context.id, timeout, most_bytes=2 * max_output, most_raw=max_output)
            await self._tell(live, context, {**request, "id": execution_id})
            async with aclosing(live.guest.attach(context.number, offset=offset)) as output:
                async for happening in reading.events(output):
                    yield happening

    async def follow(
        self, tenant_id: str, session_id: str, context_id: str, execution_id: str
    ) -> AsyncGenerator[Happening, None]:
        """What an execution has said, as far as it is kept, and what it goes on to say.

        Raises NotFound (no_such_execution), also where all that it said is gone.
        """
        async with self._sessions.use(tenant_id, session_id) as live:
            context, _ = await _find(live, context_id)
            asked = new_id("req")
            reading = Reading(
                execution_id, context.id, LONGEST, most_bytes=2 * MOST_OUTPUT, most_raw=MOST_OUTPUT, asked_id=asked
            )
            await self._tell(live, context, {"op": "follow", "id": asked, "execution": execution_id})
            was_accepted = False
            async with aclosing(live.guest.attach(context.number)) as output:
                async for happening in reading.events(output):
                    if not was_accepted and not isinstance(happening, Accepted) and reading.is_known:
                        yield Accepted(execution_id, context.id)
                    was_accepted = was_accepted or reading.is_known
                    if was_accepted:
                        yield happening
            if not was_accepted:
                raise NotFound(f"no execution {execution_id} here", code="no_such_execution")

    # -- inside

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _plan(
        self,
        live: Live,
        language: str,
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        is_default: bool = False,
    ) -> Context:
        name, home = live.default_user
        place = cwd or (home if user in (None, name) else "/")
        return Context(
            new_id("ctx"),
            language,
            is_default,
            number=0,
            started_at=live.session.created_at,
            cwd=place if place.startswith("/") else f"{home}/{place}",
            user=user or name,
            env=dict(env or {}),
        )

    async def _default(self, live: Live, language: str, env: Mapping[str, str] | None) -> tuple[Context, int]:
        async with self._lock(live.session.id):
            for context, offset in await _running(live):
                if context.is_default and context.language == language:
                    return context, offset
            return await self._start(live, self._plan(live, language, env=env, is_default=True)), 0

    async def _start(self, live: Live, plan: Context) -> Context:
        if len(await _running(live)) >= MOST_CONTEXTS:
            raise NoCapacity(f"{MOST_CONTEXTS} contexts are the most", code="too_many", hint="remove some")
        guest = live.guest
        directory = await put_inside(guest)
        command = Command(
            argv=context_command(directory, plan.language),
            env={**live.environment, **(plan.env or {})},
            cwd=plan.cwd,
            user=plan.user,
            stdin=True,
            ring_bytes=RING_BYTES,
            tag=f"{TAG}:{plan.id}:{plan.language}:{'default' if plan.is_default else ''}",
        )
        started = await guest.start(command)
        context = replace(plan, number=started.number, started_at=started.started_at)
        try:
            first = await wait_ready(guest.attach(started.number), READY_WITHIN) or {}
            if first.get("type") != "ready":
                raise _refusal(plan.language, first)
            record = {"cwd": plan.cwd, "user": plan.user, "env": plan.env}
            await guest.write_file(_record(plan.id), orjson.dumps(record), user=OWNER, mode=0o600)
        except BaseException:
            with suppress(DovecoteError):
                await asyncio.shield(_stop(live, context))
            raise
        return context

    async def _tell(self, live: Live, context: Context, request: Mapping[str, object]) -> None:
        """One line at a time: two that write at once would mix."""
        async with self._lock(f"{live.session.id}/{context.number}"):
            await live.guest.write_stdin(context.number, _line(request))

    async def _read(self, live: Live, context: Context) -> Context:
        """With what was recorded of it. The record is the sandbox's own, hence may say anything."""
        with suppress(DovecoteError, ValueError, KeyError, TypeError):
            text = b""
            async for piece in live.guest.read_file(_record(context.id), user=OWNER, length=MOST_RECORD):
                text += piece
            found = orjson.loads(text)
            env = {str(name): str(value) for name, value in dict(found["env"]).items()}
            return replace(context, cwd=str(found["cwd"]), user=str(found["user"]), env=env)
        name, home = live.default_user
        return replace(context, cwd=home, user=name, env={})


async def _running(live: Live) -> list[tuple[Context, int]]:
    """With how much each has printed so far."""
    found = [(_parse(each), each.output_bytes) for each in await live.guest.list_commands() if each.is_running]
    return [(context, offset) for context, offset in found if context is not None]


async def _find(live: Live, context_id: str) -> tuple[Context, int]:
    for context, offset in await _running(live):
        if context.id == context_id:
            return context, offset
    raise NotFound(
        f"no context {context_id} runs here",
        code="no_such_context",
        hint="contexts end when their session is parked or their memory runs out; make a new one",
    )


def _parse(status: CommandStatus) -> Context | None:
    parts = status.tag.split(":")
    if len(parts) != 4 or parts[0] != TAG:
        return None
    try:
        name = parse_id(parts[1], "ctx")
    except Invalid:
        return None  # a command that only calls itself so
    return Context(name, parts[2], parts[3] == "default", status.number, status.started_at)


async def _stop(live: Live, context: Context) -> None:
    guest = live.guest
    # At the end of its input the program ends, and its kernel with it.
    with suppress(DovecoteError):
        await guest.close_stdin(context.number)
    try:
        async with asyncio.timeout(STOPPED_WITHIN):
            await _ended(live, context)
    except TimeoutError:
        with suppress(DovecoteError):
            await guest.signal(context.number, SIGKILL)
            async with asyncio.timeout(STOPPED_WITHIN):
                await _ended(live, context)
    with suppress(DovecoteError):
        await guest.release(context.number)


async def _ended(live: Live, context: Context) -> None:
    with suppress(NotFound):
        async with aclosing(live.guest.attach(context.number)) as output:
            async for _ in output:
                pass


def _refusal(language: str, first: Mapping[str, object]) -> DovecoteError:
    if first.get("code") in (NOT_THERE, "no_kernel"):
        return no_kernel(language)
    said = str(first.get("message") or f"it ended with {first.get('code')}")
    return Failed(f"the context does not start: {said[:1000]}", code="kernel_failed")


def _record(context_id: str) -> str:
    return f"{PLACE}/contexts/{context_id}.json"


def _line(request: Mapping[str, object]) -> bytes:
    return orjson.dumps(request) + b"\n"
