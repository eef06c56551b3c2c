"""What was saved can be taken away as a zip file and compared line by line, with real trees."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote, DovecoteError, NotFound, Session, Start
from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

MAKE = (
    "mkdir -p app/src && echo one > app/src/text && echo two > app/run.sh && chmod 751 app/run.sh"
    " && ln -s src/text app/link && mkfifo app/pipe && head -c 9M /dev/urandom > app/large"
    " && printf 'a\\0b' > app/bin"
)


def unzipped(session: Session, snapshot: str | None = None, path: str | None = None) -> zipfile.ZipFile:
    archive = zipfile.ZipFile(io.BytesIO(b"".join(session.archive(snapshot, path=path))))
    assert archive.testzip() is None
    return archive


def test_files_are_downloaded_as_they_are_and_as_they_were(
    installation: Installation, dovecote: Dovecote, tmp_path: Path
) -> None:
    with dovecote.sessions.create() as session:
        session.run(MAKE, check=True)
        first = session.snapshot()
        session.run("echo changed > app/src/text; rm app/run.sh", check=True)
        before, now = unzipped(session, first.id, "app"), unzipped(session, path="/home/user/app")
        assert before.read("app/src/text") == b"one\n"
        assert now.read("app/src/text") == b"changed\n"
        assert before.getinfo("app/run.sh").external_attr >> 16 == stat.S_IFREG | 0o751
        assert stat.S_ISLNK(before.getinfo("app/link").external_attr >> 16)
        assert set(before.namelist()) - set(now.namelist()) == {"app/run.sh"}
        assert before.read("app/large") == session.files.read("app/large")
        # Besides its own, what the template has in the home.
        assert {"user/app/src/text", "user/.bashrc"} <= set(unzipped(session).namelist())
        assert unzipped(session, path="/etc/passwd").read("passwd").startswith(b"root:")
        for path in ("nothing", "app/pipe/x"):
            with pytest.raises(NotFound):
                unzipped(session, path=path)
        target = tmp_path / "work.zip"
        done = installation.command("session", "download", session.id, str(target), "--path", "app/src")
        assert done.stdout.strip() == str(target)
        assert zipfile.ZipFile(target).read("src/text") == b"changed\n"
        session.park()
        assert unzipped(session, path="app/src/text").read("text") == b"changed\n"
        assert session.refresh().state == "parked"


def test_the_text_of_a_file_is_compared(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run(MAKE, check=True)
        first = session.snapshot()
        session.run("echo more >> app/src/text; rm app/run.sh; echo >> app/bin", check=True)
        found = session.diff(first.id, "app/src/text")
        assert found.diff.splitlines()[2:] == ["@@ -1 +1,2 @@", " one", "+more"]
        assert (found.old_bytes, found.new_bytes) == (4, 9)
        assert session.diff(first.id, "app/src/text", first.id).diff == ""
        assert session.diff(first.id, "app/run.sh").new_bytes is None
        assert session.diff(first.id, "app/bin").is_binary
        assert session.diff(first.id, "/etc/hostname").diff == ""
        for path, code in (("nothing", "no_such_path"), ("app/src", "not_a_file")):
            with pytest.raises(DovecoteError) as caught:
                session.diff(first.id, path)
            assert caught.value.code == code
        shown = installation.command("session", "diff", session.id, first.id, "--file", "app/src/text")
        assert "+more" in shown.stdout


def test_another_tenant_downloads_nothing(dovecote: Dovecote, installation: Installation) -> None:
    other = installation.command("tenant", "create", "archive-other").stdout.strip().splitlines()[-1].split()[-1]
    with dovecote.sessions.create() as session, installation.client(other) as stranger:
        first = session.snapshot()
        with stranger.sessions.create() as theirs:
            with pytest.raises(NotFound):
                b"".join(theirs.archive(first.id))
            with pytest.raises(NotFound):
                theirs.diff(first.id, "/etc/passwd")


def test_publishing_leaves_a_snapshot_and_a_turn_without_change_none(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        chat = dovecote.chats.create(session)
        session.run("echo one > file", check=True)
        turns = [dovecote.chats.add_turn(chat.id, [{"text": "talk"}]) for _ in range(2)]
        assert turns[0].snapshot_id is not None
        assert turns[0].snapshot_id == turns[1].snapshot_id
        dovecote.apps.publish(session, name="seen", start=Start("python3 -m http.server 8000", 8000))
        dovecote.apps.unpublish("seen")
        assert [(each.cause, each.label) for each in session.snapshots()][-1] == ("published", "published as seen")
        with session.fork(user="somebody-else") as fork:
            assert fork.view.user_id != session.view.user_id
            assert fork.run("cat file").stdout == "one\n"
