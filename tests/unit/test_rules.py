"""Where rules come from, and that no file of a session makes them cost more than a bound or reach beyond its home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dovecote.errors import Invalid
from dovecote.host.storage.ignoring import FILE, MOST_BYTES, MOST_NAMES, Chosen, choose
from dovecote.model.patterns import DEEPEST, Pattern, Selection, TooCostly, parse_pattern
from dovecote.model.rules import MOST_PATTERNS, SaveRules, parse_rules

HOME = "/home/user"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "home/user/app").mkdir(parents=True)
    return tmp_path


def out(chosen: Chosen, *paths: str) -> list[str]:
    rules = chosen.rules
    return [
        path
        for path in paths
        if (rules.prunes(path.rstrip("/").encode()) if path.endswith("/") else rules.drops(path.encode()))
    ]


def test_without_files_and_rules_nothing_is_chosen(root: Path) -> None:
    chosen = choose(root, HOME, SaveRules())
    assert (chosen.digest, chosen.patterns) == ("", ())


def test_the_homes_file_counts_below_it_only(root: Path) -> None:
    (root / f"home/user/{FILE}").write_text("*.log\n/etc\nnode_modules/\n../../etc\n# no\n\n")
    chosen = choose(root, HOME, SaveRules())
    paths = ("home/user/a.log", "home/user/app/b.log", "home/user/app/node_modules/", "home/user/etc/")
    assert out(chosen, *paths, "var/log/a.log", "etc/", "etc/passwd", "opt/node_modules/") == list(paths)


def test_a_projects_file_decides_over_the_homes_and_the_functions_keep_over_both(root: Path) -> None:
    (root / f"home/user/{FILE}").write_text("*.log\n*.tmp\n")
    (root / f"home/user/app/{FILE}").write_text("!b.log\n/c\n")
    chosen = choose(root, HOME, SaveRules(leave_out=("d", "/var/log/x"), keep=("a.tmp",)))
    left = ["home/user/a.log", "home/user/b.log", "home/user/app/c", "home/user/d", "var/log/x", "home/user/b.tmp"]
    assert out(chosen, *left, "home/user/app/b.log", "home/user/c", "d", "home/user/a.tmp") == left


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "huge", "linked project", "linked home"])
def test_what_is_no_plain_small_file_leaves_nothing_out(root: Path, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / FILE).write_text("*\n")
    file = root / f"home/user/{FILE}"
    if kind == "link":
        file.symlink_to(elsewhere / FILE)
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind == "huge":
        file.write_text("*\n" * MOST_BYTES)
    elif kind == "linked project":
        (root / "home/user/other").symlink_to(elsewhere)
    else:
        (root / "home/user/app").rmdir()
        (root / "home/user").rmdir()
        (root / "home/user").symlink_to(elsewhere)
    assert choose(root, HOME, SaveRules()).patterns == ()


def test_only_so_many_lines_and_directories_are_read(root: Path) -> None:
    for i in range(100):
        (root / f"home/user/p{i:03}").mkdir()
        (root / f"home/user/p{i:03}/{FILE}").write_text("x\n" * 10)
    assert len(choose(root, HOME, SaveRules()).patterns) <= 200
    for i in range(MOST_NAMES):
        (root / f"home/user/f{i}").touch()
    (root / f"home/user/{FILE}").write_text("y\n")
    assert len(choose(root, HOME, SaveRules()).patterns) == 1


def selection(*lines: bytes, patience: float = 10.0) -> Selection:
    found = [parse_pattern(line, b"") for line in lines]
    return Selection([pattern for pattern in found if isinstance(pattern, Pattern)], patience=patience)


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"*a" * 100 + b"b", b"a" * 255),
        (b"**/" * 4 + b"*a" * 50 + b"b", b"/".join([b"a" * 255] * 13)),
        (b"**/a/" * 4 + b"b", b"/".join([b"a"] * 1700)),
        (b"[!b]" * 60 + b"c", b"a" * 255),
    ],
)
def test_no_pattern_looks_back_for_long(line: bytes, path: bytes) -> None:
    """Within its patience, where an expression that looks back would take longer than anybody can wait."""
    assert not selection(line, patience=2.0).leaves_out(path, is_directory=False)


def test_a_look_that_costs_too_much_ends() -> None:
    chosen = selection(*[b"**/a/" * 4 + b"*%d" % i for i in range(100)], patience=0.01)
    paths = (b"/".join([b"a"] * 100) + b"/%d" % i for i in range(1_000_000))
    with pytest.raises(TooCostly):
        any(chosen.leaves_out(path + b"!", is_directory=False) for path in paths)


def test_what_is_deeper_than_anybody_goes_goes_with_what_is_above_it() -> None:
    deep = b"/".join([b"d"] * (DEEPEST + 50))
    assert not selection(b"x").leaves_out(deep + b"/x", is_directory=False)
    assert selection(b"/d").leaves_out(deep + b"/x", is_directory=False)


@pytest.mark.parametrize(
    "text",
    ["/", "/usr", "/usr/", "/*", "/[u]sr", "/**", "/u?r/x", "", "#x", "!x", "a\0b", "[", "a//b", "../x", "x" * 300],
)
def test_a_function_cannot_leave_out_the_system_or_what_is_no_pattern(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_rules(SaveRules(leave_out=(text,)))
    assert caught.value.code == "malformed_pattern"


def test_a_function_may_leave_out_what_it_names() -> None:
    rules = SaveRules(("node_modules/", "/var/log/app/", "/data"), ("important.log",), "make deps")
    assert parse_rules(rules) is rules
    for wrong in (SaveRules(("a",) * (MOST_PATTERNS + 1)), SaveRules(reinstall="")):
        with pytest.raises(Invalid):
            parse_rules(wrong)
