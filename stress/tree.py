"""What the files of a session must be after each step. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from random import Random
from typing import Any

Step = tuple[Any, ...]  # the name of what is done, then its arguments; JSON
Seen = list[Any]  # kind, mode, uid, gid, size, sha256, target, xattrs, names of the same file, mtime in ns

NOTHING_SEEN: Mapping[str, Seen] = {}


@dataclass(eq=False)
class Node:
    """A file, whatever its kind and however many names it has. `mtime_ns` None: whatever it is."""

    kind: str
    mode: int
    uid: int = 0
    gid: int = 0
    content: bytes = b""
    target: str = ""
    mtime_ns: int | None = None
    xattrs: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    digest: str = ""

    def write(self, content: bytes) -> None:
        self.content, self.digest, self.mtime_ns = content, "", None

    def shape(self) -> Seen:
        """All that a look shows of it but the time."""
        is_file = self.kind == "file"
        if is_file and not self.digest:
            self.digest = sha256(self.content).hexdigest()
        return [
            self.kind,
            self.mode,
            self.uid,
            self.gid,
            len(self.content) if is_file else 0,
            self.digest if is_file else "",
            self.target,
            dict(sorted(self.xattrs.items())),
            sorted(self.names) if len(self.names) > 1 else [],
        ]


def piece(seed: int, size: int) -> bytes:
    """Bytes that nobody else has; the program inside makes the same."""
    return Random(seed).randbytes(size)


class Tree:
    """Names and what they stand for. `apply` raises KeyError for a step that makes no sense here."""

    def __init__(self, nodes: Mapping[str, Node] = {}) -> None:
        self.nodes: dict[str, Node] = dict(nodes)

    def copy(self) -> Tree:
        twins: dict[int, Node] = {}
        for node in self.nodes.values():
            twins[id(node)] = replace(node, xattrs=dict(node.xattrs), names=set(node.names))
        return Tree({name: twins[id(node)] for name, node in self.nodes.items()})

    def add(self, path: str, node: Node) -> None:
        node.names.add(path)
        self.nodes[path] = node

    def below(self, path: str) -> list[str]:
        return [name for name in self.nodes if name.startswith(path + "/")]

    def apply(self, step: Step) -> set[str]:
        """Does it, and answers the names that it touched."""
        act: Callable[..., set[str]] = getattr(self, f"_{step[0]}")
        return act(*step[1:])

    def differs(self, path: str, seen: Mapping[str, Seen]) -> bool:
        node, there = self.nodes.get(path), seen.get(path)
        if node is None or there is None:
            return (node is None) != (there is None)
        return node.shape() != there[:-1] or (node.mtime_ns is not None and node.mtime_ns != there[-1])

    # -- steps

    def _parent(self, path: str) -> set[str]:
        parent = path.rpartition("/")[0]
        if parent in self.nodes:
            self.nodes[parent].mtime_ns = None
            return {parent}
        return set()

    def _new(self, path: str, node: Node) -> set[str]:
        self.add(path, node)
        return self._parent(path) | {path}

    def _drop(self, path: str) -> set[str]:
        node = self.nodes.pop(path)
        node.names.discard(path)
        return {path, *node.names}

    def _create(self, path: str, mode: int) -> set[str]:
        return self._new(path, Node("file", mode))

    def _mkdir(self, path: str, mode: int) -> set[str]:
        return self._new(path, Node("dir", mode))

    def _symlink(self, path: str, target: str) -> set[str]:
        return self._new(path, Node("symlink", 0o777, target=target))

    def _fifo(self, path: str, mode: int) -> set[str]:
        return self._new(path, Node("fifo", mode))

    def _link(self, source: str, path: str) -> set[str]:
        node = self.nodes[source]
        return self._new(path, node) | node.names

    def _pwrite(self, path: str, offset: int, seed: int, size: int) -> set[str]:
        node = self.nodes[path]
        before = node.content.ljust(offset, b"\0")
        node.write(before[:offset] + piece(seed, size) + before[offset + size :])
        return set(node.names)

    def _truncate(self, path: str, size: int) -> set[str]:
        node = self.nodes[path]
        node.write(node.content[:size].ljust(size, b"\0"))
        return set(node.names)

    def _store(self, path: str, offset: int, value: int) -> set[str]:
        """Eight bytes through a shared mapping."""
        node = self.nodes[path]
        node.write(node.content[:offset] + value.to_bytes(8, "little") + node.content[offset + 8 :])
        return set(node.names)

    def _sync(self, path: str) -> set[str]:
        self.nodes[path]
        return set()

    def _unlink(self, path: str) -> set[str]:
        return self._drop(path) | self._parent(path)

    _rmdir = _unlink

    def _rename(self, source: str, path: str) -> set[str]:
        touched = self._parent(source) | self._parent(path)
        if path in self.nodes:
            touched |= self._drop(path)
        return touched | self._move([(source, path)])

    def _exchange(self, one: str, other: str) -> set[str]:
        return self._parent(one) | self._parent(other) | self._move([(one, other), (other, one)])

    def _move(self, pairs: Iterable[tuple[str, str]]) -> set[str]:
        names = [(name, to + name[len(of) :]) for of, to in pairs for name in (of, *self.below(of))]
        nodes = [self.nodes.pop(old) for old, _ in names]
        for (old, _), node in zip(names, nodes, strict=True):
            node.names.discard(old)
        for (_, new), node in zip(names, nodes, strict=True):
            self.add(new, node)
        return {name for pair in names for name in pair}.union(*(node.names for node in nodes))

    def _chmod(self, path: str, mode: int) -> set[str]:
        self.nodes[path].mode = mode
        return set(self.nodes[path].names)

    def _chown(self, path: str, uid: int, gid: int) -> set[str]:
        node = self.nodes[path]
        node.uid, node.gid = uid, gid
        return set(node.names)

    def _xattr(self, path: str, name: str, value: str) -> set[str]:
        self.nodes[path].xattrs[name] = value
        return set(self.nodes[path].names)

    def _unxattr(self, path: str, name: str) -> set[str]:
        del self.nodes[path].xattrs[name]
        return set(self.nodes[path].names)

    def _utime(self, path: str, mtime_ns: int) -> set[str]:
        self.nodes[path].mtime_ns = mtime_ns
        return set(self.nodes[path].names)

    def _retire(self, path: str) -> set[str]:
        """Out of sight with all that is in it, if it is there."""
        touched: set[str] = set()
        for name in [path, *self.below(path)]:
            if name in self.nodes:
                touched |= self._drop(name)
        return touched | self._parent(path)

    def _sqlite(self, database: str, round: int, number: int) -> set[str]:
        return set()

    def _npm(self, project: str) -> set[str]:
        return set()


def differences(tree: Tree, seen: Mapping[str, Seen], paths: Iterable[str] | None = None) -> set[str]:
    """Names where the tree and what was seen are not the same."""
    among = (tree.nodes.keys() | seen.keys()) if paths is None else paths
    return {path for path in among if tree.differs(path, seen)}


def told(tree: Tree, seen: Mapping[str, Seen], path: str) -> str:
    """For a person: how one name differs."""
    node, there = tree.nodes.get(path), seen.get(path)
    if node is None:
        return f"{path!r} is there and should not be: {there}"
    if there is None:
        return f"{path!r} is missing: {node.shape()}"
    return f"{path!r} is {there} where {[*node.shape(), node.mtime_ns]} was written"
