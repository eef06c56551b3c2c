"""Limited paths of volumes on btrfs: a subvolume each, nested in that of the volume, counted by groups.

Whatever lies in a volume counts in its group, `1/<id of its subvolume>`, and what lies in a limited path in that one's
group too. Only what has something nested in it gets a group; its limit is on the subvolume's own count as well.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from dovecote.errors import Conflict, NotFound, Unsupported
from dovecote.host.storage import btrfs, groups, mounts
from dovecote.host.storage.groups import Usage
from dovecote.host.storage.pool import NEW
from dovecote.host.storage.volumes.kept import KeptLimit, KeptLimits
from dovecote.host.storage.volumes.moving import Moving
from dovecote.host.storage.volumes.opening import closing, enter, find, open_below, open_directory, walk
from dovecote.host.storage.volumes.turns import Turns
from dovecote.model.volumes import Mount, touches

Mounted = Callable[[str], Collection[str]]
_KEPT = ".limits"
_ATTEMPTS = 3
_CHANGES_WITHIN = 2.0  # seconds, unless there are files to copy


class Nesting:
    """`mounted` tells which paths of a volume instances have, or are about to have."""

    def __init__(self, at: Path, directory: Callable[[str], Path], mounted: Mounted) -> None:
        self._at = at
        self._directory = directory
        self._mounted = mounted
        self._kept = KeptLimits(at / _KEPT)
        self._moving = Moving(at, directory)
        self._lock = threading.Lock()  # for what takes microseconds
        self._turns = Turns()
        self._changing: set[tuple[str, str]] = set()

    def ensure(self) -> None:
        """Finishes what was cut off. Called before anything is mounted."""
        with self._top() as top, mounts.reported("looking after limits of paths"):
            self._moving.finish_all(top)
            if groups.is_simple(top):
                groups.sweep(top)

    # ---- one path

    def limit(self, volume: str, path: str, max_bytes: int) -> None:
        limit = KeptLimit(path, max_bytes)
        with self._top() as top, mounts.reported(f"limiting {path!r} of volume {volume}"), self._change(volume, path):
            _check_simple(top)
            way = _Way(Mount(volume, "", path), {**self._kept.on_the_way(volume, os.path.dirname(path)), path: limit})
            with self._place(volume), self._kept.prepared(volume, limit) as keep:
                if not self._takes_effect(top, way, keep):
                    with self._new(top, partial(way.bind, top, limit)) as (made, place):
                        self._moving.move(top, volume, path, made, place)
                    keep()

    def lift(self, volume: str, path: str) -> None:
        with self._turns.take(volume), self._lock, mounts.reported(f"lifting the limit of {path!r} of volume {volume}"):
            self._kept.forget(volume, path)
            with contextlib.suppress(NotFound), self._place(volume, path) as place, self._top() as top:
                if btrfs.is_subvolume(place):
                    _limit(top, btrfs.subvolume_id(place), None)

    def usage(self, volume: str, path: str) -> Usage:
        kept = self._kept.get(volume, path)
        with self._place(volume, path) as place:
            if not btrfs.is_subvolume(place):
                raise NotFound(f"what had the limit of {path!r} was removed", code="no_such_path")
            return Usage(_held(place).bytes, kept.max_bytes)

    def open(self, mount: Mount) -> int:
        self._wait_for_changes(mount)
        if not mount.read_only:
            with self._top() as top, self._lock, mounts.reported(f"opening {mount.path!r} of volume {mount.volume}"):
                if limits := self._kept.on_the_way(mount.volume, mount.path):
                    step = partial(self._enter, top, _Way(mount, limits))
                    return open_directory(self._directory(mount.volume), mount, step)
        return open_directory(self._directory(mount.volume), mount)

    # ---- one volume

    def limit_volume(self, volume: str, max_bytes: int) -> None:
        with self._top() as top, self._place(volume) as place, mounts.reported(f"limiting volume {volume}"):
            _limit(top, btrfs.subvolume_id(place), max_bytes)

    def volume_usage(self, volume: str) -> Usage:
        with self._place(volume) as place, mounts.reported(f"looking at volume {volume}"):
            return _held(place)

    def clear(self, volume: str) -> None:
        """Deletes what is nested in a volume, ahead of the volume's own end. May be repeated."""
        with self._turns.take(volume), contextlib.suppress(NotFound):
            self._kept.forget_all(volume)
            self._clear(volume)

    def _clear(self, volume: str) -> None:
        with self._place(volume) as place:
            number = btrfs.subvolume_id(place)
            with self._top() as top, mounts.reported(f"deleting what is nested in volume {volume}"):
                below = btrfs.descendants(top, number)
                for each in (number, *below):  # from what is full the kernel takes no subvolume away
                    if groups.is_there(top, groups.of(each)):
                        _limit(top, each, None)
                for each in reversed(below):
                    btrfs.delete_subvolume_by_id(top, each)
                for member in groups.related(top, groups.of(number)):  # also of those removed from inside
                    groups.dissolve(top, groups.of(member))

    # ---- on the way to a path

    def _takes_effect(self, top: int, way: _Way, keep: Callable[[], object]) -> bool:
        """Whether its end is a subvolume now, and its limit is kept; False where it holds files, which nobody has in
        reach then."""
        volume, path = way.mount.volume, way.mount.path
        step = partial(self._enter, top, way, fills=True)
        with self._lock, closing(walk(self._directory(volume), way.mount, step)) as place:
            if btrfs.is_subvolume(place):
                keep()
                return True
        if any(touches(path, each) for each in self._mounted(volume)):
            raise _in_use(path, "it holds files, and a sandbox has them in reach: unmount them, or park it, first")
        return False

    def _enter(self, top: int, way: _Way, parent: int, name: str, path: str, *, fills: bool = False) -> int:
        """What has a limit becomes a subvolume and is entered as such, whatever somebody puts in its place meanwhile.

        `fills`: the last one may hold files already, and is entered as it is.
        """
        way.passes(btrfs.subvolume_id(parent))
        limit = way.limits.get(path)
        if limit is None:
            return enter(parent, name, way.mount)
        is_last = fills and path == way.mount.path
        for _ in range(_ATTEMPTS):
            child = open_below(parent, name, way.mount)
            try:
                if child is not None and btrfs.is_subvolume(child):
                    way.bind(top, limit, child)
                    return os.dup(child)
                if child is not None and os.listdir(child):
                    if is_last:
                        return os.dup(child)
                    raise _in_use(path, "what had the limit was removed, files are in its place: set the limit again")
                if is_last and child is not None and self._is_mounted(way.mount):
                    raise _in_use(path, "a sandbox has it mounted without a limit: unmount it, or park it, first")
                with contextlib.suppress(FileExistsError):
                    self._replace(top, way, limit, parent, name, child)
            finally:
                if child is not None:
                    os.close(child)
        raise _in_use(path, "something else is put in its place again and again")

    def _is_mounted(self, mount: Mount) -> bool:
        """The path itself, or one below it."""
        return any(f"{each}/".startswith(f"{mount.path}/") for each in self._mounted(mount.volume))

    def _replace(self, top: int, way: _Way, limit: KeptLimit, parent: int, name: str, child: int | None) -> None:
        """A new subvolume in place of nothing, or of an empty directory, which has to be empty to the end."""
        with self._new(top, partial(way.bind, top, limit)) as (made, place):
            like = os.fstat(child) if child is not None else None
            os.fchown(place, *((like.st_uid, like.st_gid) if like else (way.mount.uid, way.mount.gid)))
            os.fchmod(place, like.st_mode & 0o7777 if like else 0o755)
            if child is None:
                mounts.rename_new(made, name, source=top, target=parent)
            else:
                os.rename(made, name, src_dir_fd=top, dst_dir_fd=parent)

    @contextlib.contextmanager
    def _new(self, top: int, bind: Callable[[int], None]) -> Iterator[tuple[str, int]]:
        """A subvolume beside the volumes, limited and counted; gone in the end unless it was moved from there."""
        name = f"{NEW}{secrets.token_hex(8)}"
        btrfs.create_subvolume(top, name)
        try:
            with closing(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)) as place:
                bind(place)
                yield name, place
        finally:
            with contextlib.suppress(FileNotFoundError):
                btrfs.delete_subvolume(top, name)

    # ---- who is in whose way

    @contextlib.contextmanager
    def _change(self, volume: str, path: str) -> Iterator[None]:
        """Said first, then it is asked what is mounted; who mounts says that first, and then looks here."""
        with self._turns.take(volume):
            self._changing.add((volume, path))
            try:
                yield
            finally:
                self._changing.discard((volume, path))

    def _wait_for_changes(self, mount: Mount) -> None:
        deadline = time.monotonic() + _CHANGES_WITHIN
        while in_the_way := [p for v, p in tuple(self._changing) if v == mount.volume and touches(p, mount.path)]:
            if time.monotonic() > deadline:
                raise _in_use(in_the_way[0], "its files are being copied to be counted; try again in a moment")
            time.sleep(0.005)

    @contextlib.contextmanager
    def _top(self) -> Iterator[int]:
        with closing(os.open(self._at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as top:
            yield top

    @contextlib.contextmanager
    def _place(self, volume: str, path: str | None = None) -> Iterator[int]:
        """The subvolume of a volume, or a path in it. Raises NotFound (no_such_volume, no_such_path)."""
        if path is None:
            place = walk(self._directory(volume).parent, Mount(volume, "", read_only=True))
        else:
            place = find(self._directory(volume), volume, path)
        with closing(place):
            yield place


class _Way:
    """To a path with limits on the way, through subvolumes that count what lies in them."""

    def __init__(self, mount: Mount, limits: dict[str, KeptLimit]) -> None:
        self.mount = mount
        self.limits = limits
        self._through: list[int] = []

    def passes(self, subvolume: int) -> None:
        if subvolume not in self._through:
            self._through.append(subvolume)

    def bind(self, top: int, limit: KeptLimit, place: int) -> None:
        """A subvolume gets its limit, and counts for what the way leads through and for nothing else."""
        number = btrfs.subvolume_id(place)
        _bind(top, number, self._through)
        _limit(top, number, limit.max_bytes)


def _bind(top: int, subvolume: int, through: Sequence[int]) -> None:
    there = set(groups.related(top, subvolume)) - {groups.of(subvolume)}
    wanted = {groups.of(each): each for each in through}
    for group in wanted.keys() - there:
        groups.gather(top, wanted[group])
        groups.join(top, subvolume, group)
    for group in there - wanted.keys():  # it was moved from there
        groups.leave(top, subvolume, group)


def _limit(top: int, subvolume: int, max_bytes: int | None) -> None:
    """Of a subvolume by its id."""
    for group in (subvolume, groups.of(subvolume)):
        if groups.is_there(top, group) and groups.counts(top, group).max_bytes != (max_bytes or 0):
            groups.limit(top, group, max_bytes)


def _held(subvolume: int) -> Usage:
    """By it and all that is nested in it."""
    number = btrfs.subvolume_id(subvolume)
    group = groups.of(number)
    return groups.counts(subvolume, group if groups.is_there(subvolume, group) else number)


def _check_simple(top: int) -> None:
    if not groups.is_simple(top):
        raise Unsupported(
            "paths of volumes can have limits with simple quotas only",
            code="no_path_limits",
            hint="Linux 6.7 or later, and volumes that were made with it",
        )


def _in_use(path: str, hint: str) -> Conflict:
    return Conflict(f"{path!r} cannot be limited now", code="path_in_use", hint=hint)
