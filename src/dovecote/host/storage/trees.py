"""Trees: saving directories and changes into the store, and images that can be mounted, verified."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dovecote.errors import Invalid, StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.change import Change, applied, combined, plan_change
from dovecote.host.storage.condemned import Clock, Standing, State, boottime
from dovecote.host.storage.disk import disk_errors
from dovecote.host.storage.fetching import Fetching
from dovecote.host.storage.fold import Plan, plan_delta, plan_directory
from dovecote.host.storage.frames import Frame
from dovecote.host.storage.image_files import ImageFiles, left_out
from dovecote.host.storage.index import Index, Piece
from dovecote.host.storage.manifest import (
    Entry,
    Kind,
    Root,
    join,
)
from dovecote.host.storage.manifests import Manifests, read_manifests
from dovecote.host.storage.objects import ObjectCache
from dovecote.host.storage.packs import Packs, PackWriter
from dovecote.host.storage.payload import CARRIED_BYTES, parse_payload, parted, render_payload
from dovecote.host.storage.pool import Touched
from dovecote.host.storage.rules import DEFAULT_RULES, Rules
from dovecote.host.storage.scan import Bounds
from dovecote.host.storage.stored import (
    binary,
    naming,
    objects_of,
    of_other_size,
    or_corrupt,
    read_locations,
    read_parts,
    read_root,
    stored_name,
)
from dovecote.host.storage.tree_writer import TreeWriter
from dovecote.host.storage.whole import CacheSink, flattened

_TEMPLATES = 4  # whose paths are kept in memory


@dataclass(frozen=True)
class TreeSaved:
    """A tree that is whole and durable in the store."""

    digest: str
    files: int
    added_bytes: int  # added to the store, compressed
    total_bytes: int  # of all files, as a user would count them
    notes: tuple[str, ...] = ()  # what was left out, and why


@dataclass(frozen=True)
class Usage:
    files: int
    total_bytes: int
    template: str | None  # the tree that it is a delta over


class Trees:
    """All trees of one store, and this host's cache of them. Blocking calls, safe from many threads.

    Lives as long as the host process. `cache_dir` may be deleted while nothing runs; it must not be shared by two
    kinds of store at the same time. A digest is blake3 in hex of a tree's root manifest.
    """

    def __init__(
        self,
        bucket: Bucket,
        cache_dir: Path,
        *,
        rules: Rules = DEFAULT_RULES,
        bounds: Bounds | None = None,
        clock: Clock = boottime,
    ) -> None:
        self._bucket = bucket
        self._rules = rules
        self._bounds = bounds or Bounds()
        with disk_errors("the cache directory cannot be made"):
            cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chmod(cache_dir, 0o700)
        self._index = Index(cache_dir / "index.sqlite", identity=_identity(bucket))
        self.cache = ObjectCache(cache_dir, self._index)
        self._standing = Standing(bucket, clock=clock)
        self._packs = Packs(bucket, self._index, self.cache, self._standing)
        self._writer = TreeWriter(bucket, self._packs, self._standing)
        self._paths: OrderedDict[str, frozenset[bytes]] = OrderedDict()
        self._paths_lock = threading.Lock()
        self.image_files = ImageFiles(
            cache_dir, self.cache, read=self._manifests, fetching=Fetching(bucket, self._packs)
        )

    @property
    def objects_dir(self) -> Path:
        """The data-only lower layer: `lowerdir=DELTA:TEMPLATE::OBJECTS`, or `TEMPLATE::OBJECTS`."""
        return self.cache.objects_dir

    def close(self) -> None:
        self.image_files.close()
        self._index.close()

    def save_directory(self, root: Path, *, id_base: int = 0) -> TreeSaved:
        """A tree of its own from a plain directory that nobody writes to: a template."""
        with _reading(root):
            plan = plan_directory(os.fsencode(root), id_base=id_base, rules=self._rules, bounds=self._bounds)
        return self._save(plan, template=b"", previous=None)

    def save_delta(
        self,
        upper: Path,
        merged: Path,
        *,
        id_base: int,
        template: str,
        previous: str | None = None,
        rules: Rules | None = None,
    ) -> TreeSaved:
        """What an instance changed, as a delta over `template`. See `fold.plan_delta` for what the directories are.

        `previous` is the delta that the instance started from. A crash at any point leaves garbage in the store at
        most: the root manifest, which names everything else, is written last.
        """
        before: list[Entry] = []
        if previous is not None:
            if self._root(previous).template != binary(template):
                raise Invalid(f"tree {previous[:16]} is not over template {template[:16]}", code="wrong_template")
            before = self.entries(previous)
        paths = self._template_paths(template)
        with _reading(upper):
            plan = plan_delta(
                os.fsencode(upper),
                os.fsencode(merged),
                id_base=id_base,
                previous=before,
                in_template=paths.__contains__,
                rules=rules or self._rules,
                bounds=self._bounds,
            )
        return self._save(plan, template=binary(template), previous=previous)

    def save_change(
        self,
        upper: Path,
        mark: Path,
        merged: Path,
        *,
        changed: Iterable[Touched],
        id_base: int,
        rules: Rules | None = None,
    ) -> tuple[bytes, int] | None:
        """What an upper has become since its mark, durable, as the payload of a log's slot; and how many names it has.

        See `change.plan_change` for what the directories are. None when nothing changed that is kept.
        `rules` are those that the tree under the log's slots was made with.
        Raises TooTangled: then only `save_delta` can tell.
        """
        with _reading(upper):
            change = plan_change(
                os.fsencode(upper),
                os.fsencode(mark),
                os.fsencode(merged),
                changed,
                id_base=id_base,
                rules=rules or self._rules,
                bounds=self._bounds,
            )
        if not change.entries and not change.replaced:
            return None
        # Whoever needs them on this host has them in the instance's own disk: the cache is filled when it is parked.
        writer = PackWriter(self._packs, keeps=False)
        old, young = parted(change.sources)
        with self.cache.uses.use():
            change = change.complete({**writer.absorb(old), **writer.carry(young, most=CARRIED_BYTES)})
        writer.flush()
        writer.time.check()
        return render_payload(change, writer.located, writer.carried), len(change.entries) + len(change.replaced)

    def fold(self, tree: str, payloads: Sequence[bytes]) -> TreeSaved:
        """The delta that `tree` becomes with the changes of `save_change` on top, the oldest first. Reads no file."""
        template = self._root(tree).template
        carried: dict[bytes, Frame] = {}
        entries = applied(
            self.entries(tree),
            combined((self._change(payload, carried) for payload in payloads), self._rules),
            rules=self._rules,
            in_template=self._template_paths(template.hex()).__contains__,
        )
        join([(b"", entries)])  # a tree that could not be read again is not written
        return self._save(Plan(entries, [], ()), template=template, previous=tree, carried=carried)

    def _change(self, payload: bytes, carried: dict[bytes, Frame]) -> Change:
        carries = parse_payload(payload)
        self._index.add(carries.located)
        carried.update(carries.carried)
        return carries.change

    def save_entries(self, entries: list[Entry], *, notes: tuple[str, ...] = (), like: Sequence[str] = ()) -> TreeSaved:
        """A tree of its own whose contents are in the cache or in the trees `like`; no file is read."""
        return self._save(Plan(entries, [], notes), template=b"", previous=None, like=like)

    def flatten(self, delta: str) -> TreeSaved:
        """The tree that a delta and its template make together. Parts that did not change keep their manifests."""
        template = self._root(delta).template.hex()
        if not template:
            raise Invalid(f"tree {delta[:16]} is not a delta", code="wrong_template")
        return self.save_entries(flattened(self.entries(template), self.entries(delta)), like=(template, delta))

    @contextmanager
    def sink(self) -> Iterator[CacheSink]:
        """Contents for `save_entries`, which has to be called inside."""
        with self.cache.uses.use():
            yield CacheSink(self.cache)

    def entries(self, digest: str) -> list[Entry]:
        """Everything that the tree itself holds; of a delta, not what its template holds."""
        with naming(digest):
            return self._manifests(digest).entries

    @contextmanager
    def contents(self, digest: str) -> Iterator[list[Entry]]:
        """The tree's entries. Inside, every object that they point at is in `objects_dir`, checked.

        Raises StorageFailed.
        """
        with self.cache.uses.use():
            yield self.image_files.contents(digest)

    def objects_by_manifest(self, digest: str) -> Iterator[tuple[str, list[bytes]]]:
        """What each manifest of the tree points at, from the store."""
        with naming(digest):
            for _, part, entries in self._parts(digest):
                yield part, objects_of(entries)

    def left_out(self, digest: str) -> list[str]:
        """Directories that rules emptied when it was saved; at most MOST_LEFT_OUT. Cheap once its image is there."""
        known = self.image_files.left_out(digest)
        return left_out(self.entries(digest)) if known is None else known

    @contextmanager
    def seen(self, template: str, delta: str) -> Iterator[list[Entry]]:
        """What a user of the delta sees, sorted; the rest as `contents`."""
        with self.contents(template) as below, self.contents(delta) as above:
            yield flattened(below, above)

    def object_file(self, digest: bytes) -> Path:
        """Content of a file that `seen` or `contents` has answered, inside of them."""
        return self.cache.path(digest)

    def forget_lost(self) -> int:
        """Frees a part of what this host's index knows and the store has no more; answers how many rows. For now and
        then: it lists the store's packs."""
        return self._index.forget_lost(lambda: (stored.name for stored in self._bucket.list("packs")))

    def may_be_named(self, digest: str) -> bool:
        """Whether it is in the store and not condemned. For a name that no record, log or host has kept meanwhile."""
        return self._standing.of(stored_name("trees", digest)) is State.THERE

    def usage(self, digest: str) -> Usage:
        root = self._root(digest)
        return Usage(root.files, root.total_bytes, root.template.hex() or None)

    def verify_stored(self, digest: str) -> None:
        """Reads all manifests of the tree from the store and checks that each object's packs are there and long enough,
        and that its pieces are all of it.

        For the end of a session, before its disk is freed. Raises StorageFailed `corrupt`.
        """
        with naming(digest):
            ends: dict[str, int] = {}
            for _, part, entries in self._parts(digest):
                located = self._hints(part, entries)
                for entry in of_other_size(entries, located):
                    raise StorageFailed(f"{entry.path[-200:]!r} is not stored as a whole", code="corrupt")
                for pieces in located.values():
                    for p in pieces:
                        ends[p.pack] = max(ends.get(p.pack, 0), p.offset + p.stored)
            for name, end in ends.items():
                if or_corrupt(name, partial(self._bucket.size, name)) < end:
                    raise StorageFailed(f"{name} is too short", code="corrupt")

    def ensure_image(self, digest: str) -> Path:
        """The tree's EROFS image, with every object that it points at in `objects_dir`. May be repeated.

        Where many objects had to be fetched, the image has them inside at first.

        The first call of a boot checks everything by hash: the manifests, each object, the image; what is missing is
        fetched or built. Raises StorageFailed `corrupt` if that cannot be done.

        After that one `stat` is enough. The image and the objects lie in directories that only root can enter, are
        written under another name and renamed, and never changed; whoever touched the image all the same has changed
        its inode or its ctime, which nobody can set. What a power cut may undo (objects are not synced) is undone by a
        reboot only, and the record of the check counts for one boot.
        """
        return self.image_files.ensure(digest)

    def _hints(self, part: str, entries: Sequence[Entry]) -> dict[bytes, tuple[Piece, ...]]:
        return read_locations(self._bucket, part, entries)

    def _root(self, digest: str) -> Root:
        with naming(digest):
            return read_root(self._bucket, digest)

    def _manifests(self, digest: str) -> Manifests:
        return read_manifests(self._bucket, self._root(digest))

    def _parts(self, digest: str) -> Iterator[tuple[bytes, str, list[Entry]]]:
        return read_parts(self._bucket, self._root(digest))

    def _template_paths(self, template: str) -> frozenset[bytes]:
        with self._paths_lock:
            paths = self._paths.get(template)
            if paths is None:
                paths = frozenset(e.path for e in self.entries(template) if e.kind is not Kind.WHITEOUT)
                self._paths[template] = paths
                while len(self._paths) > _TEMPLATES:
                    self._paths.popitem(last=False)
            self._paths.move_to_end(template)
            return paths

    def _save(
        self,
        plan: Plan,
        *,
        template: bytes,
        previous: str | None,
        like: Sequence[str] = (),
        carried: Mapping[bytes, Frame] | None = None,
    ) -> TreeSaved:
        trees = (*like, *([previous] if previous is not None else []))
        with self.cache.uses.use():
            digest, root, added_bytes = self._writer.write(plan, template, like=trees, carried=carried or {})
        return TreeSaved(digest, root.files, added_bytes, root.total_bytes, plan.notes)


def _identity(bucket: Bucket) -> str | None:
    """None while the store does not answer: a host can be taken down all the same."""
    try:
        return bucket.identity()
    except StorageFailed:
        return None


@contextmanager
def _reading(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{directory} cannot be read: {error}", code="read_failed") from error
