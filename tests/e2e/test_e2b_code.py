"""E2B's code interpreter clients, unmodified, against this server."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote
from tests.e2e.installation import Installation

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="module")
def clients() -> dict[str, Path]:
    """Interpreter or directory of each, by its name."""
    uv = Path(sys.executable).parent / "uv"
    done = subprocess.run([CLIENTS / "install.sh", str(uv)], capture_output=True, text=True, timeout=500, check=True)
    return {name: Path(path) for name, path in (line.split() for line in done.stdout.splitlines())}


def environment(installation: Installation) -> dict[str, str]:
    """What `dovecote env e2b` prints, and no more."""
    done = installation.command("env", "e2b")
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("export ") for line in done.stdout.splitlines() if line.startswith("export ")]
    named = dict(line.split("=", 1) for line in lines)
    return {"PATH": os.environ["PATH"], **{name: shlex.split(value)[0] for name, value in named.items()}}


def made(dovecote: Dovecote) -> None:
    for _ in dovecote.templates.prepare("code"):
        pass


def succeeds(command: Sequence[str | Path], env: dict[str, str], cwd: Path) -> None:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


def test_the_python_client(installation: Installation, dovecote: Dovecote, clients: dict[str, Path]) -> None:
    made(dovecote)
    options: list[str | Path] = [
        "-q",
        "-x",
        "-c",
        os.devnull,
        "--rootdir",
        CLIENTS,
        "-p",
        "no:cacheprovider",
        "--noconftest",
    ]
    command: list[str | Path] = [clients["python-2.63"], "-m", "pytest", *options, CLIENTS / "check_code.py"]
    succeeds(command, environment(installation), installation.directory)


def test_the_javascript_client(
    installation: Installation, dovecote: Dovecote, clients: dict[str, Path], tmp_path: Path
) -> None:
    made(dovecote)
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    script = tmp_path / "check_code.mjs"
    shutil.copy(CLIENTS / "check_code.mjs", script)
    (tmp_path / "node_modules").symlink_to(clients["javascript"] / "node_modules")
    succeeds([node, script], environment(installation), tmp_path)
