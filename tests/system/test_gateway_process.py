"""Envoy's process: kept running, adopted, replaced, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import httpx
import pytest

from dovecote.errors import Conflict
from tests.system.gateway_world import BOUND, SLUG, World, until, world

pytestmark = [pytest.mark.system, pytest.mark.anyio]

BOX = f"3000-{SLUG}.box.localhost"


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def answers(w: World) -> bool:
    try:
        return (await w.get(BOX)).status_code == 200
    except httpx.TransportError:
        return False


async def test_it_is_ready_from_start_to_stop_and_leaves_no_process() -> None:
    async with world() as w:
        gateway = await w.open()
        pid = gateway.envoy_pid
        assert pid is not None
        assert await gateway.is_ready()
        await gateway.stop()
        assert not is_running(pid)
        assert not await gateway.is_ready()


@pytest.mark.parametrize("left", ["", "5f", "5f" * 16 + "\n"])
async def test_a_secret_that_was_half_written_is_replaced(left: str) -> None:
    """Without one Envoy would take no note of ours: no status of a refusal, and nothing learned."""
    async with world() as w:
        (w.run_dir / "gateway").mkdir(mode=0o700)
        (w.run_dir / "gateway" / "secret").write_text(left)
        await w.open()
        assert (await w.get(BOX)).status_code == 404
        w.points_to(await w.instance("a"))
        for _ in range(2):
            assert (await w.get(BOX)).json()["name"] == "a"
        assert len(w.asks) == 2
        mode = (w.run_dir / "gateway" / "secret").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600


async def test_envoy_is_started_again_when_it_is_killed() -> None:
    async with world() as w:
        gateway = await w.open()
        w.points_to(await w.instance("a"))
        await gateway.set_apps({"shop": ["127.0.0.1:9"]})
        assert await answers(w)
        first = gateway.envoy_pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: answers(w))
        assert gateway.envoy_pid not in (None, first)
        assert await gateway.is_ready()


async def test_a_new_gateway_adopts_the_envoy_that_runs_with_its_connections_and_routes() -> None:
    async with world() as w:
        former = await w.open()
        pid = former.envoy_pid
        w.points_to(await w.instance("a"))
        assert await answers(w)
        reader, writer = await w.dial(BOX, "/socket")
        await former.stop(keep_envoy=True)
        assert await answers(w)  # warm, with no Python at all
        asked = len(w.asks)
        gateway = await w.open()
        assert gateway.envoy_pid == pid
        writer.write(b"still")
        assert await asyncio.wait_for(reader.readexactly(7), BOUND) == b"a:still"
        writer.close()
        assert await answers(w)
        assert len(w.asks) == asked
        cold = await w.get(f"3001-{SLUG}.box.localhost")
        assert (cold.status_code, len(w.asks)) == (200, asked + 1)


async def test_an_adopted_envoy_is_watched_like_a_child() -> None:
    async with world() as w:
        former = await w.open()
        await former.stop(keep_envoy=True)
        gateway = await w.open()
        pid = gateway.envoy_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

        async def is_another() -> bool:
            return gateway.envoy_pid not in (None, pid) and await gateway.is_ready()

        await until(is_another)


async def test_an_envoy_of_another_configuration_is_replaced() -> None:
    async with world() as w:
        former = await w.open()
        pid = former.envoy_pid
        assert pid is not None
        await former.stop(keep_envoy=True)
        w.route_ttl += 1
        gateway = await w.open()
        assert gateway.envoy_pid != pid
        assert not is_running(pid)
        assert await gateway.is_ready()


async def test_apps_are_still_served_after_a_restart_of_python() -> None:
    async with world() as w:
        former = await w.open()
        instance = await w.instance("a")
        w.points_to(instance)
        await former.set_apps({"shop": [instance.address]})

        async def nobody_asks() -> bool:
            before = len(w.asks)
            assert (await w.get("shop.app.localhost")).status_code == 200
            return len(w.asks) == before

        await until(nobody_asks)
        await former.stop(keep_envoy=True)
        asked = len(w.asks)
        await w.open()
        assert (await w.get("shop.app.localhost")).status_code == 200
        assert len(w.asks) == asked


async def test_while_python_is_away_cold_requests_get_a_clear_503() -> None:
    async with world() as w:
        gateway = await w.open()
        await gateway.stop(keep_envoy=True)
        response = await w.get(BOX)
        said = response.json()["error"]
        assert (response.status_code, said["code"]) == (503, "gateway_not_ready")
        assert said["request_id"] == response.headers["x-request-id"]
        await w.open()  # so that it is stopped at the end


async def test_a_port_that_is_taken_is_a_conflict() -> None:
    async with world() as w:
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            other.bind(("127.0.0.1", w.port))
            other.listen()
            gateway = w.build()
            with pytest.raises(Conflict) as caught:
                await gateway.start()
            assert caught.value.code == "port_taken"


async def test_what_it_keeps_is_for_its_owner_only() -> None:
    async with world() as w:
        await w.open()
        directory = w.run_dir / "gateway"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for name in ("secret", "envoy.json", "python.sock", "wake.sock", "admin.sock"):
            assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600, name


async def test_envoy_survives_the_sigkill_of_our_process_and_is_adopted() -> None:
    async with world() as w:
        instance = await w.instance("a")
        w.points_to(instance)
        ours = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            ONE_LIFE.format(run_dir=str(w.run_dir), port=w.port, address=instance.address),
            stdout=asyncio.subprocess.PIPE,
        )
        assert ours.stdout is not None
        pid = int(await asyncio.wait_for(ours.stdout.readline(), BOUND))
        try:
            reader, writer = await w.dial(BOX, "/socket")
        finally:
            ours.kill()
            await ours.wait()
            gateway = await w.open()  # its stop ends Envoy, whatever happens here
        assert gateway.envoy_pid == pid
        writer.write(b"still")
        assert await asyncio.wait_for(reader.readexactly(7), BOUND) == b"a:still"
        writer.close()
        assert await answers(w)
        assert w.asks == []


ONE_LIFE = """
import asyncio
from pathlib import Path
from tests.system.gateway_world import Answer, World

async def main():
    w = World(Path({run_dir!r}))
    w.port = {port}
    async def answer(ask):
        return Answer({address!r})
    w.answers = answer
    gateway = await w.open()
    print(gateway.envoy_pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
