"""The errors of the client, one tree.

DovecoteError
|-- BadRequest       400, 405, 413
|-- Unauthenticated  401   no key, a wrong one, or a session that has ended (session_expired)
|-- Forbidden        403
|-- NotFound         404
|-- Conflict         409
|-- Gone             410
|-- TooMany          429   `retry_after` says when
|-- ServerFailed     5xx
|   |-- Unsupported  501
|   |-- Unavailable  502, 503
|   |-- TimedOut     504
|   `-- StorageFull  507
|-- Unreachable      no answer at all
`-- CommandFailed    a command that had to succeed did not
"""

from __future__ import annotations

import json
from typing import Any


class DovecoteError(Exception):
    """`code` is stable and for programs; `message` and `hint` are for a person."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        hint: str = "",
        status: int = 0,
        request_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]" + (f" ({self.hint})" if self.hint else "")


class BadRequest(DovecoteError): ...


class Unauthenticated(DovecoteError): ...


class Forbidden(DovecoteError): ...


class NotFound(DovecoteError): ...


class Conflict(DovecoteError): ...


class Gone(DovecoteError): ...


class TooMany(DovecoteError): ...


class ServerFailed(DovecoteError): ...


class Unsupported(ServerFailed): ...


class Unavailable(ServerFailed): ...


class TimedOut(ServerFailed): ...


class StorageFull(ServerFailed): ...


class Unreachable(DovecoteError): ...


class CommandFailed(DovecoteError): ...


OF_STATUS: dict[int, type[DovecoteError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    429: TooMany,
    501: Unsupported,
    502: Unavailable,
    503: Unavailable,
    504: TimedOut,
    507: StorageFull,
}


def error_from(status: int, body: bytes, retry_after: str | None = None) -> DovecoteError:
    """The error of an answer; also of one that something between us and the server wrote."""
    kind = OF_STATUS.get(status, ServerFailed if status >= 500 else BadRequest)
    try:
        fields: dict[str, Any] = json.loads(body)["error"]
        code, message = str(fields["code"]), str(fields["message"])
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode("utf-8", "replace").strip()
        return kind(text or f"status {status} without a reason", code=f"http_{status}", status=status)
    wait = float(retry_after) if retry_after and retry_after.isdigit() else None
    return kind(
        message,
        code=code,
        hint=str(fields.get("hint", "")),
        status=status,
        request_id=str(fields.get("request_id", "")),
        retry_after=wait,
    )
