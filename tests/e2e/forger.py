"""Runs inside a sandbox, as root: tries whatever might make storage show, keep or lose what it must not."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import sys
from collections.abc import Callable

NAMES = [b"line\nbreak", b"\xff\xfe", b"n" * 255, b"-rf", b" ", b"#x#1", b".wh..wh..opq", b".wh.kept", b"kept"]
NAMES.append(b"a;b'\"`$(x)")

libc = ctypes.CDLL(None, use_errno=True)
WHITEOUT = 4  # flag of renameat2
ATTRIBUTES = ("metacopy", "redirect", "opaque", "whiteout", "origin", "impure", "upper", "nlink", "protattr")


def tried(act: Callable[..., object], *arguments: object) -> str:
    try:
        act(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def rename_with_whiteout(source: str, target: str) -> None:
    if libc.renameat2(-100, source.encode(), -100, target.encode(), WHITEOUT):
        raise OSError(ctypes.get_errno(), "renameat2")


def keep(path: str | bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def forge(folder: str, digest: str, size: int) -> dict[str, str]:
    """Files, directories and devices that claim to be another object, or that something is hidden."""
    os.makedirs(folder)
    redirect = f"/{digest[:2]}/{digest[2:]}".encode()
    results: dict[str, str] = {}
    for space in ("trusted.overlay.", "trusted.overlay.overlay.", "user.overlay.", "security.overlay."):
        for kind in ("file", "dir"):
            place = f"{folder}/{space}{kind}"
            if kind == "dir":
                os.mkdir(place)
                keep(f"{place}/child", b"mine")
            else:
                with open(place, "wb") as file:
                    file.truncate(size)
            for name in ATTRIBUTES:
                value = {"redirect": redirect, "opaque": b"y"}.get(name, b"")
                results[f"{space}{name} on a {kind}"] = tried(os.setxattr, place, f"{space}{name}", value)
    for name, mode, device in (
        ("whiteout", stat.S_IFCHR, os.makedev(0, 0)),
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("disk", stat.S_IFBLK, os.makedev(7, 0)),
    ):
        results[f"device {name}"] = tried(os.mknod, f"{folder}/{name}", mode | 0o666, device)
    keep(f"{folder}/moved", b"moved")
    results["rename with whiteout"] = tried(rename_with_whiteout, f"{folder}/moved", f"{folder}/moved-away")
    results["id outside"] = tried(os.chown, f"{folder}/moved", 70000, 70000)
    results["handle of another tree"] = tried(os.setxattr, "/etc/hostname", "trusted.overlay.origin", b"\0" * 30)
    return results


def craft(folder: str) -> dict[str, str]:
    """Names, depths and modes that a program may well have, and that a careless one falls over."""
    os.makedirs(folder)
    results: dict[str, str] = {}
    for name in NAMES:
        keep(os.fsencode(folder) + b"/" + name, b"content of " + name)
    os.link(f"{folder}/kept", f"{folder}/linked")
    keep(f"{folder}/setuid", b"#!/bin/sh\n")
    os.chown(f"{folder}/setuid", 0, 0)
    os.chmod(f"{folder}/setuid", 0o6755)
    for number in (0, 1000, 65534, 65535):
        keep(f"{folder}/of{number}", b"")
        results[f"id {number}"] = tried(os.chown, f"{folder}/of{number}", number, number)
    return results


def deepen(folder: str, levels: int) -> None:
    """A path that no system call takes whole, with a file at its end."""
    os.makedirs(folder)
    os.chdir(folder)
    for _ in range(levels):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    keep("bottom", b"deep")


if __name__ == "__main__":
    act, folder, *more = sys.argv[1:]
    if act == "forge":
        print(json.dumps(forge(folder, more[0], int(more[1]))))
    elif act == "craft":
        print(json.dumps(craft(folder)))
    else:
        deepen(folder, int(more[0]))
