"""What a guest promises about files, against the real program as PID 1."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from dovecote.errors import Conflict, DovecoteError, Forbidden, Invalid, NotFound, StorageFailed
from dovecote.host.guest import Guest
from tests.system.guest_rig import BOUND, Rig, running, until

pytestmark = [pytest.mark.system, pytest.mark.anyio]


async def content(rig: Rig, path: str, *, user: str = "root", offset: int = 0, length: int | None = None) -> bytes:
    parts = rig.guest.read_file(path, user=user, offset=offset, length=length)
    return b"".join([part async for part in parts])


async def refused(call: Awaitable[object], kind: type[DovecoteError], code: str) -> None:
    async with asyncio.timeout(BOUND):
        with pytest.raises(kind) as error:
            await call
    assert error.value.code == code


async def test_what_is_written_is_read_back_and_belongs_to_the_user() -> None:
    async with running() as rig:
        data = os.urandom(3_000_000)
        await rig.guest.write_file("/home/bird/a/b/é.bin", data, user="bird", mode=0o640, fsync=True)
        assert await content(rig, "/home/bird/a/b/é.bin", user="bird") == data
        assert await content(rig, "/home/bird/a/b/é.bin", offset=1_000_000, length=70_000) == data[1_000_000:1_070_000]
        assert await content(rig, "/home/bird/a/b/é.bin", offset=4_000_000) == b""
        stat = await rig.guest.stat("/home/bird/a/b/é.bin", user="root")
        assert (stat.kind, stat.mode, stat.uid, stat.gid, stat.size) == ("file", 0o640, 1000, 1000, 3_000_000)
        assert (await rig.guest.stat("/home/bird/a", user="root")).uid == 1000


async def test_a_write_in_pieces_arrives_whole() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(300):
            yield bytes([i % 256]) * 7001
        yield b""

    async with running() as rig:
        await rig.guest.write_file("/tmp/x", pieces(), user="root")
        assert await content(rig, "/tmp/x") == b"".join(bytes([i % 256]) * 7001 for i in range(300))
        await rig.guest.write_file("/tmp/x", b"", user="root")
        assert await content(rig, "/tmp/x") == b""


async def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_else() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"new" * 100_000
        raise ValueError("the sender broke")

    async with running() as rig:
        await rig.guest.write_file("/tmp/d/x", b"old", user="root")
        with pytest.raises(ValueError, match="broke"):
            await rig.guest.write_file("/tmp/d/x", broken(), user="root")

        async def only_the_old() -> bool:
            return [e.path for e in await rig.guest.list_dir("/tmp/d", user="root")] == ["x"]

        await until(only_the_old)
        assert await content(rig, "/tmp/d/x") == b"old"


async def test_a_write_goes_through_a_link_and_the_link_stays() -> None:
    async with running() as rig:
        await rig.sh("echo old > /tmp/real; ln -s real /tmp/link")
        await rig.guest.write_file("/tmp/link", b"new", user="root")
        assert await content(rig, "/tmp/real") == b"new"
        stat = await rig.guest.stat("/tmp/link", user="root", follow=False)
        assert (stat.kind, stat.target) == ("link", "real")
        assert (await rig.guest.stat("/tmp/link", user="root")).kind == "file"


async def test_a_user_reaches_only_what_is_allowed_to_it() -> None:
    async with running() as rig:
        await rig.sh("mkdir -p /root/in; echo secret > /root/in/x; chmod 700 /root; echo r > /tmp/r; chmod 600 /tmp/r")
        guest = rig.guest
        await refused(content(rig, "/tmp/r", user="bird"), Forbidden, "permission_denied")
        await refused(content(rig, "/root/in/x", user="bird"), Forbidden, "permission_denied")
        await refused(guest.stat("/root/in", user="bird"), Forbidden, "permission_denied")
        await refused(guest.list_dir("/root", user="bird"), Forbidden, "permission_denied")
        await refused(guest.write_file("/root/y", b"", user="bird"), Forbidden, "permission_denied")
        await refused(guest.write_file("/etc/new/y", b"", user="bird"), Forbidden, "permission_denied")
        await refused(guest.make_dir("/etc/z", user="bird"), Forbidden, "permission_denied")
        await refused(guest.remove("/tmp/r", user="bird"), Forbidden, "permission_denied")  # /tmp is sticky
        await refused(guest.rename("/tmp/r", "/tmp/s", user="bird"), Forbidden, "permission_denied")
        await refused(content(rig, "/tmp/r", user="nobody-we-know"), NotFound, "no_such_user")
        assert await content(rig, "/tmp/r") == b"r\n"


async def test_what_is_no_regular_file_is_refused_and_hangs_nobody() -> None:
    async with running() as rig:
        await rig.sh("mkfifo /tmp/fifo; ln -s /dev/zero /tmp/zero")
        for path in ("/tmp/fifo", "/dev/zero", "/tmp/zero"):
            await refused(content(rig, path), Invalid, "not_regular_file")
            await refused(rig.guest.write_file(path, b"x", user="root"), Invalid, "not_regular_file")
        await refused(content(rig, "/tmp"), Invalid, "is_directory")
        await refused(rig.guest.write_file("/tmp", b"x", user="root"), Invalid, "is_directory")
        assert (await rig.guest.stat("/tmp/fifo", user="root")).kind == "fifo"


async def test_what_is_not_there_is_said_by_name() -> None:
    async with running() as rig:
        guest = rig.guest
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: content(rig, "/tmp/nothing"),
            lambda: guest.stat("/tmp/nothing", user="root"),
            lambda: guest.list_dir("/tmp/nothing", user="root"),
            lambda: guest.remove("/tmp/nothing", user="root"),
            lambda: guest.rename("/tmp/nothing", "/tmp/x", user="root"),
            lambda: guest.write_file("/tmp/no/such", b"x", user="root", make_parents=False),
        ]
        for call in calls:
            await refused(call(), NotFound, "file_not_found")
        await refused(content(rig, "/etc/passwd/x"), Invalid, "not_a_directory")
        await refused(content(rig, "relative"), Invalid, "malformed_path")
        await refused(content(rig, "/" + "x" * 300), Invalid, "malformed_path")
        await refused(content(rig, "/" + "x/" * 3000), Invalid, "malformed_path")
        await refused(guest.write_file("/" + "x/" * 3000 + "y", b"", user="root"), Invalid, "malformed_path")


async def test_removing_a_link_or_a_tree_with_links_spares_what_they_name() -> None:
    async with running() as rig:
        await rig.sh("mkdir -p /tmp/keep /tmp/go/deep; echo k > /tmp/keep/x; ln -s /tmp/keep /tmp/link")
        await rig.sh("ln -s /tmp/keep /tmp/go/link; ln -s ../../keep/x /tmp/go/deep/l; mkfifo /tmp/go/deep/f")
        await rig.guest.remove("/tmp/link", user="root", recursive=True)
        await refused(rig.guest.remove("/tmp/go", user="root"), Conflict, "directory_not_empty")
        await rig.guest.remove("/tmp/go", user="root", recursive=True)
        assert [e.path for e in await rig.guest.list_dir("/tmp", user="root", depth=3)] == ["keep", "keep/x"]


async def test_a_tree_that_is_too_deep_is_an_error_and_not_a_crash() -> None:
    async with running() as rig:
        await rig.sh("cd /tmp; i=0; while [ $i -lt 700 ]; do mkdir d; cd -P d; i=$((i+1)); done")
        await refused(rig.guest.remove("/tmp/d", user="root", recursive=True), Invalid, "malformed_path")
        assert (await rig.guest.list_dir("/tmp", user="root", depth=64))[-1].path == "/".join("d" * 64)


async def test_directories_are_made_renamed_and_listed_by_depth() -> None:
    async with running() as rig:
        guest = rig.guest
        await guest.make_dir("/tmp/a/b/c", user="bird", mode=0o750)
        await guest.make_dir("/tmp/a/b/c", user="bird")  # repeated: no error
        await guest.write_file("/tmp/a/file", b"12345", user="bird")
        await refused(guest.make_dir("/tmp/a/file", user="bird"), Invalid, "not_a_directory")
        await refused(guest.rename("/tmp/a/b", "/tmp/a/file", user="bird"), Invalid, "not_a_directory")
        await guest.rename("/tmp/a/b", "/tmp/a/z", user="bird")
        assert [e.path for e in await guest.list_dir("/tmp", user="root")] == ["a"]
        found = await guest.list_dir("/tmp", user="root", depth=9)
        assert [(e.path, e.stat.kind) for e in found] == [
            ("a", "directory"),
            ("a/file", "file"),
            ("a/z", "directory"),
            ("a/z/c", "directory"),
        ]
        assert found[1].stat.size == 5
        assert found[3].stat.mode == 0o750
        await refused(guest.list_dir("/tmp/a/file", user="root"), Invalid, "not_a_directory")


async def test_names_that_are_not_utf8_survive_the_way_out_and_back() -> None:
    async with running() as rig:
        await rig.sh(r"printf x > $(printf '/tmp/bad\377name')")
        entry = (await rig.guest.list_dir("/tmp", user="root"))[0]
        assert await content(rig, f"/tmp/{entry.path}") == b"x"


async def test_a_listing_is_bounded_and_says_so() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/many; cd /tmp/many; seq 1 3000 | xargs touch")
        assert len(await rig.guest.list_dir("/tmp/many", user="root")) == 3000
        await refused(rig.guest.list_dir("/tmp/many", user="root", most=2999), Invalid, "too_many_entries")


async def test_a_full_disk_is_said_and_costs_only_the_write() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(4000):
            yield bytes(100_000)

    async with running() as rig:
        assert (await rig.sh("mkdir /tmp/small; mount -t tmpfs -o size=1m tmpfs /tmp/small")).exit_code == 0
        await rig.guest.write_file("/tmp/small/x", b"old", user="root")
        await refused(rig.guest.write_file("/tmp/small/x", bytes(3 << 20), user="root"), StorageFailed, "disk_full")
        await refused(rig.guest.write_file("/tmp/small/x", endless(), user="root"), StorageFailed, "disk_full")
        assert await content(rig, "/tmp/small/x") == b"old"
        assert [e.path for e in await rig.guest.list_dir("/tmp/small", user="root")] == ["x"]


async def test_a_read_only_place_is_said() -> None:
    async with running() as rig:
        assert (await rig.sh("mkdir /tmp/ro; mount -t tmpfs -o ro tmpfs /tmp/ro")).exit_code == 0
        await refused(rig.guest.write_file("/tmp/ro/x", b"x", user="root"), Forbidden, "read_only")


async def test_many_reads_at_once_and_readers_that_leave_early() -> None:
    async with running() as rig:
        data = os.urandom(2_000_000)
        await rig.guest.write_file("/tmp/x", data, user="root")

        async def peek(guest: Guest) -> bytes:
            parts = guest.read_file("/tmp/x", user="bird")
            first = await anext(parts)
            await parts.aclose()
            return first

        whole = [content(rig, "/tmp/x", user="bird") for _ in range(20)]
        assert await asyncio.gather(*whole) == [data] * 20
        firsts = await asyncio.gather(*(peek(rig.guest) for _ in range(60)))
        assert all(data.startswith(first) for first in firsts)


async def test_sync_answers() -> None:
    async with running() as rig:
        await rig.guest.sync()
