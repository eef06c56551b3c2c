"""Makes the tree of an image one that a sandbox can run in, and says what it is like inside. Reads manifests only."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence

from dovecote.errors import Invalid
from dovecote.host.storage import template_base as base
from dovecote.host.storage.manifest import DIRS, MAX_ID, Entry, Kind, normalized
from dovecote.model.trees import Inside

# What every container runtime gives to an image, whatever it brings itself.
FILES = {path: base.FILES[path][1] for path in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf")}
MOUNT_POINTS: Mapping[bytes, int] = {b"dev": 0o755, b"proc": 0o555, b"run": 0o755, b"sys": 0o555}  # emptied
PLACES: Mapping[bytes, int] = {b"etc": 0o755, b"tmp": 0o1777}
MAX_ACCOUNTS = 1 << 20  # bytes of /etc/passwd, as the guest has it
MAX_LINKS = 8
SETUID = 0o6000
_USER = re.compile(r"[^\s:\0]{1,64}(:[^\s:\0]{1,64})?")


def furnished(entries: Sequence[Entry], keep: Callable[[bytes], bytes], *, directory: str) -> list[Entry]:
    """The tree with what sandboxes need: mount points, names and a resolver, and the working directory.

    `keep` stores a content and answers its digest. Raises Invalid (bad_image) where something is in the way.
    """
    tree = {entry.path: entry for entry in entries if entry.path.partition(b"/")[0] not in MOUNT_POINTS}
    for path, mode in MOUNT_POINTS.items():
        tree[path] = Entry(path, Kind.DIR, mode)
    for path, mode in PLACES.items():
        _make_directory(tree, path, mode)
    for name, text in FILES.items():
        path, content = name.encode()[1:], text.encode()
        if path in tree and tree[path].kind in DIRS:
            raise _bad(f"{name} is a directory")
        tree[path] = Entry(path, Kind.FILE, 0o644, size=len(content), digest=keep(content))
    return with_directory(list(tree.values()), directory, owner=(0, 0))


def inside_of(
    entries: Sequence[Entry], read: Callable[[bytes], bytes], *, user: str, directory: str, env: Mapping[str, str]
) -> Inside:
    """Whom commands run as, where, with which variables. `read` gives a content by its digest.

    Raises Invalid (bad_image) for a user that the image does not have.
    """
    tree = {entry.path: entry for entry in entries}
    if user and not _USER.fullmatch(user):
        raise _bad(f"it runs as {user[:100]!r}")
    accounts = _accounts(tree, read)
    name, _, group = (user or "root").partition(":")
    found = next((fields for fields in accounts if name in (fields[0], fields[2])), None)
    if found is None and name == "root":
        name = "0"  # an image without accounts: a number needs none
    elif found is None and not name.isdecimal():
        raise _bad(f"it runs as {name!r}, whom its /etc/passwd does not have")
    home = found[5] if found is not None and _is_directory(tree, found[5]) else "/"
    is_root = name == "0" or (found is not None and found[2] == "0")
    may_rise = any(entry.kind is Kind.FILE and entry.mode & SETUID for entry in entries)
    return Inside(
        user=f"{name}:{group}" if group else name,
        home=home,
        has_sudo=is_root or may_rise,
        env=dict(env),
        directory="" if directory in ("", "/") else posixpath.normpath(directory),
    )


def ids_of(entries: Sequence[Entry], read: Callable[[bytes], bytes], user: str) -> tuple[int, int]:
    """Numbers of a user that `inside_of` has found, and of its group; 0 for a group by a name."""
    name, _, group = user.partition(":")
    accounts = _accounts({entry.path: entry for entry in entries}, read)
    found = next((fields for fields in accounts if name in (fields[0], fields[2])), None)
    numbers = [found[2], found[3]] if found is not None else [name, name]
    if group:
        numbers[1] = group
    uid, gid = (int(number) if number.isdecimal() else 0 for number in numbers)
    return min(uid, MAX_ID), min(gid, MAX_ID)


def with_directory(entries: Sequence[Entry], path: str, *, owner: tuple[int, int]) -> list[Entry]:
    """The same with a directory, and those above it, made where it is missing."""
    tree = {entry.path: entry for entry in entries}
    at = b""
    for part in _parts(path):
        at = at + b"/" + part if at else part
        there = tree.get(at)
        if there is not None and there.kind is Kind.SYMLINK:
            break  # where it leads is for the kernel to say
        _make_directory(tree, at, 0o755, owner)
    return normalized(tree.values())


def _accounts(tree: Mapping[bytes, Entry], read: Callable[[bytes], bytes]) -> list[list[str]]:
    entry = tree.get(_followed(tree, b"etc/passwd"))
    if entry is None or entry.kind is not Kind.FILE or not 0 < entry.size <= MAX_ACCOUNTS:
        return []
    lines = read(entry.digest).decode("utf-8", "replace").splitlines()
    return [fields for line in lines if len(fields := line.split(":")) >= 6]


def _is_directory(tree: Mapping[bytes, Entry], path: str) -> bool:
    if not path.startswith("/") or "\0" in path:
        return False
    entry = tree.get(_followed(tree, b"/".join(_parts(path))))
    return entry is not None and entry.kind in DIRS


def _followed(tree: Mapping[bytes, Entry], path: bytes) -> bytes:
    """Where a name leads when it is a symbolic link itself; links among its directories are not looked at."""
    for _ in range(MAX_LINKS):
        entry = tree.get(path)
        if entry is None or entry.kind is not Kind.SYMLINK:
            break
        path = posixpath.normpath(posixpath.join(b"/" + posixpath.dirname(path), entry.target)).lstrip(b"/")
    return path


def _parts(path: str) -> list[bytes]:
    return [part.encode("utf-8", "surrogateescape") for part in posixpath.normpath("/" + path).split("/") if part]


def _make_directory(tree: dict[bytes, Entry], path: bytes, mode: int, owner: tuple[int, int] = (0, 0)) -> None:
    there = tree.get(path)
    if there is None:
        tree[path] = Entry(path, Kind.DIR, mode, *owner)
    elif there.kind not in DIRS:
        raise _bad(f"/{path.decode(errors='replace')} is not a directory")


def _bad(why: str) -> Invalid:
    return Invalid(f"not an image that can be run here: {why}", code="bad_image", hint="build the image again")
