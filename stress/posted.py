"""Those who call a session and wait for nothing, and what must have become of each call."""

from __future__ import annotations

import threading
import time
from collections import Counter
from random import Random

import httpx

from dovecote.sdk import Dovecote, DovecoteError
from stress.callers import PATIENCE, Life

FINAL = ("succeeded", "failed", "expired", "cancelled")
SETTLES_WITHIN = 240.0  # seconds: a lease of a call that was cut off has to run out


class Poster:
    """`is_repeated` says that its function's calls are tried again. `accepted` are works by invocation."""

    def __init__(self, life: Life, client: httpx.Client, chance: Random, *, is_repeated: bool) -> None:
        self.life = life
        self.is_repeated = is_repeated
        self.accepted: dict[str, str] = {}
        self._client = client
        self._chance = chance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._post, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(PATIENCE + 10)
        assert not self._thread.is_alive(), "a poster never came back"

    def _post(self) -> None:
        number = 0
        while not self._over.wait(self._chance.choice((0.2, 0.5, 2.0))):
            number += 1
            work = f"{self.life.name}:{self._chance.getrandbits(64):x}:{number}"
            if self.is_repeated:
                self.life.repeated.add(work)
            try:
                answer = self._client.post("/", content=work, headers={"x-dovecote-invoke": "async"})
            except httpx.HTTPError:
                self.life.unsure.add(work)
                self.life.refused[0] += 1
                continue
            if answer.status_code == 202:
                self.accepted[answer.json()["id"]] = work
            else:
                self.life.unsure.add(work)
                self.life.refused[answer.status_code] += 1

    def settle(self, dovecote: Dovecote) -> Counter[str]:
        """When nothing is killed any more: how the calls ended, held against what the session says that it did."""
        deadline = time.monotonic() + SETTLES_WITHIN
        states = self._states(dovecote)
        while any(state not in FINAL for state in states.values()) and time.monotonic() < deadline:
            time.sleep(1)
            states = self._states(dovecote)
        answer = self._client.get("/", timeout=PATIENCE)
        answer.raise_for_status()
        self._judge(states, Counter(answer.json()["done"]))
        return Counter(states.values())

    def _states(self, dovecote: Dovecote) -> dict[str, str]:
        states = {}
        for invocation_id in self.accepted:
            try:
                states[invocation_id] = dovecote.invocations.get(invocation_id).state
            except DovecoteError as error:
                states[invocation_id] = f"{error.code}"
        return states

    def _judge(self, states: dict[str, str], done: Counter[str]) -> None:
        name = self.life.name
        for invocation_id, work in self.accepted.items():
            state, times = states[invocation_id], done[work]
            if state not in FINAL:
                self.life.faults.append(f"{name}: the call of {work} is {state} in the end")
            if state == "succeeded" and not times:
                self.life.faults.append(f"{name}: {work} succeeded and was not done")
            if times > 1 and not self.is_repeated:
                self.life.faults.append(f"{name}: {work} was done {times} times, and is not to be repeated")
        for work in done:
            if not work.startswith(name + ":"):
                self.life.faults.append(f"{name}: {work} is somebody else's")
