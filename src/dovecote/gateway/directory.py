"""Answers the gateway's question where a request belongs: a sandbox's port, a function's session, or an app."""

from __future__ import annotations

from dovecote.control.apps import Apps
from dovecote.control.functions import Functions
from dovecote.control.sessions import Routing
from dovecote.control.tenancy import Tenancy
from dovecote.errors import NotFound
from dovecote.gateway.wake import Answer, Ask


class Directory:
    def __init__(self, tenancy: Tenancy, routing: Routing, functions: Functions, apps: Apps) -> None:
        self._tenancy = tenancy
        self._routing = routing
        self._functions = functions
        self._apps = apps

    async def resolve(self, ask: Ask) -> Answer:
        """Raises what waking raises; the caller holds the request meanwhile."""
        if ask.kind == "box":
            assert ask.port is not None
            return Answer(await self._routing.box(ask.name, ask.port))
        if ask.kind == "app":
            return Answer(await self._apps.route(ask.name), learn=False)
        if ask.kind != "function":
            raise NotFound("nothing is at this address", code="no_such_address")
        principal = await self._tenancy.authenticate(ask.credential)
        function = await self._functions.get(principal.tenant_id, ask.name)
        header = function.affinity.header
        routed = await self._routing.function(function, user=ask.user or "default", key=ask.headers.get(header))
        return Answer(routed.address, affinity_header=header, session=routed.session.key if routed.session else None)
