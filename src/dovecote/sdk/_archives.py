"""Directories as a stream of tar, packed and unpacked piece by piece; what comes from a sandbox is not trusted."""

from __future__ import annotations

import io
import os
import secrets
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dovecote.sdk._errors import DovecoteError

PIECE = 1 << 20
BATCH = 1 << 19
BLOCK = tarfile.BLOCKSIZE
LONGEST_EXTENSION = 1 << 20  # bytes of a pax or GNU header
_CONTENT = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}


def content_bytes(directory: Path) -> int:
    """Of all files below it, for a progress bar."""
    return sum(
        entry.stat(follow_symlinks=False).st_size
        for entry in _entries(directory)
        if entry.is_file(follow_symlinks=False)
    )


def batches(directory: Path) -> Iterator[tuple[bytes, int]]:
    """`packed`, in pieces of `BATCH` bytes: few large ones for many small files."""
    waiting, content = bytearray(), 0
    for piece, size in packed(directory):
        waiting += piece
        content += size
        while len(waiting) >= BATCH:
            yield bytes(waiting[:BATCH]), content
            del waiting[:BATCH]
            content = 0
    yield bytes(waiting), content


def packed(directory: Path) -> Iterator[tuple[bytes, int]]:
    """Pieces of a tar of what is in it, each with how much of it is content. Sockets and devices are left out."""
    top = tarfile.TarInfo(".")
    top.type, top.mode = tarfile.DIRTYPE, directory.stat().st_mode & 0o7777
    yield _header(top), 0
    with tarfile.TarFile(fileobj=io.BytesIO(), mode="w") as maker:
        for entry in _entries(directory):
            info = maker.gettarinfo(entry.path, os.path.relpath(entry.path, directory))
            if info.isreg() or info.islnk():
                # A second name of a file is sent as a file of its own: its first name may lie outside.
                info.type, info.linkname = tarfile.REGTYPE, ""
                info.size = entry.stat(follow_symlinks=False).st_size
                yield _header(info), 0
                yield from _content(Path(entry.path), info.size)
            elif info.isdir() or info.issym():
                yield _header(info), 0
    yield bytes(2 * BLOCK), 0


def _entries(directory: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(directory) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))


def _header(info: tarfile.TarInfo) -> bytes:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _content(path: Path, size: int) -> Iterator[tuple[bytes, int]]:
    """Exactly `size` bytes, padded to a block, whatever happens to the file meanwhile."""
    left = size
    with path.open("rb") as file:
        while left:
            piece = file.read(min(PIECE, left)) or bytes(min(PIECE, left))
            left -= len(piece)
            yield piece, len(piece)
    if size % BLOCK:
        yield bytes(BLOCK - size % BLOCK), 0


class Unpacking:
    """Takes a tar in pieces and makes what is in it below `target`, and nothing anywhere else.

    Whoever wrote it may lie: names that lead out, links that lead out and names below them are refused (bad_archive).
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._waiting = bytearray()  # less than a block, or an extension
        self._extension: tarfile.TarInfo | None = None
        self._named: dict[str, str] = {}  # by extensions, for the next entry
        self._file: _Partial | None = None
        self._left = self._padding = 0
        self._modes: list[tuple[Path, int]] = []
        self._is_over = False
        target.mkdir(exist_ok=True)

    def feed(self, data: bytes) -> int:
        """Answers how many bytes of files were in it."""
        view, wrote = memoryview(data), 0
        while view and not self._is_over:
            if self._left and self._file is not None:
                part = view[: self._left]
                self._file.write(part)
                wrote += len(part)
                view = self._took(view, len(part))
            elif self._left:
                self._waiting += view[: self._left]
                view = self._took(view, min(self._left, len(view)))
            elif self._padding:
                skip = min(self._padding, len(view))
                self._padding -= skip
                view = view[skip:]
            else:
                part = view[: BLOCK - len(self._waiting)]
                self._waiting += part
                view = view[len(part) :]
                if len(self._waiting) == BLOCK:
                    self._begin(bytes(self._waiting))
        return wrote

    def end(self) -> None:
        """Raises DovecoteError (bad_archive) when it is not whole. Sets the modes of directories."""
        if not self._is_over:
            raise bad("it ends too early")
        for path, mode in reversed(self._modes):
            path.chmod(mode)

    def close(self) -> None:
        """What was not written whole is removed."""
        if self._file is not None:
            self._file.close()

    # -- inside

    def _took(self, view: memoryview, size: int) -> memoryview:
        self._left -= size
        if not self._left:
            self._finish()
        return view[size:]

    def _finish(self) -> None:
        if self._file is not None:
            self._file.keep()
            self._file = None
        elif self._extension is not None:
            self._read_extension(self._extension.type, bytes(self._waiting))
            self._waiting.clear()
            self._extension = None

    def _begin(self, block: bytes) -> None:
        self._waiting.clear()
        if not any(block):
            self._is_over = True
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            info.name = self._named.get("path", info.name)
            info.linkname = self._named.get("linkpath", info.linkname)
            info.size = int(self._named.get("size", info.size))
        except (tarfile.HeaderError, ValueError) as error:
            raise bad(str(error)) from None
        if info.size < 0:
            raise bad("a negative size")
        self._left, self._padding = info.size, -info.size % BLOCK
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, *_LONG):
            if info.size > LONGEST_EXTENSION:
                raise bad("a header that is too long")
            self._extension = info
        else:
            self._named.clear()
            self._make(info)
        if not self._left:
            self._finish()

    def _read_extension(self, kind: bytes, data: bytes) -> None:
        if kind in _LONG:
            self._named[_LONG[kind]] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        while kind == tarfile.XHDTYPE and data:
            length, space, rest = data.partition(b" ")
            if not space or not length.isdigit() or not len(length) + 1 < int(length) <= len(data):
                raise bad("a pax header that cannot be read")
            name, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
            self._named[name.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
            data = data[int(length) :]

    def _make(self, info: tarfile.TarInfo) -> None:
        if info.isdir():
            path = self._place(info.name, is_directory=True)
            self._modes.append((path, info.mode & 0o777 | 0o700))
        elif info.type in _CONTENT:
            self._file = _Partial(self._place(info.name), info.mode & 0o777)
        elif info.issym():
            path = self._place(info.name)
            beside = _beside(path)
            beside.symlink_to(info.linkname)
            beside.replace(path)
        elif info.islnk():
            source, path = self._place(info.linkname), self._place(info.name)
            if source.is_symlink() or not source.is_file():
                raise bad(f"{info.name!r} is another name of what is not there")
            beside = _beside(path)
            beside.hardlink_to(source)
            beside.replace(path)
        elif info.size:
            raise bad("an entry of a kind that has no content has some")

    def _place(self, name: str, *, is_directory: bool = False) -> Path:
        """Where it goes. Each directory on the way is one, not a link to one: a link could lead anywhere."""
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\0" in name or (not parts and not is_directory):
            raise bad(f"it names {name[:200]!r}")
        path = self._target
        for part in parts if is_directory else parts[:-1]:
            path /= part
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise bad(f"{name[:200]!r} is below {part[:100]!r}, which is no directory")
            path.mkdir(exist_ok=True)
        return path if is_directory else path / parts[-1]


class _Partial:
    """A file beside its place until it is whole. An empty one, too."""

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._beside = _beside(path)
        self._file = os.fdopen(os.open(self._beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._mode = mode

    def write(self, data: memoryview) -> None:
        self._file.write(data)

    def keep(self) -> None:
        self._file.close()
        self._beside.chmod(self._mode)
        self._beside.replace(self._path)

    def close(self) -> None:
        self._file.close()
        self._beside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".dovecote-{secrets.token_hex(8)}")


def bad(why: str) -> DovecoteError:
    return DovecoteError(f"the archive is not one to unpack: {why[:300]}", code="bad_archive")
