"""The whole product on a host that lays trees out as plain directories."""

from __future__ import annotations

import pytest

from tests.e2e.installation import running, until

pytestmark = pytest.mark.e2e


def test_sessions_live_park_wake_and_outlive_a_crash() -> None:
    with running(tree_layers="plain", pool_size=1) as installation:
        assert "layers of trees" in installation.command("doctor").stdout
        with installation.client() as client:
            session = client.sessions.create()
            session.run("mkdir work && echo one > work/f && chmod 700 /home/user && sudo rm /etc/issue", check=True)
            session.park()
            session.wake()
            assert session.run("cat work/f; ls /etc/issue 2>&1 | tail -c 4; stat -c %a .").stdout == "one\nory\n700\n"
            assert len(list((installation.settings.data_dir / "trees/plain").glob("*/*"))) == 2
            assert not list((installation.settings.run_dir / "images").glob("*"))
            installation.kill()
            installation.start()
            assert session.run("echo two >> work/f; cat work/f; python3 -c 'print(3)'").stdout == "one\ntwo\n3\n"
            until(lambda: session.lag().state == "saved", "it is saved", within=60)
            session.park()
            assert session.run("cat work/f").stdout == "one\ntwo\n"
