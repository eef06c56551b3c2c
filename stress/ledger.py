"""Runs inside an instance: a server that writes down what it did. Standard library only.

What it is asked to do is on the disk before it answers, so that a kill at any instant loses nothing that was answered.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BOOT = uuid.uuid4().hex
DONE = Path("done")
LOCK = threading.Lock()
INSIDE, MOST = [0], [0]  # requests now, and at most


@contextmanager
def inside() -> Iterator[None]:
    with LOCK:
        INSIDE[0] += 1
        MOST[0] = max(MOST[0], INSIDE[0])
    try:
        yield
    finally:
        with LOCK:
            INSIDE[0] -= 1


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.headers.get("upgrade") == "websocket":
            return self.echo()
        if self.path == "/events":
            return self.stream()
        with inside():
            self.answer({"boot": BOOT, "most": MOST[0], "done": DONE.read_text().split() if DONE.exists() else []})

    def stream(self) -> None:
        """Says who it is, for as long as somebody listens."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(f"data: {BOOT}\n\n".encode())
                time.sleep(0.2)

    def echo(self) -> None:
        """A WebSocket: each short text comes back with who it is."""
        told = self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("upgrade", "websocket")
        self.send_header("connection", "upgrade")
        self.send_header("sec-websocket-accept", b64encode(sha1(told.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            while len(head := self.rfile.read(6)) == 6 and head[0] == 0x81:
                masked = self.rfile.read(head[1] & 0x7F)
                text = bytes(byte ^ head[2 + at % 4] for at, byte in enumerate(masked))
                answer = BOOT.encode() + b" " + text
                self.wfile.write(bytes([0x81, len(answer)]) + answer)

    def do_POST(self) -> None:
        with inside():
            self.work()

    def work(self) -> None:
        work = self.rfile.read(int(self.headers["content-length"])).decode()
        with LOCK, DONE.open("a") as done:
            done.write(work + "\n")
            done.flush()
            os.fsync(done.fileno())
        self.answer({"boot": BOOT})

    def answer(self, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


if __name__ == "__main__":
    Server(("0.0.0.0", int(os.environ["PORT"])), Answer).serve_forever()
