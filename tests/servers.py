"""Real servers that tests start for themselves and stop again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from uuid import uuid4

import pytest

from tests.s3 import SeaweedFSServer, seaweedfs

WAIT_SECONDS = 60.0
PROGRAMS = "/usr/lib/postgresql/*/bin"


@dataclass(frozen=True)
class PostgreSQLServer:
    """A private server on a Unix socket, without durability. Its databases go away with it."""

    programs: Path
    directory: Path
    process: subprocess.Popen[bytes]

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.directory}"

    def new_database(self, template: str = "template0") -> str:
        """Name of a new one, a copy of `template`, to which nobody may be connected."""
        name = f"d{uuid4().hex[:16]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        subprocess.run(
            [self.programs / "psql", "-h", self.directory, "-U", "postgres", "-Xqc", statement, "postgres"],
            check=True,
            timeout=WAIT_SECONDS,
            capture_output=True,
        )


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer]:
    if not glob(PROGRAMS):
        pytest.skip("install postgresql")
    with postgresql() as server:
        yield server


@contextmanager
def postgresql() -> Iterator[PostgreSQLServer]:
    """The newest that is installed."""
    programs = Path(max(glob(PROGRAMS), key=lambda path: int(path.split("/")[-2])))
    directory = Path(tempfile.mkdtemp(prefix="dovecote-pg-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        initdb: list[str | Path] = [
            programs / "initdb",
            "-D",
            directory / "data",
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
        ]
        subprocess.run(
            [*_as_postgres(), *initdb, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"],
            check=True,
            timeout=120,
            capture_output=True,
        )
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [*_as_postgres(), programs / "postgres", "-D", directory / "data", *_settings(directory)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        try:
            _wait_until_ready(programs, directory, process)
            yield PostgreSQLServer(programs, directory, process)
        finally:
            process.send_signal(signal.SIGINT)  # fast shutdown
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait(30)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def seaweedfs_server() -> Iterator[SeaweedFSServer]:
    with seaweedfs() as server:
        yield server


def _as_postgres() -> list[str]:
    """PostgreSQL refuses to be root. It ends with the tests, even when they are killed."""
    line = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() == 0:
        line += ["--reuid=postgres", "--regid=postgres", "--clear-groups"]
    return [*line, "--"]


def _settings(directory: Path) -> list[str]:
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(directory),
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "shared_buffers": "32MB",
        "max_connections": "60",
        "autovacuum": "off",
    }
    return [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]


def _wait_until_ready(programs: Path, directory: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while subprocess.run([programs / "pg_isready", "-q", "-h", directory], timeout=WAIT_SECONDS).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"PostgreSQL did not start: {(directory / 'log').read_text()[-2000:]}")
        time.sleep(0.05)
