"""Trees as plain directories: lower layers for kernels that cannot mount an image over shared objects."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from dovecote.host.storage.disk import boot_id, disk_errors, write_all
from dovecote.host.storage.manifest import DIRS, Entry, Kind
from dovecote.host.storage.objects import object_name

KEPT = 64  # directories that nobody uses
_CLONE = 0x40049409  # FICLONE
_CHUNK = 1 << 20
Contents = AbstractContextManager[list[Entry]]
_NEW, _GONE = ".new-", ".gone-"
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY)


class PlainTrees:
    """`plain/<boot>/<digest>`: each tree of its own once a host, however many use it. Root only; never written again.

    Nothing is synced, so what an earlier boot left is not trusted and goes at the start. Blocking calls; two for the
    same digest at once are the caller's to prevent.
    """

    def __init__(self, contents: Callable[[str], Contents], objects_dir: Path, directory: Path) -> None:
        """`contents(digest)` gives a tree's entries; inside of it their objects lie checked in `objects_dir`."""
        self._contents = contents
        self._objects = objects_dir
        self._all = directory
        self._directory = directory / boot_id()

    def place(self, digest: str) -> Path:
        """Where a tree lies once it is ensured."""
        return self._directory / digest

    def ensure(self, digest: str) -> None:
        """A directory of the whole tree, with container ids. Raises what `contents` raises, StorageFailed."""
        at = self.place(digest)
        if not at.is_dir():
            with self._contents(digest) as entries:
                self._lay_out(digest, entries, at)

    def _lay_out(self, digest: str, entries: Sequence[Entry], at: Path) -> None:
        partial = self._directory / f"{_NEW}{digest}"
        with disk_errors(f"tree {digest[:16]} cannot be laid out as a directory"):
            self._make_room(partial)
            try:
                lay_out(entries, self._objects, partial)
                os.rename(partial, at)
            except BaseException:
                remove_tree(partial)
                raise

    def drop(self, digest: str) -> None:
        """Nobody may use it any more. May be repeated."""
        gone = self._directory / f"{_GONE}{secrets.token_hex(6)}"
        with disk_errors(f"tree {digest[:16]} cannot be removed"):
            with suppress(FileNotFoundError):
                os.rename(self.place(digest), gone)
            remove_tree(gone)

    def clear(self) -> None:
        """At start: what other boots, and what was cut off, left."""
        with disk_errors("old trees cannot be removed"):
            for path in self._all.glob("*"):
                if path != self._directory:
                    remove_tree(path)
            for path in self._directory.glob(".*"):
                remove_tree(path)

    def list(self) -> list[str]:
        """The one that was made first is first."""
        found = sorted(self._directory.glob("[!.]*"), key=lambda path: path.stat().st_ctime_ns)
        return [path.name for path in found]

    def _make_room(self, partial: Path) -> None:
        for directory in (self._all, self._directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_tree(partial)


def lay_out(entries: Sequence[Entry], objects: Path, top: Path) -> None:
    """Writes a whole tree (sorted, root first) below `top`, which is made. Raises OSError."""
    base = os.fsencode(top)
    places = [base + b"/" + entry.path if entry.path else base for entry in entries]
    can_clone = True
    for entry, place in zip(entries, places, strict=True):
        if entry.kind in DIRS:
            os.mkdir(place, 0o700)
        elif entry.link and entry.link != entry.path:
            os.link(base + b"/" + entry.link, place, follow_symlinks=False)
        else:
            if entry.kind is Kind.FILE:
                can_clone = _write_file(place, entry, objects, can_clone=can_clone)
            elif entry.kind is Kind.SYMLINK:
                os.symlink(entry.target, place)
            elif entry.kind is Kind.FIFO:
                os.mkfifo(place, 0o600)
            else:
                os.mknod(place, stat.S_IFCHR | 0o600, 0)
            _set_attributes(place, entry)
    # What a directory holds changes its time, so directories come last and the deepest first.
    for entry, place in reversed(list(zip(entries, places, strict=True))):
        if entry.kind in DIRS:
            _set_attributes(place, entry)


def _write_file(place: bytes, entry: Entry, objects: Path, *, can_clone: bool) -> bool:
    """Answers whether the file system shares blocks of files, as far as is known."""
    target = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if not entry.size:
            return can_clone
        source = os.open(objects / object_name(entry.digest), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if can_clone:
                try:
                    fcntl.ioctl(target, _CLONE, source)
                    return True
                except OSError as error:
                    if error.errno not in _NO_CLONE:
                        raise
            _copy(source, target, entry.size)
            return False
        finally:
            os.close(source)
    finally:
        os.close(target)


def _copy(source: int, target: int, size: int) -> None:
    """Holes stay holes."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(target, at, os.SEEK_SET)
        while at < end:
            data = os.pread(source, min(_CHUNK, end - at), at)
            if not data:
                raise OSError(errno.EIO, "an object is shorter than it was")
            write_all(target, data)
            at += len(data)


def _set_attributes(place: bytes, entry: Entry) -> None:
    if entry.kind is Kind.WHITEOUT:
        return
    # The owner first: changing it takes setuid and capabilities away.
    os.chown(place, entry.uid, entry.gid, follow_symlinks=False)
    if entry.kind is not Kind.SYMLINK:
        os.chmod(place, entry.mode)
    if entry.kind is Kind.OPAQUE:
        os.setxattr(place, "trusted.overlay.opaque", b"y")
    for name, value in entry.xattrs:
        os.setxattr(place, name, value, follow_symlinks=False)
    os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def remove_tree(top: Path) -> None:
    """Everything at `top`, however deep: a tree may be deeper than Python calls itself. Nothing there is fine."""
    if not os.path.isdir(top) or os.path.islink(top):
        with suppress(FileNotFoundError):
            os.unlink(top)
        return
    folders = [os.fsencode(top)]
    for folder in folders:  # grows while it is walked
        with os.scandir(folder) as names:
            for name in names:
                if name.is_dir(follow_symlinks=False):
                    folders.append(name.path)
                else:
                    os.unlink(name.path)
    for folder in reversed(folders):
        os.rmdir(folder)
