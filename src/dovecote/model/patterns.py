"""Patterns of gitignore, as regular expressions that never look back further than one star."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

LONGEST = 256  # bytes of one pattern
MOST_DOUBLE = 4  # `**` in one pattern
DEEPEST = 128  # directories below each other that patterns are asked about; what is further down goes with them
PATIENCE = 10.0  # seconds of CPU for one look at a tree
_CLASSES: dict[bytes, Callable[[str], bool]] = {
    b"alnum": str.isalnum,
    b"alpha": str.isalpha,
    b"blank": lambda c: c in " \t",
    b"cntrl": lambda c: ord(c) < 32 or ord(c) == 127,
    b"digit": str.isdigit,
    b"graph": lambda c: 32 < ord(c) < 127,
    b"lower": str.islower,
    b"print": lambda c: 32 <= ord(c) < 127,
    b"punct": lambda c: 32 < ord(c) < 127 and not c.isalnum(),
    b"space": str.isspace,
    b"upper": str.isupper,
    b"xdigit": lambda c: c in "0123456789abcdefABCDEF",
}


@dataclass(frozen=True)
class Pattern:
    """One line. `expression` is of a whole path from the root without its first slash."""

    expression: bytes
    is_negated: bool
    is_for_directories: bool


class Malformed(ValueError):
    """A pattern that can match nothing."""


def parse_pattern(line: bytes, base: bytes) -> Pattern | None:
    """A line of an ignore file in the directory `base`; None for one that is empty or a comment. Raises Malformed."""
    line = _stripped(line)
    if not line or line.startswith(b"#"):
        return None
    negated = line.startswith(b"!")
    if negated:
        line = line[1:]
    if len(line) > LONGEST or b"\0" in line:
        raise Malformed(f"a pattern has at most {LONGEST} bytes")
    for_directories = line.endswith(b"/") and not line.endswith(b"\\/")
    line = line[:-1] if for_directories else line
    # Without a slash before its end it is for names at any depth.
    names = line.removeprefix(b"/").split(b"/") if b"/" in line else [b"**", line]
    if any(name in (b"", b".", b"..") for name in names):
        raise Malformed("a pattern that names no path")
    if names.count(b"**") > MOST_DOUBLE:
        raise Malformed(f"a pattern has at most {MOST_DOUBLE} times `**`")
    prefix = re.escape(base + b"/" if base else b"")
    return Pattern(prefix + b"".join(_path(names)), negated, for_directories)


def _stripped(line: bytes) -> bytes:
    line = line.rstrip(b"\r\n")
    bare = line.rstrip(b" ")
    slashes = len(bare) - len(bare.rstrip(b"\\"))
    return bare + b" " if slashes % 2 and bare != line else bare


def _path(names: Sequence[bytes]) -> Iterator[bytes]:
    """Chunks of names between `**`. Each has a fixed number of names, so its first match is as good as any: atomic."""
    chunks: list[list[bytes]] = [[]]
    for name in names:
        if name == b"**":
            chunks.append([])
        else:
            chunks[-1].append(_name(name))
    chunks = [chunks[0], *(chunk for chunk in chunks[1:-1] if chunk), *chunks[-1:]] if len(chunks) > 1 else chunks
    first, *more = chunks
    yield b"/".join(first)
    for chunk in more[:-1]:
        yield (b"/" if first else b"") + rb"(?>(?:[^/]+/)*?" + b"/".join(chunk) + rb"(?=/))"
        first = chunk
    if more:
        yield b"/" if first else b""
        yield rb"(?:[^/]+/)*?" + b"/".join(more[-1]) if more[-1] else rb".+"


def _name(name: bytes) -> bytes:
    """One name. Whatever lies between two stars is taken where it first fits: later places win nothing."""
    pieces: list[list[bytes]] = [[]]
    at = 0
    while at < len(name):
        token = name[at : at + 1]
        if token == b"*":
            pieces.append([])
            at += 1
        elif token == b"[":
            expression, at = _class(name, at + 1)
            pieces[-1].append(expression)
        elif token == b"?":
            pieces[-1].append(rb"[^/]")
            at += 1
        else:
            if token == b"\\":
                at += 1
                token = name[at : at + 1]
                if not token:
                    raise Malformed("a pattern ends with a backslash")
            pieces[-1].append(re.escape(token))
            at += 1
    joined = [b"".join(piece) for piece in pieces]
    if len(joined) == 1:
        return joined[0]
    middle = b"".join(rb"(?>[^/]*?" + piece + rb")" for piece in joined[1:-1] if piece)
    return rb"(?=[^/])" + joined[0] + middle + rb"[^/]*" + joined[-1] + rb"(?=/|\Z)"


def _class(name: bytes, at: int) -> tuple[bytes, int]:
    """What is between brackets, as the bytes that it stands for; and where it ends."""
    negated = name[at : at + 1] in (b"!", b"^")
    at += negated
    chosen: set[int] = set()
    begin = at
    while name[at : at + 1] != b"]" or at == begin:
        if at >= len(name):
            raise Malformed("a bracket that is not closed")
        if name[at : at + 2] == b"[:" and (end := name.find(b":]", at + 2)) != -1:
            is_in = _CLASSES.get(name[at + 2 : end])
            if is_in is None:
                raise Malformed("no such class of characters")
            chosen.update(code for code in range(128) if is_in(chr(code)))
            at = end + 2
            continue
        low, at = _member(name, at)
        high = low
        if name[at : at + 1] == b"-" and name[at + 1 : at + 2] not in (b"]", b""):
            high, at = _member(name, at + 1)
        chosen.update(range(low, high + 1))
    if negated:
        chosen = set(range(256)) - chosen
    chosen.discard(ord("/"))
    if not chosen:
        raise Malformed("brackets that nothing is in")
    return b"[" + b"".join(_ranges(sorted(chosen))) + b"]", at + 1


def _ranges(codes: Sequence[int]) -> Iterator[bytes]:
    begin = 0
    for i in range(1, len(codes) + 1):
        if i == len(codes) or codes[i] != codes[i - 1] + 1:
            yield b"\\x%02x-\\x%02x" % (codes[begin], codes[i - 1])
            begin = i


def _member(name: bytes, at: int) -> tuple[int, int]:
    if name[at : at + 1] == b"\\":
        at += 1
    if at >= len(name):
        raise Malformed("a bracket that is not closed")
    return name[at], at + 1


class TooCostly(Exception):
    """Asking patterns about a tree took more than PATIENCE."""


class Selection:
    """What an ordered list of patterns leaves out; the last that matches decides, as in git.

    What lies in a directory that is left out is left out with it. Remembers directories: use one for one look at a
    tree. Raises TooCostly.
    """

    def __init__(self, patterns: Sequence[Pattern] = (), *, patience: float = PATIENCE) -> None:
        self._groups = _compiled(tuple(patterns))
        self._out: dict[bytes, bool] = {b"": False}
        self._left = patience

    def leaves_out(self, path: bytes, *, is_directory: bool) -> bool:
        if not self._groups or not path:
            return False
        return self.hides(path) or (self._is_out(path) if is_directory else self._says(path, is_directory=False))

    def hides(self, path: bytes) -> bool:
        """`path` lies in a directory that is left out."""
        if not self._groups or b"/" not in path:
            return False
        return self._is_out(path[: path.rindex(b"/")])

    def _is_out(self, directory: bytes) -> bool:
        unknown: list[bytes] = []
        at = b"/".join(directory.split(b"/", DEEPEST)[:DEEPEST])
        while at not in self._out:
            unknown.append(at)
            at = at.rpartition(b"/")[0]
        is_out = self._out[at]
        for path in reversed(unknown):
            is_out = self._out[path] = is_out or self._says(path, is_directory=True)
        return is_out

    def _says(self, path: bytes, *, is_directory: bool) -> bool:
        if path.count(b"/") >= DEEPEST:
            return False
        began = time.thread_time()
        try:
            return self._match(path, is_directory=is_directory)
        finally:
            self._left -= time.thread_time() - began
            if self._left < 0:
                raise TooCostly

    def _match(self, path: bytes, *, is_directory: bool) -> bool:
        for negated, anything, directories in self._groups:
            if (anything and anything.fullmatch(path)) or (
                is_directory and directories and directories.fullmatch(path)
            ):
                return not negated
        return False


_Group = tuple[bool, re.Pattern[bytes] | None, re.Pattern[bytes] | None]


@lru_cache(maxsize=64)
def _compiled(patterns: tuple[Pattern, ...]) -> list[_Group]:
    """The last first; neighbours of one sign are one expression."""
    groups: list[tuple[bool, list[bytes], list[bytes]]] = []
    for pattern in reversed(patterns):
        if not groups or groups[-1][0] != pattern.is_negated:
            groups.append((pattern.is_negated, [], []))
        _, anything, directories = groups[-1]
        (directories if pattern.is_for_directories else anything).append(pattern.expression)
    return [(negated, _any(anything), _any(directories)) for negated, anything, directories in groups]


def _any(expressions: Sequence[bytes]) -> re.Pattern[bytes] | None:
    return re.compile(b"(?s)" + b"|".join(b"(?:%s)" % each for each in expressions)) if expressions else None
