"""Joins the routes of E2B's control API into one ASGI application."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from dovecote.api import errors as api_errors
from dovecote.api.e2b import errors, metrics, sandboxes, snapshots, templates, volumes
from dovecote.api.e2b.builds import Builds
from dovecote.api.e2b.permits import Permits
from dovecote.api.e2b.repeating import Repeating
from dovecote.api.rooms import Rooms
from dovecote.errors import DovecoteError

PARTS: tuple[APIRouter, ...] = (metrics.routes, snapshots.routes, sandboxes.routes, templates.routes, volumes.routes)


def build(rooms: Rooms) -> FastAPI:
    """The control API. What a sandbox's own port 49983 answers is elsewhere: see `entrance.py`."""
    app = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            DovecoteError: _ours,
            HTTPException: _starlette,
            RequestValidationError: _validation,
            Exception: _unforeseen,
        },
    )
    app.state.rooms = rooms
    app.state.repeating = Repeating()
    app.state.builds = Builds(rooms)
    app.state.permits = Permits()
    for part in PARTS:
        app.include_router(part)
    return app


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, DovecoteError)
    return errors.answer(error)


async def _starlette(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return errors.answer(api_errors.meaning(error, request.method, request.url.path))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return errors.answer(api_errors.invalid_fields(error.errors()))


async def _unforeseen(request: Request, error: Exception) -> Response:
    """The edge logs it: Starlette raises it again after this answer."""
    return errors.answer(api_errors.internal())
