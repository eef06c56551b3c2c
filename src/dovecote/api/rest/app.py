"""Joins our own routes into one application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from dovecote.api import errors
from dovecote.api.rest import activity, commands, contexts, files, forwards, pages, tenancy, terminals, watches
from dovecote.api.rest import apps as app_routes
from dovecote.api.rest import chats as chat_routes
from dovecote.api.rest import functions as function_routes
from dovecote.api.rest import invocations as invocation_routes
from dovecote.api.rest import sessions as session_routes
from dovecote.api.rest import snapshots as snapshot_routes
from dovecote.api.rest import templates as template_routes
from dovecote.api.rest import volumes as volume_routes
from dovecote.api.rest.shapes import ErrorShape
from dovecote.api.rooms import Rooms
from dovecote.errors import DovecoteError, Failed

plain = APIRouter(tags=["server"])


def build(rooms: Rooms, is_ready: Callable[[], bool], version: str) -> FastAPI:
    """Our own routes and the console. `is_ready` is asked by each /readyz; it must not block."""
    app = FastAPI(
        title="Dovecote",
        version=version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"default": {"model": ErrorShape, "description": "Any error, in its one shape."}},
        exception_handlers={
            DovecoteError: _ours,
            HTTPException: _starlette,
            RequestValidationError: _validation,
            Exception: _unforeseen,
        },
    )
    app.state.rooms = rooms
    app.state.is_ready = is_ready
    inside = (session_routes, activity, snapshot_routes, commands, files, watches, contexts, terminals, forwards)
    outside = (app_routes, function_routes, invocation_routes, chat_routes, tenancy, volume_routes, template_routes)
    for part in (*inside, *outside, pages):
        app.include_router(part.routes)
    app.include_router(snapshot_routes.everywhere)
    app.include_router(plain)
    return app


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, DovecoteError)
    status, headers, body = errors.render(error, request.scope["dovecote.request_id"])
    return Response(body, status, headers)


async def _starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return await _ours(request, errors.meaning(error, request.method, request.url.path))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _ours(request, errors.invalid_fields(error.errors()))


async def _unforeseen(request: Request, error: Exception) -> Response:
    """The edge logs it: Starlette raises it again after this answer."""
    return await _ours(request, errors.internal())


@plain.get("/healthz", summary="Whether the process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@plain.get("/readyz", summary="Whether requests are served; 503 while starting or stopping")
async def readyz(request: Request) -> dict[str, str]:
    if not request.app.state.is_ready():
        raise Failed("not ready yet", code="not_ready", hint="`dovecote status` and the log say what it waits for")
    return {"status": "ready"}


@plain.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
async def metrics() -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


@plain.get("/v1/openapi.json", summary="This API, described", response_class=JSONResponse)
async def openapi(request: Request) -> JSONResponse:
    return JSONResponse(describe(request.app))


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document. FastAPI's own validation answer is left out: ours is the one shape."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if path.startswith("/v1/") and path != "/v1/openapi.json":
                    operation["security"] = [{"key": []}]
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
