"""What is measured, one function a subject; each answers rows."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path

from tests.e2e.installation import Installation, free_network, until

from bench import affinity, asking, checkpointing, hibernating, lookups, responding, restoring, sandboxes, stored
from bench.figures import Row, row
from bench.rivals import Crun
from bench.volumes import quota_set
from dovecote.host.storage.templates import build_base
from dovecote.sdk import Dovecote, Session

WAIT = 120.0  # seconds that a measured step may take
PROJECT = files("dovecote.agent") / "project"


class Bench:
    """Installations and rivals, started when a measure first needs them."""

    def __init__(self, directory: Path, rounds: float) -> None:
        self.directory = directory
        self._rounds = rounds
        self._open = ExitStack()
        self._installations: dict[str, Installation] = {}
        self._crun: Crun | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def times(self, usual: int) -> int:
        return max(3, round(usual * self._rounds))

    def installation(self, kind: str = "warm") -> Installation:
        if kind not in self._installations:
            pool_size = {"warm": 4, "cold": 0, "stored": 1, "many": sandboxes.AT_ONCE}[kind]
            network = self._open.enter_context(free_network())
            directory = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=self.directory))
            directory.chmod(0o711)
            made = Installation(directory, network=network, quiet_after=3600, tick=0.2, pool_size=pool_size)
            self._open.callback(made.down)
            made.start()
            self._installations[kind] = made
        return self._installations[kind]

    @contextmanager
    def client(self, kind: str = "warm") -> Iterator[Dovecote]:
        with self.installation(kind).client() as client:
            yield client

    def crun(self) -> Crun:
        if self._crun is None:
            template = build_base(self.installation().settings.cache_dir, lambda _: None)
            self._crun = Crun(self.directory / "crun", template)
            self._open.callback(self._crun.close)
        return self._crun


def milliseconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3


def create(bench: Bench) -> list[Row]:
    """A new session to the end of its first command, from a filled pool and from an empty one."""
    rivals = [bench.crun().run(f"run{i}") for i in range(bench.times(30))]
    rows = []
    for kind, name in (("warm", "create_to_first_command_warm"), ("cold", "create_to_first_command_cold")):
        ours = []
        with bench.client(kind) as client:
            client.sessions.create().delete()
            for _ in range(bench.times(40)):
                if kind == "warm":
                    _pool_is_full(bench)
                made: list[Session] = []

                def first(made: list[Session] = made, client: Dovecote = client) -> None:
                    made.append(client.sessions.create())
                    made[0].run(["true"], check=True)

                ours.append(milliseconds(first))
                made[0].delete()
        rows.append(row(name, "ms", ours, "crun run", rivals))
    return rows


def _pool_is_full(bench: Bench) -> None:
    instances = bench.installation().settings.run_dir / "instances"
    until(
        lambda: sum(1 for each in instances.glob("*/instance.json") if b'"prepared"' in each.read_bytes()) >= 4,
        "the pool is full again",
    )
    time.sleep(0.05)


def command(bench: Bench) -> list[Row]:
    crun = bench.crun()
    with crun.kept("kept"):
        rivals = [crun.exec("kept") for _ in range(bench.times(60))]
    with bench.client() as client, client.sessions.create() as session:
        for _ in range(20):
            session.run(["true"])
        gc.disable()
        ours = [milliseconds(lambda: session.run(["true"], check=True)) for _ in range(bench.times(500))]
        gc.enable()
    return [row("command", "ms", ours, "crun exec", rivals)]


def thaw(bench: Bench) -> list[Row]:
    """A request that finds its session frozen; the rival is the same request to one that is not."""
    with responding.sessions(bench, 1) as (client, (session,)), client.http_for(session.url(8000)) as web:
        warm, thawed = [], []
        web.get("/")
        for _ in range(bench.times(60)):
            warm.append(milliseconds(lambda: web.get("/").raise_for_status()))
            until(lambda: _froze(session), "it freezes")
            thawed.append(milliseconds(lambda: web.get("/").raise_for_status()))
    return [row("thaw_on_request", "ms", thawed, "the same request, not frozen", warm)]


def _froze(session: Session) -> bool:
    from dovecote.sdk import DovecoteError

    try:
        return session.freeze().state == "frozen"
    except DovecoteError:
        return False  # its last connection is not closed yet


def wake_parked(bench: Bench) -> list[Row]:
    """A real project with its dependencies, to the first answer of its server; the rival installs them again."""
    with bench.client() as client, client.sessions.create() as session:
        for each in PROJECT.iterdir():
            if each.is_file():
                session.files.write(f"app/{each.name}", each.read_bytes())
        session.files.write("app/server.js", SMALL_SERVER)
        session.run("cd app && npm install --no-audit --no-fund", timeout=600, check=True)
        session.set_start("node server.js", 3000, cwd="/home/user/app")
        ours, rivals = [], []
        with client.http_for(session.url(3000)) as web:
            web.get("/", timeout=WAIT).raise_for_status()
            for _ in range(bench.times(8)):
                session.park()
                ours.append(milliseconds(lambda: web.get("/", timeout=WAIT).raise_for_status()))

            def reinstall() -> None:
                session.run(
                    "pkill node; cd app && npm ci --prefer-offline --no-audit --no-fund", timeout=600, check=True
                )
                web.get("/", timeout=WAIT).raise_for_status()

            session.run("rm -rf app/node_modules && cd app && npm ci --no-audit --no-fund", timeout=600, check=True)
            rivals = [milliseconds(reinstall) for _ in range(3)]
    return [row("wake_parked", "ms", ours, "npm ci, warm cache, and start", rivals)]


SMALL_SERVER = b"""
import express from 'express'
const app = express()
app.get('/', (request, response) => response.send('ok'))
app.listen(Number(process.env.PORT), '0.0.0.0')
"""


def wake_app(bench: Bench) -> list[Row]:
    """A visit to an app without instances; the rival is the same visit to one that runs."""
    with responding.sessions(bench, 1) as (client, (session,)):
        app = client.apps.publish(session, name="bench", idle_after=1, maximum=1)
        ours, warm = [], []
        try:
            with client.http_for(app.address) as web:
                for _ in range(bench.times(12)):
                    until(lambda: client.apps.instances("bench") == [], "it is at zero", within=60)
                    ours.append(milliseconds(lambda: web.get("/", timeout=WAIT).raise_for_status()))
                    time.sleep(0.3)
                    warm.append(milliseconds(lambda: web.get("/").raise_for_status()))
        finally:
            client.apps.unpublish("bench")
    return [row("wake_app_from_zero", "ms", ours, "the same visit, running", warm)]


def memory(bench: Bench) -> list[Row]:
    """Memory of the machine that one more idle sandbox takes, beyond what its own processes hold.

    Read off the whole machine, so other programs' memory coming and going is in it: take it on an idle one.
    """
    count, crun = bench.times(24), bench.crun()
    ours, rivals = [], []
    with bench.client("cold") as client:
        client.sessions.create().delete()
        for round_ in range(3):
            with ExitStack() as opened:
                before = _available()
                sessions = [opened.enter_context(client.sessions.create()) for _ in range(count)]
                for session in sessions:
                    session.run(["true"], check=True)
                inside = sum(_private(session.instance().pid) for session in sessions)
                ours.append((before - _available() - inside) / count)
            with ExitStack() as opened:
                before = _available()
                for i in range(count):
                    opened.enter_context(crun.kept(f"idle{round_}-{i}"))
                rivals.append((before - _available()) / count)
    return [row("idle_sandbox_memory", "bytes", ours, "crun run -d sleep", rivals)]


def _available() -> float:
    Path("/proc/sys/vm/drop_caches").write_text("3")
    time.sleep(1)
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    raise AssertionError("no MemAvailable")


def _private(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(float(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Private_"))


MEASURES: dict[str, Callable[[Bench], list[Row]]] = {
    "create": create,
    "command": command,
    "thaw": thaw,
    "wake_parked": wake_parked,
    "wake_app": wake_app,
    "affinity_throughput": affinity.throughput,
    "affinity_throughput_1000": affinity.throughput_1000,
    "affinity_throughput_limited": affinity.throughput_limited,
    "affinity_added_latency": affinity.added_latency,
    "ask_cpu": asking.ask_cpu,
    "lookup_parked_1m_sqlite": lookups.sqlite,
    "lookup_parked_1m_postgresql": lookups.on_postgresql,
    "memory": memory,
    "terminal_first_byte": sandboxes.terminal_first_byte,
    "file_copies": sandboxes.file_copies,
    "command_throughput": sandboxes.command_throughput,
    "guest_memory": sandboxes.guest_memory,
    "many_at_once": sandboxes.many_at_once,
    "quota_set": quota_set,
    "restore_mount_warm": restoring.mount_warm,
    "restore_first_command_warm": restoring.warm,
    "restore_first_command_cold_s3": restoring.cold_s3,
    "checkpoint_one_file": checkpointing.one_file,
    "checkpoint_cpu_share": checkpointing.cpu_share,
    "command_while_saving": checkpointing.command_while_saving,
    "hibernate": hibernating.hibernate,
    "stored": stored.stored,
    "stored_1000_sessions": stored.sessions_1000,
}
