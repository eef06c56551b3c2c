"""A prefix of a bucket in sandboxes: real S3, real rclone, and a store that stalls."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from dovecote.errors import DovecoteError
from dovecote.sdk import DovecoteError as ApiError
from dovecote.sdk import Mount
from tests.e2e.installation import Installation, free_network, place
from tests.s3 import BUCKET, SeaweedFSServer
from tests.servers import seaweedfs_server  # noqa: F401 - a fixture

pytestmark = pytest.mark.e2e


RUNSC = pytest.param(
    "runsc",
    marks=pytest.mark.skipif(shutil.which("runsc") is None, reason="install runsc (deploy/install.sh gvisor)"),
)


@pytest.mark.parametrize("level", ["crun", RUNSC])
def test_sandboxes_read_what_the_operator_listed_and_a_stalled_store_stops_nobody_else(
    level: str,
    seaweedfs_server: SeaweedFSServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = seaweedfs_server
    secret = store.options["secret_access_key"]
    for name, value in {
        "AWS_ENDPOINT": store.options["endpoint"],
        "AWS_REGION": store.options["region"],
        "AWS_ACCESS_KEY_ID": store.options["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": secret,
    }.items():
        monkeypatch.setenv(name, value)
    files = store.bucket("shared/2026")
    files.put("a/text", b"of the bucket")
    files.put("a/deep/large", b"0123456789" * 500_000)
    store.bucket("private").put("not-for-you", b"hidden")
    with place() as directory, free_network() as network:
        there = Installation(
            directory / "one",
            network=network,
            level=level,
            pool_size=1,
            start_timeout=20,
            mount_buckets=f"data=s3://{BUCKET}/shared",
        )
        there.directory.mkdir(mode=0o711)
        try:
            there.start()
            _reads(there, store, secret)
        finally:
            there.down()
        assert not (there.settings.run_dir / "buckets").exists()


def _reads(there: Installation, store: SeaweedFSServer, secret: str) -> None:
    with there.client() as client:
        session = client.sessions.create(mounts=[Mount("@data", "/home/user/data", path="2026/a", read_only=True)])
        assert session.run("cat data/text", check=True).stdout == "of the bucket"
        assert session.run("md5sum < data/deep/large | cut -c1-8 && ls -A data", check=True).stdout.split()[1:] == [
            "deep",
            "text",
        ]
        for command in ("echo x > data/new", "sudo rm data/text", "sudo mount -o remount,rw /home/user/data"):
            assert session.run(command).exit_code != 0
        assert session.run("find data/ data/.. -name not-for-you").stdout == ""
        pattern = f"{secret[:-1]}[{secret[-1]}]"  # which does not find itself
        assert session.run(f"sudo grep -las '{pattern}' /proc/*/environ /proc/*/cmdline").stdout == ""
        for wrong in (
            Mount("@data", "/home/user/other"),
            Mount("@nothing", "/home/user/other", read_only=True),
            Mount("@data", "/home/user/other", path="missing", read_only=True),
        ):
            with pytest.raises((ApiError, DovecoteError)):
                session.mounts.add(wrong)
        # Who serves the mount outlives the server, and a woken session has it again.
        there.stop()
        there.start()
        assert session.run("cat data/text", check=True).stdout == "of the bucket"
        session.park()
        assert session.run("cat data/text", check=True).stdout == "of the bucket"
        assert store.process is not None
        os.kill(store.process.pid, signal.SIGSTOP)
        try:
            session.run("nohup head -c 4000000 data/deep/large >/dev/null 2>&1 &", check=True)
            other = client.sessions.create()
            assert other.run("echo works", check=True).stdout == "works\n"
            if there.settings.level == "crun":  # at the other one, mounts of what runs stay as they are
                session.mounts.remove("/home/user/data", force=True)
                assert session.run("ls -A data", check=True).stdout == ""
        finally:
            os.kill(store.process.pid, signal.SIGCONT)
        other.delete()
        session.delete()
