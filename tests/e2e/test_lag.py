"""What runs is saved as it changes, and everybody can see how far; a store that fails is named and stops no work."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import httpx
import pytest

from dovecote.sdk import Dovecote, Lag, Session
from tests.e2e.installation import Installation, running, until
from tests.e2e.test_objects import MIB, resize, small_disk

pytestmark = pytest.mark.e2e


def lag_in(session: Session, state: str) -> Lag:
    def look() -> Lag | None:
        lag = session.lag()
        return lag if lag.state == state else None

    return until(look, f"the lag is {state}")


def metric(own: Installation, name: str) -> float:
    text = httpx.get(f"{own.url}/metrics", timeout=5).text
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_nothing_is_saved_before_something_was_written(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as idle, dovecote.sessions.create() as busy:
        idle.run(["true"], check=True)
        busy.run("echo text > note", check=True)
        until(lambda: busy.lag().saved_ago_seconds is not None, "what was written is saved")
        lag = idle.lag()
        assert (lag.state, lag.pending, lag.saved_ago_seconds) == ("saved", 0, None)
        idle.run("echo text > note", check=True)
        until(lambda: idle.lag().saved_ago_seconds is not None, "so is the first file of the other")
        idle.park()
        assert idle.run("cat note", check=True).stdout == "text\n"


def test_a_line_that_is_added_to_a_file_is_pending_at_once(dovecote: Dovecote) -> None:
    """Not when the kernel writes it out, half a minute later. A snapshot that is taken meanwhile has it."""
    with dovecote.sessions.create() as session:
        session.run("echo one > log", check=True)
        lag_in(session, "saved")
        session.run("echo two >> log", check=True)
        assert session.lag().state == "pending"
        snapshot = session.snapshot()
        lag_in(session, "saved")
        session.run("echo three >> log", check=True)
        session.rewind(snapshot.id)
        assert session.files.read_text("log") == "one\ntwo\n"


def test_a_store_that_fails_is_told_and_stops_no_work(tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    with (
        small_disk(objects, size=2048 * MIB),
        running(pool_size=1, objects_url=f"file://{objects}") as own,
        own.client() as client,
        client.sessions.create() as session,
    ):
        session.run("echo first > file; sync", check=True)
        saved = lag_in(session, "saved")
        assert saved.saved_ago_seconds is not None
        assert (saved.pending, saved.recovery_point_seconds, saved.error_code) == (0, 2.0, "")
        assert "files: all saved, last saved" in own.command("session", "show", session.id).stdout

        resize(objects, size=shutil.disk_usage(objects).used + MIB)
        session.run("head -c 30M /dev/urandom > big", check=True)
        failing = lag_in(session, "failing")
        assert failing.error_code == "disk_full"
        assert failing.pending
        session.run("for i in $(seq 20); do echo $i > f$i; done", check=True)
        assert until(lambda: session.lag().pending, "files wait") >= 20
        shown = own.command("session", "show", session.id).stdout
        assert "files pending; saving fails (disk_full) and is tried again, work goes on" in shown
        assert until(lambda: metric(own, "dovecote_unsaved_failing_instances"), "the metric says it") == 1.0
        assert metric(own, "dovecote_unsaved_oldest_seconds") > 0
        assert metric(own, 'dovecote_checkpoints_total{result="disk_full"}') > 0

        resize(objects, size=2048 * MIB)
        assert lag_in(session, "saved").error_code == ""
        until(lambda: metric(own, "dovecote_unsaved_failing_instances") == 0.0, "the metric forgets it")
        session.update(tier="vip")
        assert session.lag().recovery_point_seconds == 1.0
        own.kill()
        own.start()
        assert session.lag().recovery_point_seconds == 1.0
        assert session.run("cat f20").stdout == "20\n"


def test_nothing_counts_as_saved_before_it_is(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run("true", check=True)
        lag_in(session, "saved")
        for n in range(10):  # the kernel may not have counted a write of a moment ago
            began = time.monotonic()
            session.files.write("note.txt", f"{n}\n")
            lag = session.lag()
            took = time.monotonic() - began
            assert lag.state == "pending" or (lag.saved_ago_seconds or 0.0) < took
            lag_in(session, "saved")
