"""Runs inside the sandbox: does steps and says each that is done, or says what is there. Needs only Python."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from typing import Any

SCHEMA = "create table if not exists t (round integer, number integer, body blob, primary key (round, number))"
EXCHANGE = 2
BODY = 600  # bytes of a row
PACKAGES = {"is-odd": "3.0.1", "ms": "2.1.3", "left-pad": "1.3.0"}

Found = dict[str, list[Any]]
Inodes = dict[tuple[int, int], list[str]]

libc = ctypes.CDLL(None, use_errno=True)
maps: dict[tuple[int, int, int], mmap.mmap] = {}  # kept: stores go into pages that are dirty already
databases: dict[str, sqlite3.Connection] = {}


# -- steps: each is one system call that changes something, or one transaction


def create(path: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    os.close(descriptor)


def pwrite(path: str, offset: int, seed: int, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        assert os.pwrite(descriptor, random.Random(seed).randbytes(size), offset) == size
    finally:
        os.close(descriptor)


def truncate(path: str, size: int) -> None:
    os.truncate(path, size)


def store(path: str, offset: int, value: int) -> None:
    status = os.lstat(path)
    key = (status.st_dev, status.st_ino, status.st_size)
    if key not in maps:
        for old in maps.values():
            old.close()
        maps.clear()
        descriptor = os.open(path, os.O_RDWR)
        status = os.fstat(descriptor)  # opening it may have copied it up
        key = (status.st_dev, status.st_ino, status.st_size)
        maps[key] = mmap.mmap(descriptor, 0)
        os.close(descriptor)
    # One store of the processor: never half of it.
    with memoryview(maps[key]) as view, view[offset : offset + 8] as word, word.cast("Q") as words:
        words[0] = value


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(one: str, other: str) -> None:
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), EXCHANGE):
        raise OSError(ctypes.get_errno(), "renameat2")


def fifo(path: str, mode: int) -> None:
    os.mkfifo(path, mode)


def symlink(path: str, target: str) -> None:
    os.symlink(target, path)


def xattr(path: str, name: str, value: str) -> None:
    os.setxattr(path, name, bytes.fromhex(value), follow_symlinks=False)


def unxattr(path: str, name: str) -> None:
    os.removexattr(path, name, follow_symlinks=False)


def utime(path: str, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)


def retire(path: str) -> None:
    if os.path.lexists(path):
        os.makedirs("/home/user/retired", exist_ok=True)
        os.rename(path, f"/home/user/retired/{os.path.basename(path)}")
    shutil.rmtree("/home/user/retired", ignore_errors=True)


def sqlite(database: str, round: int, number: int) -> None:
    there = databases.get(database)
    if there is None:
        os.makedirs(os.path.dirname(database), exist_ok=True)
        there = databases[database] = sqlite3.connect(database, isolation_level=None)
        there.execute(f"pragma journal_mode={'wal' if 'wal' in database else 'delete'}")
        there.execute("pragma synchronous=full")
        there.execute(f"pragma mmap_size={1 << 20 if 'map' in database else 0}")
        there.execute(SCHEMA)
    there.execute("begin immediate")
    there.execute("insert into t values (?, ?, ?)", (round, number, body(round, number)))
    if number > 2:
        # Pages in the middle are written again, so that a torn transaction would show.
        there.execute("update t set body = ? where round = ? and number = ?", (body(round, 1), round, 1))
    there.execute("commit")


def body(round: int, number: int) -> bytes:
    return random.Random(round * 1_000_003 + number).randbytes(BODY)


def npm(project: str) -> None:
    shutil.rmtree(f"{project}/node_modules", ignore_errors=True)
    os.makedirs(project, exist_ok=True)
    with open(f"{project}/package.json", "w") as file:
        json.dump({"name": "stress", "version": "1.0.0", "dependencies": PACKAGES}, file)
    line = ["npm", "install", "--no-audit", "--no-fund", "--no-progress", "--loglevel=error"]
    done = subprocess.run(line, cwd=project, capture_output=True, text=True, timeout=120)
    if done.returncode:
        say("npm-failed", (done.stderr or done.stdout)[-300:])
    else:
        say("npm", project, installed(project))


STEPS: dict[str, Callable[..., None]] = {
    each.__name__: each
    for each in (create, pwrite, truncate, store, sync, exchange, fifo, symlink, xattr, unxattr, utime, retire, sqlite)
} | {
    "npm": npm,
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "unlink": os.unlink,
    "rename": os.rename,
    "link": os.link,
    "chmod": os.chmod,
    "chown": os.chown,
}


def say(*words: object) -> None:
    print(json.dumps(words), flush=True)


def act(plan: str, seconds: float) -> None:
    os.umask(0)
    until = time.monotonic() + seconds
    with open(plan) as file:
        steps = json.load(file)
    for number, (pause, name, *arguments) in enumerate(steps):
        if pause:
            time.sleep(pause)
        if time.monotonic() > until:
            break
        STEPS[name](*arguments)
        say(number, time.monotonic())
    say("end")


# -- what is there


def look(where: str) -> None:
    with open(where) as file:
        asked = json.load(file)
    found: Found = {}
    inodes: Inodes = {}
    for root in asked["roots"]:
        walk(root, found, inodes)
    for names in inodes.values():
        for name in names:
            found[name][8] = sorted(names) if len(names) > 1 else []
    answer = {
        "files": found,
        "databases": {each: rows(each) for each in asked["databases"] if os.path.exists(each)},
        "projects": {each: installed(each) for each in asked["projects"]},
    }
    with open(where + ".answer", "w") as file:
        json.dump(answer, file)


def walk(path: str, found: Found, inodes: Inodes) -> None:
    status = os.lstat(path)
    kind = KINDS.get(stat.S_IFMT(status.st_mode), "other")
    names = os.listxattr(path, follow_symlinks=False)
    attributes = {n: os.getxattr(path, n, follow_symlinks=False).hex() for n in sorted(names) if n.startswith("user.")}
    found[path] = [
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_size if kind == "file" else 0,
        digest(path) if kind == "file" else "",
        os.readlink(path) if kind == "symlink" else "",
        attributes,
        [],
        status.st_mtime_ns,
    ]
    if kind == "dir":
        for name in os.listdir(path):
            walk(f"{path}/{name}", found, inodes)
    else:
        inodes.setdefault((status.st_dev, status.st_ino), []).append(path)


KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo"}


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return sha256(file.read()).hexdigest()


def rows(database: str) -> dict[int, int] | str:
    """How many transactions of each round are there, from the first on; a fault in words instead."""
    with closing(sqlite3.connect(database)) as there:
        said = there.execute("pragma integrity_check").fetchone()[0]
        if said != "ok":
            return f"integrity_check says {said}"
        there.execute(SCHEMA)
        counts: dict[int, int] = {}
        for round, number, content in there.execute("select round, number, body from t order by round, number"):
            counts[round] = counts.get(round, 0) + 1
            if number != counts[round]:
                return f"row {counts[round]} of round {round} is missing"
            if content != body(round, number):
                return f"row {number} of round {round} has other bytes"
        return counts


def installed(project: str) -> str:
    """A digest of an installed dependency tree: names, kinds, modes, contents."""
    found: Found = {}
    inodes: Inodes = {}
    if not os.path.isdir(f"{project}/node_modules"):
        return ""
    walk(f"{project}/node_modules", found, inodes)
    return sha256(json.dumps([[path, *each[:7]] for path, each in sorted(found.items())]).encode()).hexdigest()


if __name__ == "__main__":
    if sys.argv[1] == "act":
        act(sys.argv[2], float(sys.argv[3]))
    else:
        look(sys.argv[2])
