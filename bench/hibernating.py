"""How long a sandbox with a few processes takes into the store with its memory, and back to an answer."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.e2e.installation import until

from bench.figures import Row, row
from dovecote.sdk import Dovecote, Session

if TYPE_CHECKING:
    from bench.measures import Bench

TREE = "sleep 1000 & python3 -c 'import time; time.sleep(1000)' & exec cat"


def hibernate(bench: Bench) -> list[Row]:
    """A Python and two small programs. Nothing where gVisor is not installed."""
    if shutil.which("runsc") is None:
        return []
    with bench.client() as client:
        figures: list[list[float]] = [[], [], [], []]
        for _ in range(bench.times(12)):
            for known, figure in zip(figures, (*_with_memory(client), *_files_alone(client)), strict=True):
                known.append(figure)
    pauses, resumes, parks, starts = figures
    return [
        row("hibernate", "ms", pauses, "the same session parked, files alone", parks),
        row("resume_hibernated", "ms", resumes, "the same session woken from files", starts),
    ]


def _with_memory(client: Dovecote) -> tuple[float, float]:
    """To the end of the pause, and from the resume to the end of a command."""
    with _running(client) as session:
        paused = _milliseconds(lambda: session.pause(hibernate=True))
        resumed = _milliseconds(lambda: session.run(["true"], check=True))
        assert len([each for each in session.commands() if each.is_running]) == 1
    return paused, resumed


def _files_alone(client: Dovecote) -> tuple[float, float]:
    with _running(client) as session:
        parked = _milliseconds(session.park)
        started = _milliseconds(lambda: session.run(["true"], check=True))
    return parked, started


def _running(client: Dovecote) -> Session:
    session = client.sessions.create(level="runsc")
    session.start(TREE, stdin=True)
    until(lambda: session.run("pgrep -c 'sleep|python3|cat'").stdout.strip() == "3", "its processes run")
    session.save()
    return session


def _milliseconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return (time.perf_counter() - began) * 1e3
