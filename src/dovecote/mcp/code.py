"""Tools for code that keeps its state from one call to the next."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import aclosing, suppress
from typing import Annotated, Any

import anyio
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent
from pydantic import Field

from dovecote.mcp.answers import CodeContext, CodeRan, Shown
from dovecote.mcp.arguments import Call, ClientOf, MostOutput, SandboxId
from dovecote.mcp.bounded import BoundedText
from dovecote.mcp.progress import beside, tell
from dovecote.sdk import Accepted, AsyncSession, DovecoteError, Ended, Fault, Result, Said

PICTURES = ("image/png", "image/jpeg")
MOST_PICTURES = 4
PICTURE_BYTES = 2 << 20  # in base64
STOP_WITHIN = 10.0  # seconds for interrupting code that nobody waits for any more
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

ContextId = Annotated[str, Field(pattern="^ctx_[a-z0-9]{1,64}$", description="As create_context answered it.")]
Language = Annotated[str, Field(max_length=60, description="python, javascript, typescript, or a kernel's there.")]


class CodeTools:
    def __init__(self, client_of: ClientOf) -> None:
        self._client_of = client_of

    async def run_code(
        self,
        call: Call,
        sandbox: SandboxId,
        code: Annotated[str, Field(max_length=1 << 20, description="The value of its last expression is shown.")],
        language: Language = "python",
        context: Annotated[ContextId | None, Field(description="In place of the language's default one.")] = None,
        timeout_seconds: Annotated[float, Field(gt=0, le=3600, description="Then it is interrupted.")] = 300,
        max_output: MostOutput = 30_000,
    ) -> Annotated[CallToolResult, CodeRan]:
        """Run code in a sandbox; variables, imports and functions of earlier calls are still known.

        Pictures come as images. Python needs a sandbox of the template `code`; JavaScript runs in every one.
        """
        session = await self._client_of(call).sessions.get(sandbox)
        if context is None:
            events = session.stream_code(code, language=language, timeout=timeout_seconds)
        else:
            events = (await session.contexts.get(context)).stream(code, timeout=timeout_seconds)
        heard = _Heard(max_output)
        try:
            async with beside(tell(call, heard.texts, timeout_seconds)), aclosing(events):
                async for event in events:
                    heard.take(event)
        except asyncio.CancelledError:
            with anyio.move_on_after(STOP_WITHIN, shield=True):
                await heard.interrupt(session)
            raise
        return heard.answer()

    async def create_context(
        self,
        call: Call,
        sandbox: SandboxId,
        language: Language = "python",
        cwd: Annotated[str | None, Field(description="Directory; the user's home if left out.")] = None,
    ) -> CodeContext:
        """Start a code context with a state of its own, for run_code."""
        session = await self._client_of(call).sessions.get(sandbox)
        made = (await session.contexts.create(language, cwd=cwd)).view
        return CodeContext(context=made.id, language=made.language)

    async def restart_context(self, call: Call, sandbox: SandboxId, context: ContextId) -> CodeContext:
        """Let a code context begin anew, without its state."""
        session = await self._client_of(call).sessions.get(sandbox)
        found = await session.contexts.get(context)
        await found.restart()
        return CodeContext(context=found.id, language=found.view.language)


class _Heard:
    """What an execution said, as much of it as an answer has room for."""

    def __init__(self, most: int) -> None:
        self.texts = {"stdout": BoundedText(most), "stderr": BoundedText(most)}
        self._room = most  # characters for what is shown
        self._accepted = Accepted("", "")
        self._shown: list[Shown] = []
        self._pictures: list[ImageContent] = []
        self._fault: Fault | None = None
        self._end = Ended("lost", None)

    def take(self, event: object) -> None:
        if isinstance(event, Accepted):
            self._accepted = event
        elif isinstance(event, Said):
            self.texts[event.stream].add(event.text)
        elif isinstance(event, Result):
            self._show(event)
        elif isinstance(event, Fault):
            self._fault = event
        elif isinstance(event, Ended):
            self._end = event

    async def interrupt(self, session: AsyncSession) -> None:
        """What runs after it in the same context goes on."""
        if self._accepted.execution:
            with suppress(DovecoteError):
                context = await session.contexts.get(self._accepted.context)
                await context.interrupt(self._accepted.execution)

    def _show(self, result: Result) -> None:
        shown = Shown(is_main=result.is_main, data={}, pictures=0, left_out=[*result.omitted])
        for mime, value in result.data.items():
            if mime in PICTURES:
                if len(self._pictures) < MOST_PICTURES and len(value) <= PICTURE_BYTES:
                    self._pictures.append(ImageContent(type="image", data=value, mime_type=mime))
                    shown.pictures += 1
                else:
                    shown.left_out.append(mime)
            elif (size := _size(value)) <= self._room:
                self._room -= size
                shown.data[mime] = value
            else:
                shown.left_out.append(mime)
        self._shown.append(shown)

    def answer(self) -> CallToolResult:
        ran = CodeRan(
            context=self._accepted.context,
            status=self._end.status,
            stdout=self.texts["stdout"].text(),
            stderr=self.texts["stderr"].text(),
            left_out=sum(text.left_out for text in self.texts.values()),
            results=self._shown,
            error=_told(self._fault, self._room) if self._fault else None,
        )
        content: list[ContentBlock] = [TextContent(type="text", text=ran.model_dump_json(indent=2)), *self._pictures]
        return CallToolResult(content=content, structured_content=ran.model_dump(mode="json"))


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else len(json.dumps(value))


def _told(fault: Fault, most: int) -> str:
    """The traceback without its colours, its end if it is long."""
    text = BoundedText(max(most, 2000))
    text.add(_COLOUR.sub("", "\n".join(fault.traceback)) or f"{fault.name}: {fault.value}")
    return text.text()
