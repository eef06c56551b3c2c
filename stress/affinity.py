"""`python -m stress.affinity`: calls many sessions while the server, Envoy and instances are killed."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import time
from collections import Counter
from contextlib import suppress
from random import Random
from typing import NoReturn

from stress.crowd import Crowd
from stress.world import World, world

KILLS = ("instance", "instance", "server", "envoy", "server+instance")
PAUSE = (0.5, 5.0)  # seconds between two kills


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stress.affinity", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--sessions", type=int, default=2, help="of each user and kind, with the same ids")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1 << 32)
    print(f"seed {seed}; the same seed gives the same kills and calls, at instants as the machine has them", flush=True)
    with world(s3=False) as there:
        crowd, kills = _run(there, Random(seed), arguments)
        print(f"{sum(kills.values())} kills ({', '.join(f'{kind} {times}' for kind, times in sorted(kills.items()))})")
        print(crowd.table())
    return 1 if crowd.faults else 0


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def _run(there: World, chance: Random, arguments: argparse.Namespace) -> tuple[Crowd, Counter[str]]:
    crowd = Crowd(there, chance, users=arguments.users, sessions=arguments.sessions)
    crowd.begin()
    kills: Counter[str] = Counter()
    deadline = time.monotonic() + arguments.minutes * 60
    while time.monotonic() < deadline:
        time.sleep(chance.uniform(*PAUSE))
        kind = chance.choice(KILLS)
        _kill(there, kind, chance)
        kills[kind] += 1
        told = f"{crowd.answers:7} answers, {len(crowd.faults)} faults"
        print(f"kill {sum(kills.values()):4} {kind:16} {told}", flush=True)
    crowd.end()
    return crowd, kills


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


if __name__ == "__main__":
    raise SystemExit(main())
