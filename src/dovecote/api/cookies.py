"""The cookie of a session as `set-cookie` has it. Pure; `set_cookie` in `routes.lua` writes the same."""

from __future__ import annotations

from dovecote.model.naming import cookie_name


def render_cookie(value: str, seconds: int, *, is_secure: bool, prefix: str) -> str:
    """`prefix` is the path that the function was called by, empty where it was called by its own host name."""
    name = cookie_name(is_secure=is_secure, is_by_path=bool(prefix))
    secure = "; Secure" if is_secure else ""
    return f"{name}={value}; Max-Age={seconds}; Path={prefix or '/'}; HttpOnly; SameSite=Lax{secure}"
