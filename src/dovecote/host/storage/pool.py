"""Disks of instances: directories with a hard size, on one sparse btrfs file of ours."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from dovecote.errors import Conflict, DovecoteError, Invalid, NotFound, StorageFailed, Unsupported
from dovecote.host.storage import btrfs, groups, loops, mounts
from dovecote.host.storage.groups import Usage

T = TypeVar("T")

log = logging.getLogger(__name__)

MIN_POOL_BYTES = 256 << 20
FORMAT_TIMEOUT = 120.0  # seconds
DETACH_TIMEOUT = 60.0  # seconds; what 200,000 deleted files leave to do is done meanwhile
MUCH_UNWRITTEN = 4 << 20  # bytes
# Space that was deleted goes back to the host's file, and to the limits, with each commit.
MOUNT_OPTIONS = {"discard": "async", "commit": "5"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}")
_RECORDS = ".records"
NEW = ".new-"
_MARK = ".mark-"
_UPPER = b"upper/"
_MAX_RECORD_BYTES = 1 << 20  # the longest rules of a function, escaped, are half of it


class Touched(NamedTuple):
    """A path below `upper` that was written to, and what is there where that is known without a look."""

    path: bytes
    plain: btrfs.Plain | None = None


class Disks(Protocol):
    """Directories that hold at most so many bytes: writes beyond fail at once with EDQUOT or ENOSPC.

    Drivers: btrfs. tests/contract/test_quota.py says the rest. Names are 1-120 of `[A-Za-z0-9_.-]`.
    """

    async def ensure(self) -> None:
        """Before anything else; finds what an earlier process left, however that ended. May be repeated."""

    async def create(self, name: str, *, max_bytes: int, owner: int) -> Path:
        """A directory with `upper` and `work`, which belong to the host id `owner`. Raises Conflict if it exists."""

    def path(self, name: str) -> Path:
        """Where a disk of that name is; says nothing about whether there is one."""

    async def limit(self, name: str, *, max_bytes: int) -> None:
        """Takes effect at once; below what is there now, all writes fail until files are deleted. Raises NotFound."""

    async def usage(self, name: str) -> Usage:
        """What it holds now, without walking it. Raises NotFound."""

    async def write_out(self, name: str) -> None:
        """Brings much that was written lately to the disk, so that a snapshot soon after takes little time."""

    async def snapshot(self, name: str, to: str) -> Path:
        """A read-only copy, with what was stored by mmap. Raises NotFound, Conflict.

        It is of one moment only if nobody writes meanwhile: content is written out first, names and attributes count
        up to its end.
        """

    async def mark(self, name: str, snapshot: str) -> None:
        """Makes a snapshot of the disk the moment that `changed` and `mark_of` go back to; an older one is deleted.

        A mark belongs to its disk: it is not listed, and goes away with the disk. Raises NotFound.
        """

    def mark_of(self, name: str) -> Path:
        """Where the mark of a disk is, if it has one."""

    async def is_changed(self, name: str, *, untouched: int = 0) -> bool:
        """Whether anything was written since the mark, on the disk by now or not. Costs microseconds. Raises NotFound.

        It is of a moment: what is on its way to the disk just then is seen a moment later.

        Without a mark: since it was `untouched`; True where nobody knows when that was.
        """

    def untouched(self, name: str) -> int:
        """Tells a disk that nothing was written to yet from one that was, until it has a mark; 0 for one that was.

        Raises NotFound.
        """

    async def which_changed(self, untouched: Mapping[str, int]) -> frozenset[str]:
        """As `is_changed`, of many disks at once: without those that are gone, with those that cannot tell."""

    async def changed(self, name: str, *, snapshot: str | None = None, most: int) -> Sequence[Touched] | None:
        """What is below the `upper` of the disk, or of a later snapshot of it, and was written to since the mark.

        A file with several names is named by all of them. What is gone is not named; the directory that it was in is.
        None without a mark, when there are more than `most`, or one file has too many. Its cost is that of the change.
        Of a snapshot contents of small files come too; of the disk itself there is only the question how much it is.
        """

    async def new_inodes(self, name: str, *, above: int) -> Sequence[int]:
        """Numbers of inodes that were made after `above` was the newest, ascending. Costs what is new, and no I/O."""

    async def unmark(self, name: str) -> None:
        """May be repeated."""

    async def delete(self, name: str) -> None:
        """A disk or a snapshot, its record and its mark. May be repeated."""

    async def list(self) -> list[str]:
        """Disks and snapshots."""

    async def write_record(self, name: str, record: Mapping[str, Any]) -> None:
        """Keeps a small JSON object with a disk, all or nothing; whoever is inside can neither see nor fill it."""

    async def read_record(self, name: str) -> dict[str, Any] | None:
        """None when there is none: such a disk is nobody's. Raises StorageFailed (corrupt)."""

    async def remove(self) -> None:
        """Leaves no mount and no device; the bytes stay for the next `ensure`. May be repeated."""


class BtrfsDisks:
    """`Disks` as subvolumes of a btrfs in a file, with simple quotas or, before Linux 6.7, ordinary ones."""

    def __init__(
        self,
        file: Path,
        at: Path,
        *,
        max_bytes: int,
        simple: bool = True,
        parts: tuple[str, ...] = ("upper", "work"),
        metadata: str = "single",
    ) -> None:
        """`file` is made at most `max_bytes` big, and sparse; it is mounted at `at`. `parts` are in each disk."""
        self._file = file
        self._at = at
        self._max_bytes = max_bytes
        self._simple = simple
        self._parts = parts
        self._metadata = metadata

    async def ensure(self) -> None:
        await asyncio.to_thread(self._ensure)

    async def create(self, name: str, *, max_bytes: int, owner: int) -> Path:
        return await self._in_thread(self._create, name, max_bytes, owner)

    def path(self, name: str) -> Path:
        _check_name(name)
        return self._at / name

    async def limit(self, name: str, *, max_bytes: int) -> None:
        await self._in_thread(self._limit, name, max_bytes)

    async def usage(self, name: str) -> Usage:
        return await self._in_thread(self._with_disk, name, self._usage)

    async def write_out(self, name: str) -> None:
        await self._in_thread(self._with_disk, name, self._write_out)

    async def snapshot(self, name: str, to: str) -> Path:
        return await self._in_thread(self._snapshot, name, to)

    async def mark(self, name: str, snapshot: str) -> None:
        await self._in_thread(self._mark, name, snapshot)

    def mark_of(self, name: str) -> Path:
        _check_name(name)
        return self._at / (_MARK + name)

    async def is_changed(self, name: str, *, untouched: int = 0) -> bool:
        return await self._in_thread(self._is_changed, name, untouched)

    def untouched(self, name: str) -> int:
        _check_name(name)
        with _as_errors(name):
            # Whatever is written to first, the directory at the top gets an entry for it or another attribute. Only
            # the first: below an entry that is there, say of a directory made for a mount, nothing touches the top.
            top = os.stat(f"{self._at}/{name}/{self._parts[0]}")
            return 0 if top.st_size else top.st_ctime_ns  # btrfs counts the names in a directory

    async def which_changed(self, untouched: Mapping[str, int]) -> frozenset[str]:
        return await asyncio.to_thread(self._which_changed, untouched)

    async def changed(self, name: str, *, snapshot: str | None = None, most: int) -> Sequence[Touched] | None:
        return await self._in_thread(self._changed, name, snapshot, most)

    async def new_inodes(self, name: str, *, above: int) -> Sequence[int]:
        return await self._in_thread(self._new_inodes, name, above)

    async def unmark(self, name: str) -> None:
        await self._in_thread(self._unmark, name)

    async def delete(self, name: str) -> None:
        await self._in_thread(self._delete, name)

    async def list(self) -> list[str]:
        return sorted(name for name in await asyncio.to_thread(os.listdir, self._at) if not name.startswith("."))

    async def write_record(self, name: str, record: Mapping[str, Any]) -> None:
        await self._in_thread(self._write_record, name, record)

    async def read_record(self, name: str) -> dict[str, Any] | None:
        return await self._in_thread(self._read_record, name)

    async def remove(self) -> None:
        await asyncio.to_thread(self._remove)

    async def _in_thread(self, act: Callable[..., T], name: str, *arguments: Any) -> T:
        _check_name(name)

        def run() -> T:
            with _as_errors(name):
                return act(name, *arguments)

        return await asyncio.to_thread(run)

    # ---- the pool

    def _ensure(self) -> None:
        self._at.mkdir(parents=True, exist_ok=True)
        source = mounts.source_of(self._at)
        if source and loops.backing_file(source) != self._file.resolve():
            raise Conflict(
                f"{source} is mounted at {self._at}, not {self._file}", code="pool_mismatch", hint=f"umount {self._at}"
            )
        if not source:
            self._format()
            with mounts.reported(f"attaching {self._file}"):
                device, descriptor = loops.attach(self._file)
            try:
                mounts.mount_at(mounts.filesystem("btrfs", device, MOUNT_OPTIONS), self._at)
            finally:
                os.close(descriptor)
        with self._top() as top, mounts.reported("preparing the disk pool"):
            os.chmod(top, 0o700)
            btrfs.grow(top)
            self._enable_quota(top)
            with contextlib.suppress(FileExistsError):
                os.mkdir(_RECORDS, 0o700, dir_fd=top)
            for name in os.listdir(top):
                of = name.removeprefix(_MARK)
                # A create that was cut off, or a mark whose disk was deleted.
                if name.startswith(NEW) or (of != name and not (self._at / of).is_dir()):
                    btrfs.delete_subvolume(top, name)

    def _format(self) -> None:
        if self._file.exists():
            if self._file.stat().st_size < self._max_bytes:
                room = _room(self._file.parent) + self._file.stat().st_blocks * 512
                os.truncate(self._file, max(self._file.stat().st_size, min(self._max_bytes, room)))
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        size = pool_bytes(self._max_bytes, _room(self._file.parent))
        partial = self._file.with_name(f"{self._file.name}.new")
        with mounts.reported(f"making {partial}"), open(partial, "wb", opener=_private) as file:
            file.truncate(size)
        _run(format_command(partial, metadata=self._metadata))
        partial.rename(self._file)

    def _enable_quota(self, top: int) -> None:
        if (btrfs.sysfs(top) / "qgroups" / "enabled").exists():
            return
        try:
            btrfs.enable_quota(top, simple=self._simple)
        except OSError as error:
            if not self._simple or error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY):
                raise
            btrfs.enable_quota(top, simple=False)

    def _remove(self) -> None:
        if mounts.source_of(self._at) is None:
            return
        file = self._file.resolve()
        with self._top() as top, mounts.reported("writing the disk pool out"):
            os.fsync(top)
        mounts.unmount(self._at)
        deadline = time.monotonic() + DETACH_TIMEOUT
        while loops.devices_of(file):  # the kernel detaches it a moment after the last user
            if time.monotonic() > deadline:
                raise StorageFailed(
                    f"{file} is still attached", code="busy", hint="an instance's root is still mounted somewhere"
                )
            time.sleep(0.01)

    @contextlib.contextmanager
    def _top(self) -> Iterator[int]:
        descriptor = os.open(self._at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    # ---- one disk

    def _create(self, name: str, max_bytes: int, owner: int) -> Path:
        partial = NEW + name
        with self._top() as top:
            if (self._at / name).exists():
                raise FileExistsError
            btrfs.create_subvolume(top, partial)
            try:
                disk = os.open(partial, os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
                try:
                    groups.limit(top, btrfs.subvolume_id(disk), max_bytes)
                    for part in self._parts:
                        os.mkdir(part, 0o755, dir_fd=disk)
                        os.chown(part, owner, owner, dir_fd=disk)
                finally:
                    os.close(disk)
                # Renamed when it is complete: what is cut off before is deleted by the next `ensure`.
                os.rename(partial, name, src_dir_fd=top, dst_dir_fd=top)
            except BaseException:
                btrfs.delete_subvolume(top, partial)
                raise
        return self._at / name

    def _with_disk(self, name: str, act: Callable[[int], T]) -> T:
        disk = os.open(f"{self._at}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return act(disk)
        finally:
            os.close(disk)

    def _limit(self, name: str, max_bytes: int) -> None:
        number = self._with_disk(name, btrfs.subvolume_id)
        with self._top() as top:
            groups.limit(top, number, max_bytes)

    def _usage(self, disk: int) -> Usage:
        return groups.counts(disk, btrfs.subvolume_id(disk))

    def _write_out(self, disk: int) -> None:
        if groups.reserved(disk, btrfs.subvolume_id(disk)) >= MUCH_UNWRITTEN:
            btrfs.write_out(disk)

    def _snapshot(self, name: str, to: str) -> Path:
        _check_name(to)
        with self._top() as top:
            if (self._at / to).exists():
                raise FileExistsError
            self._with_disk(name, lambda disk: btrfs.create_snapshot(top, to, disk))
        return self._at / to

    def _mark(self, name: str, snapshot: str) -> None:
        _check_name(snapshot)
        with self._top() as top:
            if not (self._at / name).is_dir():
                raise FileNotFoundError
            self._unmark(name)
            os.rename(snapshot, _MARK + name, src_dir_fd=top, dst_dir_fd=top)

    def _unmark(self, name: str) -> None:
        with self._top() as top, contextlib.suppress(FileNotFoundError):
            btrfs.delete_subvolume(top, _MARK + name)

    def _is_changed(self, name: str, untouched: int) -> bool:
        made = self._marked_at(name)
        if made is None:
            return self.untouched(name) != untouched or not untouched
        return self._with_disk(name, lambda disk: _is_newer(disk, made))

    def _which_changed(self, untouched: Mapping[str, int]) -> frozenset[str]:
        found = set()
        for name, then in untouched.items():
            try:
                if self._is_changed(name, then):
                    found.add(name)
            except (FileNotFoundError, NotFound):
                pass  # it is being taken apart
            except (OSError, DovecoteError) as error:
                log.warning("whether disk %s was written to cannot be told, it is saved: %s", name, error)
                found.add(name)
        return frozenset(found)

    def _changed(self, name: str, snapshot: str | None, most: int) -> Sequence[Touched] | None:
        made = self._marked_at(name)
        if made is None:
            return None
        most_content = btrfs.MOST_CONTENT if snapshot else 0
        return self._with_disk(snapshot or name, lambda disk: _touched(disk, made, most, most_content))

    def _new_inodes(self, name: str, above: int) -> Sequence[int]:
        return self._with_disk(name, lambda disk: btrfs.new_inodes(disk, above))

    def _marked_at(self, name: str) -> int | None:
        try:
            return self._with_disk(_MARK + name, btrfs.generations).made
        except FileNotFoundError:
            return None

    def _delete(self, name: str) -> None:
        self._unmark(name)
        with self._top() as top:
            with contextlib.suppress(FileNotFoundError):
                btrfs.delete_subvolume(top, name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{_RECORDS}/{name}", dir_fd=top)

    # Records lie beside the disks, not in them: a full disk must not stop a record from being written.

    def _write_record(self, name: str, record: Mapping[str, Any]) -> None:
        if not (self._at / name).is_dir():
            raise FileNotFoundError
        text = json.dumps(dict(record))
        if len(text) > _MAX_RECORD_BYTES:
            raise Invalid(f"the record of disk {name} has {len(text)} bytes")
        path = self._at / _RECORDS / name
        partial = path.with_name(f"{NEW}{name}")
        partial.write_text(text)
        partial.rename(path)

    def _read_record(self, name: str) -> dict[str, Any] | None:
        try:
            record = json.loads((self._at / _RECORDS / name).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            record = None
        if not isinstance(record, dict):
            hint = "its files are kept; nobody is given them"
            raise StorageFailed(f"the record of disk {name} cannot be read", code="corrupt", hint=hint)
        return record


def _is_newer(disk: int, made: int) -> bool:
    """A write into a file that is there changes its inode only when the kernel brings it to the disk, after half a
    minute perhaps; until then what is reserved for it tells."""
    now = btrfs.generations(disk)
    return now.changed > made or groups.reserved(disk, now.subvolume) > 0


def _touched(disk: int, since: int, most: int, most_content: int) -> list[Touched] | None:
    changed = list(itertools.islice(btrfs.changed_inodes(disk, since, most_content=most_content), most + 1))
    if len(changed) > most:
        return None
    folders: dict[int, bytes | None] = {}  # one question for each, not for each of its files
    found: list[Touched] = []
    for each in changed:
        names = btrfs.paths_of(disk, each.inode) if each.links > 1 else [_path(disk, each, folders)]
        if names is None or len(found) + len(names) > most:
            return None
        found += [
            Touched(name[len(_UPPER) :], each.plain) for name in names if name and (name + b"/").startswith(_UPPER)
        ]
    return found


def _path(disk: int, changed: btrfs.Changed, folders: dict[int, bytes | None]) -> bytes | None:
    if not changed.name:
        return btrfs.path_of(disk, changed.inode)
    if changed.parent not in folders:
        above = btrfs.path_of(disk, changed.parent)
        folders[changed.parent] = above and above + b"/"
    folder = folders[changed.parent]
    path = None if folder is None else folder + changed.name
    return path if path is not None and len(path) <= btrfs.LONGEST_PATH else None


def pool_bytes(wanted: int, room: int) -> int:
    """How big the file may become: what was asked for, within `room`. Raises StorageFailed when that is too little."""
    size = min(wanted, room) & ~0xFFFF
    if size < MIN_POOL_BYTES:
        raise StorageFailed(
            f"no room for the disk pool: {size >> 20} MiB where {MIN_POOL_BYTES >> 20} are the least",
            code="disk_full",
            hint="free space in the data directory or raise DOVECOTE_POOL_BYTES",
        )
    return size


def format_command(file: Path, *, metadata: str = "single") -> list[str]:
    """argv. One copy of metadata is enough for sessions: a pool that breaks is made anew, the store has them."""
    return ["mkfs.btrfs", "--quiet", "--metadata", metadata, "--label", "dovecote-pool", str(file)]


def _room(directory: Path) -> int:
    """A tenth of the host's file system stays for others: a pool that cannot get its bytes loses writes."""
    space = os.statvfs(directory)
    return max(0, space.f_bavail * space.f_frsize - space.f_blocks * space.f_frsize // 10)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise Invalid(f"not a name for a disk: {name[:80]!r}", hint="1 to 120 of A-Z a-z 0-9 _ . -, no dot first")


@contextlib.contextmanager
def _as_errors(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"no disk {name}") from error
    except FileExistsError as error:
        raise Conflict(f"disk {name} exists", code="exists") from error
    except OSError as error:
        raise mounts.failure(f"disk {name}", error.errno or 0) from error


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT_TIMEOUT, check=False)
    except FileNotFoundError as error:
        raise Unsupported(f"no {command[0]} on this host", hint="apt-get install btrfs-progs") from error
    except subprocess.TimeoutExpired as error:
        raise StorageFailed(f"{command[0]} did not end in {FORMAT_TIMEOUT:.0f} s") from error
    if done.returncode:
        raise StorageFailed(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
