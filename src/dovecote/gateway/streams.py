"""Reads from a FIFO which sessions have a stream open, and which have come to their end. Envoy writes it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from dovecote.gateway.clusters import SESSION_HEADER, TYPE, Json

log = logging.getLogger("dovecote.gateway")

MOST_LINE = 200  # bytes
MOST_KNOWN = 50_000  # sessions that wait to be told of
AT_ONCE = 8
TELL_WITHIN = 30.0  # seconds
READ_BYTES = 1 << 16

Touch = Callable[[str], Awaitable[None]]
End = Callable[[str, str], Awaitable[None]]

_LINE = re.compile(r"(DownstreamPeriodic|DownstreamEnd) (\d+) (ses_[a-z0-9]{1,40}) (stream|delete|-)")
_FILE = TYPE + "extensions.access_loggers.file.v3.FileAccessLog"
REASONS = {"stream": "its MCP stream ended", "delete": "its MCP client ended it"}


def stream_log(path: Path) -> Json:
    """Of the front listener: a line each time that a long warm request is looked at, one at the end of a session.

    A request that is over before the first look, and ends no session, writes nothing.
    """
    session = ("dovecote", "route", "session")
    periodic = _all(_kind("DownstreamPeriodic"), _has(*session))
    last = _all(_kind("DownstreamEnd"), _has("dovecote", "ends"))
    return _log(path, {"or_filter": {"filters": [periodic, last]}}, session, "%DYNAMIC_METADATA(dovecote:ends)%")


def held_log(path: Path) -> Json:
    """Of the wake listener: a line each time that a long request is looked at which was asked about."""
    session = ("envoy.filters.http.ext_authz", SESSION_HEADER)
    return _log(path, _all(_kind("DownstreamPeriodic"), _has(*session)), session, "-")


def _log(path: Path, wanted: Json, session: Sequence[str], ends: str) -> Json:
    line = f"%ACCESS_LOG_TYPE% %RESPONSE_CODE% %DYNAMIC_METADATA({':'.join(session)})% {ends}\n"
    file = {"@type": _FILE, "path": str(path), "log_format": {"text_format_source": {"inline_string": line}}}
    return {"name": "streams", "filter": wanted, "typed_config": file}


def _all(*filters: Json) -> Json:
    return {"and_filter": {"filters": list(filters)}}


def _kind(name: str) -> Json:
    return {"log_type_filter": {"types": [name]}}


def _has(namespace: str, *path: str) -> Json:
    matcher = {"filter": namespace, "path": [{"key": key} for key in path], "value": {"present_match": True}}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}}


def parse_line(line: str) -> tuple[str, str | None] | None:
    """The session, and why it has ended, if it has; None for a line that says nothing."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    kind, status, session_id, ends = match.groups()
    if kind == "DownstreamPeriodic":
        return session_id, None
    # A server that refuses to end a session keeps it.
    is_over = ends == "stream" or (ends == "delete" and (200 <= int(status) < 300 or status == "404"))
    return (session_id, REASONS[ends]) if is_over else None


class Streams:
    """Opened before Envoy starts, for reading and writing, so that Envoy's own opening never waits for a reader."""

    def __init__(self, path: Path, *, touch: Touch, end: End) -> None:
        self._path = path
        self._touch, self._end = touch, end
        self._fd = -1
        self._rest = b""
        self._told: dict[str, str | None] = {}  # session -> reason of its end
        self._tellers: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """The FIFO of before is kept: an Envoy that went on still writes to it."""
        if not self._is_fifo():
            self._path.unlink(missing_ok=True)
            os.mkfifo(self._path, 0o600)
        self._fd = os.open(self._path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.fchmod(self._fd, 0o600)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    async def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        for task in list(self._tellers):
            task.cancel()
        await asyncio.gather(*self._tellers, return_exceptions=True)

    def _is_fifo(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return stat.S_ISFIFO(self._path.lstat().st_mode)
        return False

    def _read(self) -> None:
        try:
            data = self._rest + os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        *lines, rest = data.split(b"\n")
        self._rest = rest if len(rest) <= MOST_LINE else b""
        for line in lines:
            self._note(line.decode("latin-1"))
        while self._told and len(self._tellers) < min(AT_ONCE, len(self._told)):
            task = asyncio.ensure_future(self._tell())
            self._tellers.add(task)
            task.add_done_callback(self._tellers.discard)

    def _note(self, line: str) -> None:
        found = parse_line(line)
        if found is None:
            return
        session_id, reason = found
        if session_id not in self._told and len(self._told) >= MOST_KNOWN:
            log.warning("more streams are reported than can be told of")
            return
        self._told[session_id] = reason or self._told.get(session_id)

    async def _tell(self) -> None:
        while self._told:
            session_id, reason = self._told.popitem()
            try:
                async with asyncio.timeout(TELL_WITHIN):
                    await (self._touch(session_id) if reason is None else self._end(session_id, reason))
            except Exception:
                log.exception("session %s could not be told of its stream", session_id)
