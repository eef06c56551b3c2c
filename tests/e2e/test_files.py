"""Files inside a sandbox from the outside: on its real root, through parking, and on volumes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from dovecote.sdk import Dovecote, File, FileChange, Forbidden, Mount, NotFound, Output, Session, Watcher

pytestmark = pytest.mark.e2e


@pytest.fixture
def session(dovecote: Dovecote) -> Iterator[Session]:
    with dovecote.sessions.create() as session:
        yield session


def changes_until(
    session: Session, path: str, act: Callable[[], object], last: str, *, recursive: bool
) -> list[FileChange]:
    """What a watch tells from before `act` until something is told of `last`."""
    told = []
    acting: threading.Thread | None = None
    for change in session.files.watch(path, recursive=recursive):
        if change.type == "watching":
            acting = threading.Thread(target=act)
            acting.start()
        else:
            told.append(change)
        if change.path == last:
            break
    assert acting is not None
    acting.join()
    return told


def test_a_directory_is_watched_with_all_that_is_made_in_it(session: Session) -> None:
    session.run("mkdir -p app/src && echo old > app/src/old.js", check=True)

    def work() -> None:
        session.run("cd app && mkdir -p new/deep && echo x > new/deep/x && mv src/old.js src/new.js", check=True)
        session.files.write("app/src/new.js", "newer")
        session.files.write("app/last", "")

    told = changes_until(session, "app", work, "last", recursive=True)
    # One who looks at a new directory cannot always tell a write that it saw there from one that is told after.
    assert [*dict.fromkeys((c.type, c.path, c.target) for c in told if c.type != "chmod")] == [
        ("create", "new", None),
        ("create", "new/deep", None),
        ("create", "new/deep/x", None),
        ("write", "new/deep/x", None),
        ("rename", "src/old.js", "src/new.js"),
        ("write", "src/new.js", None),
        ("create", "last", None),
    ]


def test_changes_are_kept_until_they_are_taken_also_of_files_of_the_template(session: Session) -> None:
    with session.files.watcher("/etc", user="root") as watcher:
        session.run("sudo sh -c 'echo \"# more\" >> /etc/profile'", check=True)
        taken: list[FileChange] = []
        while not taken:
            taken = watcher.take()
        assert "profile" in {change.path for change in taken}
        session.park()
        with pytest.raises(NotFound) as error:
            take_all(watcher)
        assert error.value.code == "no_such_watcher"
        session.wake()
        with pytest.raises(NotFound):
            watcher.take()


def take_all(watcher: Watcher) -> None:
    while True:
        watcher.take()


def entries(session: Session) -> list[File]:
    """The size of a directory is its file system's own affair."""
    found = session.files.list(".", depth=3)
    return [replace(each, size=0) if each.kind == "directory" else each for each in found]


def test_modes_owners_links_and_metadata_survive_parking(session: Session) -> None:
    files = session.files
    assert files.make_dir("notes")
    assert not files.make_dir("notes")
    files.write("notes/a", "a", metadata={"kind": "note", "by": "é"}, mode=0o640)
    files.write("notes/b", "b")
    files.make_link("link", "notes/a")
    files.set_metadata("notes", {"colour": "red"})
    files.chmod("notes/b", 0o4711)
    session.run("sudo chown root:user notes/b && sudo chmod 4711 notes/b", check=True)
    before = entries(session)
    session.park()
    session.wake()
    after = entries(session)
    assert after == before
    found = {each.path: each for each in after}
    assert found["notes/a"].metadata == {"kind": "note", "by": "é"}
    assert found["notes"].metadata == {"colour": "red"}
    assert (found["notes/b"].permissions, found["notes/b"].owner, found["notes/b"].group) == (
        "-rws--x--x",
        "root",
        "user",
    )
    assert found["link"].target == "notes/a"
    assert files.stat("link").kind == "file"
    assert files.stat("link", follow=False).kind == "link"
    with pytest.raises(Forbidden):
        files.write("notes/b", "c")
    files.write("notes/b", "c", user="root")
    assert files.stat("notes/b").permissions == "-rws--x--x"


def test_files_move_to_volumes_and_memory_and_back(dovecote: Dovecote, session: Session) -> None:
    dovecote.volumes.create("moving", max_bytes=8 << 20)
    try:
        session.mounts.add(Mount("moving", "/home/user/data"))
        session.run("mkdir -p tree/in && echo x > tree/in/x && chmod 700 tree/in && ln -s in/x tree/l", check=True)
        session.files.set_metadata("tree/in/x", {"a": "b"})
        for source, target in (("tree", "/dev/shm/tree"), ("/dev/shm/tree", "data/tree"), ("data/tree", "back")):
            session.files.rename(source, target)
            with pytest.raises(NotFound):
                session.files.stat(source)
        assert session.run("cat back/l; stat -c %a back/in").stdout == "x\n700\n"
        assert session.files.stat("back/in/x").metadata == {"a": "b"}
    finally:
        dovecote.volumes.delete("moving", force=True)


def test_a_very_full_directory_is_listed_in_part_and_says_so(session: Session) -> None:
    session.run("mkdir many && cd many && seq 1 12000 | xargs touch", check=True)
    cut = session.files.list("many")
    assert (len(cut), cut.truncated) == (10_000, True)
    whole = session.files.list("many", limit=12_000)
    assert (len(whole), whole.truncated) == (12_000, False)


def test_one_sandbox_that_watches_a_lot_does_not_keep_another_from_it(dovecote: Dovecote, session: Session) -> None:
    """The kernel counts the watches of all sandboxes together: they are its creator's."""
    hog = (
        "import ctypes, time; init = ctypes.CDLL(None).inotify_init; "
        "print(sum(init() >= 0 for _ in range(900)), flush=True); time.sleep(600)"
    )
    with dovecote.sessions.create() as greedy:
        for event in greedy.stream(["sh", "-c", f"ulimit -n 1024; exec python3 -c '{hog}'"]):
            if isinstance(event, Output):
                assert event.data == "900\n"
                break
        assert next(session.files.watch(".")).type == "watching"
