"""A check of the store finds what is missing, short or changed, names whose it is, and changes nothing."""

from __future__ import annotations

import asyncio
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dovecote.cli import app as cli
from dovecote.errors import StorageFailed
from dovecote.host.storage.bucket import Bucket, local_bucket
from dovecote.host.storage.change import Change, render_change
from dovecote.host.storage.check import FAULTS_SHOWN, Checked, check_store
from dovecote.host.storage.figures import store_figures
from dovecote.host.storage.frames import PIECE_BYTES, pack
from dovecote.host.storage.log import SlotLog
from dovecote.host.storage.manifest import TIMES_APART, Entry, Kind
from dovecote.host.storage.packs import PackWriter
from dovecote.host.storage.payload import render_payload
from dovecote.host.storage.sources import Source
from dovecote.host.storage.stored import packed_locations, read_root
from dovecote.host.storage.times import render_times
from dovecote.host.storage.trees import Trees
from dovecote.model.records import App, Function, Revision, Snapshot
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.states import SnapshotCause
from dovecote.store import open_store
from tests.contract.stores import NOW, A, session
from tests.unit.test_storage_objects import packs_at

SHARED = os.urandom(50_000)
LARGE = os.urandom(PIECE_BYTES + 1000)  # an object of two pieces


@dataclass
class World:
    """A template, a session's delta over it in a log, and a tree that shares one file with nobody damaged."""

    objects: Path
    bucket: Bucket
    template: str
    delta: str
    other: str

    @property
    def trees(self) -> dict[str, list[str]]:
        return {self.delta: ["session ses_1"], self.other: ["app shop (revision 1)"]}

    def check(self, *, deep: bool = False) -> Checked:
        return check_store(self.bucket, self.trees, deep=deep)

    def file(self, kind: str, digest: str) -> Path:
        return self.objects / kind / digest[:2] / digest[2:]


def save(trees: Trees, directory: Path, files: dict[str, bytes]) -> str:
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return trees.save_directory(directory).digest


@pytest.fixture
def world(tmp_path: Path) -> World:
    objects = tmp_path / "data/objects"
    bucket = local_bucket(objects)
    trees = Trees(bucket, tmp_path / "cache")
    try:
        template = save(trees, tmp_path / "template", {"shared": SHARED, "large": LARGE})
        other = save(trees, tmp_path / "other", {"own": b"own", "shared": SHARED})
        for name in ("upper", "merged"):
            (tmp_path / name).mkdir()
            for number in range(FAULTS_SHOWN + 3):
                (tmp_path / name / f"f{number}").write_bytes(b"%d" % number * 100)
        (tmp_path / "merged/shared").write_bytes(SHARED)
        delta = trees.save_delta(tmp_path / "upper", tmp_path / "merged", id_base=0, template=template).digest
    finally:
        trees.close()
    log = SlotLog(bucket, "ses_1")
    log.seal(1)
    log.append(epoch=1, template=template, tree=delta, previous=None, files=1, bytes=1, at=NOW)
    return World(objects, bucket, template, delta, other)


def picture(directory: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_store_has_no_damage_and_is_left_as_it_is(world: World, deep: bool) -> None:
    before = picture(world.objects)
    checked = world.check(deep=deep)
    assert checked.damages == ()
    # The template is looked at because the delta is over it, though no record names it.
    assert (checked.trees, checked.slots) == (3, 2)
    assert checked.objects == ((FAULTS_SHOWN + 3) + 3 if deep else 0)
    assert picture(world.objects) == before


def damaged(checked: Checked) -> dict[str, tuple[str, ...]]:
    return {damage.what: damage.users for damage in checked.damages}


@pytest.mark.parametrize("kind", ["trees", "manifests", "locations"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-7]),
        lambda path: path.write_bytes(b"" if path.stat().st_size < 40 else b"no frame at all"),
    ],
    ids=["missing", "truncated", "replaced"],
)
def test_a_spoiled_record_of_a_tree_is_found(world: World, kind: str, spoil: Callable[[Path], None]) -> None:
    """And damages that tree only, for the session and the slot of its log that name it."""
    digest = world.delta if kind == "trees" else part_of(world)
    spoil(world.file(kind, digest))
    assert damaged(world.check()) == {f"tree {world.delta}": ("session ses_1", "log of ses_1, slot 2")}


def part_of(world: World) -> str:
    (part,) = read_root(world.bucket, world.delta).parts
    return part.digest.hex()


def test_two_trees_that_differ_in_times_only_share_all_but_those(tmp_path: Path) -> None:
    """Each has its own times, and without them it is damaged."""
    bucket = local_bucket(tmp_path / "objects")
    trees = Trees(bucket, tmp_path / "cache")
    digests = []
    for seconds in (1, 1_000_000_000):
        directory = tmp_path / f"at{seconds}"
        directory.mkdir()
        for number in range(TIMES_APART):
            (directory / f"f{number}").write_bytes(b"%d" % number)
            os.utime(directory / f"f{number}", (seconds, seconds + number))
        os.utime(directory, (seconds, seconds))
        digests.append(trees.save_directory(directory).digest)
        times = [entry.mtime_ns for entry in trees.entries(digests[-1]) if entry.path]
        assert sorted(times) == [(seconds + number) * 10**9 for number in range(TIMES_APART)]
    trees.close()
    first, second = (read_root(bucket, digest).parts[0] for digest in digests)
    assert first.digest == second.digest
    counts = {kind: amount.count for kind, amount in store_figures(bucket, digests).kinds.items()}
    assert counts == {"packs": 1, "locations": 1, "manifests": 1, "times": 2, "trees": 2, "logs": 0}
    path = tmp_path / "objects/times" / second.times.hex()[:2] / second.times.hex()[2:]
    path.write_bytes(pack(render_times([0] * TIMES_APART)))
    whose = {digest: [digest] for digest in digests}
    assert damaged(check_store(bucket, whose)) == {f"tree {digests[1]}": (digests[1],)}


def test_a_manifest_with_other_content_than_its_name_is_found(world: World) -> None:
    """Also when it is itself a good manifest."""
    world.file("trees", world.delta).write_bytes(world.file("trees", world.other).read_bytes())
    (damage,) = world.check().damages
    assert damage.what == f"tree {world.delta}"
    assert "other content" in damage.faults[0]


def template_packs(world: World) -> list[Path]:
    return [path for path in (world.objects / "packs").glob("*/*") if path.stat().st_size > len(SHARED)]


@pytest.mark.parametrize("missing", [True, False])
def test_a_pack_that_is_missing_or_short_damages_every_tree_that_needs_it(world: World, missing: bool) -> None:
    """The template's too, whose users are those of the delta over it."""
    for path in template_packs(world):
        if missing:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:100])
    checked = world.check()
    assert damaged(checked) == {
        f"tree {world.other}": ("app shop (revision 1)",),
        f"tree {world.template}": ("log of ses_1, slot 2", "session ses_1"),
    }
    word = "missing" if missing else "too short"
    assert all(word in fault and "packs/" in fault for damage in checked.damages for fault in damage.faults)


def test_changed_bytes_are_found_by_a_deep_check_only_and_name_the_files(world: World) -> None:
    for path in template_packs(world):
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 0xFF
        path.write_bytes(raw)
    assert world.check().damages == ()
    checked = world.check(deep=True)
    assert f"tree {world.template}" in damaged(checked)
    assert any(fault.startswith("/large: ") for damage in checked.damages for fault in damage.faults)


def test_every_byte_of_a_small_pack_is_watched(world: World) -> None:
    """Whichever byte of its objects changes, a deep check says so; many faults are told in few lines."""
    (path,) = [
        p
        for p in (world.objects / "packs").glob("*/*")
        if p not in template_packs(world) and b"DVP1" in p.read_bytes() and p.stat().st_size > 400
    ]
    good = path.read_bytes()
    objects_end = len(good) - 8 - (FAULTS_SHOWN + 3) * 48 - 16  # the trailer, and what makes its name its own
    for at in range(objects_end):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x01]) + good[at + 1 :])
        assert f"tree {world.delta}" in damaged(world.check(deep=True)), at
    path.write_bytes(bytes(len(good)))
    (damage,) = world.check(deep=True).damages
    assert len(damage.faults) == FAULTS_SHOWN + 1
    assert damage.faults[-1] == "and 3 more like these"


def test_a_slot_that_is_unreadable_or_missing_is_found(world: World) -> None:
    log = SlotLog(world.bucket, "ses_1")
    log.append(epoch=1, template=world.template, tree=world.delta, previous=None, files=1, bytes=1, at=NOW)
    (world.objects / "logs/ses_1/000000000001").write_bytes(b"{")
    (world.objects / "logs/ses_1/000000000002").unlink()
    assert damaged(world.check()) == {
        "log of ses_1, slot 1": ("session ses_1",),
        "log of ses_1, slot 2": ("session ses_1",),
    }


def test_a_slot_of_an_unknown_kind_is_read_and_a_hostile_one_refused(world: World) -> None:
    slot = {"n": 3, "kind": "of a later version", "tree": world.other, "template": "", "more": [1]}
    world.bucket.put_new("logs/ses_1/000000000003", json.dumps(slot).encode())
    assert world.check().damages == ()
    for number, tree in enumerate(("../../etc/passwd", 7, "A" * 64), start=4):
        body = json.dumps({**slot, "n": number, "tree": tree}).encode()
        world.bucket.put_new(f"logs/ses_1/{number:012d}", body)
    assert [damage.what for damage in world.check().damages] == [f"log of ses_1, slot {n}" for n in (4, 5, 6)]


def append_changes(world: World, directory: Path) -> set[Path]:
    """A slot of changes with one new file in it; the packs that this wrote."""
    before = set((world.objects / "packs").glob("*/*"))
    (directory / "new").write_bytes(b"new content" * 100)
    writer = PackWriter(packs_at(directory / "another-cache", world.bucket))
    source = Source(b"new", os.fsencode(directory / "new"), 1100)
    content = writer.absorb([source])[b"new"]
    writer.flush()
    change = Change(frozenset(), (Entry(b"new", Kind.FILE, 0o644, size=content.size, digest=content.digest),))
    raw = pack(render_change(change))
    payload = struct.pack("<I", len(raw)) + raw + packed_locations([content.digest], writer.located)
    SlotLog(world.bucket, "ses_1").append_changes(payload, epoch=1, generation=1)
    return set((world.objects / "packs").glob("*/*")) - before


def test_what_a_slot_of_changes_carries_is_checked_too(world: World, tmp_path: Path) -> None:
    """It is in no tree yet: until it is folded, only the log leads to its content."""
    (written,) = append_changes(world, tmp_path)
    assert world.check(deep=True).damages == ()
    slot = {"log of ses_1, slot 3": ("session ses_1",)}
    good = written.read_bytes()
    written.write_bytes(good[:10] + bytes([good[10] ^ 1]) + good[11:])
    assert world.check().damages == ()
    assert damaged(world.check(deep=True)) == slot
    written.unlink()
    assert damaged(world.check()) == slot


@pytest.mark.parametrize("deep", [False, True])
def test_contents_that_lie_in_a_slot_itself_are_checked(world: World, tmp_path: Path, deep: bool) -> None:
    data = os.urandom(1100)
    (tmp_path / "new").write_bytes(data)
    writer = PackWriter(packs_at(tmp_path / "another-cache", world.bucket))
    content = writer.carry([Source(b"new", os.fsencode(tmp_path / "new"), 1100)], most=1 << 20)[b"new"]
    writer.flush()
    change = Change(frozenset(), (Entry(b"new", Kind.FILE, 0o644, size=content.size, digest=content.digest),))
    SlotLog(world.bucket, "ses_1").append_changes(
        render_payload(change, writer.located, writer.carried), epoch=1, generation=1
    )
    assert world.check(deep=deep).damages == ()
    slot = world.objects / "logs/ses_1/000000000003"
    body = slot.read_bytes()
    at = body.index(data[500:510])
    slot.write_bytes(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
    assert damaged(world.check(deep=deep)) == {"log of ses_1, slot 3": ("session ses_1",)}


def test_a_slot_of_changes_that_is_cut_short_is_found(world: World, tmp_path: Path) -> None:
    append_changes(world, tmp_path)
    path = world.objects / "logs/ses_1/000000000003"
    body = path.read_bytes()
    line = body.index(b"\n")
    for length in (len(body) - 1, line + 20, line + 3, line + 1, line, line - 1, 0):
        path.write_bytes(body[:length])
        assert damaged(world.check()) == {"log of ses_1, slot 3": ("session ses_1",)}, length


def test_a_tree_that_only_an_old_save_names_is_checked(world: World) -> None:
    world.file("trees", world.other).unlink()
    assert check_store(world.bucket, {}).damages == ()
    log = SlotLog(world.bucket, "ses_2")
    log.append(epoch=1, template=world.template, tree=world.other, previous=None, files=1, bytes=1, at=NOW)
    assert damaged(check_store(world.bucket, {})) == {f"tree {world.other}": ("log of ses_2, slot 1",)}


def test_a_store_that_is_away_is_not_called_damaged(world: World) -> None:
    world.objects.rename(world.objects.with_name("moved"))
    with pytest.raises(StorageFailed) as caught:
        check_store(world.bucket, {world.delta: []})
    assert caught.value.code == "store_unreachable"


def test_a_record_that_names_no_digest_is_damage_and_not_the_end(world: World) -> None:
    checked = check_store(world.bucket, {"../x": ["session ses_1"], world.delta: []})
    assert damaged(checked) == {"tree ../x": ("session ses_1",)}
    assert store_figures(world.bucket, ["../x", world.delta]).damaged == 1


def test_figures_count_shared_content_once(world: World) -> None:
    figures = store_figures(world.bucket, world.trees)
    small = sum(len(b"%d" % n * 100) for n in range(FAULTS_SHOWN + 3))
    assert figures.unique_bytes == len(SHARED) + len(LARGE) + len(b"own") + small
    assert figures.referenced_bytes == figures.unique_bytes + len(SHARED)
    assert figures.trees == 3
    assert figures.kinds["trees"].count == 3
    on_disk = [path.stat().st_size for path in (world.objects / "packs").rglob("*") if path.is_file()]
    assert (figures.kinds["packs"].count, figures.kinds["packs"].bytes) == (len(on_disk), sum(on_disk))
    world.file("trees", world.other).unlink()
    assert store_figures(world.bucket, world.trees).damaged == 1


async def _records(url: str, world: World) -> None:
    store = open_store(url)
    await store.open()
    try:
        await store.migrate()
        everyone = store.everyone()
        await everyone.sessions.insert(session(id="ses_1", tree=world.delta))
        await everyone.functions.insert(Function("fun_1", A, "shop", "rev_1", NOW, "slug"))
        revision = Revision(
            "rev_1", A, "fun_1", 4, world.template, "base", world.other, "small", "crun", NetworkPolicy(), None, {}, NOW
        )
        await everyone.revisions.insert(revision)
        await everyone.revisions.insert(replace(revision, id="rev_2", number=5, tree=None))
        app = App("app_1", A, "blog", "fun_1", "rev_1", "ses_1", 0, 1, 1, session().idle_after or NOW - NOW, NOW)
        await everyone.apps.insert(app)
        snapshot = Snapshot("snp_1", A, "ses_1", "", SnapshotCause.ASKED, world.template, world.delta, 1, 1, 1, NOW)
        await everyone.snapshots.insert(snapshot)
    finally:
        await store.close()


def dovecote(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return int(ended.value.code or 0)


def test_the_command_names_sessions_snapshots_and_apps_and_exits_with_1(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = world.objects.parent
    monkeypatch.setenv("DOVECOTE_DATA_DIR", str(data))
    (data / "templates").mkdir()
    (data / "templates/base.json").write_text(json.dumps({"recipe": "r", "digest": world.template}))
    asyncio.run(_records(f"sqlite:///{data}/dovecote.sqlite", world))
    assert dovecote("storage", "check", "--deep") == 0
    assert "nothing damaged" in capsys.readouterr().out
    assert dovecote("storage", "stat") == 0
    assert "packs\t" in capsys.readouterr().out
    for digest in (world.delta, world.other, world.template):
        world.file("trees", digest).unlink()
    assert dovecote("storage", "check") == 1
    said = capsys.readouterr().err
    for user in (
        "session ses_1",
        "snapshot snp_1 of session ses_1",
        "app blog (revision 4)",
        "function shop (revision 5)",
        "template base",
        "log of ses_1, slot 2",
    ):
        assert f"used by {user}\n" in said


def test_without_an_installation_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOVECOTE_DATA_DIR", str(tmp_path / "nowhere"))
    for words in (("storage", "check"), ("storage", "stat")):
        assert dovecote(*words) == 1
        assert "no_installation" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
