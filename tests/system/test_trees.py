"""Trees with real mounts: what was saved is what is seen again, byte by byte."""

import os
import random
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dovecote.errors import Invalid, StorageFailed
from dovecote.host.storage.bucket import Bucket, local_bucket, open_bucket
from dovecote.host.storage.fold import Bounds
from dovecote.host.storage.manifest import Kind
from dovecote.host.storage.packs import SMALL
from dovecote.host.storage.trees import Trees, TreeSaved
from tests.system.tree_rig import Life, Rig, differences, picture

pytestmark = pytest.mark.system
NOW = 1_700_000_000_123_456_789
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # revision 2, effective, cap_net_bind_service


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return local_bucket(tmp_path / "store")


@pytest.fixture
def trees(bucket: Bucket, tmp_path: Path) -> Iterator[Trees]:
    trees = Trees(bucket, tmp_path / "cache")
    try:
        yield trees
    finally:
        trees.close()


def write(path: Path | bytes, text: bytes | str) -> None:
    # A pipe without a reader is refused, not waited for.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644), "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def fill(root: Path, *, files: int = 20) -> None:
    """A directory with everything that a tree can hold."""
    for folder in ("etc", "bin", "a/b/c/d", "empty", "swap", "run/x", "home/u/.npm/_cacache", "big"):
        (root / folder).mkdir(parents=True)
    write(root / "etc/passwd", "root:x:0:0\n")
    write(root / "etc/zero", "")
    write(root / "bin/tool", random.Random(1).randbytes(70_000))
    os.chmod(root / "bin/tool", 0o4755)
    os.setxattr(root / "bin/tool", "security.capability", CAPABILITY)
    os.setxattr(root / "etc/passwd", "user.note", b"hello\0world")
    os.setxattr(root / "a", "user.big", b"v" * 3000)
    os.symlink("passwd", root / "etc/link")
    os.symlink("/" + "t" * 4000, root / "etc/long")
    os.symlink("m" * 2049, root / "etc/middling")
    os.symlink(b"\xff\xfe nowhere", os.fsencode(root / "etc") + b"/odd\xff")
    os.link(root / "etc/passwd", root / "a/b/same")
    os.link(root / "bin/tool", root / "a/tool")
    os.mkfifo(root / "etc/pipe", 0o640)
    write(root / "run/x/pid", "1")
    write(root / "home/u/.npm/_cacache/blob", "cached")
    for name in (b"n\xffw", b"new\nline", b" ", b"-", b"!", b"~", b"\x01", "ümlaut 中文".encode(), b"x" * 255):
        write(os.fsencode(root / "a/b") + b"/" + name, name)
    for i in range(files):
        write(root / f"a/b/c/f{i}", f"file {i}\n" * (i + 1))
        write(root / f"swap/s{i}", f"swap {i}")
    for i in range(500):
        write(root / f"big/name-{i:05d}-{'y' * (i % 60)}", f"{i % 7}")
    write(root / "large", random.Random(2).randbytes(SMALL + 12_345))
    with open(root / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(3 << 20)
        file.write(b"island")
    os.chown(root / "etc/passwd", 1000, 65535)
    os.chown(root / "etc/link", 7, 8, follow_symlinks=False)
    os.chmod(root / "empty", 0o1777)
    os.utime(root / "etc/zero", ns=(NOW, -5_000_000_001))
    os.utime(root / "a/b/c", ns=(NOW, NOW))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir(mode=0o755)
    fill(path)
    return path


def assert_same(a: Path, b: Path) -> None:
    assert differences(picture(a), picture(b)) == []


def test_a_template_is_mounted_as_it_was(rig: Rig, trees: Trees, source: Path) -> None:
    saved = trees.save_directory(source)
    assert saved.notes == ()
    assert_same(source, rig.look(trees, saved.digest))
    subprocess.run(["fsck.erofs", trees.ensure_image(saved.digest)], check=True, timeout=60, capture_output=True)


def test_the_same_directory_is_the_same_tree(trees: Trees, source: Path, rig: Rig) -> None:
    """Saving it again costs nothing, and neither where it lies nor the order of its files matters."""
    first = trees.save_directory(source)
    again = trees.save_directory(source)
    assert (again.digest, again.added_bytes) == (first.digest, 0)
    copy = rig.folder("copy")
    subprocess.run(["cp", "-a", f"{source}/.", str(copy)], check=True, timeout=60)
    assert trees.save_directory(copy).digest == first.digest


def test_another_host_restores_from_the_store_alone(
    rig: Rig, trees: Trees, bucket: Bucket, source: Path, tmp_path: Path
) -> None:
    """A cold cache and no listing of the store."""
    saved = trees.save_directory(source)

    class NoListing(Bucket):
        def list(self, prefix: str):  # type: ignore[no-untyped-def]
            raise AssertionError("a restore must not list the store")

    cold = Trees(NoListing(bucket._store, directory=bucket._directory), tmp_path / "cold")
    try:
        assert_same(source, rig.look(cold, saved.digest))
        assert cold.ensure_image(saved.digest).read_bytes() == trees.ensure_image(saved.digest).read_bytes()
    finally:
        cold.close()


def both(*acts: Callable[[Path], object]) -> Callable[[Path], object]:
    """One after the other."""

    def act(root: Path) -> None:
        for each in acts:
            each(root)

    return act


CHANGES: dict[str, Callable[[Path], object]] = {
    "change": lambda r: write(r / "etc/passwd", "changed"),
    "append": lambda r: open(r / "a/b/c/f3", "ab").write(b"more"),  # noqa: SIM115
    "new": lambda r: write(r / "a/new", "new"),
    "empty file over one": lambda r: write(r / "a/b/c/f4", ""),
    "chmod only": lambda r: os.chmod(r / "bin/tool", 0o700),
    "chown only": lambda r: os.chown(r / "a/b/c/f5", 5, 6),
    "mtime only": lambda r: os.utime(r / "a/b/c/f6", ns=(NOW, NOW)),
    "xattr only": lambda r: os.setxattr(r / "a/b/c/f7", "user.k", b"v"),
    "rename file": lambda r: os.rename(r / "a/b/c/f8", r / "etc/moved"),
    "rename over": lambda r: os.rename(r / "a/b/c/f9", r / "a/b/c/f10"),
    "rename directory": lambda r: os.rename(r / "a/b", r / "elsewhere"),
    "rename twice": both(lambda r: os.rename(r / "a", r / "a2"), lambda r: os.rename(r / "a2/b", r / "b2")),
    "rename and change inside": both(
        lambda r: os.rename(r / "swap", r / "swapped"),
        lambda r: write(r / "swapped/s1", "x"),
        lambda r: os.unlink(r / "swapped/s2"),
        lambda r: os.chmod(r / "swapped/s3", 0o600),
        lambda r: write(r / "swapped/fresh", "y"),
    ),
    "exchange names": both(
        lambda r: os.rename(r / "swap/s1", r / "swap/t"),
        lambda r: os.rename(r / "swap/s2", r / "swap/s1"),
        lambda r: os.rename(r / "swap/t", r / "swap/s2"),
    ),
    "delete file": lambda r: os.unlink(r / "etc/zero"),
    "delete directory": lambda r: shutil.rmtree(r / "swap"),
    "delete and make again": both(
        lambda r: shutil.rmtree(r / "swap"), lambda r: (r / "swap").mkdir(), lambda r: write(r / "swap/s1", "2")
    ),
    "file instead of directory": both(lambda r: shutil.rmtree(r / "swap"), lambda r: write(r / "swap", "a file")),
    "directory instead of file": both(
        lambda r: os.unlink(r / "etc/passwd"),
        lambda r: (r / "etc/passwd").mkdir(),
        lambda r: write(r / "etc/passwd/in", "x"),
    ),
    "link instead of directory": both(lambda r: shutil.rmtree(r / "swap"), lambda r: os.symlink("etc", r / "swap")),
    "new directories": both(lambda r: (r / "p/q/r").mkdir(parents=True), lambda r: write(r / "p/q/r/s", "deep")),
    "hard links": both(
        lambda r: write(r / "etc/h1", "linked"),
        lambda r: os.link(r / "etc/h1", r / "etc/h2"),
        lambda r: (r / "fresh").mkdir(),
        lambda r: os.link(r / "etc/h1", r / "fresh/h3"),
    ),
    "hard link to the template's": lambda r: os.link(r / "a/b/c/f11", r / "etc/again"),
    "break a hard link": lambda r: write(r / "a/b/same", "mine now"),
    "delete one of two names": lambda r: os.unlink(r / "a/tool"),
    "sparse": lambda r: os.truncate(r / "etc/passwd", 9 << 20),
    "big": lambda r: write(r / "etc/big", random.Random(3).randbytes(SMALL + 999)),
    "any bytes": both(
        lambda r: write(os.fsencode(r) + b"/\xfe\xff", "x"),
        lambda r: os.rename(os.fsencode(r) + b"/a/b/n\xffw", os.fsencode(r) + b"/a/b/\xff\xffw"),
        lambda r: os.unlink(os.fsencode(r) + b"/a/b/new\nline"),
    ),
    "fifo and link": both(
        lambda r: os.mkfifo(r / "p"), lambda r: os.unlink(r / "etc/link"), lambda r: os.symlink("x", r / "etc/link")
    ),
    "directory's own attributes": both(
        lambda r: os.chmod(r / "empty", 0o700), lambda r: os.utime(r / "empty", ns=(1, 2))
    ),
    "root's own attributes": both(lambda r: os.chmod(r, 0o711), lambda r: os.chown(r, 1, 2)),
    "many in one directory": lambda r: list(map(os.unlink, sorted((r / "big").iterdir())[::2])),
    "nothing": lambda r: None,
}
BEFORE = [name for name in CHANGES if name != "nothing"]
# Two names of one file of a lower layer, of which one is taken into the delta, become two files: overlayfs does the
# same to them as soon as one is written.
PARTS_LINKS = ("rename directory", "rename twice")


def one_life(
    rig: Rig, trees: Trees, template: str, delta: str | None, act: Callable[[Path], object], *, links: bool = True
) -> TreeSaved:
    """Lives, folds, restores, and compares what was seen last with what is seen again."""
    life = rig.life(trees, template, delta)
    act(life.root)
    seen = life.end()
    saved = life.save()
    again = rig.look(trees, template, saved.digest)
    assert differences(seen, picture(again), links=links) == []
    rig.unmount(again)
    return saved


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trees, str]]:
    """One template for the many cases that only add deltas to it."""
    base = tmp_path_factory.mktemp("shared")
    (base / "source").mkdir(mode=0o755)
    fill(base / "source")
    trees = Trees(local_bucket(base / "store"), base / "cache")
    try:
        yield trees, trees.save_directory(base / "source").digest
    finally:
        trees.close()


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


def undo(root: Path) -> None:
    """Makes files of directories and directories of files, in what an earlier life made."""
    for name in ("swap", "p", "fresh", "elsewhere"):
        path = root / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
            write(path, "was a directory")
        elif os.path.lexists(path):
            os.unlink(path)
            path.mkdir()
            write(path / "in", "was a file")


@pytest.mark.parametrize("change", BEFORE)
def test_a_change_can_be_undone_in_the_next_life(rig: Rig, shared: tuple[Trees, str], change: str) -> None:
    trees, template = shared
    saved = one_life(rig, trees, template, None, CHANGES[change], links=change not in PARTS_LINKS)
    saved = one_life(rig, trees, template, saved.digest, undo)
    one_life(rig, trees, template, saved.digest, undo)


def play(root: Path, dice: random.Random, steps: int) -> None:
    """What a user might do, at random. Some of it fails, as it would for a user."""
    for _ in range(steps):
        folders = [Path(d) for d, _, _ in os.walk(root) if Path(d).name != "big"]
        files = [Path(d) / f for d, _, fs in os.walk(root) for f in fs if Path(d).name != "big"]
        with suppress(OSError):
            step(root, dice, dice.choice(folders), dice.choice(files), dice.choice(folders) / f"n{dice.randrange(30)}")


def step(root: Path, dice: random.Random, folder: Path, file: Path, target: Path) -> None:
    acts: list[Callable[[], object]] = [
        lambda: write(target, dice.randbytes(dice.choice([0, 1, 5000]))),
        lambda: write(file, "again"),
        lambda: os.chmod(file, dice.choice([0o600, 0o755])),
        lambda: os.chown(file, dice.randrange(3), 0, follow_symlinks=False),
        lambda: os.rename(file, target),
        lambda: os.rename(folder, target),
        lambda: os.rename(folder, target),
        lambda: os.unlink(file),
        lambda: shutil.rmtree(folder) if len(folder.relative_to(root).parts) > 1 else None,
        lambda: target.mkdir(),
        lambda: (target / "x" / "y").mkdir(parents=True),
        lambda: os.symlink("s", target),
        lambda: os.link(file, target, follow_symlinks=False),
        lambda: os.setxattr(folder, "user.d", b"%d" % dice.randrange(9)),
        lambda: os.mkfifo(target),
    ]
    dice.choice(acts)()


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


def test_nothing_that_is_too_large_is_saved(rig: Rig, shared: tuple[Trees, str], tmp_path: Path) -> None:
    """A file of holes costs no disk; reading it would never end."""
    _, _ = shared
    trees = Trees(open_bucket("memory:"), tmp_path / "c", bounds=Bounds(entries=30, file_bytes=1 << 30))
    try:
        source = rig.folder("s")
        with open(source / "holes", "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(Invalid) as caught:
            trees.save_directory(source)
        assert caught.value.code == "too_large"
        os.unlink(source / "holes")
        for i in range(40):
            write(source / f"{i}", "")
        with pytest.raises(Invalid) as caught:
            trees.save_directory(source)
        assert caught.value.code == "too_large"
    finally:
        trees.close()


def test_content_that_is_stored_costs_nothing_again(rig: Rig, shared: tuple[Trees, str]) -> None:
    """A copy of the template's largest file adds names, not bytes."""
    trees, template = shared
    saved = one_life(rig, trees, template, None, lambda r: shutil.copy2(r / "large", r / "copy"))
    assert saved.total_bytes > SMALL
    assert saved.added_bytes < 5000


def test_a_dependency_tree_costs_nothing_again(rig: Rig, shared: tuple[Trees, str]) -> None:
    """A change beside node_modules does not write its manifest again."""
    trees, template = shared

    def install(root: Path) -> None:
        (root / "app/node_modules").mkdir(parents=True)
        for i in range(2000):
            write(root / f"app/node_modules/m{i}.js", random.Random(i).randbytes(100))

    first = one_life(rig, trees, template, None, install)
    second = one_life(rig, trees, template, first.digest, lambda r: write(r / "app/code.js", "let x"))
    assert second.files == 2001
    assert second.added_bytes < 3000


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


def broken(call: Callable[[], object], digest: str) -> None:
    with pytest.raises(StorageFailed) as caught:
        call()
    assert caught.value.code == "corrupt"
    assert digest in caught.value.message
    assert caught.value.hint


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    os.chmod(path, 0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["packs", "manifests", "trees", "locations"])
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_a_damaged_store_restores_nothing(
    trees: Trees, bucket: Bucket, source: Path, tmp_path: Path, kind: str, how: str
) -> None:
    """It says which tree, and there is no image that anybody could mount."""
    digest = trees.save_directory(source).digest
    victim = max((p for p in (tmp_path / "store" / kind).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if how == "flip":
        flip(victim, victim.stat().st_size // 2)
    elif how == "cut":
        os.truncate(victim, victim.stat().st_size // 2)
    else:
        victim.unlink()
    cold = Trees(bucket, tmp_path / "cold")
    try:
        broken(lambda: cold.ensure_image(digest), digest)
        broken(lambda: cold.ensure_image(digest), digest)
        assert not list((tmp_path / "cold/images").iterdir())
    finally:
        cold.close()


def test_a_lost_pack_is_noticed_before_the_disk_is_freed(trees: Trees, source: Path, tmp_path: Path) -> None:
    saved = trees.save_directory(source)
    trees.verify_stored(saved.digest)
    for pack in (tmp_path / "store/packs").rglob("*"):
        if pack.is_file():
            os.truncate(pack, pack.stat().st_size // 2)
    broken(lambda: trees.verify_stored(saved.digest), saved.digest)


def test_a_store_that_lost_packs_gets_them_again(rig: Rig, bucket: Bucket, source: Path, tmp_path: Path) -> None:
    """The index of a host is not believed against the store."""
    first = Trees(bucket, tmp_path / "cache")
    first.save_directory(source)
    first.close()
    shutil.rmtree(tmp_path / "store/packs")
    shutil.rmtree(tmp_path / "store/manifests")
    second = Trees(bucket, tmp_path / "cache")
    saved = second.save_directory(source)
    second.close()
    cold = Trees(bucket, tmp_path / "cold")
    try:
        assert_same(source, rig.look(cold, saved.digest))
    finally:
        cold.close()


def reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("index", "image_files"):
        monkeypatch.setattr(f"dovecote.host.storage.{module}.boot_id", lambda: "another boot")


def test_a_reboot_checks_the_cache_and_heals_it(
    rig: Rig, trees: Trees, bucket: Bucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut left objects and the image damaged: they come from the store again."""
    digest = trees.save_directory(source).digest
    image = trees.ensure_image(digest)
    good = image.read_bytes()
    trees.close()
    flip(image, len(good) // 2)
    for i, victim in enumerate(sorted(p for p in (tmp_path / "cache/objects").rglob("*") if p.is_file())):
        if i % 3 == 0:
            os.truncate(victim, victim.stat().st_size // 2)
    reboot(monkeypatch)
    again = Trees(bucket, tmp_path / "cache")
    try:
        assert again.ensure_image(digest).read_bytes() == good
        assert_same(source, rig.look(again, digest))
    finally:
        again.close()


def test_an_image_that_somebody_touched_is_not_mounted(trees: Trees, source: Path) -> None:
    digest = trees.save_directory(source).digest
    image = trees.ensure_image(digest)
    good = image.read_bytes()
    status = image.stat()
    flip(image, 5000)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert trees.ensure_image(digest).read_bytes() == good


def test_a_checked_image_needs_no_store(trees: Trees, source: Path, tmp_path: Path) -> None:
    """Waking on the same host goes on while the store is away, also in the next process."""
    digest = trees.save_directory(source).digest
    trees.ensure_image(digest)
    bucket = local_bucket(tmp_path / "store")
    again = Trees(bucket, tmp_path / "cache")
    (tmp_path / "store").rename(tmp_path / "away")
    try:
        assert trees.ensure_image(digest) == again.ensure_image(digest)
        cold = "0" * 64
        with pytest.raises(StorageFailed) as caught:
            again.ensure_image(cold)
        assert caught.value.code == "store_unreachable"
    finally:
        again.close()


class Breaks(Bucket):
    """Fails at the n-th write."""

    left = 1 << 30

    def _put(self, name: str, data: bytes, *, new: bool) -> None:
        self.left -= 1
        if self.left < 0:
            raise StorageFailed("the store went away", code="store_unreachable")
        super()._put(name, data, new=new)


def test_a_save_that_breaks_anywhere_leaves_the_earlier_tree(rig: Rig, source: Path, tmp_path: Path) -> None:
    """At each write in turn; and when it is tried again, it is as if nothing had happened."""
    inner = local_bucket(tmp_path / "store")
    bucket = Breaks(inner._store, directory=inner._directory)
    trees = Trees(bucket, tmp_path / "cache")
    try:
        template = trees.save_directory(source).digest
        first = one_life(rig, trees, template, None, CHANGES["rename and change inside"])
        before = picture(rig.look(trees, template, first.digest))
        life = rig.life(trees, template, first.digest)
        (life.root / "app/node_modules").mkdir(parents=True)
        for i in range(100):
            write(life.root / f"app/node_modules/{i}", f"{i}")
        seen = life.end()
        for allowed in range(100):
            bucket.left = allowed
            try:
                saved = life.save()
                break
            except StorageFailed as error:
                assert error.code == "store_unreachable"  # noqa: PT017
            bucket.left = 1 << 30
            cold = Trees(bucket, tmp_path / f"cold{allowed}")
            assert differences(before, picture(rig.look(cold, template, first.digest))) == []
            cold.close()
        assert allowed >= 3  # what an earlier attempt stored is not stored again
        bucket.left = 1 << 30
        cold = Trees(bucket, tmp_path / "cold")
        assert differences(seen, picture(rig.look(cold, template, saved.digest))) == []
        cold.close()
    finally:
        trees.close()


def test_a_moved_session_is_saved_on_its_new_host_without_storing_again(
    rig: Rig, trees: Trees, bucket: Bucket, source: Path, tmp_path: Path
) -> None:
    """The new host knows from the store's hints where the kept files lie."""
    template = trees.save_directory(source).digest
    first = one_life(rig, trees, template, None, CHANGES["big"])
    other = Trees(bucket, tmp_path / "other")
    try:
        second = one_life(rig, other, template, first.digest, lambda r: write(r / "etc/tiny", "x"))
        assert second.added_bytes < 5000
        other.verify_stored(second.digest)
    finally:
        other.close()


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


def test_a_thousand_directories_and_five_thousand_files(rig: Rig, trees: Trees) -> None:
    source = rig.folder("many")
    for d in range(1000):
        folder = source / f"d{d % 10}" / f"e{d}"
        folder.mkdir(parents=True)
        for f in range(5):
            write(folder / f"f{f}", random.Random(d * 5 + f).randbytes(d))
    saved = trees.save_directory(source)
    assert saved.files == 5000
    assert_same(source, rig.look(trees, saved.digest))
    assert sum(e.kind is Kind.DIR for e in trees.entries(saved.digest)) == 1011
