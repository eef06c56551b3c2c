"""A directory with everything that a tree can hold."""

import os
import random
from pathlib import Path

from dovecote.host.storage.sources import SMALL

NOW = 1_700_000_000_123_456_789
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # revision 2, effective, cap_net_bind_service


def write(path: Path | bytes, text: bytes | str) -> None:
    # A pipe without a reader is refused, not waited for.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644), "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def fill(root: Path, *, files: int = 20) -> None:
    """A directory with everything that a tree can hold."""
    for folder in ("etc", "bin", "a/b/c/d", "empty", "swap", "run/x", "home/u/.npm/_cacache", "big"):
        (root / folder).mkdir(parents=True)
    write(root / "etc/passwd", "root:x:0:0\n")
    write(root / "etc/zero", "")
    write(root / "bin/tool", random.Random(1).randbytes(70_000))
    os.chmod(root / "bin/tool", 0o4755)
    os.setxattr(root / "bin/tool", "security.capability", CAPABILITY)
    os.setxattr(root / "etc/passwd", "user.note", b"hello\0world")
    os.setxattr(root / "a", "user.big", b"v" * 3000)
    os.symlink("passwd", root / "etc/link")
    os.symlink("/" + "t" * 4000, root / "etc/long")
    os.symlink("m" * 2049, root / "etc/middling")
    os.symlink(b"\xff\xfe nowhere", os.fsencode(root / "etc") + b"/odd\xff")
    os.link(root / "etc/passwd", root / "a/b/same")
    os.link(root / "bin/tool", root / "a/tool")
    os.mkfifo(root / "etc/pipe", 0o640)
    write(root / "run/x/pid", "1")
    write(root / "home/u/.npm/_cacache/blob", "cached")
    for name in (b"n\xffw", b"new\nline", b" ", b"-", b"!", b"~", b"\x01", "ümlaut 中文".encode(), b"x" * 255):
        write(os.fsencode(root / "a/b") + b"/" + name, name)
    for i in range(files):
        write(root / f"a/b/c/f{i}", f"file {i}\n" * (i + 1))
        write(root / f"swap/s{i}", f"swap {i}")
    for i in range(500):
        write(root / f"big/name-{i:05d}-{'y' * (i % 60)}", f"{i % 7}")
    write(root / "large", random.Random(2).randbytes(SMALL + 12_345))
    with open(root / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(3 << 20)
        file.write(b"island")
    os.chown(root / "etc/passwd", 1000, 65535)
    os.chown(root / "etc/link", 7, 8, follow_symlinks=False)
    os.chmod(root / "empty", 0o1777)
    os.utime(root / "etc/zero", ns=(NOW, -5_000_000_001))
    os.utime(root / "a/b/c", ns=(NOW, NOW))
