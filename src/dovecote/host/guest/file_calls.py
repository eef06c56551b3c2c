"""The host's side of a guest: what is done with files. Paths begin with /."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from dovecote.errors import Failed, Invalid
from dovecote.host.guest import files
from dovecote.host.guest.calls import ANSWER_WITHIN, Calls, answer, fits, receive
from dovecote.host.guest.connection import Connection, unreachable
from dovecote.host.guest.files import Entry, FileChange, Listing, Stat, parse_change, parse_entries, render_metadata
from dovecote.host.guest.protocol import Kind, garbage, render_frame, text

MOST_DEPTH = 64
MOST_ENTRIES = 100_000
MOST_ENTRY_BYTES = 64 << 20
TREE_WITHIN = 600.0  # seconds to remove a tree, or to copy it to another file system


class FileCalls(Calls):
    """Each call acts as a user of the sandbox, by name or number."""

    async def read_file(
        self, path: str, *, user: str, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        most = 2**64 - 1 if length is None else fits(length, 64)
        request = _at(user, path) + struct.pack("<QQ", fits(offset, 63), most)
        async with self._open() as connection:
            await connection.send(render_frame(Kind.READ, request))
            left = most
            while (data := await _next(connection, Kind.CONTENT, Kind.CONTENT_END, path)) is not None:
                left -= len(data)
                if left < 0:
                    raise garbage("more of a file than was asked for")
                yield data

    async def write_file(
        self,
        path: str,
        chunks: AsyncIterator[bytes] | bytes,
        *,
        user: str,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
        make_parents: bool = True,
    ) -> None:
        """Atomic: readers see the old file or the whole new one. Nothing is left if `chunks` raises.

        A file that exists keeps its owner, and its mode and metadata where none are given; a new one gets mode 0644.
        """
        flags = files.WRITE_PARENTS * make_parents
        flags += files.WRITE_METADATA * (metadata is not None)
        bits = files.KEEP_MODE if mode is None else mode & 0o7777
        request = _at(user, path) + struct.pack("<IB", bits, flags) + render_metadata(metadata or {})
        async with self._open() as connection:
            await connection.send(render_frame(Kind.WRITE, request))
            await _send_content(connection, chunks)
            await answer(connection, Kind.DONE, path)

    async def stat(self, path: str, *, user: str, follow: bool = True) -> Stat:
        """Without `follow` a link itself, with its target."""
        request = _at(user, path) + bytes([follow])
        entries = parse_entries(await self._ask(Kind.STAT, Kind.ENTRIES, request, subject=path))
        if len(entries) != 1:
            raise garbage("not one file where one was asked for")
        return entries[0].stat

    async def list_dir(
        self, path: str, *, user: str, depth: int = 1, most: int = MOST_ENTRIES, follow: bool = True
    ) -> Listing:
        """Links in it are not followed; without `follow`, `path` must be no link either."""
        if not 0 < depth <= MOST_DEPTH or not 0 < most <= MOST_ENTRIES:
            raise Invalid(f"depth is from 1 to {MOST_DEPTH}, and entries at most {MOST_ENTRIES}")
        request = _at(user, path) + struct.pack("<HIB", depth, most, follow)
        try:
            async with asyncio.timeout(TREE_WITHIN), self._open() as connection:
                await connection.send(render_frame(Kind.LIST_DIR, request))
                found, is_cut = await _entries(connection, path, most)
        except TimeoutError:
            raise unreachable("a listing without an end") from None
        return Listing(sorted(found, key=lambda entry: entry.path), is_cut)

    async def make_dir(self, path: str, *, user: str, mode: int = 0o755) -> bool:
        """With those above it. Says whether it was made; one that exists is no error."""
        request = _at(user, path) + (mode & 0o7777).to_bytes(4, "little")
        return await self._ask(Kind.MAKE_DIR, Kind.DONE, request, subject=path) == b"\1"

    async def make_link(self, path: str, target: str, *, user: str) -> None:
        """A symbolic link at `path`; `target` need not be there. Raises Conflict `exists`."""
        await self._ask(Kind.LINK, Kind.DONE, _at(user, path) + text(target), subject=path)

    async def alter(
        self, path: str, *, user: str, mode: int | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Sets permission bits; makes the metadata exactly what is given. What is None stays."""
        what = files.ALTER_MODE * (mode is not None) + files.ALTER_METADATA * (metadata is not None)
        request = _at(user, path) + struct.pack("<BI", what, (mode or 0) & 0o7777) + render_metadata(metadata or {})
        await self._ask(Kind.ALTER, Kind.DONE, request, subject=path)

    async def remove(self, path: str, *, user: str, recursive: bool = False, timeout: float = TREE_WITHIN) -> None:
        """A link is removed, not what it names. A directory that holds something only if `recursive`."""
        request = _at(user, path) + bytes([recursive])
        await self._ask(Kind.REMOVE, Kind.DONE, request, subject=path, timeout=timeout)

    async def rename(self, source: str, target: str, *, user: str, timeout: float = TREE_WITHIN) -> None:
        """Over a file or an empty directory that is there. To another file system by a copy, whole or not at all."""
        request = _at(user, source) + text(_absolute(target))
        await self._ask(Kind.RENAME, Kind.DONE, request, subject=f"{source} to {target}", timeout=timeout)

    async def watch(self, path: str, *, user: str, recursive: bool = False) -> AsyncGenerator[FileChange, None]:
        """What changes in a directory, or anywhere below it, until it is gone. Who is slow gets an `overflow`."""
        async with self._open() as connection:
            await connection.send(render_frame(Kind.WATCH, _at(user, path) + bytes([recursive])))
            timeout: float | None = ANSWER_WITHIN
            while True:
                kind, data = await receive(connection, path, timeout)
                if kind == Kind.CONTENT_END and not data:
                    return
                if kind != Kind.CHANGED:
                    raise garbage(f"a message of kind {kind} among changes")
                timeout = None
                yield parse_change(data)


async def _next(connection: Connection, item: Kind, end: Kind, subject: str) -> bytes | None:
    kind, data = await receive(connection, subject)
    if kind == end and not data:
        return None
    if kind != item or not data:
        raise garbage(f"a message of kind {kind} where {item.name} was due")
    return data


async def _entries(connection: Connection, path: str, most: int) -> tuple[list[Entry], bool]:
    """And whether there were more."""
    found: list[Entry] = []
    received = 0
    while True:
        kind, data = await receive(connection, path)
        received += len(data)
        if kind == Kind.CONTENT_END and len(data) == 1:
            return found, data != b"\0"
        if kind != Kind.ENTRIES or not data:
            raise garbage(f"a message of kind {kind} in a listing")
        found += parse_entries(data)
        if len(found) > most or received > MOST_ENTRY_BYTES:
            raise garbage("more entries than were asked for")


async def _send_content(connection: Connection, chunks: AsyncIterator[bytes] | bytes) -> None:
    """Stops early when the guest has refused or closed: its answer says why."""
    if isinstance(chunks, bytes):
        going = await _sent(connection, chunks)
    else:
        going = True
        async for chunk in chunks:
            if connection.has_answer() or not await _sent(connection, chunk):
                going = False
                break
    if going:
        with contextlib.suppress(Failed):
            await connection.send(render_frame(Kind.END))


async def _sent(connection: Connection, data: bytes) -> bool:
    try:
        await connection.send_data(data)
    except Failed:
        return False
    return True


def _at(user: str, path: str) -> bytes:
    return text(user) + text(_absolute(path))


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise Invalid(f"not an absolute path: {path[:200]!r}", code="malformed_path", hint="begin it with /")
    return path
