"""What a mount names: a volume, a path in it, and where it shows inside an instance."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from dovecote.errors import Invalid

MOST_SEGMENTS = 16
MOST_MOUNTS = 32
MOST_ID = 65535
MIN_VOLUME_BYTES = 1 << 20
MOST_VOLUME_BYTES = 1 << 50
BUCKET = "@"  # begins what a mount names when it is a prefix of a bucket: `@datasets`
RESERVED = frozenset({"proc", "dev", "sys", "run"})

_SEGMENT = re.compile(r"[A-Za-z0-9_.@:-]{1,200}")


@dataclass(frozen=True)
class Mount:
    """`path` is "" for the whole volume, which may be a bucket's prefix (`@name`), read-only then.

    `uid` and `gid` are container ids: they own the directory that is mounted. `max_bytes` is asked for with a mount and
    set for its path in the volume, where it stays; a mount that is kept has none.
    """

    volume: str
    at: str
    path: str = ""
    read_only: bool = False
    uid: int = 1000
    gid: int = 1000
    max_bytes: int | None = None


def parse_mount(mount: Mount) -> Mount:
    """The mount in its one way of writing. Raises Invalid (malformed_path)."""
    for number in (mount.uid, mount.gid):
        if not 0 <= number <= MOST_ID:
            raise Invalid(f"not an id inside an instance: {number}", hint=f"0 to {MOST_ID}")
    return replace(mount, path=parse_path(mount.path), at=parse_at(mount.at))


def parse_path(text: str) -> str:
    """A path inside a volume: `user/session/task`."""
    segments = text.split("/") if text else []
    _check(segments, text)
    return "/".join(segments)


def parse_at(text: str) -> str:
    """Where a mount shows inside: absolute, not the root, and not in what the system itself mounts."""
    segments = text[1:].split("/")
    if not text.startswith("/") or segments[0] in RESERVED:
        raise _malformed(text, "an absolute path, not in /proc, /dev, /sys or /run")
    _check(segments, text)
    return text


def parents(path: str) -> list[str]:
    """All paths above one in a volume, the shortest first: of `a/b/c` it is `a` and `a/b`."""
    segments = path.split("/")
    return ["/".join(segments[:count]) for count in range(1, len(segments))]


def touches(one: str, other: str) -> bool:
    """Whether a path in a volume is the other, or lies above or below it; "" is the whole volume."""
    return not one or not other or covers(one, other)


def covers(one: str, other: str) -> bool:
    """Whether one mount point is the other or lies above or below it: such mounts would hide each other."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")


def apart(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    """Themselves; raises Invalid where they are too many or one would hide another."""
    if len(mounts) > MOST_MOUNTS:
        raise Invalid(f"at most {MOST_MOUNTS} mounts", code="too_many_mounts")
    for number, mount in enumerate(mounts):
        if any(covers(mount.at, other.at) for other in mounts[:number]):
            raise Invalid(f"two mounts meet at {mount.at}", code="malformed_path", hint="mount them beside each other")
    return mounts


def _check(segments: list[str], text: str) -> None:
    if len(segments) > MOST_SEGMENTS or any(
        not _SEGMENT.fullmatch(segment) or segment in (".", "..") for segment in segments
    ):
        raise _malformed(text, f"at most {MOST_SEGMENTS} segments, each 1 to 200 of A-Z a-z 0-9 _ . @ : -")


def _malformed(text: str, hint: str) -> Invalid:
    return Invalid(f"not a path for a mount: {text[:80]!r}", code="malformed_path", hint=hint)
