"""What every driver of `Disks` promises."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dovecote.errors import Conflict, Invalid, NotFound
from dovecote.host.storage.pool import BtrfsDisks, Disks

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20
OWNER = 3_000_000


@pytest.fixture(params=["simple", "ordinary"])
async def disks(request: pytest.FixtureRequest) -> AsyncIterator[Disks]:
    with tempfile.TemporaryDirectory(prefix="dovecote-quota-") as directory:
        place = Path(directory)
        driver = BtrfsDisks(place / "pool", place / "at", max_bytes=1 << 30, simple=request.param == "simple")
        try:
            await driver.ensure()
            yield driver
        finally:
            await driver.remove()


def fill(path: Path, limit: int) -> OSError | None:
    """Writes up to `limit` bytes; the error that stopped it."""
    try:
        with open(path, "ab", buffering=0) as file:
            while left := limit - file.tell():
                file.write(os.urandom(min(left, 65536)))
            if limit > 65536:
                os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


async def test_a_limit_is_seen_by_the_writer(disks: Disks) -> None:
    """A write over the limit fails with EDQUOT or ENOSPC, and what was written before stays readable."""
    upper = await disks.create("a", max_bytes=8 * MIB, owner=OWNER) / "upper"
    (upper / "before").write_bytes(b"b" * MIB)
    error = fill(upper / "big", 64 * MIB)
    assert error is not None
    assert error.errno in (errno.EDQUOT, errno.ENOSPC)
    assert (upper / "before").read_bytes() == b"b" * MIB
    assert 0 < (upper / "big").stat().st_size <= 8 * MIB


async def test_many_small_files_count_too(disks: Disks) -> None:
    upper = await disks.create("a", max_bytes=2 * MIB, owner=OWNER) / "upper"
    error = next(filter(None, (fill(upper / f"{number}", 900) for number in range(100_000))), None)
    assert error is not None
    assert error.errno in (errno.EDQUOT, errno.ENOSPC)


async def test_a_full_disk_hurts_only_itself(disks: Disks) -> None:
    full = await disks.create("full", max_bytes=4 * MIB, owner=OWNER) / "upper"
    other = await disks.create("other", max_bytes=4 * MIB, owner=OWNER) / "upper"
    assert fill(full / "f", 64 * MIB)
    assert fill(other / "f", 2 * MIB) is None


async def test_a_disk_that_holds_more_than_its_limit_can_be_given_more(disks: Disks) -> None:
    upper = await disks.create("a", max_bytes=16 * MIB, owner=OWNER) / "upper"
    assert fill(upper / "f", 8 * MIB) is None
    await disks.limit("a", max_bytes=MIB)
    assert fill(upper / "g", MIB)
    await disks.limit("a", max_bytes=32 * MIB)
    assert fill(upper / "g", 8 * MIB) is None


async def test_a_limit_can_be_raised_and_lowered_while_in_use(disks: Disks) -> None:
    upper = await disks.create("a", max_bytes=4 * MIB, owner=OWNER) / "upper"
    assert fill(upper / "f", 16 * MIB)
    await disks.limit("a", max_bytes=32 * MIB)
    assert fill(upper / "g", 8 * MIB) is None
    await disks.limit("a", max_bytes=6 * MIB)
    assert fill(upper / "h", MIB)
    assert (await disks.usage("a")).max_bytes == 6 * MIB


async def test_usage_follows_what_is_written(disks: Disks) -> None:
    upper = await disks.create("a", max_bytes=32 * MIB, owner=OWNER) / "upper"
    empty = await disks.usage("a")
    assert empty.max_bytes == 32 * MIB
    assert empty.bytes < MIB
    assert fill(upper / "f", 4 * MIB) is None
    assert 4 * MIB <= (await disks.usage("a")).bytes < 6 * MIB


async def test_a_new_disk_belongs_to_its_owner(disks: Disks) -> None:
    disk = await disks.create("a", max_bytes=4 * MIB, owner=OWNER)
    for part in ("upper", "work"):
        assert (disk / part).stat().st_uid == OWNER
        assert (disk / part).stat().st_gid == OWNER


async def test_a_snapshot_stays_as_it_was_and_cannot_be_written(disks: Disks) -> None:
    disk = await disks.create("a", max_bytes=4 * MIB, owner=OWNER)
    (disk / "upper/f").write_text("then")
    copy = await disks.snapshot("a", "a.1")
    (disk / "upper/f").write_text("now")
    assert (copy / "upper/f").read_text() == "then"
    with pytest.raises(OSError, match="Read-only"):
        (copy / "upper/f").write_text("never")


async def test_delete_may_be_repeated_and_takes_the_record_along(disks: Disks) -> None:
    await disks.create("a", max_bytes=4 * MIB, owner=OWNER)
    await disks.write_record("a", {"session": "one"})
    await disks.snapshot("a", "a.1")
    assert await disks.list() == ["a", "a.1"]
    for name in ("a", "a.1", "a"):
        await disks.delete(name)
    assert await disks.list() == []
    assert await disks.read_record("a") is None


async def test_a_record_can_be_written_on_a_full_disk(disks: Disks) -> None:
    disk = await disks.create("a", max_bytes=2 * MIB, owner=OWNER)
    assert fill(disk / "upper/f", 16 * MIB)
    await disks.write_record("a", {"epoch": 1})
    await disks.write_record("a", {"epoch": 2, "id_base": OWNER})
    assert await disks.read_record("a") == {"epoch": 2, "id_base": OWNER}


async def test_disks_survive_removal_and_the_next_start(disks: Disks) -> None:
    disk = await disks.create("a", max_bytes=4 * MIB, owner=OWNER)
    (disk / "upper/f").write_text("kept")
    await disks.write_record("a", {"epoch": 7})
    await disks.remove()
    await disks.remove()
    assert not disk.exists()
    await disks.ensure()
    await disks.ensure()
    assert (disk / "upper/f").read_text() == "kept"
    assert await disks.read_record("a") == {"epoch": 7}
    assert fill(disk / "upper/g", 16 * MIB)


async def test_what_does_not_exist_is_not_found(disks: Disks) -> None:
    with pytest.raises(NotFound):
        await disks.limit("none", max_bytes=MIB)
    with pytest.raises(NotFound):
        await disks.usage("none")
    with pytest.raises(NotFound):
        await disks.snapshot("none", "copy")
    with pytest.raises(NotFound):
        await disks.write_record("none", {})


async def test_what_exists_is_not_replaced(disks: Disks) -> None:
    disk = await disks.create("a", max_bytes=4 * MIB, owner=OWNER)
    (disk / "upper/f").write_text("mine")
    with pytest.raises(Conflict):
        await disks.create("a", max_bytes=4 * MIB, owner=OWNER)
    with pytest.raises(Conflict):
        await disks.snapshot("a", "a")
    assert (disk / "upper/f").read_text() == "mine"


@pytest.mark.parametrize("name", ["", ".", "..", ".records", "a/b", "../a", "a\n", "x" * 121])
async def test_a_name_cannot_leave_the_pool(disks: Disks, name: str) -> None:
    with pytest.raises(Invalid):
        await disks.create(name, max_bytes=MIB, owner=OWNER)
    with pytest.raises(Invalid):
        await disks.delete(name)
