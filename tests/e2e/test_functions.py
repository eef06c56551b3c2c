"""Functions with a server of the user's own: deployed from a directory, changed, gone back, called in sessions."""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from dovecote.sdk import Conflict, Dovecote, DovecoteError, NotFound, Printed, Revision, Start
from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

SERVER = """
import http.server, os, pathlib, uuid
me = uuid.uuid4().hex
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        there = sorted(p.name for p in pathlib.Path(".").iterdir() if not p.name.startswith("."))
        said = {"/me": me, "/files": " ".join(there), "/env": os.environ.get("COLOUR", "")}
        path = pathlib.Path("." + self.path)
        text = said.get(self.path) or (path.read_text() if path.is_file() else "hello")
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Answer).serve_forever()
"""
START = Start("exec python3 -u server.py", 8000)
# A game of one room a process: whoever joins is counted, what one says all hear. RFC 6455 by hand, no package.
GAME = """
import asyncio, base64, hashlib, os, struct, uuid
me, players = uuid.uuid4().hex, set()
def frame(text):
    data = text.encode()
    return bytes([0x81, len(data)]) + data
async def play(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\\r\\n")[1:] if ": " in line)
    fields = {name.lower(): value for name, value in fields.items()}
    if "sec-websocket-key" not in fields:
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\nconnection: close\\r\\n\\r\\nok")
        writer.close()
        return
    told = fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(told.encode()).digest()).decode()
    writer.write(("HTTP/1.1 101 Switching Protocols\\r\\nupgrade: websocket\\r\\nconnection: Upgrade\\r\\n"
        f"sec-websocket-accept: {accept}\\r\\n\\r\\n").encode())
    players.add(writer)
    writer.write(frame(f"{me} {len(players)}"))
    try:
        while True:
            kind, size = await reader.readexactly(2)
            mask, data = await reader.readexactly(4), await reader.readexactly(size & 0x7F)
            if kind & 0x0F == 8:
                break
            text = bytes(b ^ mask[i % 4] for i, b in enumerate(data)).decode()
            for each in players:
                each.write(frame(text))
    finally:
        players.discard(writer)
        writer.close()
async def main():
    async with await asyncio.start_server(play, "0.0.0.0", int(os.environ["PORT"])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "shop"
    directory.mkdir()
    (directory / "server.py").write_text(SERVER)
    (directory / "page").write_text("first")
    return directory


@pytest.fixture
def shop(dovecote: Dovecote, project: Path) -> Iterator[str]:
    dovecote.functions.create("shop", start=START)
    try:
        put(dovecote, project)
        yield "shop"
    finally:
        dovecote.functions.delete("shop")


def put(dovecote: Dovecote, directory: Path, **more: str) -> Revision:
    *_, made = dovecote.functions.put_files("shop", directory, **more)  # type: ignore[arg-type]
    assert isinstance(made, Revision)
    return made


def said(dovecote: Dovecote, path: str, session: str) -> str:
    answer = dovecote.functions.call("shop", path, session=session)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_new_files_are_for_new_sessions_and_the_old_ones_come_back(
    dovecote: Dovecote, project: Path, shop: str
) -> None:
    assert said(dovecote, "/page", "one") == "first"
    (project / "page").rename(project / "other")
    (project / "sub").mkdir()
    (project / "sub" / "deep").write_text("deep")
    made = put(dovecote, project)
    assert (made.number, made.is_current) == (3, True)
    assert said(dovecote, "/files", "two") == "other server.py sub"
    assert said(dovecote, "/sub/deep", "two") == "deep"
    assert said(dovecote, "/files", "one") == "page server.py"
    dovecote.functions.rollback(shop, 2)
    assert said(dovecote, "/files", "three") == "page server.py"


def test_more_than_one_piece_of_files_arrives_whole(dovecote: Dovecote, project: Path, shop: str) -> None:
    for number in range(3):
        (project / f"large-{number}").write_bytes(random.Random(number).randbytes(2_500_000))
    put(dovecote, project)
    with dovecote.sessions.create(function=shop) as session:
        for number in range(3):
            there = session.files.read(f"large-{number}")
            assert hashlib.sha256(there).digest() == hashlib.sha256((project / f"large-{number}").read_bytes()).digest()


def test_a_build_runs_inside_in_the_files_with_the_functions_variables(
    dovecote: Dovecote, project: Path, shop: str
) -> None:
    dovecote.functions.update(shop, env={"COLOUR": "green"})
    events = list(dovecote.functions.put_files(shop, project, build="echo building-$COLOUR; id -un > built"))
    assert any(isinstance(each, Printed) and "building-green" in each.text for each in events)
    assert said(dovecote, "/built", "b") == "user\n"
    assert said(dovecote, "/env", "b") == "green"
    with pytest.raises(DovecoteError) as caught:
        put(dovecote, project, build="echo no; exit 3")
    assert caught.value.code == "build_failed"
    assert len(dovecote.functions.revisions(shop)) == 4


def test_files_that_are_not_current_wait_for_a_change_that_names_them(
    dovecote: Dovecote, project: Path, shop: str
) -> None:
    (project / "page").write_text("second")
    *_, made = dovecote.functions.put_files(shop, project, current=False)
    assert isinstance(made, Revision)
    assert not made.is_current
    assert said(dovecote, "/page", "before") == "first"
    changed = dovecote.functions.update(shop, files=made.number, env={"COLOUR": "red"})
    assert changed.revision.template_digest == made.template_digest
    assert (said(dovecote, "/page", "after"), said(dovecote, "/env", "after")) == ("second", "red")


def archive_with(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, link
        archive.addfile(member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        archive_with("../outside"),
        archive_with("/etc/outside"),
        archive_with("a/../../outside"),
        archive_with("device", tarfile.CHRTYPE),
        archive_with("hard", tarfile.LNKTYPE, "/etc/passwd"),
        b"PK\x03\x04 and no more",
        b"neither a tar nor a zip",
    ],
    ids=["up", "absolute", "through", "device", "hard-link", "broken-zip", "neither"],
)
def test_an_archive_that_leads_out_is_refused(installation: Installation, shop: str, body: bytes) -> None:
    answer = httpx.put(
        f"{installation.url}/v1/functions/{shop}/files",
        content=body,
        headers={"authorization": f"Bearer {installation.api_key}"},
        timeout=30,
    )
    assert "bad_context" in answer.text, answer.text
    with installation.client() as dovecote:
        assert len(dovecote.functions.revisions(shop)) == 2


def test_a_zip_does_too_with_modes_and_a_link_that_stays_inside(
    installation: Installation, dovecote: Dovecote, shop: str
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("server.py", SERVER)
        archive.writestr("sub/page", "zipped")
        link = zipfile.ZipInfo("here")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "sub/page")
    answer = httpx.put(
        f"{installation.url}/v1/functions/{shop}/files",
        content=buffer.getvalue(),
        headers={"authorization": f"Bearer {installation.api_key}"},
        timeout=60,
    )
    assert '"ready"' in answer.text, answer.text
    assert said(dovecote, "/here", "zip") == "zipped"


def test_removing_a_function_ends_what_runs_it(dovecote: Dovecote, project: Path) -> None:
    dovecote.functions.create("shop", start=START)
    put(dovecote, project)
    said(dovecote, "/me", "gone")
    (session,) = dovecote.sessions.list(function="shop")
    dovecote.functions.delete("shop")
    assert session.refresh().state == "ended"
    with pytest.raises(NotFound):
        dovecote.functions.call("shop")
    with pytest.raises(Conflict):
        dovecote.functions.delete("sandbox")


def test_deploying_by_the_command_line(installation: Installation, dovecote: Dovecote, project: Path) -> None:
    (project / ".dovecoteignore").write_text("*.log\nsecrets/\n!keep.log\n")
    for name in ("a.log", "keep.log", "secrets/key"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(name)
    (project / "dovecote.toml").write_text(
        'name = "shop"\nstart = "exec python3 -u server.py"\nport = 8000\n[env]\nCOLOUR = "blue"\n'
    )
    try:
        out = cli(installation, "function", "deploy", str(project), "--affinity", "header,cookie", "--public")
        function = dovecote.functions.get("shop")
        assert function.address in out
        assert function.public_address is not None
        assert function.public_address in out
        assert function.path_address in out
        assert function.affinity.modes == ["header", "cookie"]
        called = cli(installation, "function", "call", "shop", "/files", "--session", "s")
        assert called == "dovecote.toml keep.log page server.py"
        assert cli(installation, "function", "call", "shop", "/env", "--session", "s") == "blue"
        cli(installation, "function", "update", "shop", "--env", "COLOUR=red")
        assert cli(installation, "function", "call", "shop", "/env", "--session", "t") == "red"
        cli(installation, "function", "rollback", "shop", str(function.revision.number))
        assert cli(installation, "function", "call", "shop", "/env", "--session", "u") == "blue"
        assert "shop" in cli(installation, "function", "ls")
        assert '"COLOUR"' in cli(installation, "function", "show", "shop")
        # The session that looked whether it answers has ended.
        assert [each.key for each in dovecote.sessions.list(function="shop")] == ["s", "t", "u"]
    finally:
        cli(installation, "function", "rm", "shop")


@pytest.mark.parametrize("modes", ["header", "cookie", "none"])
def test_looking_whether_a_deployment_answers_leaves_no_session(
    installation: Installation, dovecote: Dovecote, project: Path, modes: str
) -> None:
    words = ("--name", "looked", "--start", "exec python3 -u server.py", "--port", "8000", "--affinity", modes)
    try:
        cli(installation, "function", "deploy", str(project), *words)
        assert dovecote.sessions.list(function="looked") == []
    finally:
        dovecote.functions.delete("looked")


def test_a_deployment_whose_server_does_not_start_says_its_last_words(
    installation: Installation, dovecote: Dovecote, project: Path
) -> None:
    arguments = ("function", "deploy", str(project), "-n", "broken", "--start", "echo no-luck; exit 4", "--port", "80")
    try:
        done = run_cli(installation, *arguments)
        assert done.returncode == 1
        assert "sending files" in done.stderr
        assert "start_failed" in done.stderr
        assert "no-luck" in done.stderr
    finally:
        dovecote.functions.delete("broken")


def cli(installation: Installation, *arguments: str) -> str:
    done = run_cli(installation, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_cli(installation: Installation, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dovecote.cli", *arguments],
        env={**installation.environ, "DOVECOTE_URL": installation.url, "DOVECOTE_API_KEY": installation.api_key},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.anyio
async def test_a_game_over_websocket_has_a_room_for_each_session_on_an_instance_of_its_own(
    installation: Installation, dovecote: Dovecote, tmp_path: Path
) -> None:
    (tmp_path / "game.py").write_text(GAME)
    function = dovecote.functions.create("game", start=Start("exec python3 -u game.py", 9000), affinity_header="x-room")
    try:
        list(dovecote.functions.put_files("game", tmp_path))
        host = function.address.removeprefix("http://")
        rooms: dict[str, set[str]] = {}
        async with asyncio.timeout(60):
            for room in ("red", "green", "blue"):
                headers = {"x-dovecote-key": installation.api_key, "x-room": room}

                def join(headers: dict[str, str] = headers) -> connect:
                    url, port = f"ws://{host}/play", installation.port
                    return connect(
                        url, additional_headers=headers, host="127.0.0.1", port=port, proxy=None, open_timeout=30
                    )

                async with join() as one, join() as two:
                    first, second = str(await one.recv()).split(), str(await two.recv()).split()
                    assert (first[1], second[1]) == ("1", "2")
                    rooms[room] = {first[0], second[0]}
                    await one.send("hello " + room)
                    assert await two.recv() == "hello " + room
        assert [len(each) for each in rooms.values()] == [1, 1, 1]
        assert len(set.union(*rooms.values())) == 3
    finally:
        dovecote.functions.delete("game")
