"""What a guest promises about commands, against the real program as PID 1."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterable
from typing import Any

import pytest

from dovecote.errors import Conflict, DeadlineExceeded, DovecoteError, Forbidden, Invalid, NotFound
from dovecote.host.guest import Command, CommandStatus, Dropped, Event, Exited, Output, Started, calls, channel
from dovecote.host.guest.connection import Connection
from dovecote.host.guest.protocol import render_start
from tests.system.guest_rig import BOUND, Rig, running, sanitized_program, until

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20


def shell(script: str, **more: object) -> Command:
    return Command(("/bin/sh", "-c", script), **more)  # type: ignore[arg-type]


def joined(events: Iterable[Event], stream: str = "stdout") -> bytes:
    return b"".join(e.data for e in events if isinstance(e, Output) and e.stream == stream)


async def status(rig: Rig, number: int) -> CommandStatus:
    return next(c for c in await rig.guest.list_commands() if c.number == number)


async def ended(rig: Rig, number: int) -> bool:
    return not (await status(rig, number)).is_running


async def test_both_streams_come_in_order_with_offsets_and_then_the_exit_code() -> None:
    async with running() as rig:
        events = [e async for e in rig.guest.stream(shell("echo one; echo two >&2; sleep 0.02; echo three; exit 7"))]
        assert isinstance(events[0], Started)
        assert joined(events) == b"one\nthree\n"
        assert joined(events, "stderr") == b"two\n"
        at = 0
        for event in events[1:-1]:
            assert isinstance(event, Output)
            assert event.offset == at
            at += len(event.data)
        assert events[-1] == Exited(7, None, False, at)


async def test_a_signal_ends_the_group_and_is_reported() -> None:
    async with running() as rig:
        started = await rig.guest.start(shell("sleep 4711.1 & sleep 4711.1"))
        await until(lambda: len(rig.processes("4711.1")) >= 3)
        await rig.guest.signal(started.number, signal.SIGTERM)
        events = [e async for e in rig.guest.attach(started.number)]
        assert events == [Exited(None, signal.SIGTERM, False, 0)]
        await until(lambda: not rig.processes("4711.1"))
        await rig.guest.signal(started.number, signal.SIGTERM)  # repeated: no error


async def test_a_timeout_kills_the_whole_tree_even_what_left_the_session() -> None:
    async with running() as rig:
        script = "setsid sleep 4712.2 & (sleep 4712.2 & sleep 4712.2) & sleep 4712.2"
        finished = await rig.guest.run(shell(script, timeout=0.3))
        assert (finished.timed_out, finished.signal, finished.exit_code) == (True, signal.SIGKILL, None)
        await until(lambda: not rig.processes("4712.2"))


async def test_a_kill_ends_what_left_the_group_and_a_terminal_with_its_jobs() -> None:
    async with running() as rig:
        jobs = "set -m; trap '' HUP; sleep 4711.2 & sleep 4711.2"  # each job is a group of its own
        for command in (
            shell("setsid sleep 4711.2 & sleep 4711.2"),
            Command(("/bin/bash", "-c", jobs), pty=(24, 80)),
        ):
            started = await rig.guest.start(command)
            await until(lambda: len(rig.processes("sleep\0004711.2")) == 2)
            await rig.guest.signal(started.number, signal.SIGKILL)
            await until(lambda: not rig.processes("sleep\0004711.2"))
            events = [e async for e in rig.guest.attach(started.number)]
            assert isinstance(events[-1], Exited)
            assert events[-1].signal == signal.SIGKILL


async def test_a_reader_that_left_comes_back_and_misses_nothing() -> None:
    async with running() as rig:
        first: list[Event] = []
        number, at = 0, 0
        events = rig.guest.stream(shell("for i in 1 2 3 4 5 6 7 8 9; do echo line $i; sleep 0.02; done; exit 4"))
        async for event in events:
            first.append(event)
            if isinstance(event, Started):
                number = event.number
            if isinstance(event, Output):
                at = event.offset + len(event.data)
                break
        await events.aclose()
        rest = [e async for e in rig.guest.attach(number, offset=at)]
        assert joined(first) + joined(rest) == b"".join(b"line %d\n" % i for i in range(1, 10))
        assert isinstance(rest[-1], Exited)
        assert rest[-1].exit_code == 4
        again = [e async for e in rig.guest.attach(number)]
        assert joined(again) == joined(first) + joined(rest)


async def test_output_without_end_and_without_a_reader_keeps_the_latest_in_bounded_memory() -> None:
    async with running() as rig:
        number = (await rig.guest.start(shell("exec yes"))).number

        async def much() -> bool:
            return (await status(rig, number)).output_bytes > 64 * MIB

        await until(much)
        assert rig.rss_bytes("RssAnon") < 2 * MIB
        await rig.guest.signal(number, signal.SIGKILL)
        await until(lambda: ended(rig, number))
        events = [e async for e in rig.guest.attach(number)]
        assert isinstance(events[0], Dropped)
        assert events[0].bytes > 60 * MIB
        kept = joined(events)
        assert MIB // 2 < len(kept) <= MIB
        assert isinstance(events[-1], Exited)
        assert events[0].bytes + len(kept) == events[-1].offset


async def test_a_command_waits_for_a_slow_reader_and_loses_nothing() -> None:
    async with running() as rig:
        events = rig.guest.stream(shell("yes | head -c 8000000"))
        started = await anext(events)
        assert isinstance(started, Started)

        async def ring_is_full() -> bool:
            return (await status(rig, started.number)).output_bytes >= MIB

        await until(ring_is_full)
        for _ in range(200):
            assert (await status(rig, started.number)).output_bytes < 3 * MIB
        assert rig.rss_bytes("RssAnon") < 3 * MIB
        at = 0
        async for event in events:
            if isinstance(event, Exited):
                break
            assert isinstance(event, Output)
            assert event.offset == at
            at += len(event.data)
        assert at == 8_000_000


async def test_a_reader_that_takes_nothing_for_too_long_is_dropped_and_the_command_goes_on() -> None:
    async with running(sanitized_program()) as rig:
        connection = await Connection.open(rig.socket_path)
        await connection.send(render_start(shell("yes | head -c 8000000; exit 3")))

        async def gone_on() -> bool:
            commands = await rig.guest.list_commands()
            return bool(commands) and not commands[0].is_running

        await until(gone_on)
        assert (await rig.guest.list_commands())[0].output_bytes == 8_000_000
        connection.close()


async def test_small_pieces_from_both_streams_in_turn_stay_bounded() -> None:
    async with running() as rig:
        script = "i=0; while [ $i -lt 60000 ]; do echo; echo >&2; i=$((i+1)); done"
        number = (await rig.guest.start(shell(script, ring_bytes=64 << 10))).number
        await until(lambda: ended(rig, number))
        events = [e async for e in rig.guest.attach(number)]
        assert isinstance(events[0], Dropped)
        kept = joined(events) + joined(events, "stderr")
        assert events[0].bytes + len(kept) == 120_000
        assert rig.rss_bytes("RssAnon") < MIB


@pytest.mark.parametrize(
    ("command", "kind", "code"),
    [
        (Command(("nothing-like-that",)), NotFound, "command_not_found"),
        (Command(("/no/such/program",)), NotFound, "command_not_found"),
        (Command(("/etc/passwd",)), Forbidden, "permission_denied"),
        (Command(("/tmp",)), Forbidden, "permission_denied"),
        (Command(("true",), user="nobody-we-know"), NotFound, "no_such_user"),
        (Command(("true",), user="minus"), NotFound, "no_such_user"),
        (Command(("true",), user="4294967295"), NotFound, "no_such_user"),
        (Command(("true",), user="bird:nothing"), NotFound, "no_such_user"),
        (Command(("true",), user=""), NotFound, "no_such_user"),
        (Command(("true",), cwd="/no/such/place"), NotFound, "no_such_directory"),
        (Command(("true",), cwd="/root", user="bird"), None, ""),
        (Command(("true",), tag="x" * 200), Invalid, "invalid"),
        (Command(("true", "a\0b")), Invalid, "invalid"),
        (Command(()), Invalid, "invalid"),
        (Command(("true", "x" * 200_000)), Invalid, "too_large"),
    ],
)
async def test_a_command_that_cannot_start_says_why(
    command: Command, kind: type[DovecoteError] | None, code: str
) -> None:
    async with running() as rig:
        if kind is None:
            assert (await rig.guest.run(command)).exit_code == 0
            return
        with pytest.raises(kind) as error:
            await rig.guest.run(command)
        assert error.value.code == code
        assert await rig.guest.list_commands() == []
        assert (await rig.guest.hello()).running == 0


async def test_a_command_runs_as_its_user_with_groups_home_and_default_environment() -> None:
    async with running() as rig:
        said = (
            await rig.sh("id -u; id -g; id -G; pwd; env", user="bird", env={"LANG": "de", "X": "1"})
        ).stdout.decode()
        uid, gid, groups, home, *env = said.split("\n")
        assert (uid, gid, home) == ("1000", "1000", "/home/bird")
        assert set(groups.split()) == {"1000", "1500", "1502"}
        assert {"HOME=/home/bird", "USER=bird", "LOGNAME=bird", "SHELL=/bin/sh", "LANG=de", "X=1"} <= set(env)
        assert (await rig.sh("id -u; id -g; id -G; pwd", user="1001:flock")).stdout.split() == [
            b"1001",
            b"1500",
            b"1500",
            b"/",
        ]
        assert (await rig.sh("id -u; id -g", user="5555")).stdout.split() == [b"5555", b"5555"]
        assert (await rig.sh("id -u; id -g", user="1000:7")).stdout.split() == [b"1000", b"7"]


async def test_users_are_looked_up_at_each_start() -> None:
    async with running() as rig:
        await rig.sh("echo 'new:x:1234:1234::/:/bin/sh' >> /etc/passwd")
        assert (await rig.sh("id -u", user="new")).stdout == b"1234\n"


async def test_accounts_that_are_no_files_hang_nobody() -> None:
    async with running() as rig:
        await rig.sh("rm /etc/passwd /etc/group; mkfifo /etc/passwd; ln -s /dev/zero /etc/group")
        assert (await rig.sh("id -u", user="0")).exit_code == 0
        with pytest.raises(NotFound):
            await rig.sh("true", user="root")


async def test_a_terminal_has_a_size_that_can_change_and_takes_keys() -> None:
    async with running() as rig:
        events = rig.guest.stream(
            Command(("/bin/sh", "-c", "test -t 0 && stty size && read x && stty size && tty && cat"), pty=(33, 99))
        )
        said = b""

        async def read_to(word: bytes) -> None:
            nonlocal said
            async with asyncio.timeout(BOUND):
                while word not in said:
                    event = await anext(events)
                    assert isinstance(event, Output)
                    assert event.stream == "stdout"
                    said += event.data

        started = await anext(events)
        assert isinstance(started, Started)
        await read_to(b"33 99")
        await rig.guest.resize(started.number, 50, 120)
        await rig.guest.write_stdin(started.number, b"\n")
        await read_to(b"50 120")
        await read_to(b"/dev/pts/")
        await rig.guest.close_stdin(started.number)
        rest = [e async for e in events]
        assert isinstance(rest[-1], Exited)
        assert rest[-1].exit_code == 0


async def test_only_a_terminal_has_a_size() -> None:
    async with running() as rig:
        number = (await rig.guest.start(Command(("sleep", "4713.3")))).number
        with pytest.raises(Invalid) as error:
            await rig.guest.resize(number, 1, 1)
        assert error.value.code == "no_terminal"


async def test_exit_is_told_though_a_descendant_holds_the_pipes() -> None:
    async with running() as rig:
        async with asyncio.timeout(BOUND):
            finished = await rig.sh("(sleep 0.2; echo later; exec sleep 4714.4) & echo done")
        assert finished.stdout == b"done\n"
        await until(lambda: bool(rig.processes("4714.4")))  # it lives, and its write neither blocked nor killed it
        assert await rig.guest.list_commands() == []


async def test_a_noisy_descendant_does_not_delay_the_exit() -> None:
    async with running() as rig:
        async with asyncio.timeout(BOUND):
            finished = await rig.sh("yes & exit 5")
        assert finished.exit_code == 5
        await rig.guest.hello()


async def test_two_hundred_commands_at_once() -> None:
    async with running() as rig:
        results = await asyncio.gather(*(rig.sh(f"echo {i}; sleep 0.1; exit {i % 100}") for i in range(200)))
        assert [(r.stdout, r.exit_code) for r in results] == [(b"%d\n" % i, i % 100) for i in range(200)]
        assert (await rig.guest.hello()).running == 0
        assert await rig.guest.list_commands() == []


async def test_input_is_passed_on_whole_and_ends() -> None:
    async with running() as rig:
        data = os.urandom(5 * MIB)
        finished = await rig.guest.run(Command(("cat",)), stdin=data, max_output=8 * MIB)
        assert finished.stdout == data
        assert not finished.truncated


async def test_a_command_that_does_not_read_its_input_still_ends() -> None:
    async with running() as rig:
        assert (await rig.guest.run(Command(("true",)), stdin=bytes(5 * MIB))).exit_code == 0


async def test_output_beyond_the_limit_of_run_is_dropped_and_said() -> None:
    async with running() as rig:
        finished = await rig.guest.run(shell("yes | head -c 3000000"), max_output=1000)
        assert (len(finished.stdout), finished.truncated, finished.exit_code) == (1000, True, 0)


async def test_input_goes_to_a_command_that_was_started_detached() -> None:
    async with running() as rig:
        number = (await rig.guest.start(Command(("cat",), stdin=True))).number
        await rig.guest.write_stdin(number, b"one ")
        await rig.guest.write_stdin(number, b"two")
        await rig.guest.close_stdin(number)
        assert joined([e async for e in rig.guest.attach(number)]) == b"one two"
        with pytest.raises(Conflict) as error:
            await rig.guest.write_stdin(number, b"three")
        assert error.value.code == "stdin_closed"


async def test_input_that_is_not_read_blocks_only_its_writer() -> None:
    async with running() as rig:
        number = (await rig.guest.start(Command(("sleep", "4715.5"), stdin=True))).number
        with pytest.raises(DeadlineExceeded) as error:
            await rig.guest.write_stdin(number, bytes(MIB), timeout=0.2)
        assert error.value.code == "stdin_blocked"
        assert (await rig.sh("echo fine")).stdout == b"fine\n"
        assert rig.rss_bytes("RssAnon") < MIB


async def test_the_list_says_what_runs_and_what_ended_until_it_is_released() -> None:
    async with running() as rig:
        runs = await rig.guest.start(Command(("sleep", "4716.6"), tag="a tag é"))
        ends = await rig.guest.start(shell("echo four; exit 9"))
        await until(lambda: ended(rig, ends.number))
        first, second = await rig.guest.list_commands()
        assert (first.number, first.tag, first.is_running, first.exit_code) == (runs.number, "a tag é", True, None)
        assert (second.is_running, second.exit_code, second.signal, second.output_bytes) == (False, 9, None, 5)
        assert first.started_at <= second.started_at
        with pytest.raises(Conflict) as error:
            await rig.guest.release(runs.number)
        assert error.value.code == "still_running"
        await rig.guest.release(ends.number)
        with pytest.raises(NotFound) as gone:
            await anext(rig.guest.attach(ends.number))
        assert gone.value.code == "no_such_command"
        assert [c.number for c in await rig.guest.list_commands()] == [runs.number]


async def test_ended_commands_are_kept_in_bounded_number_oldest_forgotten_first() -> None:
    async with running() as rig:
        started = [await rig.guest.start(Command(("true",))) for _ in range(300)]
        await until(lambda: ended(rig, started[-1].number))

        async def bounded() -> bool:
            return len(await rig.guest.list_commands()) == 256

        await until(bounded)
        assert [c.number for c in await rig.guest.list_commands()] == [s.number for s in started[-256:]]


async def test_a_cancelled_run_leaves_nothing_running() -> None:
    async with running() as rig:
        task = asyncio.ensure_future(rig.guest.run(shell("sleep 4717.7; true")))
        await until(lambda: bool(rig.processes("4717.7")))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not rig.processes("4717.7"))


async def test_a_run_that_is_cancelled_before_its_start_is_told_leaves_nothing_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_told = asyncio.Event()

    async def late(*args: Any, **more: Any) -> bytes:
        await is_told.wait()
        return await calls.answer(*args, **more)

    async with running() as rig:
        monkeypatch.setattr(channel, "answer", late)
        task = asyncio.ensure_future(rig.guest.run(shell("sleep 4717.8; true")))
        await until(lambda: bool(rig.processes("4717.8")))
        task.cancel()
        is_told.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not rig.processes("4717.8"))


async def test_orphans_are_reaped() -> None:
    async with running() as rig:
        await rig.sh("for i in 1 2 3 4 5 6 7 8 9; do (setsid true &) ; done")

        async def no_zombies() -> bool:
            return b"Z" not in (await rig.sh("cat /proc/[0-9]*/stat | sed 's/.*) //' | cut -c1")).stdout

        await until(no_zombies)


async def test_shutdown_asks_first_then_kills_and_ends_the_guest() -> None:
    async with running() as rig:
        polite = await rig.guest.start(shell("trap 'exit 0' TERM; while :; do sleep 0.01; done"))
        events = rig.guest.attach(polite.number)
        await rig.guest.start(shell("trap '' TERM; while :; do sleep 4718; done"))

        async def last() -> Event:
            return [e async for e in events][-1]

        reading = asyncio.ensure_future(last())
        await rig.guest.hello()
        await rig.guest.shutdown(0.3)
        await until(lambda: not rig.alive())
        end = await reading
        assert isinstance(end, Exited)
        assert end.exit_code == 0


async def test_a_guest_keeps_its_id_and_another_has_another() -> None:
    async with running() as one, running() as other:
        first = await one.guest.hello()
        assert (await one.guest.hello()).id == first.id
        assert (await other.guest.hello()).id != first.id


async def test_ports_are_seen_and_waited_for() -> None:
    listen = "IO::Socket::IP->new(Listen => 5, LocalAddr => shift, LocalPort => shift) or die $@; sleep 4719"
    server = f"perl -MIO::Socket::IP -e 'my $s = {listen}' "
    async with running() as rig:
        assert await rig.guest.ports() == []
        closed = await rig.guest.wait_port(8001, 0)
        assert (closed.is_open, closed.loopback) == (False, False)
        waiting = asyncio.ensure_future(rig.guest.wait_port(8001, BOUND))
        await rig.guest.hello()
        await rig.guest.start(shell(server + "0.0.0.0 8001"))
        assert (await waiting).is_open
        await rig.guest.start(shell(server + "127.0.0.1 8002"))
        local = await rig.guest.wait_port(8002, BOUND)
        assert (local.is_open, local.loopback) == (False, True)
        await rig.guest.start(shell(server + ":: 8003"))
        assert (await rig.guest.wait_port(8003, BOUND)).is_open
        await rig.guest.start(shell(server + "::1 8004"))
        assert (await rig.guest.wait_port(8004, BOUND)).loopback
        found = {p.port: p.loopback_only for p in await rig.guest.ports()}
        assert found == {8001: False, 8002: True, 8003: False, 8004: True}


async def test_a_fork_bomb_of_exits_does_not_keep_the_guest_from_answering() -> None:
    async with running() as rig:
        number = (await rig.guest.start(shell("while :; do (setsid true &); done", timeout=30))).number
        for _ in range(50):
            await rig.guest.hello()
        await rig.guest.signal(number, signal.SIGKILL)
        await until(lambda: ended(rig, number))


async def test_a_client_that_vanishes_at_any_point_harms_nobody() -> None:
    async with running() as rig:
        frame = render_start(shell("echo x; sleep 0.01", stdin=True))
        for cut in range(0, len(frame) + 1, 5):
            connection = await Connection.open(rig.socket_path)
            with contextlib.suppress(DovecoteError):
                await connection.send(frame[:cut])
            connection.close()
        assert (await rig.sh("echo fine")).stdout == b"fine\n"
