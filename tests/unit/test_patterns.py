"""Patterns mean what git means by them, and cost no more than a bound."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from dovecote.model.patterns import Malformed, Pattern, Selection, parse_pattern

# git itself reads `a**/b` as `a*/b` or as `a**/b`, depending on what comes before.
ODD = re.compile(r"[^/!\n]\*\*|\*\*[^/]")
LINES = some.lists(
    some.one_of(
        some.text("ab*?/!", min_size=1, max_size=7),
        some.text("ab*?/![]-^\\ #", min_size=1, max_size=7),
        some.sampled_from(["**/a", "a/**", "a/**/b", "/a", "a/", "!a", "*", "!*/", "[!a]", "[]a]", "[[:alpha:]]b"]),
    ),
    max_size=4,
).filter(lambda lines: not any(ODD.search(line) for line in lines))
PATHS = some.lists(some.text("ab", min_size=1, max_size=3), min_size=1, max_size=4).map("/".join)


def patterns(lines: list[str], base: bytes = b"") -> list[Pattern]:
    found = []
    for line in lines:
        try:
            pattern = parse_pattern(line.encode(), base)
        except Malformed:
            continue
        if pattern is not None:
            found.append(pattern)
    return found


def left_out(lines: list[str], paths: list[str]) -> set[str]:
    selection = Selection(patterns(lines))
    return {path for path in paths if selection.leaves_out(path.encode(), is_directory=False)}


def left_out_by_git(repository: Path, lines: list[str], paths: list[str]) -> set[str]:
    (repository / ".gitignore").write_text("".join(f"{line}\n" for line in lines))
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin", "-z"],
        cwd=repository,
        input="\0".join(paths),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(repository), "GIT_CONFIG_NOSYSTEM": "1"},
    )
    assert done.returncode in (0, 1), done.stderr
    return {path for path in done.stdout.split("\0") if path}


@pytest.fixture(scope="module")
def repository() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="dovecote-test-"))
    subprocess.run(["git", "init", "-q", directory], check=True, timeout=20)
    return directory


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, paths=some.lists(PATHS, min_size=1, max_size=8, unique=True))
@example(lines=["a/**/b", "!a/a/b"], paths=["a/b", "a/a/b", "a/a/a/b", "b"])
@example(lines=["a*b*a", "!ab/ba"], paths=["aba", "ab/ba", "aab/aba", "abba"])
def test_they_leave_out_what_git_leaves_out(repository: Path, lines: list[str], paths: list[str]) -> None:
    assert left_out(lines, paths) == left_out_by_git(repository, lines, paths)
