"""The whole product with volumes by JuiceFS: mounted into a session, through deaths of all that serves them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from dovecote.sdk import Mount
from tests.e2e.installation import running, until

pytestmark = pytest.mark.e2e


def serving(run_dir: Path) -> int:
    """The JuiceFS process of an installation: the one child of its relay."""
    relay = json.loads((run_dir / "juicefs/relay.json").read_bytes())["pid"]
    (child,) = Path(f"/proc/{relay}/task/{relay}/children").read_text().split()
    return int(child)


def test_a_volume_of_a_session_outlives_crashes_and_holds_its_limit() -> None:
    with running(volumes_driver="juicefs", pool_size=1) as installation:
        assert "JuiceFS" in installation.command("doctor").stdout
        with installation.client() as client:
            client.volumes.create("work", max_bytes=64 << 20)
            session = client.sessions.create(
                mounts=[Mount("work", "/home/user/work", path="anna/chat7", max_bytes=8 << 20)]
            )
            session.run("echo one > work/f && sudo chown root work/f && stat -c %U work/f", check=True)
            assert session.run("stat -c %U work work/f").stdout == "user\nroot\n"
            os.kill(serving(installation.settings.run_dir), signal.SIGKILL)
            assert session.run("cat work/f; echo two > work/g; cat work/g").stdout == "one\ntwo\n"
            assert "quota" in session.run("head -c 12000000 /dev/zero > work/big").stderr
            session.run("rm work/big", check=True)
            installation.kill()
            installation.start()
            assert session.run("cat work/f work/g; echo three > work/h").stdout == "one\ntwo\n"
            assert [limit.max_bytes for limit in client.volumes.limits("work")] == [8 << 20]
            session.park()
            assert session.run("cat work/h").stdout == "three\n"
            until(lambda: (client.volumes.get("work").used_bytes or 0) > 0, "usage is known")
        installation.down()
        assert installation.remains() == []
