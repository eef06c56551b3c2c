"""Directories as tar: packed as tar reads it, unpacked as tar wrote it, and nothing outside whatever is sent."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovecote.sdk import DovecoteError
from dovecote.sdk._archives import BATCH, Unpacking, batches, content_bytes

LONG = "d" * 120


def made(directory: Path) -> Path:
    """A tree with what projects have."""
    (directory / "app" / LONG / LONG).mkdir(parents=True)
    (directory / "empty").mkdir()
    (directory / "app" / "run.sh").write_text("#!/bin/sh\n")
    (directory / "app" / "run.sh").chmod(0o755)
    (directory / "app" / "secret").write_bytes(b"x" * 511)
    (directory / "app" / "secret").chmod(0o600)
    (directory / "app" / LONG / LONG / "deep.txt").write_text("deep")
    (directory / "app" / "big").write_bytes(os.urandom(3_000_001))
    (directory / "app" / "none").write_bytes(b"")
    (directory / "app" / "absolute").symlink_to("/usr/bin/python3")
    (directory / "app" / ("l" * 90)).symlink_to("t" * 200)
    (directory / "app" / "ünï ↑").write_text("text")
    os.link(directory / "app" / "run.sh", directory / "app" / "hard")
    os.mkfifo(directory / "app" / "fifo")
    (directory / "locked").mkdir(mode=0o750)
    (directory / "locked" / "in").write_text("in")
    return directory


def seen(directory: Path) -> dict[str, tuple[str, int, bytes]]:
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = ("link", 0, os.fsencode(os.readlink(path)))
        elif path.is_dir():
            found[name] = ("directory", path.stat().st_mode & 0o777, b"")
        elif path.is_file():
            found[name] = ("file", path.stat().st_mode & 0o777, path.read_bytes())
    return found


def unpacked(data: bytes, target: Path, piece: int = 1 << 16) -> Path:
    unpacking = Unpacking(target)
    try:
        for at in range(0, len(data), piece):
            unpacking.feed(data[at : at + piece])
        unpacking.end()
    finally:
        unpacking.close()
    return target


def test_what_is_packed_is_what_tar_unpacks(tmp_path: Path) -> None:
    source, target = made(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    pieces = list(batches(source))
    assert max(len(piece) for piece, _ in pieces) <= BATCH
    assert sum(size for _, size in pieces) == content_bytes(source)
    data = b"".join(piece for piece, _ in pieces)
    subprocess.run(["tar", "-x", "-p", "-f", "-", "-C", str(target)], input=data, check=True, timeout=60)
    assert seen(target) == seen(source)


@pytest.mark.parametrize("dialect", ["gnu", "pax", "ustar"])
@pytest.mark.parametrize("piece", [1 << 16, 511])
def test_what_tar_packed_is_unpacked(tmp_path: Path, dialect: str, piece: int) -> None:
    source = made(tmp_path / "source")
    if dialect == "ustar":  # what this dialect cannot say
        (source / "app" / ("l" * 90)).unlink()
        shutil.rmtree(source / "app" / LONG)
    command = ["tar", f"--format={dialect}", "-c", "-f", "-", "-C", str(source), "."]
    data = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    assert seen(unpacked(data, tmp_path / "target", piece)) == seen(source)


def test_a_second_copy_goes_over_the_first(tmp_path: Path) -> None:
    source = made(tmp_path / "source")
    data = b"".join(piece for piece, _ in batches(source))
    target = unpacked(data, tmp_path / "target")
    (target / "app" / "run.sh").write_text("changed")
    assert seen(unpacked(data, target)) == seen(source)


# -- what a hostile sandbox may send


def archive(*entries: tuple[str, bytes, str | bytes]) -> bytes:
    """Name, type, and content or where a link leads."""
    collected = io.BytesIO()
    with tarfile.TarFile(fileobj=collected, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, rest in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o6755
            if isinstance(rest, str):
                info.linkname = rest
                tar.addfile(info)
            else:
                info.size = len(rest)
                tar.addfile(info, io.BytesIO(rest))
    return collected.getvalue()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    path.write_text("mine")
    return path


LEADING_OUT = [
    [("../outside", tarfile.REGTYPE, b"theirs")],
    [("a/../../outside", tarfile.REGTYPE, b"theirs")],
    [("{outside}", tarfile.REGTYPE, b"theirs")],
    [("link", tarfile.SYMTYPE, ".."), ("link/outside", tarfile.REGTYPE, b"theirs")],
    [("link", tarfile.SYMTYPE, "{above}"), ("link/x/y", tarfile.DIRTYPE, b"")],
    [("link", tarfile.SYMTYPE, "../outside"), ("hard", tarfile.LNKTYPE, "link")],
    [("hard", tarfile.LNKTYPE, "../outside"), ("hard", tarfile.REGTYPE, b"theirs")],
    [("hard", tarfile.LNKTYPE, "{outside}")],
    [("..", tarfile.DIRTYPE, b"")],
    [("", tarfile.REGTYPE, b"x")],
]


@pytest.mark.parametrize("entries", LEADING_OUT)
def test_nothing_leads_out(tmp_path: Path, outside: Path, entries: list[tuple[str, bytes, str | bytes]]) -> None:
    def placed(text: str | bytes) -> str | bytes:
        return text.format(outside=outside, above=tmp_path) if isinstance(text, str) else text

    data = archive(*((str(placed(name)), kind, placed(rest)) for name, kind, rest in entries))
    with pytest.raises(DovecoteError) as caught:
        unpacked(data, tmp_path / "target")
    assert caught.value.code == "bad_archive"
    assert outside.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "target"]


def test_a_file_over_a_link_replaces_the_link(tmp_path: Path, outside: Path) -> None:
    data = archive(("a", tarfile.SYMTYPE, "../outside"), ("a", tarfile.REGTYPE, b"theirs"))
    target = unpacked(data, tmp_path / "target")
    assert (outside.read_text(), (target / "a").read_text()) == ("mine", "theirs")
    assert (target / "a").stat().st_mode & 0o7777 == 0o755  # never setuid


def test_a_link_that_an_earlier_copy_left_leads_nowhere(tmp_path: Path, outside: Path) -> None:
    target = unpacked(archive(("a", tarfile.SYMTYPE, "..")), tmp_path / "target")
    with pytest.raises(DovecoteError):
        unpacked(archive(("a/outside", tarfile.REGTYPE, b"theirs")), target)
    assert outside.read_text() == "mine"


def test_what_ends_too_early_leaves_no_half_file(tmp_path: Path) -> None:
    data = archive(("whole", tarfile.REGTYPE, b"a" * 10), ("half", tarfile.REGTYPE, b"b" * 5000))
    for size in (0, 100, 512, len(data) // 2):
        with pytest.raises(DovecoteError, match="too early"):
            unpacked(data[:size], tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["whole"]


def test_devices_are_left_out(tmp_path: Path) -> None:
    data = archive(("dev", tarfile.CHRTYPE, ""), ("pipe", tarfile.FIFOTYPE, ""), ("file", tarfile.REGTYPE, b"x"))
    assert [path.name for path in unpacked(data, tmp_path / "target").iterdir()] == ["file"]


@settings(max_examples=300, deadline=None)
@given(noise=st.binary(max_size=3000), at=st.integers(0, 2000), piece=st.integers(1, 700))
def test_garbage_is_refused_or_harmless(noise: bytes, at: int, piece: int) -> None:
    good = archive(("a/b", tarfile.REGTYPE, b"x" * 600), ("é" * 80, tarfile.REGTYPE, b"y"), ("l", tarfile.SYMTYPE, "a"))
    data = good[:at] + noise + good[at + len(noise) :]
    with tempfile.TemporaryDirectory() as directory:
        above = Path(directory)
        with contextlib.suppress(DovecoteError, OSError):  # OSError: a name that no file can have
            unpacked(data, above / "target", piece)
        assert [path.name for path in above.iterdir()] == ["target"]
