"""Those who call a session, and what they may conclude from its answers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import httpx

PATIENCE = 90.0  # seconds for one answer: a kill may come while it waits, and another while that is mended
MOST_INSIDE = 4  # requests, in a shared instance
REFUSED = (429, 500, 502, 503, 504)  # what a kill may cost a caller


@dataclass
class Life:
    """One session: `boots` are the processes that answered, in the order in which they were first seen.

    `lasts` says that what it did outlives its instance. `peers` are the sessions that may be in the same one.
    """

    user: str
    key: str
    lasts: bool = True
    peers: frozenset[str] = frozenset()
    repeated: set[str] = field(default_factory=set)  # work that may be done more than once
    boots: list[str] = field(default_factory=list)
    answered: dict[str, str] = field(default_factory=dict)  # work whose answer came, and who did it
    done_by: dict[str, str] = field(default_factory=dict)  # work that was seen to be done
    unsure: set[str] = field(default_factory=set)  # work that failed: it may have been done
    refused: Counter[int] = field(default_factory=Counter)
    requests: int = 0
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def name(self) -> str:
        return f"{self.user}/{self.key}"

    def seen(self, boot: str, newest_before: str | None) -> None:
        """`newest_before` answered before this request was sent: nothing older than it may answer now."""
        with self.lock:
            self.requests += 1
            if boot not in self.boots:
                self.boots.append(boot)
            elif newest_before is not None and self.boots.index(boot) < self.boots.index(newest_before):
                self.faults.append(f"{self.name} was answered by an instance that another one had replaced")

    @property
    def newest(self) -> str | None:
        with self.lock:
            return self.boots[-1] if self.boots else None


class Caller:
    """Calls one session in a thread of its own until it is told to stop."""

    def __init__(self, life: Life, client: httpx.Client, chance: Random) -> None:
        self._life = life
        self._chance = chance
        self._client = client
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(PATIENCE + 10)
        assert not self._thread.is_alive(), "a caller never came back"

    def _call(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            try:
                if self._chance.random() < 0.5:
                    self._work(f"{self._life.name}:{self._chance.getrandbits(64):x}:{number}")
                else:
                    self._look()
            except Exception as error:  # a caller that ends early would hide what comes later
                self._life.faults.append(f"{self._life.name}: {type(error).__name__}: {error}")
            # Long enough at times for the session to be frozen.
            self._over.wait(self._chance.choice((0.0, 0.01, 0.05, 0.2, 4.0)))

    def _work(self, work: str) -> None:
        before = self._life.newest
        try:
            answer = self._client.post("/", content=work)
        except httpx.HTTPError:
            self._life.unsure.add(work)
            self._life.refused[0] += 1
            return
        if answer.status_code == 200:
            self._life.answered[work] = answer.json()["boot"]
            self._life.seen(answer.json()["boot"], before)
        else:
            self._life.unsure.add(work)
            self._refused(answer)

    def _look(self) -> None:
        before = self._life.newest
        known = dict(self._life.answered)
        try:
            answer = self._client.get("/")
        except httpx.HTTPError:
            self._life.refused[0] += 1
            return
        if answer.status_code != 200:
            self._refused(answer)
            return
        body = answer.json()
        self._life.seen(body["boot"], before)
        judge(self._life, body["done"], known, body["boot"])
        if body["most"] > MOST_INSIDE and not self._life.lasts:
            self._life.faults.append(f"{body['most']} requests were inside at once")

    def _refused(self, answer: httpx.Response) -> None:
        self._life.refused[answer.status_code] += 1
        if answer.status_code not in REFUSED or "error" not in answer.json():
            self._life.faults.append(f"{self._life.name} was told {answer.status_code}: {answer.text[:200]}")


def judge(life: Life, done: list[str], known: dict[str, str], boot: str) -> None:
    """What the session's instance says that it did: all that was answered, nothing twice, nothing of anybody else.

    `known` is what had been answered before it was asked, and by whom.
    """
    mine = [work for work in done if work.startswith(life.name + ":")]
    twice = [work for work, times in Counter(done).items() if times > 1 and work not in life.repeated]
    foreign = [work for work in done if work.partition(":")[0] not in {life.name, *life.peers}]
    lost = {work for work, by in known.items() if life.lasts or by == boot} - set(mine)
    if not life.lasts:
        with life.lock:
            twice += [work for work in mine if life.done_by.setdefault(work, boot) != boot]
    for what, works in (("was done twice", twice), ("is somebody else's", foreign), ("is lost", sorted(lost))):
        life.faults += [f"{life.name}: {work} {what}" for work in works[:3]]


def final(life: Life, client: httpx.Client) -> None:
    """Asks once more, when nothing is killed any more."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            answer = client.get("/")
        except httpx.HTTPError as error:  # the last kill may have cut off this one too
            told = f"{type(error).__name__}: {error}"
        else:
            if answer.status_code == 200:
                judge(life, answer.json()["done"], dict(life.answered), answer.json()["boot"])
                return
            told = f"{answer.status_code} {answer.text[:200]}"
        if time.monotonic() > deadline:
            life.faults.append(f"{life.name} does not come back: {told}")
            return
        time.sleep(0.5)
