"""When addresses were released, kept across restarts of ours: one line each in a file of the run directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_MAX_BYTES = 256 << 10


class Releases:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[int, float] | None:
        """Number to time, or None where there is no record. A line cut short by a crash is skipped."""
        try:
            lines = self._path.read_text().splitlines()
        except FileNotFoundError:
            return None
        found = {}
        for line in lines:
            parts = line.split()
            if len(parts) == 3 and parts[2] == ".":
                found[int(parts[0])] = float(parts[1])
        return found

    def write(self, releases: Mapping[int, float]) -> None:
        """Replaces the whole record."""
        fresh = self._path.with_suffix(".new")
        fresh.write_text("".join(_line(index, at) for index, at in releases.items()))
        os.replace(fresh, self._path)

    def append(self, index: int, at: float) -> bool:
        """Adds one; says whether the file has grown so much that it should be written anew."""
        with self._path.open("a") as file:
            file.write(_line(index, at))
            return file.tell() > _MAX_BYTES

    def delete(self) -> None:
        self._path.unlink(missing_ok=True)


def _line(index: int, at: float) -> str:
    return f"{index} {at:.3f} .\n"
