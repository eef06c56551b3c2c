"""Frames for a guest: right ones, and what becomes of them by a few changes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct

from dovecote.host.guest import Command
from dovecote.host.guest.files import render_metadata
from dovecote.host.guest.protocol import Kind, render_frame, render_start, text
from tests.system.guest_rig import Rig


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


async def throw_many(rig: Rig, rng: random.Random, count: int) -> None:
    """So many connections, one in eight with garbage from its first byte on."""
    frames = valid_frames()
    for i in range(count):
        data = rng.randbytes(rng.randrange(1, 300)) if i % 8 == 0 else mutated(rng, rng.choice(frames))
        await asyncio.to_thread(throw, rig, data, rng)
