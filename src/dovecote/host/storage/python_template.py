"""Builds the root of the template for code: the base template's and Python packages, compiled once for all."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from pathlib import Path

from blake3 import blake3

from dovecote.host.storage import template_base as base
from dovecote.host.storage import template_code as recipe
from dovecote.host.storage.templates import Progress, build_base, building, installer, remove_tree, run_step


def build_code(cache_dir: Path, progress: Progress) -> Path:
    """Its root directory, built first if this host has not got it. Blocks up to the time of a build.

    Raises Unsupported, StorageFailed (template_failed), DeadlineExceeded, as building the base template does.
    """
    ground = build_base(cache_dir, progress)
    templates = cache_dir / "templates"
    wanted = templates / f"code-{_digest(ground.parent.name)[:16]}"
    root = wanted / "rootfs"
    if root.is_dir():
        return root
    with building(templates, progress):
        if root.is_dir():
            return root
        for leftover in templates.glob(".building-*"):
            remove_tree(leftover)
        started_at = time.monotonic()
        partial = templates / f".building-{os.getpid()}"
        partial.mkdir(mode=0o700)
        try:
            _build(partial, ground, progress)
            partial.rename(wanted)
        finally:
            if partial.exists():
                remove_tree(partial)
        progress(f"template code: built in {time.monotonic() - started_at:.0f} s")
    return root


def packages_command(pip: list[str], target: Path) -> list[str]:
    """argv that unpacks the packages below `target`: wheels for the template's Python, whatever the host's is."""
    command = [*pip, "install", "--quiet", "--only-binary", ":all:", "--target", str(target)]
    command += ["--python-version", recipe.PYTHON]
    machine = platform.machine()
    if Path(pip[0]).name == "uv":
        command += ["--python-platform", f"{machine}-manylinux_{recipe.LIBC[0]}_{recipe.LIBC[1]}"]
    else:
        # Newest first, as pip prefers what it is told first.
        versions = [f"manylinux_2_{minor}" for minor in range(recipe.LIBC[1], 16, -1)]
        command += ["--implementation", "cp", "--no-compile"]
        command += [word for version in versions for word in ("--platform", f"{version}_{machine}")]
        command += ["--platform", f"manylinux2014_{machine}"]
    return [*command, *recipe.PACKAGES]


def _digest(ground: str) -> str:
    parts = {
        "revision": recipe.REVISION,
        "ground": ground,
        "python": recipe.PYTHON,
        "packages": recipe.PACKAGES,
        "kernel": recipe.KERNEL,
    }
    return blake3(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _build(partial: Path, ground: Path, progress: Progress) -> None:
    root, log, packages = partial / "rootfs", partial / "log", partial / "packages"
    progress("template code: copying the base template")
    run_step(["cp", "--archive", "--reflink=auto", str(ground), str(root)], log)
    progress(f"template code: {len(recipe.PACKAGES)} Python packages and what they need")
    run_step(packages_command(installer(), packages), log)
    _add(packages, root)
    progress("template code: compiling")
    # By content and not by time: a tree in the store keeps no time that Python could compare.
    compile_all = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", f"/{recipe.DIRECTORY}"]
    run_step(_inside(root, *compile_all), log)
    run_step(_inside(root, *recipe.KERNEL), log)
    progress("template code: check")
    run_step(_inside(root, "-c", recipe.CHECK), log)
    shutil.rmtree(packages)
    for name in ("tmp", "root", "var/log"):
        for left in (root / name).glob("*"):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def _add(packages: Path, root: Path) -> None:
    target = root / recipe.DIRECTORY
    target.mkdir(parents=True, exist_ok=True)
    for entry in packages.iterdir():
        if entry.name == "share":
            shutil.copytree(entry, root / "usr/local/share", symlinks=True, dirs_exist_ok=True)
        elif entry.name != "bin":
            shutil.move(entry, target / entry.name)
    for path in (target, *target.rglob("*")):
        os.chown(path, 0, 0, follow_symlinks=False)


def _inside(root: Path, *words: str) -> list[str]:
    env = [f"PATH={base.ENV['PATH']}", "HOME=/root", "MPLCONFIGDIR=/tmp"]
    return ["chroot", str(root), "/usr/bin/env", "-i", *env, "python3", *words]
