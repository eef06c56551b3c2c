"""The page about functions: its files are deployed and its commands run, as they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote, NotFound
from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs/how-to/functions.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```(?:python|toml) (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [
    shlex.split(line) for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]


@pytest.fixture
def directory(tmp_path: Path, dovecote: Dovecote) -> Iterator[Path]:
    (tmp_path / "server.py").write_text(BLOCKS["server.py"])
    yield tmp_path
    try:
        dovecote.functions.delete("counter")
    except NotFound:
        return


def run(installation: Installation, command: list[str], directory: Path) -> str:
    environ = {**installation.environ, "DOVECOTE_URL": installation.url, "DOVECOTE_API_KEY": installation.api_key}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def test_every_command_of_the_page_does_what_the_text_says(installation: Installation, directory: Path) -> None:
    assert all(command[0] == "dovecote" for command in COMMANDS)
    deploy, *calls, share, revisions, back, remove = [
        run(installation, [sys.executable, "-m", "dovecote.cli", *command[1:]], directory) for command in COMMANDS
    ]
    assert f"http://counter.fn.localhost:{installation.port}" in deploy
    assert calls == ["hello, call 1\n", "hello, call 2\n", "hello, call 1\n"]
    assert "counter" in share
    assert [line.split("\t")[0] for line in revisions.splitlines()] == ["number", "4", "3", "2", "1"]
    assert "revision 2" in back
    assert remove == ""


def test_the_file_of_options_is_enough(installation: Installation, directory: Path) -> None:
    (directory / "dovecote.toml").write_text(BLOCKS["dovecote.toml"])
    cli = [sys.executable, "-m", "dovecote.cli", "function"]
    run(installation, [*cli, "deploy", "."], directory)
    assert run(installation, [*cli, "call", "counter", "--session", "eve"], directory) == "good day, call 1\n"


def test_the_program_runs(installation: Installation, directory: Path) -> None:
    run(installation, [sys.executable, "-W", "error", "-c", BLOCKS["program"]], directory)
