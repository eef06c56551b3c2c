"""What of a session's files is not saved, as its function says it; and what became of bringing that back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dovecote.errors import Invalid
from dovecote.model.patterns import Malformed, Pattern, parse_pattern

MOST_PATTERNS = 100
LONGEST_COMMAND = 32768
# A delta without one of these would be a system that nobody has installed.
SYSTEM = frozenset(
    ("bin", "boot", "dev", "etc", "home", "lib", "lib64", "opt", "proc", "root", "run", "sbin", "srv", "sys", "usr")
) | {"lib32", "var"}


@dataclass(frozen=True)
class SaveRules:
    """Patterns as in gitignore; relative ones start in the user's home, absolute ones at the root.

    `keep` wins over `leave_out` and over the ignore files of the session. `reinstall` is a shell command that brings
    back what was left out; without one it follows from the lock files.
    """

    leave_out: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    reinstall: str | None = None


class ReinstallState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class Reinstall:
    """Of the last restoring that found dependencies left out. `output` is the end of what the last command printed."""

    state: ReinstallState
    directories: tuple[str, ...]
    command: str = ""  # the last one
    exit_code: int | None = None
    output: str = ""


def parse_rules(rules: SaveRules) -> SaveRules:
    """Itself. Raises Invalid (malformed_pattern, invalid)."""
    if len(rules.leave_out) + len(rules.keep) > MOST_PATTERNS:
        raise Invalid(f"a function has at most {MOST_PATTERNS} patterns")
    if rules.reinstall is not None and not 0 < len(rules.reinstall) <= LONGEST_COMMAND:
        raise Invalid(f"reinstall is a command of at most {LONGEST_COMMAND} characters")
    left_out(rules, "/home/user")
    kept(rules, "/home/user")
    return rules


def left_out(rules: SaveRules, home: str) -> list[Pattern]:
    """Raises Invalid (malformed_pattern)."""
    return _parsed(rules.leave_out, home, is_negated=False)


def kept(rules: SaveRules, home: str) -> list[Pattern]:
    """To come last. Raises Invalid (malformed_pattern)."""
    return _parsed(rules.keep, home, is_negated=True)


def _parsed(texts: Sequence[str], home: str, *, is_negated: bool) -> list[Pattern]:
    return [_pattern(text, home, is_negated=is_negated) for text in texts]


def _pattern(text: str, home: str, *, is_negated: bool) -> Pattern:
    try:
        base = "" if text.startswith("/") else home.strip("/")
        found = None if text.startswith("!") else parse_pattern(text.encode(), base.encode())
    except (Malformed, UnicodeEncodeError) as error:
        raise _malformed(text, str(error)) from error
    if found is None:
        raise _malformed(text, "a pattern as in gitignore, without a leading `!` or `#`")
    if text.startswith("/") and not is_negated:
        first, *rest = text.strip("/").split("/")
        if any(sign in first for sign in "*?[\\") or (first in SYSTEM and not rest):
            raise _malformed(text, "name what lies below a directory of the system")
    return Pattern(found.expression, is_negated, found.is_for_directories)


def _malformed(text: str, hint: str) -> Invalid:
    return Invalid(f"not a pattern: {text[:80]!r}", code="malformed_pattern", hint=hint)
