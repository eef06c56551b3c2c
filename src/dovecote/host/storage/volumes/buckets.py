"""Prefixes of buckets as read-only volumes: mounted by rclone when somebody asks for one, for all who do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from dovecote.descriptors import is_readable
from dovecote.errors import DeadlineExceeded, Invalid, NotFound, StorageFailed, Unsupported
from dovecote.host.processes import is_alive, process_started
from dovecote.host.storage import mounts
from dovecote.host.storage.volumes.opening import open_mount, taken
from dovecote.model.volumes import BUCKET, Mount

THREADS = 4  # that may wait for buckets at a time, whatever stalls
TIMEOUT = 90.0  # seconds that opening a mount may take
MOUNTED_WITHIN = 20.0
ENDS_WITHIN = 5.0
_ENTRY = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?)=(s3://[^,\s]+)")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{1,62}")
_PASSED_ON = ("PATH", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "SSL_CERT_FILE")
T = TypeVar("T")


@dataclass(frozen=True)
class Prefix:
    name: str
    bucket: str
    path: str  # without slashes at its ends; "" for all of the bucket


def parse_prefixes(text: str) -> dict[str, Prefix]:
    """`name=s3://bucket/prefix,name=...`. Raises Invalid."""
    found: dict[str, Prefix] = {}
    for entry in filter(None, (each.strip() for each in text.split(","))):
        match = _ENTRY.fullmatch(entry)
        url = urlsplit(match[2]) if match else None
        if match is None or url is None or not _BUCKET.fullmatch(url.netloc) or match[1] in found:
            raise Invalid(
                f"not a prefix of a bucket: {entry[:80]!r}",
                hint="DOVECOTE_MOUNT_BUCKETS is like `name=s3://bucket/prefix,other=s3://bucket`",
            )
        found[match[1]] = Prefix(match[1], url.netloc, unquote(url.path).strip("/"))
    return found


def mount_command(program: str, prefix: Prefix, at: Path) -> list[str]:
    """argv. Whatever the store does, an answer or an error comes in about a minute."""
    source = f":s3:{prefix.bucket}/{prefix.path}".rstrip("/")
    return [
        *(program, "mount", source, str(at)),
        *("--read-only", "--allow-other", "--uid=0", "--gid=0", "--dir-perms=0555", "--file-perms=0444"),
        *("--use-server-modtime", "--dir-cache-time=30s", "--vfs-read-chunk-size=8M", "--buffer-size=4M"),
        *("--contimeout=5s", "--timeout=10s", "--retries=1", "--low-level-retries=1"),
        *(f"--devname=dovecote:{prefix.name}", "--quiet"),
    ]


def environ_of(environ: Mapping[str, str]) -> dict[str, str]:
    """All that rclone gets of ours: keys come in the environment, never on a command line."""
    made = {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_S3_PROVIDER": "Other",
        "RCLONE_S3_ENV_AUTH": "true",
        "RCLONE_S3_NO_CHECK_BUCKET": "true",
        "RCLONE_S3_REGION": environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1",
    }
    endpoint = environ.get("AWS_ENDPOINT_URL") or environ.get("AWS_ENDPOINT")
    made |= {"RCLONE_S3_ENDPOINT": endpoint} if endpoint else {"RCLONE_S3_PROVIDER": "AWS"}
    return {name: environ[name] for name in _PASSED_ON if name in environ} | made


class Buckets:
    """`at/<name>` on the host. rclone outlives this process: instances go on reading.

    Owners and modes are the same for everything: readable by everybody inside, writable by nobody. So no id needs
    mapping, and any FUSE will do. When rclone is killed, the next mount starts it again; instances that had it mounted
    keep a dead mount.
    """

    def __init__(
        self,
        prefixes: Mapping[str, Prefix],
        at: Path,
        *,
        program: str = "rclone",
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._prefixes = dict(prefixes)
        self._at = at
        self._program = program
        self._environ = environ_of(environ)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="buckets")
        self._serving: dict[str, asyncio.Future[None]] = {}

    def names(self) -> list[str]:
        return sorted(self._prefixes)

    async def open(self, mount: Mount) -> int:
        """A detached read-only mount of its path; the caller closes it.

        Raises NotFound (no_such_volume, no_such_path), StorageFailed, Unsupported, DeadlineExceeded (store_slow).
        """
        prefix = self._prefix(mount.volume)
        try:
            async with asyncio.timeout(TIMEOUT):
                await asyncio.shield(self._serve(prefix))
                return await taken(self._in_thread(open_mount, self._at / prefix.name, mount, None))
        except TimeoutError:
            raise DeadlineExceeded(
                f"the bucket did not answer in {TIMEOUT:.0f} s", code="store_slow", hint="is its endpoint reachable?"
            ) from None

    async def remove(self) -> None:
        """Unmounts everything; instances keep dead mounts. May be repeated."""
        if self._serving:
            await asyncio.wait(self._serving.values(), timeout=TIMEOUT)
        if self._at.exists():
            for name in sorted({*self._prefixes, *(path.name for path in self._at.iterdir() if path.is_dir())}):
                await asyncio.to_thread(self._drop, name)

    def _prefix(self, volume: str) -> Prefix:
        try:
            return self._prefixes[volume.removeprefix(BUCKET)]
        except KeyError:
            raise NotFound(
                f"no bucket {volume!r}",
                code="no_such_volume",
                hint="the operator lists in DOVECOTE_MOUNT_BUCKETS: " + (", ".join(self.names()) or "none so far"),
            ) from None

    def _in_thread(self, act: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """In few threads of its own: what stalls takes nobody else's."""
        return asyncio.get_running_loop().run_in_executor(self._threads, act, *arguments)

    def _serve(self, prefix: Prefix) -> asyncio.Future[None]:
        """One at a time for each name, for all who ask meanwhile; it goes on when they leave, or another one would
        kill what it is starting."""
        serving = self._serving.get(prefix.name)
        if serving is None:
            serving = self._serving[prefix.name] = self._in_thread(self._ensure, prefix)
            serving.add_done_callback(lambda done: self._served(prefix.name, done))
        return serving

    def _served(self, name: str, done: asyncio.Future[None]) -> None:
        self._serving.pop(name, None)
        if not done.cancelled():
            done.exception()  # who waited has it; when all have left, the next who asks tries again

    def _ensure(self, prefix: Prefix) -> None:
        if self._is_served(prefix):
            return
        self._drop(prefix.name)
        at = self._at / prefix.name
        at.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._at.chmod(0o700)
        if shutil.which(self._program) is None:
            raise Unsupported("no rclone on this host", code="no_rclone", hint="deploy/install.sh buckets")
        with self._words(prefix.name).open("wb") as words:
            process = subprocess.Popen(
                mount_command(self._program, prefix, at),
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=words,
                start_new_session=True,
                cwd="/",
            )
        record = {"pid": process.pid, "started": process_started(process.pid), "does": self._does(prefix)}
        self._record(prefix.name).write_text(json.dumps(record), encoding="ascii")
        deadline = time.monotonic() + MOUNTED_WITHIN
        while mounts.source_of(at) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                said = self._words(prefix.name).read_text(errors="replace").strip()[-300:]
                self._drop(prefix.name)
                raise StorageFailed(
                    f"bucket {prefix.name} cannot be mounted: {said or 'rclone said nothing'}",
                    code="mount_failed",
                    hint="check DOVECOTE_MOUNT_BUCKETS, AWS_*, and that /dev/fuse and fuse3 are there",
                )
            time.sleep(0.02)
        # What it says later nobody reads, and a store that fails for days must not fill the disk.
        self._words(prefix.name).unlink(missing_ok=True)

    def _is_served(self, prefix: Prefix) -> bool:
        record = self._read_record(prefix.name)
        return (
            record.get("does") == self._does(prefix)
            and _is_running(record)
            and mounts.source_of(self._at / prefix.name) is not None
        )

    def _drop(self, name: str) -> None:
        """Never waits for the store: the mount is taken off, and whoever serves it killed."""
        while mounts.source_of(self._at / name) is not None:
            mounts.unmount(self._at / name, detach=True)
        record = self._read_record(name)
        if _is_running(record):
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(record["pid"])
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    is_readable(pidfd, within=ENDS_WITHIN)
                finally:
                    os.close(pidfd)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(record["pid"], os.WNOHANG)
        self._record(name).unlink(missing_ok=True)

    def _does(self, prefix: Prefix) -> str:
        """Changes when a mount would be another one. Tells nothing of keys."""
        all_of_it = [*mount_command(self._program, prefix, self._at), *map(str, sorted(self._environ.items()))]
        return blake2b("\0".join(all_of_it).encode(), digest_size=16).hexdigest()

    def _record(self, name: str) -> Path:
        return self._at / f"{name}.json"

    def _words(self, name: str) -> Path:
        return self._at / f"{name}.log"

    def _read_record(self, name: str) -> dict[str, Any]:
        try:
            record = json.loads(self._record(name).read_bytes())
            return {"pid": int(record["pid"]), "started": record["started"], "does": record["does"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _is_running(record: Mapping[str, Any]) -> bool:
    return bool(record) and is_alive(record["pid"], record["started"])
