"""A whole installation whose saved files are on S3: what one machine parked, another wakes, byte by byte."""

from __future__ import annotations

import pytest

from tests.e2e.installation import Installation, free_network, place
from tests.s3 import BUCKET, SeaweedFSServer
from tests.servers import seaweedfs_server  # noqa: F401 - a fixture

pytestmark = pytest.mark.e2e

# Sizes are in the sums: those of directories are the file system's own affair.
LOOK = "cd /home/user && find . -printf '%p %y %m %U:%G %T@ %l\\n' | sort && find . -type f | sort | xargs md5sum"
MAKE = """
mkdir -p app/node_modules/many && cd app
for i in $(seq 300); do echo "module $i" > node_modules/many/$i.js; done
head -c 40M /dev/urandom > big && truncate -s 8M sparse && ln -s big link && chmod 750 node_modules && rm ~/.profile
"""


@pytest.fixture
def on_s3(seaweedfs_server: SeaweedFSServer, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """The environment that the how-to page tells to set; the URL for `DOVECOTE_OBJECTS_URL`."""
    options = seaweedfs_server.options
    monkeypatch.setenv("AWS_ENDPOINT", options["endpoint"])
    monkeypatch.setenv("AWS_REGION", options["region"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret_access_key"])
    return f"s3://{BUCKET}/installation"


def test_a_session_wakes_on_another_machine_that_has_only_the_database_and_the_store(on_s3: str) -> None:
    with place() as directory, free_network() as network:
        (directory / "records").mkdir(mode=0o700)
        settings = {
            "objects_url": on_s3,
            "database_url": f"sqlite:///{directory}/records/dovecote.sqlite",
            "pool_size": 1,
        }
        first = Installation(directory / "first", network=network, **settings)
        first.directory.mkdir(mode=0o711)
        try:
            first.start()
            with first.client() as client:
                session = client.sessions.create()
                session.run(MAKE, check=True)
                before = session.run(LOOK, check=True).stdout
                assert session.park().state == "parked"
            assert not (first.settings.data_dir / "objects").exists()
            key = first.api_key
        finally:
            first.down()
        second = Installation(directory / "second", network=network, **settings)
        second.directory.mkdir(mode=0o711)
        try:
            second.start()
            with second.client(key) as client:
                woken = client.sessions.get(session.id)
                assert woken.run(LOOK, check=True).stdout == before
                woken.files.write("after", b"written on the second machine")
                assert woken.park().state == "parked"
                assert woken.files.read("after") == b"written on the second machine"
            checked = second.command("storage", "check", "--deep")
            assert (checked.returncode, checked.stderr) == (0, "")
            assert "nothing damaged" in checked.stdout
            for options in (("--dry-run",), ()):  # beside the server, which has collected at its start
                collected = second.command("storage", "gc", *options)
                assert (collected.returncode, collected.stderr) == (0, "")
                assert "0 names deleted" in collected.stdout
            assert "nothing damaged" in second.command("storage", "check").stdout
            doctor = second.command("doctor").stdout
            assert f"object store\t{on_s3}: creates an object only once" in doctor
        finally:
            second.down()
