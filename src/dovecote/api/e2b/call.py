"""One request for a sandbox, once it is known which one and that it may."""

from __future__ import annotations

import base64
import binascii
import posixpath
from dataclasses import dataclass

from starlette.datastructures import Headers

from dovecote.api.e2b.connect import Pace
from dovecote.control.sandboxes import Sandboxes
from dovecote.errors import Unauthenticated
from dovecote.model.records import Session


@dataclass(frozen=True)
class Call:
    """`user` is a name inside the sandbox; None is the template's own."""

    session: Session
    user: str | None
    pace: Pace

    @property
    def place(self) -> tuple[str, str]:
        """Tenant and session, as the rooms take them."""
        return self.session.tenant_id, self.session.id


def identity(session: Session) -> dict[str, str]:
    """Variables by which programs know that they are in a sandbox, and in which; the sandbox's own go first."""
    known = {"E2B_SANDBOX": "true", "E2B_SANDBOX_ID": session.slug, "E2B_TEAM_ID": session.tenant_id}
    return {name: text for name, text in known.items() if name not in session.env}


def parse_user(headers: Headers) -> str | None:
    """Who a call acts as: the name of `Authorization: Basic`; its password is not looked at."""
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, _, _ = base64.b64decode(encoded, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        raise Unauthenticated("Authorization is not base64 of a user's name and a colon") from None
    return check_user(name)


def check_user(name: str) -> str | None:
    """The name, or None for none. With a colon it would also mean a group, and blur what a signature is of."""
    if len(name) > 64 or set(name) & {":", "\0"}:
        raise Unauthenticated(f"no such user in the sandbox: {name[:64]!r}", code="no_such_user")
    return name or None


async def absolute(sandboxes: Sandboxes, call: Call, path: str, user: str | None) -> str:
    """The path without dots; relative ones, `~` and an empty one start at the user's home."""
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    if not path.startswith("/"):
        path = posixpath.join(await sandboxes.home(*call.place, user=user), path)
    return "/" + posixpath.normpath(path).lstrip("/")
