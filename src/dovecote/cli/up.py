"""`dovecote up`, `down` and `status`: a server in the background on this machine."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli.show import problem, say
from dovecote.descriptors import is_readable

if TYPE_CHECKING:
    from dovecote.config import Settings

LOOK_EVERY = 0.1  # seconds
STOP_SECONDS = 60.0


def up(
    timeout: Annotated[float, typer.Option(help="Seconds to wait; a first start builds the base template.")] = 1200,
) -> None:
    """Start the server in the background and wait until it is ready."""
    from dovecote.config import read_settings

    settings = read_settings()
    if running(settings) is not None and is_ready(settings):
        say("Dovecote is up already")
        _where(settings)
        return
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    path = log_path(settings)
    seen = path.stat().st_size if path.exists() else 0
    server = _start(path) if running(settings) is None else None
    deadline = time.monotonic() + timeout
    while not is_ready(settings):
        seen = _tell(path, seen)
        if server is not None and server.poll() is not None:
            problem(f"the server ended with {server.returncode}", "start_failed", f"its log: {path}")
            raise typer.Exit(1)
        if time.monotonic() > deadline:
            problem(f"not ready after {timeout:.0f} s", "start_timeout", f"it goes on; its log: {path}")
            raise typer.Exit(1)
        time.sleep(LOOK_EVERY)
    _tell(path, seen)
    say("Dovecote is up", style="bold green")
    _where(settings)


def down() -> None:
    """Stop the server and everything that it runs; sessions are found again at the next start."""
    from dovecote import installation
    from dovecote.config import read_settings

    settings = read_settings()
    pid = running(settings)
    if pid is not None:
        _stop(settings, pid)
        say(f"stopped the server, pid {pid}")
    removed = installation.teardown(settings)
    for line in removed:
        say(f"removed {line}")
    if pid is None and not removed:
        say("nothing was running")


def status() -> None:
    """Say whether the server runs and what it has."""
    from collections import Counter

    from dovecote.config import read_settings
    from dovecote.sdk import Dovecote

    settings = read_settings()
    pid = running(settings)
    if pid is None:
        say("Dovecote is not running here")
        raise typer.Exit(1)
    ready = is_ready(settings)
    say(f"running, pid {pid}, {'ready' if ready else 'not ready yet'}")
    _where(settings)
    if not ready:
        raise typer.Exit(1)
    with Dovecote() as client:
        states = Counter(each.state for each in client.sessions.list())
        say(f"sessions   {', '.join(f'{count} {state}' for state, count in sorted(states.items())) or 'none'}")
        apps = client.apps.list()
        instances = sum(len(client.apps.instances(each.name)) for each in apps)
        say(f"apps       {len(apps)}, with {instances} instances")


def log_path(settings: Settings) -> Path:
    return settings.run_dir / "dovecote.log"


def running(settings: Settings) -> int | None:
    """Pid of the server of this run directory. It holds a lock while it lives, so a stale pid cannot deceive."""
    try:
        with (settings.run_dir / "serve.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                text = lock.read().strip()
                return int(text) if text.isdigit() else None
            return None
    except FileNotFoundError:
        return None


def is_ready(settings: Settings) -> bool:
    """Asks through the gateway, so ready means the whole way."""
    import httpx

    address = "127.0.0.1" if settings.bind in ("0.0.0.0", "::", "") else settings.bind
    try:
        answer = httpx.get(
            f"http://{address}:{settings.port}/readyz",
            headers={"host": f"{settings.domain}:{settings.port}"},
            timeout=5,
        )
    except httpx.HTTPError:
        return False
    return answer.status_code == 200


def _start(path: Path) -> subprocess.Popen[bytes]:
    say(f"starting Dovecote, log in {path}")
    with path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dovecote.cli", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )


def _tell(path: Path, seen: int) -> int:
    """Shows what the server logged since, of its own or as a warning; answers how far that was."""
    if not path.exists():
        return seen
    with path.open("rb") as log:
        log.seek(seen)
        text = log.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode("utf-8", "replace").splitlines():
        if " INFO " not in line or " dovecote" in line:
            say(f"  {line}", style="dim")
    return seen + len(whole)


def _stop(settings: Settings, pid: int) -> None:
    """Ends exactly that process: the handle is taken first, then it is looked whether it is still the one."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if running(settings) != pid:
            return
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not is_readable(handle, within=STOP_SECONDS):
            problem(f"the server did not stop within {STOP_SECONDS:.0f} s and is killed", "stop_timeout")
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            is_readable(handle, within=STOP_SECONDS)
    finally:
        os.close(handle)


def _where(settings: Settings) -> None:
    from dovecote.model.addresses import Addresses

    say(f"console    {Addresses(settings.domain, settings.port).console()}")
    say(f"API key    {settings.config_dir / 'credentials.json'}")
    say(f"log        {log_path(settings)}")
