"""Looks through a store for what is missing, too short or changed, and says which trees that damages. Only reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from dovecote.errors import Invalid, NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.frames import unpack
from dovecote.host.storage.index import Piece
from dovecote.host.storage.manifest import Entry, Part
from dovecote.host.storage.payload import Payload, parse_payload
from dovecote.host.storage.runs import Run, in_order, runs_of
from dovecote.host.storage.slots import every_slot
from dovecote.host.storage.stored import of_other_size, read_locations, read_part, read_root

FAULTS_SHOWN = 5  # of one part of a tree
Progress = Callable[[int, int], None]  # trees done, trees in all


@dataclass(frozen=True)
class Damage:
    """`what` is damaged: a tree or a slot of a log. `users` says whose it is."""

    what: str
    faults: tuple[str, ...]
    users: tuple[str, ...]


@dataclass(frozen=True)
class Checked:
    trees: int
    slots: int
    packs: int
    objects: int  # read and hashed; 0 unless deep
    damages: tuple[Damage, ...]


def check_store(
    bucket: Bucket, trees: Mapping[str, Sequence[str]], *, deep: bool = False, progress: Progress = lambda *_: None
) -> Checked:
    """Checks `trees` (digest -> who uses it), what all logs name, and the templates that those are deltas over.

    Each manifest is read and hashed, and each pack must be there and long enough; `deep` reads and hashes every
    object too. May run while others save. Raises StorageFailed (store_unreachable): that is no damage.
    """
    users = {digest: list(whose) for digest, whose in trees.items()}
    check = _Check(bucket, deep=deep)
    damages: list[Damage] = []
    slots = 0
    for slot in every_slot(bucket):
        slots += 1
        name = f"log of {slot.owner}, slot {slot.n}"
        if faults := (slot.fault,) if slot.fault else check.changes(slot.changes):
            damages.append(Damage(name, faults, (f"session {slot.owner}",)))
        for digest in slot.trees:
            users.setdefault(digest, []).append(name)
    deltas: dict[str, list[str]] = {}  # of a template
    faulty: dict[str, tuple[str, ...]] = {}
    waiting = list(users)
    for done, digest in enumerate(waiting):
        progress(done, len(waiting))
        template, faulty[digest] = check.tree(digest)
        if template:
            deltas.setdefault(template, []).append(digest)
        if template and template not in users:
            users[template] = []
            waiting.append(template)
    progress(len(waiting), len(waiting))
    for digest, faults in faulty.items():
        if faults:
            whose = [user for each in (digest, *deltas.get(digest, ())) for user in users[each]]
            damages.append(Damage(f"tree {digest}", faults, tuple(dict.fromkeys(whose))))
    return Checked(len(waiting), slots, check.packs, check.objects, tuple(damages))


class _Check:
    """Remembers parts, packs and objects that it has looked at: trees share most of them."""

    def __init__(self, bucket: Bucket, *, deep: bool) -> None:
        self._bucket = bucket
        self._deep = deep
        self._parts: dict[Part, tuple[str, ...]] = {}  # what is wrong with it
        self._sizes: dict[str, int | None] = {}
        self._objects: dict[bytes, str] = {}  # an object in one place -> what is wrong with it

    @property
    def packs(self) -> int:
        return len(self._sizes)

    @property
    def objects(self) -> int:
        return len(self._objects)

    def tree(self, digest: str) -> tuple[str, tuple[str, ...]]:
        """The template that it is a delta over, or "", and what is wrong."""
        try:
            root = read_root(self._bucket, digest)
        except (StorageFailed, Invalid) as error:
            return "", (_fault(error),)
        faults: list[str] = []
        for part in root.parts:
            if part not in self._parts:
                self._parts[part] = _shortened(self._part(part))
            faults += self._parts[part]
        return root.template.hex(), tuple(dict.fromkeys(faults))

    def changes(self, payload: bytes) -> tuple[str, ...]:
        """What is wrong with what a slot carries."""
        if not payload:
            return ()
        try:
            carries = parse_payload(payload)
        except StorageFailed as error:
            return (_fault(error),)
        faults = self._contents(carries.change.entries, carries.located)
        return _shortened([*faults, *_carried_faults(carries)])

    def _part(self, part: Part) -> list[str]:
        try:
            entries = read_part(self._bucket, part)
            located = read_locations(self._bucket, part.digest.hex(), entries)
        except StorageFailed as error:
            return [_fault(error)]
        return self._contents(entries, located)

    def _contents(self, entries: Sequence[Entry], located: Mapping[bytes, tuple[Piece, ...]]) -> list[str]:
        faults = [f"{_path(entry)}: not all of it was stored" for entry in of_other_size(entries, located)]
        faults += self._short_packs(located)
        if self._deep and not faults:
            faults = self._read_objects(entries, located)
        return faults

    def _short_packs(self, located: Mapping[bytes, tuple[Piece, ...]]) -> list[str]:
        ends: dict[str, int] = {}
        for pieces in located.values():
            for piece in pieces:
                ends[piece.pack] = max(ends.get(piece.pack, 0), piece.offset + piece.stored)
        faults = []
        for name, end in ends.items():
            if name not in self._sizes:
                self._sizes[name] = self._size(name)
            size = self._sizes[name]
            if size is None:
                faults.append(f"{name} is missing")
            elif size < end:
                faults.append(f"{name} is too short: {size} bytes, {end} or more were written")
        return faults

    def _size(self, name: str) -> int | None:
        try:
            return self._bucket.size(name)
        except NotFound:
            return None

    def _read_objects(self, entries: Sequence[Entry], located: Mapping[bytes, tuple[Piece, ...]]) -> list[str]:
        new = {d: pieces for d, pieces in located.items() if _place(d, pieces) not in self._objects}
        for digest, pieces in new.items():
            if len(pieces) > 1:
                self._objects[_place(digest, pieces)] = self._read_large(digest, pieces)
        for run in runs_of(in_order(new)):
            self._read_run(run)
        bad = {d: fault for d, pieces in located.items() if (fault := self._objects[_place(d, pieces)])}
        return [f"{_path(e)}: {bad[e.digest]}" for e in entries if e.digest in bad]

    def _read_run(self, run: Run) -> None:
        try:
            data = self._bucket.get_range(run.pack, run.start, run.end - run.start)
        except NotFound:
            fault = f"{run.pack} is missing or too short"
            self._objects.update({_place(digest, (piece,)): fault for digest, piece in run.wanted})
            return
        for digest, piece in run.wanted:
            frame = data[piece.offset - run.start : piece.offset - run.start + piece.stored]
            self._objects[_place(digest, (piece,))] = _verify(digest, [piece], iter([frame]))

    def _read_large(self, digest: bytes, pieces: tuple[Piece, ...]) -> str:
        return _verify(digest, pieces, (self._bucket.get_range(p.pack, p.offset, p.stored) for p in pieces))


def _path(entry: Entry) -> str:
    return f"/{entry.path.decode(errors='backslashreplace')}"


def _verify(digest: bytes, pieces: Sequence[Piece], frames: Iterator[bytes]) -> str:
    """What is wrong with an object, "" when nothing is. One frame at a time, so that no file is held whole."""
    hasher = blake3()
    for piece in pieces:
        try:
            hasher.update(unpack(next(frames), piece.raw))
        except NotFound:
            return f"{piece.pack} is missing or too short"
        except StorageFailed as error:
            return f"{_fault(error)} ({piece.pack})"
    if hasher.digest() != digest:
        return f"object {digest.hex()} in {pieces[0].pack} has other content"
    return ""


def _carried_faults(carries: Payload) -> Iterator[str]:
    for entry in carries.change.entries:
        if entry.digest in carries.carried:
            _, _, frame, raw = carries.carried[entry.digest]
            fault = _mismatch(entry.digest, frame, raw)
            if fault:
                yield f"{_path(entry)}: {fault}"


def _mismatch(digest: bytes, frame: bytes, raw: int) -> str:
    try:
        content = unpack(frame, raw)
    except StorageFailed as error:
        return _fault(error)
    return "" if blake3(content).digest() == digest else f"object {digest.hex()} has other content"


def _place(digest: bytes, pieces: tuple[Piece, ...]) -> bytes:
    # Two manifests may name different places of one object. Half a hash: there may be a million of them.
    return blake3(digest + repr(pieces).encode()).digest(16)


def _shortened(faults: Sequence[str]) -> tuple[str, ...]:
    rest = len(faults) - FAULTS_SHOWN
    return (*faults[:FAULTS_SHOWN], *([f"and {rest} more like these"] if rest > 0 else []))


def _fault(error: StorageFailed | Invalid) -> str:
    """Damage in words; a store that does not answer is no damage."""
    if isinstance(error, StorageFailed) and error.code != "corrupt":
        raise error
    return error.message
