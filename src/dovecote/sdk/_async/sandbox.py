"""A sandbox by itself, for programs that need one and nothing else of the server."""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

from dovecote.sdk._async.client import AsyncDovecote
from dovecote.sdk._async.sessions import AsyncSession
from dovecote.sdk._async.transport import AsyncWire
from dovecote.sdk._shapes import SandboxWishes, SessionView


class AsyncSandbox(AsyncSession):
    """A session with a client of its own. As a context manager it ends with the block, unless it was found by its id.

    `api_key` and `url` are as for the client.
    """

    def __init__(self, wire: AsyncWire, view: SessionView, client: AsyncDovecote, *, ends_with_block: bool) -> None:
        super().__init__(wire, view)
        self._client = client
        self._ends_with_block = ends_with_block

    @classmethod
    async def create(
        cls, *, api_key: str | None = None, url: str | None = None, **wishes: Unpack[SandboxWishes]
    ) -> Self:
        """Makes a new one; `wishes` are those of `sessions.create`."""
        client = AsyncDovecote(api_key, url)
        try:
            made = await client.sessions.create(**wishes)
        except BaseException:
            await client.aclose()
            raise
        return cls(made._wire, made.view, client, ends_with_block=True)

    @classmethod
    async def find(cls, sandbox_id: str, *, api_key: str | None = None, url: str | None = None) -> Self:
        """One that is there already. Raises NotFound."""
        client = AsyncDovecote(api_key, url)
        try:
            found = await client.sessions.get(sandbox_id)
        except BaseException:
            await client.aclose()
            raise
        return cls(found._wire, found.view, client, ends_with_block=False)

    async def aclose(self) -> None:
        """Closes the client; the sandbox goes on."""
        await self._client.aclose()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._ends_with_block:
                await self.delete()
        finally:
            await self.aclose()
