"""Code contexts of a session: what is run in one finds what was run before."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from dovecote.sdk._async.transport import AsyncWire, json_lines
from dovecote.sdk._code import CODE_EVENTS, CodeEvent, ContextView, Execution
from dovecote.sdk._errors import CommandFailed
from dovecote.sdk._reading import read


class AsyncContext:
    """One context. As a context manager it is removed at the end."""

    def __init__(self, wire: AsyncWire, session_id: str, view: ContextView) -> None:
        self._wire = wire
        self._path = f"/v1/sessions/{session_id}/contexts/{view.id}"
        self.view = view

    @property
    def id(self) -> str:
        return self.view.id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.remove()

    async def execute(
        self,
        code: str,
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
        max_output: int = 8 << 20,
        check: bool = False,
    ) -> Execution:
        """Runs code to its end. After `timeout` seconds it is interrupted. `check` raises CommandFailed."""
        events = self.stream(code, env=env, timeout=timeout, max_output=max_output)
        return await collect(events, check=check)

    def stream(
        self,
        code: str,
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
        max_output: int = 8 << 20,
    ) -> AsyncGenerator[CodeEvent, None]:
        """Runs code and gives what it says as it says it. Leaving early changes nothing for it."""
        body = execution_body(code, env, timeout, max_output)
        return code_events(self._wire, "POST", f"{self._path}/execute", body)

    def follow(self, execution_id: str) -> AsyncGenerator[CodeEvent, None]:
        """What an execution has said, as far as it is kept, and what it goes on to say."""
        return code_events(self._wire, "GET", f"{self._path}/executions/{execution_id}", None)

    async def interrupt(self, execution_id: str | None = None) -> None:
        """Ends what runs, or that one; the context keeps its state."""
        await self._wire.call("POST", f"{self._path}:interrupt", json={"execution": execution_id})

    async def restart(self) -> None:
        """Begins anew, without its state."""
        self.view = read(ContextView, await self._wire.call("POST", f"{self._path}:restart"))

    async def remove(self) -> None:
        await self._wire.call("DELETE", self._path)


class AsyncContexts:
    def __init__(self, wire: AsyncWire, session_id: str) -> None:
        self._wire = wire
        self._session_id = session_id
        self._path = f"/v1/sessions/{session_id}/contexts"

    async def create(
        self,
        language: str = "python",
        *,
        cwd: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> AsyncContext:
        """Raises NotFound (no_kernel) where nothing in the template runs that language."""
        body = {"language": language, "cwd": cwd, "user": user, "env": dict(env or {})}
        return self._context(await self._wire.call("POST", self._path, json=body))

    async def get(self, context_id: str) -> AsyncContext:
        return self._context(await self._wire.call("GET", f"{self._path}/{context_id}"))

    async def list(self) -> list[AsyncContext]:
        """Those that run, oldest first."""
        return [self._context(each) for each in (await self._wire.call("GET", self._path))["items"]]

    def _context(self, body: Mapping[str, Any]) -> AsyncContext:
        return AsyncContext(self._wire, self._session_id, read(ContextView, body))


async def collect(events: AsyncGenerator[CodeEvent, None], *, check: bool) -> Execution:
    execution = Execution()
    async with aclosing(events):
        async for event in events:
            execution.add(event)
    if check and not execution.is_ok:
        fault = execution.fault
        said = "\n".join(fault.traceback)[-2000:] if fault else ""
        what = f"{fault.name}: {fault.value}" if fault else execution.status
        raise CommandFailed(f"the code ended with {what}", code="code_failed", hint=said)
    return execution


def execution_body(code: str, env: Mapping[str, str] | None, timeout: float, max_output: int) -> dict[str, Any]:
    return {"code": code, "env": dict(env or {}), "timeout_seconds": timeout, "max_output_bytes": max_output}


async def code_events(
    wire: AsyncWire, method: str, path: str, body: dict[str, Any] | None
) -> AsyncGenerator[CodeEvent, None]:
    async with wire.stream(method, path, json=body) as response:
        async for fields in json_lines(response):
            if fields["type"] in CODE_EVENTS:
                yield read(CODE_EVENTS[fields["type"]], fields)
