"""Pages for a browser: the console, and a terminal in a session. They hold nothing; their scripts ask the API."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

from dovecote.api.rest.here import SessionId
from dovecote.errors import Unsupported

routes = APIRouter(tags=["server"])

CONSOLE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
# The terminal makes style elements while it runs. Scripts come from here alone.
SHELL_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FROM_NPM = ("xterm.js", "xterm.css", "addon-fit.js")
Part = Literal["shell.js", "shell.css", "xterm.js", "xterm.css", "addon-fit.js"]


@routes.get("/", summary="The console", response_class=HTMLResponse)
async def console() -> HTMLResponse:
    return _page("console.html", CONSOLE_POLICY)


@routes.get("/shell/{session_id}", summary="A terminal in a session, for a browser", response_class=HTMLResponse)
async def shell(session_id: SessionId) -> HTMLResponse:
    for name in FROM_NPM:
        _read(name)
    return _page("shell.html", SHELL_POLICY)


@routes.get("/shell/parts/{name}", summary="What that page is made of", response_class=Response)
async def part(name: Part) -> Response:
    kind = "text/javascript" if name.endswith(".js") else "text/css"
    headers = {"cache-control": "max-age=300", "x-content-type-options": "nosniff"}
    return Response(_read(name), media_type=f"{kind}; charset=utf-8", headers=headers)


def _page(name: str, policy: str) -> HTMLResponse:
    headers = {
        "content-security-policy": policy,
        "x-frame-options": "DENY",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return HTMLResponse(_read(name), headers=headers)


@cache
def _read(name: str) -> bytes:
    """Raises Unsupported (no_web_shell) where the terminal was never fetched."""
    pages = resources.files("dovecote.api") / "pages"
    try:
        return ((pages / "npm" if name in FROM_NPM else pages) / name).read_bytes()
    except FileNotFoundError:
        raise Unsupported(
            "this installation has no web shell",
            code="no_web_shell",
            hint="`make setup` fetches its terminal from npm; `dovecote sandbox shell` needs none",
        ) from None
