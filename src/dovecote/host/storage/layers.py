"""Reads layers of OCI images straight into trees: nothing is unpacked, so no name in a layer can lead out of one."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from io import BufferedReader, RawIOBase
from typing import IO, Protocol, cast

import zstandard

from dovecote.errors import Invalid
from dovecote.host.storage.manifest import (
    DIRS,
    MAX_ID,
    MAX_NAME,
    MAX_PATH,
    MAX_TARGET,
    MTIME_RANGE,
    Entry,
    Kind,
    is_kept_xattr,
    normalized,
)
from dovecote.host.storage.scan import container_capability

GIB = 1 << 30
MAX_HEADER = 1 << 20  # bytes of one extended header: names and attributes
MAX_HOPS = 40  # symbolic links on the way to one name, as the kernel has it
MAX_XATTRS = 64 << 10  # bytes for one file
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_XATTR = "SCHILY.xattr."


class Sink(Protocol):
    """Keeps a file's content."""

    def keep(self, file: IO[bytes], size: int) -> bytes:
        """Digest of exactly `size` bytes; b"" for an empty file. Raises EOFError when there are fewer."""


@dataclass(frozen=True)
class LayerBounds:
    """What the layers of one image may hold together, unpacked: a few kB can decompress to anything."""

    entries: int = 1_000_000
    total_bytes: int = 32 * GIB


class LayeredTree:
    """A tree as its layers make it, one after another."""

    def __init__(self, sink: Sink, bounds: LayerBounds, below: Iterable[Entry] = ()) -> None:
        """`below` is what earlier layers made."""
        self._sink = sink
        self._bounds = bounds
        self._entries: dict[bytes, Entry] = {b"": Entry(b"", Kind.DIR, 0o755)}
        self._children: dict[bytes, set[bytes]] = {b"": set()}
        for entry in below:
            self._put(entry)
        self._bytes = sum(e.size for e in self._entries.values())
        self._own: set[bytes] = set()  # paths that the layer being applied has written
        self._links = 0
        self.notes: list[str] = []

    def entries(self) -> list[Entry]:
        return normalized(self._entries.values())

    def apply(self, layer: IO[bytes], *, diff_id: str) -> None:
        """Applies one layer: a tar, plain or compressed. Raises Invalid; the tree is then of no use any more.

        `diff_id` is `sha256:` and the digest of the layer unpacked, as the image's configuration names it.
        """
        self._own = set()
        room = self._bounds.total_bytes + self._bounds.entries * 1024
        unpacked = _Unpacked(decompressed(layer), room)
        try:
            with tarfile.open(fileobj=cast(IO[bytes], unpacked), mode="r|", tarinfo=_Member) as tar:
                for member in tar:
                    self._take(tar, member)
                    tar.members.clear()  # type: ignore[attr-defined]  # they would all be kept
            unpacked.drain()
        except (tarfile.TarError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, EOFError, ValueError) as error:
            raise _bad(f"it cannot be read: {error}") from error
        if unpacked.digest() != diff_id:
            raise _bad(f"its content is {unpacked.digest()}, the image says {diff_id}", code="digest_mismatch")

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._place(_path(member.name))
        name = path.rpartition(b"/")[2]
        if name.startswith(_WHITEOUT):
            self._hide(path.rpartition(b"/")[0], name)
            return
        kind = _kind(member)
        if kind is None and not member.islnk():
            if not (member.ischr() or member.isblk()):
                raise _bad(f"{path[:200]!r} is of a kind that a layer cannot have")
            self._note(path, "devices are not kept")
            return
        if not path and kind is not Kind.DIR:
            raise _bad("its root is not a directory")
        if len(self._entries) >= self._bounds.entries:
            raise _too_large(f"more than {self._bounds.entries} files")
        entry = self._linked(path, member) if member.islnk() else self._made(tar, path, kind, member)
        there = self._entries.get(path)
        if there is not None and not (there.kind in DIRS and entry.kind in DIRS):
            self._remove(path)
        self._put(entry)
        self._own.add(path)
        while path:  # its directories are this layer's too, whether it names them or not
            path = path.rpartition(b"/")[0]
            self._own.add(path)

    def _made(self, tar: tarfile.TarFile, path: bytes, kind: Kind | None, member: tarfile.TarInfo) -> Entry:
        assert kind is not None
        digest, target, size = b"", b"", 0
        if kind is Kind.FILE:
            size = member.size
            self._bytes += size
            if size < 0 or self._bytes > self._bounds.total_bytes:
                raise _too_large(f"files of more than {self._bounds.total_bytes} bytes")
            if size:
                file = tar.extractfile(member)
                assert file is not None
                digest = self._sink.keep(file, size)
        elif kind is Kind.SYMLINK:
            target = _bytes(member.linkname)
            if not 0 < len(target) <= MAX_TARGET or b"\0" in target:
                raise _bad(f"{path[:200]!r} is a symbolic link to nowhere")
        return Entry(
            path,
            kind,
            0o777 if kind is Kind.SYMLINK else member.mode & 0o7777,
            _id(path, member.uid),
            _id(path, member.gid),
            _mtime_ns(member),
            size,
            digest,
            target,
            xattrs=self._xattrs(path, member) if kind in (Kind.FILE, Kind.DIR) else (),
        )

    def _linked(self, path: bytes, member: tarfile.TarInfo) -> Entry:
        target = self._place(_path(member.linkname))
        first = self._entries.get(target)
        if first is None or first.kind in DIRS or target == path:
            raise _bad(f"{path[:200]!r} is a hard link to {target[:200]!r}, which is no file of the image")
        if not first.link:
            self._links += 1
            first = first._replace(link=b"\0%d" % self._links)  # NUL: no path has it
            self._entries[target] = first
        return first._replace(path=path)

    def _place(self, path: bytes) -> bytes:
        """Where a name lies: links among its directories are followed inside the tree; missing directories are made."""
        todo = path.split(b"/")[::-1] if path else []
        at, hops = b"", 0
        while todo:
            name = todo.pop()
            if name == b"..":
                if not at:
                    raise _bad(f"{path[:200]!r} leads out of the image")
                at = at.rpartition(b"/")[0]
                continue
            there = at + b"/" + name if at else name
            if len(there) > MAX_PATH or len(name) > MAX_NAME:
                raise _bad(f"{path[:200]!r} is too long")
            if not todo:
                return there
            entry = self._entries.get(there)
            if entry is None:
                self._put(Entry(there, Kind.DIR, 0o755))
                self._own.add(there)
            elif entry.kind is Kind.SYMLINK:
                hops += 1
                if hops > MAX_HOPS:
                    raise _bad(f"{path[:200]!r} goes through too many symbolic links")
                at = b"" if entry.target.startswith(b"/") else at
                todo += [part for part in entry.target.split(b"/") if part not in (b"", b".")][::-1]
                continue
            elif entry.kind not in DIRS:
                raise _bad(f"{path[:200]!r} lies below {there[:200]!r}, which is no directory")
            at = there
        return at

    def _hide(self, folder: bytes, name: bytes) -> None:
        if name == _OPAQUE:
            for child in list(self._children.get(folder, ())):
                self._hide_below(folder + b"/" + child if folder else child)
            return
        if name.startswith(_WHITEOUT * 2):
            return  # what aufs kept for itself
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise _bad(f"a whiteout of {hidden!r}")
        self._hide_below(folder + b"/" + hidden if folder else hidden)

    def _hide_below(self, path: bytes) -> None:
        """Only what layers below wrote: a whiteout says nothing about its own layer, in whatever order they come."""
        todo = [path]
        while todo:
            each = todo.pop()
            if each in self._own:
                todo += [each + b"/" + child for child in self._children.get(each, ())]
            else:
                self._remove(each)

    def _put(self, entry: Entry) -> None:
        self._entries[entry.path] = entry
        if entry.kind in DIRS:
            self._children.setdefault(entry.path, set())
        if entry.path:
            folder, _, name = entry.path.rpartition(b"/")
            self._children[folder].add(name)

    def _remove(self, path: bytes) -> None:
        if path not in self._entries:
            return
        folder, _, name = path.rpartition(b"/")
        self._children[folder].discard(name)
        gone = [path]
        while gone:
            each = gone.pop()
            del self._entries[each]
            self._own.discard(each)
            gone += [each + b"/" + child for child in self._children.pop(each, ())]

    def _xattrs(self, path: bytes, member: tarfile.TarInfo) -> tuple[tuple[bytes, bytes], ...]:
        found, room = [], MAX_XATTRS
        for key, text in member.pax_headers.items():
            if not key.startswith(_XATTR):
                continue
            name, value = _bytes(key[len(_XATTR) :]), _bytes(text)
            if name == b"security.capability":
                value = container_capability(value, 0) or b""
            room -= len(name) + len(value)
            if not is_kept_xattr(name) or room < 0 or (name == b"security.capability" and not value):
                self._note(path, f"its {key[len(_XATTR) :][:60]!r} is not kept")
            else:
                found.append((name, value))
        return tuple(sorted(found))

    def _note(self, path: bytes, why: str) -> None:
        if len(self.notes) < 100:
            self.notes.append(f"{path[-200:]!r}: {why}")


class _Member(tarfile.TarInfo):
    """Refuses extended headers that would be read into memory whatever their size."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        extended = (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        )
        if self.type in extended and self.size > MAX_HEADER:
            raise tarfile.TarError("a header that is too large")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.TarError("sparse members are not part of the format of layers")
        return cast(tarfile.TarInfo, super()._proc_member(tar))  # type: ignore[misc]


class _Unpacked(RawIOBase):
    """Counts and hashes what is read."""

    def __init__(self, source: IO[bytes], most: int) -> None:
        self._source, self._left = source, most
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        self._left -= len(data)
        if self._left < 0:
            raise _too_large("it unpacks to more than an image may hold")
        return data

    def drain(self) -> None:
        while self.read(1 << 20):
            pass

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def decompressed(layer: IO[bytes]) -> IO[bytes]:
    """By its first bytes: media types lie."""
    source = BufferedReader(cast(RawIOBase, layer))
    head = source.peek(4)[:4]
    if head[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.GzipFile(fileobj=source, mode="rb"))
    if head == b"\x28\xb5\x2f\xfd":
        reader = zstandard.ZstdDecompressor(max_window_size=128 << 20).stream_reader(source, read_across_frames=True)
        return cast(IO[bytes], reader)
    return source


def _path(name: str) -> bytes:
    parts = [part for part in _bytes(name).split(b"/") if part not in (b"", b".")]
    if b".." in parts or any(b"\0" in part for part in parts):
        raise _bad(f"a file named {name[:200]!r}")
    return b"/".join(parts)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _kind(member: tarfile.TarInfo) -> Kind | None:
    if member.isreg():
        return Kind.FILE
    if member.isdir():
        return Kind.DIR
    if member.issym():
        return Kind.SYMLINK
    return Kind.FIFO if member.isfifo() else None


def _id(path: bytes, number: int) -> int:
    if not 0 <= number <= MAX_ID:
        raise Invalid(
            f"{path[:200]!r} belongs to {number}",
            code="foreign_id",
            hint=f"users and groups of an image have numbers from 0 to {MAX_ID}",
        )
    return number


def _mtime_ns(member: tarfile.TarInfo) -> int:
    try:
        moment = int(Decimal(str(member.pax_headers.get("mtime", member.mtime))) * 1_000_000_000)
    except (InvalidOperation, ValueError, OverflowError):
        return 0
    return min(max(moment, MTIME_RANGE[0]), MTIME_RANGE[-1])


def _bad(why: str, *, code: str = "bad_layer") -> Invalid:
    return Invalid(f"a layer of the image is not usable: {why}", code=code, hint="build the image again")


def _too_large(what: str) -> Invalid:
    return Invalid(f"the image is too large: {what}", code="too_large", hint="use a smaller image")
