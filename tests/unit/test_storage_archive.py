"""A zip file that is made while it is sent holds what the tree holds, whatever the names."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as some

from dovecote.errors import Invalid, NotFound
from dovecote.host.storage.archive import PIECE, below, zipped
from dovecote.host.storage.differing import MOST_BYTES, MOST_DIFF, Side, compare, diff_command
from dovecote.host.storage.manifest import Entry, Kind, order

TEXTS = {blake3(text).digest(): text for text in (b"one\n", b"two\n" * 1000, bytes(3 * PIECE))}
NAMES = some.binary(min_size=1, max_size=6).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)


def file(path: bytes, text: bytes = b"", mode: int = 0o644, mtime_ns: int = 10**18) -> Entry:
    return Entry(path, Kind.FILE, mode, 0, 0, mtime_ns, len(text), blake3(text).digest() if text else b"")


def unzipped(entries: list[Entry], path: str = "/") -> zipfile.ZipFile:
    entries = sorted(entries, key=lambda e: order(e.path))
    data = b"".join(zipped(below(entries, path), lambda digest: io.BytesIO(TEXTS[digest])))
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    return archive


TREE = [
    Entry(b"", Kind.DIR, 0o755),
    Entry(b"home", Kind.DIR, 0o755),
    Entry(b"home/app", Kind.DIR, 0o2750),
    file(b"home/app/run.sh", b"one\n", 0o751),
    file(b"home/app/zeros", bytes(3 * PIECE)),
    file(b"home/app/empty"),
    Entry(b"home/app/link", Kind.SYMLINK, 0o777, target=b"../other"),
    Entry(b"home/app/pipe", Kind.FIFO, 0o600),
    file(b"home/app/..\\..\\evil", b"one\n"),
    file(b"home/apple", b"two\n" * 1000),
]


def test_modes_links_and_contents_are_kept() -> None:
    archive = unzipped(TREE, "/home/app")
    found = {each.filename: each for each in archive.infolist()}
    assert set(found) == {"app/", "app/run.sh", "app/zeros", "app/empty", "app/link"}
    modes = {name: each.external_attr >> 16 for name, each in found.items()}
    assert modes["app/"] == stat.S_IFDIR | 0o2750
    assert modes["app/run.sh"] == stat.S_IFREG | 0o751
    assert stat.S_ISLNK(modes["app/link"])
    assert archive.read("app/link") == b"../other"
    assert archive.read("app/zeros") == bytes(3 * PIECE)
    assert archive.comment == b"2 names are left out"
    assert found["app/run.sh"].date_time == (2001, 9, 9, 1, 46, 40)


def test_one_file_or_everything_may_be_asked_for() -> None:
    assert unzipped(TREE, "home/app/run.sh").namelist() == ["run.sh"]
    assert "home/apple" in unzipped(TREE, "/").namelist()
    for path in ("/home/ap", "/nothing", "/home/app/run.sh/x"):
        with pytest.raises(NotFound):
            below(TREE, path)


@given(some.dictionaries(NAMES, some.sampled_from(sorted(TEXTS.values())), max_size=5), some.integers(-(2**62), 2**62))
def test_any_name_and_time_gives_a_whole_file_that_leads_nowhere(files: dict[bytes, bytes], mtime_ns: int) -> None:
    entries = [Entry(b"", Kind.DIR, 0o755), *(file(name, text, 0o644, mtime_ns) for name, text in files.items())]
    for name in unzipped(entries).namelist():
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        assert "\\" not in name


def test_no_more_is_held_than_a_piece_or_two() -> None:
    entries = [Entry(b"", Kind.DIR, 0o755), *(file(b"f%d" % i, bytes(3 * PIECE)) for i in range(20))]
    for piece in zipped(below(entries, "/"), lambda digest: io.BytesIO(TEXTS[digest])):
        assert len(piece) < 3 * PIECE


def side(text: bytes | None) -> Side:
    return (None, b"") if text is None else (file(b"f", text), text)


def test_a_diff_is_unified_and_says_what_came_and_went() -> None:
    changed = compare("/f", side(b"one\ntwo\n"), side(b"one\nthree\n"))
    assert changed.text == "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
    assert compare("/f", side(None), side(b"x\n")).text.startswith("--- /dev/null\n+++ b/f\n")
    assert compare("/f", side(b"x\n"), side(None)).text.startswith("--- a/f\n+++ /dev/null\n")
    assert compare("/f", side(b"x\n"), side(b"x\n")).text == ""
    assert (changed.old_bytes, changed.new_bytes) == (8, 10)


def test_a_diff_of_bytes_or_of_too_much_is_not_told(tmp_path: Path) -> None:
    binary = compare("/f", side(b"a\0b"), side(b"a"))
    assert (binary.is_binary, binary.is_truncated, binary.text) == (True, True, "")
    large = compare("/f", side(b"a" * (MOST_BYTES + 1)), side(b"a"))
    assert (large.is_binary, large.is_truncated, large.text) == (False, True, "")
    many = compare("/f", side(b"".join(b"%d\n" % i for i in range(200_000))), side(b"x\n"))
    assert many.is_truncated
    assert len(many.text) <= MOST_DIFF
    assert many.text.endswith("\n")
    with pytest.raises(Invalid):
        compare("/f", (Entry(b"f", Kind.DIR), b""), side(b"x"))


def test_the_command_takes_no_name_for_an_option() -> None:
    command = diff_command(Path("/a"), Path("/b"), "a/--x", "b/--x")
    assert command == ["diff", "--unified=3", "--text", "--label=a/--x", "--label=b/--x", "--", "/a", "/b"]


def test_a_name_with_line_ends_makes_no_lines_of_its_own() -> None:
    found = compare("/f\n+++ /etc/passwd", side(b"1\n"), side(b"2\n"))
    assert found.text.splitlines()[-2:] == ["-1", "+2"]
    assert "\n+++ /etc/passwd" not in found.text
