"""What of a directory is sent with a function: all but `.git` and what `.dovecoteignore` names."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

NAME = ".dovecoteignore"
ALWAYS = (".git",)
LONGEST = 1 << 16


def pack(directory: Path, file: IO[bytes]) -> int:
    """Writes a tar of what is sent and goes back to its begin; answers its bytes. Sockets and devices are left out."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in _kept(directory, directory, Ignored.of(directory)):
            info = archive.gettarinfo(path, str(path.relative_to(directory)))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            if info.isreg() or info.islnk():
                info.type, info.linkname = tarfile.REGTYPE, ""
                info.size = path.stat().st_size
                with path.open("rb") as content:
                    archive.addfile(info, content)
            elif info.isdir() or info.issym():
                archive.addfile(info)
    size = file.tell()
    file.seek(0)
    return size


def _kept(top: Path, directory: Path, ignored: Ignored) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        is_directory = path.is_dir() and not path.is_symlink()
        if ignored.has(path.relative_to(top).as_posix(), is_directory=is_directory):
            continue
        yield path
        if is_directory:
            yield from _kept(top, path, ignored)


class Ignored:
    """Lines of a `.gitignore`: later ones win, `!` takes back, a slash at the end means directories."""

    def __init__(self, lines: list[str]) -> None:
        self._rules: list[tuple[re.Pattern[str], bool, bool]] = []
        for line in lines:
            text = line.rstrip()
            if not text or text.startswith("#"):
                continue
            takes_back, text = text.startswith("!"), text.removeprefix("!")
            only_directories, text = text.endswith("/"), text.rstrip("/")
            if text:
                self._rules.append((re.compile(_expression(text), re.DOTALL), takes_back, only_directories))

    @classmethod
    def of(cls, directory: Path) -> Ignored:
        path = directory / NAME
        return cls(path.read_text("utf-8")[:LONGEST].splitlines() if path.is_file() else [])

    def has(self, name: str, *, is_directory: bool) -> bool:
        """Of a name whose directories are all kept."""
        if name in ALWAYS:
            return True
        found = False
        for pattern, takes_back, only_directories in self._rules:
            if (is_directory or not only_directories) and pattern.fullmatch(name):
                found = not takes_back
        return found


def _expression(pattern: str) -> str:
    """With a slash in it a pattern begins at the top, else it is a name anywhere."""
    is_anchored = "/" in pattern
    parts = []
    for part in pattern.lstrip("/").split("/"):
        if part == "**":
            parts.append("(?:[^/]+/)*")
        else:
            parts.append("".join(_piece(piece) for piece in re.findall(r"\*+|\?|\[[^\]/]+\]|\\.|.", part)) + "/")
    expression = "".join(parts).removesuffix("/")
    if expression.endswith("(?:[^/]+/)*"):
        expression = expression.removesuffix("(?:[^/]+/)*") + ".+"
    return expression if is_anchored else "(?:.*/)?" + expression


def _piece(piece: str) -> str:
    if piece.startswith("*"):
        return "[^/]*"
    if piece == "?":
        return "[^/]"
    if piece.startswith("[") and len(piece) > 2:
        inner = piece[1:-1]
        return (
            "[^/" + re.escape(inner[1:]).replace(r"\-", "-") + "]"
            if inner[0] in "!^" and inner[1:]
            else ("[" + re.escape(inner).replace(r"\-", "-") + "]")
        )
    return re.escape(piece[1:] if piece.startswith("\\") and len(piece) > 1 else piece)
