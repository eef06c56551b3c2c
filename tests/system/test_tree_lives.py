"""What was changed in a life of an instance, on an overlay, is there in the next one."""

import os
import random
import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from dovecote.errors import Invalid, StorageFailed
from dovecote.host.storage.trees import Trees
from tests.system.tree_changes import BEFORE, CHANGES, PARTS_LINKS, both, play, undo
from tests.system.tree_files import CAPABILITY, write
from tests.system.tree_rig import Life, Rig, differences, one_life, picture

pytestmark = pytest.mark.system


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_survives(rig: Rig, shared: tuple[Trees, str], change: str) -> None:
    """Also through a second life in which nothing is done, and a third in which something else is."""
    trees, template = shared
    first = one_life(rig, trees, template, None, CHANGES[change], links=change not in PARTS_LINKS)
    second = one_life(rig, trees, template, first.digest, CHANGES["nothing"])
    assert second.digest == first.digest
    one_life(
        rig, trees, template, second.digest, both(lambda r: write(r / "third", "3"), lambda r: os.chmod(r / "third", 0))
    )


@pytest.mark.parametrize("change", BEFORE)
def test_a_change_can_be_undone_in_the_next_life(rig: Rig, shared: tuple[Trees, str], change: str) -> None:
    trees, template = shared
    saved = one_life(rig, trees, template, None, CHANGES[change], links=change not in PARTS_LINKS)
    saved = one_life(rig, trees, template, saved.digest, undo)
    one_life(rig, trees, template, saved.digest, undo)


@pytest.mark.parametrize("seed", range(8))
def test_random_lives_survive(rig: Rig, shared: tuple[Trees, str], seed: int) -> None:
    """Six lives in a row, each on the delta of the one before."""
    trees, template = shared
    dice = random.Random(seed)
    delta: str | None = None
    for _ in range(6):
        delta = one_life(rig, trees, template, delta, lambda r: play(r, dice, 25), links=False).digest


def test_whiteouts_do_not_pile_up(rig: Rig, shared: tuple[Trees, str]) -> None:
    """What was made in one life and deleted in the next leaves no trace but its directory's time."""
    trees, template = shared

    def make(root: Path) -> None:
        (root / "tmp").mkdir()
        for i in range(50):
            write(root / f"tmp/{i}", "x")
            write(root / f"etc/mine{i}", "x")

    first = one_life(rig, trees, template, None, make)
    second = one_life(
        rig,
        trees,
        template,
        first.digest,
        both(lambda r: shutil.rmtree(r / "tmp"), lambda r: list(map(os.unlink, (r / "etc").glob("mine*")))),
    )
    assert {e.path for e in trees.entries(second.digest)} == {b"", b"etc"}


def test_ids_are_the_containers(rig: Rig, trees: Trees, source: Path) -> None:
    """A life at one range of host ids is restored at another; capabilities follow the range."""
    template = trees.save_directory(source).digest
    life = rig.life(trees, template, None, id_base=300_000)
    root = life.root
    assert os.stat(root / "etc/passwd").st_uid == 301_000
    write(root / "mine", "x")
    os.chown(root / "mine", 300_033, 300_044)
    write(root / "etc/passwd", "y")
    os.rename(root / "swap", root / "swapped")
    write(root / "server", "binary")
    os.chown(root / "server", 300_000, 300_000)
    own = CAPABILITY[:3] + b"\x03" + CAPABILITY[4:] + (300_000).to_bytes(4, "little")
    os.setxattr(root / "server", "security.capability", own)
    seen = life.end()
    saved = life.save()
    assert saved.notes == ()
    kept = {e.path: e for e in trees.entries(saved.digest)}
    assert (kept[b"mine"].uid, kept[b"mine"].gid) == (33, 44)
    assert dict(kept[b"server"].xattrs)[b"security.capability"] == CAPABILITY
    assert differences(seen, picture(rig.look(trees, template, saved.digest, 300_000))) == []
    moved = rig.look(trees, template, saved.digest, 500_000)
    assert os.stat(moved / "mine").st_uid == 500_033
    assert os.getxattr(moved / "server", "security.capability")[20:] == (500_000).to_bytes(4, "little")


def test_ids_of_others_are_refused(rig: Rig, trees: Trees, source: Path) -> None:
    template = trees.save_directory(source).digest
    for owner in (299_999, 365_536):
        life = rig.life(trees, template, None, id_base=300_000)
        write(life.root / "foreign", "x")
        os.chown(life.root / "foreign", owner, 300_000)
        life.end()
        with pytest.raises(Invalid) as caught:
            life.save()
        assert caught.value.code == "foreign_id"


def test_sockets_and_devices_are_left_out_with_a_note(rig: Rig, shared: tuple[Trees, str]) -> None:
    """And what the template had in their place stays hidden."""
    trees, template = shared
    life = rig.life(trees, template, None)
    os.unlink(life.root / "etc/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(life.root / "etc/zero"))
    os.mknod(life.root / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    seen = life.end()
    saved = life.save()
    assert len(saved.notes) == 2
    assert differences(seen, picture(rig.look(trees, template, saved.digest))) == []


def test_caches_are_left_out(rig: Rig, shared: tuple[Trees, str]) -> None:
    """By default: what npm, pip and apt can fetch again, and what only a running system means."""
    trees, template = shared
    life = rig.life(trees, template, None)
    for folder in ("home/u/.cache/pip/http", "var/cache/apt/archives/partial", "var/lib/apt/lists", "run/lock", "dev"):
        (life.root / folder).mkdir(parents=True)
        write(life.root / folder / "x", "y")
    write(life.root / "home/u/.npm/_cacache/more", "x")
    write(life.root / "home/u/.npm/kept", "x")
    life.end()
    paths = {e.path for e in trees.entries(life.save().digest)}
    assert {b"home/u/.cache/pip", b"var/cache/apt", b"var/lib/apt/lists", b"run", b"dev", b"home/u/.npm/kept"} <= paths
    assert not [p for p in paths if p.endswith((b"/x", b"/more", b"/http", b"/archives", b"/lock"))]


def test_shared_objects_never_change(rig: Rig, trees: Trees, source: Path) -> None:
    """Appending and chmod inside leave the object as it was, for the owner only."""
    template = trees.save_directory(source).digest
    life = rig.life(trees, template, None)
    objects = {p: (p.read_bytes(), p.stat()) for p in trees.objects_dir.glob("*/*")}
    for path in (life.root / "bin/tool", life.root / "etc/passwd", life.root / "large"):
        os.chmod(path, 0o777)
        with open(path, "ab") as file:
            file.write(b"more")
    life.end()
    for path, (content, status) in objects.items():
        now = path.stat()
        assert path.read_bytes() == content
        assert (now.st_mode, now.st_nlink, now.st_mtime_ns, now.st_ctime_ns) == (
            0o100600, 1, status.st_mtime_ns, status.st_ctime_ns,
        )  # fmt: skip


def test_a_snapshot_on_btrfs_is_folded_while_the_instance_lives(rig: Rig, trees: Trees, source: Path) -> None:
    """The pool's own file system: a read-only snapshot of the upper's subvolume."""
    template = trees.save_directory(source).digest
    disk = rig.directory / "pool.img"
    with open(disk, "wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.btrfs", "-q", disk], check=True, timeout=60)
    pool = rig.folder("pool")
    subprocess.run(["mount", "-o", "loop", disk, pool], check=True, timeout=60)
    rig._mounts.append(pool)
    subprocess.run(["btrfs", "-q", "subvolume", "create", pool / "a"], check=True, timeout=60)
    life = rig.life(trees, template, None, base=pool / "a")
    os.rename(life.root / "swap", life.root / "swapped")
    os.chmod(life.root / "bin/tool", 0o711)
    os.unlink(life.root / "etc/zero")
    write(life.root / "etc/new", "new")
    seen = picture(life.root)
    subprocess.run(["btrfs", "-q", "subvolume", "snapshot", "-r", pool / "a", pool / "s"], check=True, timeout=60)
    write(life.root / "etc/new", "later")
    saved = life.save(pool / "s" / "upper")
    life.end()
    assert differences(seen, picture(rig.look(trees, template, saved.digest))) == []


def test_a_delta_belongs_to_its_template(rig: Rig, shared: tuple[Trees, str]) -> None:
    trees, template = shared
    folder = rig.folder("other")
    write(folder / "x", "y")
    other = trees.save_directory(folder).digest
    saved = one_life(rig, trees, template, None, CHANGES["new"])
    assert trees.usage(saved.digest).template == template
    life = Life(rig, trees, other, None, 0, rig.folder("disk"))
    life.end()
    life.delta = saved.digest
    with pytest.raises(Invalid) as caught:
        life.save()
    assert caught.value.code == "wrong_template"


def test_an_upper_that_is_not_the_merged_one_is_refused(rig: Rig, shared: tuple[Trees, str]) -> None:
    """Folding two directories that do not belong together must not make a tree."""
    trees, template = shared
    upper = rig.folder("upper")
    write(upper / "only-here", "x")
    with pytest.raises(StorageFailed) as caught:
        trees.save_delta(upper, rig.folder("merged"), id_base=0, template=template)
    assert caught.value.code == "inconsistent"
