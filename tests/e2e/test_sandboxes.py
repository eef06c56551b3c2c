"""Sandboxes as a client of the API has them, with real instances."""

from __future__ import annotations

import pytest

from dovecote.sdk import Conflict, Dovecote, Network, NotFound
from tests.e2e.installation import until

pytestmark = pytest.mark.e2e

COUNT = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.01; done"


def test_a_paused_sandbox_stands_still_and_goes_on_where_it_was(dovecote: Dovecote) -> None:
    with dovecote.sessions.create(metadata={"chat": "7"}, resumes_on_use=False) as session:
        counting = session.start(COUNT)
        until(lambda: session.run("test -e /tmp/count").exit_code == 0, "it counts")
        assert session.pause().is_paused
        assert [each.id for each in dovecote.sessions.list(metadata={"chat": "7"}, is_paused=True)] == [session.id]
        with pytest.raises(Conflict, match="paused"):
            session.pause()
        with pytest.raises(Conflict, match="paused"):
            session.run("true")
        assert session.refresh().state == "frozen"
        assert session.resume(at_least=60).state == "ready"
        before = int(session.run("cat /tmp/count", check=True).stdout)
        until(lambda: int(session.run("cat /tmp/count").stdout or 0) > before, "it goes on counting")
        counting.signal("SIGKILL")
        assert counting.wait().signal == 9


def test_a_timeout_pauses_a_sandbox_that_has_none_then(dovecote: Dovecote) -> None:
    with dovecote.sessions.create(timeout=600, at_timeout="pause") as session:
        session.run("echo here > /tmp/mark", check=True)
        session.set_timeout(0.01)
        until(lambda: session.refresh().is_paused, "it is paused")
        assert session.refresh().timeout_at is None
        assert session.run("cat /tmp/mark", check=True).stdout == "here\n"
        assert not session.refresh().is_paused


def test_a_timeout_ends_a_sandbox(dovecote: Dovecote) -> None:
    session = dovecote.sessions.create(timeout=600)
    session.set_timeout(0.01)
    until(lambda: session.refresh().state == "ended", "it has ended")


def test_a_snapshot_that_outlives_its_sandbox_begins_another(dovecote: Dovecote) -> None:
    with dovecote.sessions.create(spec="medium") as session:
        session.run("echo kept > /home/user/kept", check=True)
        kept = session.snapshot(outlives_session=True)
    with dovecote.sessions.create(snapshot=kept.id, network=Network(internet=False)) as begun:
        assert begun.run("cat /home/user/kept; nproc", check=True).stdout.startswith("kept\n")
        with pytest.raises(NotFound):
            dovecote.sessions.create(template="pyramid")
