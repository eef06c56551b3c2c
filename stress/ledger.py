"""Runs inside an instance: a server that writes down what it did. Standard library only.

What it is asked to do is on the disk before it answers, so that a kill at any instant loses nothing that was answered.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BOOT = uuid.uuid4().hex
DONE = Path("done")
LOCK = threading.Lock()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"boot": BOOT, "done": DONE.read_text().split() if DONE.exists() else []})

    def do_POST(self) -> None:
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
