"""What a guest promises about files, against the real program as PID 1."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from dovecote.errors import Conflict, DovecoteError, Forbidden, Invalid, NotFound, StorageFailed
from dovecote.host.guest import Entry, Guest
from tests.system.guest_rig import BOUND, Rig, running, until

pytestmark = [pytest.mark.system, pytest.mark.anyio]


async def content(rig: Rig, path: str, *, user: str = "root", offset: int = 0, length: int | None = None) -> bytes:
    parts = rig.guest.read_file(path, user=user, offset=offset, length=length)
    return b"".join([part async for part in parts])


async def entries(rig: Rig, path: str, *, depth: int = 1) -> list[Entry]:
    listing = await rig.guest.list_dir(path, user="root", depth=depth)
    assert not listing.is_cut
    return listing.entries


async def refused(call: Awaitable[object], kind: type[DovecoteError], code: str) -> None:
    async with asyncio.timeout(BOUND):
        with pytest.raises(kind) as error:
            await call
    assert error.value.code == code


async def test_what_is_written_is_read_back_and_belongs_to_the_user() -> None:
    async with running() as rig:
        data = os.urandom(3_000_000)
        await rig.guest.write_file("/home/bird/a/b/é.bin", data, user="bird", mode=0o640)
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
            return [e.path for e in await entries(rig, "/tmp/d")] == ["x"]

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


async def test_a_write_through_a_link_to_nothing_makes_what_it_names() -> None:
    async with running() as rig:
        guest = rig.guest
        await rig.sh("cd /tmp; mkdir in; ln -s in/second first; ln -s ../new/er in/second; ln -s loop loop")
        await rig.sh("cd /tmp; for i in $(seq 41); do ln -s $((i-1)) $i; done")
        await rig.sh("cd /tmp; ln -s /root/x x; chmod 777 in")
        await guest.write_file("/tmp/first", b"made", user="root")
        await guest.write_file("/tmp/40", b"far", user="root")
        assert (await content(rig, "/tmp/new/er"), await content(rig, "/tmp/0")) == (b"made", b"far")
        await guest.write_file("/tmp/first", b"again", user="root")
        assert await content(rig, "/tmp/new/er") == b"again"
        await rig.sh("cd /tmp; rm 0; ln -s /none/x deep; ln -s /tmp/none/ directory")
        for path, kind, code in (
            ("/tmp/loop", Invalid, "malformed_path"),
            ("/tmp/41", Invalid, "malformed_path"),
            ("/tmp/directory", Invalid, "is_directory"),
        ):
            await refused(guest.write_file(path, b"x", user="root"), kind, code)
        await refused(guest.write_file("/tmp/x", b"x", user="bird"), Forbidden, "permission_denied")
        await refused(guest.write_file("/tmp/deep", b"x", user="root", make_parents=False), NotFound, "file_not_found")
        links = {each.path for each in await entries(rig, "/tmp") if each.stat.kind == "link"}
        assert links == {"first", "loop", "x", "deep", "directory", *map(str, range(1, 42))}
        assert [each.path for each in await entries(rig, "/tmp/in")] == ["second"]


async def test_a_write_follows_no_link_that_the_kernel_lets_nobody_follow() -> None:
    """In a directory that all may write to, a link of one user is no trap for another."""
    if Path("/proc/sys/fs/protected_symlinks").read_text().strip() == "0":
        pytest.skip("this machine lets everybody follow every link")
    async with running() as rig:
        await rig.sh("ln -s /root/new /tmp/trap; ln -s /root/old /tmp/other", user="bird")
        await rig.sh("echo old > /root/old")
        for path in ("/tmp/trap", "/tmp/other"):
            await refused(rig.guest.write_file(path, b"x", user="root"), Forbidden, "permission_denied")
        assert await content(rig, "/root/old") == b"old\n"


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
        assert [e.path for e in await entries(rig, "/tmp", depth=3)] == ["keep", "keep/x"]


async def test_a_tree_that_is_too_deep_is_an_error_and_not_a_crash() -> None:
    async with running() as rig:
        await rig.sh("cd /tmp; i=0; while [ $i -lt 700 ]; do mkdir d; cd -P d; i=$((i+1)); done")
        await refused(rig.guest.remove("/tmp/d", user="root", recursive=True), Invalid, "malformed_path")
        assert (await entries(rig, "/tmp", depth=64))[-1].path == "/".join("d" * 64)


async def test_directories_are_made_renamed_and_listed_by_depth() -> None:
    async with running() as rig:
        guest = rig.guest
        await guest.make_dir("/tmp/a/b/c", user="bird", mode=0o750)
        await guest.make_dir("/tmp/a/b/c", user="bird")  # repeated: no error
        await guest.write_file("/tmp/a/file", b"12345", user="bird")
        await refused(guest.make_dir("/tmp/a/file", user="bird"), Invalid, "not_a_directory")
        await refused(guest.rename("/tmp/a/b", "/tmp/a/file", user="bird"), Invalid, "not_a_directory")
        await guest.rename("/tmp/a/b", "/tmp/a/z", user="bird")
        assert [e.path for e in await entries(rig, "/tmp")] == ["a"]
        found = await entries(rig, "/tmp", depth=9)
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
        entry = (await entries(rig, "/tmp"))[0]
        assert await content(rig, f"/tmp/{entry.path}") == b"x"


async def test_a_listing_is_bounded_and_says_so() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/many; cd /tmp/many; seq 1 3000 | xargs touch")
        assert len(await entries(rig, "/tmp/many")) == 3000
        cut = await rig.guest.list_dir("/tmp/many", user="root", most=2999)
        assert (cut.is_cut, len(cut.entries)) == (True, 2999)


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
        assert [e.path for e in await entries(rig, "/tmp/small")] == ["x"]


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


async def test_a_link_is_made_and_told_of_with_its_target_only_when_it_is_not_followed() -> None:
    async with running() as rig:
        guest = rig.guest
        await guest.make_dir("/tmp/real", user="root")
        await guest.make_link("/tmp/link", "real", user="bird")
        await guest.make_link("/tmp/dangling", "../nowhere", user="bird")
        await refused(guest.make_link("/tmp/link", "x", user="root"), Conflict, "exists")
        link = await guest.stat("/tmp/link", user="root", follow=False)
        assert (link.kind, link.target, link.owner) == ("link", "real", "bird")
        real = await guest.stat("/tmp/link", user="root")
        assert (real.kind, real.target, real.owner) == ("directory", "", "root")
        await refused(guest.stat("/tmp/dangling", user="root"), NotFound, "file_not_found")
        assert (await guest.list_dir("/tmp/link", user="root")).entries == []
        await refused(guest.list_dir("/tmp/link", user="root", follow=False), Invalid, "not_a_directory")
        found = {e.path: (e.stat.kind, e.stat.target) for e in await entries(rig, "/tmp")}
        assert found == {"real": ("directory", ""), "link": ("link", "real"), "dangling": ("link", "../nowhere")}


async def test_owners_and_groups_have_the_names_that_the_sandbox_gives_them() -> None:
    async with running() as rig:
        await rig.sh("cd /tmp; touch a b c; chown bird:flock a; chown 1001:0 b; chown 7777:8888 c")
        named = {e.path: (e.stat.owner, e.stat.group) for e in await entries(rig, "/tmp")}
        assert named == {"a": ("bird", "flock"), "b": ("wren", "root"), "c": ("", "")}
        await rig.sh("rm /etc/passwd; mkfifo /etc/passwd")
        assert (await rig.guest.stat("/tmp/a", user="0")).owner == ""


async def test_modes_are_changed_by_the_owner_only_and_kept_by_writing() -> None:
    async with running() as rig:
        guest = rig.guest
        await guest.write_file("/tmp/x", b"1", user="bird")
        assert (await guest.stat("/tmp/x", user="root")).mode == 0o644
        await guest.alter("/tmp/x", user="bird", mode=0o4750)
        await refused(guest.alter("/tmp/x", user="wren", mode=0o777), Forbidden, "permission_denied")
        await guest.write_file("/tmp/x", b"2", user="bird")
        await guest.write_file("/tmp/x", b"3", user="root")  # root writes to a file of somebody else
        stat = await guest.stat("/tmp/x", user="root")
        assert (stat.mode, stat.owner) == (0o4750, "bird")
        await guest.write_file("/tmp/x", b"4", user="bird", mode=0o600)
        assert (await guest.stat("/tmp/x", user="root")).mode == 0o600


async def test_a_file_that_a_user_may_not_write_to_is_not_replaced_although_its_directory_is_theirs() -> None:
    async with running() as rig:
        await rig.sh("echo mine > /home/bird/x; chmod 644 /home/bird/x")
        await refused(rig.guest.write_file("/home/bird/x", b"y", user="bird"), Forbidden, "permission_denied")
        assert await content(rig, "/home/bird/x") == b"mine\n"


async def test_who_may_write_to_a_file_of_another_gains_no_rights_by_it() -> None:
    async with running() as rig:
        await rig.sh("cp /bin/true /home/bird/x; chown root:flock /home/bird/x; chmod 6775 /home/bird/x")
        await rig.guest.write_file("/home/bird/x", b"y", user="bird")
        stat = await rig.guest.stat("/home/bird/x", user="root")
        assert (stat.owner, stat.mode) == ("bird", 0o775)


async def test_metadata_is_set_replaced_kept_and_bounded() -> None:
    async with running() as rig:
        guest = rig.guest

        async def noted(path: str) -> dict[str, str]:
            return dict((await guest.stat(path, user="root")).metadata)

        await guest.write_file("/tmp/x", b"1", user="bird", metadata={"a.b-c_1": "é", "empty": ""})
        assert await noted("/tmp/x") == {"a.b-c_1": "é", "empty": ""}
        await rig.sh("""perl -e 'exit(syscall(188, "/tmp/x", "user.mine", "v", 1, 0))'""")
        await guest.write_file("/tmp/x", b"2", user="bird")
        assert await noted("/tmp/x") == {"a.b-c_1": "é", "empty": ""}
        await guest.write_file("/tmp/x", b"3", user="bird", metadata={"only": "this"})
        assert await noted("/tmp/x") == {"only": "this"}
        await guest.alter("/tmp/x", user="bird", metadata={"a": "1", "b": "2"})
        assert await noted("/tmp/x") == {"a": "1", "b": "2"}
        assert {e.path: dict(e.stat.metadata) for e in await entries(rig, "/tmp")} == {"x": {"a": "1", "b": "2"}}
        await refused(guest.alter("/tmp/x", user="wren", metadata={}), Forbidden, "permission_denied")
        await guest.alter("/tmp/x", user="bird", metadata={})
        assert await noted("/tmp/x") == {}
        await guest.make_dir("/tmp/d", user="bird")
        await guest.alter("/tmp/d", user="bird", metadata={"of": "a directory"})
        assert await noted("/tmp/d") == {"of": "a directory"}
        await refused(guest.alter("/tmp/x", user="bird", metadata={"A": ""}), Invalid, "malformed_metadata")
        await refused(guest.alter("/tmp/x", user="bird", metadata={"a": "x" * 4096}), Invalid, "too_large")
        await guest.alter("/tmp/x", user="bird", metadata={"a": "x" * 4095})
        assert await noted("/tmp/x") == {"a": "x" * 4095}


async def test_making_a_directory_says_whether_it_was_there() -> None:
    async with running() as rig:
        assert await rig.guest.make_dir("/tmp/a/b", user="bird")
        assert not await rig.guest.make_dir("/tmp/a/b", user="bird")
        assert not await rig.guest.make_dir("/tmp/a/b/", user="bird")
        assert await rig.guest.make_dir("/tmp/a/b/c/", user="bird")


async def test_a_move_to_another_file_system_arrives_whole() -> None:
    async with running() as rig:
        assert (await rig.sh("mkdir /tmp/other; mount -t tmpfs tmpfs /tmp/other; chmod 1777 /tmp/other")).exit_code == 0
        await rig.sh(
            "mkdir -p /tmp/t/in; cd /tmp/t; echo deep > in/x; chmod 751 in; chown bird:flock in/x; chmod 640 in/x;"
            "ln -s in/x link; mkfifo pipe; touch -d '2001-02-03 04:05:06' in/x; truncate -s 50M sparse"
        )
        guest = rig.guest
        await guest.alter("/tmp/t/in/x", user="root", metadata={"note": "kept"})
        before = {e.path: e.stat for e in await entries(rig, "/tmp/t", depth=9)}
        await guest.rename("/tmp/t", "/tmp/other/moved", user="root")
        after = {e.path: e.stat for e in await entries(rig, "/tmp/other/moved", depth=9)}
        assert after == before
        assert await content(rig, "/tmp/other/moved/in/x") == b"deep\n"
        assert int((await rig.sh("du -k /tmp/other/moved/sparse | cut -f1")).stdout) < 1000
        await refused(guest.stat("/tmp/t", user="root"), NotFound, "file_not_found")
        await rig.sh("echo old > /tmp/file; echo new > /tmp/other/file")
        await guest.rename("/tmp/other/file", "/tmp/file", user="root")  # over one that is there
        assert await content(rig, "/tmp/file") == b"new\n"


async def test_a_move_that_does_not_fit_leaves_the_source_and_no_half_copy() -> None:
    async with running() as rig:
        assert (await rig.sh("mkdir /tmp/small; mount -t tmpfs -o size=1m tmpfs /tmp/small")).exit_code == 0
        await rig.sh("mkdir /tmp/t; head -c 500000 /dev/zero > /tmp/t/a; head -c 3000000 /dev/zero > /tmp/t/b")
        await refused(rig.guest.rename("/tmp/t", "/tmp/small/t", user="root"), StorageFailed, "disk_full")
        assert {e.path: e.stat.size for e in await entries(rig, "/tmp/t")} == {"a": 500_000, "b": 3_000_000}
        assert await entries(rig, "/tmp/small") == []
        await rig.sh("mkdir /tmp/t/in; mount -t tmpfs tmpfs /tmp/t/in")
        await refused(rig.guest.rename("/tmp/t", "/tmp/t/in/t", user="root"), Invalid, "malformed_path")
        assert await entries(rig, "/tmp/t/in") == []


async def test_a_rename_goes_over_what_is_there_unless_that_would_lose_a_directory() -> None:
    async with running() as rig:
        guest = rig.guest
        await rig.sh("cd /tmp; echo 1 > a; echo 2 > b; mkdir d empty full; touch full/x")
        await guest.rename("/tmp/a", "/tmp/b", user="root")
        assert await content(rig, "/tmp/b") == b"1\n"
        await guest.rename("/tmp/d", "/tmp/empty", user="root")
        await refused(guest.rename("/tmp/empty", "/tmp/full", user="root"), Conflict, "directory_not_empty")
        await refused(guest.rename("/tmp/b", "/tmp/full", user="root"), Invalid, "is_directory")
        await refused(guest.rename("/tmp/none", "/tmp/b", user="root"), NotFound, "file_not_found")
        await refused(guest.remove("/tmp/none", user="root", recursive=True), NotFound, "file_not_found")


async def test_writers_of_one_path_at_once_leave_the_whole_file_of_one_of_them() -> None:
    async with running() as rig:
        contents = [bytes([i]) * 300_000 for i in range(12)]
        await rig.guest.write_file("/tmp/x", contents[0], user="bird")

        async def reading() -> None:
            for _ in range(20):
                assert await content(rig, "/tmp/x", user="bird") in contents

        writers = (rig.guest.write_file("/tmp/x", each, user="bird") for each in contents)
        await asyncio.gather(reading(), *writers)
        assert await content(rig, "/tmp/x") in contents
        assert [e.path for e in await entries(rig, "/tmp")] == ["x"]


async def test_a_stop_in_the_middle_of_a_file_breaks_neither_reading_nor_writing() -> None:
    """As each save stops a sandbox for a moment: the kernel then cuts waits short that have a limit in time."""
    data = os.urandom(1_000_000)

    async with running() as rig:

        async def halting() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 250_000):
                yield data[at : at + 250_000]
                await _halt(rig)

        await rig.guest.write_file("/tmp/x", halting(), user="root")
        parts = rig.guest.read_file("/tmp/x", user="root")
        got = await anext(parts)
        await _halt(rig)
        assert got + b"".join([part async for part in parts]) == data


async def _halt(rig: Rig) -> None:
    """Stops the helpers, once they wait, and lets them go on."""

    async def is_waiting() -> bool:
        helpers = children(rig.pid)
        return bool(helpers) and all(") S " in Path(f"/proc/{pid}/stat").read_text() for pid in helpers)

    await until(is_waiting)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in children(rig.pid):
            os.kill(pid, number)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
