"""`python -m stress.guest`: throws mutated requests at a guest with the compiler's checks, for as long as asked."""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets
import time

from tests.system.guest_frames import throw_many
from tests.system.guest_rig import Rig, running, sanitized_program

ROUND = 2000  # connections to one guest, then to a new one


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stress.guest", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None, help="the same seed throws the same")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(1 << 32)
    print(f"seed {seed}", flush=True)
    rounds = asyncio.run(_rounds(seed, time.monotonic() + arguments.minutes * 60))
    print(f"{rounds} rounds of {ROUND} connections, no report of the checks, every guest answered at the end")
    return 0


async def _rounds(seed: int, end: float) -> int:
    done = 0
    while done == 0 or time.monotonic() < end:
        async with running(sanitized_program()) as rig:  # which fails when the checks have something to report
            await _round(rig, random.Random(seed + done))
        done += 1
    return done


async def _round(rig: Rig, rng: random.Random) -> None:
    before = await rig.guest.hello()
    await throw_many(rig, rng, ROUND)
    after = await rig.guest.hello(timeout=20)
    if after.id != before.id or (await rig.sh("echo fine")).stdout != b"fine\n":
        raise AssertionError("the guest is not what it was")


raise SystemExit(main())
