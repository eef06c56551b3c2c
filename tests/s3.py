"""A real S3 server on loopback: SeaweedFS, started by the tests that need it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dovecote.errors import StorageFailed
from dovecote.host.storage.bucket import Bucket, open_bucket

WAIT_SECONDS = 60.0
BUCKET = "dovecote-tests"
READER = "reader"  # key and secret of somebody who may not write
_KEY, _SECRET = "tests", "tests-secret"


@dataclass
class SeaweedFSServer:
    """Its data stays in `directory` when it is killed and started again, and so do its ports."""

    program: Path
    directory: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def options(self) -> dict[str, Any]:
        """For `open_bucket`."""
        return {
            "endpoint": f"http://127.0.0.1:{self.ports['s3.port']}",
            "region": "us-east-1",
            "access_key_id": _KEY,
            "secret_access_key": _SECRET,
        }

    def bucket(self, prefix: str, **options: Any) -> Bucket:
        return open_bucket(f"s3://{BUCKET}/{prefix}", options={**self.options, **options})

    def start(self) -> None:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *weed_command(self.program, self.directory, self.ports)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """At once, without a chance to answer what is under way. May be repeated."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(WAIT_SECONDS)
            self.process = None

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        bucket = self.bucket("ready", retry_config={"max_retries": 0})
        while True:
            try:
                return bucket.put("ready", b"yes")
            except StorageFailed:
                if self.process is None or self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.directory / "log").read_text(errors="replace")
                    raise RuntimeError(f"SeaweedFS did not start: {log[-2000:]}") from None
            time.sleep(0.1)


def weed_command(program: Path, directory: Path, ports: dict[str, int]) -> list[str]:
    return [
        str(program),
        "server",
        f"-dir={directory}/data",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-volume.max=50",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",  # on by default, and tests talk to nobody outside
        "-s3",
        f"-s3.config={directory}/s3.json",
        "-s3.autoCreateBucket",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]


@contextmanager
def seaweedfs() -> Iterator[SeaweedFSServer]:
    directory = Path(tempfile.mkdtemp(prefix="dovecote-s3-"))
    server = SeaweedFSServer(Path(sys.executable).with_name("weed"), directory, _free_ports())
    try:
        (directory / "data").mkdir()
        identity = {"name": "tests", "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}], "actions": ["Admin"]}
        keys = [{"accessKey": READER, "secretKey": READER}]
        reader = {"name": READER, "credentials": keys, "actions": ["Read", "List"]}
        (directory / "s3.json").write_text(json.dumps({"identities": [identity, reader]}))
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


def _free_ports() -> dict[str, int]:
    names = ("master.port", "volume.port", "filer.port", "s3.port")
    every = [each for name in names for each in (name, f"{name}.grpc")]
    with ExitStack() as held:
        ports = {}
        for name in every:
            taken = held.enter_context(socket.socket())
            taken.bind(("127.0.0.1", 0))
            ports[name] = taken.getsockname()[1]
        return ports
