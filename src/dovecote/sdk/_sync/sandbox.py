"""A sandbox by itself, for programs that need one and nothing else of the server."""

# Generated from _async/sandbox.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

from dovecote.sdk._shapes import SandboxWishes, SessionView
from dovecote.sdk._sync.client import Dovecote
from dovecote.sdk._sync.sessions import Session
from dovecote.sdk._sync.transport import Wire


class Sandbox(Session):
    """A session with a client of its own. As a context manager it ends with the block, unless it was found by its id.

    `api_key` and `url` are as for the client.
    """

    def __init__(self, wire: Wire, view: SessionView, client: Dovecote, *, ends_with_block: bool) -> None:
        super().__init__(wire, view)
        self._client = client
        self._ends_with_block = ends_with_block

    @classmethod
    def create(cls, *, api_key: str | None = None, url: str | None = None, **wishes: Unpack[SandboxWishes]) -> Self:
        """Makes a new one; `wishes` are those of `sessions.create`."""
        client = Dovecote(api_key, url)
        try:
            made = client.sessions.create(**wishes)
        except BaseException:
            client.close()
            raise
        return cls(made._wire, made.view, client, ends_with_block=True)

    @classmethod
    def find(cls, sandbox_id: str, *, api_key: str | None = None, url: str | None = None) -> Self:
        """One that is there already. Raises NotFound."""
        client = Dovecote(api_key, url)
        try:
            found = client.sessions.get(sandbox_id)
        except BaseException:
            client.close()
            raise
        return cls(found._wire, found.view, client, ends_with_block=False)

    def close(self) -> None:
        """Closes the client; the sandbox goes on."""
        self._client.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._ends_with_block:
                self.delete()
        finally:
            self.close()
