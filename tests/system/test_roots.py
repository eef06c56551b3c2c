"""Roots of instances: assembled, swapped into a running container, mounted into, read for folding."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dovecote.errors import DeadlineExceeded, NotFound, StorageFailed
from dovecote.host.storage import entrance as entrance_module
from dovecote.host.storage import loops, mounts
from dovecote.host.storage.entrance import Entrance
from dovecote.host.storage.pool import BtrfsDisks
from dovecote.host.storage.roots import Roots
from dovecote.model.trees import Workspace
from tests.system.storage_rig import ID_BASE, Container, container, image_of, small_root

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20
BARE = Workspace(template="t0")


@dataclass
class Place:
    directory: Path
    disks: BtrfsDisks
    roots: Roots
    asked: list[str]

    async def image(self, digest: str) -> Path:
        self.asked.append(digest)
        path = self.directory / f"{digest}.erofs"
        if not path.exists():
            raise NotFound(f"no tree {digest}")
        return path

    def new_roots(self, stack_detached: bool | None = None) -> Roots:
        return Roots(self.image, self.directory / "objects", self.directory / "run", stack_detached=stack_detached)

    async def disk(self, name: str = "a", id_base: int = ID_BASE) -> Path:
        return await self.disks.create(name, max_bytes=64 * MIB, owner=id_base)


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dovecote-images-") as directory:
        place = Path(directory)
        image_of(small_root(place / "t0"), place / "t0.erofs", place / "objects")
        delta = place / "d0"
        (delta / "data").mkdir(parents=True)
        (delta / "data/keep").write_text("kept by the delta")
        image_of(delta, place / "d0.erofs", place / "objects")
        yield place


@pytest.fixture
async def place(images: Path) -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix="dovecote-roots-") as name:
        directory = Path(name)
        for entry in ("t0.erofs", "d0.erofs", "objects"):
            (directory / entry).symlink_to(images / entry)
        disks = BtrfsDisks(directory / "pool", directory / "run/pool", max_bytes=1 << 30)
        made = Place(directory, disks, None, [])  # type: ignore[arg-type]
        made.roots = made.new_roots()
        try:
            await disks.ensure()
            yield made
        finally:
            await made.roots.remove()
            await disks.remove()
            assert mounts.mounted_below(directory) == []
            assert loops.devices_of(directory / "pool") == []


@pytest.fixture
async def entrance() -> AsyncIterator[Entrance]:
    helper = Entrance()
    try:
        yield helper
    finally:
        await helper.stop()


@pytest.fixture
def instance() -> Iterator[Container]:
    with container() as running:
        yield running


async def enter(place: Place, entrance: Entrance, instance: Container, workspace: Workspace = BARE) -> Path:
    disk = await place.disk()
    root = await place.roots.assemble(workspace, disk=disk, id_base=ID_BASE, setuid=True)
    try:
        await entrance.swap_root(instance.pid, root, id_base=ID_BASE, run_bytes=MIB)
    finally:
        os.close(root)
    return disk


async def test_an_instance_lives_in_its_new_root(place: Place, entrance: Entrance, instance: Container) -> None:
    """It owns everything, sees its own ids, and nothing of the stub or of the host's paths is left."""
    disk = await enter(place, entrance, instance)
    assert instance.sh("id -u; cat /data/keep; stat -c %u /data/keep /home/user") == "0\nkeep0\n1000"
    assert instance.sh("ls /") == "bin\ndata\ndev\nhome\nlib\nlib64\nproc\nrun\nsys\ntmp"
    table = instance.sh("cat /proc/self/mountinfo")
    assert str(place.directory) not in table
    assert "/stub" not in table
    assert "/new" not in table
    root_line = next(line for line in table.splitlines() if line.split()[4] == "/")
    assert "nodev" in root_line
    assert "nosuid" not in root_line
    assert instance.sh("echo hi > /made; cat /made") == "hi"
    assert (disk / "upper/made").stat().st_uid == ID_BASE


async def test_changes_of_every_kind_work_on_mapped_images(
    place: Place, entrance: Entrance, instance: Container
) -> None:
    disk = await enter(place, entrance, instance)
    script = (
        "chown 1000:1000 /data/keep && mv /data/dir /data/moved && rm /data/gone && echo new > /data/changed "
        "&& mkdir /data/made && chmod 600 /data/moved/inner && stat -c %u:%n /data/keep && ls /data "
        "&& cat /data/moved/inner"
    )
    assert instance.sh(script) == "1000:/data/keep\nchanged\nkeep\nmade\nmoved\ninner"
    assert (disk / "upper/data/keep").stat().st_uid == ID_BASE + 1000
    contents = [path.read_bytes() for path in (place.directory / "objects").iterdir()]
    assert b"old" in contents
    assert b"gone" in contents


async def test_masks_stay_and_run_is_fresh_and_small(place: Place, entrance: Entrance, instance: Container) -> None:
    await enter(place, entrance, instance)
    assert instance.sh("cat /proc/kallsyms") == ""
    assert "Read-only" in instance.sh("echo 1 > /proc/sys/kernel/hostname")
    assert instance.sh("stat -c %u:%a /run; ls /run") == "0:755"
    assert instance.sh("df -k /run").split()[-5] == "1024"
    assert "ermission" in instance.sh("umount /run; mount -t tmpfs x /tmp")


async def test_a_full_disk_is_seen_inside_and_the_root_goes_on(
    place: Place, entrance: Entrance, instance: Container
) -> None:
    """Also root inside cannot pass the limit."""
    await enter(place, entrance, instance)
    assert "uota" in instance.sh("cat /dev/zero > /big")
    assert instance.sh("cat /data/keep; rm /big /data/gone; ls /data/gone 2>/dev/null") == "keep"
    assert (await place.disks.usage("a")).bytes <= 64 * MIB


async def test_setuid_is_taken_away_where_the_template_has_no_sudo(place: Place) -> None:
    disk = await place.disk()
    with_setuid = await place.roots.assemble(BARE, disk=disk, id_base=ID_BASE, setuid=False)
    try:
        assert os.fstatvfs(with_setuid).f_flag & os.ST_NOSUID
        assert os.fstatvfs(with_setuid).f_flag & os.ST_NODEV
    finally:
        os.close(with_setuid)


async def test_a_delta_lies_over_its_template(place: Place, entrance: Entrance, instance: Container) -> None:
    await enter(place, entrance, instance, Workspace(template="t0", tree="d0"))
    assert instance.sh("cat /data/keep /data/gone") == "kept by the deltagone"


async def test_layers_can_be_attached_for_older_kernels(place: Place, entrance: Entrance, instance: Container) -> None:
    place.roots = place.new_roots(stack_detached=False)
    await enter(place, entrance, instance, Workspace(template="t0", tree="d0"))
    assert instance.sh("stat -c %u /data/keep; cat /data/gone") == "0\ngone"
    assert mounts.mounted_below(place.directory / "run/mapped") == []


async def test_images_can_go_through_a_loop_device(place: Place) -> None:
    at = place.directory / "looped"
    mounts.mount_image(place.directory / "t0.erofs", at, loop=True)
    try:
        assert (at / "data/keep").stat().st_size == 4
        assert (mounts.source_of(at) or "").startswith("/dev/loop")
    finally:
        mounts.unmount(at)


async def test_a_root_lost_in_the_swap_leaves_nothing(place: Place, entrance: Entrance) -> None:
    """The instance died first."""
    disk = await place.disk()
    with container() as short_lived:
        pid = short_lived.pid
    root = await place.roots.assemble(BARE, disk=disk, id_base=ID_BASE, setuid=True)
    try:
        with pytest.raises(StorageFailed):
            await entrance.swap_root(pid, root, id_base=ID_BASE)
    finally:
        os.close(root)


async def test_a_mount_can_be_attached_to_a_running_instance(
    place: Place, entrance: Entrance, instance: Container
) -> None:
    await enter(place, entrance, instance)
    volume = mounts.tmpfs(max_bytes=MIB, owner=ID_BASE)
    try:
        await entrance.attach(instance.pid, volume, "/data/volumes/one", owner=ID_BASE)
    finally:
        os.close(volume)
    assert instance.sh("echo v > /data/volumes/one/f; cat /data/volumes/one/f; stat -c %u /data/volumes") == "v\n0"


@pytest.mark.parametrize(
    "path", ["/link", "/link/x", "/data/link", "/data/../link", "/proc/self", "/dev", "/", "relative", "/data/keep"]
)
async def test_attach_is_not_led_astray(place: Place, entrance: Entrance, instance: Container, path: str) -> None:
    """Symlinks that the sandbox planted, parents, kernel file systems and files are refused."""
    disk = await enter(place, entrance, instance)
    (disk / "upper/link").symlink_to("/proc")
    instance.sh("mkdir -p /data")
    (disk / "upper/data").mkdir(exist_ok=True)
    (disk / "upper/data/link").symlink_to("../../../..")
    before = instance.sh("cat /proc/self/mountinfo")
    volume = mounts.tmpfs(max_bytes=MIB, owner=ID_BASE)
    try:
        with pytest.raises(StorageFailed):
            await entrance.attach(instance.pid, volume, path, owner=ID_BASE)
    finally:
        os.close(volume)
    assert len(instance.sh("cat /proc/self/mountinfo").splitlines()) == len(before.splitlines())


async def test_a_hostile_proc_in_the_tree_is_refused(place: Place, entrance: Entrance, instance: Container) -> None:
    disk = await place.disk()
    (disk / "upper/proc").symlink_to("/data")
    root = await place.roots.assemble(BARE, disk=disk, id_base=ID_BASE, setuid=True)
    try:
        with pytest.raises(StorageFailed, match="bring /proc"):
            await entrance.swap_root(instance.pid, root, id_base=ID_BASE)
    finally:
        os.close(root)


async def test_after_a_swap_the_helper_is_home_again_with_nothing_in_its_hands(
    place: Place, entrance: Entrance, instance: Container
) -> None:
    """After one that failed halfway too; and then it swaps others."""
    await enter(place, entrance, instance)
    assert entrance._process is not None
    helper = Path(f"/proc/{entrance._process.pid}")
    before = len(list((helper / "fd").iterdir()))
    bad = await place.disk("bad", ID_BASE)
    (bad / "upper/sys").symlink_to("/data")
    root = await place.roots.assemble(BARE, disk=bad, id_base=ID_BASE, setuid=True)
    with container() as other:
        try:
            with pytest.raises(StorageFailed, match="bring /sys"):
                await entrance.swap_root(other.pid, root, id_base=ID_BASE)
        finally:
            os.close(root)
    assert (helper / "ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
    assert (helper / "root").stat() == Path("/").stat()
    async with asyncio.timeout(10):  # it answers before it closes what it was handed
        while len(list((helper / "fd").iterdir())) > before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert instance.sh("cat /data/keep") == "keep"


async def test_the_helper_has_none_of_our_environment(
    entrance: Entrance, instance: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOVECOTE_MODEL_API_KEY", "secret")
    await entrance.start()
    assert entrance._process is not None
    assert b"DOVECOTE" not in Path(f"/proc/{entrance._process.pid}/environ").read_bytes()


async def test_the_helper_is_started_again_after_its_death(
    place: Place, entrance: Entrance, instance: Container
) -> None:
    await entrance.start()
    assert entrance._process is not None
    os.kill(entrance._process.pid, signal.SIGKILL)
    entrance._process.wait(10)
    await enter(place, entrance, instance)
    assert instance.sh("cat /data/keep") == "keep"


async def test_a_helper_that_hangs_is_given_up(
    place: Place, instance: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entrance_module, "MARGIN", 0.1)
    helper = Entrance(timeout=0.1)
    volume = mounts.tmpfs(max_bytes=MIB, owner=ID_BASE)
    try:
        await helper.start()
        assert helper._process is not None
        os.kill(helper._process.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineExceeded):
            await helper.attach(instance.pid, volume, "/new")
    finally:
        await helper.stop()
        os.close(volume)


async def test_many_swaps_at_once(place: Place, entrance: Entrance) -> None:
    with container(ID_BASE) as one, container(ID_BASE + 65536) as two:
        for number in range(2):
            disk = await place.disk(f"d{number}", ID_BASE + 65536 * number)
            (disk / "upper/who").write_text(f"{number}")
        roots = await asyncio.gather(
            *(
                place.roots.assemble(
                    BARE, disk=place.directory / f"run/pool/d{n}", id_base=ID_BASE + 65536 * n, setuid=True
                )
                for n in range(2)
            )
        )
        try:
            await asyncio.gather(
                *(
                    entrance.swap_root(running.pid, root, id_base=ID_BASE + 65536 * n)
                    for n, (running, root) in enumerate(zip((one, two), roots, strict=True))
                )
            )
        finally:
            for root in roots:
                os.close(root)
        assert (one.sh("cat /who"), two.sh("cat /who")) == ("0", "1")
        assert two.sh("stat -c %u /data/keep") == "0"
    assert place.asked == ["t0"]


async def test_the_view_for_folding_shows_a_snapshot_with_its_lowers(
    place: Place, entrance: Entrance, instance: Container
) -> None:
    """Content behind metacopy stubs is there, deleted files are not, and later writes are not seen."""
    await enter(place, entrance, instance)
    instance.sh("chmod 600 /data/keep; rm /data/gone; mv /data/dir /data/moved; echo then > /data/made")
    copy = await place.disks.snapshot("a", "a.1")
    instance.sh("echo now > /data/made")
    assert (copy / "upper/data/keep").stat().st_blocks == 0
    async with place.roots.merged(BARE, copy / "upper", id_base=ID_BASE) as view:
        assert (view / "data/keep").read_text() == "keep"
        assert (view / "data/moved/inner").read_text() == "inner"
        assert (view / "data/made").read_text() == "then\n"
        assert not (view / "data/gone").exists()
        assert not (view / "data/dir").exists()
        assert {(view / name).stat().st_uid for name in ("data/keep", "data/changed")} == {ID_BASE}
        assert (view / "home/user").stat().st_uid == ID_BASE + 1000
        with pytest.raises(OSError, match="Read-only"):
            (view / "data/never").write_text("")
    assert not view.exists()
    await place.disks.delete("a.1")


async def test_an_overlay_that_comes_up_read_only_is_an_error(place: Place) -> None:
    """An upper seen through mapped ids does that without a word from the kernel."""
    disk = await place.disk()
    userns = mounts.user_namespace(ID_BASE)
    at = place.directory / "mapped-disk"
    try:
        mounts.mount_at(mounts.idmapped(place.directory / "run/pool", userns), at)
        os.chown(disk / "upper", 0, 0)
        with pytest.raises(StorageFailed):
            mounts.overlay([place.directory], place.directory / "objects", upper=at / "a/upper", work=at / "a/work")
    finally:
        os.close(userns)
        mounts.unmount(at)


async def test_an_image_is_mounted_once_and_held_while_in_use(place: Place) -> None:
    await asyncio.gather(*(place.roots.hold(BARE) for _ in range(20)))
    assert place.asked == ["t0"]
    assert len(mounts.mounted_below(place.directory / "run/images")) == 1
    for _ in range(20):
        assert place.roots.in_use() == {"t0"}
        await place.roots.release(BARE)
    assert place.roots.in_use() == frozenset()


async def test_images_without_users_are_unmounted_when_there_are_many(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dovecote.host.storage.roots.IDLE_IMAGES", 1)
    both = Workspace(template="t0", tree="d0")
    await place.roots.hold(both)
    await place.roots.hold(BARE)
    await place.roots.release(both)
    assert len(mounts.mounted_below(place.directory / "run/images")) == 2
    await place.roots.release(BARE)
    assert len(mounts.mounted_below(place.directory / "run/images")) == 1


async def test_a_tree_that_cannot_be_had_leaves_no_hold(place: Place) -> None:
    disk = await place.disk()
    with pytest.raises(NotFound):
        await place.roots.assemble(Workspace("t0", "none"), disk=disk, id_base=ID_BASE, setuid=True)
    assert place.roots.in_use() == frozenset()


async def test_images_are_adopted_after_a_restart(place: Place) -> None:
    await place.roots.hold(BARE)
    view = place.directory / "run/merged/left"
    mounts.mount_at(mounts.tmpfs(max_bytes=MIB, owner=0), view)
    again = place.new_roots()
    await again.adopt()
    await again.hold(BARE)
    assert place.asked == ["t0"]
    assert again.in_use() == {"t0"}
    assert not view.exists()


async def test_a_namespace_maps_as_asked() -> None:
    userns = mounts.user_namespace(ID_BASE, 1000)
    try:
        assert os.readlink(f"/proc/self/fd/{userns}").startswith("user:[")
        assert os.readlink(f"/proc/self/fd/{userns}") != os.readlink("/proc/self/ns/user")
    finally:
        os.close(userns)
