"""Going back and going on elsewhere, with real instances."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dovecote.sdk import Dovecote, DovecoteError, NotFound
from tests.e2e.installation import Installation, running, until

pytestmark = pytest.mark.e2e

MAKE = (
    "mkdir -p app/node_modules/lib app/src && for i in $(seq 80); do echo $i > app/node_modules/lib/$i.js; done"
    " && echo one > app/src/kept && echo two > app/src/changed && echo three > app/src/moved"
    " && echo four > app/src/mode && chmod 640 app/src/mode && ln -s kept app/src/link"
)
SPOIL = (
    "rm -rf app/node_modules && echo other > app/src/changed && mv app/src/moved app/src/elsewhere"
    " && chmod 777 app/src/mode && rm app/src/link && echo new > app/src/new && sudo rm /etc/issue"
)
LOOK = (
    "cd / && sudo find home/user/app etc/issue -printf '%p %y %m %u %T@ %l\\n' | sort;"
    " find home/user/app -type f -exec md5sum {} + | sort"
)


def test_a_rewind_brings_back_what_was_deleted_changed_moved_and_chmodded(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run(MAKE, check=True)
        before = session.run(LOOK, check=True).stdout
        first = session.snapshot("good")
        session.run(SPOIL, check=True)
        spoiled = session.run("cat app/src/changed app/src/elsewhere app/src/new", check=True).stdout
        assert session.rewind(first.id).state == "parked"
        assert session.run(LOOK, check=True).stdout == before
        undo = session.snapshots()[-1]
        assert undo.cause == "before_rewind"
        session.rewind(undo.id)
        assert session.run("cat app/src/changed app/src/elsewhere app/src/new", check=True).stdout == spoiled
        session.rewind(first.id)
        session.park()
        assert session.run(LOOK, check=True).stdout == before


def test_a_rewind_ends_a_writer_that_goes_on(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run(MAKE, check=True)
        before = session.run(LOOK, check=True).stdout
        first = session.snapshot()
        session.start(
            "i=0; while :; do i=$((i+1)); mkdir -p app/node_modules/$i; echo $i > app/node_modules/$i/f; done"
        )
        until(lambda: session.run("test -e app/node_modules/50/f").exit_code == 0, "it writes")
        session.rewind(first.id)
        assert session.run(LOOK, check=True).stdout == before


def test_forks_diverge(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run("echo one > file", check=True)
        first = session.snapshot()
        session.run("echo two > file", check=True)
        with session.fork(first.id) as old, session.fork() as new:
            assert (old.run("cat file").stdout, new.run("cat file").stdout) == ("one\n", "two\n")
            old.run("echo mine > file", check=True)
            old.park()
            texts = [each.run("cat file").stdout for each in (old, new, session)]
            assert texts == ["mine\n", "two\n", "two\n"]


def test_another_tenant_cannot_name_a_snapshot(dovecote: Dovecote, installation: Installation) -> None:
    other = installation.command("tenant", "create", "rewind-other").stdout.strip().splitlines()[-1].split()[-1]
    with dovecote.sessions.create() as session, installation.client(other) as stranger:
        first = session.snapshot()
        with stranger.sessions.create() as theirs:
            for act in (theirs.rewind, theirs.fork, theirs.delete_snapshot):
                with pytest.raises(NotFound):
                    act(first.id)
        assert [each.id for each in session.snapshots()] == [first.id]


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    with running(quiet_after=60, tick=0.2, start_timeout=15) as there:
        yield there


@pytest.mark.parametrize("after", ["parking", "before_rewind", "rewound", "rewound, and its host is lost"])
def test_a_server_killed_around_a_rewind_leaves_the_old_files_or_the_new_ones(own: Installation, after: str) -> None:
    """Killed as soon as its record says so much; never a mix."""
    with own.client() as client:
        session = client.sessions.create()
        session.run("mkdir d && for i in $(seq 300); do echo old > d/$i; done", check=True)
        first = session.snapshot()
        session.run("for i in $(seq 300); do echo new > d/$i; done; touch d/extra", check=True)
        failed: list[DovecoteError] = []

        def rewind() -> None:
            with own.client() as another:
                try:
                    another.sessions.get(session.id).rewind(first.id)
                except DovecoteError as error:
                    failed.append(error)

        def is_there() -> bool:
            if after == "before_rewind":
                return session.snapshots()[-1].cause == after
            view = session.refresh()
            return view.state == "parking" if after == "parking" else view.reason == "rewound"

        rewinding = threading.Thread(target=rewind)
        rewinding.start()
        try:
            until(lambda: is_there() or not rewinding.is_alive(), after)
        finally:
            own.kill()
            rewinding.join(60)
            if "lost" in after:
                own.down()
                (own.settings.data_dir / "pool.btrfs").unlink()
            own.start()
        text = session.run("cat d/* | sort | uniq -c; ls d | wc -l", check=True).stdout.split()
        assert text in (["300", "old", "300"], ["300", "new", "301"])
        if "rewound" in after:
            assert text == ["300", "old", "300"]
        session.delete()


def test_a_chat_goes_back_with_its_files_and_a_fork_of_it_goes_its_own_way(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        chat = dovecote.chats.create(session)
        for text in ("one", "two", "three"):
            session.run(f"echo {text} > file; touch {text}", check=True)
            turn = dovecote.chats.add_turn(chat.id, [{"text": text}])
            assert (turn.snapshot_id is not None, turn.snapshot_note) == (True, None)
        dovecote.chats.rewind(chat.id, 1)
        assert session.run("cat file; ls two three", check=False).stdout == "one\n"
        assert [turn.number for turn in dovecote.chats.turns(chat.id)] == [1]
        session.run("echo four > file", check=True)
        dovecote.chats.add_turn(chat.id, [{"text": "four"}])
        forked = dovecote.chats.fork(chat.id, 1)
        with dovecote.sessions.get(forked.session_id) as theirs:
            assert theirs.run("cat file").stdout == "one\n"
        assert session.run("cat file").stdout == "four\n"
        assert [turn.number for turn in dovecote.chats.turns(chat.id)] == [1, 4]


def test_what_has_changed_since_a_snapshot_is_listed(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run(MAKE, check=True)
        first = session.snapshot()
        session.run(
            "echo new > app/new; rm app/src/kept; chmod 600 app/src/mode; echo 22 > app/src/changed", check=True
        )
        session.run("sudo rm /etc/issue", check=True)
        found = {each.path: each.what for each in session.changes(first.id)}
        wanted = {"app/new": "added", "app/src/kept": "removed", "app/src/mode": "attributes"}
        wanted["app/src/changed"] = "content"
        assert {"/etc/issue": "removed"} | {f"/home/user/{k}": v for k, v in wanted.items()} == found
        assert session.changes(first.id, first.id) == []
