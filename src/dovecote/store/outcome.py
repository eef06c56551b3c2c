"""What a statement came to."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import sqlalchemy as sa


class Outcome(NamedTuple):
    rows: list[Any]
    changed: int

    @classmethod
    def of(cls, result: sa.CursorResult[Any]) -> Self:
        return cls(list(result.all()), 0) if result.returns_rows else cls([], result.rowcount)
