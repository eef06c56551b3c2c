"""What saving costs while work goes on: one edited file, an install, and commands beside a save."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.installation import Installation, until

from bench.figures import Row, quantile, row
from bench.project import AT, FIRST, INSTALL, SECONDS, Project, installed
from dovecote.host.instances.checkpoints import LOOK_EVERY
from dovecote.sdk import Session

if TYPE_CHECKING:
    from bench.measures import Bench

IDLE_SECONDS = 10.0


def one_file(bench: Bench) -> list[Row]:
    """From the beginning of a checkpoint to the slot in the log, as the server's own metric says it."""
    installation = bench.installation()
    with bench.client() as client, client.sessions.create() as session:
        project = installed(session, installation.settings.cache_dir, "first", FIRST)
        session.save()
        _until_saved(installation)
        ours = [_edit(installation, session, number) for number in range(bench.times(40))]
    return [row("checkpoint_one_file", "ms", ours, "restic backup of the same edit", _backups(bench, project))]


def _edit(installation: Installation, session: Session, number: int) -> float:
    count, seconds = _checkpoints(installation)
    session.files.write(f"{AT}/src/part{number % 40}.jsx", f"export default {number}\n" * 30)
    until(lambda: _checkpoints(installation)[0] > count, "it is saved", every=0.02)
    after = _checkpoints(installation)
    _until_saved(installation)
    return (after[1] - seconds) / (after[0] - count) * 1e3


def _checkpoints(installation: Installation) -> tuple[float, float]:
    """How many there have been, and the seconds that they took together."""
    found = _metrics(installation)
    return found["dovecote_checkpoint_seconds_count"], found["dovecote_checkpoint_seconds_sum"]


def _metrics(installation: Installation) -> dict[str, float]:
    text = httpx.get(f"{installation.url}/metrics", timeout=10).raise_for_status().text
    return {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}


def _until_saved(installation: Installation) -> None:
    """Nothing that runs on it has changes that are not stored; looked at twice: a write is seen later."""
    for _ in range(2):
        time.sleep(LOOK_EVERY * 2)
        until(
            lambda: _metrics(installation)["dovecote_unsaved_instances"] == 0,
            "everything is saved",
            within=SECONDS,
            every=0.5,
        )


def _backups(bench: Bench, project: Project) -> list[float]:
    directory = bench.directory / "backups"
    files = project.unpack(directory / "files")
    environment = {
        **os.environ,
        "RESTIC_PASSWORD": "bench",
        "RESTIC_CACHE_DIR": f"{directory}/cache",
        "RESTIC_REPOSITORY": f"{directory}/repository",
    }

    def restic(*words: str) -> float:
        began = time.perf_counter()
        subprocess.run(["restic", "-q", *words], env=environment, capture_output=True, timeout=SECONDS, check=True)
        return (time.perf_counter() - began) * 1e3

    try:
        restic("init")
        restic("backup", str(files))
        taken = []
        for number in range(5):
            (files / "src/part0.jsx").write_text(f"export default {number}\n" * 30)
            taken.append(restic("backup", str(files)))
        return taken
    finally:
        shutil.rmtree(directory)


def cpu_share(bench: Bench) -> list[Row]:
    """What the server spends, beyond its idle share, from the start of an install until all is saved, over npm's."""
    installation = bench.installation()
    ours = []
    for _ in range(bench.times(3)):
        with bench.client() as client, client.sessions.create() as session:
            Project("first", FIRST, Path()).write_sources(session)
            _until_saved(installation)
            idle = _idle_share(installation)
            server, inside, began = server_cpu(installation), _inside_cpu(session), time.monotonic()
            session.run(f"cd {AT} && {INSTALL}", timeout=SECONDS, check=True)
            inside = _inside_cpu(session) - inside
            _until_saved(installation)
            spent = server_cpu(installation) - server - idle * (time.monotonic() - began)
            ours.append(spent / inside)
    return [row("checkpoint_cpu_share", "share", ours, "the install itself", [1.0])]


def _idle_share(installation: Installation) -> float:
    """CPU seconds a second that the server takes with the same session there and nothing to save."""
    before, began = server_cpu(installation), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return (server_cpu(installation) - before) / (time.monotonic() - began)


def _inside_cpu(session: Session) -> float:
    return float(session.instance().usage["cpu_seconds"])


def server_cpu(installation: Installation) -> float:
    """Seconds of the server's process and of those that it has waited for."""
    assert installation.process is not None
    fields = Path(f"/proc/{installation.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(each) for each in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def command_while_saving(bench: Bench) -> list[Row]:
    """Commands of one session while another one, whose 20,000 new files nobody has saved before, is parked."""
    quiet, busy = [], []
    with bench.client() as client, client.sessions.create() as session, client.sessions.create() as other:
        installed(other, bench.installation().settings.cache_dir, "first", FIRST)
        gc.disable()
        quiet = [_command(session) for _ in range(bench.times(200))]
        parking = threading.Thread(target=other.park)
        parking.start()
        while parking.is_alive():
            busy.append(_command(session))
        parking.join()
        gc.enable()
    return [
        row("command_while_saving", "ms", busy, "with nothing to save", quiet),
        row("command_while_saving_p99", "ms", [quantile(busy, 0.99)], "with nothing to save", [quantile(quiet, 0.99)]),
    ]


def _command(session: Session) -> float:
    began = time.perf_counter()
    session.run(["true"], check=True)
    return (time.perf_counter() - began) * 1e3
