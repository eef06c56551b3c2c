"""A guest against code inside that attacks it, and against a client that sends garbage."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import random
import resource
import socket
import struct

import pytest

from dovecote.errors import DovecoteError, NoCapacity
from dovecote.host.guest import Command, Exited
from dovecote.host.guest.connection import Connection
from dovecote.host.guest.files import render_metadata
from dovecote.host.guest.protocol import Kind, render_frame, render_start, text
from tests.system.guest_rig import BOUND, Rig, running, sanitized_program, until

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


def valid_frames() -> list[bytes]:
    command = Command(("/bin/sh", "-c", "echo x; cat"), stdin=True, env={"A": "b"}, tag="t", timeout=0.5)
    user, path = text("bird"), text("/tmp/f")
    return [
        render_frame(Kind.HELLO),
        render_start(command),
        render_start(command, detach=True) + render_frame(Kind.DATA, b"x"),
        render_start(Command(("/bin/cat",), pty=(3, 4), timeout=0.5)) + render_frame(Kind.CLOSE),
        render_start(command, forget=True) + render_frame(Kind.DATA, b"abc") + render_frame(Kind.CLOSE),
        render_frame(Kind.ATTACH, struct.pack("<IQ", 1, 0)),
        render_frame(Kind.LIST),
        render_frame(Kind.SIGNAL, struct.pack("<II", 1, 15)),
        render_frame(Kind.STDIN, struct.pack("<I", 1)) + render_frame(Kind.DATA, b"y" * 100) + render_frame(Kind.END),
        render_frame(Kind.RESIZE, struct.pack("<IHH", 1, 2, 3)),
        render_frame(Kind.RELEASE, struct.pack("<I", 1)),
        render_frame(Kind.READ, user + path + struct.pack("<QQ", 0, 100)),
        render_frame(
            Kind.WRITE, user + path + struct.pack("<IB", 0o644, 7) + render_metadata({"a": "b", "c.d": "é" * 50})
        )
        + render_frame(Kind.DATA, b"z" * 500)
        + render_frame(Kind.END),
        render_frame(Kind.STAT, user + path + b"\1"),
        render_frame(Kind.LIST_DIR, user + text("/usr/lib") + struct.pack("<HIB", 2, 50, 1)),
        render_frame(Kind.MAKE_DIR, user + text("/tmp/a/b") + struct.pack("<I", 0o755)),
        render_frame(Kind.REMOVE, user + text("/tmp/a") + b"\1"),
        render_frame(Kind.RENAME, user + path + text("/tmp/g")),
        render_frame(Kind.RENAME, text("root") + path + text("/dev/shm/f")),
        render_frame(Kind.LINK, user + text("/tmp/l") + text("f")),
        render_frame(Kind.ALTER, user + path + struct.pack("<BI", 3, 0o700) + render_metadata({"a": "x"})),
        render_frame(Kind.WATCH, user + text("/tmp") + b"\1"),
        render_frame(Kind.PORTS),
        render_frame(Kind.WAIT_PORT, struct.pack("<HI", 80, 20)),
        render_frame(Kind.SYNC),
    ]


def mutated(rng: random.Random, frame: bytes) -> bytes:
    data = bytearray(frame)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                del data[at : at + rng.randrange(1, 9)]
            case 1:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 2 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 3:
                data[at : at + 4] = rng.choice(
                    [b"\xff" * 4, b"\0" * 4, b"\0\0\x10\0", b"\xff\xff\x0f\0", b"\xff\xff\xff\x7f"]
                )
            case 4:
                data = data[:at]
            case _:
                data += rng.choice(valid_frames())
        data = data or bytearray(b"\0")
    if len(data) > 4 and data[4] == Kind.SHUTDOWN:
        data[4] = Kind.HELLO
    return bytes(data)


def throw(rig: Rig, data: bytes, rng: random.Random) -> None:
    """Sends it in one or two pieces and reads some, without ever waiting long."""
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(OSError):
        sock.settimeout(0.005)
        sock.connect(str(rig.socket_path))
        cut = rng.randrange(len(data) + 1)
        sock.send(data[:cut])
        sock.send(data[cut:])
        for _ in range(rng.randrange(4)):
            sock.recv(rng.choice([1, 100, 65536]))


@pytest.mark.parametrize("seed", range(4))
async def test_garbage_and_mutated_requests_do_not_hurt_it(seed: int) -> None:
    """Under the compiler's address and undefined-behaviour checks, whose reports fail the rig."""
    rng = random.Random(seed)
    frames = valid_frames()
    async with running(sanitized_program()) as rig:
        before = await rig.guest.hello()
        for i in range(400):
            data = rng.randbytes(rng.randrange(1, 300)) if i % 8 == 0 else mutated(rng, rng.choice(frames))
            await asyncio.to_thread(throw, rig, data, rng)
        assert (await rig.guest.hello(timeout=BOUND)).id == before.id
        assert (await rig.sh("echo fine")).stdout == b"fine\n"


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
