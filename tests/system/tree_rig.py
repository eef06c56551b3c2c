"""Real mounts for tests of trees: lives of an instance on an overlay, and pictures of directories to compare."""

import ctypes
import hashlib
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dovecote.host.storage.rules import DEFAULT_RULES, Rules
from dovecote.host.storage.trees import Trees, TreeSaved

_libc = ctypes.CDLL(None, use_errno=True)
_RDONLY, _DETACH = 1, 2
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
Picture = dict[bytes, tuple[object, ...]]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


class Rig:
    """Mounts that are gone at the end, whatever happened."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._mounts: list[Path] = []
        self._count = 0

    def close(self) -> None:
        for path in reversed(self._mounts):
            _libc.umount2(os.fsencode(path), _DETACH)
        self._mounts.clear()

    def folder(self, name: str) -> Path:
        self._count += 1
        path = self.directory / f"{self._count:03d}-{name}"
        path.mkdir()
        return path

    def mount(self, kind: str, source: Path | str, options: str = "", flags: int = 0) -> Path:
        target = self.folder(kind)
        what = _libc.mount(
            os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()
        )
        _check(what, f"mount {kind} {options}")
        self._mounts.append(target)
        return target

    def unmount(self, path: Path) -> None:
        _check(_libc.umount2(os.fsencode(path), 0), f"umount {path}")
        self._mounts.remove(path)

    def image(self, trees: Trees, digest: str, id_base: int = 0) -> Path:
        mounted = self.mount("erofs", trees.ensure_image(digest), flags=_RDONLY)
        return self.idmapped(mounted, id_base) if id_base else mounted

    def idmapped(self, source: Path, id_base: int) -> Path:
        target = self.folder("idmapped")
        with user_namespace(id_base) as namespace:
            tree = _check(_libc.syscall(_OPEN_TREE, -100, os.fsencode(source), 0x80001), "open_tree")
            try:
                attributes = struct.pack("QQQQ", 0x100000, 0, 0, namespace)
                _check(_libc.syscall(_MOUNT_SETATTR, tree, b"", 0x1000, attributes, 32), "mount_setattr")
                _check(_libc.syscall(_MOVE_MOUNT, tree, b"", -100, os.fsencode(target), 4), "move_mount")
            finally:
                os.close(tree)
        self._mounts.append(target)
        return target

    def lowers(self, trees: Trees, template: str, delta: str | None, id_base: int = 0) -> str:
        layers = [self.image(trees, d, id_base) for d in (delta, template) if d]
        return ":".join(map(str, layers)) + f"::{trees.objects_dir}"

    def look(self, trees: Trees, template: str, delta: str | None = None, id_base: int = 0) -> Path:
        """A read-only view of a workspace."""
        lower = self.lowers(trees, template, delta, id_base)
        return self.mount("overlay", "o", f"lowerdir={lower},metacopy=on,redirect_dir=follow", _RDONLY)

    def life(
        self,
        trees: Trees,
        template: str,
        delta: str | None,
        id_base: int = 0,
        base: Path | None = None,
        lower: str | None = None,
    ) -> "Life":
        return Life(self, trees, template, delta, id_base, base or self.folder("disk"), lower)


class Life:
    """One life of an instance: an overlay with an upper, until it is saved."""

    def __init__(
        self,
        rig: Rig,
        trees: Trees,
        template: str,
        delta: str | None,
        id_base: int,
        base: Path,
        lower: str | None = None,
    ) -> None:
        self.rig, self.trees, self.template, self.delta, self.id_base = rig, trees, template, delta, id_base
        self.upper, work = base / "upper", base / "work"
        self.lower = lower or rig.lowers(trees, template, delta, id_base)
        work.mkdir()
        self.upper.mkdir()
        # The upper's own directory is the root that a user sees: it starts as the lower one was.
        first = os.stat(self.lower.split(":")[0])
        os.chown(self.upper, first.st_uid, first.st_gid)
        os.chmod(self.upper, stat.S_IMODE(first.st_mode))
        os.utime(self.upper, ns=(first.st_mtime_ns, first.st_mtime_ns))
        options = f"lowerdir={self.lower},upperdir={self.upper},workdir={work},metacopy=on,redirect_dir=on"
        self.root = rig.mount("overlay", "o", options)

    def end(self) -> Picture:
        """What a user saw last; the overlay is gone afterwards."""
        seen = picture(self.root)
        self.rig.unmount(self.root)
        return seen

    def save(self, upper: Path | None = None, *, rules: Rules | None = None, trees: Trees | None = None) -> TreeSaved:
        upper = upper or self.upper
        options = f"lowerdir={upper}:{self.lower},metacopy=on,redirect_dir=follow"
        merged = self.rig.mount("overlay", "o", options, _RDONLY)
        try:
            return (trees or self.trees).save_delta(
                upper, merged, id_base=self.id_base, template=self.template, previous=self.delta, rules=rules
            )
        finally:
            self.rig.unmount(merged)


@contextmanager
def user_namespace(id_base: int) -> Iterator[int]:
    holder = subprocess.Popen(["unshare", "-U", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write(b"x")  # an answer means that the namespace is there
        holder.stdin.flush()
        holder.stdout.read(1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{holder.pid}/{name}").write_text(f"0 {id_base} 65536\n")
        fd = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        holder.kill()
        holder.wait(10)


def picture(root: Path) -> Picture:
    """Everything that a user can tell about a directory: names, bytes, attributes, hard links."""
    base = os.fsencode(root)
    result: Picture = {}
    groups: dict[tuple[int, int], bytes] = {}
    folders = [b""]
    while folders:
        folder = folders.pop()
        result[folder] = _describe(base + b"/" + folder, folder, groups)
        for name in sorted(os.listdir(base + b"/" + folder)):
            path = folder + b"/" + name if folder else name
            status = os.lstat(base + b"/" + path)
            if stat.S_ISDIR(status.st_mode):
                folders.append(path)
            elif not stat.S_ISSOCK(status.st_mode) and not stat.S_ISCHR(status.st_mode):
                result[path] = _describe(base + b"/" + path, path, groups)
    members: dict[object, list[bytes]] = {}
    for path, line in result.items():
        members.setdefault(line[-1], []).append(path)
    return {path: (*line[:-1], tuple(sorted(members[line[-1]]))) for path, line in result.items()}


def _describe(full: bytes, path: bytes, groups: dict[tuple[int, int], bytes]) -> tuple[object, ...]:
    s = os.lstat(full)
    kind = stat.S_IFMT(s.st_mode)
    content: object = None
    xattrs: object = None
    if kind == stat.S_IFREG:
        with open(full, "rb") as file:
            content = (s.st_size, hashlib.file_digest(file, "blake2b").hexdigest())
    elif kind == stat.S_IFLNK:
        content = os.readlink(full)
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        xattrs = sorted((n, os.getxattr(full, n)) for n in os.listxattr(full) if not n.startswith("trusted."))
    group: object = path
    if kind != stat.S_IFDIR and s.st_nlink > 1:
        group = groups.setdefault((s.st_dev, s.st_ino), path)
    return kind, stat.S_IMODE(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns, content, xattrs, group


def differences(a: Picture, b: Picture, *, links: bool = True) -> Sequence[object]:
    """What two pictures do not share; empty when they are the same. What the default rules leave out is no part."""
    end = None if links else -1
    a, b = ({p: line[:end] for p, line in side.items() if not DEFAULT_RULES.excludes(p)} for side in (a, b))
    return [(path, a.get(path), b.get(path)) for path in sorted(a.keys() | b.keys()) if a.get(path) != b.get(path)][:10]


def assert_same(a: Path, b: Path) -> None:
    assert differences(picture(a), picture(b)) == []


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
