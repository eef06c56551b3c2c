"""Trees as plain directories: the same files, the same saves, and no file of one instance in another."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dovecote.errors import StorageFailed, Unsupported
from dovecote.host.storage import loops, mounts
from dovecote.host.storage.bucket import open_bucket
from dovecote.host.storage.entrance import Entrance
from dovecote.host.storage.lowers import AUTO, IMAGES, PLAIN, pick, try_plain
from dovecote.host.storage.manifest import Entry, Kind
from dovecote.host.storage.plain import PlainTrees, lay_out, remove_tree
from dovecote.host.storage.pool import BtrfsDisks
from dovecote.host.storage.roots import Roots
from dovecote.host.storage.trees import Trees
from dovecote.model.trees import Workspace
from tests.system.storage_rig import ID_BASE, container, small_root
from tests.system.test_changes import act
from tests.system.tree_rig import Rig, differences, picture

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20


@dataclass
class Place:
    directory: Path
    disks: BtrfsDisks
    trees: Trees
    template: str
    plain: Roots
    images: Roots

    def plain_trees(self) -> PlainTrees:
        return PlainTrees(self.trees.contents, self.trees.objects_dir, self.directory / "plain")

    def new_plain(self) -> Roots:
        return Roots(self.never, self.trees.objects_dir, self.directory / "run-plain", plain=self.plain_trees())

    async def never(self, digest: str) -> Path:
        raise AssertionError("no image may be asked for")

    async def image(self, digest: str) -> Path:
        return await asyncio.to_thread(self.trees.ensure_image, digest)

    async def fold(self, roots: Roots, snapshot: Path, workspace: Workspace) -> str:
        async with roots.merged(workspace, snapshot / "upper", id_base=ID_BASE) as merged:
            saved = self.trees.save_delta(
                snapshot / "upper", merged, id_base=ID_BASE, template=workspace.template, previous=workspace.tree
            )
        return saved.digest


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix="dovecote-plain-") as name:
        directory = Path(name)
        trees = Trees(open_bucket("memory:"), directory / "cache")
        root = small_root(directory / "t0")
        furnish(root / "data")
        template = trees.save_directory(root).digest
        disks = BtrfsDisks(directory / "pool", directory / "run/pool", max_bytes=1 << 30)
        made = Place(directory, disks, trees, template, None, None)  # type: ignore[arg-type]
        made.plain = made.new_plain()
        made.images = Roots(made.image, trees.objects_dir, directory / "run-images")
        try:
            await disks.ensure()
            yield made
        finally:
            await made.plain.remove()
            await made.images.remove()
            await disks.remove()
            trees.close()
            assert mounts.mounted_below(directory) == []
            assert loops.devices_of(directory / "pool") == []


def furnish(data: Path) -> None:
    """One of each kind of thing that a tree can hold."""
    (data / "twice").write_text("two names")
    os.link(data / "twice", data / "again")
    (data / "link").symlink_to("/nowhere/at/all")
    os.link(data / "link", data / "link2", follow_symlinks=False)
    os.mkfifo(data / "fifo", 0o640)
    (data / "empty").touch()
    with open(data / "sparse", "wb") as sparse:
        sparse.seek(3 * MIB)
        sparse.write(b"end")
        sparse.truncate(5 * MIB)
    os.setxattr(data / "keep", "user.colour", b"blue")
    os.setxattr(data / "dir", "user.colour", b"red")
    (data / "tool").write_bytes(b"#!/bin/sh\n")
    os.chown(data / "tool", 1000, 1001)
    (data / "tool").chmod(0o6755)
    os.setxattr(data / "tool", "security.capability", bytes([1, 0, 0, 2]) + bytes([0, 4, 0, 0]) + bytes(12))
    os.utime(data / "dir", ns=(1_000_000_007, 1_000_000_007))
    os.mkdir(os.fsencode(data) + b"/\xff\n name")


async def test_both_ways_show_the_same_files(place: Place) -> None:
    """Names, bytes, owners, modes, times, links, extended attributes and holes."""
    workspace = Workspace(place.template)
    empty = place.directory / "none"
    empty.mkdir()
    seen = []
    for roots in (place.images, place.plain):
        async with roots.merged(workspace, empty, id_base=ID_BASE) as view:
            seen.append(picture(view))
            assert os.getxattr(view / "data/tool", "security.capability")
    one, other = ({p: line for p, line in each.items() if p} for each in seen)
    assert differences(one, other) == []
    laid = next((place.directory / "plain").glob("*/*")) / "data/sparse"
    assert laid.stat().st_blocks * 512 < 2 * MIB


async def test_an_instance_lives_over_plain_directories_and_its_save_is_the_same_to_the_byte(place: Place) -> None:
    """Two lives. What the first changed is folded over either kind of layer; the second starts from that delta."""
    entrance = Entrance()
    workspace = Workspace(place.template)
    script = (
        "id -u; stat -c %u /data/keep /home/user; chmod 600 /data/keep; mv /data/dir /data/moved; rm /data/gone; "
        "echo more >> /data/changed; mkdir /data/dir; echo in > /data/dir/inner; rm -r /home/user; mkdir /home/user"
    )
    try:
        for number, line in enumerate((script, "rm -r /data/moved; mv /data/dir /data/last; cat /data/changed")):
            disk = await place.disks.create(f"d{number}", max_bytes=64 * MIB, owner=ID_BASE)
            with container() as instance:
                root = await place.plain.assemble(workspace, disk=disk, id_base=ID_BASE, setuid=True, is_new=True)
                try:
                    await entrance.swap_root(instance.pid, root, id_base=ID_BASE, run_bytes=MIB)
                finally:
                    os.close(root)
                output = instance.sh(line)
                assert output == ("0\n0\n1000" if number == 0 else "oldmore")
                assert "uota" in instance.sh("cat /dev/zero > /big; rm /big")
            snapshot = await place.disks.snapshot(f"d{number}", f"d{number}.1")
            over_plain = await place.fold(place.plain, snapshot, workspace)
            over_images = await place.fold(place.images, snapshot, workspace)
            assert over_plain == over_images
            await place.plain.release(workspace)
            workspace = Workspace(place.template, over_plain)
    finally:
        await entrance.stop()


@pytest.mark.parametrize("seed", range(3))
def test_any_changes_fold_to_the_same_tree_over_either_kind_of_layer(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rig, trees = Rig(tmp_path), Trees(open_bucket("memory:"), tmp_path / "cache")
    try:
        root = rig.folder("template")
        for name in ("lib/deep/er", "etc", "home"):
            (root / name).mkdir(parents=True)
        for i in range(12):
            (root / f"lib/l{i}").write_text(f"template {i}")
            (root / f"lib/deep/er/d{i}").write_text(f"deep {i}")
        template, delta = trees.save_directory(root).digest, None
        for _ in range(3):
            plain: list[Path] = []
            for digest in (delta, template):
                if digest:
                    plain.append(rig.directory / f"plain-{digest[:8]}-{len(plain)}-{chance.random()}")
                    with trees.contents(digest) as entries:
                        lay_out(entries, trees.objects_dir, plain[-1])
            life = rig.life(trees, template, delta, lower=":".join(map(str, plain)))
            for _ in range(30):
                act(chance, life.root)
            seen = life.end()
            over_plain = life.save()
            life.lower = rig.lowers(trees, template, delta)
            assert life.save().digest == over_plain.digest
            delta = over_plain.digest
            assert differences(seen, picture(rig.look(trees, template, delta)), links=False) == []
    finally:
        rig.close()
        trees.close()


async def test_a_tree_is_laid_out_once_and_shared(place: Place) -> None:
    workspace = Workspace(place.template)
    await asyncio.gather(*(place.plain.hold(workspace) for _ in range(20)))
    (there,) = place.plain_trees().list()
    inode = place.plain_trees().place(there).stat().st_ino
    disk = await place.disks.create("a", max_bytes=64 * MIB, owner=ID_BASE)
    os.close(await place.plain.assemble(workspace, disk=disk, id_base=ID_BASE, setuid=True))
    assert place.plain_trees().place(there).stat().st_ino == inode
    assert place.plain.in_use() == {place.template}


async def test_what_nobody_uses_goes_when_there_is_much_of_it_and_what_is_in_use_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dovecote.host.storage.roots.KEPT", 1)
    trees = []
    for number in range(3):
        root = place.directory / f"other{number}"
        root.mkdir()
        (root / "f").write_text(str(number))
        trees.append(place.trees.save_directory(root).digest)
    await place.plain.hold(Workspace(place.template))
    for digest in trees:
        await place.plain.hold(Workspace(digest))
        await place.plain.release(Workspace(digest))
    assert set(place.plain_trees().list()) == {place.template, trees[-1]}
    await place.plain.hold(Workspace(trees[0]))
    assert (place.plain_trees().place(trees[0]) / "f").read_text() == "0"


async def test_after_a_restart_nothing_goes_before_all_that_runs_has_its_hold(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dovecote.host.storage.roots.KEPT", 0)
    other = place.directory / "other"
    other.mkdir()
    digest = place.trees.save_directory(other).digest
    for name in (place.template, digest):
        await place.plain.hold(Workspace(name))
    again = place.new_plain()
    await again.adopt()
    await again.hold(Workspace(digest))
    await again.release(Workspace(digest))
    assert place.template in place.plain_trees().list()
    await again.hold(Workspace(place.template))
    await again.settle()
    assert place.plain_trees().list() == [place.template]


async def test_what_another_boot_or_a_crash_left_is_not_trusted(place: Place) -> None:
    old = place.directory / "plain/00000000-0000-0000-0000-000000000000" / place.template
    (old / "deep").mkdir(parents=True)
    half = place.plain_trees().place(f".new-{place.template}")
    half.mkdir(parents=True)
    (half / "data").write_text("half")
    await place.plain.adopt()
    assert not old.parent.exists()
    assert not half.exists()
    await place.plain.hold(Workspace(place.template))
    assert (place.plain_trees().place(place.template) / "data/keep").read_text() == "keep"


def test_killed_in_the_middle_it_leaves_no_tree(tmp_path: Path) -> None:
    """SIGKILL while files are being written; the next call lays the whole tree out."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3000):
        (source / f"f{number}").write_bytes(b"%d" % number)
    trees = Trees(open_bucket("memory:"), tmp_path / "cache")
    digest = trees.save_directory(source).digest
    plain = PlainTrees(trees.contents, trees.objects_dir, tmp_path / "plain")
    child = os.fork()
    if not child:
        try:
            plain.ensure(digest)
        finally:
            os._exit(0)
    while not plain.place(f".new-{digest}").exists() and not plain.place(digest).exists():
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    plain.ensure(digest)
    assert len(list(plain.place(digest).iterdir())) == 3000
    assert not plain.place(f".new-{digest}").exists()
    trees.close()


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    source, small = tmp_path / "source", tmp_path / "small"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(4 * MIB))
    trees = Trees(open_bucket("memory:"), tmp_path / "cache")
    digest = trees.save_directory(source).digest
    mounts.mount_at(mounts.tmpfs(max_bytes=MIB, owner=0), small)
    try:
        plain = PlainTrees(trees.contents, trees.objects_dir, small / "plain")
        with pytest.raises(StorageFailed) as caught:
            plain.ensure(digest)
        assert caught.value.code == "disk_full"
        assert list(small.glob("plain/*/*")) == []
    finally:
        mounts.unmount(small)
        trees.close()


def test_a_tree_deeper_than_python_calls_itself_is_laid_out_and_removed(tmp_path: Path) -> None:
    depth = 1700
    entries = [Entry(b"/".join([b"d"] * n), Kind.DIR, 0o755) for n in range(depth)]
    lay_out(entries, tmp_path, tmp_path / "deep")
    remove_tree(tmp_path / "deep")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def near() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dovecote-lowers-") as name:
        yield Path(name)
        assert mounts.mounted_below(Path(name)) == []
        assert list(Path(name).iterdir()) == []


def refuse(_: Path) -> None:
    raise Unsupported("this kernel has no EROFS")


def test_the_way_is_found_by_trying(near: Path) -> None:
    assert pick(AUTO, near) == IMAGES
    assert pick(PLAIN, near) == PLAIN
    assert pick(AUTO, near, attempts={IMAGES: refuse, PLAIN: try_plain}) == PLAIN


def test_a_way_that_is_asked_for_is_not_replaced_by_another(near: Path) -> None:
    with pytest.raises(Unsupported, match="no EROFS"):
        pick(IMAGES, near, attempts={IMAGES: refuse, PLAIN: try_plain})
    with pytest.raises(Unsupported, match="no EROFS") as caught:
        pick(AUTO, near, attempts={IMAGES: refuse, PLAIN: refuse})
    assert caught.value.code == "no_lowers"


def test_a_file_system_whose_ids_cannot_be_mapped_has_no_plain_directories(near: Path) -> None:
    """overlayfs itself is one; images do not care where they lie."""
    for name in ("lower", "upper", "work", "on"):
        (near / name).mkdir()
    mounts.mount_at(mounts.overlay([near / "lower"], None, upper=near / "upper", work=near / "work"), near / "on")
    try:
        with pytest.raises(Unsupported, match="plain"):
            pick(PLAIN, near / "on")
    finally:
        mounts.unmount(near / "on")
        for path in near.iterdir():
            remove_tree(path)


def test_a_host_that_never_saw_a_tree_lays_it_out_whole(tmp_path: Path) -> None:
    """All of its contents come from the store, the first time and again when the cache is gone."""
    root = small_root(tmp_path / "t0")
    furnish(root / "data")
    warm = Trees(open_bucket(f"file://{tmp_path}/bucket"), tmp_path / "warm")
    digest = warm.save_directory(root).digest
    warm.close()
    for name in ("cold", "colder"):
        trees = Trees(open_bucket(f"file://{tmp_path}/bucket"), tmp_path / name)
        plain = PlainTrees(trees.contents, trees.objects_dir, tmp_path / name / "plain")
        plain.ensure(digest)
        one, other = ({p: line for p, line in picture(each).items() if p} for each in (root, plain.place(digest)))
        assert differences(one, other) == []
        trees.close()


def full(_: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_on_a_full_disk_the_kernel_s_version_tells(near: Path) -> None:
    """A host whose disk is full can still be started to free it, and be taken down."""
    assert pick(AUTO, near, attempts={IMAGES: full, PLAIN: full}) == IMAGES
    assert pick(PLAIN, near, attempts={PLAIN: full}) == PLAIN
    place = near / "small"
    mounts.mount_at(mounts.tmpfs(max_bytes=4096, owner=0), place)
    try:
        with contextlib.suppress(OSError):
            (place / "all").write_bytes(bytes(8192))
        assert pick(AUTO, place) == IMAGES
        assert [path.name for path in place.iterdir()] == ["all"]
    finally:
        mounts.unmount(place)
        remove_tree(place)
