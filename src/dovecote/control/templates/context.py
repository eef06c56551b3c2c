"""The files beside a Dovecotefile, as they were sent: a tar, from which COPY makes layers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import posixpath
import tarfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dovecote.errors import Invalid, StorageFailed

MAX_BYTES = 256 << 20
MAX_FILES = 50_000


@dataclass(frozen=True)
class Layer:
    """What one COPY adds. `diff_id` is sha256 of the tar; the same files at the same places have the same."""

    path: Path
    diff_id: str
    names: tuple[str, ...]  # of files and links, absolute


async def receive(sent: AsyncIterator[bytes], path: Path) -> None:
    """Raises Invalid (too_large), StorageFailed (disk_full)."""
    received = 0
    try:
        with path.open("wb") as file:
            async for chunk in sent:
                received += len(chunk)
                if received > MAX_BYTES:
                    raise Invalid(f"the files of the build are over {MAX_BYTES} bytes", code="too_large")
                await asyncio.to_thread(file.write, chunk)
    except OSError as error:
        raise StorageFailed(f"the files of the build cannot be kept: {error}", code="disk_full") from error


class Context:
    """Reads the tar again for each COPY; holds no content."""

    def __init__(self, path: Path) -> None:
        """Raises Invalid (bad_context)."""
        self._path = path
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if len(self._members) >= MAX_FILES:
                        raise _bad(f"more than {MAX_FILES} files")
                    self._add(member)
        except (tarfile.TarError, ValueError, EOFError, OSError) as error:
            raise _bad(f"not a tar: {error}") from error

    def _add(self, member: tarfile.TarInfo) -> None:
        name = member.name.removeprefix("./").rstrip("/")
        if name in ("", "."):
            return
        if posixpath.normpath(name) != name or name.startswith(("/", "..")) or "\0" in name:
            raise _bad(f"a file named {name[:200]!r}")
        if not (member.isreg() or member.isdir() or member.issym()):
            raise _bad(f"{name[:200]!r} is neither a file, a directory nor a symbolic link")
        self._members[name] = member

    def read(self, name: str, most: int) -> bytes:
        """Raises Invalid (bad_context)."""
        member = self._members.get(name)
        if member is None or not member.isreg() or member.size > most:
            raise _bad(f"it has no usable {name}")
        with tarfile.open(self._path, "r:") as archive:
            file = archive.extractfile(member)
            assert file is not None
            return file.read()

    def layer(
        self, sources: Sequence[str], target: str, *, uid: int, gid: int, to: Path, mode: int | None = None
    ) -> Layer:
        """`target` is absolute; with a slash at its end, or with several sources, it is a directory.

        A directory's content is copied, not itself, as in a Dockerfile. `mode` is for all; directories that may be read
        may be entered too. Raises Invalid (no_such_source).
        """
        chosen = self._chosen(sources, target)
        with tarfile.open(self._path, "r:") as archive, tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as out:
            for name, member in sorted(chosen.items()):
                info = tarfile.TarInfo(name.lstrip("/"))
                info.type, info.mode, info.uid, info.gid = member.type, _mode(member, mode), uid, gid
                info.linkname = member.linkname if member.issym() else ""
                if member.isreg():
                    info.type, info.size = tarfile.REGTYPE, member.size
                    out.addfile(info, archive.extractfile(member))
                else:
                    out.addfile(info, io.BytesIO())
        with to.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        names = tuple(name for name, member in sorted(chosen.items()) if not member.isdir())
        return Layer(to, f"sha256:{digest}", names)

    def fills_directory(self, sources: Sequence[str], target: str) -> bool:
        """Whether the target is a directory that these are put into."""
        names = [posixpath.normpath("/" + source).lstrip("/") for source in sources]
        members = [self._members.get(name) for name in names]
        return target.endswith("/") or len(names) > 1 or any(each is None or each.isdir() for each in members)

    def _chosen(self, sources: Sequence[str], target: str) -> dict[str, tarfile.TarInfo]:
        is_directory = target.endswith("/") or len(sources) > 1
        target = posixpath.normpath(target)
        chosen: dict[str, tarfile.TarInfo] = {}
        for source in sources:
            name = posixpath.normpath("/" + source).lstrip("/")  # none leads out of the context
            member = self._members.get(name)
            below = [(n, m) for n, m in self._members.items() if not name or n.startswith(name + "/")]
            if member is not None and not member.isdir():
                place = posixpath.join(target, posixpath.basename(name)) if is_directory else target
                chosen[place] = member
            elif member is not None or below or not name:
                chosen |= {posixpath.join(target, n[len(name) :].lstrip("/")): m for n, m in below}
            else:
                raise Invalid(f"the context has no {source[:200]!r}", code="no_such_source")
        return chosen


def _mode(member: tarfile.TarInfo, wanted: int | None) -> int:
    if wanted is None or member.issym():
        return member.mode & 0o777
    return wanted | (wanted & 0o444) >> 2 if member.isdir() else wanted


def _bad(why: str) -> Invalid:
    return Invalid(f"the files of the build cannot be used: {why[:300]}", code="bad_context")
