"""The wall clock jumps by years: files, their order and who owns them do not care."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote
from tests.e2e.installation import Installation, free_network, place, until

pytestmark = pytest.mark.e2e

YEAR = timedelta(days=365)


class Clock:
    """Of one server and of what it starts; changes while they run."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "clock"
        self.library = directory / "clock.so"
        source = Path(__file__).with_name("clock.c")
        line = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(self.library), str(source), "-ldl"]
        subprocess.run(line, check=True, timeout=60)
        self.set(timedelta())

    def set(self, offset: timedelta) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(str(int(offset.total_seconds())))
        new.rename(self.file)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def own(clock: Clock) -> Iterator[Installation]:
    with place() as directory, free_network() as network:
        there = Installation(directory, network=network, pool_size=1, tick=0.2, quiet_after=30, start_timeout=15)
        there.environ |= {"LD_PRELOAD": str(clock.library), "TEST_CLOCK": str(clock.file)}
        try:
            there.start()
            yield there
        finally:
            clock.set(timedelta())
            there.down()


@pytest.fixture
def client(own: Installation) -> Iterator[Dovecote]:
    with own.client() as client:
        yield client


def test_saves_snapshots_and_wakings_go_on_in_order_over_jumps_of_years(
    own: Installation, client: Dovecote, clock: Clock
) -> None:
    with client.sessions.create() as session:
        generation = 0
        taken = []
        for number, offset in enumerate((30 * YEAR, -10 * YEAR, timedelta())):
            clock.set(offset)
            session.files.write(f"f{number}", f"written in jump {number}")
            saved = session.save()
            assert saved.saved_generation > generation
            generation = saved.saved_generation
            assert saved.saved_at is not None
            assert abs(saved.saved_at - datetime.now(UTC) - offset) < timedelta(days=1), "the server sees the jump"
            taken.append(session.snapshot(is_pinned=True))
            assert session.park().state == "parked"
            for before in range(number + 1):
                assert session.files.read_text(f"f{before}") == f"written in jump {before}"
        assert {each.id for each in session.snapshots()} == {each.id for each in taken}
        session.rewind(taken[1].id)
        assert session.run("echo f*").stdout == "f0 f1\n"


def test_a_server_that_starts_in_the_past_or_in_the_future_takes_over_what_runs(
    own: Installation, client: Dovecote, clock: Clock
) -> None:
    with client.sessions.create() as session:
        session.files.write("kept", b"kept")
        for offset in (-10 * YEAR, 30 * YEAR):
            instance = session.instance().instance_id
            own.kill()
            clock.set(offset)
            own.start()
            assert session.refresh().state == "ready"
            assert session.instance().instance_id == instance
            assert session.files.read("kept") == b"kept"
            session.files.write("new", str(offset))
            until(lambda: client.sessions.get(session.id).save().saved_generation, "it is saved")


def test_a_time_to_live_is_of_the_clock_and_nothing_else_is(own: Installation, client: Dovecote, clock: Clock) -> None:
    clock.set(timedelta())
    with client.sessions.create() as session, client.sessions.create(ttl=3600) as mortal:
        session.files.write("kept", b"kept")
        clock.set(YEAR)
        until(lambda: mortal.refresh().state == "ended", "its hour is over")
        assert session.refresh().state in ("ready", "frozen")
        assert session.files.read("kept") == b"kept"
