"""The tutorial works as it is written."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parents[2] / "docs/tutorial/first-session.md"


def test_every_block_of_the_tutorial_runs_and_says_what_the_text_says(installation: Installation) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        env=installation.environ | {"DOVECOTE_URL": installation.url, "DOVECOTE_API_KEY": installation.api_key},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.startswith("hello from sandbox\n")
    assert said.count("Pigeons, all of them home") == 4
    assert "parked\n" in said
    assert "ready\n" in said


def test_the_shell_blocks_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (PAGE.parents[2] / "Makefile").read_text(), re.MULTILINE))
    wanted = re.findall(r"```sh\nmake ([a-z-]+)\n```", PAGE.read_text())
    assert wanted
    assert set(wanted) <= targets
