"""The page about the SDK: each of its examples is run as it stands, and finds nothing wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dovecote.sdk import AsyncSandbox, Dovecote, NotFound, Sandbox
from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "use-the-python-sdk.md"
EXAMPLES = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def environ(installation: Installation) -> dict[str, str]:
    return {**installation.environ, "DOVECOTE_URL": installation.url, "DOVECOTE_API_KEY": installation.api_key}


def test_every_section_has_an_example() -> None:
    text = PAGE.read_text("utf-8")
    assert len(EXAMPLES) == text.count("```python") == text.count("\n## ") > 8


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_runs(installation: Installation, dovecote: Dovecote, title: str, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environ(installation),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), title


def test_examples_leave_nothing_behind(dovecote: Dovecote) -> None:
    assert dovecote.sessions.list(metadata={"chat": "c7"}) == []


def test_a_sandbox_that_was_found_stays(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        with Sandbox.find(session.id, api_key=installation.api_key, url=installation.url) as found:
            assert found.run("echo hi").stdout == "hi\n"
        assert session.refresh().state == "ready"
    with pytest.raises(NotFound):
        Sandbox.find("ses_" + "a" * 26, api_key=installation.api_key, url=installation.url)


@pytest.mark.anyio
async def test_a_sandbox_for_asyncio_ends_with_its_block(installation: Installation, dovecote: Dovecote) -> None:
    async with (
        await AsyncSandbox.create(api_key=installation.api_key, url=installation.url) as sandbox,
        sandbox.terminal("read word; echo got-$word") as terminal,
    ):
        await terminal.write("it\n")
        assert b"got-it" in b"".join([piece async for piece in terminal.output()])
    assert dovecote.sessions.get(sandbox.id).state == "ended"
