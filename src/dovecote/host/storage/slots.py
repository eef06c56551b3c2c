"""All logs of a store as they lie there, for whoever looks after the whole store; of an owner's own see `log`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from dovecote.errors import NotFound
from dovecote.host.storage.bucket import Bucket

SLOT = re.compile(r"logs/([A-Za-z0-9_-]{1,200})/([0-9]{12})")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Named:
    """What one slot names, of whatever kind it is: a later version may have kinds that this one does not know."""

    owner: str
    n: int
    trees: tuple[str, ...]
    fault: str = ""  # why it could not be read
    changes: bytes = b""  # what it carries beside its line, when it is one of changes


def every_slot(bucket: Bucket) -> Iterator[Named]:
    """Owner by owner, in the order of their logs. A slot that is missing between two others is one with a fault."""
    numbers: dict[str, list[int]] = {}
    for stored in bucket.list("logs"):
        if match := SLOT.fullmatch(stored.name):
            numbers.setdefault(match[1], []).append(int(match[2]))
    for owner in sorted(numbers):
        there = set(numbers[owner])
        # Not from 1: the beginning of a log may be deleted one day, what lies between may not.
        for n in range(min(there), max(there) + 1):
            yield _read(bucket, owner, n)


def _read(bucket: Bucket, owner: str, n: int) -> Named:
    try:
        line, _, payload = bucket.get(f"logs/{owner}/{n:012d}").partition(b"\n")
        body = json.loads(line)
        if not isinstance(body, dict) or body.get("n") != n:
            raise ValueError("not a slot of this number")
        is_changes = body.get("kind") == "changes"
        named = [body.get(field) or "" for field in ("tree", "template")]
        if not all(isinstance(each, str) and (not each or _DIGEST.fullmatch(each)) for each in named):
            raise ValueError("not the digest of a tree")
    except NotFound:
        return Named(owner, n, (), "it is missing")
    except ValueError as error:
        return Named(owner, n, (), f"it cannot be read: {error}")
    return Named(
        owner,
        n,
        tuple(dict.fromkeys(each for each in named if each)),
        "it says that it carries changes and does not" if is_changes and not payload else "",
        payload if is_changes else b"",
    )
