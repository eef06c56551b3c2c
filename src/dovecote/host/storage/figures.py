"""How much a store holds, and how much of it is shared. Only reads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from dovecote.errors import Invalid, StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.manifest import Part
from dovecote.host.storage.slots import every_slot
from dovecote.host.storage.stored import read_part, read_root

KINDS = ("packs", "locations", "manifests", "times", "trees", "logs")  # folders of a store


@dataclass
class Amount:
    count: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.bytes += size


@dataclass
class Figures:
    """`kinds` are what the store holds. The others count files before compression, of all trees that are named."""

    kinds: dict[str, Amount] = field(default_factory=dict)
    trees: int = 0
    damaged: int = 0  # trees that could not be read and are counted nowhere
    referenced_bytes: int = 0  # each tree by itself, as its users would count it
    unique_bytes: int = 0  # the same content once

    @property
    def ratio(self) -> float:
        """Bytes of files for each byte of distinct content; 1.0 when nothing is shared."""
        return self.referenced_bytes / self.unique_bytes if self.unique_bytes else 1.0


def store_figures(bucket: Bucket, trees: Iterable[str]) -> Figures:
    """Of a store whose records name `trees`; its logs are read. Raises StorageFailed (store_unreachable)."""
    figures = Figures()
    for kind in KINDS:
        amount = figures.kinds[kind] = Amount()
        for stored in bucket.list(kind):
            amount.add(stored.size)
    waiting = list(dict.fromkeys([*trees, *(tree for slot in every_slot(bucket) for tree in slot.trees)]))
    known = set(waiting)
    parts: set[Part] = set()
    contents: set[bytes] = set()
    for digest in waiting:
        try:
            root = read_root(bucket, digest)
            for part in root.parts:
                if part in parts:
                    continue
                for entry in read_part(bucket, part):
                    if entry.digest and entry.digest not in contents:
                        contents.add(entry.digest)
                        figures.unique_bytes += entry.size
                parts.add(part)
        except (StorageFailed, Invalid) as error:
            if error.code not in ("corrupt", "malformed_id"):
                raise
            figures.damaged += 1
            continue
        figures.trees += 1
        figures.referenced_bytes += root.total_bytes
        template = root.template.hex()
        if template and template not in known:
            known.add(template)
            waiting.append(template)
    return figures


def cache_amount(directory: Path) -> Amount:
    """Files below it and the room that they take on the disk. What goes away meanwhile is left out."""
    amount = Amount()
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                amount.add(os.lstat(f"{folder}/{name}").st_blocks * 512)
            except FileNotFoundError:
                continue
    return amount
