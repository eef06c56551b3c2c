"""Which steps a round does: from a seed and what is there at its beginning, always the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from stress.tree import Node, Step, Tree

HOME = "/home/user"
WORK = f"{HOME}/work"
DATABASES = (f"{HOME}/db/wal.sqlite", f"{HOME}/db/wal-map.sqlite", f"{HOME}/db/journal.sqlite")
PROJECT = f"{HOME}/project"
PAGE = 4096
MOST_BYTES = 64 * PAGE
LONGEST = 1200  # bytes of a directory that gets new names
MOST_BELOW = 40  # names of a directory that is deleted in one go
USERS = (0, 1, 1000, 65534)
NAMES = ("a", "notes.txt", ".hidden", "two words", "line\nbreak", "-rf", "ünïcode", "bad\udcff\udcfe", "#x#", "l" * 255)

Plan = list[tuple[float, Step]]  # seconds of rest ahead of a step, and the step


class Planner:
    """Keeps a tree of its own to know which steps make sense. Only `folder` and `units` of it are touched."""

    def __init__(self, chance: Random, *, round: int, units: Mapping[str, Node]) -> None:
        self._chance = chance
        self._round = round
        self._folder = f"{WORK}/r{round}"
        self._tree = Tree({WORK: Node("dir", 0o755), **units}).copy()
        self._fixed = {WORK, self._folder, *(path for path in units if path.rpartition("/")[0] not in units)}
        self._steps: Plan = []
        self._count = 0
        self._transactions = dict.fromkeys(DATABASES, 0)

    def plan(self, count: int, *, pause: float, npm: bool) -> Plan:
        """At least `count` steps with a mean rest of `pause` seconds."""
        self._pause = pause
        self._do("retire", f"{WORK}/r{self._round - 3}")
        self._do("mkdir", self._folder, 0o755)
        install_at = self._chance.randrange(20, 120) if npm else -1
        acts = [act for act, weight in self._acts() for _ in range(weight)]
        while len(self._steps) < count:
            if 0 <= install_at <= len(self._steps):
                self._do("npm", PROJECT)
                install_at = -1
            self._chance.choice(acts)()
        return self._steps

    def _acts(self) -> list[tuple[Callable[[], None], int]]:
        return [
            (self._write, 8),
            (self._replace, 8),
            (self._append, 6),
            (self._overwrite, 5),
            (self._store, 4),
            (self._hole, 3),
            (self._cut, 2),
            (self._rename, 6),
            (self._rename_folder, 3),
            (self._exchange, 2),
            (self._delete, 5),
            (self._delete_folder, 1),
            (self._chmod, 4),
            (self._chown, 3),
            (self._xattr, 4),
            (self._symlink, 2),
            (self._link, 2),
            (self._fifo, 1),
            (self._utime, 4),
            (self._folders, 3),
            (self._transaction, 10),
        ]

    # -- what is there to choose from

    def _do(self, name: str, *arguments: object) -> None:
        step = (name, *arguments)
        # A rest now and then, so that a kill falls into all kinds of moments and checkpoints come in between.
        rest = self._chance.expovariate(1 / self._pause) if self._pause and self._chance.random() < 0.5 else 0.0
        self._tree.apply(step)
        self._steps.append((min(rest, 20 * self._pause), step))

    def _all(self, kind: str) -> list[str]:
        return [path for path, node in sorted(self._tree.nodes.items()) if node.kind == kind and path != WORK]

    def _file(self) -> str | None:
        found = self._all("file")
        return self._chance.choice(found) if found else None

    def _dir(self) -> str:
        return self._chance.choice(self._all("dir"))

    def _movable_dir(self) -> str | None:
        found = [path for path in self._all("dir") if path not in self._fixed]
        return self._chance.choice(found) if found else None

    def _fresh(self) -> str:
        parent = self._dir()
        if len(parent) > LONGEST:
            parent = self._folder
        self._count += 1
        name = self._chance.choice(NAMES)
        path = f"{parent}/{name}"
        return path if path not in self._tree.nodes else f"{parent}/{name[:200]}{self._count}"

    def _seed(self) -> int:
        return self._chance.randrange(1 << 40)

    # -- what people's programs do

    def _fill(self, path: str, most: int) -> None:
        for page in range(self._chance.randint(1, most)):
            self._do("pwrite", path, page * PAGE, self._seed(), self._chance.choice((PAGE, PAGE, 100, 1)))

    def _write(self) -> None:
        path = self._fresh()
        self._do("create", path, self._chance.choice((0o644, 0o600, 0o755)))
        self._fill(path, 6)
        if self._chance.random() < 0.3:
            self._do("sync", path)

    def _replace(self) -> None:
        """As editors save: a new file, renamed over the old one; many do not sync it."""
        target, path = self._file(), self._fresh()
        self._do("create", path, 0o644)
        self._fill(path, 3)
        if self._chance.random() < 0.3:
            self._do("sync", path)
        if target is not None:
            self._do("rename", path, target)

    def _append(self) -> None:
        path = self._file()
        if path is None:
            return
        size = len(self._tree.nodes[path].content)
        if size < MOST_BYTES:
            # Within one page: what is on two may be on the disk by halves, as POSIX has it.
            self._do("pwrite", path, size, self._seed(), min(self._chance.randint(1, 900), PAGE - size % PAGE))

    def _overwrite(self) -> None:
        path = self._file()
        if path is not None and len(self._tree.nodes[path].content) >= PAGE:
            page = self._chance.randrange(len(self._tree.nodes[path].content) // PAGE)
            self._do("pwrite", path, page * PAGE + self._chance.randrange(PAGE - 64), self._seed(), 64)

    def _store(self) -> None:
        path = self._file()
        if path is None or len(self._tree.nodes[path].content) < 16:
            return
        words = len(self._tree.nodes[path].content) // 8
        for _ in range(self._chance.randint(1, 8)):
            self._do("store", path, 8 * self._chance.randrange(words), self._chance.randrange(1 << 63))

    def _hole(self) -> None:
        path = self._file()
        if path is not None and len(self._tree.nodes[path].content) < MOST_BYTES:
            size = len(self._tree.nodes[path].content) + self._chance.randrange(PAGE, 16 * PAGE)
            self._do("truncate", path, size)
            self._do("pwrite", path, size, self._seed(), min(200, PAGE - size % PAGE))

    def _cut(self) -> None:
        path = self._file()
        if path is not None and self._tree.nodes[path].content:
            self._do("truncate", path, self._chance.randrange(len(self._tree.nodes[path].content)))

    def _rename(self) -> None:
        path = self._file()
        if path is not None:
            self._do("rename", path, self._fresh())

    def _rename_folder(self) -> None:
        path = self._movable_dir()
        if path is None:
            return
        to = self._fresh()
        if not to.startswith(path + "/") and len(to) < 1500:
            self._do("rename", path, to)

    def _exchange(self) -> None:
        one, other = self._file(), self._file()
        if self._chance.random() < 0.3:
            one, other = self._movable_dir(), self._movable_dir()
        if one is None or other is None or one == other:
            return
        nodes = self._tree.nodes
        if nodes[one] is nodes[other] or one.startswith(other + "/") or other.startswith(one + "/"):
            return
        self._do("exchange", one, other)

    def _delete(self) -> None:
        path = self._file()
        if path is not None:
            self._do("unlink", path)

    def _delete_folder(self) -> None:
        path = self._movable_dir()
        if path is None or len(self._tree.below(path)) > MOST_BELOW:
            return
        for name in sorted(self._tree.below(path), reverse=True):
            self._do("rmdir" if self._tree.nodes[name].kind == "dir" else "unlink", name)
        self._do("rmdir", path)

    def _chmod(self) -> None:
        path = self._file() if self._chance.random() < 0.7 else self._dir()
        if path is not None:
            self._do("chmod", path, self._chance.choice((0o600, 0o640, 0o644, 0o755, 0o700, 0o1777)))

    def _chown(self) -> None:
        path = self._file() if self._chance.random() < 0.7 else self._dir()
        if path is not None:
            self._do("chown", path, self._chance.choice(USERS), self._chance.choice(USERS))

    def _xattr(self) -> None:
        path = self._file() if self._chance.random() < 0.7 else self._dir()
        if path is None:
            return
        has = sorted(self._tree.nodes[path].xattrs)
        if has and self._chance.random() < 0.4:
            self._do("unxattr", path, self._chance.choice(has))
        else:
            self._do("xattr", path, f"user.n{self._chance.randrange(4)}", self._chance.randbytes(20).hex())

    def _symlink(self) -> None:
        self._do("symlink", self._fresh(), self._chance.choice(("../a", "/etc/passwd", "nowhere", "x" * 900)))

    def _link(self) -> None:
        # Only of files of this round: two names of a file in a lower layer become two files when one is written.
        found = [path for path in self._all("file") if path.startswith(self._folder + "/")]
        if found and self._chance.random() < 0.5:
            self._do("link", self._chance.choice(found), self._fresh())

    def _fifo(self) -> None:
        self._do("fifo", self._fresh(), 0o622)

    def _utime(self) -> None:
        path = self._file() if self._chance.random() < 0.8 else self._dir()
        if path is not None:
            self._do("utime", path, self._chance.randrange(10**18, 2 * 10**18))

    def _folders(self) -> None:
        path = self._fresh()
        for _ in range(self._chance.randint(1, 3)):
            self._do("mkdir", path, self._chance.choice((0o755, 0o700)))
            path += "/d"

    def _transaction(self) -> None:
        database = self._chance.choice(DATABASES)
        for _ in range(self._chance.randint(1, 3)):
            self._transactions[database] += 1
            self._do("sqlite", database, self._round, self._transactions[database])
