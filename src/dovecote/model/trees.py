"""How files are named outside of the store that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Workspace:
    """Which files an instance starts with: a template's tree, and what a session changed in it.

    Digests are blake3 in hex of a tree's manifest. `tree` is a delta over `template`; None is the bare template.
    """

    template: str
    tree: str | None = None


@dataclass(frozen=True)
class Saved:
    """What a checkpoint wrote. `generation` counts the saves of one owner, from 1."""

    tree: str
    generation: int
    files: int
    added_bytes: int  # to the store, compressed
    total_bytes: int  # bytes of all files in the delta, as a user would count them


@dataclass(frozen=True)
class Hibernated:
    """Files and memory of one moment. `files` is a tree with all files, what rules leave out too; `memory` the digest
    of a tree that a runtime reads."""

    files: Saved
    memory: str


@dataclass(frozen=True)
class Inside:
    """What a template is like for those who run in it: whom commands run as, where, with which variables."""

    user: str
    home: str
    has_sudo: bool  # or anything else that a setuid program may do
    env: dict[str, str]
    directory: str = ""  # where commands start, if not in the home

    @property
    def cwd(self) -> str:
        return self.directory or self.home


@dataclass(frozen=True)
class Template:
    """What an instance starts from, by name. `digest` pins its files."""

    name: str
    digest: str
    inside: Inside


@dataclass(frozen=True)
class Change:
    """How one path differs: added, removed, type, content or attributes. Sizes are None where it is not there."""

    path: str
    what: str
    old_bytes: int | None
    new_bytes: int | None


class LagState(StrEnum):
    """Whether the store has a session's files as they are."""

    SAVED = "saved"
    PENDING = "pending"  # written to since the last checkpoint; the next one is due
    FAILING = "failing"  # the last checkpoint failed; it is tried again, work goes on
    ON_HOST = "on_host"  # without an instance; the newest files are on its host only
    DAMAGED = "damaged"  # what was saved fails verification


@dataclass(frozen=True)
class Lag:
    """How far the store is behind a session's files. Times in seconds.

    `saved_ago` is None when this host has not saved them since it started. `behind` is the age of the oldest change
    that is not saved. `pending` are files and directories that were written to since the last checkpoint; None where
    nobody has counted them: there are too many, or none of it was ever saved.
    """

    state: LagState
    saved_ago: float | None = None
    behind: float = 0.0
    pending: int | None = 0
    recovery_point: float | None = None  # None without an instance
    error_code: str = ""


@dataclass(frozen=True)
class FileDiff:
    """How one file differs: a unified diff, empty when it does not. Sizes are None where it is not there.

    `is_truncated`: there is more than is told; of a binary or a large file nothing is.
    """

    path: str
    old_bytes: int | None
    new_bytes: int | None
    text: str = ""
    is_binary: bool = False
    is_truncated: bool = False
