"""What a session was told to do, and which of its moments is one that was found. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stress.plan import DATABASES
from stress.tree import Seen, Step, Tree, differences, told

SHOWN = 5  # differences
UNKNOWN = "?"  # an install that was not heard of


class Fault(Exception):
    """What was promised is not so."""


@dataclass(frozen=True)
class Found:
    """A look at a session: its files, how many transactions of each round are in its databases, what is installed."""

    files: Mapping[str, Seen]
    rows: Mapping[str, Mapping[int, int]]
    installed: str


@dataclass(frozen=True)
class Point:
    """A moment: so many steps were done. `lost` came after it, the oldest of them `loss` seconds ahead of the blow."""

    done: int
    lost: int
    loss: float


@dataclass
class History:
    """`steps` came on top of `base`. `stamps` says when each was done, by the machine's monotonic clock."""

    base: Tree
    steps: list[Step] = field(default_factory=list)
    stamps: dict[int, float] = field(default_factory=dict)
    installs: dict[int, str] = field(default_factory=dict)  # step -> digest of what npm installed
    base_rows: dict[str, dict[int, int]] = field(default_factory=dict)
    base_installed: str = ""

    def settle(self, found: Found, *, floor: int, done: int, at: float) -> Point:
        """The moment that was found, of a session killed at `at` after `done` steps.

        Raises Fault when there was no such moment, or when it is before `floor`.
        """
        candidates, nearest = self._candidates(found)
        fitting = [k for k in candidates if self._has_rows(found, k) and self._has_installed(found, k)]
        if not fitting:
            raise Fault(self._of_no_moment(found, candidates, nearest, done))
        k = max(fitting)
        if k < floor:
            raise Fault(f"came back at step {k}; {floor} were promised, {done} were done")
        loss = at - self.stamps[k] if k < done and k in self.stamps else 0.0
        return Point(k, max(0, done - k), max(0.0, loss))

    def cut(self, k: int) -> None:
        """What came after that moment has never been."""
        self.steps = self.steps[:k]
        self.stamps = {number: at for number, at in self.stamps.items() if number < k}
        self.installs = {number: digest for number, digest in self.installs.items() if number < k}

    def rebase(self, found: Found) -> None:
        """What was found is in the store for certain: nothing before it can come back."""
        for step in self.steps:
            self.base.apply(step)
        self.base_rows = {database: dict(counts) for database, counts in found.rows.items()}
        self.base_installed = found.installed
        self.cut(0)

    def _candidates(self, found: Found) -> tuple[list[int], int]:
        """Numbers of steps after which files were as they were found; and the number that came nearest."""
        tree = self.base.copy()
        wrong = differences(tree, found.files)
        candidates = [] if wrong else [0]
        nearest = (len(wrong), 0)
        for number, step in enumerate(self.steps, 1):
            touched = tree.apply(step)
            wrong = (wrong - touched) | differences(tree, found.files, touched)
            if not wrong:
                candidates.append(number)
            nearest = min(nearest, (len(wrong), number))
        return candidates, nearest[1]

    def _rows_after(self, k: int) -> dict[str, dict[int, int]]:
        rows = {database: dict(self.base_rows.get(database, {})) for database in DATABASES}
        for name, *arguments in self.steps[:k]:
            if name == "sqlite":
                database, round, number = arguments
                rows[database][round] = number
        return rows

    def _has_rows(self, found: Found, k: int) -> bool:
        """Every transaction up to there, and at most the one that was under way."""
        now, then = self._rows_after(k), self._rows_after(k + 1)
        return all(dict(found.rows.get(each, {})) in (now[each], then[each]) for each in DATABASES)

    def _has_installed(self, found: Found, k: int) -> bool:
        if k < len(self.steps) and self.steps[k][0] == "npm":
            return True  # it was under way
        wanted = self.base_installed
        for number, (name, *_) in enumerate(self.steps[:k]):
            if name == "npm":
                wanted = self.installs.get(number, UNKNOWN)
        return wanted in (UNKNOWN, found.installed)

    def _of_no_moment(self, found: Found, candidates: Iterable[int], nearest: int, done: int) -> str:
        if candidates:
            k = max(candidates)
            return (
                f"files are those after step {k}, but not the databases or what npm installed: {dict(found.rows)} "
                f"where {self._rows_after(k)} were committed; installed {found.installed!r}"
            )
        tree = self.base.copy()
        for step in self.steps[:nearest]:
            tree.apply(step)
        wrong = sorted(differences(tree, found.files))
        lines = [told(tree, found.files, path) for path in wrong[:SHOWN]]
        around = self.steps[max(0, nearest - 3) : nearest + 4]
        return (
            f"the files are those of no moment; nearest is step {nearest} of {done} done, where {len(wrong)} names "
            "differ:\n  " + "\n  ".join(lines) + f"\n  steps around it: {around}"
        )
