"""Errors on the wire: the one table from our errors to HTTP, and the one shape."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException

from dovecote import errors
from dovecote.api.metrics import ERRORS
from dovecote.errors import DovecoteError

STATUS: dict[type[DovecoteError], int] = {
    DovecoteError: 500,
    errors.Invalid: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Gone: 410,
    errors.Conflict: 409,
    errors.NoCapacity: 429,
    errors.Failed: 500,
    errors.StorageFailed: 500,
    errors.DeadlineExceeded: 504,
    errors.Unsupported: 501,
}

# A code that says more than its class.
STATUS_OF_CODE: dict[str, int] = {
    "session_expired": 401,  # as Function Compute answers a session that has ended
    "method_not_allowed": 405,
    "too_large": 413,
    "unsupported_media_type": 415,
    "instance_died": 502,
    "guest_unreachable": 502,
    "guest_protocol": 502,
    "guest_failed": 502,
    "start_failed": 502,
    "hook_failed": 502,
    "connection_reset": 502,
    "port_closed": 502,
    "port_is_local": 502,
    "not_ready": 503,
    "stopping": 503,
    "unreachable": 503,
    "store_unreachable": 503,
    "store_read_only": 503,
    "store_denied": 503,
    "disk_full": 507,
}

RETRY_AFTER = {429: 1.0, 503: 1.0}  # seconds, where the error itself does not say


def status_of(error: DovecoteError) -> int:
    """HTTP status of an error: by its code, else by the nearest class of the tree."""
    if error.code in STATUS_OF_CODE:
        return STATUS_OF_CODE[error.code]
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def body_of(error: DovecoteError, request_id: str) -> dict[str, dict[str, str]]:
    """The one JSON shape of an error."""
    return {
        "error": {"code": error.code, "message": error.message, "hint": error.hint, "request_id": request_id},
    }


def render(error: DovecoteError, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an error."""
    ERRORS.labels(error.code).inc()
    status = status_of(error)
    headers = {"content-type": "application/json", "x-request-id": request_id, "cache-control": "no-store"}
    headers |= waiting(error, status)
    if isinstance(error, errors.Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return status, headers, orjson.dumps(body_of(error, request_id))


def waiting(error: DovecoteError, status: int) -> dict[str, str]:
    """The header that says when to come again, where that helps."""
    wait = error.retry_after if error.retry_after is not None else RETRY_AFTER.get(status)
    return {} if wait is None else {"retry-after": str(max(1, math.ceil(wait)))}


def meaning(error: HTTPException, method: str, path: str) -> DovecoteError:
    """What the framework says, as ours: unknown routes, wrong methods, and what it wrapped while it read a body."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, DovecoteError):
        return cause
    if error.status_code == 404:
        return errors.NotFound(f"no route {path}", code="no_such_route", hint="/v1/openapi.json lists them")
    if error.status_code == 405:
        return errors.Invalid(f"{path} does not take {method}", code="method_not_allowed")
    if error.status_code < 500:
        return errors.Invalid(str(error.detail), hint="/v1/openapi.json says what this route takes")
    return errors.Failed(str(error.detail))


def invalid_fields(problems: Iterable[Mapping[str, Any]]) -> errors.Invalid:
    """One error from what pydantic found; it names the first field that is wrong and counts the others."""
    found = list(problems)
    first: Mapping[str, Any] = found[0] if found else {"loc": (), "msg": "not valid"}
    if first.get("type") == "json_invalid":
        return errors.Invalid(f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}"[:500])
    if first["loc"] == ("body",) and isinstance(first.get("input"), bytes):
        return errors.Invalid("the body is not declared as JSON", hint="send `content-type: application/json`")
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
    message = f"{place}: {first['msg']}" if place else f"the body: {first['msg']}"
    more = f"; {len(found) - 1} more fields are wrong" if len(found) > 1 else ""
    return errors.Invalid(message[:500] + more, hint="/v1/openapi.json says what this route takes")


def internal() -> DovecoteError:
    """What a caller sees of an error that we did not foresee."""
    return DovecoteError("something went wrong on our side", code="internal", hint="the log has it under request_id")
