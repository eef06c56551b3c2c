"""Writes the metadata image of a tree: an EROFS file system whose files point at objects."""

from __future__ import annotations

import os
import secrets
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from dovecote.host.storage.contents import BLOCK, Contents, other_size, places_of
from dovecote.host.storage.disk import write_all, write_at
from dovecote.host.storage.manifest import DIRS, Entry, Kind
from dovecote.host.storage.objects import object_name

_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ")  # 1024 bytes into the first block
_MAGIC = 0xE0F5E1E2
_CHUNKED_FILE = 4  # the one incompatible feature that we use
_INODE = struct.Struct("<HHHHQIIIIqII16x")  # extended: 64 bytes, ids of 32 bits, times in nanoseconds
_SLOT = 32  # inodes are numbered by their place in units of this
_DIRENT = struct.Struct("<QHBx")
_EXTENDED = 1
_PLAIN, _INLINE, _CHUNKS = 0 << 1, 2 << 1, 4 << 1  # where an inode's content is
_INLINE_MAX = 2048  # more goes to blocks of its own, so that an inode never has to straddle blocks
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
    room: int = 0  # and those that are left free behind that
    at: int = 0  # its place in the image
    block: int = 0  # first of its own blocks
    is_inside: bool = False  # a file whose content is in the image


def write_image(entries: Sequence[Entry], path: Path, *, uuid: bytes) -> str:
    """Writes the image of a whole tree (sorted, root first) atomically; returns its blake3 in hex.

    Not synced: whoever finds it after a reboot compares the hash first.

    Images that may be layers of one overlay need different ids (`uuid`, 16 bytes): only so does overlayfs remember
    where a file came from that was copied up, and gives it one inode number for all of its names and for good.

    Mount it with `mount -t erofs`, and over it `lowerdir=IMAGE::OBJECTS,metacopy=on,redirect_dir=on`.
    """
    hasher = blake3()
    with _new_file(path) as fd:
        for chunk in _chunks(render_image(entries, uuid=uuid)):
            hasher.update(chunk)
            write_all(fd, chunk)
    return hasher.hexdigest()


def write_filled_image(
    entries: Callable[[], Sequence[Entry]],
    path: Path,
    *,
    uuid: bytes,
    inside: Mapping[bytes, int],
    fill: Callable[[Contents], object],
) -> None:
    """The same, but the contents `inside` (digest -> bytes) are in the image itself, in that order.

    They lie before everything else, so that `fill`, which writes them in a thread of its own, can begin before the
    entries are known. One large file is written many times faster than thousands of small ones.
    """
    places, end = places_of(inside, at=BLOCK)
    with _new_file(path) as fd, ThreadPoolExecutor(1, thread_name_prefix="filling") as pool:
        contents = Contents(fd, places)
        filling = pool.submit(fill, contents)
        try:
            plan = _plan(entries(), places, end)
            at, pieces = end, _rendered(plan, uuid)
            write_at(fd, [next(pieces)], 0)
            for chunk in _chunks(pieces):
                write_at(fd, [chunk], at)
                at += len(chunk)
        except BaseException:
            contents.stop()
            raise
        filling.result()


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        os.rename(part, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(part)


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
    begin: int  # of all inodes, whose numbers are counted from there
    inodes_end: int
    total: int


def _plan(entries: Sequence[Entry], places: Mapping[bytes, tuple[int, int]], at: int) -> _Plan:
    """`places` of contents inside, and where the rest begins."""
    nodes, number_of = _nodes(entries)
    for node in nodes:
        _measure(node, places)
    end, inodes_end = _place(nodes, at)
    return _Plan(nodes, number_of, at, inodes_end, end)


def render_image(entries: Sequence[Entry], *, uuid: bytes) -> Iterator[bytes]:
    """The image in pieces: the first block, all inodes, then the blocks of large directories and links."""
    return _rendered(_plan(entries, {}, BLOCK), uuid)


def _rendered(plan: _Plan, uuid: bytes) -> Iterator[bytes]:
    nodes = plan.nodes
    yield _first_block(plan, uuid)
    at = plan.begin
    for number, node in enumerate(nodes):
        if node.at > at:
            yield bytes(node.at - at)
        yield _inode(node, number + 1, plan)
        at = node.at + _INODE.size + len(node.xattrs) + node.tail
    yield bytes(plan.inodes_end - at)
    for node in nodes:
        if node.block and not node.is_inside:
            yield from _own_blocks(node, plan)


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


def _measure(node: _Node, places: Mapping[bytes, tuple[int, int]]) -> None:
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
    elif e.kind is Kind.FILE and e.size and (place := places.get(e.digest)):
        if place[1] != e.size:
            raise other_size(e.digest)
        node.is_inside, node.size, node.block = True, e.size, place[0] // BLOCK
        # As long as one that points at its object: an upper remembers where its files came from by inode numbers, so
        # these have to be the same in every image of a tree.
        node.room = _POINTER_BYTES + len(_HOLE) - (len(_XATTR_HEADER) if e.xattrs else 0)
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
_POINTER_BYTES = len(_POINTER) + len(object_name(bytes(32))) + 2


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


def _place(nodes: list[_Node], at: int) -> tuple[int, int]:
    """Gives each node its place. Returns the end of the metadata and that of the inodes, both whole blocks."""
    for node in nodes:
        at = -(-at // _SLOT) * _SLOT
        need = _INODE.size + len(node.xattrs) + node.tail + node.room
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


def _nid(node: _Node, plan: _Plan) -> int:
    return (node.at - plan.begin) // _SLOT


def _first_block(plan: _Plan, uuid: bytes) -> bytes:
    nodes = plan.nodes
    head = _SUPER.pack(
        _MAGIC, 0, 0, 12, 0, _nid(nodes[0], plan), len(nodes), 0, 0, plan.total // BLOCK, plan.begin // BLOCK, 0,
        uuid, b"dovecote", _CHUNKED_FILE, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return (bytes(1024) + head).ljust(BLOCK, b"\0")


def _inode(node: _Node, number: int, plan: _Plan) -> bytes:
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
        tail = e.target if e.kind is Kind.SYMLINK else _dirents(node.blocks[0], number - 1, node, plan)
        return inode + node.xattrs + tail
    return inode + node.xattrs


def _own_blocks(node: _Node, plan: _Plan) -> Iterator[bytes]:
    if node.entry.kind is Kind.SYMLINK:
        yield node.entry.target.ljust(BLOCK, b"\0")
        return
    own = plan.number_of[node.entry.path]
    for block in node.blocks:
        yield _dirents(block, own, node, plan).ljust(BLOCK, b"\0")


def _dirents(block: list[tuple[bytes, int]], own: int, node: _Node, plan: _Plan) -> bytes:
    offset = _DIRENT.size * len(block)
    heads = []
    for name, number in block:
        other = plan.nodes[number if number >= 0 else own if number == -1 else node.parent]
        heads.append(_DIRENT.pack((other.at - plan.begin) // _SLOT, offset, _TYPES[other.entry.kind][1]))
        offset += len(name)
    return b"".join(heads) + b"".join(name for name, _ in block)
