"""What is killed, and how: one function a kind. Each strikes once and brings back what a reboot would."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random

import httpx

from dovecote.sdk import DovecoteError
from stress.history import Fault
from stress.subject import Subject, patiently
from stress.world import World, comes_true

SEALED_WITHIN = 60.0  # seconds in which a host that was taken over finds that out


@dataclass(frozen=True)
class Blow:
    """When it struck. `keeps_all`: nothing may be lost. `is_stored`: what came back comes from the store."""

    at: float
    keeps_all: bool = True
    is_stored: bool = False


Strike = Callable[[World, Sequence[Subject], Random], Blow]


def command(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """The program itself."""
    for subject in subjects:
        subject.stop()
    return Blow(time.monotonic())


def instance(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """The first process of each instance, which is the guest."""
    pids = [subject.session.instance().pid for subject in subjects]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return Blow(time.monotonic())


def server(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    world.own.kill()
    at = time.monotonic()
    world.own.start()
    _go_on(subjects, chance)
    return Blow(at)


def server_and_instances(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """The server first, instances while there is none."""
    pids = [subject.session.instance().pid for subject in subjects]
    world.own.kill()
    time.sleep(chance.uniform(0, 0.5))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    at = time.monotonic()
    world.own.start()
    return Blow(at)


def park(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """No kill: parked in the middle of work."""
    for subject in subjects:
        subject.session.park()
    return Blow(time.monotonic(), is_stored=True)


def park_cut_short(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """The server dies while it parks."""
    return _cut_short(world, subjects, chance, lambda subject: subject.session.park())


def save_cut_short(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """The server dies while it saves."""
    return _cut_short(world, subjects, chance, lambda subject: subject.session.save())


def snapshot(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """No kill: what a snapshot that was answered holds is one moment between question and answer."""
    for subject in subjects:
        before = subject.done
        taken = subject.session.snapshot()
        with subject.session.fork(taken.id) as fork:
            subject.compare_in(fork, floor=before, at=0)
    return Blow(time.monotonic())


def envoy(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    os.kill(world.envoy_pid(), signal.SIGKILL)
    at = time.monotonic()
    _go_on(subjects, chance)
    return Blow(at)


def store(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """The store fails for a while: work goes on, saves say why they fail; afterwards the host is lost, too."""
    world.break_store()
    try:
        time.sleep(chance.uniform(0.5, 3))
        for subject in subjects:
            done = subject.done
            try:
                subject.session.save()
            except DovecoteError as error:
                if error.code not in ("store_unreachable", "store_read_only"):
                    raise Fault(f"{subject.name}: a save without a store failed with {error}") from error
            else:
                subject.saved = max(subject.saved, done)
        time.sleep(chance.uniform(0, 1))
    finally:
        world.mend_store()
    for subject in subjects:
        subject.stop()
        patiently(subject.save)
    at = world.lose_host(with_cache=False, server_first=True)
    return Blow(at, is_stored=True)


def host(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """Server, instances and their disks."""
    at = world.lose_host(with_cache=False, server_first=chance.random() < 0.5)
    return Blow(at, keeps_all=False, is_stored=True)


def host_and_cache(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """A new machine has nothing at all: everything comes from the store."""
    at = world.lose_host(with_cache=True, server_first=chance.random() < 0.5)
    return Blow(at, keeps_all=False, is_stored=True)


def takeover(world: World, subjects: Sequence[Subject], chance: Random) -> Blow:
    """A second host takes the sessions while the first one is stopped, then goes on and believes that it owns them."""
    process = world.own.process
    assert process is not None
    pids = {subject.name: subject.session.instance().pid for subject in subjects}
    os.kill(process.pid, signal.SIGSTOP)
    at = time.monotonic()
    try:
        with world.second_host() as there:
            for subject in subjects:
                subject.move(there)
                patiently(subject.session.wake)
                subject.compare(floor=subject.saved, at=at)
            os.kill(process.pid, signal.SIGCONT)
            for subject in subjects:
                gone = partial(_is_gone, pids[subject.name])
                if not comes_true(gone, "the instance ends", within=SEALED_WITHIN):
                    raise Fault(f"{subject.name}: the host that lost it goes on with it")
                # Its disk is marked a moment after its processes ended.
                orphaned = partial(world.is_orphaned, subject.session.id)
                if not comes_true(orphaned, "its files become an orphan", within=SEALED_WITHIN):
                    raise Fault(f"{subject.name}: what the old host had was not kept")
                subject.session.park()
    finally:
        os.kill(process.pid, signal.SIGCONT)
    for subject in subjects:
        subject.move(world.client)
    return Blow(at, keeps_all=False, is_stored=True)


def _is_gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def _go_on(subjects: Sequence[Subject], chance: Random) -> None:
    for subject in subjects:
        patiently(lambda subject=subject: subject.session.commands())  # type: ignore[misc]
        subject.follow()
    time.sleep(chance.uniform(0, 0.5))
    for subject in subjects:
        subject.stop()


def _cut_short(world: World, subjects: Sequence[Subject], chance: Random, ask: Callable[[Subject], object]) -> Blow:
    def asked(subject: Subject) -> None:
        with suppress(DovecoteError, httpx.HTTPError):
            ask(subject)

    threads = [threading.Thread(target=asked, args=(subject,)) for subject in subjects]
    for thread in threads:
        thread.start()
    time.sleep(chance.choice((chance.uniform(0, 0.08), chance.uniform(0, 0.6))))
    world.own.kill()
    at = time.monotonic()
    for thread in threads:
        thread.join(60)
    world.own.start()
    return Blow(at)


# How often each comes, and for how long at most work goes on ahead of it.
KINDS: dict[str, tuple[Strike, int, float]] = {
    "instance": (instance, 5, 3),
    "command": (command, 1, 2),
    "server": (server, 3, 3),
    "server+instances": (server_and_instances, 3, 3),
    "park": (park, 2, 3),
    "park-cut": (park_cut_short, 4, 3),
    "save-cut": (save_cut_short, 3, 3),
    "snapshot": (snapshot, 2, 3),
    "envoy": (envoy, 1, 2),
    "store": (store, 2, 3),
    "host": (host, 7, 7),
    "host+cache": (host_and_cache, 2, 5),
    "takeover": (takeover, 1, 4),
}


def deck(chance: Random, kinds: Sequence[str]) -> list[str]:
    """Every kind, as often as it comes, in some order."""
    cards = [kind for kind in kinds for _ in range(KINDS[kind][1])]
    chance.shuffle(cards)
    return cards
