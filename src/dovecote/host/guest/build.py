"""Finds or builds the guest's program."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from dovecote.errors import Failed, Unsupported

HERE = Path(__file__).parent
SOURCES = HERE / "program"
PACKAGED = HERE / "bin"
FLAGS = [
    *("-D_GNU_SOURCE", "-std=gnu11", "-static", "-Os", "-Wall", "-Wextra", "-fno-asynchronous-unwind-tables"),
    *("-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-s"),
]
BUILD_WITHIN = 300.0  # seconds; the first compile of ziglang takes half a minute


def source_digest() -> str:
    """Of all that the program is made from, the flags included."""
    digest = hashlib.blake2b(" ".join(FLAGS).encode(), digest_size=16)
    for path in sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def sources() -> list[Path]:
    return sorted(p for p in SOURCES.iterdir() if p.suffix in (".c", ".h"))


def ensure_guest(cache_dir: Path) -> Path:
    """A static program for this machine: the packaged one if it is of this source, else built once into `cache_dir`.

    Blocks, for seconds when it builds. May be called by several at once.
    Raises Unsupported (no compiler) and Failed `guest_build_failed`.
    """
    arch, digest = platform.machine(), source_digest()
    packaged = PACKAGED / f"guest-{arch}"
    recorded = packaged.with_suffix(".digest")
    if packaged.is_file() and recorded.is_file() and recorded.read_text().strip() == digest:
        return packaged
    built = cache_dir / "guest" / f"guest-{arch}-{digest}"
    if not built.is_file():
        build(built)
    return built


def package_guest() -> Path:
    """Builds the program beside the source, for a wheel."""
    target = PACKAGED / f"guest-{platform.machine()}"
    build(target)
    target.with_suffix(".digest").write_text(source_digest() + "\n")
    return target


def build(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    compilers = compiler_commands()
    if not compilers:
        raise Unsupported(
            "there is no C compiler to build the guest with",
            hint="install gcc and the static C library (Debian: gcc, libc6-dev), or `pip install ziglang`",
        )
    said = ""
    for compiler in compilers:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".guest-")
        os.close(handle)
        try:
            said = _compile(compiler, Path(name))
            if not said:
                os.chmod(name, 0o755)
                os.replace(name, target)
                return
        finally:
            Path(name).unlink(missing_ok=True)
    raise Failed(
        f"the guest could not be built: {said[-500:]}",
        code="guest_build_failed",
        hint="the static C library may be missing (Debian: libc6-dev); `pip install ziglang` works without",
    )


def compiler_commands() -> list[list[str]]:
    """What can build a static program here, best first: musl's are a tenth of glibc's in size and memory."""
    found = [[tool] for tool in ("musl-gcc", "cc", "gcc") if shutil.which(tool)]
    if importlib.util.find_spec("ziglang") is not None:
        target = f"{platform.machine()}-linux-musl"
        found.append([sys.executable, "-m", "ziglang", "cc", "-target", target])
    return found


def build_command(compiler: list[str], target: Path) -> list[str]:
    return [*compiler, *FLAGS, "-o", str(target), *(str(p) for p in sources() if p.suffix == ".c")]


def _compile(compiler: list[str], target: Path) -> str:
    """What the compiler said if it failed."""
    try:
        done = subprocess.run(build_command(compiler, target), capture_output=True, text=True, timeout=BUILD_WITHIN)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr or f"exit {done.returncode}"
