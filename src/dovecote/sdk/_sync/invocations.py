"""Asynchronous calls of functions."""

# Generated from _async/invocations.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence

from dovecote.sdk._invocations import Invocation
from dovecote.sdk._reading import read
from dovecote.sdk._sync.transport import Wire

ITEMS = 50  # in a page: each may hold half a megabyte at the server


class Invocations:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(
        self,
        function: str,
        body: bytes | str = b"",
        *,
        method: str = "POST",
        path: str = "/",
        headers: Mapping[str, str] | None = None,
        session: str | None = None,
        user: str = "default",
        delay: float = 0.0,
        timeout: float = 600.0,
        idempotency_key: str | None = None,
    ) -> Invocation:
        """Calls a function and waits for nothing. `session` is the key of one; times are in seconds.

        The same idempotency key again gives the call that has it already.
        """
        content = body.encode() if isinstance(body, str) else body
        asked = {
            "method": method,
            "path": path,
            "headers": dict(headers or {}),
            "body_base64": base64.b64encode(content).decode(),
            "session": session,
            "user": user,
            "delay_seconds": delay,
            "timeout_seconds": timeout,
            "idempotency_key": idempotency_key,
        }
        return read(Invocation, self._wire.call("POST", f"/v1/functions/{function}/invocations", json=asked))

    def get(self, invocation_id: str) -> Invocation:
        """With its request and what the function answered."""
        return read(Invocation, self._wire.call("GET", f"/v1/invocations/{invocation_id}"))

    def each(
        self,
        *,
        function: str | None = None,
        user: str | None = None,
        session: str | None = None,
        state: str | Sequence[str] | None = None,
        newest_first: bool = False,
    ) -> Iterator[Invocation]:
        """All that match, page by page; `state` may be several."""
        after: str | None = None
        asked = {"function": function, "user": user, "session": session, "state": state}
        order = "true" if newest_first else None
        while True:
            params = {**asked, "newest_first": order, "limit": ITEMS, "after": after}
            page = self._wire.call("GET", "/v1/invocations", params=params)
            for item in page["items"]:
                yield read(Invocation, item)
            after = page["next"]
            if after is None:
                return

    def cancel(self, invocation_id: str) -> Invocation:
        """It is made no more; an attempt under way is cut off."""
        return read(Invocation, self._wire.call("POST", f"/v1/invocations/{invocation_id}:cancel"))

    def replay(self, invocation_id: str) -> Invocation:
        """Makes one that has ended once more, for the same session; the new call."""
        return read(Invocation, self._wire.call("POST", f"/v1/invocations/{invocation_id}:replay"))

    def webhook_secret(self, *, rotate: bool = False, overlap: float | None = None) -> str:
        """What signs your webhooks; see `is_genuine`.

        Rotating makes a new one; for `overlap` seconds, a day if not said, the one before it signs as well.
        """
        if rotate:
            asked = {"overlap_seconds": overlap} if overlap is not None else {}
            return str((self._wire.call("POST", "/v1/webhook-secret:rotate", json=asked))["secret"])
        return str((self._wire.call("GET", "/v1/webhook-secret"))["secret"])
