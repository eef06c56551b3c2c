"""From a volume's path to a mount of it. What lies in a volume is hostile: no link in it is ever followed."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from dovecote.errors import NotFound, StorageFailed
from dovecote.host.storage import mounts
from dovecote.model.volumes import Mount

Step = Callable[[int, str, str], int]
_RESOLVE = mounts.BENEATH | mounts.NO_SYMLINKS | mounts.NO_MAGICLINKS
_READABLE = os.O_RDONLY | os.O_DIRECTORY


def open_mount(directory: Path, mount: Mount, userns: int | None) -> int:
    """A detached mount of the path. The caller closes it."""
    with closing(open_directory(directory, mount)) as place:
        return clone_mount(place, mount, userns)


def clone_mount(place: int, mount: Mount, userns: int | None) -> int:
    """A detached mount of an open directory; nodev and nosuid. The caller closes both.

    Its ids are seen through `userns`; None where everybody may read everything, whoever owns it.
    """
    with mounts.reported(f"cloning volume {mount.volume}"):
        clone = mounts.open_tree("", at=place)
        try:
            attributes = mounts.NODEV | mounts.NOSUID | (mounts.RDONLY if mount.read_only else 0)
            if userns is None:
                mounts.set_attributes(clone, attributes)
            else:
                mounts.set_attributes(clone, attributes | mounts.IDMAP, userns=userns)
        except OSError:
            os.close(clone)
            raise
        return clone


async def taken(opening: asyncio.Future[int]) -> int:
    """The descriptor that a thread opens. When nobody waits for it any more, it is closed as soon as it comes."""
    try:
        return await asyncio.shield(opening)
    except BaseException:
        opening.add_done_callback(_close)
        raise


def _close(opened: asyncio.Future[int]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        os.close(opened.result())


def open_directory(directory: Path, mount: Mount, step: Step | None = None) -> int:
    """A descriptor of the path in the volume; the mount's owner is given it unless the mount is read-only."""
    place = walk(directory, mount, step)
    try:
        if not mount.read_only:
            with mounts.reported(f"giving {mount.path!r} of volume {mount.volume} its owner"):
                os.fchown(place, mount.uid, mount.gid)
    except BaseException:
        os.close(place)
        raise
    return place


def walk(directory: Path, mount: Mount, step: Step | None = None) -> int:
    """A descriptor of the path in the volume; what is missing is made for the mount's owner unless it is read-only.

    `step` takes each one in place of `enter`: from a directory, by a name, to the path so far.
    Raises NotFound (no_such_path) where it is missing, StorageFailed (not_a_directory) where a link or a file lies
    in the way.
    """
    try:
        place = os.open(directory, _READABLE | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"no volume {mount.volume} on this host", code="no_such_volume") from None
    try:
        segments = mount.path.split("/") if mount.path else []
        for number, segment in enumerate(segments, 1):
            path = "/".join(segments[:number])
            inner = enter(place, segment, mount) if step is None else step(place, segment, path)
            os.close(place)
            place = inner
    except BaseException:
        os.close(place)
        raise
    return place


def find(directory: Path, volume: str, path: str) -> int:
    """A descriptor of a directory that was there once. Raises NotFound (no_such_path), whatever somebody has put in its
    place, or in that of one above it."""
    try:
        return walk(directory, Mount(volume, "", path, read_only=True))
    except StorageFailed as error:
        if error.code != "not_a_directory":
            raise
        raise NotFound(f"{path!r} in volume {volume} was replaced", code="no_such_path", hint=error.hint) from error


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_below(parent: int, name: str, mount: Mount) -> int | None:
    """One step, where a directory is; None where nothing is. Raises StorageFailed (not_a_directory)."""
    try:
        return mounts.open_beneath(parent, name, resolve=_RESOLVE, flags=_READABLE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _in_the_way(mount, name) from error


def enter(parent: int, name: str, mount: Mount) -> int:
    """One step, which is made for the mount's owner unless it is read-only. Raises NotFound, StorageFailed."""
    inner = open_below(parent, name, mount)
    if inner is not None:
        return inner
    if mount.read_only:
        raise NotFound(
            f"no {mount.path!r} in volume {mount.volume}",
            code="no_such_path",
            hint="a mount that may write makes it",
        )
    with mounts.reported(f"making {mount.path!r} in volume {mount.volume}"):
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
        except FileExistsError:
            pass  # somebody else was first
        else:
            os.chown(name, mount.uid, mount.gid, dir_fd=parent, follow_symlinks=False)
    try:
        return mounts.open_beneath(parent, name, resolve=_RESOLVE, flags=_READABLE)
    except OSError as error:
        raise _in_the_way(mount, name) from error


def _in_the_way(mount: Mount, name: str) -> StorageFailed:
    return StorageFailed(
        f"{name!r} in volume {mount.volume} is not a directory",
        code="not_a_directory",
        hint="a link is never followed; remove it, or name another path",
    )
