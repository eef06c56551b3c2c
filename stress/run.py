"""Rounds: work begins, something is killed, what comes back is compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

from dovecote.sdk import DovecoteError
from stress.blows import KINDS, Blow, deck
from stress.history import Fault, Point
from stress.plan import Planner
from stress.subject import TEMPLATE, Subject, patiently
from stress.tree import Node
from stress.world import World

LIFE = 20  # rounds of one session
LEAST_BEFORE = 0.2  # seconds of work ahead of a blow
LONGEST = 30.0  # seconds that a program works if nothing stops it
STEPS = 4000
PAUSES = (0.0, 0.003, 0.01, 0.03)  # seconds between two steps
SHORT = 2.0  # seconds of work without pauses
TRIM_AFTER = 1500  # steps, after which what is there is saved and becomes the beginning
MOST_IN_UNIT = 120  # names of a directory of the template that a round changes
UNITS = 2


@dataclass
class Outcome:
    """One round: `points` of each session, or the fault."""

    number: int
    kind: str
    points: list[Point] = field(default_factory=list)
    steps: int = 0
    installs: int = 0
    failed_installs: int = 0
    back: float = 0.0  # seconds from the blow until every session was awake
    fault: str = ""


@dataclass(frozen=True)
class Options:
    seed: int
    sessions: int = 2
    kinds: Sequence[str] = tuple(KINDS)
    npm: bool = True


def rounds(world: World, options: Options, *, say: Callable[[str], None]) -> Iterator[Outcome]:
    """Without end. The same options give the same kinds and the same steps; instants are as the machine has them."""
    kinds = _kinds(options)
    subjects: list[Subject] = []
    for number in count():
        kind = next(kinds)
        if number % LIFE == 0:
            _leave(subjects)
            subjects = [_enter(world, number, each) for each in range(options.sessions)]
        outcome = Outcome(number, kind)
        chance = Random(f"{options.seed}:{number}")
        try:
            _round(world, subjects, outcome, options, chance)
        except (Fault, DovecoteError, AssertionError) as error:
            outcome.fault = f"{type(error).__name__}: {error}"
            say(f"FAULT in round {number} ({kind}): {outcome.fault}")
            # The next rounds must not suffer from it.
            _recover(world)
            subjects = [_enter(world, number, each) for each in range(options.sessions)]
        yield outcome


def _kinds(options: Options) -> Iterator[str]:
    for each in count():
        yield from deck(Random(f"{options.seed}:kinds:{each}"), options.kinds)


def _enter(world: World, number: int, each: int) -> Subject:
    return Subject(world.client, f"s{number}.{each}")


def _leave(subjects: Sequence[Subject]) -> None:
    for subject in subjects:
        subject.session.delete()


def _recover(world: World) -> None:
    if world.own.process is not None and world.own.process.poll() is not None:
        world.own.process = None
    if world.own.process is None:
        world.own.start()
    patiently(world.client.sessions.list)


def _round(world: World, subjects: Sequence[Subject], outcome: Outcome, options: Options, chance: Random) -> None:
    strike, _, longest = KINDS[outcome.kind]
    has_install = options.npm and chance.random() < 0.15
    pause = chance.choice(PAUSES)
    for each, subject in enumerate(subjects):
        planner = Planner(
            Random(f"{options.seed}:{outcome.number}:{each}"),
            round=outcome.number,
            units=_units(subject, outcome.number),
        )
        subject.begin(planner.plan(STEPS, pause=pause, npm=has_install), seconds=LONGEST)
    before = chance.uniform(LEAST_BEFORE, SHORT if not pause else longest + (4 if has_install else 0))
    saves = chance.uniform(0, before) if chance.random() < 0.4 else None
    if saves is not None:
        time.sleep(saves)
        for subject in subjects:
            subject.save()
    time.sleep(before - (saves or 0))
    blow = strike(world, subjects, chance)
    for subject in subjects:
        patiently(subject.session.wake)
    outcome.back = time.monotonic() - blow.at
    for subject in subjects:
        subject.stop()
        _compare(subject, blow, outcome)


def _compare(subject: Subject, blow: Blow, outcome: Outcome) -> None:
    journal = subject.journal
    assert journal is not None
    done = subject.done
    found, point = subject.compare(floor=done if blow.keeps_all else subject.saved, at=blow.at)
    outcome.points.append(point)
    outcome.steps += done - journal.first
    outcome.installs += len(journal.installs)
    outcome.failed_installs += len(journal.failed_installs)
    subject.go_on(found, point, is_stored=blow.is_stored)
    if len(subject.history.steps) > TRIM_AFTER:
        patiently(subject.session.save)
        subject.rebase(found)


def _units(subject: Subject, number: int) -> dict[str, Node]:
    """Directories of the template that no round of this session's life had before."""
    dirs = sorted(
        path
        for path, node in subject.template.items()
        if node.kind == "dir" and path.rpartition("/")[0] == TEMPLATE and _size(subject, path) <= MOST_IN_UNIT
    )
    at = (number % LIFE) * UNITS
    chosen = [dirs[i % len(dirs)] for i in range(at, at + UNITS)]
    return {
        path: node
        for path, node in subject.template.items()
        if any(path == unit or path.startswith(unit + "/") for unit in chosen)
    }


def _size(subject: Subject, path: str) -> int:
    return sum(name.startswith(path + "/") for name in subject.template)
