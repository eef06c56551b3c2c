"""All who call at once: sessions of each kind, in every way that a session is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import httpx

from dovecote.sdk import Affinity, Function, Invoking, Sharing, Start
from stress.callers import MOST_INSIDE, PATIENCE, Caller, Life, final
from stress.posted import Poster
from stress.streams import Follower, Listener, Talker
from stress.tools import ToolUser, deploy
from stress.world import World

PORT = 8000
CALLERS = 2  # of each session
TOOL_USERS = 2  # of each transport
COOKIE, ONCE, AGAIN, SHARED = "cookie", "once", "again", "shared"
# Sessions of their own by header are in all but two; ONCE and AGAIN are called asynchronously too.
FUNCTIONS = {
    "own": (Affinity(), Sharing(), Invoking()),
    SHARED: (Affinity(), Sharing(sessions=3, requests=MOST_INSIDE), Invoking()),
    COOKIE: (Affinity(["cookie"]), Sharing(), Invoking()),
    ONCE: (Affinity(), Sharing(), Invoking(retries=0)),
    AGAIN: (Affinity(), Sharing(), Invoking(retries=3)),
}


class Crowd:
    def __init__(self, there: World, chance: Random, *, users: int, sessions: int) -> None:
        self._there, self._chance = there, chance
        self.lives: dict[str, list[Life]] = {}
        self._clients: dict[str, httpx.Client] = {}
        self._callers: list[Caller] = []
        self._followers: list[Follower] = []
        self._posters: list[Poster] = []
        self._ends: Counter[str] = Counter()
        program = (Path(__file__).parent / "ledger.py").read_text()
        start = Start(f"cat > /tmp/ledger.py <<'END'\n{program}\nEND\nexec python3 /tmp/ledger.py", PORT)
        for name, (affinity, sharing, invoking) in FUNCTIONS.items():
            made = there.client.functions.create(
                name, spec="nano", start=start, affinity=affinity, sharing=sharing, invoking=invoking
            )
            self._people(made, [(f"user{u}", f"{name}{s}") for u in range(users) for s in range(sessions)])
        tools = deploy(there.client, "tools")
        key = {"x-dovecote-key": there.own.api_key}
        self._tool_users = [
            ToolUser(f"tool-{'sse' if is_sse else 'http'}{number}", tools.path_address, key, is_sse=is_sse)
            for is_sse in (False, True)
            for number in range(TOOL_USERS)
        ]

    def _people(self, function: Function, names: Sequence[tuple[str, str]]) -> None:
        peers = frozenset(f"{user}/{key}" for user, key in names) if function.name == SHARED else frozenset[str]()
        for user, key in names:
            life = Life(user, key, lasts=function.name != SHARED, peers=peers)
            self.lives.setdefault(function.name, []).append(life)
            headers = self._headers(function, life)
            # By address and not by name: not every resolver knows names below localhost.
            client = httpx.Client(base_url=self._there.own.url, headers=headers, timeout=PATIENCE, trust_env=False)
            self._clients[life.name] = client
            self._callers += [Caller(life, client, self._luck()) for _ in range(CALLERS)]
            if function.name in ("own", SHARED):
                self._followers += [Listener(life, client), Talker(life, self._there.own.url, headers)]
            if function.name in (ONCE, AGAIN):
                self._posters.append(Poster(life, client, self._luck(), is_repeated=function.name == AGAIN))

    def _luck(self) -> Random:
        return Random(self._chance.random())

    def _headers(self, function: Function, life: Life) -> dict[str, str]:
        headers = {"x-dovecote-key": self._there.own.api_key, "x-dovecote-user": life.user}
        headers |= {"host": urlsplit(function.address).netloc}
        return headers if function.name == COOKIE else headers | {"x-dovecote-session": life.key}

    def _busy(self) -> list[Caller | Follower | Poster | ToolUser]:
        return [*self._callers, *self._followers, *self._posters, *self._tool_users]

    def begin(self) -> None:
        for life in self.lives[COOKIE]:
            self._clients[life.name].get("/").raise_for_status()  # so that two who begin at once do not begin two
        for each in self._busy():
            each.begin()

    def end(self) -> None:
        for each in self._busy():
            each.stop()
        for poster in self._posters:
            self._ends += poster.settle(self._there.client)
        for life in self._all():
            final(life, self._clients[life.name])
            self._clients[life.name].close()

    def _all(self) -> list[Life]:
        return [life for lives in self.lives.values() for life in lives]

    @property
    def faults(self) -> list[str]:
        told = [each.faults for each in self._all()] + [each.faults for each in self._tool_users]
        return [fault for faults in told for fault in faults]

    @property
    def answers(self) -> int:
        return sum(life.requests for life in self._all()) + sum(user.calls for user in self._tool_users)

    def table(self) -> str:
        lives = self._all()
        refused: Counter[int] = sum((life.refused for life in lives), Counter())
        told = ", ".join(f"{status or 'no answer'}: {times}" for status, times in sorted(refused.items()))
        answered, unsure = (sum(len(getattr(life, name)) for life in lives) for name in ("answered", "unsure"))
        lines = [
            f"{name}: {len(of)} sessions, {sum(life.requests for life in of)} answers, "
            f"{sum(len(life.boots) for life in of)} times a process of its own or of others"
            for name, of in self.lives.items()
        ]
        cut = sum((user.cut for user in self._tool_users), Counter[str]())
        lines += [
            f"{answered} works answered, {unsure} perhaps done; refused or cut off: {told or 'none'}",
            f"streams: {sum(f.opened for f in self._followers)} opened, {sum(f.heard for f in self._followers)} words",
            f"asynchronous calls: {', '.join(f'{state} {n}' for state, n in sorted(self._ends.items()))}",
            f"MCP: {sum(u.sessions for u in self._tool_users)} sessions, {cut.total()} of them cut off, "
            f"{sum(u.calls for u in self._tool_users)} calls",
            f"lost, misrouted, done twice, answered by a replaced instance: {len(self.faults)}",
        ]
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])
