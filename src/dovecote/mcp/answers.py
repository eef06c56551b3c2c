"""What the tools answer: their structured results, with a schema that clients are shown."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from dovecote.sdk import AsyncSession, Snapshot


class Sandbox(BaseModel):
    id: str = Field(description="The handle: give it to the other tools as `sandbox`.")
    key: str
    state: str = Field(description="ready, frozen, parked, ...: the next use wakes it, whichever it is; or ended.")
    created_at: datetime
    is_paused: bool = Field(description="Somebody stopped it where it is, until its next use.")
    timeout_at: datetime | None = Field(description="When it ends, or is paused, by itself.")
    metadata: dict[str, str]
    port_address: str = Field(description="Address of a port that listens on 0.0.0.0; put its number for {port}.")
    server_address: str | None = Field(description="Address of its started server, if it has one.")


class Sandboxes(BaseModel):
    sandboxes: list[Sandbox]
    left_out: int = Field(description="More that match and were left out.")


class Deleted(BaseModel):
    id: str


class SnapshotTaken(BaseModel):
    id: str = Field(description="Give it to fork_sandbox.")
    sandbox: str
    label: str
    files: int
    total_bytes: int
    created_at: datetime


class Ran(BaseModel):
    """A command that has ended, or goes on in the background."""

    is_running: bool
    exit_code: int | None = Field(description="Null while it runs, or when a signal ended it.")
    signal: int | None
    timed_out: bool = Field(description="It was killed: its time was over.")
    stdout: str
    stderr: str
    left_out: int = Field(description="Characters of output that a marker in the text stands for.")
    number: int | None = Field(description="Of a background command, for command_output and stop_command.")


class Printed(BaseModel):
    """Output of a background command from an offset on."""

    number: int
    is_running: bool
    exit_code: int | None
    signal: int | None
    timed_out: bool
    stdout: str
    stderr: str
    dropped_bytes: int = Field(description="Output that was written over before it was read.")
    next_offset: int = Field(description="Read on from here.")
    has_more: bool = Field(description="There is more output already.")


class Running(BaseModel):
    number: int
    is_running: bool
    exit_code: int | None
    signal: int | None
    timed_out: bool
    started_at: datetime
    output_bytes: int
    tag: str


class Commands(BaseModel):
    commands: list[Running]


class Signalled(BaseModel):
    number: int
    signal: str


class Entered(BaseModel):
    number: int
    bytes: int
    is_closed: bool


class Shown(BaseModel):
    """Something that code showed, or the value of its last expression (`is_main`)."""

    is_main: bool
    data: dict[str, Any] = Field(description="By MIME type.")
    pictures: int = Field(description="So many of the images that come with the answer, in their order.")
    left_out: list[str] = Field(description="MIME types of what was too large.")


class CodeRan(BaseModel):
    context: str
    status: str = Field(description="ok, error, interrupted, timed_out or died.")
    stdout: str
    stderr: str
    left_out: int = Field(description="Characters of output that a marker in the text stands for.")
    results: list[Shown]
    error: str | None = Field(description="The traceback.")


class CodeContext(BaseModel):
    context: str = Field(description="Give it to run_code.")
    language: str


class Content(BaseModel):
    path: str
    content: str
    encoding: str
    size: int = Field(description="Bytes of the whole file.")
    next_offset: int | None = Field(description="Read on from here; null at the end of the file.")


class Written(BaseModel):
    path: str
    bytes: int


class Entry(BaseModel):
    path: str
    kind: str
    size: int
    mode: str
    uid: int
    gid: int
    modified_at: datetime
    target: str | None = Field(description="Of a link.")


class Entries(BaseModel):
    entries: list[Entry]
    left_out: int = Field(description="Entries beyond what was asked for; ask for a directory further down.")


class Removed(BaseModel):
    path: str


class OpenPort(BaseModel):
    port: int
    address: str
    is_reachable: bool
    note: str


class Ports(BaseModel):
    ports: list[OpenPort]


class Published(BaseModel):
    name: str
    address: str


def sandbox_of(session: AsyncSession) -> Sandbox:
    view = session.view
    return Sandbox(
        id=view.id,
        key=view.key,
        state=view.state,
        created_at=view.created_at,
        is_paused=view.is_paused,
        timeout_at=view.timeout_at,
        metadata=view.metadata,
        port_address=view.port_address,
        server_address=view.address,
    )


def snapshot_of(taken: Snapshot) -> SnapshotTaken:
    return SnapshotTaken(
        id=taken.id,
        sandbox=taken.session_id,
        label=taken.label,
        files=taken.files,
        total_bytes=taken.total_bytes,
        created_at=taken.created_at,
    )
