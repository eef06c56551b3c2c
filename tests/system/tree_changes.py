"""What is done to a directory in one life of an instance."""

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dovecote.host.storage.sources import SMALL
from tests.system.tree_files import NOW, write


def both(*acts: Callable[[Path], object]) -> Callable[[Path], object]:
    """One after the other."""

    def act(root: Path) -> None:
        for each in acts:
            each(root)

    return act


CHANGES: dict[str, Callable[[Path], object]] = {
    "change": lambda r: write(r / "etc/passwd", "changed"),
    "append": lambda r: open(r / "a/b/c/f3", "ab").write(b"more"),  # noqa: SIM115
    "new": lambda r: write(r / "a/new", "new"),
    "empty file over one": lambda r: write(r / "a/b/c/f4", ""),
    "chmod only": lambda r: os.chmod(r / "bin/tool", 0o700),
    "chown only": lambda r: os.chown(r / "a/b/c/f5", 5, 6),
    "mtime only": lambda r: os.utime(r / "a/b/c/f6", ns=(NOW, NOW)),
    "xattr only": lambda r: os.setxattr(r / "a/b/c/f7", "user.k", b"v"),
    "rename file": lambda r: os.rename(r / "a/b/c/f8", r / "etc/moved"),
    "rename over": lambda r: os.rename(r / "a/b/c/f9", r / "a/b/c/f10"),
    "rename directory": lambda r: os.rename(r / "a/b", r / "elsewhere"),
    "rename twice": both(lambda r: os.rename(r / "a", r / "a2"), lambda r: os.rename(r / "a2/b", r / "b2")),
    "rename and change inside": both(
        lambda r: os.rename(r / "swap", r / "swapped"),
        lambda r: write(r / "swapped/s1", "x"),
        lambda r: os.unlink(r / "swapped/s2"),
        lambda r: os.chmod(r / "swapped/s3", 0o600),
        lambda r: write(r / "swapped/fresh", "y"),
    ),
    "exchange names": both(
        lambda r: os.rename(r / "swap/s1", r / "swap/t"),
        lambda r: os.rename(r / "swap/s2", r / "swap/s1"),
        lambda r: os.rename(r / "swap/t", r / "swap/s2"),
    ),
    "delete file": lambda r: os.unlink(r / "etc/zero"),
    "delete directory": lambda r: shutil.rmtree(r / "swap"),
    "delete and make again": both(
        lambda r: shutil.rmtree(r / "swap"), lambda r: (r / "swap").mkdir(), lambda r: write(r / "swap/s1", "2")
    ),
    "file instead of directory": both(lambda r: shutil.rmtree(r / "swap"), lambda r: write(r / "swap", "a file")),
    "directory instead of file": both(
        lambda r: os.unlink(r / "etc/passwd"),
        lambda r: (r / "etc/passwd").mkdir(),
        lambda r: write(r / "etc/passwd/in", "x"),
    ),
    "link instead of directory": both(lambda r: shutil.rmtree(r / "swap"), lambda r: os.symlink("etc", r / "swap")),
    "new directories": both(lambda r: (r / "p/q/r").mkdir(parents=True), lambda r: write(r / "p/q/r/s", "deep")),
    "hard links": both(
        lambda r: write(r / "etc/h1", "linked"),
        lambda r: os.link(r / "etc/h1", r / "etc/h2"),
        lambda r: (r / "fresh").mkdir(),
        lambda r: os.link(r / "etc/h1", r / "fresh/h3"),
    ),
    "hard link to the template's": lambda r: os.link(r / "a/b/c/f11", r / "etc/again"),
    "break a hard link": lambda r: write(r / "a/b/same", "mine now"),
    "delete one of two names": lambda r: os.unlink(r / "a/tool"),
    "sparse": lambda r: os.truncate(r / "etc/passwd", 9 << 20),
    "big": lambda r: write(r / "etc/big", random.Random(3).randbytes(SMALL + 999)),
    "any bytes": both(
        lambda r: write(os.fsencode(r) + b"/\xfe\xff", "x"),
        lambda r: os.rename(os.fsencode(r) + b"/a/b/n\xffw", os.fsencode(r) + b"/a/b/\xff\xffw"),
        lambda r: os.unlink(os.fsencode(r) + b"/a/b/new\nline"),
    ),
    "fifo and link": both(
        lambda r: os.mkfifo(r / "p"), lambda r: os.unlink(r / "etc/link"), lambda r: os.symlink("x", r / "etc/link")
    ),
    "directory's own attributes": both(
        lambda r: os.chmod(r / "empty", 0o700), lambda r: os.utime(r / "empty", ns=(1, 2))
    ),
    "root's own attributes": both(lambda r: os.chmod(r, 0o711), lambda r: os.chown(r, 1, 2)),
    "many in one directory": lambda r: list(map(os.unlink, sorted((r / "big").iterdir())[::2])),
    "nothing": lambda r: None,
}
BEFORE = [name for name in CHANGES if name != "nothing"]
# Two names of one file of a lower layer, of which one is taken into the delta, become two files: overlayfs does the
# same to them as soon as one is written.
PARTS_LINKS = ("rename directory", "rename twice")


def undo(root: Path) -> None:
    """Makes files of directories and directories of files, in what an earlier life made."""
    for name in ("swap", "p", "fresh", "elsewhere"):
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            write(path, "was a directory")
        elif os.path.lexists(path):
            os.unlink(path)
            path.mkdir()
            write(path / "in", "was a file")


def play(root: Path, dice: random.Random, steps: int) -> None:
    """What a user might do, at random. Some of it fails, as it would for a user."""
    for _ in range(steps):
        folders = [Path(d) for d, _, _ in os.walk(root) if Path(d).name != "big"]
        files = [Path(d) / f for d, _, fs in os.walk(root) for f in fs if Path(d).name != "big"]
        with suppress(OSError):
            step(root, dice, dice.choice(folders), dice.choice(files), dice.choice(folders) / f"n{dice.randrange(30)}")


def step(root: Path, dice: random.Random, folder: Path, file: Path, target: Path) -> None:
    acts: list[Callable[[], object]] = [
        lambda: write(target, dice.randbytes(dice.choice([0, 1, 5000]))),
        lambda: write(file, "again"),
        lambda: os.chmod(file, dice.choice([0o600, 0o755])),
        lambda: os.chown(file, dice.randrange(3), 0, follow_symlinks=False),
        lambda: os.rename(file, target),
        lambda: os.rename(folder, target),
        lambda: os.rename(folder, target),
        lambda: os.unlink(file),
        lambda: shutil.rmtree(folder) if len(folder.relative_to(root).parts) > 1 else None,
        lambda: target.mkdir(),
        lambda: (target / "x" / "y").mkdir(parents=True),
        lambda: os.symlink("s", target),
        lambda: os.link(file, target, follow_symlinks=False),
        lambda: os.setxattr(folder, "user.d", b"%d" % dice.randrange(9)),
        lambda: os.mkfifo(target),
    ]
    dice.choice(acts)()
