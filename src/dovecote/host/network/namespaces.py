"""Network namespaces that are files: made, entered by a thread of their own, removed."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dovecote.errors import Failed

T = TypeVar("T")

HOST = Path("/proc/self/ns/net")

_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 1 << 20
_MNT_DETACH = 2
_WAIT = 30.0
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _on_thread(act: Callable[[], T]) -> T:
    """Runs `act` on a thread that ends with it, so that no other work is ever seen in a foreign namespace."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(act())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="netns", daemon=True)
    thread.start()
    thread.join(_WAIT)
    if errors:
        raise errors[0]
    if not results:
        raise Failed("the kernel did not finish a change of network namespace", code="network_failed")
    return results[0]


def inside(path: Path, act: Callable[[], T]) -> T:
    """What `act` returns when it runs in that namespace. Sockets that it opens stay there."""

    def enter() -> T:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(descriptor, _NEWNET), f"enter {path}")
        finally:
            os.close(descriptor)
        return act()

    return _on_thread(enter)


def create(path: Path, act: Callable[[int], T]) -> T:
    """Makes a namespace, keeps it at `path`, and runs `act` in it with its file descriptor.

    When `act` fails nothing is left.
    """

    def make() -> T:
        _check(_libc.unshare(_NEWNET), "make a network namespace")
        path.touch(mode=0o600)
        try:
            _check(_libc.mount(b"/proc/thread-self/ns/net", os.fsencode(path), None, _MS_BIND, None), f"keep {path}")
            descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return act(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            delete(path)
            raise

    return _on_thread(make)


def trial(act: Callable[[], T]) -> T:
    """Runs `act` in a namespace that vanishes afterwards."""

    def make() -> T:
        _check(_libc.unshare(_NEWNET), "make a network namespace")
        return act()

    return _on_thread(make)


def delete(path: Path) -> None:
    """Lets go of the namespace; it ends when nothing runs in it. May be repeated."""
    while _libc.umount2(os.fsencode(path), _MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def is_namespace(path: Path) -> bool:
    """Whether a namespace is mounted there, not just a file left by a crash."""
    try:
        return path.stat().st_dev == HOST.stat().st_dev
    except FileNotFoundError:
        return False


def prepare_directory(path: Path) -> None:
    """Makes the directory of named namespaces as `ip netns` does.

    Otherwise the first `ip netns add` on this host binds the directory over itself, and a second, hidden mount
    keeps every namespace that was there before.
    """
    path.mkdir(parents=True, exist_ok=True)
    name = os.fsencode(path)
    if _libc.mount(b"", name, None, _MS_SHARED | _MS_REC, None) != 0:
        _check(_libc.mount(name, name, None, _MS_BIND | _MS_REC, None), f"bind {path}")
        _check(_libc.mount(b"", name, None, _MS_SHARED | _MS_REC, None), f"share {path}")


def write_sysctl(name: str, value: str) -> None:
    """Writes a `net.*` setting of the namespace that the calling thread is in."""
    Path("/proc/sys", *name.split("/")).write_text(value)
