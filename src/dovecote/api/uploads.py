"""Which routes take bodies of any size, or larger ones than JSON needs: each says so itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from re import Pattern

from starlette.routing import compile_path


@dataclass(frozen=True)
class Upload:
    """A route whose body is a stream. `most_bytes` None is what the room behind it takes.

    `hint` is for who sends more.
    """

    method: str
    path: str  # as the route has it: /v1/sessions/{session_id}/files
    most_bytes: int | None = None
    hint: str = ""

    @cached_property
    def _pattern(self) -> Pattern[str]:
        return compile_path(self.path)[0]

    def is_for(self, method: str, path: str) -> bool:
        return method == self.method and self._pattern.match(path) is not None
