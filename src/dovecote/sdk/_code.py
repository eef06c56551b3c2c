"""What executions of code give back."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

TABLE = "application/vnd.dovecote.table+json"
CHART = "application/vnd.dovecote.chart+json"


@dataclass(frozen=True)
class ContextView:
    """`number` is that of the command that it is."""

    id: str
    language: str
    cwd: str
    user: str
    is_default: bool
    number: int
    started_at: datetime


@dataclass(frozen=True)
class Accepted:
    """`execution` finds it again with `follow`."""

    execution: str
    context: str


@dataclass(frozen=True)
class Began:
    """Its turn has come."""


@dataclass(frozen=True)
class Said:
    stream: str
    text: str


@dataclass(frozen=True)
class Result:
    """Something shown, by MIME type. `is_main` marks the value of the last expression."""

    data: dict[str, Any]
    is_main: bool = False
    omitted: list[str] = field(default_factory=list)  # what was too large

    @property
    def text(self) -> str | None:
        return self.data.get("text/plain")

    @property
    def html(self) -> str | None:
        return self.data.get("text/html")

    @property
    def markdown(self) -> str | None:
        return self.data.get("text/markdown")

    @property
    def latex(self) -> str | None:
        return self.data.get("text/latex")

    @property
    def svg(self) -> str | None:
        return self.data.get("image/svg+xml")

    @property
    def json(self) -> Any:
        return self.data.get("application/json")

    @property
    def png(self) -> bytes | None:
        return self._bytes("image/png")

    @property
    def jpeg(self) -> bytes | None:
        return self._bytes("image/jpeg")

    @property
    def pdf(self) -> bytes | None:
        return self._bytes("application/pdf")

    @property
    def table(self) -> dict[str, Any] | None:
        """`columns` with names and types, `index`, `rows`, `total_rows`, `total_columns`."""
        return self.data.get(TABLE)

    @property
    def chart(self) -> dict[str, Any] | None:
        """What a figure shows: `type` line, scatter, bar, pie, box_and_whisker or superchart, `title`, `elements`."""
        return self.data.get(CHART)

    def _bytes(self, mime: str) -> bytes | None:
        return base64.b64decode(self.data[mime]) if mime in self.data else None


@dataclass(frozen=True)
class Fault:
    """An error of the code, or of what runs it: KernelDied, KernelKilled, ContextDied."""

    name: str
    value: str
    traceback: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Truncated:
    """From here on output is missing."""


@dataclass(frozen=True)
class Ended:
    """`status` is ok, error, interrupted, timed_out or died."""

    status: str
    count: int | None
    dropped_bytes: int = 0


CodeEvent = Accepted | Began | Said | Result | Fault | Truncated | Ended

CODE_EVENTS: dict[str, type[CodeEvent]] = {
    "accepted": Accepted,
    "began": Began,
    "output": Said,
    "result": Result,
    "fault": Fault,
    "truncated": Truncated,
    "ended": Ended,
}


@dataclass
class Execution:
    """What code did. `text` is the value of its last expression."""

    id: str = ""
    context_id: str = ""
    stdout: str = ""
    stderr: str = ""
    results: list[Result] = field(default_factory=list)
    fault: Fault | None = None
    status: str = "lost"  # until its end was heard
    count: int | None = None
    is_truncated: bool = False

    @property
    def is_ok(self) -> bool:
        return self.status == "ok"

    @property
    def text(self) -> str | None:
        return next((result.text for result in self.results if result.is_main), None)

    def add(self, event: CodeEvent) -> None:
        if isinstance(event, Accepted):
            self.id, self.context_id = event.execution, event.context
        elif isinstance(event, Said):
            if event.stream == "stdout":
                self.stdout += event.text
            else:
                self.stderr += event.text
        elif isinstance(event, Result):
            self.results.append(event)
        elif isinstance(event, Fault):
            self.fault = event
        elif isinstance(event, Truncated):
            self.is_truncated = True
        elif isinstance(event, Ended):
            self.status, self.count = event.status, event.count
