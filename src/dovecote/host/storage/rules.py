"""Which files no tree has, whatever a session's own rules say; and both together, for one look at a tree."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

from dovecote.host.storage.manifest import Entry
from dovecote.model.patterns import Selection

LEFT_OUT = (b"user.dovecote.left_out", b"1")  # on a directory that patterns emptied, so that restoring finds it


@dataclass(frozen=True)
class Rules:
    """Directories whose content is left out; the directory itself stays. Also what `selection` leaves out: such a
    directory stays as well, and of anything else there is what the template has."""

    at: tuple[bytes, ...] = ()  # from the root
    anywhere: tuple[bytes, ...] = ()  # below any directory
    selection: Selection = field(default_factory=Selection, compare=False)

    def prunes(self, directory: bytes) -> bool:
        """`directory` is kept empty."""
        return self._pattern.fullmatch(directory) is not None or self.empties(directory)

    def empties(self, directory: bytes) -> bool:
        """The same, because of the selection."""
        return self.selection.leaves_out(directory, is_directory=True)

    def drops(self, path: bytes) -> bool:
        """`path`, no directory, is left out itself."""
        return self.selection.leaves_out(path, is_directory=False)

    def marked(self, entry: Entry) -> Entry:
        """A directory that says so when it is emptied."""
        if not self.empties(entry.path):
            return entry
        others = [pair for pair in entry.xattrs if pair[0] != LEFT_OUT[0]]
        return entry._replace(xattrs=tuple(sorted((*others, LEFT_OUT))))

    def excludes(self, path: bytes) -> bool:
        """`path` lies in a directory that is kept empty."""
        return self._is_below_pruned(path) or self.selection.hides(path)

    def _is_below_pruned(self, path: bytes) -> bool:
        # Most paths have no such name anywhere, which one search tells.
        return self._pattern.match(path) is not None and any(
            self._pattern.fullmatch(path[:i]) for i in range(len(path)) if path[i : i + 1] == b"/"
        )

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        at = b"|".join(re.escape(p) for p in self.at) or b"(?!)"
        anywhere = b"|".join(re.escape(p) for p in self.anywhere) or b"(?!)"
        return re.compile(rb"(?s)(?:(?:%s)|(?:.*/)?(?:%s))(?=/|\Z)" % (at, anywhere))


DEFAULT_RULES = Rules(
    at=(b"dev", b"proc", b"sys", b"run", b"var/cache/apt", b"var/lib/apt/lists", b"tmp/node-compile-cache"),
    anywhere=(b".npm/_cacache", b".npm/_logs", b".cache/pip"),
)
