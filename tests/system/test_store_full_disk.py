"""SQLite on a disk that is really full, and on one that really refuses writes."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dovecote.errors import StorageFailed
from dovecote.store import Store, open_store
from tests.contract.stores import A, invocation, session

pytestmark = [pytest.mark.system, pytest.mark.anyio]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], check=True, timeout=10)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True, timeout=10)


@pytest.fixture
async def store(disk: Path) -> AsyncIterator[Store]:
    store = open_store(f"sqlite:///{disk}/store.sqlite")
    await store.open()
    await store.migrate()
    yield store
    await store.close()


async def test_a_full_disk_loses_nothing_and_heals(store: Store, disk: Path) -> None:
    """The write that no longer fits fails whole; what was there is readable; with space it goes on."""
    scope = store.tenant(A)
    (disk / "ballast").write_bytes(b"x" * (2 << 20))
    written = []

    async def fill() -> None:
        for _ in range(1000):
            written.append(await scope.sessions.insert(session(env={"A": "x" * 20_000})))

    async def write_together() -> None:
        async with scope.together() as t:
            await t.invocations.insert(invocation())
            await t.sessions.insert(session(env={"A": "x" * 3_000_000}))

    with pytest.raises(StorageFailed) as caught:
        await fill()
    assert caught.value.code == "disk_full"
    assert caught.value.hint
    assert written
    with pytest.raises(StorageFailed):
        await write_together()
    assert {each.id async for each in scope.sessions.each()} == {each.id for each in written}
    assert await scope.invocations.count() == 0
    (disk / "ballast").unlink()
    await scope.sessions.insert(session())


async def test_a_disk_that_refuses_writes(store: Store, disk: Path) -> None:
    await store.tenant(A).sessions.insert(session())
    await store.close()
    await asyncio.to_thread(subprocess.check_call, ["mount", "-o", "remount,ro", str(disk)], timeout=10)
    with pytest.raises(StorageFailed) as caught:
        await store.open()
    assert caught.value.code == "store_read_only"
