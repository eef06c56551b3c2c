"""How the server comes to its end: whatever fails on the way, the rest is done."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dovecote import main
from tests.unit.control_world import until

pytestmark = pytest.mark.anyio

ENDS = ["invoking", "keeping", "placing", "apps", "templates", "files", "tools", "api", "gateway", "host", "disks"]


class Rooms:
    """`ended` are those that were stopped, in order; the one that `fails` says so."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.ended = fails, list[str]()
        self.api = SimpleNamespace(should_exit=False, force_exit=False, serve=self._serve)
        self.server = SimpleNamespace(
            settings=SimpleNamespace(tick=0.001, domain="localhost", port=8080),
            host=SimpleNamespace(
                instances=SimpleNamespace(stop_host=self._end("host")),
                close=self._end("disks"),
                limit=SimpleNamespace(tick=self._tick),
            ),
            sessions=SimpleNamespace(placing=SimpleNamespace(stop=self._end("placing"))),
            keeping=self._room("keeping"),
            apps=self._room("apps"),
            templates=self._room("templates"),
            files=SimpleNamespace(stop=self._end("files")),
            gateway=SimpleNamespace(start=self._start, stop=self._end("gateway"), renew=self._tick),
            api=self.api,
            snapshots=SimpleNamespace(retain=self._tick),
            tools=SimpleNamespace(stop=self._end("tools")),
            metering=SimpleNamespace(tick=self._tick),
            path_limits=SimpleNamespace(tick=self._tick),
            invoking=SimpleNamespace(
                stop=self._end("invoking"), dispatching=SimpleNamespace(tick=self._tick, forget=self._tick)
            ),
            collect=self._tick,
            is_open=False,
        )

    def _room(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(adopt=self._tick, tick=self._tick, stop=self._end(name))

    async def _tick(self) -> None:
        pass

    async def _start(self) -> None:
        if self.fails == "starting":
            raise RuntimeError("starting")

    def _end(self, name: str) -> Callable[..., Awaitable[None]]:
        async def end(**_: object) -> None:
            self.ended.append(name)
            if self.fails == name:
                raise RuntimeError(name)

        return end

    async def _serve(self) -> None:
        await until(lambda: bool(self.api.should_exit))
        self.ended.append("api")


async def run(rooms: Rooms) -> None:
    running = asyncio.ensure_future(main._run(cast(Any, rooms.server)))
    if rooms.fails != "starting":
        await until(lambda: bool(rooms.server.is_open) or running.done())
        if running.done():
            await running  # it tells why
        os.kill(os.getpid(), signal.SIGTERM)
    await running


async def test_everything_is_brought_to_its_end_in_order() -> None:
    rooms = Rooms()
    await run(rooms)
    assert rooms.ended == ENDS
    assert not rooms.server.is_open


@pytest.mark.parametrize("fails", [name for name in ENDS if name != "api"])
async def test_a_step_that_fails_skips_no_other_and_is_told(fails: str) -> None:
    rooms = Rooms(fails)
    with pytest.raises(RuntimeError, match=fails):
        await run(rooms)
    assert rooms.ended == ENDS


async def test_a_start_that_fails_leaves_nothing_open() -> None:
    rooms = Rooms("starting")
    with pytest.raises(RuntimeError, match="starting"):
        await run(rooms)
    assert rooms.ended == ENDS
