"""Everything that Python answers at the main address, as one ASGI application."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import Route
from starlette.types import ASGIApp

from dovecote.api.asynchronous import Asynchronous
from dovecote.api.e2b import templates as e2b_templates
from dovecote.api.e2b import volumes as e2b_volumes
from dovecote.api.e2b.app import build as build_control
from dovecote.api.e2b.entrance import Entrance
from dovecote.api.e2b.envd import Envd
from dovecote.api.e2b.interpreter import Interpreter
from dovecote.api.e2b.ports import Ports, Served
from dovecote.api.edge import FILES, TOOLS, Edge
from dovecote.api.rest import files, functions, templates
from dovecote.api.rest.app import build as build_rest
from dovecote.api.rooms import Rooms
from dovecote.api.uploads import Upload
from dovecote.model.addresses import ENVD, INTERPRETER

MOST_MESSAGE = 4 << 20  # bytes of a message to tools: files are written by them
LONG_MESSAGE = f"write a large file in pieces, or through {FILES}"


def build(rooms: Rooms, *, tools: ASGIApp, is_ready: Callable[[], bool], version: str) -> ASGIApp:
    """The API, the console, `tools` at /mcp, and E2B's API. `is_ready` is asked by each /readyz; it must not block."""
    rest = build_rest(rooms, is_ready, version)
    rest.router.routes.append(Route(TOOLS, tools, include_in_schema=False))
    entrance = Entrance(rest, build_control(rooms))
    own = (*files.UPLOADS, *functions.UPLOADS, *templates.UPLOADS, Upload("POST", TOOLS, MOST_MESSAGE, LONG_MESSAGE))
    theirs = (*e2b_templates.UPLOADS, *e2b_volumes.UPLOADS)
    edge = Edge(entrance, rooms.tenancy.authenticate, rooms.tickets, (*own, *theirs))
    ports: dict[int, Served] = {
        ENVD: Envd(rooms.sandboxes, rooms.metering),
        INTERPRETER: Interpreter(rooms.sandboxes),
    }
    served = Ports(edge, rooms.sessions, rooms.addresses.domain, ports)
    return Asynchronous(served, rooms.tenancy, rooms.functions, rooms.invocations, domain=rooms.addresses.domain)
