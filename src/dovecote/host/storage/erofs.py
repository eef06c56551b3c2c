"""Writes the metadata image of a tree: an EROFS file system whose files point at objects."""

from __future__ import annotations

import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from dovecote.errors import StorageFailed
from dovecote.host.storage.disk import disk_errors, write_all, write_at
from dovecote.host.storage.manifest import DIRS, Entry, Kind
from dovecote.host.storage.objects import object_name

BLOCK = 4096
_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ")  # 1024 bytes into the first block
_MAGIC = 0xE0F5E1E2
_CHUNKED_FILE = 4  # the one incompatible feature that we use
_INODE = struct.Struct("<HHHHQIIIIqII16x")  # extended: 64 bytes, ids of 32 bits, times in nanoseconds
_SLOT = 32  # inodes are numbered by their place in units of this
_DIRENT = struct.Struct("<QHBx")
_EXTENDED = 1
_PLAIN, _INLINE, _CHUNKS = 0 << 1, 2 << 1, 4 << 1  # where an inode's content is
_INLINE_MAX = 2048  # more goes to blocks of its own, so that an inode never has to straddle blocks
_ZEROS = memoryview(bytes(BLOCK))
_HOLE = b"\xff\xff\xff\xff"  # the only chunk of a file: its bytes are in the object
_XATTR_HEADER = bytes(12)
_XATTR_PREFIXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_TYPES = {
    Kind.FILE: (stat.S_IFREG, 1),
    Kind.DIR: (stat.S_IFDIR, 2),
    Kind.OPAQUE: (stat.S_IFDIR, 2),
    Kind.WHITEOUT: (stat.S_IFCHR, 3),  # device 0/0
    Kind.FIFO: (stat.S_IFIFO, 5),
    Kind.SYMLINK: (stat.S_IFLNK, 7),
}


@dataclass(slots=True)
class _Node:
    entry: Entry
    parent: int
    links: int = 1
    names: Sequence[tuple[bytes, int]] = ()  # of a directory
    blocks: Sequence[list[tuple[bytes, int]]] = ()
    xattrs: bytes = b""
    layout: int = _PLAIN
    size: int = 0  # as the inode says it
    tail: int = 0  # bytes behind the inode and its xattrs
    at: int = 0  # its place in the image
    block: int = 0  # first of its own blocks
    is_inside: bool = False  # a file whose content is in the image


class Contents:
    """Room in an image that is being written for the contents of some of its files. Safe from many threads."""

    def __init__(self, fd: int, places: Mapping[bytes, tuple[int, int]]) -> None:
        self._fd = fd
        self._places = places  # digest -> offset, bytes
        self._there: set[bytes] = set()

    def put_all(self, objects: Iterable[tuple[bytes, memoryview]]) -> None:
        """Contents that have just been hashed to their digests. Neighbours in the image are written at once."""
        pieces: list[bytes | memoryview] = []
        begin = end = 0
        done = []
        for digest, data in objects:
            at, size = self._places[digest]
            if len(data) != size:
                raise _other_size(digest)
            if at != end:
                self._write(pieces, begin)
                pieces, begin = [], at
            pieces.append(data)
            if size % BLOCK:
                pieces.append(_ZEROS[size % BLOCK :])
            end = at + -(-size // BLOCK) * BLOCK
            done.append(digest)
        self._write(pieces, begin)
        self._there.update(done)

    def put_pieces(self, digest: bytes, pieces: Iterable[bytes]) -> None:
        """The same for what is too large to be held. Whoever gives the pieces raises when they are not `digest`."""
        at, size = self._places[digest]
        end = at + size
        for piece in pieces:
            if at + len(piece) > end:
                raise _other_size(digest)
            self._write([piece], at)
            at += len(piece)
        if at != end:
            raise _other_size(digest)
        self._there.add(digest)

    def _write(self, pieces: list[bytes | memoryview], at: int) -> None:
        with disk_errors("the image cannot be written"):
            write_at(self._fd, pieces, at)

    def missing(self, digests: Iterable[bytes]) -> list[bytes]:
        return [digest for digest in digests if digest not in self._there]


def _other_size(digest: bytes) -> StorageFailed:
    return StorageFailed(f"object {digest.hex()} has another size than its tree says", code="corrupt")


def write_image(
    entries: Sequence[Entry],
    path: Path,
    *,
    uuid: bytes,
    inside: Sequence[bytes] = (),
    fill: Callable[[Contents], None] | None = None,
) -> str:
    """Writes the image of a whole tree (sorted, root first) atomically; returns the blake3 of its metadata in hex.

    Not synced: whoever finds it after a reboot compares the hash first.

    Images that may be layers of one overlay need different ids (`uuid`, 16 bytes): only so does overlayfs remember
    where a file came from that was copied up, and gives it one inode number for all of its names and for good.

    Files point at their objects, except those `inside`: of these the image has the contents itself, in that order,
    which `fill` is called to write. One large file is written many times faster than thousands of small ones.

    Mount it with `mount -t erofs`, and over it `lowerdir=IMAGE::OBJECTS,metacopy=on,redirect_dir=on`.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            hasher = blake3()
            plan = _plan(entries, inside)
            for chunk in _chunks(_rendered(plan, uuid)):
                hasher.update(chunk)
                write_all(fd, chunk)
            if fill is not None:
                os.ftruncate(fd, plan.total)
                fill(Contents(fd, plan.places))
        finally:
            os.close(fd)
        os.rename(part, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)
    return hasher.hexdigest()


def _chunks(pieces: Iterator[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size > 1 << 20:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


@dataclass(frozen=True)
class _Plan:
    nodes: list[_Node]
    number_of: dict[bytes, int]
    inodes_end: int
    total: int
    places: dict[bytes, tuple[int, int]]  # of contents inside: offset, bytes


def _plan(entries: Sequence[Entry], inside: Sequence[bytes]) -> _Plan:
    nodes, number_of = _nodes(entries)
    sizes = dict.fromkeys(inside, 0)
    for node in nodes:
        _measure(node, sizes)
    end, inodes_end = _place(nodes)
    places: dict[bytes, tuple[int, int]] = {}
    for digest, size in sizes.items():
        places[digest] = (end, size)
        end += -(-size // BLOCK) * BLOCK
    for node in nodes:
        if node.is_inside:
            node.block = places[node.entry.digest][0] // BLOCK
    return _Plan(nodes, number_of, inodes_end, end, places)


def render_image(entries: Sequence[Entry], *, uuid: bytes) -> Iterator[bytes]:
    """The image in pieces: the first block, all inodes, then the blocks of large directories and links."""
    return _rendered(_plan(entries, ()), uuid)


def _rendered(plan: _Plan, uuid: bytes) -> Iterator[bytes]:
    nodes = plan.nodes
    yield _first_block(nodes, plan.total, uuid)
    at = BLOCK
    for number, node in enumerate(nodes):
        if node.at > at:
            yield bytes(node.at - at)
        yield _inode(node, number + 1, nodes, plan.number_of)
        at = node.at + _INODE.size + len(node.xattrs) + node.tail
    yield bytes(plan.inodes_end - at)
    for node in nodes:
        if node.block and not node.is_inside:
            yield from _own_blocks(node, nodes, plan.number_of)


def _nodes(entries: Sequence[Entry]) -> tuple[list[_Node], dict[bytes, int]]:
    """One node for each inode, and which node each path is. Names of one file share a node."""
    nodes: list[_Node] = []
    number_of: dict[bytes, int] = {}
    names: dict[int, list[tuple[bytes, int]]] = {}  # of directories
    for entry in entries:
        path = entry.path
        parent_path, _, name = path.rpartition(b"/")
        parent = number_of[parent_path] if path else 0
        if entry.link and entry.link != path:
            number = number_of[entry.link]
            nodes[number].links += 1
        else:
            number = len(nodes)
            nodes.append(_Node(entry, parent))
            if entry.kind in DIRS:
                nodes[number].links = 2
                nodes[number].names = names[number] = []
                if path:
                    nodes[parent].links += 1
        number_of[path] = number
        if path:
            names[parent].append((name, number))
    return nodes, number_of


def _measure(node: _Node, sizes: dict[bytes, int]) -> None:
    e = node.entry
    extra: list[tuple[bytes, bytes]] = []
    if e.kind in DIRS:
        _measure_directory(node)
        if e.kind is Kind.OPAQUE:
            extra = [(b"trusted.overlay.opaque", b"y")]
    elif e.kind is Kind.SYMLINK:
        node.size = len(e.target)
        if node.size <= _INLINE_MAX and not e.xattrs:
            node.layout, node.tail = _INLINE, node.size
    elif e.kind is Kind.FILE and e.size and e.digest in sizes:
        if sizes.setdefault(e.digest, e.size) not in (0, e.size):
            raise _other_size(e.digest)
        node.is_inside, node.size, sizes[e.digest] = True, e.size, e.size
    elif e.kind is Kind.FILE and e.size:
        node.layout, node.tail, node.size = _CHUNKS, len(_HOLE), e.size
        node.xattrs = _POINTER + object_name(e.digest).encode() + b"\0\0"
        extra = []
    if e.xattrs or extra:
        body = b"".join(_xattr(name, value) for name, value in (*extra, *e.xattrs))
        node.xattrs = (node.xattrs or _XATTR_HEADER) + body


def _xattr(name: bytes, value: bytes) -> bytes:
    prefix, index = next((p, i) for p, i in _XATTR_PREFIXES if name.startswith(p))
    line = struct.pack("<BBH", len(name) - len(prefix), index, len(value)) + name[len(prefix) :] + value
    return line + bytes(-len(line) % 4)


# What every file carries: "only metadata here", and the start of the path of its object.
_POINTER = (
    _XATTR_HEADER
    + _xattr(b"trusted.overlay.metacopy", b"")
    + struct.pack("<BBH", len(b"overlay.redirect"), 4, 1 + 2 + 1 + 62)
    + b"overlay.redirect/"
)


def _measure_directory(node: _Node) -> None:
    names = sorted([(b".", -1), (b"..", -2), *node.names])
    blocks: list[list[tuple[bytes, int]]] = [[]]
    used = 0
    for name in names:
        need = _DIRENT.size + len(name[0])
        if used + need > BLOCK:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += need
    node.blocks = blocks
    node.size = (len(node.blocks) - 1) * BLOCK + used
    if node.size <= _INLINE_MAX:
        node.layout, node.tail = _INLINE, node.size


def _place(nodes: list[_Node]) -> tuple[int, int]:
    """Gives each node its place. Returns the end of the metadata and that of the inodes, both whole blocks."""
    at = BLOCK
    for node in nodes:
        at = -(-at // _SLOT) * _SLOT
        need = _INODE.size + len(node.xattrs) + node.tail
        if node.layout == _INLINE:
            # The kernel reads an inline tail from one block, and a link's together with its inode.
            first = at if need <= BLOCK else at + need - node.tail
            if first // BLOCK != (at + need - 1) // BLOCK:
                at += BLOCK - first % BLOCK
                at = -(-at // _SLOT) * _SLOT
        node.at = at
        at += need
    inodes_end = at = -(-at // BLOCK) * BLOCK
    for node in nodes:
        if node.layout == _PLAIN and node.size and not node.is_inside:
            node.block = at // BLOCK
            at += -(-node.size // BLOCK) * BLOCK
    return at, inodes_end


def _nid(node: _Node) -> int:
    return (node.at - BLOCK) // _SLOT


def _first_block(nodes: list[_Node], total: int, uuid: bytes) -> bytes:
    head = _SUPER.pack(
        _MAGIC, 0, 0, 12, 0, _nid(nodes[0]), len(nodes), 0, 0, total // BLOCK, 1, 0,
        uuid, b"dovecote", _CHUNKED_FILE, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return (bytes(1024) + head).ljust(BLOCK, b"\0")


def _inode(node: _Node, number: int, nodes: list[_Node], number_of: dict[bytes, int]) -> bytes:
    e = node.entry
    place = node.block
    if node.layout == _CHUNKS:
        # One chunk for the whole file, whatever its size: the exponent of the chunk's size over a block's.
        place = max(0, (node.size - 1).bit_length() - 12)
    seconds, nanoseconds = divmod(e.mtime_ns, 1_000_000_000)
    count = (len(node.xattrs) - len(_XATTR_HEADER)) // 4 + 1 if node.xattrs else 0
    inode = _INODE.pack(
        _EXTENDED | node.layout, count, _TYPES[e.kind][0] | e.mode, 0, node.size, place, number,
        e.uid, e.gid, seconds, nanoseconds, node.links,
    )  # fmt: skip
    if node.layout == _CHUNKS:
        return inode + node.xattrs + _HOLE
    if node.layout == _INLINE:
        tail = e.target if e.kind is Kind.SYMLINK else _dirents(node.blocks[0], number - 1, node, nodes)
        return inode + node.xattrs + tail
    return inode + node.xattrs


def _own_blocks(node: _Node, nodes: list[_Node], number_of: dict[bytes, int]) -> Iterator[bytes]:
    if node.entry.kind is Kind.SYMLINK:
        yield node.entry.target.ljust(BLOCK, b"\0")
        return
    own = number_of[node.entry.path]
    for block in node.blocks:
        yield _dirents(block, own, node, nodes).ljust(BLOCK, b"\0")


def _dirents(block: list[tuple[bytes, int]], own: int, node: _Node, nodes: list[_Node]) -> bytes:
    offset = _DIRENT.size * len(block)
    heads = []
    for name, number in block:
        other = nodes[number if number >= 0 else own if number == -1 else node.parent]
        heads.append(_DIRENT.pack((other.at - BLOCK) // _SLOT, offset, _TYPES[other.entry.kind][1]))
        offset += len(name)
    return b"".join(heads) + b"".join(name for name, _ in block)
