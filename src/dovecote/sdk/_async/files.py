"""Files of a session: contents, what is in directories, what changes in them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from dovecote.sdk._async.transport import AsyncWire, json_lines
from dovecote.sdk._errors import NotFound
from dovecote.sdk._files import File, FileChange, Listing
from dovecote.sdk._reading import read


class AsyncWatcher:
    """Keeps what changes in a directory until it is taken; unread for ten minutes it ends. `id` is for elsewhere."""

    def __init__(self, wire: AsyncWire, path: str, watcher_id: str) -> None:
        self._wire = wire
        self._path = f"{path}/watchers/{watcher_id}"
        self.id = watcher_id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(NotFound):  # it may have ended by itself
            await self.delete()

    async def take(self) -> list[FileChange]:
        """What changed since the last time. Raises NotFound once there is nothing more to come."""
        answer = await self._wire.call("POST", f"{self._path}:take")
        return [read(FileChange, each) for each in answer["items"]]

    async def delete(self) -> None:
        await self._wire.call("DELETE", self._path)


class AsyncFiles:
    """Files of a session. Relative paths start in the user's home; `user` acts as another one."""

    def __init__(self, wire: AsyncWire, session_id: str) -> None:
        self._wire = wire
        self._path = f"/v1/sessions/{session_id}/files"

    # -- contents

    async def read(self, path: str, *, user: str | None = None, offset: int = 0, length: int | None = None) -> bytes:
        params = {"path": path, "user": user, "offset": offset, "length": length}
        return await self._wire.read(self._path, params)

    async def read_text(self, path: str, *, user: str | None = None) -> str:
        return (await self.read(path, user=user)).decode("utf-8")

    async def download(self, path: str, *, user: str | None = None) -> AsyncGenerator[bytes, None]:
        """The file piece by piece, whatever its size."""
        async with self._wire.stream("GET", self._path, params={"path": path, "user": user}) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def write(
        self,
        path: str,
        content: bytes | str | AsyncIterable[bytes],
        *,
        user: str | None = None,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Whole or not at all. An iterable of bytes is sent as it comes.

        A file that is there keeps its mode and metadata where none are given; a new one gets 0644.
        """
        body = content.encode() if isinstance(content, str) else content
        noted = None if metadata is None else [f"{name}:{text}" for name, text in metadata.items()] or [""]
        params = {"path": path, "user": user, "mode": mode, "metadata": noted}
        await self._wire.call("PUT", self._path, params=params, content=body)

    # -- what is there

    async def stat(self, path: str, *, follow: bool = True, user: str | None = None) -> File:
        """What is at a path; without `follow` a link itself, with its target."""
        params = {"path": path, "follow": follow, "user": user}
        return read(File, await self._wire.call("GET", f"{self._path}/stat", params=params))

    async def list(self, path: str = ".", *, depth: int = 1, limit: int = 10_000, user: str | None = None) -> Listing:
        """What is in a directory, by path; `truncated` says whether there was more than `limit`."""
        params = {"path": path, "depth": depth, "limit": limit, "user": user}
        answer = await self._wire.call("GET", f"{self._path}/list", params=params)
        return Listing((read(File, each) for each in answer["items"]), truncated=answer["truncated"])

    async def make_dir(self, path: str, *, user: str | None = None) -> bool:
        """With those above it. Whether it was made: one that is there is no error."""
        answer = await self._wire.call("POST", f"{self._path}/mkdir", json={"path": path, "user": user})
        return bool(answer["created"])

    async def make_link(self, path: str, target: str, *, user: str | None = None) -> None:
        """A symbolic link at `path`; `target` is taken as it is."""
        await self._wire.call("POST", f"{self._path}/link", json={"path": path, "target": target, "user": user})

    async def chmod(self, path: str, mode: int, *, user: str | None = None) -> File:
        return await self._alter({"path": path, "mode": mode, "user": user})

    async def set_metadata(self, path: str, metadata: Mapping[str, str], *, user: str | None = None) -> File:
        """Notes words on a file or directory; they are saved with it. What is not named is removed."""
        return await self._alter({"path": path, "metadata": dict(metadata), "user": user})

    async def remove(self, path: str, *, recursive: bool = False, user: str | None = None) -> None:
        params = {"path": path, "recursive": recursive, "user": user}
        await self._wire.call("DELETE", self._path, params=params)

    async def rename(self, source: str, target: str, *, user: str | None = None) -> None:
        """Also to a volume or another file system, whole or not at all."""
        await self._wire.call("POST", f"{self._path}/rename", json={"source": source, "target": target, "user": user})

    # -- what changes

    async def watch(
        self, path: str = ".", *, recursive: bool = False, user: str | None = None
    ) -> AsyncGenerator[FileChange, None]:
        """What changes in a directory, until you leave. After the first, `watching`, nothing is missed."""
        params = {"path": path, "recursive": recursive, "user": user}
        async with self._wire.stream("GET", f"{self._path}/watch", params=params) as response:
            async for fields in json_lines(response):
                yield read(FileChange, fields)

    async def watcher(self, path: str = ".", *, recursive: bool = False, user: str | None = None) -> AsyncWatcher:
        """Keeps what changes until it is taken."""
        body = {"path": path, "recursive": recursive, "user": user}
        answer = await self._wire.call("POST", f"{self._path}/watchers", json=body)
        return AsyncWatcher(self._wire, self._path, answer["id"])

    async def _alter(self, change: dict[str, object]) -> File:
        return read(File, await self._wire.call("PATCH", self._path, json=change))
