"""How files are named outside of the store that holds them."""

from __future__ import annotations

from dataclasses import dataclass


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
    new_bytes: int  # bytes added to the store, compressed
    total_bytes: int  # bytes of all files in the delta, as a user would count them


@dataclass(frozen=True)
class Template:
    """What an instance starts from, by name. `digest` pins its files."""

    name: str
    digest: str
    default_user: str
    home: str
    has_sudo: bool
    env: dict[str, str]


@dataclass(frozen=True)
class Change:
    """How one path differs: added, removed, type, content or attributes. Sizes are None where it is not there."""

    path: str
    what: str
    old_bytes: int | None
    new_bytes: int | None
