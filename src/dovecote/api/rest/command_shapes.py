"""Commands of a session on the wire: one that is known, and how one ended."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, Field


class CommandShape(BaseModel):
    number: int
    pid: int
    is_running: bool
    exit_code: int | None
    signal: int | None
    timed_out: bool
    tag: str
    started_at: datetime
    output_bytes: int = Field(description="What it printed so far.")


class FinishedShape(BaseModel):
    stdout: str
    stderr: str
    exit_code: int | None = Field(description="null when a signal ended it.")
    signal: int | None
    timed_out: bool
    truncated: bool = Field(description="There was more output than `max_output_bytes`.")
