"""Images of trees on this host: files that can be mounted, with what they point at in the cache, verified."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path

from dovecote.errors import StorageFailed
from dovecote.host.storage.disk import boot_id, disk_errors
from dovecote.host.storage.erofs import write_filled_image, write_image
from dovecote.host.storage.fetching import Fetching
from dovecote.host.storage.keys import Keys
from dovecote.host.storage.manifest import DIRS, Entry
from dovecote.host.storage.manifests import Manifests
from dovecote.host.storage.objects import ObjectCache, hash_file
from dovecote.host.storage.rules import LEFT_OUT
from dovecote.host.storage.settling import Interruptible, Settling
from dovecote.host.storage.stored import binary, naming

MANY = 1000  # missing objects that are not made files of while somebody waits
IMAGE_FORMAT = 2  # raised when images are written in another way: those of before are written again
MOST_LEFT_OUT = 32
_REMEMBERED = 20_000  # images that were checked
_LOCKS = 64
_SAMPLE, _NEARLY_ALL = 250, 0.9
_FORGOTTEN = "forgotten"
_RECORD, _IMAGE = re.compile(r"([0-9a-f]{64})\.json"), re.compile(r"([0-9a-f]{64})\.erofs")
Stamp = tuple[int, int, int, int, int]


class ImageFiles:
    """`images/<digest>.erofs`, and beside each its record, which says what was checked and which manifests it is of.

    A tree that was checked has all of its objects in the cache, or inside its image. Whoever evicts objects lets their
    trees be forgotten first.
    """

    def __init__(
        self, cache_dir: Path, cache: ObjectCache, *, read: Callable[[str], Manifests], fetching: Fetching
    ) -> None:
        self._directory = cache_dir / "images"
        with disk_errors("the cache directory cannot be made"):
            self._directory.mkdir(mode=0o700, exist_ok=True)
        self.keys = Keys(cache_dir / "parts")
        self._cache = cache
        self._read = read
        self._fetching = fetching
        self._boot = boot_id()
        self._trusted: dict[str, Stamp] = {}
        self._used: dict[str, float] = {}
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._settling = Settling(self._settle)

    def close(self) -> None:
        self._settling.stop()
        self.note_used()

    def left_out(self, digest: str) -> list[str] | None:
        """What its record says; None without one."""
        known = self._read_record(digest).get("left_out")
        return [str(path) for path in known] if isinstance(known, list) else None

    def contents(self, digest: str) -> list[Entry]:
        """Sees to all objects of a tree, without an image. Call in a use of the cache."""
        with self._lock(digest), naming(digest):
            tree = self._read(digest)
            self._fetching.fetch(tree, self._cache.missing(tree.objects), self._cache)
            self.used(digest)
            record = self._read_record(digest)
            if not record.get("parts") or record.get(_FORGOTTEN):
                self._note_parts(digest, tree, {"left_out": left_out(tree.entries)})
            return tree.entries

    def ensure(self, digest: str) -> Path:
        """See `Trees.ensure_image`."""
        path = self.path(digest)
        self.used(digest)
        stamp = _stamp(path)
        if stamp is not None and self._trusted.get(digest) == stamp:
            return path
        with self._lock(digest), naming(digest), self._cache.uses.use():
            stamp = _stamp(path)
            record = self._read_record(digest)
            known = (record.get("format"), record.get("stamp"), record.get("boot"))
            if stamp is None or not record.get("parts") or known != (IMAGE_FORMAT, list(stamp), self._boot):
                with self._settling.ahead():
                    stamp = self._check(digest, path, record)
            elif not record.get("image"):
                self._settling.add(digest)  # an earlier process did not come to it
            if len(self._trusted) > _REMEMBERED:
                self._trusted.clear()
            self._trusted[digest] = stamp
            return path

    def _check(self, digest: str, path: Path, record: dict[str, object]) -> Stamp:
        tree = self._read(digest)
        missing = self._missing(tree.objects)
        if len(missing) < MANY:
            self._fetching.fetch(tree, missing, self._cache)
            return self._write(digest, path, tree, record)
        # Thousands of files are slow to make, and somebody waits: the image has their contents until `settle`.
        located = self._fetching.locate(tree, missing)
        with disk_errors("the image cannot be written"):
            write_filled_image(
                lambda: tree.entries,
                path,
                uuid=binary(digest)[:16],
                inside={d: sum(piece.raw for piece in pieces) for d, pieces in located.items()},
                fill=partial(self._fetching.bring, tree, located),
            )
        stamp = self._note_image(digest, path, tree, image="")
        self._settling.add(digest)
        return stamp

    def _missing(self, objects: list[bytes]) -> list[bytes]:
        """Of a tree. Where nearly all of a sample is not here, nothing counts as here: to look for each takes longer
        than to fetch the few again that are."""
        sample = objects[:: len(objects) // _SAMPLE] if len(objects) >= MANY else []
        if sample and len(self._cache.missing(sample)) >= _NEARLY_ALL * len(sample):
            return objects
        return self._cache.missing(objects)

    def _write(self, digest: str, path: Path, tree: Manifests, record: dict[str, object]) -> Stamp:
        """The image of a tree whose objects are all in the cache."""
        image = record.get("image") if record.get("format") == IMAGE_FORMAT else None
        with disk_errors("the image cannot be written"):
            if not image or hash_file(path).hex() != image:
                image = write_image(tree.entries, path, uuid=binary(digest)[:16])
        return self._note_image(digest, path, tree, image=str(image))

    def _settle(self, digest: str, go_on: Callable[[], None]) -> None:
        """Brings what an image has inside to the cache, for other trees too, and replaces it by one that points there.

        Whoever has the old one mounted keeps it.
        """
        with naming(digest), self._cache.uses.use():
            tree = self._read(digest)
            missing = self._cache.missing(tree.objects)
            self._fetching.fetch(tree, missing, Interruptible(self._cache, go_on))
            go_on()
            with self._lock(digest):
                self._trusted[digest] = self._write(digest, self.path(digest), tree, {})

    def path(self, digest: str) -> Path:
        return self._directory / f"{digest}.erofs"

    def _lock(self, digest: str) -> threading.Lock:
        return self._locks[binary(digest)[0] % _LOCKS]

    # -- records

    def _note_image(self, digest: str, path: Path, tree: Manifests, *, image: str) -> Stamp:
        with disk_errors("the image cannot be written"):
            stamp = _stamp(path)
            assert stamp is not None
            self._cache.grown += stamp[2]
            body: dict[str, object] = {"format": IMAGE_FORMAT, "image": image, "boot": self._boot, "stamp": list(stamp)}
            self._note_parts(digest, tree, body | {"left_out": left_out(tree.entries)})
        return stamp

    def _note_parts(self, digest: str, tree: Manifests, body: dict[str, object]) -> None:
        for part, objects in tree.parts:
            self.keys.write(part, objects)
        self._write_record(digest, body | {"parts": [part for part, _ in tree.parts]})

    def _write_record(self, digest: str, body: dict[str, object]) -> None:
        path = self._record(digest)
        temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        with disk_errors("the record of an image cannot be written"):
            temporary.write_text(json.dumps(body), encoding="ascii")
            os.rename(temporary, path)

    def _read_record(self, digest: str) -> dict[str, object]:
        try:
            record = json.loads(self._record(digest).read_bytes())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _record(self, digest: str) -> Path:
        return self._directory / f"{digest}.json"

    # -- what an eviction needs

    def used(self, digest: str) -> None:
        """It is used now. Costs nothing; written down by `note_used`."""
        self._used[digest] = time.time()

    def note_used(self) -> None:
        """A crash before forgets the order in which trees were used since."""
        while self._used:
            digest, at = self._used.popitem()
            with suppress(OSError):
                os.utime(self._record(digest), (at, at))

    def recorded(self) -> dict[str, float]:
        """Trees with a record, and when each was used last."""
        found = {}
        for entry in os.scandir(self._directory):
            if match := _RECORD.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    found[match[1]] = entry.stat(follow_symlinks=False).st_mtime
        return found

    def files(self) -> Iterable[tuple[str, os.stat_result]]:
        """Images, with a record or without."""
        for entry in os.scandir(self._directory):
            if match := _IMAGE.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    yield match[1], entry.stat(follow_symlinks=False)

    def manifests(self, digest: str) -> list[str]:
        """Of a tree with a record; what they point at is in `keys`."""
        found = self._read_record(digest).get("parts")
        return [str(part) for part in found] if isinstance(found, list) else []

    def forget(self, digest: str) -> bool:
        """From now on everything of it is checked again before it counts. False while somebody is at it.

        Its record goes on saying what it points at, until `delete`.
        """
        lock = self._lock(digest)
        if not lock.acquire(blocking=False):
            return False
        try:
            self._trusted.pop(digest, None)
            record = self._read_record(digest)
            kept = {name: record[name] for name in ("parts", "left_out") if name in record}
            try:
                at = self._record(digest).stat().st_mtime
                self._write_record(digest, kept | {_FORGOTTEN: True})
                os.utime(self._record(digest), (at, at))
            except (OSError, StorageFailed):  # a full disk, perhaps: then it says nothing any more
                self._record(digest).unlink(missing_ok=True)
            return True
        finally:
            lock.release()

    def delete(self, digest: str) -> bool:
        """Deletes the image of a tree that was forgotten, and not checked again since."""
        lock = self._lock(digest)
        if not lock.acquire(blocking=False):
            return False
        try:
            record = self._read_record(digest)
            if digest in self._trusted or (record and not record.get(_FORGOTTEN)):
                return False
            self._record(digest).unlink(missing_ok=True)
            self.path(digest).unlink(missing_ok=True)
            return True
        finally:
            lock.release()


def left_out(entries: Sequence[Entry]) -> list[str]:
    """Directories that rules emptied; at most MOST_LEFT_OUT."""
    found: list[str] = []
    for entry, after in zip_longest(entries, entries[1:]):
        is_empty = after is None or not after.path.startswith(entry.path + b"/")
        if entry.kind in DIRS and is_empty and LEFT_OUT in entry.xattrs and len(found) < MOST_LEFT_OUT:
            with suppress(UnicodeDecodeError):
                found.append("/" + entry.path.decode())
    return found


def _stamp(path: Path) -> Stamp | None:
    try:
        s = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns
