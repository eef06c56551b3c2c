"""Everything that Python answers at the main address, as one ASGI application."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp

from dovecote.api.e2b.app import build as build_control
from dovecote.api.e2b.entrance import Entrance
from dovecote.api.e2b.envd import Envd
from dovecote.api.e2b.ports import Ports
from dovecote.api.edge import Edge
from dovecote.api.rest import files, templates
from dovecote.api.rest.app import build as build_rest
from dovecote.api.rooms import Rooms
from dovecote.model.addresses import ENVD


def build(rooms: Rooms, *, is_ready: Callable[[], bool], version: str) -> ASGIApp:
    """The API, the console, and E2B's API. `is_ready` is asked by each /readyz; it must not block."""
    entrance = Entrance(build_rest(rooms, is_ready, version), build_control(rooms))
    edge = Edge(entrance, rooms.tenancy.authenticate, rooms.tickets, (*files.UPLOADS, *templates.UPLOADS))
    return Ports(edge, rooms.sessions, rooms.addresses.domain, {ENVD: Envd(rooms.sandboxes)})
