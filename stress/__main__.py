"""`python -m stress`: kills everything at random instants, compares what comes back, prints a table."""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from stress.blows import KINDS
from stress.report import line, table
from stress.run import Options, Outcome, rounds
from stress.world import world

KEPT = Path("build/stress")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stress", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=None, help="stop after so many, whatever the rounds")
    parser.add_argument("--seed", type=int, default=None, help="kinds and steps of an earlier run")
    parser.add_argument("--sessions", type=int, default=2, help="that work at the same time")
    parser.add_argument("--store", choices=("s3", "directory"), default="s3", help="s3 is a SeaweedFS of its own")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--without-npm", action="store_true", help="no installs from the registry")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # also where a shell in the background had it ignored
        signal.signal(number, _end)
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1 << 32)
    options = Options(seed, arguments.sessions, arguments.kinds, not arguments.without_npm)
    print(f"seed {seed}; the same seed gives the same kinds and steps, at instants as the machine has them", flush=True)
    began = time.monotonic()
    outcomes: list[Outcome] = []
    with world(s3=arguments.store == "s3") as there:
        for outcome in rounds(there, options, say=_say):
            outcomes.append(outcome)
            print(line(outcome), flush=True)
            if outcome.fault:
                KEPT.mkdir(parents=True, exist_ok=True)
                shutil.copy(there.own.log, KEPT / f"{seed}-{outcome.number}.log")
            is_late = arguments.minutes is not None and time.monotonic() - began > arguments.minutes * 60
            if len(outcomes) >= arguments.rounds or is_late:
                break
    print(table(outcomes, seed=seed, seconds=time.monotonic() - began))
    return 1 if any(outcome.fault for outcome in outcomes) else 0


def _end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)  # and clean up on the way


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


sys.exit(main())
