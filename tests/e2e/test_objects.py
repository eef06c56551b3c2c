"""The object store is full, or has other bytes than were written: sessions say so, and lose nothing that is there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote, DovecoteError, Session
from tests.e2e.installation import Installation, running, until

pytestmark = pytest.mark.e2e

MIB = 1 << 20
LOOK = "cd /home/user && find . -type f | sort | xargs md5sum"


@contextmanager
def small_disk(path: Path, *, size: int) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "dovecote-test", str(path)], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=10)
        path.rmdir()


def resize(path: Path, *, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(path)], check=True, timeout=10)


def test_a_store_that_is_full_fails_the_save_and_loses_nothing(tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    with (
        small_disk(objects, size=2048 * MIB),
        running(pool_size=1, objects_url=f"file://{objects}") as own,
        own.client() as client,
        client.sessions.create() as session,
        client.sessions.create() as small,
    ):
        small.files.write("a", b"saved while there was room")
        small.park()
        session.run("head -c 60M /dev/urandom > big; echo kept > kept; rm .profile", check=True)
        before = session.run(LOOK).stdout
        taken = shutil.disk_usage(objects).used
        resize(objects, size=taken + 40 * MIB)  # one pack has room, two do not
        for _ in range(2):
            with pytest.raises(DovecoteError) as caught:
                session.park()
            assert caught.value.code == "disk_full"
            assert caught.value.hint
            view = session.refresh()
            assert view.state == "lost"
            assert "on the host only" in view.reason
        assert [path.name for path in objects.rglob("*#*")] == []
        assert session.run(LOOK).stdout == before
        assert session.run("cat kept").stdout == "kept\n"
        assert small.files.read("a") == b"saved while there was room"
        resize(objects, size=taken + 512 * MIB)
        assert session.park().state == "parked"
        assert session.run(LOOK).stdout == before


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    with running(pool_size=1, start_timeout=15) as there:
        yield there


@pytest.fixture
def client(own: Installation) -> Iterator[Dovecote]:
    with own.client() as client:
        yield client


def packs(own: Installation) -> set[Path]:
    return {path for path in (own.settings.data_dir / "objects/packs").glob("*/*") if "#" not in path.name}


def park_writing_packs(own: Installation, session: Session, before: set[Path]) -> dict[Path, bytes]:
    """What the packs hold that came to the store since `before`, while the session ran and when it parked."""
    assert session.park().state == "parked"
    added = {path: path.read_bytes() for path in packs(own) - before}
    assert added
    return added


@contextmanager
def spoiled(own: Installation, contents: dict[Path, bytes]) -> Iterator[None]:
    """A first byte of each pack is another, and this host's cache is gone: it has only the store to read from."""
    own.down()
    for path, content in contents.items():
        path.write_bytes(bytes(byte ^ 0xFF for byte in content[:64]) + content[64:])
    shutil.rmtree(own.settings.data_dir / "trees")
    own.start()
    try:
        yield
    finally:
        for path, content in contents.items():
            path.write_bytes(content)


def damage_of(session: Session) -> str:
    """The reason of a session that cannot be woken because its files failed verification."""
    with pytest.raises(DovecoteError) as caught:
        session.wake()
    assert caught.value.code == "corrupt"
    assert caught.value.hint
    view = session.refresh()
    assert view.state == "damaged"
    assert "failed verification" in view.reason
    assert "generation" in view.reason
    return view.reason


def test_a_spoiled_save_is_named_damages_one_session_and_heals_with_its_bytes(
    own: Installation, client: Dovecote
) -> None:
    with client.sessions.create() as session, client.sessions.create() as other:
        other.files.write("a", b"whole")
        other.park()
        there = packs(own)
        session.run("head -c 3M /dev/urandom > big; for i in $(seq 200); do echo $i > f$i; done", check=True)
        before = session.run(LOOK).stdout
        contents = park_writing_packs(own, session, there)
        with spoiled(own, contents):
            for _ in range(2):  # and a second try says the same
                damage_of(session)
            assert other.files.read("a") == b"whole"
        assert session.wake().state == "ready"
        assert session.run(LOOK).stdout == before
        assert session.park().state == "parked"
        assert session.run(LOOK).stdout == before


def test_the_reason_of_damage_names_the_last_good_save(own: Installation, client: Dovecote) -> None:
    with client.sessions.create() as session:
        session.run("echo first > a", check=True)
        good = session.park().saved_generation
        there = packs(own)
        session.run("head -c 3M /dev/urandom > big", check=True)
        contents = park_writing_packs(own, session, there)
        assert session.view.saved_generation > good
        with spoiled(own, contents):
            assert f"last good save is generation {good}" in damage_of(session)


def test_the_image_of_a_parked_session_is_there_before_anybody_asks(own: Installation, client: Dovecote) -> None:
    images = own.settings.data_dir / "trees/images"
    with client.sessions.create() as session:
        session.files.write("a", b"woken by mounting")
        before = set(images.glob("*.erofs"))
        session.park()
        until(lambda: set(images.glob("*.erofs")) - before, "the image of what was parked is built")
        assert session.files.read("a") == b"woken by mounting"
