"""What a sandbox is like from the outside: terminals, files in and out, many commands, many sandboxes at once."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e.installation import Installation, until

from bench.figures import Row, row
from dovecote.sdk import Dovecote, Session

if TYPE_CHECKING:
    from bench.measures import Bench

CLIENTS = 16
AT_ONCE = 100
LARGE = 1 << 30  # bytes
PIECE = 1 << 20


def terminal_first_byte(bench: Bench) -> list[Row]:
    """From opening the connection to the first byte of a program's output; the rival is `crun exec` of the same."""
    crun = bench.crun()
    with crun.kept("terminal"):
        rivals = [crun.exec("terminal") for _ in range(bench.times(40))]
    ours, shells = [], []
    with bench.client() as client, client.sessions.create() as session:
        for _ in range(bench.times(60)):
            ours.append(_first_byte(session, "printf x"))
            shells.append(_first_byte(session, None))
    return [
        row("terminal_first_byte", "ms", ours, "crun exec true", rivals),
        row("terminal_first_byte_login_shell", "ms", shells, "a terminal of printf", ours),
    ]


def _first_byte(session: Session, command: str | None) -> float:
    began = time.perf_counter()
    with session.terminal(command) as terminal:
        next(terminal.output())
        took = (time.perf_counter() - began) * 1e3
        if command is None:
            terminal.write("exit\r")
        terminal.wait()
    session.command(terminal.number).release()
    return took


def file_copies(bench: Bench) -> list[Row]:
    """A gigabyte in and out with curl, MB/s; the rival is `dd` with fsync inside, into the same disk."""
    installation = bench.installation()
    source = bench.directory / "large"
    with source.open("wb") as file:
        for _ in range(LARGE // PIECE):
            file.write(os.urandom(PIECE))
    up, down, rivals = [], [], []
    extra: list[float] = []
    with bench.client() as client, client.sessions.create(spec="large") as session:
        url = f"{installation.url}/v1/sessions/{session.id}/files?path=large"
        for _ in range(bench.times(3)):
            rivals.append(_dd(session))
            with _extra_memory(installation, extra):
                on_disk = partial(session.run, "sync large", check=True)
                up.append(_curl(installation, "-T", str(source), url, then=on_disk))
            with _extra_memory(installation, extra):
                down.append(_curl(installation, "-o", "/dev/null", url))
            session.files.remove("large")
    source.unlink()
    return [
        row("file_upload", "MB/s", up, "dd with fsync, inside", rivals),
        row("file_download", "MB/s", down, "dd with fsync, inside", rivals),
        row("file_copy_memory", "bytes", extra, "", []),
    ]


def _dd(session: Session) -> float:
    began = time.perf_counter()
    session.run(f"dd if=/dev/zero of=rival bs=1M count={LARGE >> 20} conv=fsync", timeout=600, check=True)
    took = time.perf_counter() - began
    session.files.remove("rival")
    return LARGE / took / 1e6


def _curl(installation: Installation, *words: str, then: Callable[[], object] = lambda: None) -> float:
    """`then` belongs to what is measured: the rival too has its bytes on the disk."""
    command = ["curl", "-sS", "-f", "-H", f"x-dovecote-key: {installation.api_key}", *words]
    began = time.perf_counter()
    subprocess.run(command, check=True, timeout=600, capture_output=True)
    then()
    return LARGE / (time.perf_counter() - began) / 1e6


@contextmanager
def _extra_memory(installation: Installation, found: list[float]) -> Iterator[None]:
    """Adds by how much the server's memory was above where it began, at most."""
    assert installation.process is not None
    process = Path(f"/proc/{installation.process.pid}")
    (process / "clear_refs").write_text("5")  # the highest so far is now
    before = _memory(process, "VmRSS")
    yield
    found.append(_memory(process, "VmHWM") - before)


def _memory(process: Path, name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE)
    assert found, name
    return float(found[1]) * 1024


def command_throughput(bench: Bench) -> list[Row]:
    """Commands a second from 16 clients at once, in one sandbox; the rival is `crun exec`, as many at once."""
    crun = bench.crun()
    with crun.kept("throughput"):
        rivals = [_a_second(lambda _: crun.exec("throughput"), 160) for _ in range(3)]
    with bench.client() as client, client.sessions.create() as session, ExitStack() as opened:
        session.run(["true"], check=True)
        its = [opened.enter_context(bench.installation().client()).sessions.get(session.id) for _ in range(CLIENTS)]
        ours = [_a_second(lambda at: its[at % CLIENTS].run(["true"], check=True), bench.times(3000)) for _ in range(3)]
    return [row("command_throughput", "commands/s", ours, "crun exec", rivals)]


def _a_second(act: Callable[[int], object], count: int) -> float:
    with ThreadPoolExecutor(CLIENTS) as threads:
        began = time.perf_counter()
        for done in [threads.submit(act, at) for at in range(count)]:
            done.result()
        return count / (time.perf_counter() - began)


def guest_memory(bench: Bench) -> list[Row]:
    """What the first process of an idle sandbox holds; the rival is `sleep` in the same place."""
    with bench.client() as client, client.sessions.create() as session:
        session.run(["true"], check=True)
        pid = session.instance().pid
        ours = [_memory(Path(f"/proc/{pid}"), "VmRSS") for _ in range(5)]
        session.start(["sleep", "600"])
        until(lambda: session.run(["pgrep", "-x", "sleep"]).exit_code == 0, "it sleeps")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        rivals = [_memory(Path(f"/proc/{child}"), "VmRSS") for child in children]
    return [row("guest_memory", "bytes", ours, "sleep in the same sandbox", rivals)]


def many_at_once(bench: Bench) -> list[Row]:
    """A hundred sandboxes asked for at once, from a full pool, until each has answered a command; then the refill."""
    installation = bench.installation("many")
    ours, refills = [], []
    with installation.client() as client, ThreadPoolExecutor(AT_ONCE) as threads:
        for _ in range(bench.times(3)):
            until(lambda: _prepared(installation) >= AT_ONCE, "the pool is full", within=300)
            time.sleep(1)
            began = time.perf_counter()
            made = list(threads.map(lambda _: _answering(client), range(AT_ONCE)))
            ours.append((time.perf_counter() - began) * 1e3)
            left, began = _prepared(installation), time.perf_counter()
            until(lambda: _prepared(installation) >= AT_ONCE, "the pool is full again", within=300)
            refills.append((AT_ONCE - left) / (time.perf_counter() - began))
            list(threads.map(lambda session: session.delete(), made))
    crun = bench.crun()
    with ThreadPoolExecutor(CLIENTS) as threads:
        began = time.perf_counter()
        list(threads.map(lambda at: crun.run(f"many{at}"), range(AT_ONCE)))
        rival = time.perf_counter() - began
    return [
        row("create_100_at_once", "ms", ours, "100 times crun run, 16 at once", [rival * 1e3]),
        row("pool_refill_rate", "instances/s", refills, "crun run, 16 at once", [AT_ONCE / rival]),
    ]


def _answering(client: Dovecote) -> Session:
    session = client.sessions.create()
    session.run(["true"], check=True)
    return session


def _prepared(installation: Installation) -> int:
    records = (installation.settings.run_dir / "instances").glob("*/instance.json")
    return sum(1 for each in records if b'"prepared"' in _content(each))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # it has just ended
        return b""
