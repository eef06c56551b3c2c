"""Signatures of URLs to files: who holds a sandbox's token can give others one path of it, for a while."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Literal

from starlette.datastructures import QueryParams

from dovecote.errors import Unauthenticated

Operation = Literal["read", "write"]


@dataclass(frozen=True)
class Signed:
    """What a URL says, and the signature that is to prove it. `expires` is its text, as it was signed."""

    path: str
    operation: Operation
    user: str
    signature: str
    expires: str | None

    def is_of(self, token: str) -> bool:
        """Whether the holder of that token signed it; takes as long whatever differs."""
        wanted = signature(self.path, self.operation, self.user, token, self.expires)
        return hmac.compare_digest(wanted.encode(), self.signature.encode("utf-8", "surrogatepass"))

    def check_time(self, now: float | None = None) -> None:
        """Raises Unauthenticated once its time is over."""
        if self.expires is None:
            return
        text = self.expires
        if not (text.isascii() and text.isdigit() and len(text) <= 12):
            raise Unauthenticated("signature_expiration is not a time in seconds")
        if int(text) < (time.time() if now is None else now):
            raise Unauthenticated("signature is already expired", code="signature_expired", hint="sign a new URL")


def signature(path: str, operation: Operation, user: str, token: str, expires: str | None = None) -> str:
    """`v1_` and the SHA-256 of `path:operation:user:token[:expires]`, in base64 without padding."""
    parts = [path, operation, user, token] + ([expires] if expires is not None else [])
    digest = hashlib.sha256(":".join(parts).encode("utf-8", "surrogatepass")).digest()
    return "v1_" + base64.b64encode(digest).rstrip(b"=").decode()


def parse_signed(query: QueryParams, method: str) -> Signed | None:
    """None where the URL carries no signature."""
    given = query.get("signature")
    if given is None:
        return None
    operation: Operation = "read" if method in ("GET", "HEAD") else "write"
    return Signed(
        query.get("path", ""), operation, query.get("username", ""), given, query.get("signature_expiration") or None
    )
