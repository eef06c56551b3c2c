"""What a guest promises about watching directories, against the real program as PID 1."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from dovecote.errors import DovecoteError, Failed, Forbidden, Invalid, NoCapacity, NotFound
from dovecote.host.guest import FileChange
from dovecote.host.guest.connection import Connection
from dovecote.host.guest.protocol import Kind, render_frame, text
from tests.system.guest_rig import BOUND, Rig, running, sanitized_program, until

pytestmark = [pytest.mark.system, pytest.mark.anyio]


class Watching:
    """Collects what a watch tells, while a test does other things."""

    def __init__(self) -> None:
        self.changes: list[FileChange] = []
        self.is_over = False
        self.failed: DovecoteError | None = None

    def told(self) -> list[tuple[str, str, str]]:
        """Two of the same in a row as one: the kernel joins them or does not, by whether the first was read yet."""
        return [told for told, _ in itertools.groupby((c.kind, c.path, c.target) for c in self.changes)]

    async def see(self, condition: Callable[[], bool]) -> None:
        await until(condition)


@contextlib.asynccontextmanager
async def watching(rig: Rig, path: str, *, user: str = "root", recursive: bool = False) -> AsyncIterator[Watching]:
    watch = Watching()
    ready = asyncio.Event()

    async def collect() -> None:
        try:
            async for change in rig.guest.watch(path, user=user, recursive=recursive):
                if change.kind == "watching":
                    ready.set()
                else:
                    watch.changes.append(change)
        except DovecoteError as error:
            watch.failed = error
        watch.is_over = True
        ready.set()

    task = asyncio.ensure_future(collect())
    try:
        async with asyncio.timeout(BOUND):
            await ready.wait()
        if watch.failed:
            raise watch.failed
        yield watch
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@contextlib.contextmanager
def unheard(rig: Rig) -> Iterator[None]:
    """Nobody reads meanwhile what the kernel has to tell."""
    stopped = rig.helpers()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


async def test_each_kind_of_change_is_told_with_its_path() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/w; echo old > /tmp/w/old")
        async with watching(rig, "/tmp/w") as watch:
            await rig.sh("cd /tmp/w; echo x > a; chmod 600 a; mv a b; rm b; mkdir d; rmdir d; echo more >> old")
            await watch.see(lambda: watch.told()[-1:] == [("write", "old", "")])
        assert watch.told() == [
            ("create", "a", ""),
            ("write", "a", ""),
            ("chmod", "a", ""),
            ("rename", "a", "b"),
            ("remove", "b", ""),
            ("create", "d", ""),
            ("remove", "d", ""),
            ("write", "old", ""),
        ]
        assert {c.path: c.is_directory for c in watch.changes} == {"a": False, "b": False, "d": True, "old": False}


async def test_a_file_that_we_write_looks_like_any_other_and_its_unfinished_name_is_not_told() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/w")
        async with watching(rig, "/tmp/w", recursive=True) as watch:
            await rig.guest.write_file("/tmp/w/new", b"x", user="root")
            await rig.guest.write_file("/tmp/w/new", b"y", user="root")
            await rig.guest.write_file("/tmp/w/empty", b"", user="root")
            await rig.guest.write_file("/tmp/w/deep/er/new", b"x", user="root")
            await watch.see(lambda: ("write", "deep/er/new", "") in watch.told())
        assert watch.told() == [
            ("create", "new", ""),
            ("write", "new", ""),
            ("create", "empty", ""),
            ("create", "deep", ""),
            ("create", "deep/er", ""),
            ("create", "deep/er/new", ""),
            ("write", "deep/er/new", ""),
        ]


async def test_only_a_recursive_watch_looks_below() -> None:
    async with running() as rig:
        await rig.sh("mkdir -p /tmp/w/below/deep")
        async with watching(rig, "/tmp/w") as flat, watching(rig, "/tmp/w", recursive=True) as whole:
            await rig.sh("cd /tmp/w; touch below/deep/x; mkdir new; touch new/y; touch last")
            await flat.see(lambda: ("create", "last", "") in flat.told())
            await whole.see(lambda: ("create", "last", "") in whole.told())
        assert {path for _, path, _ in flat.told()} == {"new", "last"}
        assert {path for _, path, _ in whole.told()} == {"below/deep/x", "new", "new/y", "last"}


async def test_what_appears_at_once_in_new_directories_is_not_lost_and_not_told_twice() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/w")
        async with watching(rig, "/tmp/w", recursive=True) as watch:
            for i in range(40):
                await rig.sh(
                    f"mkdir -p /tmp/w/{i}/a/b/c; for p in {i} {i}/a {i}/a/b {i}/a/b/c; do : > /tmp/w/$p/f; done"
                )
            await rig.sh("touch /tmp/w/last")
            await watch.see(lambda: ("create", "last", "") in watch.told())
        created = [path for kind, path, _ in watch.told() if kind == "create"]
        wanted = {f"{i}{below}" for i in range(40) for below in ("", "/a", "/a/b", "/a/b/c")}
        wanted |= {f"{path}/f" for path in wanted} | {"last"}
        assert sorted(created) == sorted(wanted)


async def test_a_renamed_directory_goes_on_under_its_new_name_and_one_that_left_is_silent() -> None:
    async with running() as rig:
        await rig.sh("mkdir -p /tmp/w/a/in /tmp/w/stays /tmp/out")
        async with watching(rig, "/tmp/w", recursive=True) as watch:
            await rig.sh("cd /tmp/w; mv a stays/b; touch stays/b/in/x")
            await watch.see(lambda: ("create", "stays/b/in/x", "") in watch.told())
            await rig.sh("cd /tmp/w; mv stays/b /tmp/out/gone; touch /tmp/out/gone/in/y; touch last")
            await watch.see(lambda: ("create", "last", "") in watch.told())
            await rig.sh("cd /tmp/w; mv /tmp/out/gone back; touch back/in/z")
            await watch.see(lambda: ("create", "back/in/z", "") in watch.told())
        told = [each for each in watch.told() if each[0] != "chmod"]
        assert told[:4] == [
            ("rename", "a", "stays/b"),
            ("create", "stays/b/in/x", ""),
            ("rename", "stays/b", ""),
            ("create", "last", ""),
        ]
        assert told[4] == ("create", "back", "")
        assert {path for _, path, _ in told[5:]} == {"back/in", "back/in/x", "back/in/y", "back/in/z"}


@pytest.mark.parametrize("seed", range(3))
async def test_a_copy_kept_by_the_changes_alone_is_the_same_as_the_tree(seed: int) -> None:
    """Whatever is done, in whatever order: who applies the changes ends with the names that are there."""
    rng = random.Random(seed)
    names = ["a", "b", "c"]
    script = ["cd /tmp/w"]
    for _ in range(300):
        one, other = ("/".join(rng.choices(names, k=rng.randrange(1, 4))) for _ in range(2))
        script.append(
            rng.choice(
                [
                    f"mkdir -p {one} 2>/dev/null",
                    f"echo x > {one} 2>/dev/null",
                    f"rm -rf {one}",
                    f"mv -T {one} {other} 2>/dev/null",
                    f"mv -T {one} ../out/x 2>/dev/null && mv -T ../out/x {other} 2>/dev/null; rm -rf ../out/x",
                ]
            )
        )
    async with running(sanitized_program()) as rig:
        await rig.sh("mkdir /tmp/w /tmp/out")
        async with watching(rig, "/tmp/w", recursive=True) as watch:
            for at in range(1, len(script), 25):
                await rig.sh("\n".join([script[0], *script[at : at + 25]]))
            await rig.sh("touch /tmp/w/last")
            await watch.see(lambda: ("create", "last", "") in watch.told())
        found = (await rig.guest.list_dir("/tmp/w", user="root", depth=9)).entries
        assert replayed(watch.changes) == {entry.path for entry in found}


def replayed(changes: list[FileChange]) -> set[str]:
    there: set[str] = set()

    def below(path: str) -> set[str]:
        return {each for each in there if each == path or each.startswith(path + "/")}

    for change in changes:
        assert change.kind != "overflow"
        if change.kind == "create":
            there.add(change.path)
        elif change.kind == "remove":
            there -= below(change.path)
        elif change.kind == "rename":
            moved = below(change.path)
            there -= moved
            if change.target:
                there -= below(change.target)
                there |= {change.target + each[len(change.path) :] for each in moved}
    return there


async def test_a_watch_ends_when_its_directory_is_gone() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/w /tmp/v")
        for script in ("rmdir /tmp/w", "mv /tmp/v /tmp/u"):
            async with watching(rig, "/tmp/" + script.split()[1][-1]) as watch:
                await rig.sh(script)
                await watch.see(lambda: watch.is_over)
                assert watch.told()[-1] == ("remove", "", "")


async def test_a_watch_acts_with_the_rights_of_its_user() -> None:
    async with running() as rig:
        await rig.sh("mkdir -p /tmp/w/secret /tmp/w/open; chmod 700 /tmp/w/secret /root; chmod 777 /tmp/w/open")
        for path, kind in (("/root", Forbidden), ("/tmp/none", NotFound), ("/etc/passwd", Invalid)):
            with pytest.raises(kind):
                await anext(rig.guest.watch(path, user="bird"))
        async with watching(rig, "/tmp/w", user="bird", recursive=True) as watch:
            await rig.sh("touch /tmp/w/secret/x /tmp/w/open/y")
            await watch.see(lambda: ("create", "open/y", "") in watch.told())
        assert ("create", "secret/x", "") not in watch.told()


async def test_a_reader_that_is_behind_gets_an_overflow_and_costs_only_its_own_watch() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/w")
        slow = await Connection.open(rig.socket_path)
        await slow.send(render_frame(Kind.WATCH, text("root") + text("/tmp/w") + b"\1"))
        await slow.receive(BOUND)
        async with watching(rig, "/tmp/w", recursive=True) as quick:
            await rig.sh("mkdir /tmp/w/d; cd /tmp/w/d; seq -f %0100.f 1 12000 | xargs touch")

            async def goes_on() -> bool:  # a busy machine may make it a little slow too
                await rig.sh("touch /tmp/w/last")
                return any(path == "last" for _, path, _ in quick.told())

            await until(goes_on)
        assert rig.rss_bytes("RssAnon") < 1 << 20
        kinds = [(await slow.receive(BOUND))[1][0]]
        while kinds[-1] != 6:
            kinds.append((await slow.receive(BOUND))[1][0])
        assert len(kinds) < 12000
        await rig.sh("touch /tmp/w/d/after")  # in a directory that it came to know while it was behind
        while b"d/after" not in (await slow.receive(BOUND))[1]:
            pass
        slow.close()


async def test_when_the_kernel_drops_events_it_is_told_and_the_watch_goes_on_everywhere() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/w")
        async with watching(rig, "/tmp/w", recursive=True) as watch:
            with unheard(rig):
                await rig.sh("cd /tmp/w; seq 1 20000 | xargs touch; mkdir -p new/er")
            await watch.see(lambda: any(c.kind == "overflow" for c in watch.changes))
            await rig.sh("touch /tmp/w/new/er/x")
            await watch.see(lambda: ("create", "new/er/x", "") in watch.told())


@pytest.mark.parametrize("script", ["rm -rf /tmp/w", "mv /tmp/w /tmp/v", "mv /tmp/w /tmp/v; mkdir /tmp/w"])
async def test_a_watch_whose_directory_goes_while_the_kernel_drops_events_ends_too(script: str) -> None:
    async with running(sanitized_program()) as rig:
        await rig.sh("mkdir /tmp/w")
        async with watching(rig, "/tmp/w", recursive=True) as watch:
            with unheard(rig):
                await rig.sh(f"cd /tmp/w; seq 1 20000 | xargs touch; cd /; {script}")
            await watch.see(lambda: watch.is_over)
        assert watch.failed is None
        assert watch.told()[-2:] == [("overflow", "", ""), ("remove", "", "")]
        await until(lambda: not rig.helpers())


async def test_a_watch_that_lost_events_and_cannot_watch_all_of_it_again_says_so_and_ends() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/w")
        async with watching(rig, "/tmp/w", recursive=True) as watch:
            with unheard(rig):
                await rig.sh("cd /tmp/w; seq 1 20000 | xargs mkdir")
            await watch.see(lambda: watch.is_over)
        assert watch.told()[-1] == ("overflow", "", "")
        assert watch.failed is not None
        assert watch.failed.code == "too_many_watches"
        await until(lambda: not rig.helpers())


async def test_a_reader_that_is_behind_is_told_that_the_directory_is_gone() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/w")
        slow = await Connection.open(rig.socket_path)
        await slow.send(render_frame(Kind.WATCH, text("root") + text("/tmp/w") + b"\1"))
        await slow.receive(BOUND)
        async with watching(rig, "/tmp/w") as quick:
            await rig.sh("cd /tmp/w; seq -f %0200.f 1 8000 | xargs touch; rm -rf /tmp/w")
            await quick.see(lambda: quick.is_over)
        frames = [await slow.receive(BOUND)]
        while frames[-1][0] != Kind.CONTENT_END:
            frames.append(await slow.receive(BOUND))
        assert [payload[0] for _, payload in frames[-3:-1]] == [6, 3]
        slow.close()


async def test_the_root_is_watched_like_any_directory() -> None:
    async with running() as rig, watching(rig, "/") as watch:
        await rig.sh("mkdir /new")
        await watch.see(lambda: ("create", "new", "") in watch.told())


async def test_more_directories_than_the_bound_are_refused_and_later_ones_are_an_overflow() -> None:
    async with running() as rig:
        await rig.sh("mkdir /tmp/w; cd /tmp/w; seq 1 16380 | xargs mkdir")
        async with watching(rig, "/tmp/w", recursive=True) as watch:
            await rig.sh("cd /tmp/w; mkdir b1 b2 b3 b4 b5 b6")
            await watch.see(lambda: any(c.kind == "overflow" for c in watch.changes))
        with pytest.raises(NoCapacity) as error:
            await anext(rig.guest.watch("/tmp/w", user="root", recursive=True))
        assert error.value.code == "too_many_watches"


async def test_watches_are_bounded_in_number_and_leave_nothing_behind() -> None:
    async with running() as rig:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(64):
                await stack.enter_async_context(watching(rig, "/tmp"))
            with pytest.raises(NoCapacity) as error:
                await anext(rig.guest.watch("/tmp", user="root"))
            assert error.value.code == "too_many"
            assert (await rig.sh("echo fine")).stdout == b"fine\n"
            await rig.guest.write_file("/tmp/x", b"x", user="root")
            assert rig.rss_bytes("RssAnon") < 1 << 20
        await until(lambda: not rig.helpers())


async def test_a_shutdown_does_not_wait_for_watches() -> None:
    async with running() as rig:
        changes = rig.guest.watch("/tmp", user="bird")
        await anext(changes)
        await rig.guest.shutdown(60)
        await until(lambda: not rig.alive())
        with pytest.raises(Failed) as error:
            await anext(changes)
        assert error.value.code == "guest_unreachable"
