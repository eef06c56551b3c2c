"""A guest against code inside that attacks it, and against a client that sends garbage."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import random
import resource
import struct

import pytest

from dovecote.errors import DovecoteError, NoCapacity
from dovecote.host.guest import Command, Exited
from dovecote.host.guest.connection import Connection
from dovecote.host.guest.protocol import Kind, render_frame, text
from tests.system.guest_frames import throw_many
from tests.system.guest_rig import BOUND, running, sanitized_program, until

pytestmark = [pytest.mark.system, pytest.mark.anyio]


async def test_a_command_inherits_its_three_descriptors_and_nothing_else() -> None:
    async with running() as rig:
        reading = asyncio.ensure_future(rig.sh("sleep 0.05; ls /proc/self/fd", user="bird"))
        assert (await rig.sh("ls /proc/self/fd")).stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is the directory
        assert (await reading).stdout.split() == [b"0", b"1", b"2", b"3"]
        signals = (await rig.sh("grep Sig /proc/self/status")).stdout.split()
        assert signals[signals.index(b"SigBlk:") + 1] == b"0000000000000000"
        assert signals[signals.index(b"SigIgn:") + 1] == b"0000000000000000"


async def test_root_inside_cannot_reach_the_descriptors_or_memory_of_the_guest() -> None:
    async with running() as rig:
        for attempt in (
            "ls /proc/1/fd",
            "cat /proc/1/mem",
            "cat /proc/1/maps",
            "cat /proc/1/environ",
            "ls /proc/1/root/",
            "nsenter -t 1 -m true",
        ):
            assert (await rig.sh(attempt)).exit_code != 0, attempt
        ptrace = {"x86_64": 101, "aarch64": 117}[platform.machine()]
        attach = f"perl -e 'exit(syscall({ptrace}, 16, $ARGV[0] + 0, 0, 0) == 0 ? 0 : 1)' "
        assert (await rig.sh(f"sleep 5 & {attach} $!")).exit_code == 0  # it is the right call
        assert (await rig.sh(f"{attach} 1")).exit_code == 1


async def test_root_inside_cannot_reach_a_helper_that_holds_a_connection() -> None:
    async with running() as rig:
        connection = await Connection.open(rig.socket_path)
        await connection.send(
            render_frame(Kind.WRITE, text("bird") + text("/tmp/held") + struct.pack("<IBH", 0o600, 0, 0))
        )

        async def there() -> bool:
            return b".dovecote-" in (await rig.sh("ls -A /tmp")).stdout

        await until(there)
        # PIDs of processes with the name of the guest, beside PID 1.
        script = (
            "for p in /proc/[0-9]*; do test $(cat $p/comm) = guest && test $p != /proc/1 && ls $p/fd && echo in; done"
        )
        assert b"in" not in (await rig.sh(script)).stdout
        connection.close()

        async def gone() -> bool:
            return not (await rig.sh("ls -A /tmp")).stdout

        await until(gone)


async def test_signals_from_inside_do_not_end_the_guest() -> None:
    async with running() as rig:
        before = await rig.guest.hello()
        await rig.sh("for s in 1 2 3 6 9 10 11 13 14 15 17 19 20; do kill -$s 1; done")
        assert (await rig.guest.hello()).id == before.id
        assert (await rig.sh("echo fine")).stdout == b"fine\n"


async def test_no_processes_left_is_a_clear_error_and_timeouts_still_kill() -> None:
    async with running() as rig:
        command = Command(("/bin/sh", "-c", "sleep 4801.1 & exec sleep 4801.1"), timeout=0.5)
        running_ = await rig.guest.start(command)
        await until(lambda: len(rig.processes("4801.1")) == 2)
        before = resource.prlimit(rig.pid, resource.RLIMIT_NPROC)
        resource.prlimit(rig.pid, resource.RLIMIT_NPROC, (1, before[1]))
        with pytest.raises(NoCapacity) as error:
            await rig.sh("true")
        assert error.value.code == "no_processes"
        with pytest.raises(NoCapacity):
            await rig.guest.stat("/tmp", user="root")
        events = [e async for e in rig.guest.attach(running_.number)]
        assert events[-1] == Exited(None, 9, True, 0)
        await until(lambda: not rig.processes("4801.1"))
        resource.prlimit(rig.pid, resource.RLIMIT_NPROC, before)
        assert (await rig.sh("echo fine")).stdout == b"fine\n"


async def test_more_commands_than_the_bound_are_refused() -> None:
    async with running() as rig:
        for _ in range(512):
            await rig.guest.start(Command(("sleep", "4802.2")))
        with pytest.raises(NoCapacity) as error:
            await rig.sh("true")
        assert error.value.code == "too_many"
        assert (await rig.guest.hello()).running == 512


@pytest.mark.parametrize("seed", range(4))
async def test_garbage_and_mutated_requests_do_not_hurt_it(seed: int) -> None:
    """Under the compiler's address and undefined-behaviour checks, whose reports fail the rig."""
    rng = random.Random(seed)
    async with running(sanitized_program()) as rig:
        before = await rig.guest.hello()
        await throw_many(rig, rng, 400)
        assert (await rig.guest.hello(timeout=BOUND)).id == before.id
        assert (await rig.sh("echo fine")).stdout == b"fine\n"


async def test_what_was_thrown_at_it_leaves_no_helper_and_no_descriptor() -> None:
    async with running() as rig:
        await rig.guest.hello()
        before = rig.descriptors()
        await throw_many(rig, random.Random(5), 600)

        async def is_at_rest() -> bool:
            for command in await rig.guest.list_commands():
                if command.is_running:
                    await rig.guest.signal(command.number, 9)
                else:
                    await rig.guest.release(command.number)
            return not rig.helpers() and rig.descriptors() == before

        await until(is_at_rest)


async def test_lengths_that_lie_cost_no_memory_and_idle_connections_only_a_little() -> None:
    async with running() as rig:
        lying = struct.pack("<IB", 1 << 20, Kind.START) + b"x"
        connections = []
        for _ in range(400):
            connections.append(await Connection.open(rig.socket_path))
            await connections[-1].send(lying)
        await rig.guest.hello()
        assert rig.rss_bytes("RssAnon") < 4 << 20
        for connection in connections:
            connection.close()
        await rig.guest.hello()


async def test_a_frame_over_the_bound_is_refused_before_it_is_read() -> None:
    async with running() as rig:
        connection = await Connection.open(rig.socket_path)
        await connection.send(struct.pack("<IB", (1 << 20) + 1, Kind.START))
        kind, data = await connection.receive(BOUND)
        assert kind == Kind.FAILED
        assert b"bad_request" in data
        connection.close()


async def test_more_connections_than_the_bound_are_closed_and_then_taken_again() -> None:
    async with running() as rig:
        connections = [await Connection.open(rig.socket_path) for _ in range(1024)]
        with pytest.raises(DovecoteError) as error:
            await asyncio.gather(*(rig.guest.hello() for _ in range(5)))
        assert error.value.code == "guest_unreachable"
        for connection in connections:
            connection.close()

        async def answers() -> bool:
            with contextlib.suppress(DovecoteError):
                await rig.guest.hello()
                return True
            return False

        await until(answers)
