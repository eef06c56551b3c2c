"""Memory of hibernated instances: the directory that a runtime writes and reads, kept as a tree in the store."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from dovecote.host.storage.disk import disk_errors
from dovecote.host.storage.manifest import Kind
from dovecote.host.storage.trees import Trees


class Memories:
    """Blocking calls. `directory` is for what is on its way, and on the file system of the trees' cache."""

    def __init__(self, trees: Trees, directory: Path) -> None:
        self._trees = trees
        self._directory = directory

    def clear(self) -> None:
        """Drops what was on its way when this host ended. Called before the first use."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def place(self) -> Path:
        """A new, empty directory; the caller drops it."""
        made = self._directory / secrets.token_hex(8)
        with disk_errors("there is no place for the memory of an instance"):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.mkdir(mode=0o700)
        return made

    def drop(self, place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)

    def keep(self, place: Path) -> str:
        """Digest of the tree, whole and durable in the store. Raises StorageFailed."""
        return self._trees.save_directory(place).digest

    def bring(self, digest: str, place: Path) -> None:
        """Its files in a directory, fetched and checked. Raises StorageFailed (corrupt)."""
        with self._trees.contents(digest) as entries, disk_errors("the memory of an instance cannot be brought"):
            for entry in entries:
                if entry.kind is Kind.FILE:
                    to = place / os.fsdecode(entry.path)
                    if entry.size:
                        os.link(self._trees.object_file(entry.digest), to)
                    else:
                        to.touch()
