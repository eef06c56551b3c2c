"""Limits of directories in a JuiceFS: its own quotas, of volumes and of paths in them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dovecote.errors import Conflict, NotFound, StorageFailed
from dovecote.host.storage import mounts
from dovecote.host.storage.groups import Usage
from dovecote.host.storage.volumes.kept import KeptLimit, KeptLimits
from dovecote.host.storage.volumes.opening import closing, enter, find, open_directory, walk
from dovecote.host.storage.volumes.turns import Turns
from dovecote.model.volumes import Mount

TAKES_EFFECT_WITHIN = 30.0
HEARD_WITHIN = 3.0  # seconds, which are three heartbeats
_ROUND = 4096
_ATTEMPTS = 3
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KEPT = ".limits"


@dataclass(frozen=True)
class Opened:
    """A directory and what it lies in, by descriptors: by its name somebody could put another, or a link, there."""

    place: int
    above: int


class Quotas:
    """`set_quota` and `delete_quota` run what changes the database; a mount hears of it with its next heartbeat."""

    def __init__(self, at: Path, set_quota: Callable[[str, int], None], delete_quota: Callable[[str], None]) -> None:
        self._at = at
        self._set = set_quota
        self._delete = delete_quota

    def set(self, path: str, max_bytes: int, opened: Opened) -> None:
        """Returns when the mount itself stops a writer there. `path` is from the top of the mount."""
        wanted = -(-max_bytes // _ROUND) * _ROUND
        self._set(path, wanted)
        began = time.monotonic()
        while abs((there := _shown(opened.place))[0] - wanted) >= there[2]:
            waited = time.monotonic() - began
            if waited > HEARD_WITHIN and (there[1] == 0 or _shown(opened.above)[1] < wanted):
                return  # a mount shows no limit that has nothing to say: more is there, or less is left above it
            if waited > TAKES_EFFECT_WITHIN:
                raise StorageFailed(
                    f"the limit of {path} did not take effect in {TAKES_EFFECT_WITHIN:.0f} s",
                    code="limit_late",
                    hint="try again; until then it has the limit that it had",
                )
            time.sleep(0.05)

    def delete(self, path: str, opened: Opened) -> None:
        self._delete(path)
        began = time.monotonic()
        while time.monotonic() - began < HEARD_WITHIN and _shown(opened.place) != _shown(opened.above):
            time.sleep(0.05)

    @contextlib.contextmanager
    def volume(self, name: str) -> Iterator[Opened]:
        """What only root gets at by its name."""
        with closing(os.open(self._at, _DIRECTORY)) as above, closing(os.open(name, _DIRECTORY, dir_fd=above)) as place:
            yield Opened(place, above)


def usage_of(place: int) -> Usage:
    """Of the directory's own quota, else of that above it."""
    total, free, _ = _shown(place)
    return Usage(total - free, total)


def _shown(place: int) -> tuple[int, int, int]:
    """Bytes in all, those that are left, and those of a block."""
    with mounts.reported("looking at a limit"):
        space = os.statvfs(place)
    return space.f_blocks * space.f_frsize, space.f_bfree * space.f_frsize, space.f_frsize


class QuotaPaths:
    """Paths of volumes. Who makes a directory anew makes it without its quota, so its inode is kept with the limit."""

    def __init__(self, at: Path, directory: Callable[[str], Path], quotas: Quotas) -> None:
        self._at = at
        self._directory = directory
        self._quotas = quotas
        self._kept = KeptLimits(at / _KEPT)
        self._turns = Turns()

    def limit(self, volume: str, path: str, max_bytes: int) -> None:
        mount = Mount(volume, "", path)
        with self._turns.take(volume), closing(walk(self._directory(volume), mount)) as place, _above(place) as above:
            self._set(volume, KeptLimit(path, max_bytes), Opened(place, above))

    def lift(self, volume: str, path: str) -> None:
        with self._turns.take(volume), contextlib.suppress(NotFound):
            self._kept.forget(volume, path)
            with closing(self._place(volume, path)) as place, _above(place) as above:
                self._quotas.delete(self._name(volume, path), Opened(place, above))

    def usage(self, volume: str, path: str) -> Usage:
        kept = self._kept.get(volume, path)
        with closing(self._place(volume, path)) as place:
            if os.fstat(place).st_ino != kept.inode:
                raise NotFound(f"what had the limit of {path!r} was removed", code="no_such_path")
            return Usage(usage_of(place).bytes, kept.max_bytes)

    def open(self, mount: Mount) -> int:
        limits = {} if mount.read_only else self._kept.on_the_way(mount.volume, mount.path)

        def step(parent: int, name: str, path: str) -> int:
            limit = limits.get(path)
            for _ in range(_ATTEMPTS):
                place = enter(parent, name, mount)
                if limit is None or os.fstat(place).st_ino == limit.inode:
                    return place
                with closing(place), self._turns.take(mount.volume):
                    limit = self._kept.find(mount.volume, path)
                    if limit is not None:  # and entered again: somebody may put another there meanwhile
                        limit = self._set(mount.volume, limit, Opened(place, parent))
            raise Conflict(f"{path!r} is made anew again and again", code="path_in_use", hint="try again")

        return open_directory(self._directory(mount.volume), mount, step if limits else None)

    def clear(self, volume: str) -> None:
        with self._turns.take(volume):
            self._kept.forget_all(volume)

    def _set(self, volume: str, limit: KeptLimit, opened: Opened) -> KeptLimit:
        self._quotas.set(self._name(volume, limit.path), limit.max_bytes, opened)
        # The last of it. On another host the mount may hear of it a heartbeat later.
        limit = replace(limit, inode=os.fstat(opened.place).st_ino)
        self._kept.write(volume, limit)
        return limit

    def _place(self, volume: str, path: str) -> int:
        return find(self._directory(volume), volume, path)

    def _name(self, volume: str, path: str) -> str:
        return str((self._directory(volume) / path).relative_to(self._at))


@contextlib.contextmanager
def _above(place: int) -> Iterator[int]:
    with mounts.reported("looking at what a path lies in"):
        above = os.open("..", _DIRECTORY, dir_fd=place)
    with closing(above):
        yield above
