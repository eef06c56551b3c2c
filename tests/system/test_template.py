"""The base template, built for real and used in a container as a sandbox would use it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dovecote.config import read_settings
from dovecote.errors import StorageFailed
from dovecote.host.storage import mounts, templates
from dovecote.host.storage.entrance import Entrance
from dovecote.host.storage.pool import BtrfsDisks
from dovecote.host.storage.templates import BASE, build_base
from tests.system.storage_rig import ID_BASE, Container, container

pytestmark = [pytest.mark.system, pytest.mark.anyio, pytest.mark.timeout(900)]

USER = 1000


@pytest.fixture
async def base() -> Path:
    return await asyncio.to_thread(build_base, read_settings().cache_dir, print)


@pytest.fixture
async def sandbox(base: Path) -> AsyncIterator[Container]:
    """A container with the template as its root, in the host's network."""
    with tempfile.TemporaryDirectory(prefix="dovecote-template-") as name:
        place = Path(name)
        (place / "objects").mkdir()
        disks = BtrfsDisks(place / "pool", place / "at", max_bytes=2 << 30)
        entrance = Entrance()
        opened = []
        try:
            await disks.ensure()
            disk = await disks.create("a", max_bytes=1 << 30, owner=ID_BASE)
            (disk / "upper/etc").mkdir()
            (disk / "upper/etc/resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
            for path in (disk / "upper/etc", disk / "upper/etc/resolv.conf"):
                os.chown(path, ID_BASE, ID_BASE)
            opened.append(mounts.user_namespace(ID_BASE))
            opened.append(mounts.idmapped(base, opened[0]))
            layers = {"upper": disk / "upper", "work": disk / "work"}
            opened.append(mounts.overlay([opened[1]], place / "objects", **layers, allow_setuid=True))
            with container(own_network=False) as running:
                await entrance.swap_root(running.pid, opened[2], id_base=ID_BASE)
                while opened:
                    os.close(opened.pop())
                yield running
        finally:
            for descriptor in opened:
                os.close(descriptor)
            await entrance.stop()
            await disks.remove()


def run(sandbox: Container, script: str) -> str:
    env = {**BASE.env, "HOME": BASE.home, "USER": BASE.default_user}
    return sandbox.sh(f"cd; {script}", user=USER, env=env, timeout=300)


async def test_the_tools_are_there(sandbox: Container) -> None:
    assert run(sandbox, "id -un; pwd; node --version").splitlines()[:2] == ["user", "/home/user"]
    assert run(sandbox, "node --version").startswith("v24.")
    for tool in ("npm --version", "npx --version", "python3 --version", "git --version", "curl --version", "ip -V"):
        assert "not found" not in run(sandbox, f"{tool} >/dev/null || echo not found")
    for tool in ("bash", "less", "nano", "unzip", "xz", "ssh", "ps", "sudo", "pip"):
        assert run(sandbox, f"command -v {tool}").startswith("/")


async def test_the_user_becomes_root_without_a_password(sandbox: Container) -> None:
    assert run(sandbox, "sudo -n id -u") == "0"
    assert run(sandbox, "sudo -n sh -c 'echo x > /root/f; cat /root/f'") == "x"
    assert run(sandbox, "sudo env").count("/etc/ssl/certs/ca-certificates.crt") >= 3


async def test_packages_install_for_the_user_and_the_system(sandbox: Container) -> None:
    """From all three package managers, through whatever inspects the host's TLS."""
    assert "Successfully installed" in run(sandbox, "pip install six")
    assert run(sandbox, "python3 -c 'import six; print(six.__name__)'") == "six"
    assert "added 1 package" in run(sandbox, "npm install -g semver")
    assert run(sandbox, "semver 1.2.3") == "1.2.3"
    assert "added 1 package" in run(sandbox, "mkdir app; cd app; npm init -y >/dev/null; npm install is-number")
    assert run(sandbox, "python3 -m venv v && v/bin/pip --version").startswith("pip")
    run(sandbox, "sudo apt-get -q update && sudo apt-get install -yq file")
    assert run(sandbox, "file --version").startswith("file-5")


async def test_the_root_is_ready_for_a_sandbox(base: Path) -> None:
    assert (base / "etc/resolv.conf").read_text() == "nameserver 169.254.1.1\noptions edns0\n"
    assert "127.0.0.1 localhost" in (base / "etc/hosts").read_text()
    for name in ("proc", "sys", "dev", "run", "tmp"):
        assert list((base / name).iterdir()) == []
    assert stat.S_IMODE((base / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE(base.stat().st_mode) == 0o755
    assert stat.S_IMODE(base.parent.stat().st_mode) == 0o700
    assert (base / "home/user").stat().st_uid == USER


async def test_the_root_is_lean(base: Path) -> None:
    """Under 400 MB of files, no manuals, no other languages, and none of the kinds that a tree cannot hold."""
    size = 0
    for directory, _, files in os.walk(base):
        for name in files:
            found = (Path(directory) / name).lstat()
            assert stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode), name
            size += found.st_size
    assert size < 400_000_000
    assert not any((base / "usr/share/man").glob("*/*"))


async def test_the_hosts_own_authorities_are_trusted(base: Path) -> None:
    bundle = (base / "etc/ssl/certs/ca-certificates.crt").read_bytes()
    for text in templates.host_certificates().values():
        first = text[text.index(b"-----BEGIN") :].split(b"-----END")[0].strip()
        assert first in bundle


async def test_a_second_call_builds_nothing(base: Path) -> None:
    lines: list[str] = []
    assert await asyncio.to_thread(build_base, read_settings().cache_dir, lines.append) == base
    assert lines == []


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(root: Path, certificates: Path, mirror: Path | None) -> list[str]:
        return ["sh", "-c", f"mkdir {root}; echo no mirror >&2; exit 100"]

    monkeypatch.setattr(templates, "bootstrap_command", failing)


@pytest.mark.usefixtures("no_mirror")
async def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """Nor does one that was killed before it."""
    (tmp_path / "templates/.building-1/rootfs").mkdir(parents=True)
    with pytest.raises(StorageFailed, match="no mirror") as caught:
        await asyncio.to_thread(build_base, tmp_path, lambda line: None)
    assert caught.value.code == "template_failed"
    assert [path.name for path in (tmp_path / "templates").iterdir()] == [".lock"]


@pytest.mark.usefixtures("no_mirror")
async def test_a_build_waits_for_another_and_goes_on_when_that_dies(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    script = f"exec 9>{tmp_path}/templates/.lock; flock 9; echo held; read -r _"
    pipe = asyncio.subprocess.PIPE
    holder = await asyncio.create_subprocess_exec("sh", "-c", script, stdin=pipe, stdout=pipe)
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(line: str) -> None:
        loop.call_soon_threadsafe(told.set)

    try:
        async with asyncio.timeout(30):
            assert holder.stdout is not None
            assert await holder.stdout.readline() == b"held\n"
            building = asyncio.create_task(asyncio.to_thread(build_base, tmp_path, tell))
            await told.wait()
            assert not list((tmp_path / "templates").glob(".building-*"))
            holder.kill()
            with pytest.raises(StorageFailed, match="no mirror"):
                await building
    finally:
        with contextlib.suppress(ProcessLookupError):
            holder.kill()
        await holder.wait()
