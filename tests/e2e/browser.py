"""A headless Chromium, driven by its own protocol: what a page shows, and what a person does with it."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

WITHIN = 60.0  # seconds
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--remote-debugging-port=0", "--window-size=1100,700", "--disable-background-networking"),
]


class Page:
    """One page. `problems` are what the browser complained about: scripts that failed, what a policy refused."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._last = 0
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WITHIN))
            if message.get("id") == self._last:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(message["params"]["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.problems.append(message["params"]["entry"]["text"])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def ask(self, script: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Until that is true of the page."""
        deadline = time.monotonic() + WITHIN
        while not self.ask(script):
            assert time.monotonic() < deadline, (
                f"never: {script}; the page says {self.ask('document.body.innerText')!r}"
            )
            time.sleep(0.05)

    def type(self, text: str) -> None:
        for key in text:
            if key == "\r":
                code = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
                self.call("Input.dispatchKeyEvent", type="keyDown", **code)
                self.call("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter")
            else:
                self.call("Input.insertText", text=key)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser() -> Iterator[Page]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no Chromium: `deploy/install.sh test` installs it where the system has a package of it")
    with tempfile.TemporaryDirectory(prefix="dovecote-browser-") as profile:
        log = Path(profile) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [program, *FLAGS, f"--user-data-dir={profile}/data", "about:blank"], stdout=out, stderr=out
            )
        try:
            with connect(_address(process, log), max_size=64 << 20, proxy=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Of its first page's protocol."""
    deadline = time.monotonic() + WITHIN
    while True:
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        found = re.search(r"ws://(127\.0\.0\.1:\d+)/", log.read_text(errors="replace"))
        if found:
            pages = [each for each in httpx.get(f"http://{found[1]}/json/list").json() if each["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
