"""`python -m stress.affinity`: calls many sessions while the server, Envoy and instances are killed."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import NoReturn
from urllib.parse import urlsplit

import httpx

from dovecote.sdk import Start
from stress.callers import PATIENCE, Caller, Life, final
from stress.world import World, world

NAME = "ledger"
PORT = 8000
CALLERS = 2  # of each session
KILLS = ("instance", "instance", "server", "envoy", "server+instance")
PAUSE = (0.5, 5.0)  # seconds between two kills


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stress.affinity", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--users", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=3, help="of each user, with the same ids")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1 << 32)
    print(f"seed {seed}; the same seed gives the same kills and calls, at instants as the machine has them", flush=True)
    with world(s3=False) as there:
        lives, kills = _run(there, Random(seed), arguments)
    print(_table(lives, kills))
    return 1 if any(life.faults for life in lives) else 0


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _run(there: World, chance: Random, arguments: argparse.Namespace) -> tuple[list[Life], Counter[str]]:
    program = (Path(__file__).parent / "ledger.py").read_text()
    command = f"cat > /tmp/ledger.py <<'END'\n{program}\nEND\nexec python3 /tmp/ledger.py"
    made = there.client.functions.create(NAME, spec="nano", start=Start(command, PORT))
    lives = [Life(f"user{u}", f"chat{s}") for u in range(arguments.users) for s in range(arguments.sessions)]
    clients = {life.name: _client(there, made.address, life) for life in lives}
    callers = [Caller(life, clients[life.name], Random(chance.random())) for life in lives for _ in range(CALLERS)]
    for caller in callers:
        caller.begin()
    kills: Counter[str] = Counter()
    deadline = time.monotonic() + arguments.minutes * 60
    while time.monotonic() < deadline:
        time.sleep(chance.uniform(*PAUSE))
        kind = chance.choice(KILLS)
        _kill(there, kind, chance)
        kills[kind] += 1
        faults = sum(len(life.faults) for life in lives)
        print(
            f"kill {sum(kills.values()):4} {kind:16} {sum(life.requests for life in lives):7} answers, {faults} faults",
            flush=True,
        )
    for caller in callers:
        caller.stop()
    for life in lives:
        final(life, clients[life.name])
        clients[life.name].close()
    return lives, kills


def _client(there: World, address: str, life: Life) -> httpx.Client:
    """By address and not by name: not every resolver knows names below localhost."""
    headers = {"x-dovecote-key": there.own.api_key, "x-dovecote-user": life.user, "x-dovecote-session": life.key}
    headers["host"] = urlsplit(address).netloc
    return httpx.Client(base_url=there.own.url, headers=headers, timeout=PATIENCE, trust_env=False)


def _kill(there: World, kind: str, chance: Random) -> None:
    if kind == "envoy":
        os.kill(there.envoy_pid(), signal.SIGKILL)
    pids = there.pids(there.own)
    if "server" in kind:
        there.own.kill()
    if "instance" in kind and pids:
        with suppress(ProcessLookupError):
            os.kill(chance.choice(pids), signal.SIGKILL)
    if "server" in kind:
        there.own.start()


def _table(lives: list[Life], kills: Counter[str]) -> str:
    refused: Counter[int] = sum((life.refused for life in lives), Counter())
    told = ", ".join(f"{status or 'no answer'}: {times}" for status, times in sorted(refused.items()))
    answered, unsure = (sum(len(getattr(life, name)) for life in lives) for name in ("answered", "unsure"))
    lines = [
        f"{sum(kills.values())} kills ({', '.join(f'{kind} {times}' for kind, times in sorted(kills.items()))})",
        f"{len(lives)} sessions, {sum(life.requests for life in lives)} answers, refused or cut off: {told or 'none'}",
        f"{sum(len(life.boots) for life in lives)} processes; {answered} works answered, {unsure} perhaps done",
        f"lost, misrouted, done twice, answered by a replaced instance: {sum(len(life.faults) for life in lives)}",
    ]
    return "\n".join(lines + [f"  {fault}" for life in lives for fault in life.faults])


if __name__ == "__main__":
    raise SystemExit(main())
