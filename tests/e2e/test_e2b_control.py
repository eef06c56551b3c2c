"""Sandboxes, templates and volumes by unmodified clients of E2B, given the variables that `dovecote env e2b` prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

CHECKS = Path(__file__).parent / "clients"
WITHIN = 280.0  # seconds


@pytest.fixture(scope="module")
def pythons() -> Mapping[str, str]:
    """Interpreters of the clients, by name, installed unless they were."""
    command = [str(CHECKS / "install.sh"), str(Path(sys.executable).parent / "uv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("version", ["2.45", "2.63"])
@pytest.mark.parametrize("checks", ["sandboxes", "templates"])
def test_python(installation: Installation, pythons: Mapping[str, str], version: str, checks: str) -> None:
    printed = installation.command("env", "e2b").stdout
    variables = dict(re.findall(r"^export (\w+)='?([^'\n]*)'?$", printed, re.MULTILINE))
    command = [pythons[f"python-{version}"], "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    command += ["-c", os.devnull, "--rootdir", str(CHECKS), "--confcutdir", str(CHECKS), "-o", "asyncio_mode=auto"]
    done = subprocess.run(
        [*command, str(CHECKS / f"check_{checks}.py")],
        env={"PATH": os.environ["PATH"], "HOME": "/root", "PYTHONDONTWRITEBYTECODE": "1", **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
