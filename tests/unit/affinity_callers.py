"""Clients of functions, one for each way to name a session: what they send, and what they keep of an answer."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace

from dovecote.control.sessions import key_in
from dovecote.model.naming import COOKIE
from dovecote.model.serving import DEFAULT_HEADER, Mode
from tests.unit.memory_servers import Request, Response, Stream

_MARKED = re.compile(r"[?&]session_id=([^.&]+)\.")


@dataclass(eq=False)
class Client:
    """`chosen` is the key of a client that makes up its own. `key` is that of its session, once it knows one."""

    tenant: int
    user: str
    function: str
    mode: Mode
    chosen: str = ""
    given: str = ""  # what it was given to come back with, as it was given
    stream: Stream | None = None

    @property
    def key(self) -> str:
        if self.mode is Mode.MCP_HTTP:
            return self.given.partition(".")[0].replace("~", ".")
        if self.mode is Mode.MCP_SSE:
            match = _MARKED.search(self.given)
            return match[1].replace("~", ".") if match else ""
        if self.mode is Mode.COOKIE:
            return key_in(self.given) if self.given else ""
        return self.chosen or self.given

    @property
    def name(self) -> str:
        return f"{self.tenant}/{self.user}/{self.function}/{self.mode}/{self.chosen}"

    def request(self, credential: str, *, method: str = "GET", hold: asyncio.Event | None = None) -> Request:
        """The next one: of an MCP client that has no session, the one that begins it."""
        headers = {"x-dovecote-key": credential, "x-dovecote-user": self.user}
        path = "/"
        if self.mode is Mode.MCP_HTTP:
            method, path = "POST", "/mcp"
            headers |= {"mcp-session-id": self.given} if self.given else {}
        elif self.mode is Mode.MCP_SSE:
            method, path = ("POST", self.given) if self.given else ("GET", "/sse")
        elif self.mode is Mode.COOKIE:
            headers |= {"cookie": f"theme=dark; {COOKIE}={self.given}" if self.given else "theme=dark"}
        elif self.mode is Mode.HEADER and self.key:
            headers[DEFAULT_HEADER] = self.key
        return Request(method, f"{self.function}.fn.localhost", path, headers, hold)

    def took(self, response: Response) -> None:
        """Of an answer of an instance."""
        if self.mode is Mode.HEADER:
            self.given = response.header(DEFAULT_HEADER) or self.given
        elif self.mode is Mode.COOKIE:
            told = response.header("set-cookie")
            self.given = told.partition(";")[0].partition("=")[2] if told else self.given
        elif self.mode is Mode.MCP_HTTP:
            self.given = response.header("mcp-session-id") or ""
        elif response.stream is not None:
            address = re.search(r"data: (\S+)", "".join(response.chunks))
            assert address is not None
            self.given, self.stream = address[1], response.stream

    def forget(self) -> None:
        """It begins anew next time."""
        self.given, self.stream = "", None

    def stolen_by(self, thief: Client) -> Client:
        """The thief with what this one was given."""
        assert thief.mode is self.mode
        return replace(thief, chosen=self.chosen, given=self.given, stream=None)


def callers() -> list[Client]:
    """Two tenants with functions of the same names, two users of each with the same keys."""
    clients = []
    for tenant in (0, 1):
        for user in ("ann", "bob"):
            for function in ("own", "seated", "guarded", "several"):
                clients += [Client(tenant, user, function, Mode.HEADER, key) for key in ("a", "b")]
            clients += [Client(tenant, user, function, Mode.HEADER) for function in ("own", "seated")]
            clients += [Client(tenant, user, function, Mode.COOKIE) for function in ("seated", "web", "several")]
            clients += [Client(tenant, user, function, Mode.MCP_HTTP) for function in ("tools", "several")]
            clients += [Client(tenant, user, function, Mode.MCP_SSE) for function in ("tools", "several")]
    return clients
