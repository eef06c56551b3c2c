"""filesystem.Filesystem: what is at a path, directories, moves and removals.

E2B's own daemon is root and gives what it makes to the user of the call. So what that user may not do is done as root.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from dovecote.api.e2b.call import Call, absolute
from dovecote.api.e2b.errors import NO_USER
from dovecote.api.e2b.messages import Json, Message
from dovecote.control.sandboxes import Sandboxes, Stat
from dovecote.errors import Conflict, DovecoteError, Forbidden, Invalid, NoCapacity, NotFound

T = TypeVar("T")

ROOT = "root"
PATIENCE = 20.0  # seconds
MOST_KEPT = 2 << 20  # bytes of an upload that can be sent again as root
TYPES = {"file": "FILE_TYPE_FILE", "directory": "FILE_TYPE_DIRECTORY", "link": "FILE_TYPE_SYMLINK"}
LETTERS = {"directory": "d", "link": "L", "fifo": "p", "socket": "S", "block": "D", "character": "Dc"}  # as Go has them
DEEPEST = 64  # levels of a listing


class Filesystem:
    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def stat(self, call: Call, message: Message) -> Json:
        """Below a file there is nothing: clients ask by this whether a path exists."""
        path = await absolute(self._sandboxes, call, message.text("path"), call.user)
        try:
            return {"entry": await self.entry(call, path)}
        except Invalid as error:
            if error.code != "not_a_directory":
                raise
            raise NotFound(f"no file {shown(path)}", code="file_not_found") from None

    async def list_dir(self, call: Call, message: Message) -> Json:
        path = await absolute(self._sandboxes, call, message.text("path"), call.user)
        depth = min(message.number("depth") or 1, DEEPEST)
        found = await self.as_user_or_root(
            call, lambda user: self._sandboxes.list_dir(*call.place, path, depth=depth, user=user)
        )
        return {"entries": [render_entry(posixpath.join(path, each.path), each.stat) for each in found.entries]}

    async def make_dir(self, call: Call, message: Message) -> Json:
        path = await absolute(self._sandboxes, call, message.text("path"), call.user)
        if (there := await self.find(call, path)) is not None and there.kind != "directory":
            raise Invalid(f"path already exists, and it is not a directory: {shown(path)}")
        if not await self.make_directory(call, path):
            raise Conflict(f"directory already exists: {shown(path)}", code="exists")
        return {"entry": await self.entry(call, path)}

    async def move(self, call: Call, message: Message) -> Json:
        source = await absolute(self._sandboxes, call, message.text("source"), call.user)
        target = await absolute(self._sandboxes, call, message.text("destination"), call.user)
        if await self.find(call, source, follow=False) is None:
            raise NotFound(f"source file not found: {source}", code="file_not_found")
        if await self.find(call, parent := posixpath.dirname(target)) is None:
            await self.make_directory(call, parent)
        await self.as_user_or_root(call, lambda user: self._sandboxes.rename(*call.place, source, target, user=user))
        return {"entry": await self.entry(call, target)}

    async def remove(self, call: Call, message: Message) -> Json:
        """What is not there is removed already."""
        path = await absolute(self._sandboxes, call, message.text("path"), call.user)
        with contextlib.suppress(NotFound):
            await self.as_user_or_root(
                call, lambda user: self._sandboxes.remove(*call.place, path, recursive=True, user=user)
            )
        return {}

    # -- for uploads and downloads too

    async def entry(self, call: Call, path: str) -> Json:
        return render_entry(path, await self._stat(call, path, follow=False))

    async def find(self, call: Call, path: str, *, follow: bool = True) -> Stat | None:
        """None where nothing is."""
        try:
            return await self._stat(call, path, follow=follow)
        except NotFound:
            return None

    async def make_directory(self, call: Call, path: str) -> bool:
        """With those above it, and all of them the user's. Says whether it was not there."""
        try:
            return await patiently(lambda: self._sandboxes.make_dir(*call.place, path, user=call.user))
        except (Forbidden, NotFound) as error:
            made = await self._missing(call, path)
            await self._root(call, lambda: self._sandboxes.make_dir(*call.place, path, user=ROOT), error)
            await self._give(call, made)
            return bool(made)

    async def write(
        self, call: Call, path: str, chunks: AsyncIterator[bytes], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Whole or not at all. Raises what refused it, also where too much of it was read to begin again as root."""
        kept = Kept(chunks)

        async def put(user: str | None) -> None:
            await self._sandboxes.write_file(*call.place, path, kept.read(), user=user, metadata=metadata)

        try:
            await patiently(lambda: put(call.user), lambda: kept.is_whole)
        except (Forbidden, NotFound) as error:
            if not kept.is_whole:
                raise
            made = await self._missing(call, path)
            await self._root(call, lambda: put(ROOT), error)
            await self._give(call, [*made, path])

    async def read(
        self, call: Call, path: str, offset: int, length: int | None
    ) -> tuple[bytes, AsyncGenerator[bytes, None]]:
        """Its first bytes and the rest of them. What refuses it is raised here."""

        async def begin(user: str | None) -> tuple[bytes, AsyncGenerator[bytes, None]]:
            rest = self._sandboxes.read_file(*call.place, path, user=user, offset=offset, length=length)
            return await anext(rest, b""), rest

        return await self.as_user_or_root(call, begin)

    # -- inside

    async def _stat(self, call: Call, path: str, *, follow: bool) -> Stat:
        return await self.as_user_or_root(
            call, lambda user: self._sandboxes.stat(*call.place, path, user=user, follow=follow)
        )

    async def as_user_or_root(self, call: Call, act: Callable[[str | None], Awaitable[T]]) -> T:
        try:
            return await patiently(lambda: act(call.user))
        except Forbidden as error:
            return await self._root(call, lambda: act(ROOT), error)

    async def _root(self, call: Call, act: Callable[[], Awaitable[T]], refusal: DovecoteError) -> T:
        """Where directories are made on the way, what is refused first is told as what is then missing."""
        if call.user == ROOT or refusal.code == NO_USER:
            raise refusal
        return await act()

    async def _missing(self, call: Call, path: str) -> list[str]:
        """The directories above it, and itself, that are not there, from the top down; it is not one that is."""
        missing: list[str] = []
        while path != "/" and await self.find(call, path, follow=False) is None:
            missing.append(path)
            path = posixpath.dirname(path)
        return missing[::-1]

    async def _give(self, call: Call, paths: list[str]) -> None:
        """To the call's user. A template without chown leaves them root's."""
        if not paths:
            return
        owner = call.user or await self._sandboxes.user(*call.place)
        with contextlib.suppress(DovecoteError):
            await self._sandboxes.run(*call.place, argv=["chown", "-h", f"{owner}:", "--", *paths], user=ROOT)


class Kept:
    """A body that can be read again from its beginning as long as that is not much."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._kept: list[bytes] = []
        self._size = 0

    @property
    def is_whole(self) -> bool:
        return self._size <= MOST_KEPT

    async def read(self) -> AsyncIterator[bytes]:
        for chunk in list(self._kept):
            yield chunk
        async for chunk in self._chunks:
            self._size += len(chunk)
            if self.is_whole:
                self._kept.append(chunk)
            else:
                self._kept.clear()
            yield chunk


async def patiently(act: Callable[[], Awaitable[T]], may_repeat: Callable[[], bool] = lambda: True) -> T:
    """Waits while too much goes on at once in the sandbox: clients of E2B know no such bound."""
    wait, left = 0.01, PATIENCE
    while True:
        try:
            return await act()
        except NoCapacity as error:
            if error.code != "too_many" or left <= 0 or not may_repeat():
                raise
        await asyncio.sleep(wait)
        left -= wait
        wait = min(2 * wait, 0.5)


def render_entry(path: str, stat: Stat) -> Json:
    body: Json = {
        "name": shown(posixpath.basename(path)) or "/",
        "type": TYPES.get(stat.kind, "FILE_TYPE_UNSPECIFIED"),
        "path": shown(path),
        "size": str(stat.size),
        "mode": stat.mode & 0o777,
        "permissions": permissions(stat),
        "owner": shown(stat.owner) or str(stat.uid),
        "group": shown(stat.group) or str(stat.gid),
        "modifiedTime": datetime.fromtimestamp(stat.modified_at.timestamp(), UTC).isoformat().replace("+00:00", "Z"),
    }
    if stat.metadata:
        body["metadata"] = {shown(name): shown(text) for name, text in stat.metadata.items()}
    if stat.kind == "link":
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), stat.target))
        body |= {"symlinkTarget": shown(target), "isSymlink": True}
    return body


def permissions(stat: Stat) -> str:
    """As Go writes a mode: its kind, `u`, `g` and `t` for setuid, setgid and sticky, and nine letters."""
    high = [letter for bit, letter in ((0o4000, "u"), (0o2000, "g"), (0o1000, "t")) if stat.mode & bit]
    prefix = LETTERS.get(stat.kind, "") + "".join(high)
    return (prefix or "-") + "".join(
        letter if stat.mode & (0o400 >> at) else "-" for at, letter in enumerate("rwxrwxrwx")
    )


def shown(text: str) -> str:
    """A name as JSON can hold it: what is not UTF-8 in it is replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
