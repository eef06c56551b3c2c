"""Assembles an instance's root: images of its workspace, seen through its ids, under its writable upper."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dovecote.host.storage import mounts
from dovecote.host.storage.plain import KEPT, PlainTrees
from dovecote.model.trees import Workspace

IDLE_IMAGES = 256  # kept mounted after their last user
CACHED_NAMESPACES = 1024
UPPER, WORK = "upper", "work"  # of a disk


@dataclass
class Image:
    """One EROFS image, mounted once however many instances use it; or the plain directory that stands in for it."""

    at: Path
    users: int = 0
    is_mounted: bool = False
    mounting: asyncio.Lock = field(default_factory=asyncio.Lock)


class Roots:
    """Mounts images at `run_dir/images/<digest>` and overlays on top of them.

    `images` gives the file of a tree's EROFS image, and its objects below `objects_dir`, when a digest is first used;
    `used` is told each time.
    Where there is `plain`, directories of it are the layers instead, and neither is looked at.
    """

    def __init__(
        self,
        images: Callable[[str], Awaitable[Path]],
        objects_dir: Path,
        run_dir: Path,
        *,
        stack_detached: bool | None = None,
        plain: PlainTrees | None = None,
        used: Callable[[str], None] = lambda digest: None,
    ) -> None:
        self._files = images
        self._used = used
        self._plain = plain
        self._objects = None if plain else objects_dir
        self._images_dir = run_dir / "images"
        self._merged_dir = run_dir / "merged"
        self._mapped_dir = run_dir / "mapped"
        self._stack_detached = mounts.can_stack_detached() if stack_detached is None else stack_detached
        self._images: OrderedDict[str, Image] = OrderedDict()  # the one used last is last
        self._namespaces: OrderedDict[int, int] = OrderedDict()
        self._making = asyncio.Lock()

    async def adopt(self) -> None:
        """At start: takes over the images that an earlier process mounted and drops its folding views."""
        for directory in (self._merged_dir, self._mapped_dir):
            await asyncio.to_thread(_clear, directory)
        if self._plain:
            # Images are from a life without plain directories: what runs on them has its own clones.
            await asyncio.to_thread(_clear, self._images_dir)
            await asyncio.to_thread(self._plain.clear)
            return
        for point in await asyncio.to_thread(mounts.mounted_below, self._images_dir):
            self._images.setdefault(point.name, Image(point, is_mounted=True))

    async def settle(self) -> None:
        """When all that runs has its hold again: what nobody holds counts as idle, so that it may go."""
        if self._plain:
            for digest in await asyncio.to_thread(self._plain.list):
                self._images.setdefault(digest, Image(self._images_dir / digest))
            await self._drop_idle()

    async def prepare(self, id_base: int) -> None:
        """Makes the user namespace of an instance ahead of its claim; `assemble` is 2 ms faster then."""
        os.close(await self._namespace(id_base))

    async def assemble(
        self, workspace: Workspace, *, disk: Path, id_base: int, setuid: bool, is_new: bool = False
    ) -> int:
        """A detached mount of the whole root, for `Entrance.swap_root`; the caller closes it.

        Holds the workspace's images until `release`. `disk` is one of `Disks` and belongs to `id_base`; no other mount
        may use its upper. An upper that `is_new` gets the attributes that `/` has in the workspace. Raises what
        `images` raises, StorageFailed, Unsupported.
        """
        userns = await self._namespace(id_base)
        try:
            await self.hold(workspace)
            try:
                new_for = id_base if is_new else None
                return await _descriptor(self._overlay, self._places(workspace), userns, disk, setuid, new_for)
            except BaseException:
                await self.release(workspace)
                raise
        finally:
            os.close(userns)

    @contextlib.asynccontextmanager
    async def merged(self, workspace: Workspace, upper: Path, *, id_base: int) -> AsyncIterator[Path]:
        """What an instance would see, read-only, with the `upper` of a snapshot: the place to read content from.

        Ids are the host's, as in the upper: `id_base` plus the container's.
        """
        at = self._merged_dir / secrets.token_hex(8)
        await self.hold(workspace)
        try:
            userns = await self._namespace(id_base)
            try:
                await _to_its_end(self._mount_merged, [upper, *self._places(workspace)], userns, at)
            finally:
                os.close(userns)
            yield at
        finally:
            await _to_its_end(_drop, at)
            await self.release(workspace)

    async def hold(self, workspace: Workspace) -> None:
        """Keeps a workspace's images mounted; also for an instance that was adopted after a restart."""
        held: list[str] = []
        try:
            for digest in _digests(workspace):
                image = self._images.setdefault(digest, Image(self._images_dir / digest))
                image.users += 1
                held.append(digest)
                self._images.move_to_end(digest)
                self._used(digest)
                async with image.mounting:
                    if not image.is_mounted:
                        await self._make_ready(digest, image)
                        image.is_mounted = True
        except BaseException:
            for digest in held:
                self._images[digest].users -= 1
            raise

    async def _make_ready(self, digest: str, image: Image) -> None:
        if self._plain:
            await _to_its_end(self._plain.ensure, digest)
            image.at = self._plain.place(digest)
        else:
            file = await self._files(digest)
            await _to_its_end(mounts.mount_image, file, image.at)

    async def release(self, workspace: Workspace) -> None:
        """Ends one hold. Images without users stay mounted while there are few of them."""
        for digest in _digests(workspace):
            if (image := self._images.get(digest)) and image.users:
                image.users -= 1
        await self._drop_idle()

    async def _drop_idle(self) -> None:
        idle = [digest for digest, image in self._images.items() if not image.users]
        for digest in idle[: max(0, len(idle) - (KEPT if self._plain else IDLE_IMAGES))]:
            await self._unmount(digest)

    async def let_go(self, digests: Collection[str]) -> None:
        """Unmounts those of them that nobody uses, as they are to be evicted."""
        for digest in digests:
            image = self._images.get(digest)
            # Not where somebody is at it: whoever waits for room may be that one.
            if image is not None and not image.users and not image.mounting.locked():
                await self._unmount(digest)

    def mounted(self) -> frozenset[str]:
        """Digests whose images are mounted, so that somebody may read objects through them."""
        return frozenset(d for d, image in self._images.items() if image.is_mounted and not self._plain)

    def in_use(self) -> frozenset[str]:
        """Digests whose images and objects must stay on this host."""
        return frozenset(digest for digest, image in self._images.items() if image.users)

    async def remove(self) -> None:
        """Unmounts everything of ours; roots that instances still have stay with them. May be repeated."""
        for directory in (self._merged_dir, self._mapped_dir, self._images_dir):
            await asyncio.to_thread(_clear, directory)
        self._images.clear()
        while self._namespaces:
            os.close(self._namespaces.popitem()[1])

    async def _unmount(self, digest: str) -> None:
        image = self._images[digest]
        async with image.mounting:
            if image.users or self._images.get(digest) is not image:
                return  # wanted again, or gone already
            if self._plain:
                await _to_its_end(self._plain.drop, digest)
            else:
                await _to_its_end(_drop, image.at)
            image.is_mounted = False
            if not image.users:
                self._images.pop(digest, None)

    async def _namespace(self, id_base: int) -> int:
        """A descriptor of its own for the caller, who closes it: the cached one may be dropped at any time."""
        async with self._making:
            if id_base not in self._namespaces:
                if len(self._namespaces) >= CACHED_NAMESPACES:
                    os.close(self._namespaces.popitem(last=False)[1])
                self._namespaces[id_base] = await _descriptor(mounts.user_namespace, id_base)
            self._namespaces.move_to_end(id_base)
            return os.dup(self._namespaces[id_base])

    def _places(self, workspace: Workspace) -> list[Path]:
        return [self._images[digest].at for digest in _digests(workspace)]

    def _overlay(self, lowers: Sequence[Path], userns: int, disk: Path, setuid: bool, new_for: int | None) -> int:
        if new_for is not None:
            _copy_attributes(lowers[0], disk / UPPER, new_for)
        with contextlib.ExitStack() as opened:
            mapped = [self._mapped(lower, userns, opened) for lower in lowers]
            return mounts.overlay(mapped, self._objects, upper=disk / UPPER, work=disk / WORK, allow_setuid=setuid)

    def _mount_merged(self, layers: Sequence[Path], userns: int, at: Path) -> None:
        with contextlib.ExitStack() as opened:
            mapped = [self._mapped(layer, userns, opened) for layer in layers[1:]]
            mounts.mount_at(mounts.overlay([layers[0], *mapped], self._objects), at)

    def _mapped(self, lower: Path, userns: int, opened: contextlib.ExitStack) -> int | Path:
        # Only for the moment: the overlay clones its layers for itself.
        mapped = mounts.idmapped(lower, userns)
        if self._stack_detached:
            opened.callback(os.close, mapped)
            return mapped
        at = self._mapped_dir / secrets.token_hex(8)
        opened.callback(_drop, at)
        mounts.mount_at(mapped, at)
        return at


async def _descriptor(act: Callable[..., int], *arguments: Any) -> int:
    """Runs in a thread what opens a descriptor, and closes it if nobody waits for it any more."""
    task = asyncio.ensure_future(asyncio.to_thread(act, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: None if done.cancelled() or done.exception() else os.close(done.result()))
        raise


async def _to_its_end(act: Callable[..., object], *arguments: Any) -> None:
    """Runs in a thread; a caller that is cancelled still waits, so that what was mounted is known."""
    task = asyncio.ensure_future(asyncio.to_thread(act, *arguments))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _digests(workspace: Workspace) -> list[str]:
    """The topmost first."""
    return [workspace.tree, workspace.template] if workspace.tree else [workspace.template]


def _copy_attributes(lower: Path, upper: Path, id_base: int) -> None:
    """The root directory itself is the upper's, whatever the lowers say."""
    there = lower.stat()
    os.chown(upper, id_base + there.st_uid, id_base + there.st_gid)
    upper.chmod(there.st_mode & 0o7777)
    os.utime(upper, ns=(there.st_mtime_ns, there.st_mtime_ns))


def _clear(directory: Path) -> None:
    for point in mounts.mounted_below(directory):
        _drop(point)


def _drop(at: Path) -> None:
    # Detached, not refused: an overlay has its own clone, and a reader keeps what it has open.
    mounts.unmount(at, detach=True)
    with contextlib.suppress(OSError):
        at.rmdir()
