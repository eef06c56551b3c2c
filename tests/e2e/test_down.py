"""`dovecote down` needs nothing but this machine."""

from __future__ import annotations

import pytest
from stress.world import world

pytestmark = pytest.mark.e2e


def test_a_host_is_taken_down_while_its_store_is_away_and_loses_nothing() -> None:
    with world(s3=True) as there:
        session = there.client.sessions.create()
        session.files.write("kept", b"kept")
        session.save()
        there.break_store()
        session.files.write("unsaved", b"only here")
        there.own.down()
        assert there.own.remains() == []
        there.mend_store()
        there.own.start()
        assert session.files.read("kept") == b"kept"
        assert session.files.read("unsaved") == b"only here"
