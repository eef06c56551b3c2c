"""Several processes with one database: they start at once, differ in version, are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from dovecote.errors import Failed
from dovecote.store import open_store
from tests.contract.stores import A, Place, place, store, user
from tests.servers import postgresql_server

__all__ = ["place", "postgresql_server", "store"]  # fixtures

pytestmark = pytest.mark.anyio


async def test_migrating_may_be_repeated_and_by_several_at_once(place: Place) -> None:
    stores = [open_store(place.url) for _ in range(4)]
    try:
        for each in stores:
            await each.open()
        await asyncio.gather(*(each.migrate() for each in stores))
        record = await stores[0].tenant(A).users.insert(user())
        await stores[1].migrate()
        assert await stores[2].tenant(A).users.get(record.id) == record
    finally:
        for each in stores:
            await each.close()


async def test_processes_that_start_at_once_all_migrate(place: Place) -> None:
    program = (
        "import asyncio, sys; from dovecote.store import open_store\n"
        "async def main():\n"
        "    store = open_store(sys.argv[1]); await store.open(); await store.migrate(); await store.close()\n"
        "asyncio.run(main())"
    )
    started = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, place.url, stderr=asyncio.subprocess.PIPE)
        for _ in range(3)
    ]
    results = await asyncio.gather(*(each.communicate() for each in started))
    assert [each.returncode for each in started] == [0, 0, 0], results


async def test_tables_of_a_newer_version_are_left_alone(place: Place) -> None:
    store = open_store(place.url)
    await store.open()
    try:
        await store.migrate()
        async with store._database.transaction() as (_, connection):  # type: ignore[attr-defined]
            await connection.command("UPDATE alembic_version SET version_num = 'r9999'")
        with pytest.raises(Failed) as caught:
            await store.migrate()
        assert caught.value.code == "store_newer"
    finally:
        await store.close()


async def test_a_write_survives_sigkill(place: Place) -> None:
    """What a process was told is written is there after its death."""
    program = (
        "import asyncio, os, signal, sys\n"
        "from dovecote.store import open_store\n"
        "from tests.contract.stores import user\n"
        "async def main():\n"
        "    store = open_store(sys.argv[1]); await store.open(); await store.migrate()\n"
        "    print((await store.tenant('ten_a').users.insert(user())).id, flush=True)\n"
        "    async with store.tenant('ten_a').together() as t:\n"
        "        await t.users.insert(user()); os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, place.url, stdout=asyncio.subprocess.PIPE, cwd=os.getcwd()
    )
    said, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    store = open_store(place.url)
    await store.open()
    try:
        assert [each.id for each in await store.tenant(A).users.list()] == [said.decode().strip()]
    finally:
        await store.close()
