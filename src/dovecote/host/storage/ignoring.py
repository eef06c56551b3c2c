"""Which files of a session are not saved: its function's rules and its ignore files, as they are in one view of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from dovecote.host.storage import mounts
from dovecote.host.storage.rules import DEFAULT_RULES, Rules
from dovecote.model.patterns import Malformed, Pattern, Selection, parse_pattern
from dovecote.model.rules import SaveRules, kept, left_out

FILE = ".dovecoteignore"
MOST_BYTES = 8 << 10  # of one ignore file; a larger one leaves nothing out
MOST_LINES = 200  # of all of them
MOST_NAMES = 1000  # in the home; with more of them only its own file counts
MOST_PROJECTS = 64  # directories in the home whose files are read, by name


@dataclass(frozen=True)
class Chosen:
    """`digest` names these rules among others; "" where nothing is chosen."""

    patterns: tuple[Pattern, ...] = ()

    @property
    def digest(self) -> str:
        return blake3(repr(self.patterns).encode()).hexdigest()[:32] if self.patterns else ""

    @property
    def rules(self) -> Rules:
        """For one look at a tree."""
        return replace(DEFAULT_RULES, selection=Selection(self.patterns))


def choose(merged: Path, home: str, rules: SaveRules) -> Chosen:
    """From what a session would see in `merged`, which nobody writes to. Follows no link. Blocking."""
    if not home.strip("/"):
        return Chosen()
    found = left_out(rules, home)
    room = MOST_LINES
    for base, lines in _files(merged, home.strip("/")):
        for line in lines[:room]:
            try:
                pattern = parse_pattern(line, base)
            except Malformed:
                continue  # in git it would match nothing
            if pattern is not None:
                found.append(pattern)
        room = max(0, room - len(lines))
    found += kept(rules, home)
    return Chosen(tuple(found)) if any(not pattern.is_negated for pattern in found) else Chosen()


def _files(merged: Path, home: str) -> Iterator[tuple[bytes, list[bytes]]]:
    """The home's own first, then those of the directories in it, so that theirs decide."""
    try:
        root = os.open(merged, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        try:
            place = mounts.open_beneath(
                root, home, resolve=mounts.BENEATH | mounts.NO_SYMLINKS, flags=os.O_RDONLY | os.O_DIRECTORY
            )
        except OSError:
            return
        try:
            if lines := _lines(place, FILE):
                yield os.fsencode(home), lines
            for name in _projects(place):
                if lines := _lines(place, f"{name}/{FILE}"):
                    yield os.fsencode(f"{home}/{name}"), lines
        finally:
            os.close(place)
    finally:
        os.close(root)


def _projects(place: int) -> list[str]:
    found: list[str] = []
    with os.scandir(place) as names:
        for count, name in enumerate(names):
            if count >= MOST_NAMES:
                return []
            if name.is_dir(follow_symlinks=False):
                found.append(name.name)
    return sorted(found)[:MOST_PROJECTS]


def _lines(place: int, path: str) -> list[bytes]:
    """Of a plain file that is not too large; nothing of anything else that has its name."""
    try:
        file = mounts.open_beneath(
            place, path, resolve=mounts.BENEATH | mounts.NO_SYMLINKS, flags=os.O_RDONLY | os.O_NONBLOCK
        )
    except OSError:
        return []
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            return []
        return os.read(file, MOST_BYTES).splitlines()
    finally:
        os.close(file)
