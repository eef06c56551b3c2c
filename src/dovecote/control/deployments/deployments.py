"""Puts files under functions, and takes functions down."""

from __future__ import annotations

from contextlib import suppress

from dovecote.control.deployments.files import DeployedFiles
from dovecote.control.fleet import Fleet
from dovecote.control.functions import SANDBOX, Functions
from dovecote.control.sessions import Sessions
from dovecote.errors import Conflict, NotFound
from dovecote.model.records import Function
from dovecote.model.states import SessionState
from dovecote.store import Store

LIVING = [state for state in SessionState if state is not SessionState.ENDED]


class Deployments:
    def __init__(
        self, store: Store, fleet: Fleet, functions: Functions, sessions: Sessions, files: DeployedFiles
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._functions = functions
        self._sessions = sessions
        self.files = files

    async def remove(self, tenant_id: str, name: str) -> None:
        """Ends its sessions and instances, then forgets it; the name is free again. May be repeated after a crash.

        Raises NotFound (no_such_function), Conflict (belongs_to_app, is_built_in).
        """
        if name == SANDBOX:
            raise Conflict("every tenant has the function `sandbox`", code="is_built_in", hint="end its sessions")
        function = await self._functions.get(tenant_id, name)
        await self._functions.check_own(function)
        await self._end_sessions(function)
        await self._functions.remove(tenant_id, function.id)
        # Again: a caller may have come just before nobody could any more.
        await self._end_sessions(function)
        await self._stop_instances(function)

    async def _end_sessions(self, function: Function) -> None:
        sessions = self._store.tenant(function.tenant_id).sessions
        async for session in sessions.each(function_id=function.id, state=LIVING):
            await self._sessions.end(function.tenant_id, session.id, f"the function {function.name} was removed")

    async def _stop_instances(self, function: Function) -> None:
        """Those that several callers share: they belong to the function, not to a session."""
        for host in self._fleet.hosts().values():
            for seen in await host.observe():
                if seen.owner.startswith(f"{function.id}:"):
                    with suppress(NotFound):
                        await host.stop(seen.instance_id, grace=0)
