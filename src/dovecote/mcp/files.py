"""Tools for files of a sandbox."""

from __future__ import annotations

import base64
import binascii
import codecs
from stat import S_IMODE
from typing import Annotated, Literal

from pydantic import Field

from dovecote.mcp.answers import Content, Entries, Entry, Removed, Written
from dovecote.mcp.arguments import Call, ClientOf, Path, SandboxId, User
from dovecote.sdk import BadRequest, File

Encoding = Annotated[Literal["utf-8", "base64"], Field(description="base64 for what is not text.")]


class FileTools:
    def __init__(self, client_of: ClientOf) -> None:
        self._client_of = client_of

    async def read_file(
        self,
        call: Call,
        sandbox: SandboxId,
        path: Path,
        offset: Annotated[int, Field(ge=0, description="Bytes to pass over.")] = 0,
        max_bytes: Annotated[int, Field(ge=4, le=1 << 20)] = 64 << 10,
        encoding: Encoding = "utf-8",
        user: User = None,
    ) -> Content:
        """Read a file, or a piece of it. Where `next_offset` is not null, there is more."""
        session = await self._client_of(call).sessions.get(sandbox)
        size = (await session.files.stat(path, user=user)).size
        data = await session.files.read(path, user=user, offset=offset, length=max_bytes)
        after = offset + len(data)
        is_last = len(data) < max_bytes or 0 < size <= after  # what the kernel makes up says no size
        if encoding == "base64":
            content = base64.b64encode(data).decode()
        else:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            content = decoder.decode(data, is_last)
            after -= len(decoder.getstate()[0])  # the beginning of a character, read again with its end
        return Content(path=path, content=content, encoding=encoding, size=size, next_offset=None if is_last else after)

    async def write_file(
        self,
        call: Call,
        sandbox: SandboxId,
        path: Path,
        content: str,
        encoding: Encoding = "utf-8",
        mode: Annotated[
            str | None,
            Field(pattern="^[0-7]{3,4}$", description="Permissions, octal; kept, or 644 of a new file, if left out."),
        ] = None,
        user: User = None,
    ) -> Written:
        """Write a whole file, atomically; missing directories are made."""
        session = await self._client_of(call).sessions.get(sandbox)
        data = content.encode() if encoding == "utf-8" else _decoded(content)
        await session.files.write(path, data, user=user, mode=int(mode, 8) if mode else None)
        return Written(path=path, bytes=len(data))

    async def list_files(
        self,
        call: Call,
        sandbox: SandboxId,
        path: Path = ".",
        depth: Annotated[int, Field(ge=1, le=16)] = 1,
        max_entries: Annotated[int, Field(ge=1, le=5000)] = 500,
        user: User = None,
    ) -> Entries:
        """List a directory, `depth` levels down."""
        session = await self._client_of(call).sessions.get(sandbox)
        found = sorted(await session.files.list(path, depth=depth, user=user), key=lambda each: each.path)
        return Entries(
            entries=[_entry(each) for each in found[:max_entries]], left_out=max(0, len(found) - max_entries)
        )

    async def stat_file(self, call: Call, sandbox: SandboxId, path: Path, user: User = None) -> Entry:
        """Say what is at a path: its kind, size, permissions and owner."""
        session = await self._client_of(call).sessions.get(sandbox)
        return _entry(await session.files.stat(path, user=user))

    async def remove_file(
        self,
        call: Call,
        sandbox: SandboxId,
        path: Path,
        recursive: Annotated[bool, Field(description="Also a directory that has something in it.")] = False,
        user: User = None,
    ) -> Removed:
        """Remove a file or a directory."""
        session = await self._client_of(call).sessions.get(sandbox)
        await session.files.remove(path, recursive=recursive, user=user)
        return Removed(path=path)


def _entry(found: File) -> Entry:
    return Entry(
        path=found.path,
        kind=found.kind,
        size=found.size,
        mode=f"{S_IMODE(found.mode):04o}",
        uid=found.uid,
        gid=found.gid,
        modified_at=found.modified_at,
        target=found.target,
    )


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise BadRequest(f"content is not base64: {error}", code="invalid", hint="or leave `encoding` out") from None
