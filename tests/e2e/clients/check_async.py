"""The same by E2B's asynchronous Python SDK, many calls at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from e2b import AsyncSandbox, CommandExitException, PtySize, SandboxException, TimeoutException


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[AsyncSandbox]:
    sandbox = await AsyncSandbox.create(timeout=300, envs={"OF_THE_SANDBOX": "yes"})
    yield sandbox
    await sandbox.kill()


async def test_commands(sandbox: AsyncSandbox) -> None:
    assert await sandbox.is_running()
    done = await sandbox.commands.run("whoami; pwd; echo $OF_THE_SANDBOX $OWN", envs={"OWN": "mine"})
    assert done.stdout == "user\n/home/user\nyes mine\n"
    with pytest.raises(CommandExitException) as failure:
        await sandbox.commands.run("exit 3", user="root")
    assert failure.value.exit_code == 3
    with pytest.raises(TimeoutException):
        await sandbox.commands.run("sleep 600", timeout=1)


async def test_thirty_commands_at_once(sandbox: AsyncSandbox) -> None:
    done = await asyncio.gather(*(sandbox.commands.run(f"sleep 0.2; echo {n}") for n in range(30)))
    assert [each.stdout for each in done] == [f"{n}\n" for n in range(30)]


async def test_a_command_in_the_background(sandbox: AsyncSandbox) -> None:
    out: list[str] = []
    handle = await sandbox.commands.run("cat; echo end", background=True, stdin=True, on_stdout=out.append)
    assert handle.pid in {each.pid for each in await sandbox.commands.list()}
    await sandbox.commands.send_stdin(handle.pid, "a line\n")
    await sandbox.commands.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "".join(out) == "a line\nend\n"

    handle = await sandbox.commands.run("sleep 600", background=True)
    await handle.disconnect()
    again = await sandbox.commands.connect(handle.pid)
    assert await again.kill()
    with pytest.raises(CommandExitException):
        await again.wait()


async def test_a_task_that_is_cancelled_leaves_its_command_alone(sandbox: AsyncSandbox) -> None:
    task = asyncio.create_task(sandbox.commands.run("echo ready > ready; sleep 2; echo done > done"))
    while not await sandbox.files.exists("ready"):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(30):
        while not await sandbox.files.exists("done"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_terminal(sandbox: AsyncSandbox) -> None:
    seen: list[bytes] = []
    terminal = await sandbox.pty.create(PtySize(rows=20, cols=80), on_data=seen.append)
    await sandbox.pty.resize(terminal.pid, PtySize(rows=31, cols=71))
    await sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    await terminal.wait()
    assert b"31 71" in b"".join(seen)


async def test_files(sandbox: AsyncSandbox) -> None:
    await sandbox.files.write("a/b.txt", "x" * 100_000, gzip=True)
    assert await sandbox.files.read("a/b.txt") == "x" * 100_000
    stream = await sandbox.files.read("a/b.txt", format="stream")
    assert len(b"".join([chunk async for chunk in stream])) == 100_000
    assert [each.name for each in await sandbox.files.list("a")] == ["b.txt"]
    assert (await sandbox.files.rename("a/b.txt", "a/c.txt")).size == 100_000
    assert await sandbox.files.make_dir("d")
    assert not await sandbox.files.make_dir("d")
    await sandbox.files.remove("a")
    assert not await sandbox.files.exists("a")
    with pytest.raises(SandboxException):
        await sandbox.files.read("a/c.txt")


async def test_a_hundred_files_at_once(sandbox: AsyncSandbox) -> None:
    await asyncio.gather(*(sandbox.files.write(f"many/{n}", str(n)) for n in range(100)))
    read = await asyncio.gather(*(sandbox.files.read(f"many/{n}") for n in range(100)))
    assert read == [str(n) for n in range(100)]


async def test_writers_of_one_file_replace_it_whole(sandbox: AsyncSandbox) -> None:
    await asyncio.gather(*(sandbox.files.write("one", str(n % 10) * 50_000) for n in range(20)))
    content = await sandbox.files.read("one")
    assert len(content) == 50_000
    assert len(set(content)) == 1


async def test_signed_urls(sandbox: AsyncSandbox) -> None:
    async with httpx.AsyncClient() as client:
        url = sandbox.upload_url("signed", use_signature_expiration=60)
        assert (await client.post(url, files={"file": ("f", b"up")})).status_code == 200
        assert (await client.get(sandbox.download_url("signed"))).text == "up"


async def test_sandboxes_at_once_are_not_mixed_up(sandbox: AsyncSandbox) -> None:
    others = await asyncio.gather(*(AsyncSandbox.create(timeout=120) for _ in range(3)))
    everyone = [sandbox, *others]
    await asyncio.gather(*(each.files.write("who", each.sandbox_id) for each in everyone))
    ran = await asyncio.gather(*(each.commands.run("cat who") for each in everyone))
    assert [done.stdout for done in ran] == [each.sandbox_id for each in everyone]
    await asyncio.gather(*(each.kill() for each in others))
