"""A small root, an image of it, a pool of disks and a container, for tests of storage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ID_BASE = 3_000_000
TOOLS = ("cat", "chmod", "chown", "df", "id", "ln", "ls", "mkdir", "mount", "mv", "rm", "sh", "stat", "touch", "umount")
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"]
SYS = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
# crun refuses a hybrid cgroup hierarchy; in a mount namespace of its own it does not see that one.
PLAIN_CGROUPS = ["unshare", "--mount", "sh", "-c", 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"', "sh"]


def small_root(root: Path) -> Path:
    """A root with a shell, a few tools and some files of ours."""
    for tool in TOOLS:
        found = Path(shutil.which(tool) or tool).resolve()
        _copy(found, root / "bin" / tool)
        listed = subprocess.run(["ldd", found], capture_output=True, text=True, timeout=10, check=True).stdout
        for library in (word for word in listed.split() if word.startswith("/")):
            _copy(Path(library), root / library.lstrip("/"))
    for name in ("proc", "dev", "sys", "run", "tmp", "data/dir", "home/user"):
        (root / name).mkdir(parents=True)
    for name, text in {"keep": "keep", "gone": "gone", "changed": "old", "dir/inner": "inner"}.items():
        (root / "data" / name).write_text(text)
    os.chown(root / "home/user", 1000, 1000)
    return root


def _copy(source: Path, to: Path) -> None:
    if not to.exists():
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, to)


def image_of(root: Path, image: Path, objects: Path) -> None:
    """An EROFS image of metadata over a directory of objects, made with the tool of erofs-utils."""
    meta = image.with_suffix(".d")
    objects.mkdir(exist_ok=True)
    for directory, _, files in os.walk(root):
        to = meta / Path(directory).relative_to(root)
        to.mkdir(parents=True, exist_ok=True)
        _same_owner(Path(directory), to)
        for name in files:
            source, entry = Path(directory) / name, to / name
            content = source.read_bytes()
            entry.touch()
            if content:
                name = hashlib.sha256(content).hexdigest()
                (objects / name).write_bytes(content)
                (objects / name).chmod(0o600)
                os.truncate(entry, len(content))
                os.setxattr(entry, "trusted.overlay.metacopy", b"")
                os.setxattr(entry, "trusted.overlay.redirect", f"/{name}".encode())
            _same_owner(source, entry)
    subprocess.run(["mkfs.erofs", "--quiet", image, meta], capture_output=True, timeout=60, check=True)
    shutil.rmtree(meta)


def _same_owner(source: Path, to: Path) -> None:
    found = source.stat()
    os.chown(to, found.st_uid, found.st_gid)
    to.chmod(stat.S_IMODE(found.st_mode))


@dataclass
class Container:
    """A crun container in a user namespace that waits in a stub root."""

    directory: Path
    name: str
    pid: int

    def sh(self, script: str, *, user: int = 0, env: Mapping[str, str] | None = None, timeout: float = 30) -> str:
        """Output of a shell inside; both streams."""
        command = [*PLAIN_CGROUPS, "crun", "--root", f"{self.directory}/state", "--cgroup-manager=disabled"]
        command += ["exec", f"--user={user}:{user}"]
        command += [f"--env={name}={value}" for name, value in (env or {"PATH": "/bin"}).items()]
        command += [self.name, "/bin/sh", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        return (done.stdout + done.stderr).strip()


@contextmanager
def container(id_base: int = ID_BASE, *, own_network: bool = True) -> Iterator[Container]:
    directory = Path(tempfile.mkdtemp(prefix="dovecote-rig-"))
    directory.chmod(0o711)
    name = directory.name
    bundle = directory / "bundle"
    stub = bundle / "stub"
    for kept in ("proc", "dev", "sys", "new"):
        (stub / kept).mkdir(parents=True)
    crun = ["crun", "--root", f"{directory}/state", "--cgroup-manager=disabled"]
    try:
        program = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"
        compiler = ["cc", "-static", "-xc", "-", "-o", str(stub / "wait")]
        subprocess.run(compiler, input=program, text=True, timeout=60, check=True)
        (bundle / "config.json").write_text(json.dumps(_config(id_base, own_network)))
        with open(directory / "log", "wb") as log:
            run = [*PLAIN_CGROUPS, *crun, "run", "--detach", "--bundle", str(bundle), name]
            code = subprocess.run(run, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=30, check=False)
        assert code.returncode == 0, (directory / "log").read_text()
        state = subprocess.run([*crun, "state", name], capture_output=True, text=True, timeout=10, check=True).stdout
        yield Container(directory, name, json.loads(state)["pid"])
    finally:
        subprocess.run([*crun, "delete", "--force", name], capture_output=True, timeout=30, check=False)
        shutil.rmtree(directory)


def _config(id_base: int, own_network: bool) -> dict[str, object]:
    mapping = [{"containerID": 0, "hostID": id_base, "size": 65536}]
    kinds = ("bounding", "effective", "permitted", "inheritable")
    namespaces = ["pid", "ipc", "uts", "mount", "user", *(["network"] if own_network else [])]
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/wait"],
            "env": [],
            "cwd": "/",
            "capabilities": dict.fromkeys(kinds, CAPABILITIES),
        },
        "root": {"path": "stub", "readonly": False},
        "hostname": "sandbox",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["newinstance", "ptmxmode=0666"],
            },
            {
                "destination": "/dev/shm",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "nodev", "mode=1777"],
            },
            *([SYS] if own_network else [{**SYS, "type": "bind", "source": "/sys", "options": ["rbind", "ro"]}]),
        ],
        "linux": {
            "uidMappings": mapping,
            "gidMappings": mapping,
            "namespaces": [{"type": kind} for kind in namespaces],
            "maskedPaths": ["/proc/kallsyms"],
            "readonlyPaths": ["/proc/sys"],
        },
    }
