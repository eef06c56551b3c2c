"""Those who keep a stream or a WebSocket open to a session, and come back when it is cut."""

from __future__ import annotations

import socket
import threading
from abc import ABC, abstractmethod
from urllib.parse import urlsplit

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from stress.callers import PATIENCE, Life

PAUSE = 0.5  # seconds until it comes back
SILENCE = 30.0  # seconds after which a stream is left


class Follower(ABC):
    """One open connection to a session after the other. As long as one is open, one process is behind it."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.opened = self.heard = 0

    def begin(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(PATIENCE + SILENCE)
        assert not self._thread.is_alive(), "a follower never came back"

    def _follow(self) -> None:
        while not self._over.is_set():
            try:
                self._open(self._life.newest)
            except (httpx.HTTPError, WebSocketException, OSError, TimeoutError):
                pass  # cut off, or refused while something is down
            except Exception as error:  # one that ends early would hide what comes later
                self._life.faults.append(f"{self._life.name}: {type(error).__name__}: {error}")
            self._over.wait(PAUSE)

    @abstractmethod
    def _open(self, before: str | None) -> None:
        """Until it ends. `before` had answered before it began."""

    def _hears(self, boot: str, first: str | None, before: str | None) -> str:
        self.heard += 1
        if first is None:
            self.opened += 1
            self._life.seen(boot, before)
        elif boot != first:
            self._life.faults.append(f"{self._life.name}: an open stream went over to another instance")
        return boot


class Listener(Follower):
    """Of server-sent events."""

    def __init__(self, life: Life, client: httpx.Client) -> None:
        super().__init__(life)
        self._client = client

    def _open(self, before: str | None) -> None:
        first = None
        with self._client.stream("GET", "/events", timeout=SILENCE) as stream:
            if stream.status_code != 200:
                return
            for line in stream.iter_lines():
                if line:
                    first = self._hears(line.removeprefix("data: "), first, before)
                if self._over.is_set():
                    return


class Talker(Follower):
    """Over a WebSocket; each word comes back."""

    def __init__(self, life: Life, url: str, headers: dict[str, str]) -> None:
        super().__init__(life)
        self._url, self._headers = url, headers

    def _open(self, before: str | None) -> None:
        there = urlsplit(self._url)
        raw = socket.create_connection((there.hostname, there.port), timeout=10)
        headers = {name: value for name, value in self._headers.items() if name != "host"}
        first = None
        with connect(
            f"ws://{self._headers['host']}/", sock=raw, additional_headers=headers, open_timeout=PATIENCE
        ) as talk:
            while not self._over.wait(0.2):
                word = f"w{self.heard}"
                talk.send(word)
                boot, _, said = str(talk.recv(timeout=SILENCE)).partition(" ")
                if said != word:
                    self._life.faults.append(f"{self._life.name}: said {word} and heard {said}")
                first = self._hears(boot, first, before)
