"""Puts a directory's files into a subvolume that takes its place: all or nothing, wherever it is cut off."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from dovecote.errors import DovecoteError, NotFound, StorageFailed
from dovecote.host.storage import btrfs, groups, mounts
from dovecote.host.storage.volumes.opening import closing, open_below, walk
from dovecote.model.volumes import Mount

log = logging.getLogger(__name__)

COPY_TIMEOUT = 120.0  # seconds
ROOM = 1 << 20  # bytes that have to be left, or the exchange itself could meet a limit
_NOTES = ".moving"
_BEGUN = ".new"


@dataclass(frozen=True)
class Move:
    """`aside` lies beside what is at the path: the copy before the exchange, what was there after it."""

    volume: str
    path: str
    aside: str

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def folder(self) -> Mount:
        return Mount(self.volume, "", os.path.dirname(self.path), read_only=True)


class Moving:
    """Simple quotas count content where it was first written, so files are copied and not shared."""

    def __init__(self, at: Path, directory: Callable[[str], Path]) -> None:
        self._notes = at / _NOTES
        self._directory = directory

    def finish_all(self, top: int) -> None:
        """What an earlier process began. Called before anything is mounted."""
        for note in self._notes.glob("*"):
            try:
                if note.suffix != _BEGUN:
                    self._finish(top, Move(**json.loads(note.read_bytes())))
                note.unlink()
            except (DovecoteError, OSError, ValueError, TypeError) as error:
                log.error("%s is left to the next start, nothing in it is lost: %s", note, error)

    def move(self, top: int, volume: str, path: str, made: str, place: int) -> None:
        """`made` is the new subvolume, below `top`, and `place` it opened. Nobody may have the path in reach.

        Raises StorageFailed (disk_full, copy_failed); then everything is as it was.
        """
        move = Move(volume, path, f".dovecote-{secrets.token_hex(8)}")
        with closing(walk(self._directory(volume), move.folder)) as parent:
            with closing(_directory(parent, move.name, move)) as there:
                _copy(there, place)
                _inside(top, there)
            _check_room(top, place)
            note = self._note(move)
            try:
                btrfs.write_out(top)  # or a power cut could leave the copies without content
                os.rename(made, move.aside, src_dir_fd=top, dst_dir_fd=parent)
                mounts.exchange(parent, move.aside, move.name)
            finally:
                self._finish(top, move)
                note.unlink()

    def _note(self, move: Move) -> Path:
        self._notes.mkdir(mode=0o700, exist_ok=True)
        note = self._notes / move.aside.lstrip(".")
        begun = note.with_suffix(_BEGUN)
        begun.write_text(json.dumps(asdict(move)), encoding="ascii")
        return begun.replace(note)

    def _finish(self, top: int, move: Move) -> None:
        """Takes away what lies aside: the copy, or what was copied, after whatever is nested in it has moved along."""
        try:
            parent = walk(self._directory(move.volume), move.folder)
        except NotFound:
            return
        with closing(parent):
            aside = open_below(parent, move.aside, move.folder)
            if aside is None:
                return
            with closing(aside):
                if not btrfs.is_subvolume(aside):
                    with closing(_directory(parent, move.name, move)) as place:
                        _carry(top, aside, place)
                    shutil.rmtree(move.aside, dir_fd=parent)
                    return
            btrfs.delete_subvolume(parent, move.aside)


def _directory(parent: int, name: str, move: Move) -> int:
    found = open_below(parent, name, move.folder)
    if found is None:
        raise NotFound(f"no {move.path!r} in volume {move.volume}", code="no_such_path")
    return found


def copy_command(source: int, target: int) -> list[str]:
    """argv; both are descriptors that it inherits. It does not enter what is nested."""
    places = f"/proc/self/fd/{source}/.", f"/proc/self/fd/{target}/"
    return ["cp", "--archive", "--one-file-system", "--reflink=never", "--", *places]


def _copy(source: int, target: int) -> None:
    try:
        done = subprocess.run(
            copy_command(source, target),
            env={"LC_ALL": "C", "PATH": os.defpath},
            pass_fds=[source, target],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COPY_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        hint = "set limits before there are many files"
        raise StorageFailed(f"copying took over {COPY_TIMEOUT:.0f} s", code="copy_failed", hint=hint) from error
    if done.returncode:
        if "quota exceeded" in done.stderr or "No space left" in done.stderr:
            raise _full()
        raise StorageFailed(f"copying failed: {done.stderr.strip()[-300:]}", code="copy_failed")


def _check_room(top: int, place: int) -> None:
    number = btrfs.subvolume_id(place)
    for group in (number, *groups.related(top, number)):
        usage = groups.counts(top, group)
        if usage.max_bytes and usage.bytes + ROOM > usage.max_bytes:
            raise _full()


def _full() -> StorageFailed:
    return StorageFailed(
        "what is there is more than the limit, or the volume has no room for a copy of it",
        code="disk_full",
        hint="a higher limit, or fewer files; until then it has the limit that it had",
    )


def _inside(top: int, directory: int) -> list[tuple[btrfs.Nested, str]]:
    """What is nested anywhere below a directory, and where that is from there."""
    there = btrfs.path_of(directory, os.fstat(directory).st_ino)
    found = []
    for nested in btrfs.nested(top, btrfs.subvolume_id(directory)):
        folder = btrfs.path_of(directory, nested.directory)
        if there is None or folder is None:
            raise StorageFailed("a limited path in it lies too deep", code="copy_failed", hint="delete it first")
        if folder == there or folder.startswith(there + b"/"):
            found.append((nested, os.fsdecode(folder[len(there) + 1 :])))
    return found


def _carry(top: int, source: int, target: int) -> None:
    """What is nested below `source` to the same place below `target`, which counts it from now on."""
    for nested, folder in _inside(top, source):
        with closing(_below(source, folder)) as old, closing(_below(target, folder)) as new:
            os.rename(nested.name, nested.name, src_dir_fd=old, dst_dir_fd=new)
    number = btrfs.subvolume_id(target)
    below = btrfs.descendants(top, number)
    if below:
        groups.gather(top, number)
    for each in below:
        groups.join(top, each, groups.of(number))


def _below(directory: int, path: str) -> int:
    resolve = mounts.BENEATH | mounts.NO_SYMLINKS | mounts.NO_MAGICLINKS
    return mounts.open_beneath(directory, path or ".", resolve=resolve, flags=os.O_RDONLY | os.O_DIRECTORY)
