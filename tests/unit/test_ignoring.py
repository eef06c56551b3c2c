"""What `.dovecoteignore` leaves out of a deployment."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from dovecote.sdk._ignoring import Ignored, pack


@pytest.mark.parametrize(
    ("line", "name", "is_ignored"),
    [
        ("*.log", "a.log", True),
        ("*.log", "deep/down/a.log", True),
        ("*.log", "a.logs", False),
        ("/a.log", "a.log", True),
        ("/a.log", "deep/a.log", False),
        ("docs/*.md", "docs/a.md", True),
        ("docs/*.md", "docs/deep/a.md", False),
        ("docs/**/*.md", "docs/deep/down/a.md", True),
        ("docs/**/*.md", "docs/a.md", True),
        ("**/cache", "a/b/cache", True),
        ("docs/**", "docs/deep/a", True),
        ("docs/**", "docs", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a[0-9]", "a7", True),
        ("a[!0-9]", "a7", False),
        ("# a", "# a", False),
        (r"\#a", "#a", True),
        ("a.b", "axb", False),
    ],
)
def test_patterns_are_those_of_gitignore(line: str, name: str, is_ignored: bool) -> None:
    assert Ignored([line]).has(name, is_directory=False) is is_ignored


def test_later_lines_win_and_a_slash_means_directories() -> None:
    ignored = Ignored(["*.log", "!keep.log", "tmp/"])
    assert not ignored.has("keep.log", is_directory=False)
    assert ignored.has("tmp", is_directory=True)
    assert not ignored.has("tmp", is_directory=False)


def test_what_is_sent_is_below_the_directory_and_nobodys(tmp_path: Path) -> None:
    (tmp_path / ".dovecoteignore").write_text("secret\n")
    for name in ("a", "secret", ".git/config", "sub/b", "sub/secret"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "twice").hardlink_to(tmp_path / "a")
    (tmp_path / "link").symlink_to("sub")
    buffer = io.BytesIO()
    assert pack(tmp_path, buffer) == len(buffer.getvalue())
    with tarfile.open(fileobj=buffer) as archive:
        members = {member.name: member for member in archive}
        twice = archive.extractfile("twice")
        assert twice is not None
        assert twice.read() == b"a"
    assert sorted(members) == [".dovecoteignore", "a", "link", "sub", "sub/b", "twice"]
    assert members["link"].issym()
    assert {(member.uid, member.uname) for member in members.values()} == {(0, "")}
