"""Ways to a sandbox's ports by E2B's wire: names, headers, and what is left after a restart."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tests.e2e.installation import Installation, running, until
from tests.e2e.test_e2b_clients import WITHIN, clients, environment

__all__ = ["clients"]

pytestmark = pytest.mark.e2e

SERVER = "cd /tmp && echo from inside > page && python3 -m http.server 3000 --bind 0.0.0.0"
BEGIN = f"""
import json
from e2b import Sandbox
sandbox = Sandbox.create(timeout=600)
waiting = sandbox.commands.run("echo before; until [ -e /tmp/go ]; do sleep 0.1; done; echo after", background=True)
terminal = sandbox.pty.create(__import__("e2b").PtySize(rows=24, cols=80))
sandbox.commands.run({SERVER!r}, background=True, timeout=0)
print(json.dumps([sandbox.sandbox_id, sandbox._envd_access_token, waiting.pid, terminal.pid]))
"""
GO_ON = """
import json, sys
from e2b import Sandbox
name, _, waiting, terminal = json.loads(sys.argv[1])
sandbox = Sandbox.connect(name)
listed = {each.pid: each for each in sandbox.commands.list()}
assert listed[waiting].cmd == "/bin/bash", listed[waiting]
assert listed[waiting].args[:2] == ["-l", "-c"], listed[waiting]
handle = sandbox.commands.connect(waiting)
sandbox.files.write("/tmp/go", "")
assert handle.wait().stdout == "before\\nafter\\n"
again = sandbox.pty.connect(terminal)
sandbox.pty.send_stdin(terminal, b"echo still-$((1+1)); exit\\n")
seen = []
again.wait(on_pty=seen.append)
assert b"still-2" in b"".join(seen), seen
"""

Begun = tuple[str, str, int, int]


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    with running(quiet_after=30, tick=0.2, start_timeout=15) as there:
        yield there


def run(python: Path, script: str, own: Installation, *arguments: str) -> str:
    done = subprocess.run(
        [str(python), "-c", script, *arguments],
        env=environment(own),
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def begun(clients: Mapping[str, Path], own: Installation) -> str:
    return run(clients["python-2.63"], BEGIN, own).strip()


def test_a_restart_of_dovecote_loses_neither_commands_nor_terminals(
    clients: Mapping[str, Path], own: Installation, begun: str
) -> None:
    own.kill()
    own.start()
    run(clients["python-2.63"], GO_ON, own, begun)


def test_a_sandbox_is_reached_by_its_name_and_by_headers(own: Installation, begun: str) -> None:
    name, token, *_ = json.loads(begun)
    by_name = {"host": f"49983-{name}.box.localhost:{own.port}"}
    by_headers = {"e2b-sandbox-id": name, "e2b-sandbox-port": "49983"}
    with httpx.Client(base_url=own.url, timeout=30) as web:
        for way in (by_name, by_headers):
            assert web.get("/health", headers=way).status_code == 204
            assert web.get("/files?path=/tmp/page", headers=way).status_code == 401
            answer = web.get("/files?path=/tmp/page", headers={**way, "x-access-token": token})
            assert (answer.status_code, answer.text) == (200, "from inside\n")
            sent = web.post(
                "/files?path=/tmp/sent",
                headers={**way, "x-access-token": token, "content-type": "application/octet-stream"},
                content=bytes(3_000_000),
            )
            assert sent.json() == [{"name": "sent", "path": "/tmp/sent", "type": "file"}]
            measured = until(lambda way=way: _metrics(web, {**way, "x-access-token": token}), "it was measured")  # type: ignore[misc]
            assert 0 < measured["mem_used"] < measured["mem_total"]


def _metrics(web: httpx.Client, headers: dict[str, str]) -> dict[str, int] | None:
    answer = web.get("/metrics", headers=headers)
    return answer.json() if answer.status_code == 200 else None


def test_headers_name_any_other_port_of_a_sandbox_too(own: Installation, begun: str) -> None:
    name, *_ = json.loads(begun)
    with httpx.Client(base_url=own.url, timeout=30) as web:
        for way in ({"e2b-sandbox-id": name, "e2b-sandbox-port": "3000"}, {"host": f"3000-{name}.box.localhost"}):
            answer = web.get("/page", headers=way)
            assert (answer.status_code, answer.text) == (200, "from inside\n")
        closed = web.get("/page", headers={"e2b-sandbox-id": name, "e2b-sandbox-port": "3001"})
        assert (closed.status_code, closed.json()["error"]["code"]) == (502, "port_closed")


def test_a_frame_that_lies_costs_only_its_own_request(own: Installation, begun: str) -> None:
    name, token, *_ = json.loads(begun)
    headers = {"e2b-sandbox-id": name, "e2b-sandbox-port": "49983", "x-access-token": token}
    with httpx.Client(base_url=own.url, timeout=30) as web:
        for body in (
            b"\0\xff\xff\xff\xffx",
            b"\0\0\0\0\2{}extra",
            b"\7\0\0\0\2{}",
            b"\0\0\0\0\5{}",
            b"",
            b"\0\0\0\0\2[]",
        ):
            answer = web.post(
                "/process.Process/Start", headers={**headers, "content-type": "application/connect+json"}, content=body
            )
            assert answer.status_code == 200
            assert answer.content[0] == 2
            assert json.loads(answer.content[5:])["error"]["code"] == "invalid_argument"
        listed = web.post("/process.Process/List", headers=headers, json={})
        assert listed.status_code == 200
        assert web.post("/process.Process/List", headers=headers, content=b"{").status_code == 400
        nowhere = web.post("/process.Process/Nothing", headers=headers, json={})
        assert (nowhere.status_code, nowhere.json()["code"]) == (501, "unimplemented")
