"""What the client is told of files in a session."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True)
class File:
    path: str
    kind: str
    size: int
    mode: int
    uid: int
    gid: int
    modified_at: datetime
    target: str | None
    owner: str = ""
    group: str = ""
    permissions: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


class Listing(list[File]):
    """Files by path. With `truncated` there were more than were asked for, and which of them are here is chance."""

    def __init__(self, files: Iterable[File] = (), *, truncated: bool = False) -> None:
        super().__init__(files)
        self.truncated = truncated


@dataclass(frozen=True)
class FileChange:
    """`type` is watching, create, write, remove, rename, chmod or overflow: something was too much to tell.

    Paths are below the watched directory, which is empty itself. A rename within it has its new name as `target`.
    """

    type: str
    path: str
    target: str | None
    is_directory: bool
