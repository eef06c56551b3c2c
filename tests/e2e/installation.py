"""A private installation of Dovecote: its own directories, port and network, started and stopped like a user's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx

from dovecote.config import Settings, read_settings
from dovecote.sdk import Dovecote

T = TypeVar("T")

READY_WITHIN = 300.0  # the first start on a machine builds the base template


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(claim: Callable[[], T | bool | None], what: str, *, within: float = 30.0, every: float = 0.05) -> T:
    """Waits until `claim` answers something true, looks `every` seconds; fails with `what` if it does not in time."""
    deadline = time.monotonic() + within
    while True:
        answer = claim()
        if answer:
            return answer  # type: ignore[return-value]
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:.0f} s: {what}")
        time.sleep(every)


class Installation:
    """`network` is a /16 of its own, so that several can run on one machine."""

    def __init__(self, directory: Path, *, network: str, **settings: object) -> None:
        self.directory = directory
        self.port = free_port()
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DOVECOTE_")},
            "DOVECOTE_DATA_DIR": str(directory / "data"),
            "DOVECOTE_RUN_DIR": str(directory / "run"),
            "DOVECOTE_CONFIG_DIR": str(directory / "config"),
            "DOVECOTE_PORT": str(self.port),
            "DOVECOTE_NETWORK": network,
            "DOVECOTE_POOL_SIZE": "2",
            "DOVECOTE_POOL_BYTES": str(20 << 30),
            **{f"DOVECOTE_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Settings:
        return read_settings(self.environ)

    @property
    def log(self) -> Path:
        return self.directory / "serve.log"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_key(self) -> str:
        body = json.loads((self.directory / "config/credentials.json").read_text())
        return str(body["api_key"])

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dovecote", "serve"],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._is_ready, f"{self.url}/readyz answers; {self.log}", within=READY_WITHIN)

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}: {self.words()}")
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def words(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def kill(self) -> None:
        """As the kernel's memory killer would."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def down(self) -> str:
        """`dovecote down`; answers what it printed."""
        self.stop()
        done = self.command("down")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def command(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dovecote", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def client(self, api_key: str | None = None) -> Dovecote:
        return Dovecote(api_key=api_key or self.api_key, url=self.url)

    def remains(self) -> list[str]:
        """What of this installation is on the machine: processes, mounts, namespaces, loop devices, cgroups, links."""
        name = self.settings.installation
        run, data = str(self.settings.run_dir), str(self.settings.data_dir)
        found = [line for line in Path("/proc/self/mounts").read_text().splitlines() if run in line or data in line]
        found += [str(path) for path in Path("/run/netns").glob(f"*{name}*")] if Path("/run/netns").exists() else []
        found += [str(path) for path in Path("/sys/class/net").glob(f"*{name}*")]
        found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/*{name}*") if path.is_dir()]
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            if data in backing.read_text():
                found.append(str(backing))
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = process.read_bytes()
            except OSError:
                continue
            if run.encode() in line or data.encode() in line:
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        return found


@contextmanager
def free_network() -> Iterator[str]:
    """A /16 that nothing on this machine has, and no other test, of this run or another one, is about to take."""
    show = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True, timeout=10)
    for number in range(231, 255):
        if f"10.{number}." in show.stdout:
            continue
        with socket.socket(socket.AF_UNIX) as holder:
            try:
                holder.bind(f"\0dovecote-test-network-{number}")  # gone with the process, however that ends
            except OSError:
                continue
            yield f"10.{number}.0.0/16"
            return
    raise AssertionError("no free network for a test")


@contextmanager
def place() -> Iterator[Path]:
    """A directory for one installation, searchable as container root needs it."""
    directory = Path(tempfile.mkdtemp(prefix="dovecote-test-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running(**settings: object) -> Iterator[Installation]:
    """One in a directory and a network of its own; all of it is gone afterwards."""
    with place() as directory, free_network() as network:
        installation = Installation(directory, network=network, **settings)
        try:
            installation.start()
            yield installation
        finally:
            installation.down()
