"""Tools for the life of sandboxes: make, find, copy, rest, end."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dovecote.mcp.answers import Deleted, Sandbox, Sandboxes, SnapshotTaken, sandbox_of, snapshot_of
from dovecote.mcp.arguments import SNAPSHOT, Call, ClientOf, SandboxId
from dovecote.sdk import Network

State = Literal["new", "starting", "ready", "frozen", "parking", "parked", "lost", "damaged", "ended"]


class SandboxTools:
    def __init__(self, client_of: ClientOf) -> None:
        self._client_of = client_of

    async def create_sandbox(
        self,
        call: Call,
        key: Annotated[str | None, Field(description="Your own name for it; one sandbox has it at a time.")] = None,
        template: Annotated[str | None, Field(description="What it starts from; `base` if left out.")] = None,
        spec: Annotated[str | None, Field(description="Its size by name: nano, small, medium or large")] = None,
        internet: Annotated[bool, Field(description="Whether it reaches the internet.")] = True,
        env: Annotated[dict[str, str] | None, Field(description="Environment of all its commands.")] = None,
        metadata: Annotated[dict[str, str] | None, Field(description="Your own words, to find it by.")] = None,
        user: Annotated[str | None, Field(description="Name of the end user that it belongs to.")] = None,
        snapshot: Annotated[str | None, Field(pattern=SNAPSHOT, description="Begin with its files.")] = None,
        timeout_seconds: Annotated[float | None, Field(gt=0, description="Then it ends, or is paused.")] = None,
        at_timeout: Annotated[Literal["end", "pause"], Field(description="What `timeout_seconds` means.")] = "end",
    ) -> Sandbox:
        """Make a sandbox: a Linux machine of its own with a home at /home/user, sudo, Python, Node and git.

        Its `id` is the handle for the other tools. It rests when nobody uses it and wakes by itself; its files stay.
        """
        made = await self._client_of(call).sessions.create(
            key=key,
            template=template,
            spec=spec,
            network=None if internet else Network(internet=False),
            env=env,
            metadata=metadata,
            user=user,
            snapshot=snapshot,
            timeout=timeout_seconds,
            at_timeout=at_timeout if timeout_seconds is not None else None,
        )
        return sandbox_of(made)

    async def list_sandboxes(
        self,
        call: Call,
        state: Annotated[State | None, Field(description="Those that have not ended, if left out.")] = None,
        metadata: Annotated[dict[str, str] | None, Field(description="Those that have all of it.")] = None,
        user: Annotated[str | None, Field(description="Those of this end user.")] = None,
        most: Annotated[int, Field(ge=1, le=500)] = 100,
    ) -> Sandboxes:
        """List sandboxes, newest first."""
        found = await self._client_of(call).sessions.list(user=user, state=state, metadata=metadata)
        found.sort(key=lambda each: each.view.created_at, reverse=True)
        return Sandboxes(sandboxes=[sandbox_of(each) for each in found[:most]], left_out=max(0, len(found) - most))

    async def get_sandbox(self, call: Call, sandbox: SandboxId) -> Sandbox:
        """Say how a sandbox is. Does not wake it."""
        return sandbox_of(await self._client_of(call).sessions.get(sandbox))

    async def snapshot_sandbox(
        self, call: Call, sandbox: SandboxId, label: Annotated[str, Field(max_length=200)] = ""
    ) -> SnapshotTaken:
        """Save a sandbox's files under a name, to make copies of them later. What runs in it goes on."""
        session = await self._client_of(call).sessions.get(sandbox)
        return snapshot_of(await session.snapshot(label))

    async def fork_sandbox(
        self,
        call: Call,
        sandbox: SandboxId,
        snapshot: Annotated[str | None, Field(pattern=SNAPSHOT, description="As it is now if left out.")] = None,
        key: Annotated[str | None, Field(description="Your own name for the copy.")] = None,
    ) -> Sandbox:
        """Make a new sandbox with the files of another one, as they are now or were at a snapshot."""
        session = await self._client_of(call).sessions.get(sandbox)
        return sandbox_of(await session.fork(snapshot, key=key))

    async def pause_sandbox(self, call: Call, sandbox: SandboxId) -> Sandbox:
        """Stop a sandbox where it is; it takes no processor time. The next use goes on from there."""
        session = await self._client_of(call).sessions.get(sandbox)
        await session.pause()
        return sandbox_of(session)

    async def set_timeout(
        self,
        call: Call,
        sandbox: SandboxId,
        timeout_seconds: Annotated[float | None, Field(gt=0, description="From now on; null for none.")],
    ) -> Sandbox:
        """Say when a sandbox ends, or is paused, by itself."""
        session = await self._client_of(call).sessions.get(sandbox)
        await session.set_timeout(timeout_seconds)
        return sandbox_of(session)

    async def delete_sandbox(self, call: Call, sandbox: SandboxId) -> Deleted:
        """End a sandbox and delete its files, for good."""
        session = await self._client_of(call).sessions.get(sandbox)
        await session.delete()
        return Deleted(id=sandbox)
