"""Tools for what a sandbox serves: its ports, their addresses, its started server, and apps made of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import anyio
from pydantic import Field

from dovecote.mcp.answers import OpenPort, Ports, Published
from dovecote.mcp.arguments import Call, ClientOf, PortNumber, SandboxId
from dovecote.sdk import AsyncSession, Start

SERVER_TAG = "start"  # of the command that a recorded start runs as
END_WITHIN = 10.0  # seconds that an old server has to end by itself
LOCAL_ONLY = "it listens on 127.0.0.1 only: let it listen on 0.0.0.0"
NOBODY = "nothing listens on it yet: a server must listen on 0.0.0.0"


class PortTools:
    def __init__(self, client_of: ClientOf) -> None:
        self._client_of = client_of

    async def list_ports(self, call: Call, sandbox: SandboxId) -> Ports:
        """List the ports that something in the sandbox listens on, with their addresses."""
        session = await self._client_of(call).sessions.get(sandbox)
        return Ports(
            ports=[
                OpenPort(
                    port=each.port,
                    address=each.address,
                    is_reachable=not each.loopback_only,
                    note=LOCAL_ONLY if each.loopback_only else "",
                )
                for each in await session.ports()
            ]
        )

    async def expose_port(self, call: Call, sandbox: SandboxId, port: PortNumber) -> OpenPort:
        """The address at which a port of the sandbox is reached, and whether something answers there.

        Whoever knows the address can reach the port: it is the only secret.
        """
        session = await self._client_of(call).sessions.get(sandbox)
        note = next(
            (LOCAL_ONLY if each.loopback_only else "" for each in await session.ports() if each.port == port), NOBODY
        )
        return OpenPort(port=port, address=session.url(port), is_reachable=not note, note=note)

    async def start_server(
        self,
        call: Call,
        sandbox: SandboxId,
        command: Annotated[str, Field(min_length=1, description="It must stay in the foreground.")],
        port: PortNumber,
        cwd: Annotated[str, Field(description="The home if empty.")] = "",
        env: dict[str, str] | None = None,
    ) -> OpenPort:
        """Record how the sandbox's server is started and start it; answers when its port is open.

        It is started again whenever the sandbox wakes from its files, and an app made of the sandbox starts so too.
        An old server is stopped first. It must listen on 0.0.0.0.
        """
        session = await self._client_of(call).sessions.get(sandbox)
        await _stop_server(session)
        await session.set_start(command, port, cwd, {"PORT": str(port), **(env or {})})
        await session.wake()
        return OpenPort(port=port, address=session.url(port), is_reachable=True, note="")

    async def publish_app(
        self,
        call: Call,
        sandbox: SandboxId,
        name: Annotated[
            str | None,
            Field(pattern="^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$", description="The same name again is a new revision."),
        ] = None,
        command: Annotated[str | None, Field(description="The recorded start if left out.")] = None,
        port: Annotated[int | None, Field(ge=1, le=65535)] = None,
        cwd: str = "",
    ) -> Published:
        """Publish the project in a sandbox as an app with an address of its own, for everybody. It scales to zero."""
        start = Start(command, port, cwd) if command is not None and port is not None else None
        app = await self._client_of(call).apps.publish(sandbox, name=name, start=start)
        return Published(name=app.name, address=app.address)


async def _stop_server(session: AsyncSession) -> None:
    """Ends the server that waking started before; there is none the first time."""
    for view in await session.commands():
        if view.tag == SERVER_TAG and view.is_running:
            server = session.command(view.number)
            await server.signal("SIGTERM")
            with anyio.move_on_after(END_WITHIN) as patience:
                await server.wait()
            if patience.cancelled_caught:
                await server.signal("SIGKILL")
                with suppress(TimeoutError), anyio.fail_after(END_WITHIN):
                    await server.wait()
