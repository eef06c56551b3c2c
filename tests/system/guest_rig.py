"""A real guest as PID 1 of a small sandbox with a root and users of its own; run as a script, it builds that."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

BASE = 1_900_000_000  # host id of the sandbox's root
BOUND = 20.0  # seconds that a condition may take
BUILT = Path(__file__).parents[2] / "build" / "guest-test"

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
::broken line
bird:x:1000:1000:A Bird,,,:/home/bird:/bin/sh
minus:x:4294967295:0::/:/bin/sh
wren:x:1001:1001::/nowhere:/bin/dash
"""
GROUP = """\
root:x:0:
bird:x:1000:
flock:x:1500:wren,bird
nest:x:1501:birdie,bir
garbage
sky:x:1502:bird
"""


@dataclass(frozen=True)
class Rig:
    guest: Guest
    pid: int  # of the guest, on the host
    socket_path: Path

    def rss_bytes(self, kind: str = "VmRSS") -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(kind + ":"):
                return int(line.split()[1]) * 1024
        raise AssertionError(kind)

    def alive(self) -> bool:
        with contextlib.suppress(OSError):
            return ") Z " not in Path(f"/proc/{self.pid}/stat").read_text()
        return False

    def processes(self, marker: str) -> list[int]:
        """Host pids whose command line holds `marker`. They need not be children of anybody."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def helpers(self) -> list[int]:
        """Host pids of the processes that the guest forked and that are no commands."""
        found = []
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == Path(f"/proc/{self.pid}/comm").read_text():
                    found.append(int(child))
        return found

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    async def sh(self, script: str, *, user: str = "root", **more: object) -> Finished:
        return await self.guest.run(Command(("/bin/sh", "-c", script), user=user, **more))  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(program: Path | None = None) -> AsyncIterator[Rig]:
    """Removed whole at the end: processes by the end of their PID namespace, mounts with it."""
    program = program or static_program()
    directory = Path(tempfile.mkdtemp(prefix="guest-"))
    launcher: subprocess.Popen[bytes] | None = None
    pid = 0
    try:
        directory.chmod(0o755)
        (directory / "root").mkdir(mode=0o755)
        shutil.copy(program, directory / "guest")
        (directory / "guest").chmod(0o711 if program == static_program() else 0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "socket"))
            listener.listen(128)
            fd = listener.fileno()
            launcher = await asyncio.to_thread(
                subprocess.Popen,
                [sys.executable, __file__, str(fd), str(directory)],
                pass_fds=[fd],
                stdout=subprocess.PIPE,
                stderr=(directory / "errors").open("wb"),
                env={
                    "PATH": os.environ["PATH"],
                    "ASAN_OPTIONS": "detect_leaks=0",
                    "UBSAN_OPTIONS": "print_stacktrace=1",
                },
            )
        assert launcher.stdout is not None
        line = await asyncio.to_thread(launcher.stdout.readline)
        assert line.strip().isdigit(), (directory / "errors").read_text()
        pid = int(line)
        rig = Rig(Guest(directory / "socket"), pid, directory / "socket")
        await rig.guest.hello(timeout=BOUND)
        try:
            yield rig
        finally:
            said = (directory / "errors").read_text()
            assert "Sanitizer" not in said, said
            assert "runtime error" not in said, said
    finally:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if launcher is not None:
            if not pid:
                launcher.kill()
            await asyncio.to_thread(launcher.wait, BOUND)
            assert launcher.stdout is not None
            launcher.stdout.close()
        shutil.rmtree(directory, ignore_errors=True)


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits for a condition, and fails when it does not come."""
    deadline = time.monotonic() + BOUND
    while True:
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


@functools.cache
def static_program() -> Path:
    return ensure_guest(BUILT)


@functools.cache
def sanitized_program() -> Path:
    """With the checks of the compiler, and little patience with slow readers. Needs a compiler that has them."""
    BUILT.mkdir(parents=True, exist_ok=True)
    flags = ["-D_GNU_SOURCE", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-DSTALLED_AFTER=1000"]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    target = BUILT / f"sanitized-{source_digest()}"
    if not target.exists():
        made = BUILT / f".sanitized-{os.getpid()}"
        sources_ = [str(p) for p in sources() if p.suffix == ".c"]
        subprocess.run(["cc", *flags, *checks, "-o", str(made), *sources_], check=True, timeout=120)
        made.replace(target)
    return target


# -- the script: arguments are the listener's descriptor and a directory that holds `guest` and an empty `root`


def launch(fd: int, directory: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    started, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        os.read(started[0], 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{child}/{name}").write_text(f"0 {BASE} 65536\n")
        os.write(mapped[1], b"x")
        os.close(fd)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 127)
    new_namespaces = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000  # user, mount, pid, net, ipc
    check(libc.unshare(new_namespaces))
    os.write(started[1], b"x")
    os.read(mapped[0], 1)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    init = os.fork()
    if init:
        os.close(fd)
        print(init, flush=True)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]) & 127)
    prepare_root(libc, directory)
    os.dup2(fd, 3)
    os.dup2(2, 1)
    os.closerange(4, 1024)
    os.execve("/guest", ["/guest", "3"], {k: v for k, v in os.environ.items() if k.endswith("_OPTIONS")})


def prepare_root(libc: ctypes.CDLL, directory: str) -> None:
    root = Path(directory, "root")
    bind, recursive, private, nosuid = 4096, 16384, 1 << 18, 2

    def mount(source: str, target: Path | str, kind: str = "", flags: int = 0, options: str = "") -> None:
        check(libc.mount(source.encode(), str(target).encode(), kind.encode(), flags, options.encode()))

    mount("none", "/", flags=recursive | private)
    mount("tmpfs", root, "tmpfs", nosuid, "mode=755")
    for name in ("usr", "dev", "dev/pts", "proc", "tmp", "etc", "root", "home", "home/bird"):
        (root / name).mkdir()
    os.chown(root / "home/bird", 1000, 1000)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    mount("/usr", root / "usr", flags=bind | recursive)
    for name in ("bin", "lib", "lib64", "sbin"):
        os.symlink(f"usr/{name}", root / name)
    for name in ("null", "zero", "urandom", "tty"):
        (root / "dev" / name).touch()
        mount(f"/dev/{name}", root / "dev" / name, flags=bind)
    mount("devpts", root / "dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=620")
    os.symlink("pts/ptmx", root / "dev/ptmx")
    (root / "guest").touch()
    mount(f"{directory}/guest", root / "guest", flags=bind)
    mount("proc", root / "proc", "proc")
    os.chroot(root)
    os.chdir("/")
    subprocess.run(["/sbin/ip", "link", "set", "lo", "up"], check=True, timeout=10)


def check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    launch(int(sys.argv[1]), sys.argv[2])

from dovecote.host.guest import Command, Finished, Guest, ensure_guest  # noqa: E402 - the script needs none of it
from dovecote.host.guest.build import source_digest, sources  # noqa: E402
