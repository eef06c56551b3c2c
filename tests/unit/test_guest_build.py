"""How the guest's program is found or built."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovecote.errors import Failed, Unsupported
from dovecote.host.guest import build


@pytest.fixture(autouse=True)
def nothing_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "PACKAGED", tmp_path / "bin")


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes its arguments where it was told to put the program."""
    program = tmp_path / "cc"
    program.write_text('#!/bin/sh\nall="$*"\nwhile [ "$1" != -o ]; do shift; done\necho "$all" > "$2"\n')
    program.chmod(0o755)
    monkeypatch.setattr(build, "compiler_commands", lambda: [[str(program)]])
    return program


def test_it_is_built_once_and_can_be_executed(tmp_path: Path, compiler: Path) -> None:
    built = build.ensure_guest(tmp_path / "cache")
    assert built.stat().st_mode & 0o111
    assert "-static" in built.read_text()
    compiler.unlink()
    assert build.ensure_guest(tmp_path / "cache") == built
    assert [p.name for p in built.parent.iterdir()] == [built.name]


def test_another_source_is_another_program(tmp_path: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.ensure_guest(tmp_path / "cache")
    sources = tmp_path / "program"
    sources.mkdir()
    (sources / "guest.c").write_text("int main() { return 1; }")
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build.ensure_guest(tmp_path / "cache") != before


def test_the_packaged_program_is_taken_only_if_it_is_of_this_source(tmp_path: Path, compiler: Path) -> None:
    packaged = build.package_guest()
    assert build.ensure_guest(tmp_path / "cache") == packaged
    packaged.with_suffix(".digest").write_text("of another source\n")
    assert build.ensure_guest(tmp_path / "cache") != packaged


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compiler_commands", list)
    with pytest.raises(Unsupported) as error:
        build.ensure_guest(tmp_path)
    assert "gcc" in error.value.hint
    assert "ziglang" in error.value.hint


def test_a_compiler_that_fails_is_passed_over_for_the_next(
    tmp_path: Path, compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "compiler_commands", lambda: [["false"], ["/no/such/compiler"], [str(compiler)]])
    assert build.ensure_guest(tmp_path / "cache").is_file()


def test_a_build_that_fails_says_what_the_compiler_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compiler_commands", lambda: [["sh", "-c", "echo no libc >&2; exit 1"]])
    with pytest.raises(Failed, match="no libc") as error:
        build.ensure_guest(tmp_path / "cache")
    assert error.value.code == "guest_build_failed"
    assert list((tmp_path / "cache" / "guest").iterdir()) == []
