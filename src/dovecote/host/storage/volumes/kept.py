"""Limits of paths, written down beside the volumes: from inside a directory can be removed, its limit cannot."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from dovecote.errors import NotFound, StorageFailed
from dovecote.model.volumes import parents


@dataclass(frozen=True)
class KeptLimit:
    """`inode` is the directory that it was set on, where a driver sets it on one; 0 elsewhere."""

    path: str
    max_bytes: int
    inode: int = 0


class KeptLimits:
    """A small file each, named by a digest: a path may be longer than a name. Only root gets there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, volume: str, limit: KeptLimit) -> None:
        with self.prepared(volume, limit) as keep:
            keep()

    @contextlib.contextmanager
    def prepared(self, volume: str, limit: KeptLimit) -> Iterator[Callable[[], object]]:
        """It is on the disk, and takes little time to be kept by what this yields; without that it is as it was."""
        file = self._file(volume, limit.path)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
        try:
            with open(partial, "x", encoding="ascii") as written:
                json.dump(asdict(limit), written)
                written.flush()
                os.fsync(written.fileno())  # or a power cut could leave its name without its content
            yield lambda: partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    def find(self, volume: str, path: str) -> KeptLimit | None:
        """Raises StorageFailed (corrupt)."""
        try:
            text = self._file(volume, path).read_bytes()
        except FileNotFoundError:
            return None
        try:
            return KeptLimit(**json.loads(text))
        except (ValueError, TypeError) as error:
            hint = "set the limit again"
            raise StorageFailed(f"the limit of {path!r} cannot be read", code="corrupt", hint=hint) from error

    def get(self, volume: str, path: str) -> KeptLimit:
        """Raises NotFound (no_such_limit)."""
        found = self.find(volume, path)
        if found is None:
            raise NotFound(f"{path!r} of volume {volume} has no limit", code="no_such_limit")
        return found

    def on_the_way(self, volume: str, path: str) -> dict[str, KeptLimit]:
        """Those of the path itself and of all above it."""
        if not os.path.isdir(self._directory / volume):
            return {}
        found = ((each, self.find(volume, each)) for each in (*parents(path), path))
        return {each: limit for each, limit in found if limit is not None}

    def forget(self, volume: str, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file(volume, path).unlink()

    def forget_all(self, volume: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory / volume)

    def _file(self, volume: str, path: str) -> Path:
        return self._directory / volume / blake2b(path.encode(), digest_size=20).hexdigest()
