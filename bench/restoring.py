"""How long a parked project needs until its first command has ended, on a host that has its files and on one that
has not."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.installation import Installation, free_network
from tests.s3 import SeaweedFSServer, seaweedfs

from bench.figures import Row, row
from bench.project import FIRST, FIRST_ANSWER, FIRST_COMMAND, SECONDS, Project, drop_page_cache, installed
from dovecote.host.storage.bucket import local_bucket
from dovecote.host.storage.roots import Roots
from dovecote.host.storage.templates import build_base
from dovecote.host.storage.trees import Trees
from dovecote.model.trees import Workspace
from dovecote.sdk import Session

if TYPE_CHECKING:
    from bench.measures import Bench

COMMAND = ["node", "-e", FIRST_COMMAND]
ID_BASE = 1 << 29


def first_command(session: Session) -> float:
    """Milliseconds from the request to the answer."""
    began = time.perf_counter()
    done = session.run(COMMAND, cwd="/home/user/app", timeout=SECONDS, check=True)
    taken = (time.perf_counter() - began) * 1e3
    if done.stdout.strip() != FIRST_ANSWER:
        raise RuntimeError(f"the first command said {done.stdout!r}")
    return taken


def park(session: Session) -> None:
    if session.park().state != "parked":
        raise RuntimeError(f"the session is {session.state}")


def warm(bench: Bench) -> list[Row]:
    with bench.client() as client, client.sessions.create() as session:
        project = installed(session, bench.installation().settings.cache_dir, "first", FIRST)
        ours = []
        for round_ in range(bench.times(30) + 1):
            park(session)
            if round_:  # the first waking builds the image
                ours.append(first_command(session))
            else:
                session.wake()
        running = [first_command(session) for _ in range(bench.times(20))]
    name = "restore_first_command_warm"
    rows = [row(name, "ms", ours, "the same command, running", running)]
    rows += [row(name, "ms", ours, rival, taken) for rival, taken in _rivals(bench, project).items()]
    return rows


def cold_s3(bench: Bench) -> list[Row]:
    """The server starts again, with a cache that has its template and nothing else."""
    ours = []
    with seaweedfs() as server, on_s3(bench.directory / "s3", server) as installation:
        with installation.client() as client:
            session = client.sessions.create(key="cold")
            project = installed(session, installation.settings.cache_dir, "first", FIRST)
            park(session)
        for _ in range(bench.times(5)):
            installation.down()
            shutil.rmtree(installation.settings.data_dir / "trees")
            installation.start()
            drop_page_cache()
            with installation.client() as client:
                session = client.sessions.get(session.id)
                client.sessions.list()
                ours.append(first_command(session))
                park(session)
    name = "restore_first_command_cold_s3"
    return [row(name, "ms", ours, rival, taken) for rival, taken in _rivals(bench, project, cold=True).items()]


@contextmanager
def on_s3(directory: Path, server: SeaweedFSServer) -> Iterator[Installation]:
    """An installation whose objects are in a real S3 server on loopback."""
    directory.mkdir()
    directory.chmod(0o711)
    url = "s3://dovecote-tests/bench"
    options = server.options
    with free_network() as network:
        installation = Installation(directory, network=network, quiet_after=3600, tick=0.2, objects_url=url)
        installation.environ |= {
            "AWS_ENDPOINT_URL": options["endpoint"],
            "AWS_REGION": options["region"],
            "AWS_ACCESS_KEY_ID": options["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": options["secret_access_key"],
        }
        try:
            installation.start()
            yield installation
        finally:
            installation.down()


def mount_warm(bench: Bench) -> list[Row]:
    """The whole root assembled from a tree that this host has, at the level of `Roots`."""
    directory = bench.directory / "mount"
    with bench.client() as client, client.sessions.create() as session:
        project = installed(session, bench.installation().settings.cache_dir, "first", FIRST)
    files = project.unpack(directory / "files")
    trees = Trees(local_bucket(directory / "store"), directory / "cache")
    try:
        saved = trees.save_directory(files)
        trees.ensure_image(saved.digest)
        ours = asyncio.run(_mounts(trees, saved.digest, directory, bench.times(100)))
    finally:
        trees.close()
    return [row("restore_mount_warm", "ms", ours, "cp -al of the files", _copies(files, directory / "copy"))]


async def _mounts(trees: Trees, digest: str, directory: Path, count: int) -> list[float]:
    async def image(digest: str) -> Path:
        return await asyncio.to_thread(trees.ensure_image, digest)

    roots = Roots(image, trees.objects_dir, directory / "run")
    taken = []
    try:
        await roots.prepare(ID_BASE)
        for number in range(count):
            disk = directory / f"disk{number}"
            for name in ("upper", "work"):
                (disk / name).mkdir(parents=True)
            workspace = Workspace(digest)
            began = time.perf_counter()
            root = await roots.assemble(workspace, disk=disk, id_base=ID_BASE, setuid=False, is_new=True)
            taken.append((time.perf_counter() - began) * 1e3)
            os.close(root)
            await roots.release(workspace)
    finally:
        await roots.remove()
    return taken


def _copies(files: Path, to: Path) -> list[float]:
    taken = []
    for _ in range(3):
        taken.append(_timed(["cp", "-al", str(files), str(to)]))
        shutil.rmtree(to)
    return taken


def _rivals(bench: Bench, project: Project, *, cold: bool = False) -> dict[str, list[float]]:
    """What else brings a project back to the end of the same command, on the host, where no sandbox slows it down."""
    directory = bench.directory / ("rivals-cold" if cold else "rivals")
    files = project.unpack(directory / "files")
    tar, repository = directory / "app.tar.zst", directory / "restic"
    environment = ["env", "RESTIC_PASSWORD=bench", f"RESTIC_CACHE_DIR={directory}/restic-cache"]
    programs = build_base(bench.installation().settings.cache_dir, lambda _: None) / "usr/local/bin"
    node = ["env", f"PATH={programs}:/usr/bin:/bin"]  # the same node and npm as in the sandbox
    _timed(["sh", "-c", f"tar c -C {files} . | zstd -q -3 -T0 -o {tar}"])
    _timed([*environment, "restic", "-q", "-r", str(repository), "init"])
    _timed([*environment, "restic", "-q", "-r", str(repository), "backup", str(files)])
    to = directory / "to"
    npm = f"npm ci --prefer-offline --ignore-scripts --no-audit --no-fund --loglevel=error --cache {directory}/npm"
    lock = f"mkdir {to} && cp {files}/package.json {files}/package-lock.json {to} && cd {to}"
    restores = {
        "npm ci, warm cache": [*node, "sh", "-c", f"{lock} && {npm}"],
        "tar and zstd": ["sh", "-c", f"mkdir {to} && zstd -qdc {tar} | tar x -C {to}"],
        "restic restore": [*environment, "restic", "-q", "-r", str(repository), "restore", "latest", "-t", str(to)],
    }
    _timed(restores["npm ci, warm cache"])  # fills its cache
    shutil.rmtree(to)
    result: dict[str, list[float]] = {}
    for name, command in restores.items():
        result[name] = []
        for _ in range(3):
            if cold:
                drop_page_cache()
            taken = _timed(command)
            at = to / files.relative_to("/") if name.startswith("restic") else to
            result[name].append(taken + _timed([*node, *COMMAND], at=at))
            shutil.rmtree(to)
    shutil.rmtree(directory)
    return result


def _timed(command: list[str], *, at: Path | None = None) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=at, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {(done.stdout + done.stderr).decode(errors='replace')[-2000:]}")
    return (time.perf_counter() - began) * 1e3
