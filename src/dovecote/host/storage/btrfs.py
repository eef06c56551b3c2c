"""btrfs by ioctl: subvolumes, snapshots and quotas, as plain calls that raise OSError."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_MAGIC = 0x94
_TOP_OF_SUBVOLUME = 256  # inode of every subvolume's root
_BY_ID = 1 << 4
_READ_ONLY = 2
_NAME_BYTES = 255


def request(direction: int, number: int, size: int) -> int:
    return (direction << 30) | (size << 16) | (_MAGIC << 8) | number


WRITE, READ = 1, 2
_SUBVOL_CREATE = request(WRITE, 14, 4096)
_SNAP_DESTROY = request(WRITE, 15, 4096)
_RESIZE = request(WRITE, 3, 4096)
_INO_LOOKUP = request(WRITE | READ, 18, 4096)
_SNAP_CREATE_V2 = request(WRITE, 23, 4096)
_FS_INFO = request(READ, 31, 1024)
_QUOTA_CTL = request(WRITE | READ, 40, 16)
_QUOTA_RESCAN_WAIT = (_MAGIC << 8) | 46
_TREE_SEARCH_V2 = request(WRITE | READ, 17, 112)
_SYNC = (_MAGIC << 8) | 8
_INO_PATHS = request(WRITE | READ, 35, 56)
_SUBVOL_INFO = request(READ, 60, 504)
_SNAP_DESTROY_V2 = request(WRITE, 63, 4096)

_QUOTA_ENABLE, _QUOTA_ENABLE_SIMPLE = 1, 4


def _named(name: str) -> bytearray:
    encoded = os.fsencode(name)
    if not encoded or b"/" in encoded or len(encoded) > _NAME_BYTES:
        raise ValueError(f"not a subvolume name: {name[:80]!r}")
    return bytearray(struct.pack("q4088s", 0, encoded))


def create_subvolume(parent: int, name: str) -> None:
    fcntl.ioctl(parent, _SUBVOL_CREATE, _named(name))


def delete_subvolume(parent: int, name: str) -> None:
    """Also of snapshots. The space comes back a little later, when the cleaner has been there."""
    fcntl.ioctl(parent, _SNAP_DESTROY, _named(name))


def delete_subvolume_by_id(top: int, subvolume: int) -> None:
    """One in which no other is nested, wherever it is. `top` is on the mount of the whole file system."""
    packed = struct.pack("qQQ4QQ4032s", 0, 0, _BY_ID, 0, 0, 0, 0, subvolume, b"")
    fcntl.ioctl(top, _SNAP_DESTROY_V2, bytearray(packed))


def create_snapshot(parent: int, name: str, source: int) -> None:
    """A read-only snapshot of the subvolume `source`. What was written or stored by mmap before is in it."""
    _named(name)
    packed = struct.pack("qQQ4Q4040s", source, 0, _READ_ONLY, 0, 0, 0, 0, os.fsencode(name))
    fcntl.ioctl(parent, _SNAP_CREATE_V2, bytearray(packed))


def write_out(top: int) -> None:
    """Everything that is not on the disk yet, of all subvolumes."""
    fcntl.ioctl(top, _SYNC)


def is_subvolume(directory: int) -> bool:
    return os.fstat(directory).st_ino == _TOP_OF_SUBVOLUME


def subvolume_id(directory: int) -> int:
    answer = bytearray(struct.pack("QQ4080s", 0, _TOP_OF_SUBVOLUME, b""))
    fcntl.ioctl(directory, _INO_LOOKUP, answer)
    found: int = struct.unpack_from("Q", answer)[0]
    return found


def enable_quota(top: int, *, simple: bool) -> None:
    """Simple quotas need Linux 6.7; a subvolume has to be made after this to be counted from its first byte."""
    fcntl.ioctl(top, _QUOTA_CTL, bytearray(struct.pack("QQ", _QUOTA_ENABLE_SIMPLE if simple else _QUOTA_ENABLE, 0)))
    if not simple:
        fcntl.ioctl(top, _QUOTA_RESCAN_WAIT)


def grow(top: int) -> None:
    """To the size of its device."""
    fcntl.ioctl(top, _RESIZE, bytearray(struct.pack("q4088s", 0, b"max")))


def sysfs(top: int) -> Path:
    """The directory in which the kernel shows this file system and its quotas."""
    answer = bytearray(1024)
    fcntl.ioctl(top, _FS_INFO, answer)
    text = bytes(answer[16:32]).hex()
    return Path("/sys/fs/btrfs") / "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


@dataclass(frozen=True)
class Generations:
    """Numbers of transactions: of the last change to an inode of the subvolume, and of its own making; and its id."""

    changed: int
    made: int
    subvolume: int


def generations(subvolume: int) -> Generations:
    """Costs no I/O. `changed` of a snapshot's source exceeds the snapshot's `made` as soon as a name or an attribute
    changes; of contents, when they are on the disk."""
    answer = bytearray(504)
    fcntl.ioctl(subvolume, _SUBVOL_INFO, answer)
    changed, made = struct.unpack_from("QQ", answer, 344)
    return Generations(changed, made, struct.unpack_from("Q", answer)[0])


_INODE_ITEM, _INODE_REF, _XATTR_ITEM, _EXTENT_DATA = 1, 12, 24, 108
_SEARCH = struct.Struct("7Q4I4QQ")  # struct btrfs_ioctl_search_key, and the size of the buffer behind it
_FOUND = struct.Struct("QQQII")  # transaction of the tree's block, object, offset, type, length
_BUFFER = 256 << 10
_ANY = (1 << 64) - 1
# Transactions of making and last change, size, links, owners, mode, ctime, mtime.
_INODE = struct.Struct("<QQQ16xIIII68xqIqI")
_EXTENT = struct.Struct("<QQBBHB")  # transaction, bytes when unpacked, compression, encryption, encoding, kind
_INLINE = 0
MOST_CONTENT = 64 << 20  # bytes that one search should give


class Plain(NamedTuple):
    """A regular file with one name and no extended attribute. `content` is that of a small one, or None."""

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    content: bytes | None = None


@dataclass(slots=True)
class Changed:
    """An inode, how many names it has, and one of them where the search came by it. `plain` where it is new since
    and nothing else: then the search has seen all of it."""

    inode: int
    links: int
    parent: int = 0
    name: bytes = b""
    plain: Plain | None = None


def changed_inodes(subvolume: int, since: int, *, most_content: int = 0) -> Iterator[Changed]:
    """Inodes of which anything was written after the transaction `since`: content, attributes, names in a directory.

    Reads only the blocks of the subvolume's tree that are newer: its cost is that of the change. Gives up to
    `most_content` bytes of small files.
    """
    first, kind, offset = _TOP_OF_SUBVOLUME, 0, 0
    room = most_content
    buffer = bytearray(_SEARCH.size + _BUFFER)
    held: Changed | None = None  # until the items behind it have told its name
    while True:
        _SEARCH.pack_into(
            buffer, 0, 0, first, _ANY, offset, _ANY, since + 1, _ANY, kind, 255, 1 << 31, 0, 0, 0, 0, 0, _BUFFER
        )
        fcntl.ioctl(subvolume, _TREE_SEARCH_V2, buffer)
        count = struct.unpack_from("I", buffer, 64)[0]
        if not count:
            if held is not None:
                yield held
            return
        at = _SEARCH.size
        for _ in range(count):
            _, number, place, found, length = _FOUND.unpack_from(buffer, at)
            at += _FOUND.size
            if found == _INODE_ITEM:
                if held is not None:
                    yield held
                held = _inode(buffer, at, number, since)
            elif held is None or held.inode != number:
                pass
            elif found == _INODE_REF:
                if not held.name:
                    size = struct.unpack_from("H", buffer, at + 8)[0]
                    held.parent, held.name = place, bytes(buffer[at + 10 : at + 10 + size])
            elif found == _XATTR_ITEM:
                held.plain = None
            elif found == _EXTENT_DATA and held.plain is not None and held.plain.size <= min(length, room):
                held.plain = held.plain._replace(content=_inline(buffer, at, length, held.plain.size))
                room -= held.plain.size
            at += length
        first, kind, offset = number, found, place + 1
        if offset > _ANY:
            first, kind, offset = number, found + 1, 0


def _inode(item: bytearray, at: int, number: int, since: int) -> Changed | None:
    made, changed, size, links, uid, gid, mode, *times = _INODE.unpack_from(item, at)
    if changed <= since:
        return None  # an item does not know its transaction, an inode does
    if made <= since or links != 1 or not stat.S_ISREG(mode):
        return Changed(number, links)
    ctime_ns, mtime_ns = times[0] * 10**9 + times[1], times[2] * 10**9 + times[3]
    return Changed(number, 1, plain=Plain(stat.S_IMODE(mode), uid, gid, size, mtime_ns, ctime_ns))


def _inline(item: bytearray, at: int, length: int, size: int) -> bytes | None:
    """The whole content, should it lie beside the inode as it is."""
    _, unpacked, *encoded, kind = _EXTENT.unpack_from(item, at)
    if kind != _INLINE or any(encoded) or unpacked != size or length != _EXTENT.size + size:
        return None
    return bytes(item[at + _EXTENT.size : at + length])


@dataclass(frozen=True)
class Item:
    offset: int
    body: bytes


def search(descriptor: int, tree: int, number: int, kind: int) -> list[Item]:
    """The items of one kind that a tree has of one object."""
    found: list[Item] = []
    buffer = bytearray(_SEARCH.size + _BUFFER)
    offset = 0
    while offset <= _ANY:
        _SEARCH.pack_into(
            *(buffer, 0, tree, number, number, offset, _ANY, 0, _ANY, kind, kind, 1 << 31, 0, 0, 0, 0, 0, _BUFFER)
        )
        fcntl.ioctl(descriptor, _TREE_SEARCH_V2, buffer)
        count = struct.unpack_from("I", buffer, 64)[0]
        if not count:
            break
        at = _SEARCH.size
        for _ in range(count):
            _, _, offset, _, length = _FOUND.unpack_from(buffer, at)
            at += _FOUND.size
            found.append(Item(offset, bytes(buffer[at : at + length])))
            at += length
        offset += 1
    return found


_TREE_OF_ROOTS, _ROOT_REF = 1, 156


@dataclass(frozen=True)
class Nested:
    """A subvolume that lies in another: in the directory of that inode, under that name."""

    id: int
    directory: int
    name: str


def nested(top: int, subvolume: int) -> list[Nested]:
    """The subvolumes that lie directly in one, by its id. Costs what there are."""
    found = []
    for item in search(top, _TREE_OF_ROOTS, subvolume, _ROOT_REF):
        directory, _, length = struct.unpack_from("<QQH", item.body)
        found.append(Nested(item.offset, directory, os.fsdecode(item.body[18 : 18 + length])))
    return found


def descendants(top: int, subvolume: int) -> list[int]:
    """All that lie in one, by their ids; those above come before those below."""
    found = [subvolume]
    for each in found:  # which grows on the way
        found += [below.id for below in nested(top, each)]
    return found[1:]


_LAST_INODE = (1 << 64) - 257


def new_inodes(subvolume: int, above: int) -> list[int]:
    """Numbers of inodes beyond `above`, ascending: made since that one was the newest. Costs what is new, a thousand
    at a time, without I/O for what was made a moment ago."""
    found: list[int] = []
    buffer = bytearray(_SEARCH.size + _BUFFER)
    number = max(above, _TOP_OF_SUBVOLUME - 1)
    while True:
        _SEARCH.pack_into(
            buffer, 0, 0, number + 1, _LAST_INODE, 0, _ANY, 0, _ANY, _INODE_ITEM, 255, 1 << 31, 0, 0, 0, 0, 0, _BUFFER
        )
        fcntl.ioctl(subvolume, _TREE_SEARCH_V2, buffer)
        at = _SEARCH.size
        for _ in range(struct.unpack_from("I", buffer, 64)[0]):
            _, number, _, kind, length = _FOUND.unpack_from(buffer, at)
            if kind == _INODE_ITEM:
                found.append(number)
            at += _FOUND.size + length
        if at == _SEARCH.size:
            return found


LONGEST_PATH = 4079  # that `path_of` tells


def path_of(subvolume: int, inode: int) -> bytes | None:
    """One name of an inode, from the top of the subvolume; None when it has none any more, or one of 4,080 bytes."""
    answer = bytearray(struct.pack("QQ4080s", 0, inode, b""))
    try:
        fcntl.ioctl(subvolume, _INO_LOOKUP, answer)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
            return None
        raise
    return bytes(answer[16:]).split(b"\0", 1)[0].rstrip(b"/")


_NAMES_BYTES = 4096  # the kernel fills no more


def paths_of(subvolume: int, inode: int) -> list[bytes] | None:
    """All names of an inode, from the top of the subvolume; None when there are too many to be told."""
    found = ctypes.create_string_buffer(_NAMES_BYTES)
    request = bytearray(struct.pack("QQ4QQ", inode, _NAMES_BYTES, 0, 0, 0, 0, ctypes.addressof(found)))
    try:
        fcntl.ioctl(subvolume, _INO_PATHS, request)
    except FileNotFoundError:
        return []
    _, _, count, missed = struct.unpack_from("IIII", found)
    if missed:
        return None
    names = found.raw[16:]
    return [names[at : names.index(b"\0", at)] for at in struct.unpack_from(f"{count}Q", names)]
