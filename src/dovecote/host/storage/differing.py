"""How the text of one file differs between two trees: GNU diff, bounded."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from dovecote.errors import Failed, Invalid, Unsupported
from dovecote.host.storage.manifest import DIRS, Entry, Kind
from dovecote.model.trees import FileDiff

MOST_BYTES = 4 << 20  # of either side
MOST_DIFF = 256 << 10  # bytes of what is answered
TIMEOUT = 10.0  # seconds
PEEK = 8000  # bytes in which a NUL tells that it is no text, as git has it


def diff_command(old: Path, new: Path, old_name: str, new_name: str) -> list[str]:
    """argv. Ends with 1 where they differ."""
    return ["diff", "--unified=3", "--text", f"--label={old_name}", f"--label={new_name}", "--", str(old), str(new)]


Side = tuple[Entry | None, Path | bytes]  # what is there, and its content: a file, or the bytes themselves


def compare(path: str, before: Side, after: Side) -> FileDiff:
    """Raises Invalid (not_a_file), Failed, Unsupported."""
    (old, _), (new, _) = before, after
    contents = [before[1], after[1]]
    for entry in (old, new):
        if entry is not None and entry.kind in DIRS:
            raise Invalid(f"{path!r} is a directory", code="not_a_file", hint="name one of the files that changed")
    told = FileDiff(path, _size(old), _size(new))
    if _same(old, new):
        return told
    is_binary = any(_is_binary(content) for content in contents)
    if is_binary or max(told.old_bytes or 0, told.new_bytes or 0) > MOST_BYTES:
        return replace(told, is_binary=is_binary, is_truncated=True)
    name = "".join(sign if sign.isprintable() else "?" for sign in path)
    names = [f"{side}{name}" if entry else "/dev/null" for side, entry in (("a", old), ("b", new))]
    with tempfile.TemporaryDirectory(prefix="dovecote-diff-") as directory:
        files = [_file(content, Path(directory) / str(i)) for i, content in enumerate(contents)]
        text, is_truncated = _run(diff_command(files[0], files[1], names[0], names[1]))
    return replace(told, text=text, is_truncated=is_truncated)


def _size(entry: Entry | None) -> int | None:
    if entry is None:
        return None
    return len(entry.target) if entry.kind is Kind.SYMLINK else entry.size


def _same(old: Entry | None, new: Entry | None) -> bool:
    if old is None or new is None:
        return old is new
    return (old.kind, old.size, old.digest, old.target) == (new.kind, new.size, new.digest, new.target)


def _is_binary(content: Path | bytes) -> bool:
    if isinstance(content, bytes):
        return b"\0" in content[:PEEK]
    with content.open("rb") as file:
        return b"\0" in file.read(PEEK)


def _file(content: Path | bytes, place: Path) -> Path:
    if isinstance(content, Path):
        return content
    place.write_bytes(content)
    return place


def _run(command: list[str]) -> tuple[str, bool]:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.PIPE,
                timeout=TIMEOUT,
                check=False,
                env=environment,
            )
        except FileNotFoundError as error:
            raise Unsupported("no diff on this host", code="no_diff", hint="apt-get install diffutils") from error
        except subprocess.TimeoutExpired as error:
            raise Failed("the files differ in too many places to be compared", code="diff_timeout") from error
        if done.returncode > 1:
            raise Failed(f"diff failed: {done.stderr.decode(errors='replace')[-300:]}", code="diff_failed")
        output.seek(0)
        text = output.read(MOST_DIFF + 1)
    cut = text[:MOST_DIFF].rpartition(b"\n")[0] + b"\n" if len(text) > MOST_DIFF else text
    return cut.decode(errors="replace"), len(text) > MOST_DIFF
