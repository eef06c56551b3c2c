"""Our errors as E2B's clients read them."""

from __future__ import annotations

from fastapi.responses import JSONResponse

from dovecote.api import errors
from dovecote.api.metrics import ERRORS
from dovecote.errors import DovecoteError, Gone

STATUS: dict[type[DovecoteError], int] = {
    Gone: 404,  # a sandbox that has ended is none
}

NO_USER = "no_such_user"  # whom a request for files or commands acts as, by its own word


def status_of(error: DovecoteError) -> int:
    if error.code == NO_USER:
        return 401
    found = next((status for kind, status in STATUS.items() if isinstance(error, kind)), None)
    return found or errors.status_of(error)


def body_of(error: DovecoteError) -> dict[str, int | str]:
    """`{"code": status, "message": text}`: clients show the message only, so it has the hint and our own code too."""
    return {"code": status_of(error), "message": f"{error} [{error.code}]"}


def answer(error: DovecoteError) -> JSONResponse:
    ERRORS.labels(error.code).inc()
    status = status_of(error)
    headers = {"cache-control": "no-store", **errors.waiting(error, status)}
    return JSONResponse(body_of(error), status, headers)
