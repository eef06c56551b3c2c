"""A root that is assembled for a container is a root for a gVisor sandbox too, and what is saved of it is the same."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dovecote.host.storage import loops, mounts
from dovecote.host.storage.bucket import open_bucket
from dovecote.host.storage.entrance import Entrance
from dovecote.host.storage.manifest import Entry
from dovecote.host.storage.plain import PlainTrees
from dovecote.host.storage.pool import BtrfsDisks
from dovecote.host.storage.roots import Roots
from dovecote.host.storage.trees import Trees
from dovecote.model.trees import Workspace
from tests.system.storage_rig import CAPABILITIES, ID_BASE, container, small_root

pytestmark = [
    pytest.mark.system,
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="install runsc (deploy/install.sh gvisor)"),
]

MIB = 1 << 20
# Its own overlay would keep writes from our upper, and its cache would keep them for itself.
FLAGS = ("--platform=systrap", "--ignore-cgroups", "--network=none", "--overlay2=none", "--file-access=shared")
CHANGES = (
    "set -e; echo hi > /made; echo more >> /data/changed; chmod 640 /data/keep; chown 1000:1000 /data/dir/inner; "
    "mv /data/dir /data/moved; rm /data/gone; mkdir -p /deep/er; echo x > /deep/er/f; ln -s /made /link; "
    "rm -r /home/user; mkdir /home/user; touch /home/user/empty; "
    "touch -d 2001-02-03T04:05:06Z /made /data/changed /deep/er/f /deep/er /deep /home/user/empty /home/user /home "
    "/data/moved /data /; touch -h -d 2001-02-03T04:05:06Z /link"
)


@dataclass
class Sandbox:
    directory: Path

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["runsc", "--root", f"{self.directory}/state", *FLAGS, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def sh(self, script: str) -> str:
        done = self.call("exec", "sandbox", "/bin/sh", "-c", script)
        return (done.stdout + done.stderr).strip()


@contextmanager
def gvisor(root: int) -> Iterator[Sandbox]:
    """A running sandbox whose root is the detached mount `root`."""
    directory = Path(tempfile.mkdtemp(prefix="dovecote-gvisor-"))
    directory.chmod(0o711)
    sandbox = Sandbox(directory)
    (directory / "bundle").mkdir(0o711)
    quiet, held = os.pipe()  # its first process reads until this closes
    try:
        mounts.mount_at(os.dup(root), directory / "bundle/root")
        (directory / "bundle/config.json").write_text(json.dumps(config()))
        # Files, since whoever runs on would hold a pipe open.
        with open(directory / "log", "wb") as log:
            command = ["runsc", "--root", f"{directory}/state", *FLAGS, "run", "--detach"]
            command += ["--bundle", f"{directory}/bundle", "sandbox"]
            done = subprocess.run(command, stdin=quiet, stdout=log, stderr=log, timeout=60, check=False)
        assert done.returncode == 0, (directory / "log").read_text()
        yield sandbox
    finally:
        sandbox.call("delete", "--force", "sandbox")
        os.close(quiet)
        os.close(held)
        mounts.unmount(directory / "bundle/root", detach=True)
        shutil.rmtree(directory)


def config() -> dict[str, object]:
    mapping = [{"containerID": 0, "hostID": ID_BASE, "size": 65536}]
    kinds = ("bounding", "effective", "permitted", "inheritable")
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/cat"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": dict.fromkeys(kinds, CAPABILITIES),
        },
        "root": {"path": "root", "readonly": False},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "uidMappings": mapping,
            "gidMappings": mapping,
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user", "network")],
        },
    }


@dataclass
class Place:
    disks: BtrfsDisks
    trees: Trees
    roots: Roots
    workspace: Workspace

    async def entries(self, disk: str) -> tuple[str, list[Entry]]:
        """The tree that a disk is folded to."""
        snapshot = await self.disks.snapshot(disk, f"{disk}.1")
        async with self.roots.merged(self.workspace, snapshot / "upper", id_base=ID_BASE) as merged:
            saved = self.trees.save_delta(snapshot / "upper", merged, id_base=ID_BASE, template=self.workspace.template)
        return saved.digest, self.trees.entries(saved.digest)


@pytest.fixture(params=["images", "plain"])
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix="dovecote-gvisor-roots-") as name:
        directory = Path(name)
        directory.chmod(0o711)
        trees = Trees(open_bucket("memory:"), directory / "cache")
        root = small_root(directory / "t0")
        plain = PlainTrees(trees.contents, trees.objects_dir, directory / "plain")

        async def image(digest: str) -> Path:
            return await asyncio.to_thread(trees.ensure_image, digest)

        roots = Roots(image, trees.objects_dir, directory / "run", plain=plain if request.param == "plain" else None)
        disks = BtrfsDisks(directory / "pool", directory / "run/pool", max_bytes=1 << 30)
        try:
            await disks.ensure()
            yield Place(disks, trees, roots, Workspace(trees.save_directory(root).digest))
        finally:
            await roots.remove()
            await disks.remove()
            trees.close()
            assert mounts.mounted_below(directory) == []
            assert loops.devices_of(directory / "pool") == []


async def test_what_a_sandbox_wrote_is_saved_as_what_a_container_wrote(place: Place) -> None:
    """Both start from the same tree, do the same, and fold to the same manifest."""
    entrance = Entrance()
    try:
        for name in ("crun", "gvisor"):
            disk = await place.disks.create(name, max_bytes=64 * MIB, owner=ID_BASE)
            root = await place.roots.assemble(place.workspace, disk=disk, id_base=ID_BASE, setuid=False, is_new=True)
            try:
                if name == "crun":
                    with container() as box:
                        await entrance.swap_root(box.pid, root, id_base=ID_BASE, run_bytes=MIB)
                        assert box.sh(CHANGES) == ""
                else:
                    with gvisor(root) as sandbox:
                        assert sandbox.sh("cat /data/keep; stat -c %u /data/keep") == "keep0"
                        assert sandbox.sh(CHANGES) == ""
                        assert sandbox.sh("cat /data/moved/inner /made; ls /data/gone 2>/dev/null") == "innerhi"
                        assert (disk / "upper/made").stat().st_uid == ID_BASE
            finally:
                os.close(root)
        (one, of_container), (other, of_sandbox) = [await place.entries(name) for name in ("crun", "gvisor")]
        differing = [pair for pair in zip(of_container, of_sandbox, strict=False) if pair[0] != pair[1]]
        assert differing == []
        assert one == other
    finally:
        await entrance.stop()


async def test_a_sandbox_cannot_pass_the_limit_of_its_disk(place: Place) -> None:
    disk = await place.disks.create("a", max_bytes=64 * MIB, owner=ID_BASE)
    root = await place.roots.assemble(place.workspace, disk=disk, id_base=ID_BASE, setuid=False, is_new=True)
    try:
        with gvisor(root) as sandbox:
            assert "uota" in sandbox.sh("cat /dev/zero > /big")
            assert sandbox.sh("rm /big; cat /data/keep") == "keep"
    finally:
        os.close(root)
    assert (await place.disks.usage("a")).bytes <= 64 * MIB
