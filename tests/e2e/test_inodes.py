"""A file has one inode number, for all of its names and for good, also in a session that was restored."""

from __future__ import annotations

import pytest

from dovecote.sdk import Dovecote

pytestmark = pytest.mark.e2e

FILE = "/usr/share/perl/5.36.0/ExtUtils/Constant/Utils.pm"  # of the template
LOOK = "stat -c '%d %i'"


def test_a_file_of_the_template_keeps_its_inode_number_when_it_is_written_moved_and_linked(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        session.run("touch made", check=True)
        session.park()  # so that it has two lower layers: the template's, and its own

        def look(*names: str) -> list[str]:
            return session.run(f"{LOOK} {' '.join(names)}", user="root", check=True).stdout.splitlines()

        before = look(FILE)
        session.run(f"echo more >> {FILE}", user="root", check=True)
        assert look(FILE) == before
        session.run(f"mkdir /srv/x && mv {FILE} /srv/moved && ln /srv/moved /srv/x/linked", user="root", check=True)
        assert look("/srv/moved", "/srv/x/linked") == [*before, *before]
        session.park()
        one, other = look("/srv/moved", "/srv/x/linked")
        assert one == other
