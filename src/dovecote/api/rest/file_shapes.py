"""Files of a session on the wire, and what happens to them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field


class FileShape(BaseModel):
    path: str = Field(description="As it was asked for; in a list, below the directory that was listed.")
    kind: Literal["file", "directory", "link", "fifo", "socket", "character", "block", "unknown"]
    size: int
    mode: int
    permissions: str = Field(description="As `ls -l` shows them.")
    uid: int
    gid: int
    owner: str = Field(description="Its user's name inside; the number where there is none.")
    group: str
    modified_at: datetime
    target: str | None = Field(description="Where a link points that was not followed.")
    metadata: dict[str, str] = Field(description="What was noted on it.")


class FileListing(BaseModel):
    items: list[FileShape]
    truncated: bool = Field(description="There was more than `limit`; which of it is here is chance.")


class FileChangeShape(BaseModel):
    type: Literal["watching", "create", "write", "remove", "rename", "chmod", "overflow"]
    path: str = Field(description="Below the watched directory; empty for that itself.")
    target: str | None = Field(description="The new name, of a rename within the directory.")
    is_directory: bool


class FileChanges(BaseModel):
    items: list[FileChangeShape]


class WatcherShape(BaseModel):
    id: str
