"""What hosts need of the store besides what records and logs name: each host keeps a list of its own there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from dovecote.errors import NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.model.ids import random_text

FOLDER = "pins"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def write_pins(bucket: Bucket, host: str, trees: Iterable[str]) -> None:
    """Replaces the host's list. Called more often than once an hour while the host runs."""
    bucket.put(f"{FOLDER}/{host}", json.dumps({"trees": sorted(set(trees))}).encode())


def read_pins(bucket: Bucket) -> set[str] | None:
    """Of all hosts; None when there are none. A host that is down keeps its list: its disks may come back.

    Raises StorageFailed `corrupt`.
    """
    found: set[str] = set()
    hosts = 0
    for stored in bucket.list(FOLDER):
        try:
            trees = json.loads(bucket.get(stored.name))["trees"]
            if not all(isinstance(each, str) and _DIGEST.fullmatch(each) for each in trees):
                raise ValueError("not a digest")
        except NotFound:
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise StorageFailed(f"{stored.name} cannot be read: {error}", code="corrupt") from error
        found.update(trees)
        hosts += 1
    return found if hosts else None


def host_name(data_dir: Path) -> str:
    """Random, and of the data directory: where that goes, the disks go."""
    path = data_dir / "host"
    try:
        name = path.read_text("ascii").strip()
    except FileNotFoundError:
        name = random_text(16)
        part = path.with_suffix(".new")
        part.write_text(name, "ascii")
        part.rename(path)
    if not re.fullmatch(r"[a-z0-9]{16}", name):
        raise StorageFailed(f"{path} cannot be read", code="corrupt", hint="delete it")
    return name
