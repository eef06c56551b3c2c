"""A page of a function that is called by path, in a real browser: it shares its host name with the console."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote, Function, Sharing, Start
from tests.e2e.browser import Page, browser
from tests.e2e.installation import Installation

pytestmark = pytest.mark.e2e

SERVER = """
import http.server, os, pathlib
kinds = {"": "text/html", "app.css": "text/css", "app.js": "text/javascript", "pixel.png": "image/png"}
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path[1:]
        path = pathlib.Path(name or "index.html")
        body = path.read_bytes() if path.is_file() else b"{}"
        self.send_response(200)
        self.send_header("content-type", kinds.get(name, "application/json"))
        self.send_header("content-length", str(len(body)))
        self.send_header("set-cookie", "theirs=planted; Path=/")
        self.send_header("clear-site-data", '"cookies", "storage"' if name == "app.css" else '"none"')
        self.send_header("service-worker-allowed", "/")
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Answer).serve_forever()
"""
INDEX = "<!doctype html><link rel=stylesheet href=app.css><body><img src=pixel.png><script src=app.js></script>"
# Tries what a hostile page would, and leaves in `found` how each try went.
SCRIPT = """
const found = {}
const tried = async (name, act) => {
  try { found[name] = String(await act()) } catch (error) { found[name] = error.name }
}
const frame = () => new Promise((resolve) => {
  const made = document.createElement("iframe")
  made.src = "/"
  made.onload = () => resolve(made.contentDocument)
  document.body.append(made)
})
Promise.all([
  tried("cookie", () => document.cookie),
  tried("tab's storage", () => sessionStorage.getItem("key")),
  tried("storage", () => localStorage.getItem("key")),
  tried("database", () => indexedDB.open("x")),
  tried("worker", () => navigator.serviceWorker.register("app.js")),
  tried("api", async () => (await fetch("/v1/sessions", {credentials: "include"})).status),
  tried("own data", async () => (await fetch("data", {credentials: "include"})).status),
  tried("frame", frame),
]).then(() => { found.all = "tried" })
"""
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


@pytest.fixture
def hostile(dovecote: Dovecote, tmp_path: Path) -> Iterator[Function]:
    """Public, and of one instance that all visitors share."""
    for name, text in (("server.py", SERVER), ("index.html", INDEX), ("app.css", "body { color: rgb(1, 2, 3) }")):
        (tmp_path / name).write_text(text)
    (tmp_path / "app.js").write_text(SCRIPT)
    (tmp_path / "pixel.png").write_bytes(base64.b64decode(PIXEL))
    start, sharing = Start("exec python3 -u server.py", 8000), Sharing(sessions=50, instances=1)
    function = dovecote.functions.create("hostile", start=start, public=True, sharing=sharing)
    try:
        for _ in dovecote.functions.put_files("hostile", tmp_path):
            pass
        yield function
    finally:
        dovecote.functions.delete("hostile")


def slug(function: Function) -> str:
    assert function.public_address is not None
    return function.public_address.partition("//")[2].partition(".")[0]


def kept(page: Page) -> object:
    return page.ask("[document.cookie, sessionStorage.getItem('key'), localStorage.getItem('key')]")


def found_by(page: Page) -> dict[str, str]:
    page.until("typeof found !== 'undefined' && found.all === 'tried'")
    return dict(json.loads(page.ask("JSON.stringify(found)")))


def test_a_page_by_path_reaches_nothing_of_the_console(installation: Installation, hostile: Function) -> None:
    with browser() as page:
        page.open(f"{installation.url}/")
        page.ask("document.cookie = 'mine=secret; path=/'")
        page.ask("sessionStorage.setItem('key', 'secret'); localStorage.setItem('key', 'secret')")
        secrets = ["mine=secret", "secret", "secret"]
        assert kept(page) == secrets

        page.open(f"{installation.url}/fn/{slug(hostile)}/")
        found = found_by(page)
        assert page.ask("origin") == "null"
        closed = ("cookie", "tab's storage", "storage", "database", "worker")
        assert {name: found[name] for name in closed} == dict.fromkeys(closed, "SecurityError")
        assert (found["api"], found["own data"]) == ("TypeError", "TypeError")  # of another origin, and not allowed
        assert found["frame"] == "null"
        # What belongs to an ordinary page is there.
        assert page.ask("getComputedStyle(document.body).color") == "rgb(1, 2, 3)"
        assert page.ask("document.images[0].naturalWidth") == 1

        page.open(f"{installation.url}/")
        assert kept(page) == secrets  # neither read, nor cleared, nor added to


def test_the_same_page_at_the_functions_own_name_is_a_site_of_its_own(
    installation: Installation, hostile: Function
) -> None:
    with browser() as page:
        origin = f"http://{slug(hostile)}.fn.localhost:{installation.port}"
        page.open(f"{origin}/")
        found = found_by(page)
        assert page.ask("origin") == origin
        assert (found["own data"], found["storage"]) == ("200", "null")
        assert "theirs=planted" in page.ask("document.cookie")
