"""A tree, or what is below one path of it, as a zip file that is made while it is sent."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import IO

from dovecote.errors import NotFound
from dovecote.host.storage.manifest import DIRS, Entry, Kind

PIECE = 256 << 10  # bytes handed on at a time
UNCLEAR = "\ufffd"
LEVEL = 1  # of compression: the network is rarely slower
_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)  # times that the format can tell
Opened = Callable[[bytes], IO[bytes]]


def below(entries: Sequence[Entry], path: str) -> list[tuple[str, Entry]]:
    """The entry at `path` and those below it, each with its name in the archive. Raises NotFound (no_such_path)."""
    at = path.strip("/").encode("utf-8", "surrogateescape")
    if not at:
        return [(_name(entry.path), entry) for entry in entries if entry.path]
    inside = at + b"/"
    cut = len(at.rpartition(b"/")[0]) + 1 if b"/" in at else 0
    found = [(_name(e.path[cut:]), e) for e in entries if e.path == at or e.path.startswith(inside)]
    if not found or found[0][1].path != at or found[0][1].kind is Kind.WHITEOUT:
        raise NotFound(f"nothing is at {path!r} there", code="no_such_path")
    return found


def _name(path: bytes) -> str:
    return path.decode("utf-8", "replace")


def zipped(found: Sequence[tuple[str, Entry]], opened: Opened) -> Iterator[bytes]:
    """Bytes of the file, in pieces. Modes, times and symbolic links are kept, owners are not.

    Left out, and counted in the file's comment: pipes, names with a backslash, which may lead elsewhere on other
    systems, and names that cannot be told from another one.
    """
    sink = _Sink()
    left_out = 0
    unclear: set[str] = set()  # names that are not UTF-8: two of them may become one
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
        for name, entry in found:
            if entry.kind in (Kind.FIFO, Kind.WHITEOUT) or "\\" in name or name in unclear:
                left_out += 1
                continue
            if UNCLEAR in name:
                unclear.add(name)
            yield from _member(archive, sink, _header(name, entry), entry, opened)
            yield from sink.pieces()
        archive.comment = f"{left_out} names are left out".encode() if left_out else b""
    yield sink.rest()


def _member(
    archive: zipfile.ZipFile, sink: _Sink, header: zipfile.ZipInfo, entry: Entry, opened: Opened
) -> Iterator[bytes]:
    if entry.kind in DIRS:
        archive.writestr(header, b"")
    elif entry.kind is Kind.SYMLINK:
        archive.writestr(header, entry.target)
    elif not entry.size:
        archive.writestr(header, b"")
    else:
        is_huge = entry.size >= zipfile.ZIP64_LIMIT // 2
        with archive.open(header, "w", force_zip64=is_huge) as member, opened(entry.digest) as file:
            while piece := file.read(PIECE):
                member.write(piece)
                yield from sink.pieces()


def _header(name: str, entry: Entry) -> zipfile.ZipInfo:
    is_directory = entry.kind in DIRS
    header = zipfile.ZipInfo(name + "/" if is_directory else name, _moment(entry.mtime_ns))
    kind = stat.S_IFDIR if is_directory else stat.S_IFLNK if entry.kind is Kind.SYMLINK else stat.S_IFREG
    header.create_system = 3  # Unix: the modes count
    header.external_attr = (kind | entry.mode) << 16 | (0x10 if is_directory else 0)
    header.compress_type = zipfile.ZIP_DEFLATED if kind == stat.S_IFREG else zipfile.ZIP_STORED
    header.file_size = entry.size
    return header


def _moment(ns: int) -> tuple[int, int, int, int, int, int]:
    try:
        at = datetime.fromtimestamp(ns // 10**9, UTC)
    except (OverflowError, ValueError, OSError):
        return _LAST if ns > 0 else _FIRST
    return min(max((at.year, at.month, at.day, at.hour, at.minute, at.second), _FIRST), _LAST)


class _Sink(io.RawIOBase):
    """Takes what the archive writes, which never goes back in it, until it is handed on."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self._held += view
        return view.nbytes

    def pieces(self) -> Iterator[bytes]:
        if len(self._held) >= PIECE:
            yield self.rest()

    def rest(self) -> bytes:
        held, self._held = bytes(self._held), bytearray()
        return held
