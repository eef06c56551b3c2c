"""The errors of Dovecote, one tree.

    DovecoteError
    |-- Invalid             the request itself is wrong            invalid, malformed_id, ...
    |-- Unauthenticated     no key, or a key that is not one of ours
    |-- Forbidden           a good key, but not for this
    |-- NotFound            no such thing in this tenant
    |-- Gone                it was there and has ended             session_expired
    |-- Conflict            somebody else was first                exists, stale, sealed, damaged
    |-- NoCapacity          come back later                        no_memory, too_many
    |-- Failed              something of ours or of the sandbox did not work
    |   `-- StorageFailed   bytes could not be written or verified disk_full, store_read_only, corrupt
    |-- DeadlineExceeded    it took longer than it may             start_timeout, command_timeout
    `-- Unsupported         this host or isolation level cannot    (hint names what can)

Rooms raise these; only `api/` and `gateway/` know what status they are on the wire.
`code` is stable and low in cardinality, `message` is for a person, `hint` says what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class DovecoteError(Exception):
    """Anything a caller can act on."""

    default_code: ClassVar[str] = "internal"

    def __init__(
        self, message: str, *, code: str | None = None, hint: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint
        self.retry_after = retry_after  # seconds, where waiting helps

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Invalid(DovecoteError):
    default_code = "invalid"


class Unauthenticated(DovecoteError):
    default_code = "unauthenticated"


class Forbidden(DovecoteError):
    default_code = "forbidden"


class NotFound(DovecoteError):
    default_code = "not_found"


class Gone(DovecoteError):
    default_code = "gone"


class Conflict(DovecoteError):
    default_code = "conflict"


class NoCapacity(DovecoteError):
    default_code = "no_capacity"


class Failed(DovecoteError):
    default_code = "failed"


class StorageFailed(Failed):
    default_code = "storage_failed"


class DeadlineExceeded(DovecoteError):
    default_code = "deadline_exceeded"


class Unsupported(DovecoteError):
    default_code = "unsupported"
